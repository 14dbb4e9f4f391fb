/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The FUSE node, inside:
 *   fuse_export.c  mount, workers, close
 *   fuse_node.c    the operations on the directory and its files
 *
 * A fixed number of workers read requests and carry them out.  None of them
 * ever waits for the network or for another request: a write without room
 * and an ioctl 30 are parked in the primary, whose threads answer them
 * through a callback.  (With 12 workers held by writes an ioctl 20 took
 * 4.7 s.)
 *
 * Locks: export.lock is a leaf; nothing is called with it held.
 */
#ifndef REMUS_FUSE_INT_H
#define REMUS_FUSE_INT_H

#define FUSE_USE_VERSION 35

#include <fuse_lowlevel.h>
#include <pthread.h>
#include <time.h>

#include "primary.h"

#define REMUS_FUSE_WORKERS 8
#define REMUS_FUSE_IO (1u << 20) /* bytes of one read or write at most */

/* A request that the primary will answer. */
struct remus_pending {
    remus_export *e;
    fuse_req_t req;
    size_t len;            /* of a write */
    struct remus_pending *next; /* export.lock */
};

struct remus_export {
    remus_primary *p;      /* constant */
    struct fuse_session *se; /* constant */
    char *mountpoint;      /* constant */
    unsigned int volumes;  /* constant */
    time_t since;          /* constant */
    pthread_t threads[REMUS_FUSE_WORKERS];
    int running;           /* open/close only */

    /* Held while an ioctl 30 is parked; recursive: libfuse may call back from
     * within.  Before primary.lock. */
    pthread_mutex_t interrupt_lock;
    pthread_mutex_t lock;
    struct remus_node *nodes; /* lock: owner and mode */
    struct remus_pending *free; /* lock */
    unsigned int parked;   /* lock: requests the primary has */
    int abandoned;         /* lock: who makes `parked` 0 frees it */
    pthread_cond_t drained; /* parked became 0 */
};

/* The operations, for fuse_session_new. */
extern const struct fuse_lowlevel_ops remus_fuse_operations;

/* Free an export that nobody uses any more. */
void remus_export_free(remus_export *e);

/* This worker's buffer of REMUS_FUSE_IO bytes: NULL outside of a worker. */
unsigned char *remus_fuse_buffer(void);

#endif
