/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A device that answers the protocol D ioctls, inside.
 *   minor.c        what /proc/drbd says of a kernel's device
 *   drbd_ground.c  one ioctl 20, whether it may be sent, words for errors
 *   drbd_wait.c    preresume, its end from outside
 *   drbd.c         open, postsuspend, commit
 *
 * States of a device:
 *   IDLE     no barrier was sent yet
 *   UNSENT   the newest could not be sent
 *   SENT     a barrier is outstanding
 *   LATE     node only: and a wait for it gave up; a new barrier may follow
 *   LEFT     kernel only: sent, and nobody will wait for it
 *   ACKED    the newest barrier is safe and may be committed
 *   LOST     the newest barrier is lost
 *   LAPSED   kernel only: its ack can't come any more
 *   STALE    kernel only: acked, but the driver has no room for another: it
 *            must be opened again
 * postsuspend: all but SENT and STALE -> SENT, ACKED (a kernel's 1) or
 * UNSENT.  preresume: SENT, LATE -> ACKED, LOST, LAPSED, STALE; stays SENT
 * (kernel) or becomes LATE (node) on a timeout.  The others keep their
 * answer until the next barrier.  abandon: SENT -> LEFT (kernel), LATE (node).
 *
 * A kernel's driver has one ack bit, one "barrier queued" flag, and no
 * numbers, so what its answers mean depends on what is on its way (`pe:`):
 *   - A barrier is sent only when none is on its way whose ack could count
 *     for it.  That is so after the ack of our own one, and else (a new
 *     handle, LEFT, LOST, LAPSED, a timeout) once `pe:` was 0, Connected and
 *     Primary/Primary: `ready`.
 *   - Its 1 means "all is there" only at that same moment.
 *   - Outside Primary/Primary a barrier has no number and gets no ack.
 *   - `pe:` 0 and no ack: it can't come any more.
 */
#ifndef REMUS_DRBD_INT_H
#define REMUS_DRBD_INT_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "base/entry.h"
#include "group/drbd.h"
#include "group/minor.h"

enum drbd_state { IDLE, UNSENT, SENT, LATE, LEFT, ACKED, LOST, LAPSED, STALE };

struct remus_drbd {
    struct remus_entry entry; /* constant; the first: see entry.h */
    char *path;               /* constant */
    char *proc;               /* constant: where /proc/drbd is */
    unsigned int minor;       /* constant: kernel only */
    int ready_ms;             /* constant: how long postsuspend waits for it */
    int fd;                   /* constant */
    int is_node;              /* constant: a file of our FUSE node */
    _Atomic int owners;       /* the last one frees */
    pthread_mutex_t lock;
    enum drbd_state state; /* lock */
    int unsent;            /* lock: UNSENT: the error */
    int ready;             /* lock: kernel: nothing old is on its way */
    int late;              /* lock: SENT: a wait for it gave up */
    int answered;          /* lock: the driver has said 0 or 1 */
    uint64_t barriers;     /* lock: sent so far */
    int empty;             /* lock: what ioctl 20 said of the newest */
    int cancel_signal;     /* lock: 0 none */
    int waiting;           /* lock: a call waits, with the lock given up */
    uint64_t waits;        /* lock: its number */
    pid_t waiter;          /* lock: its thread, while `waiting` */
    _Atomic int cancel;    /* that call shall end */
};

/* One ioctl 20: 0, 1 or -errno. */
int remus_drbd_send(remus_drbd *dev, uint64_t tag);

/* The words for a failed ioctl; returns the error.  What a kernel's driver
 * means by it may be another one (StandAlone is EINVAL). */
int remus_drbd_ioctl_error(remus_drbd *dev, const char *what, int err,
                           int answered);

/* Is it a moment at which nothing old is on its way?  0, or -errno: -EPROTO
 * not connected, -ENOTCONN not Primary/Primary, -ETIMEDOUT `pe:` is not 0,
 * -EINVAL another protocol, -ENODATA it can't be told.  Without a text. */
int remus_drbd_look(const remus_drbd *dev, struct remus_minor *m);

/* The words for that. */
int remus_drbd_not_ready(const remus_drbd *dev, const char *what,
                         const struct remus_minor *m, int err);

/* Look until it is, or the deadline is over, or what is missing is of no kind
 * that one waits for (`all` 0: only `pe:` is).  As remus_drbd_look(), with a
 * text; -ECANCELED (waiting is set, lock not held). */
int remus_drbd_until_ready(remus_drbd *dev, const char *what,
                           int64_t timeout_ms, int all);

/* From here on the calling thread waits; and no more (lock held). */
void remus_drbd_wait_begin(remus_drbd *dev, const _Atomic int *cancel);
void remus_drbd_wait_end(remus_drbd *dev);

/* Can the ack of a barrier that a wait gave up still come?  (lock held) */
int remus_drbd_can_come(const remus_drbd *dev);

#endif
