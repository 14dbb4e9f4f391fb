/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The FUSE node, inside:
 *   fuse_process.c who sent a request
 *   fuse_watch.c   who is killed while its write waits
 *   fuse_worker.c  the threads, and which of them may wait for which disk
 *   fuse_dir.c     the directory: names and attributes
 *   fuse_files.c   the table of open files
 *   fuse_open.c    what the primary counts of an open file
 *   fuse_names.c   what the nodes of a backup are
 *   fuse_standby.c where there is no primary yet
 *   fuse_kept.c    memory that can outlive the process
 *   fuse_slots.c   requests, in that memory
 *   fuse_ioctl.c   checkpoint ioctls
 *   fuse_node.c    the operations: opening, I/O
 *   fuse_mount.c   the mount point
 *   fuse_adopt.c   going on with the mount of a process that is gone
 *   fuse_export.c  the roof: open, close
 *
 * A fixed number of workers read requests and carry them out.  None of them
 * ever waits for the network or for another request: a write without room
 * and an ioctl 30 are parked in the primary, whose threads answer them
 * through a callback.  Only so many of them may wait for the local disk of
 * one volume at once, and there are more of them than all volumes together
 * may hold: so a disk that stalls stalls its own volume, and what needs no
 * disk, an ioctl 20 or the status above all, is answered whatever stalls.
 * (With 12 workers held by writes it took 4.7 s.)
 *
 * Each request is read into a slot (fuse_kept.h), and that is where it stays
 * until it is answered.  A worker whose request somebody else will answer, or
 * carry out, leaves the slot with it and takes another one.
 *
 * Locks: export.lock and disk_lock are leaves; nothing is called with them
 * held.  `source` is
 * held (shared) while the backup is used, (exclusively) to let go of it.
 */
#ifndef REMUS_FUSE_INT_H
#define REMUS_FUSE_INT_H

#define FUSE_USE_VERSION 35

#include <fuse_lowlevel.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "base/entry.h"
#include "node/fuse_kept.h"
#include "primary/primary.h"

#define REMUS_FUSE_SPARE 2       /* workers that no disk can hold */
#define REMUS_FUSE_IO (1u << 20) /* bytes of one read or write at most */
#define REMUS_FILES_MAX 4096     /* open files */
/* Asynchronous requests that the kernel hands out at once: so many for each
 * volume, or those of one that stalls would keep the others' back. */
#define REMUS_FUSE_BACKGROUND 256u
#define REMUS_SOURCE_MAX 1024 /* bytes of the mount's source, with NUL */

/* How many workers may wait for the disk of one volume at once: at least one
 * beside the one that stalls. */
static inline unsigned int remus_fuse_width(unsigned int volumes)
{
    return volumes == 1 ? 10 : volumes <= 4 ? 6 : volumes <= 16 ? 4 : 2;
}

static inline unsigned int remus_fuse_workers(unsigned int volumes)
{
    return volumes * remus_fuse_width(volumes) + REMUS_FUSE_SPARE;
}

/*
 * A slot, as far as it is this process's alone: one for each in the kept
 * memory, of the same index.  Its user's: who reads a request into it, has it
 * put off, or carries it out; and, from remus_fuse_slot_take to _give, who
 * will answer it.
 */
struct remus_fuse_slot {
    remus_export *e;         /* constant */
    fuse_req_t req;          /* of who will answer it */
    uint64_t unique;         /* what FUSE calls the request */
    size_t len;              /* of a write */
    struct remus_file *file; /* of an ioctl 30 */
    size_t size;             /* bytes that came */
    int fat;                 /* it has all its pages */
    int taken;               /* somebody else answers, or has */
    _Alignas(64) _Atomic unsigned int users; /* 0: free */
    struct remus_fuse_slot *next; /* of a list; guarded as that is */
};

/* What waits for the disk of one volume.  Guard: disk_lock. */
struct remus_lane {
    unsigned int at_disk;                    /* workers that may */
    struct remus_fuse_slot *put_off, **tail; /* not empty only while as
                                                many as may are */
};

/*
 * An open file: an entry of a flat table, without pointers.  `fh` is its
 * index and its serial.
 */
struct remus_file {
    uint32_t serial;    /* 0: free; constant while open */
    uint32_t next_free; /* export.lock: index + 1; 0: none */
    int volume;         /* constant; -1: a status file */
    int writes;         /* constant: opened for writing */
    uint64_t opened;    /* constant: the request that opened it */
    int32_t opener;     /* constant: process that did, for writing; 0: not
                           known */
    int32_t pid, tid;   /* export.lock: who sent its newest ioctl 20; 0: not
                           known */
    int pidfd;          /* export.lock: the same; -1 */
    int bound;          /* export.lock: ioctl.session is set */
    struct remus_ioctl_file ioctl; /* see there */
};

