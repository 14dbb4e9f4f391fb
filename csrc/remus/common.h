/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* remus/common.h - what the other headers share.
   remus.h has the conventions. */
#ifndef REMUS_COMMON_H
#define REMUS_COMMON_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define REMUS_API __attribute__((visibility("default")))
#else
#define REMUS_API
#endif

/*
 * The initialiser of a struct that begins with struct_size; all else is 0:
 *     struct remus_status status = REMUS_INIT(remus_status);
 * An initialiser that names members has  .struct_size = sizeof config instead.
 */
#ifdef __cplusplus
#define REMUS_INIT(name)                                                      \
    {                                                                         \
        sizeof(struct name)                                                   \
    }
#else
#define REMUS_INIT(name)                                                      \
    {                                                                         \
        .struct_size = sizeof(struct name)                                    \
    }
#endif

/* cffi:begin */

/* ---- The version of this header ------------------------------------- */

#define REMUS_VERSION_MAJOR 0
#define REMUS_VERSION_MINOR 1
#define REMUS_VERSION_PATCH 0

/* For #if: REMUS_VERSION >= REMUS_VERSION_OF(0, 2, 0). */
#define REMUS_VERSION_OF(major, minor, patch)                                 \
    ((major)*1000000 + (minor)*1000 + (patch))
#define REMUS_VERSION                                                         \
    REMUS_VERSION_OF(REMUS_VERSION_MAJOR, REMUS_VERSION_MINOR,                \
                     REMUS_VERSION_PATCH)

/* ---- Limits and numbers ------------------------------------------- */

#define REMUS_TAG_MAX 32      /* bytes of a checkpoint's tag */
#define REMUS_VOLUMES_MAX 64  /* volumes of one resource */
#define REMUS_NAME_MAX 63     /* bytes of a resource or volume name */
#define REMUS_REASON_MAX 256  /* bytes of a status reason, with NUL */
#define REMUS_ID_BYTES 16     /* bytes of a generation's id */
#define REMUS_REFUSALS_MAX 65 /* entries of remus_backup_refusals() */

/* The ioctl numbers of a protocol D device, and our own third one. */
#define REMUS_IOCTL_SEND_CHECKPOINT 20
#define REMUS_IOCTL_WAIT_CHECKPOINT_ACK 30
#define REMUS_IOCTL_COMMIT_CHECKPOINT 40

/*
 * The argument of ioctl 30 on a node of ours: 0 waits without a limit, as
 * libxl does; REMUS_WAIT_CANCEL ends every wait of the same open file with
 * ECANCELED; any other number is a limit in ms, after which the wait fails
 * with ETIMEDOUT.  A signal to the caller ends its wait with EINTR.  After
 * each of these the same barrier can be waited for again.
 */
#define REMUS_WAIT_CANCEL 4294967295u

/*
 * What a resource is doing.  Status, logs, errors and docs use the same names;
 * remus_state_name() spells them.
 */
enum remus_state {
    REMUS_STATE_CONNECTING,   /* no first connection yet: not protected */
    REMUS_STATE_CATCHING_UP,  /* the backup is being brought up to date */
    REMUS_STATE_PROTECTED,    /* checkpoints are safe on the backup */
    REMUS_STATE_UNPROTECTED,  /* the backup is lost; the guest goes on */
    REMUS_STATE_PROMOTING,    /* a promote was begun and is not finished */
    REMUS_STATE_PROMOTED,     /* this side failed over: its volumes can be
                                 written */
    REMUS_STATE_SPLIT_BRAIN,  /* both sides went on from one checkpoint */
    REMUS_STATE_INCONSISTENT, /* backup: no complete copy, or no acked
                                 checkpoint on top of one */
    REMUS_STATE_STANDBY,      /* backup: complete, no primary connected */
    REMUS_STATE_FAILED,       /* a local error ended it; see the reason */
    REMUS_STATE_FENCED        /* primary: the backup took over; no write
                                 passes here any longer */
};

/* The bits that remus_primary_events() and remus_backup_events() return. */
enum remus_changed {
    REMUS_CHANGED_STATE = 1, /* `state` of the status */
    REMUS_CHANGED_LINK = 2   /* `connected`: the other side came or was lost */
};

