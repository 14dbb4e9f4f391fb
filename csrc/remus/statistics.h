/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* remus/statistics.h - what epochs took.
   remus.h has the conventions. */
#ifndef REMUS_STATISTICS_H
#define REMUS_STATISTICS_H

#include "remus/common.h"

#ifdef __cplusplus
extern "C" {
#endif

/* cffi:begin */

/* ---- Epoch statistics ------------------------------------------------- */

/*
 * The epochs of a device, of a resource or of a group of devices: the last
 * REMUS_EPOCHS_RING of them one by one, and histograms of all of them.  One
 * writer; any number of readers, in other threads or (with a file) in other
 * processes, which never slow the writer down.  Calls never block, and have no
 * errors of their own, unless they say so.
 */

typedef struct remus_epochs remus_epochs;

#define REMUS_EPOCHS_RING 4096    /* epochs that are kept one by one */
#define REMUS_EPOCHS_BUCKETS 3776 /* buckets of a histogram, at most */

/*
 * One epoch.  Times are nanoseconds.  `epoch` must never decrease from one
 * sample to the next.
 */
struct remus_epoch_sample {
    uint64_t epoch;      /* its number (of a group: a running number) */
    uint64_t start_ns;   /* CLOCK_MONOTONIC when postsuspend was called */
    uint64_t barrier_ns; /* time that postsuspend took */
    uint64_t ack_ns;     /* from the end of postsuspend to the ack, or to
                            the failure */
    uint64_t commit_ns;  /* time that commit took; 0: not committed (yet),
                            or only by the commit of a later epoch */
    uint64_t bytes;      /* bytes written and zeroed in the epoch */
    uint64_t extents;    /* separate ranges that it holds once overwritten
                            data is left out; 0: unknown */
    uint64_t coalesced;  /* of `bytes`, those overwritten within the epoch
                            before they reached a disk; valid only if
                            `extents` is known */
    int32_t result;      /* 0, or -errno of the first phase that failed */
    uint32_t flags;      /* reserved: 0 */
};

/*
 * The series that have a histogram.  Times are nanoseconds.  Failed epochs are
 * in the ring and counted, but in no series: the time until a loss is noticed
 * is not the time of an ack.
 */
enum remus_epochs_series {
    REMUS_SERIES_BARRIER,   /* barrier_ns */
    REMUS_SERIES_ACK,       /* ack_ns */
    REMUS_SERIES_COMMIT,    /* commit_ns of committed epochs */
    REMUS_SERIES_PAUSE,     /* barrier_ns + ack_ns */
    REMUS_SERIES_BYTES,     /* bytes */
    REMUS_SERIES_EXTENTS,   /* extents, where known */
    REMUS_SERIES_COALESCED, /* coalesced, where extents are known */
    REMUS_SERIES_COUNT      /* how many series there are */
};

/*
 * One series in numbers, in the unit of the series; all are 0 if count is 0.
 * min, max and mean are exact (the mean is rounded down).  A quantile is the
 * smallest value that this share of all values does not exceed; the number
 * given is never less than it and at most 1/64 more.
 */
struct remus_series_summary {
    uint32_t struct_size; /* sizeof of this struct, see remus.h */
    uint64_t count;       /* how many values */
    uint64_t min;
    uint64_t max;
    uint64_t mean;
    uint64_t p50;
    uint64_t p90;
    uint64_t p99;
    uint64_t p999;
    uint64_t total; /* sum of all values; UINT64_MAX if it is larger */
};

/* One bucket of a histogram: values from `low` to `high`, both included, in the
 * unit of the series. */
struct remus_epochs_bucket {
    uint64_t low;
    uint64_t high;
    uint64_t count; /* never 0 */
};

/* Where statistics come from, at one moment. */
struct remus_epochs_info {
    uint32_t struct_size; /* sizeof of this struct, see remus.h */
    char name[64];        /* as given to create */
    uint64_t added;      /* epochs ever added: the position after the newest */
    uint64_t failed;     /* of them, those with a result other than 0 */
    uint64_t created_ns; /* CLOCK_MONOTONIC at creation */
    int64_t pid;         /* of the writer, as it sees itself */
    int closed;          /* 1: the writer closed them: nothing follows */
    int writing;         /* 1: the writer runs and has not closed them */
    int this_boot;       /* 1: created since this host started, so its
                            CLOCK_MONOTONIC times can be compared */
    int reserved;        /* 0 */
};

/*
 * Create statistics, as their one writer.  `path` NULL: anonymous memory, for
 * readers in this process.  Else the name under which other processes find
 * them (0600, 532 KiB): a file of that name is replaced at once, and its
 * readers keep what they have.  On a file system in memory (/run, /dev/shm)
 * `path` becomes a file.  Elsewhere a store into a file could wait for its
 * disk, so `path` becomes a symbolic link to memory of this process, and at
 * close a file with the final state; if the process dies before, only readers
 * that had attached still have them.
 * `name`: of the device, resource or group, at most REMUS_NAME_MAX bytes.
 * Blocks for file I/O.  Errors: -EINVAL name; -ENOSPC; others of open(2),
 * rename(2), mmap(2).
 */
REMUS_API int remus_epochs_create(const char *path, const char *name,
                                  remus_epochs **out);

/*
 * Read the statistics of another process, or the file of one that has ended.
 * If newer statistics take the place of the file, the handle stays with the
 * old ones: attach again when remus_epochs_info() says that nobody writes.
 * Blocks for file I/O.  Errors: -EBADMSG not such a file, of another version,
 * or damaged (the text says which); -ENOENT no file, or its writer died and
 * they are lost; others of open(2), mmap(2).
 */
REMUS_API int remus_epochs_attach(const char *path, remus_epochs **out);

/*
 * Add one epoch.  From one thread at a time.  A few dozen stores: no system
 * call, no allocation, no lock, no loop.  A no-op on an attached handle.
 */
REMUS_API void remus_epochs_add(remus_epochs *e,
                                const struct remus_epoch_sample *s);

/*
 * The epoch was committed, and that took `commit_ns` (0 counts as 1).  From
 * the writer, at any time after remus_epochs_add().  Looks for the epoch's
 * newest sample, backwards through the ring at most.  A no-op if the epoch is
 * no longer in the ring, or has a commit already.
 */
REMUS_API void remus_epochs_committed(remus_epochs *e, uint64_t epoch,
                                      uint64_t commit_ns);

/*
 * The samples from position `after` on, oldest first: 0 at first, then the
 * last *next.  Every sample is whole.  Returns how many were written to `out`,
 * at most `cap`.  *next: the position after the last of them; *lost: how many
 * since `after` were skipped because newer ones have replaced them.  A
 * position beyond the newest (UINT64_MAX) yields none, and *next is where new
 * ones will appear. Never waits, whatever the writer does, even if it died
 * half-way through a sample.
 */
REMUS_API int remus_epochs_read(remus_epochs *e, uint64_t after,
                                struct remus_epoch_sample *out,
                                unsigned int cap, uint64_t *next,
                                uint64_t *lost);

/*
 * One series since creation, at one moment. (If the writer adds epochs faster
 * than a series can be read, which takes some microseconds, or died while it
 * changed one, the numbers can differ by the epochs of that time.)  Never
 * waits.  Errors: -EINVAL no such series.
 */
REMUS_API int remus_epochs_summary(remus_epochs *e,
                                   enum remus_epochs_series series,
                                   struct remus_series_summary *out);

/*
 * The buckets of a series that are not empty, lowest first.  Returns how many
 * there are; writes at most `cap` of them.  Errors: as remus_epochs_summary().
 */
REMUS_API int remus_epochs_histogram(remus_epochs *e,
                                     enum remus_epochs_series series,
                                     struct remus_epochs_bucket *out,
                                     unsigned int cap);

/*
 * The backup has reported the epoch's `extents` and `coalesced` bytes: as
 * remus_epochs_committed() (extents 0: a no-op).
 */
REMUS_API void remus_epochs_measured(remus_epochs *e, uint64_t epoch,
                                     uint64_t extents, uint64_t coalesced);

/*
 * Whose statistics these are, and whether more will come.  (For `writing` it
 * tests the lock that the writer holds on the file.)
 */
REMUS_API int remus_epochs_info(remus_epochs *e,
                                struct remus_epochs_info *out);

/*
 * From the writer: nothing follows; a file stays.  From a reader: let go.
 * Frees the handle.  Blocks for file I/O.  NULL is allowed.
 */
REMUS_API void remus_epochs_close(remus_epochs *e);

/* cffi:end */

#ifdef __cplusplus
}
#endif
#endif