/* The status as it was at open.  Guard: export.lock. */
struct remus_text {
    char *bytes;
    size_t len;
};

struct remus_files {
    struct remus_file *v;    /* constant array of REMUS_FILES_MAX, kept */
    struct remus_text *text; /* constant array, of the same indices */
    uint32_t free;           /* export.lock: index + 1; 0: none */
};

/* Somebody opens a disk for writing and waits for the promote. */
struct remus_opener {
    struct remus_fuse_slot *slot; /* the request's */
    struct fuse_file_info fi;
    struct remus_opener *next; /* export.lock */
};

/* The directory below the mount, and what it was before. */
struct remus_guard {
    int dir; /* -1: nothing was changed */
    mode_t mode;
    int immutable; /* 1: it was; 0: it is now; -1: it can't be */
    int stay;      /* a close leaves it as it is */
};

struct remus_export {
    struct remus_entry entry;   /* constant; the first: see entry.h */
    _Atomic(remus_primary *) p; /* NULL: a backup's; set once */
    char **names, **paths;      /* constant; only if it began as a backup's */
    uint64_t *sizes;            /* constant; ditto */
    int auto_promote;           /* constant */
    pthread_rwlock_t source;
    remus_backup *b;              /* source; NULL: let go of, or a primary's */
    int ended;                    /* lock: no opener waits any more */
    struct remus_opener *openers; /* lock */
    struct fuse_session *se;      /* constant */
    char *mountpoint;             /* constant */
    unsigned int volumes;         /* constant */
    time_t since;                 /* constant */
    int ours;                     /* constant: mounted by mount(2) */
    struct remus_guard guard;     /* open/close only */
    pthread_t *threads;           /* open/close only: the workers */
    unsigned int running;         /* open/close only */
    pthread_t watch;              /* open/close only */
    int watching;                 /* open/close only */

    pthread_mutex_t disk_lock;
    unsigned int width;       /* constant: of each lane */
    struct remus_lane *lanes; /* constant array, one for each volume */

    struct remus_kept kept;        /* constant; what is in it: see there */
    struct remus_files files;      /* see there */
    struct remus_fuse_slot *slots; /* constant array, as those in kept */

    /* Held while an ioctl 30 or an opener is parked; recursive: libfuse may
     * call back from within.  Before primary.lock. */
    pthread_mutex_t interrupt_lock;
    pthread_mutex_t lock;
    struct remus_node *nodes;     /* lock: owner and mode; kept */
    struct remus_fuse_slot *free; /* lock */
    pthread_cond_t slot_free;     /* `free` is not empty any more */
    struct remus_fuse_slot *left; /* lock: requests of the process before */
    int adopted;                  /* constant: there was one */
    unsigned int parked;          /* lock: requests the primary has */
    int abandoned;                /* lock: who makes `parked` 0 frees it */
    int interrupted;              /* lock: somebody got a signal */
    int stop;                     /* lock: fuse_watch.c ends */
    pthread_cond_t watch_wake;    /* the two before */
    pthread_cond_t drained;       /* parked became 0 */
};

#define REMUS_STATUS_BYTES 8192
#define REMUS_INO_STATUS 2
#define REMUS_INO_JSON 3
#define REMUS_INO_VOLUME 16 /* + index */

/* NULL: there is none yet. */
static inline remus_primary *remus_node_primary(remus_export *e)
{
    return atomic_load(&e->p);
}

/* -1: not a volume's. */
static inline int remus_node_volume(const remus_export *e, fuse_ino_t ino)
{
    if (ino < REMUS_INO_VOLUME || ino >= REMUS_INO_VOLUME + e->volumes)
        return -1;
    return (int)(ino - REMUS_INO_VOLUME);
}

/* The operations, for remus_mount_open. */
extern const struct fuse_lowlevel_ops remus_fuse_operations;

/* fuse_dir.c */
remus_export *remus_node_export(fuse_req_t req);
uint64_t remus_node_size(remus_export *e, unsigned int volume);
int remus_node_attr(remus_export *e, fuse_ino_t ino, struct stat *st);
void remus_ll_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void remus_ll_getattr(fuse_req_t req, fuse_ino_t ino,
                      struct fuse_file_info *fi);