enum remus_role { REMUS_ROLE_PRIMARY, REMUS_ROLE_BACKUP };

enum remus_ack {
    REMUS_ACK_DURABLE, /* acked = on stable storage of the backup */
    REMUS_ACK_MEMORY   /* acked = in the backup's page cache */
};

enum remus_commit_by {
    REMUS_COMMIT_BY_PRIMARY, /* commits of the primary count, and those
                                given on the backup */
    REMUS_COMMIT_BY_BACKUP   /* only commits given on the backup count */
};

enum remus_on_loss {
    REMUS_ON_LOSS_CONTINUE, /* waits for an ack fail; the guest goes on */
    REMUS_ON_LOSS_HOLD      /* waits for an ack last until the backup is
                               back, or until remus_primary_resume() */
};

/* Flags of a checkpoint (struct remus_checkpoint.flags), or-ed. */
enum remus_checkpoint_flag {
    REMUS_CP_IOCTL = 1,     /* taken through ioctl 20 */
    REMUS_CP_DISK_ONLY = 2, /* taken by the engine: no memory belongs to it */
    REMUS_CP_COMMITTED = 4  /* the last committed one */
};

/* One volume of a resource, for an open call. */
struct remus_volume {
    uint32_t struct_size; /* sizeof of this struct, see remus.h */
    const char *name;     /* 1..REMUS_NAME_MAX of [A-Za-z0-9._-] */
    const char *path;     /* local regular file or block device */
    uint64_t size;        /* bytes, a multiple of 512; 0: the file's own */
};

/*
 * The counters and state of one side of a resource, at one moment. Times are
 * CLOCK_MONOTONIC.  `reason` says why the state is what it is and, for a bad
 * one, what to do.
 */
struct remus_status {
    uint32_t struct_size; /* sizeof of this struct, see remus.h */
    enum remus_role role;
    enum remus_state state;
    int connected;            /* 1: the other side is connected */
    int ioctl_driven;         /* 1: newest checkpoint came by ioctl 20 */
    unsigned int volumes;     /* how many */
    char resource[64];        /* its name */
    char generation[33];      /* hex */
    char reason[256];         /* why; for a bad state, what to do */
    uint64_t open_epoch;      /* primary: the epoch that writes go to */
    uint64_t prepared_epoch;  /* newest acked (backup: received) epoch */
    uint64_t committed_epoch; /* newest that the backup took as committed */
    uint64_t applied_epoch;   /* newest epoch in the backup's disks */
    uint64_t stable_epoch;    /* newest epoch that survives power loss */
    uint64_t promoted_epoch;  /* backup: checkpoint it was promoted to */
    uint64_t epochs;          /* barriers sent or received */
    uint64_t bytes_written;   /* bytes of writes replicated */
    uint64_t bytes_zeroed;    /* bytes of discards replicated */
    uint64_t bytes_coalesced; /* backup: bytes overwritten before apply;
                                   primary: those within one epoch, as far
                                   as the backup has reported them */
    uint64_t bytes_applied;   /* backup: bytes written into its disks */
    uint64_t records;         /* stream records sent or received */
    uint64_t queue_bytes;     /* primary: bytes waiting to be sent */
    uint64_t queue_limit;     /* primary: bound on queue_bytes now */
    uint64_t journal_bytes;   /* backup: bytes of segments in use */
    uint64_t journal_limit;   /* backup: bytes of all segments */
    uint64_t parked_writes;   /* primary: writes waiting for room now */
    uint64_t stalls;          /* primary: writes that ever had to wait */
    uint64_t resync_done;     /* bytes of the copy or catch-up so far */
    uint64_t resync_total;    /* bytes of the copy or catch-up */
    uint64_t link_changed_ns; /* when `connected` last changed */
    uint64_t measured_epoch;  /* newest epoch of which the next two members
                                   are known: the backup counts them when it
                                   applies the epoch, and reports them */
    uint64_t epoch_extents;   /* ranges of bytes in that epoch */
    uint64_t epoch_coalesced; /* bytes overwritten within it */
    uint64_t dirty_bytes;     /* primary, not Protected: bytes that the
                                   backup lacks, in whole blocks of 16 KiB */
    int asks_alone;           /* primary: writes wait for
                                   remus_primary_go_alone(), and the backup
                                   has been away for `loss_ms` */
    int holds;                /* primary: waits for acks go on although the
                                   backup is lost */
    unsigned int writers;     /* primary: files open for writing */
    int switches;             /* primary: stepped down to become the backup */
    uint64_t refused;         /* backup: connections refused since serve,
                                   see remus_backup_refusals() */
    char security[64];        /* what proves who the other side is:
                                   "TLS1.3 ECDHE-PSK AES-128-GCM", "unix
                                   socket", "none"; "" if not connected */
    int ready;                /* primary: a postsuspend would succeed now;
                                   possible before the end of a catch-up */
    unsigned int sessions;    /* primary: open files of nodes that took part
                                   in a checkpoint */
    uint64_t open_bytes;      /* written or zeroed since the newest barrier:
                                   what no checkpoint has yet */
};

