/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The FUSE node, inside:
 *   fuse_export.c  mount, close
 *   fuse_worker.c  the threads, and which of them may wait for a disk
 *   fuse_dir.c     the directory: names and attributes
 *   fuse_node.c    open files: opening, I/O
 *   fuse_ioctl.c   their checkpoint ioctls
 *   fuse_standby.c  the same where there is no primary yet
 *
 * A fixed number of workers read requests and carry them out.  None of them
 * ever waits for the network or for another request: a write without room
 * and an ioctl 30 are parked in the primary, whose threads answer them
 * through a callback.  Nor do all of them ever wait for the local disk: some
 * are kept for what needs none, an ioctl 20 above all.  (With 12 workers held
 * by writes it took 4.7 s.)
 *
 * Locks: export.lock and disk_lock are leaves; nothing is called with them
 * held.  `source` is
 * held (shared) while the backup is used, (exclusively) to let go of it.
 */
#ifndef REMUS_FUSE_INT_H
#define REMUS_FUSE_INT_H

#define FUSE_USE_VERSION 35

#include <fuse_lowlevel.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "primary.h"

#define REMUS_FUSE_WORKERS 12
#define REMUS_FUSE_AT_DISK 10 /* workers that may wait for a disk at once */
#define REMUS_FUSE_IO (1u << 20) /* bytes of one read or write at most */

/* A request that the primary will answer. */
struct remus_pending {
    remus_export *e;
    fuse_req_t req;
    size_t len;            /* of a write */
    struct remus_pending *next; /* export.lock */
};

/* A request to the disk that no worker may carry out yet. */
struct remus_put_off {
    struct remus_put_off *next; /* disk_lock */
    size_t len;
    char bytes[];          /* as it came */
};

/* An open file. */
struct remus_handle {
    int volume;            /* -1: a status file */
    _Atomic int sent;      /* sent ioctl 20: its close ends the session */
    int writes;            /* opened for writing */
    size_t len;            /* of text */
    char text[];           /* status as it was at open */
};

/* Somebody opens a disk for writing and waits for the promote. */
struct remus_opener {
    fuse_req_t req;
    struct fuse_file_info fi;
    struct remus_opener *next; /* export.lock */
};

struct remus_export {
    _Atomic(remus_primary *) p; /* NULL: a backup's; set once */
    char **names, **paths; /* constant; only if it began as a backup's */
    uint64_t *sizes;       /* ditto */
    int auto_promote;      /* constant */
    pthread_rwlock_t source;
    remus_backup *b;       /* source; NULL: let go of, or a primary's */
    int ended;             /* lock: no opener waits any more */
    struct remus_opener *openers; /* lock */
    struct fuse_session *se; /* constant */
    char *mountpoint;      /* constant */
    unsigned int volumes;  /* constant */
    time_t since;          /* constant */
    pthread_t threads[REMUS_FUSE_WORKERS];
    int running;           /* open/close only */

    pthread_mutex_t disk_lock;
    unsigned int at_disk;  /* disk_lock: workers that may wait for a disk */
    struct remus_put_off *put_off, **put_off_tail; /* disk_lock; not empty
                              only while at_disk is REMUS_FUSE_AT_DISK */

    /* Held while an ioctl 30 or an opener is parked; recursive: libfuse may
     * call back from within.  Before primary.lock. */
    pthread_mutex_t interrupt_lock;
    pthread_mutex_t lock;
    struct remus_node *nodes; /* lock: owner and mode */
    struct remus_pending *free; /* lock */
    unsigned int parked;   /* lock: requests the primary has */
    int abandoned;         /* lock: who makes `parked` 0 frees it */
    pthread_cond_t drained; /* parked became 0 */
};

#define REMUS_STATUS_BYTES 8192
#define REMUS_INO_STATUS 2
#define REMUS_INO_JSON 3
#define REMUS_INO_VOLUME 16 /* + index */

/* The operations, for fuse_session_new. */
extern const struct fuse_lowlevel_ops remus_fuse_operations;

/* fuse_dir.c */
remus_export *remus_node_export(fuse_req_t req);
/* NULL: there is none yet. */
remus_primary *remus_node_primary(remus_export *e);
uint64_t remus_node_size(remus_export *e, unsigned int volume);
/* -1: not a volume's. */
int remus_node_volume(const remus_export *e, fuse_ino_t ino);
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
                     fuse_ino_t to, const char *new_name,
                     unsigned int flags);
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

/* fuse_standby.c */
int remus_standby_init(remus_export *e, remus_backup *b, int auto_promote);
void remus_standby_free(remus_export *e);
void remus_standby_status(remus_export *e, struct remus_status *s);
/* 0 or -errno; waits for the backup's disk, and for an apply under way. */
int remus_standby_read(remus_export *e, unsigned int volume, void *buf,
                       size_t len, uint64_t offset);
/* Keep the open until the nodes turn.  1; 0: they have; -errno. */
int remus_standby_park(remus_export *e, struct remus_opener *o);
/* The opener of this request gave up: the promote is not for it any more. */
void remus_standby_interrupt(remus_export *e, fuse_req_t req);
/* Nobody waits any more. */
void remus_standby_end(remus_export *e);

/* fuse_node.c */
struct remus_handle *remus_node_handle(struct fuse_file_info *fi);
/* A request is about to be handed to the primary; NULL: out of memory. */
struct remus_pending *remus_pending_take(remus_export *e, fuse_req_t req,
                                         size_t len);
/* It is answered, or was never parked. */
void remus_pending_give(remus_export *e, struct remus_pending *w);
/* Answer an opener and free it; err: errno, or 0. */
void remus_node_opened(remus_export *e, struct remus_opener *o, int err);

/* Free an export that nobody uses any more. */
void remus_export_free(remus_export *e);

#endif