void remus_ll_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr,
                      int to_set, struct fuse_file_info *fi);
void remus_ll_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                      struct fuse_file_info *fi);
void remus_ll_statfs(fuse_req_t req, fuse_ino_t ino);
void remus_ll_mknod(fuse_req_t req, fuse_ino_t parent, const char *name,
                    mode_t mode, dev_t device);
void remus_ll_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name,
                    mode_t mode);
void remus_ll_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void remus_ll_symlink(fuse_req_t req, const char *target, fuse_ino_t parent,
                      const char *name);
void remus_ll_rename(fuse_req_t req, fuse_ino_t parent, const char *name,
                     fuse_ino_t to, const char *new_name, unsigned int flags);
void remus_ll_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent,
                   const char *name);

/* fuse_ioctl.c */
void remus_ll_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int cmd,
                    void *arg, struct fuse_file_info *fi, unsigned int flags,
                    const void *in, size_t in_size, size_t out_size);

/* fuse_worker.c */
void *remus_fuse_worker_main(void *arg);
/* This worker's buffer of REMUS_FUSE_IO bytes: NULL outside of a worker. */
unsigned char *remus_fuse_buffer(void);

/* fuse_names.c */
int remus_standby_init(remus_export *e, remus_backup *b, int auto_promote);
void remus_standby_free(remus_export *e);

/* fuse_standby.c */
void remus_standby_status(remus_export *e, struct remus_status *s);
void remus_standby_names(remus_backup *b, const char **resource,
                         const char **state_dir);
/* 0 or -errno; waits for that disk only. */
int remus_standby_read(remus_export *e, unsigned int volume, void *buf,
                       size_t len, uint64_t offset);
/* Keep the open until the nodes have a primary.  1; 0: they have; -errno. */
int remus_standby_park(remus_export *e, struct remus_opener *o);
/* The opener of this request gave up: the promote is not for it any more. */
void remus_standby_interrupt(remus_export *e, fuse_req_t req);
/* Nobody waits any more. */
void remus_standby_end(remus_export *e);

/* fuse_open.c */
/* Of a disk that a primary serves, for writing. */
void remus_node_open_to_write(remus_export *e, fuse_req_t req,
                              struct fuse_file_info *fi, int volume,
                              uint64_t unique);
void remus_node_reply_opened(remus_export *e, fuse_req_t req,
                             struct fuse_file_info *fi, struct remus_file *f);
/* 1: this request to open had its file from the process before, which it gets
 * again; 0: it is new. */
int remus_node_reply_again(remus_export *e, fuse_req_t req,
                           struct fuse_file_info *fi, uint64_t unique);
void remus_node_close(remus_export *e, struct remus_file *f);
/* No release of an open file will come any more: their sessions end. */
void remus_node_release_all(remus_export *e);
/* Answer an opener and free it; err: errno, or 0. */
void remus_node_opened(remus_export *e, struct remus_opener *o, int err);

/* fuse_slots.c */
int remus_slots_init(remus_export *e); /* 0 or -ENOMEM; after kept */
/* A slot: waits for one, and can be cancelled meanwhile. */
struct remus_fuse_slot *remus_fuse_slot_get(remus_export *e);
/* It is going to be read into. */
void remus_fuse_slot_fatten(struct remus_fuse_slot *w);
/* This slot, which holds a request, is not free. */
void remus_fuse_slot_unfree(struct remus_fuse_slot *w);
/* Who waits for this request got a signal. */
void remus_fuse_slot_interrupted(remus_export *e, uint64_t unique);
/* A request of so many bytes came. */
void remus_fuse_slot_came(struct remus_fuse_slot *w, size_t size);
/* This worker carries out the request in it, from here on until
 * remus_fuse_slot_done(). */
void remus_fuse_slot_do(struct remus_fuse_slot *w);
/* What FUSE calls the request that this worker carries out. */
uint64_t remus_fuse_unique(void);
unsigned char *remus_fuse_slot_bytes(const struct remus_fuse_slot *w);
/*
 * A worker is done with the request in a slot.  1: it was the last user, the
 * request is over, and the slot is its own again; 0: who will answer the
 * request has the slot.
 */
int remus_fuse_slot_done(struct remus_fuse_slot *w);
/* It leaves a slot that is its own. */
void remus_fuse_slot_leave(struct remus_fuse_slot *w);
/* It leaves a slot with a request in it to somebody else: only what is needed
 * of its memory stays. */
void remus_fuse_slot_trim(struct remus_fuse_slot *w);