/* A checkpoint that a backup can be promoted to. */
struct remus_checkpoint {
    uint32_t struct_size;  /* sizeof of this struct, see remus.h */
    uint64_t epoch;        /* its number */
    uint32_t flags;        /* enum remus_checkpoint_flag */
    uint32_t tag_len;      /* 0..REMUS_TAG_MAX */
    unsigned char tag[32]; /* as given to postsuspend */
};

#define REMUS_LOG_KEPT 64 /* entries that a handle keeps */

/* One entry of the log of a side, see remus_primary_log(). */
struct remus_log_entry {
    uint32_t struct_size;   /* sizeof of this struct, see remus.h */
    enum remus_state state; /* from then on */
    int connected;          /* 1: the other side is connected */
    uint64_t time_ns;       /* CLOCK_MONOTONIC */
    char text[256];         /* the reason; "": the state says all */
};

/* ---- Library ------------------------------------------------------- */

/* None of these blocks, unless it says so. */

/*
 * The version of the library that runs, "MAJOR.MINOR.PATCH"; the macros are
 * the version of the header that the program was compiled with.  Never fails.
 */
REMUS_API const char *remus_version(void);

/*
 * The text of the last error that a remus_ function returned in this thread;
 * "" if there was none.  It is valid until the next failing call in the same
 * thread.
 */
REMUS_API const char *remus_last_error(void);

/* The name of a state ("Protected"); "?" for any other number.  Never fails. */
REMUS_API const char *remus_state_name(enum remus_state state);

/*
 * Can a side with this role go from one state directly to the other?  1 or 0;
 * 0 for a number that is no state.  docs/operations.md shows the table.  Never
 * fails.
 */
REMUS_API int remus_state_follows(enum remus_role role, enum remus_state from,
                                  enum remus_state to);

/* The name of the CRC32C code that runs here: "sse4.2", "armv8" or "table".
 * Never fails. */
REMUS_API const char *remus_crc32c_name(void);

/* CRC32C (Castagnoli) of `len` bytes, continuing from `crc` (0 at first).
 * `data` may be NULL if `len` is 0. */
REMUS_API uint32_t remus_crc32c(uint32_t crc, const void *data, size_t len);

/*
 * Prepare this process to serve disks of guests: mlockall, OOM score -1000,
 * PR_SET_IO_FLUSHER.  Serving a disk then never waits for memory that could
 * only be freed by writing to that disk.  Call it before other threads start.
 * A step that the system refuses is skipped; returns the number of steps that
 * took effect (0..3).  Never fails.
 */
REMUS_API int remus_harden_process(void);

/*
 * Write `status` as text.  json 0: a first line
 * "remus-native resource=R role=primary state=S ..." and one key=value a
 * line; json 1: one JSON object.  Returns the length (without the NUL).
 * Errors: -ENOSPC `cap` is too small (8192 is enough).
 */
REMUS_API int remus_status_format(const struct remus_status *status, int json,
                                  char *buf, size_t cap);

/*
 * Check that this key file can be used and has a key for `identity`.  Blocks
 * for the file's disk.
 * Errors: -ENOENT no such file, or no such identity in it; -EPERM group or
 * others can use it, or its owner is neither root nor this user; -EINVAL a
 * line that is not identity:hexkey; others of open(2).
 */
REMUS_API int remus_psk_check(const char *file, const char *identity);

/* cffi:end */

#ifdef __cplusplus
}
#endif
#endif