/* The request of this worker is about to be handed to who will answer it. */
struct remus_fuse_slot *remus_fuse_slot_take(remus_export *e, fuse_req_t req,
                                             size_t len);
/* It will change this range of a volume. */
void remus_fuse_slot_range(const struct remus_fuse_slot *w,
                           unsigned int volume, uint64_t start, uint64_t len);
/* ... from now on, perhaps: a remus_asker's `begins`. */
void remus_fuse_slot_begins(void *w);
/* It is answered. */
void remus_fuse_slot_give(remus_export *e, struct remus_fuse_slot *w);
/* Free an export that nobody uses any more; its memory, without a session. */
void remus_export_free(remus_export *e);
void remus_export_forget(remus_export *e);

/* fuse_process.c; all of it looks into /proc only */
/* The process of a thread; `likely` is asked first.  0: not known. */
int32_t remus_process_of(int32_t tid, int32_t likely);
/* A pidfd, or -1. */
int remus_process_open(int32_t pid);
/* 0 also if the pidfd is -1. */
int remus_process_lives(int pidfd);
/* Is this thread being killed, or, if it is gone, this process?  Never says
 * so of one that is not. */
int remus_waiter_dies(int32_t tid, int32_t pid);

/* fuse_files.c */
int remus_files_init(remus_export *e);
void remus_files_free(remus_export *e);
/* NULL: too many are open. */
struct remus_file *remus_file_open(remus_export *e, fuse_req_t req, int volume,
                                   int writes, uint64_t unique);
uint64_t remus_file_handle(const remus_export *e, const struct remus_file *f);
/* NULL: it was closed. */
struct remus_file *remus_file_of(remus_export *e,
                                 const struct fuse_file_info *fi);
/* The status as it was at open; `bytes` is freed with the file. */
void remus_file_set_text(remus_export *e, const struct remus_file *f,
                         char *bytes, size_t len);
/* How many bytes there are. */
size_t remus_file_read_text(remus_export *e, const struct remus_file *f,
                            void *buf, size_t len, uint64_t at);
void remus_file_close(remus_export *e, struct remus_file *f);
/* The open file of a request to open that comes again; NULL: it is new. */
struct remus_file *remus_file_opened_by(remus_export *e, uint64_t unique);
/* Is there what remus_file_set_text() gave it? */
int remus_file_has_text(remus_export *e, const struct remus_file *f);
/* What another process left in the table is ours. */
void remus_files_adopt(remus_export *e);
/* A thread waits on it: if it is of the process that sent its newest ioctl
 * 20, that one lives. */
void remus_file_waits(remus_export *e, struct remus_file *f, int32_t tid);
/* A thread sends an ioctl 20 on it: its session is known from here on.  0 or
 * -errno. */
int remus_file_sent_by(remus_export *e, struct remus_file *f, int32_t tid);
/* Does the process live that sent its newest ioctl 20? */
int remus_file_lives(remus_export *e, const struct remus_file *f);

/* fuse_adopt.c */
/*
 * Go on with a mount that another process served, which is wholly gone: what
 * was begun is done again before this returns.  `device`: its descriptor,
 * which is ours from here on if it succeeds.  Before the threads start.
 * 0 or -errno with a text: -ENOTCONN nothing is mounted any more.
 */
int remus_adopt(remus_export *e, int device,
                const struct fuse_lowlevel_ops *operations);
/* A request that the other process had and that is still to be done; NULL. */
struct remus_fuse_slot *remus_adopt_next(remus_export *e);

/* fuse_watch.c */
void *remus_fuse_watch_main(void *arg);
/* Somebody who waits got a signal. */
void remus_fuse_watch_wake(remus_export *e);

/* fuse_mount.c; `source`: whose mount it is */
/* Can it be mounted there?  A dead mount of our own is taken away. */
int remus_mount_check(const char *path, const char *source);
/* Make the session, with these operations, and mount it; `device`: /dev/fuse
 * to do so with, ours from here on if it succeeds; -1: open it. */
int remus_mount_open(remus_export *e, const char *source,
                     const struct fuse_lowlevel_ops *operations, int device);
/* Make it on any descriptor, mounted already. */
int remus_mount_again(remus_export *e, int device,
                      const struct fuse_lowlevel_ops *operations);
/* End the connection, and unmount. */
void remus_mount_close(remus_export *e);
/* Unmount, and end the connection: what is still parked is answered to
 * nobody. */
void remus_mount_detach(remus_export *e);

#endif
