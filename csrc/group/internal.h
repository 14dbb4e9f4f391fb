/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A group, inside.
 *   stats.c   statistics of the epochs
 *   ground.c  what may come when, what a failure leaves, who is waited for
 *   wait.c    waiting: who waits for which device, deadline
 *   cancel.c  the end of a wait from outside
 *   group.c   the roof: open, start, stop; the phases
 *
 * Locks: group.lock guards what is marked so.  It may be taken with a
 * primary's rx_lock held (a primary answers from its receiver) and is held
 * while a primary's lock is taken.  No device is waited for, and no ioctl
 * sent, with it held.
 */
#ifndef REMUS_GROUP_INT_H
#define REMUS_GROUP_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/entry.h"
#include "base/clock.h"
#include "primary/primary.h"
#include "remus.h"

#define REMUS_GROUP_PAST 64u /* epochs whose extents may still come */

enum remus_group_state {
    REMUS_GROUP_NEW,    /* devices are being added */
    REMUS_GROUP_READY,  /* started, or the newest epoch is safe */
    REMUS_GROUP_CLOSED, /* postsuspend went well: preresume comes next */
    REMUS_GROUP_FAILED, /* postsuspend failed: the epoch can't be waited for */
    REMUS_GROUP_UNKNOWN, /* preresume failed: it may be retried */
    REMUS_GROUP_STOPPED
};

enum remus_device_kind { REMUS_KIND_DRBD, REMUS_KIND_PRIMARY, REMUS_KIND_OWN };

enum remus_device_wait {
    REMUS_WAIT_IDLE,
    REMUS_WAIT_QUEUED, /* a thread shall take it */
    REMUS_WAIT_INSIDE, /* a thread, perhaps the caller's, is in its call */
    REMUS_WAIT_PARKED  /* a primary will call back */
};

struct remus_group_device {
    remus_group *group;          /* constant */
    enum remus_device_kind kind; /* constant */
    remus_drbd *drbd;            /* DRBD, held; constant until stop */
    remus_primary *primary;      /* constant: PRIMARY */
    struct remus_device_ops ops; /* constant: OWN */
    void *opaque;                /* constant: OWN */

    /* All: lock. */
    enum remus_device_wait wait;
    int by_caller;          /* INSIDE: the caller of preresume itself */
    int adopted;            /* that wait began in an earlier preresume */
    int counted;            /* its answer is waited for now */
    int wake;               /* the waker shall end its wait */
    int pending;            /* barrier sent, no ack known */
    int64_t timeout_ms;     /* of the wait under way */
    uint64_t acked;         /* newest epoch that is safe; 0 none */
    uint64_t complete;      /* ... that was safe on all devices */
    int failed;             /* first error of the newest epoch; 0 */
    uint64_t start_ns;      /* its postsuspend was called */
    uint64_t counted_epoch; /* newest one in `stats` */
    uint64_t past[REMUS_GROUP_PAST]; /* by the group's numbers; 0 none */
    remus_epochs *stats;             /* constant after start; written: lock;
                                     NULL: a primary, which has its own */
    struct remus_device_result r;    /* name: constant after start */
};

struct remus_group_thread {
    pthread_t id;
    remus_group *group; /* constant */
    int busy;           /* lock: in a device's call */
};

struct remus_group {
    struct remus_entry entry;           /* constant; the first: see entry.h */
    char name[REMUS_NAME_MAX + 1];      /* constant */
    unsigned int count;                 /* constant after start */
    struct remus_group_device *devices; /* constant after start */
    uint64_t epochs[REMUS_GROUP_MAX];   /* the thread in postsuspend */
    int fd;                             /* constant: eventfd */
    _Atomic int cancel;                 /* the wait under way shall end */

    pthread_mutex_t lock;
    pthread_cond_t work; /* the queue is not empty, or quit */
    pthread_cond_t wake; /* a device's `wake` is set, or quit */
    pthread_cond_t done; /* the last device answered, a phase
                                           ended; each answer, if `watchers` */
    /* All: lock. */
    int refs; /* the last one frees */
    enum remus_group_state state;
    enum remus_phase running;       /* a phase under way, or NONE */
    int begins;                     /* it has the threads for begin */
    int begun;                      /* ... is a begun preresume */
    int concluding;                 /* ... and at its end */
    int cancelling;                 /* threads in cancel: each counts as
                                           one that is outstanding */
    int watchers;                   /* threads that wait for an answer */
    int quit;                       /* 1 the threads shall end, 2 the
                                           waker, too */
    uint64_t number;                /* of the newest epoch, from 1 */
    uint64_t complete;              /* newest one safe on all; 0 none */
    uint64_t measured;              /* oldest number without extents */
    uint64_t start_ns, barrier_ns;  /* of the newest postsuspend */
    int open_sample;                /* the newest is not in `stats` yet */
    remus_epochs *stats;            /* constant after start; written: lock */
    unsigned int outstanding;       /* counted devices */
    struct remus_deadline deadline; /* of the wait under way */
    int64_t timeout_ms;             /* as given */
    unsigned int queue[REMUS_GROUP_MAX]; /* indices of QUEUED devices */
    unsigned int queued;                 /* how many; the newest is last */
    unsigned int threads;
    struct remus_group_thread thread[REMUS_GROUP_MAX + 1]; /* constant after
                                           start */
};

/* stats.c */
int remus_group_make_stats(remus_group *g);  /* lock held */
void remus_group_free_stats(remus_group *g); /* nobody else there */
/* The newest epoch's fate is known (lock held). */
void remus_group_add_sample(remus_group *g);

/* ground.c */
const char *remus_group_state_name(const remus_group *g); /* lock held */
/* Record a failed phase of a device with the words of the calling thread's
 * last error (lock held). */
void remus_group_failed(struct remus_group_device *d, int phase, int error);
/* The result of a device of somebody's own, with words of ours. */
int remus_group_own(const struct remus_group_device *d, int phase, int rc);
/* May this phase run now?  0, -EBADFD or -EINPROGRESS (lock held). */
int remus_group_may(remus_group *g, int phase, unsigned int states);
/* The error of the device that failed first in this phase; 0 (lock held). */
int remus_group_first_error(const remus_group *g, enum remus_phase phase);
/* Does somebody wait for the device, or could it be waited for? */
int remus_group_waits(const struct remus_group_device *d);
/* One less to wait for; with a device, this one (lock held). */
void remus_group_one_less(remus_group *g);
void remus_group_uncount(remus_group *g, struct remus_group_device *d);
/* Take a QUEUED device out of the queue (lock held). */
void remus_group_unqueue(remus_group *g, struct remus_group_device *d);
/* Wait for an answer, or the end of a cancel, whatever it is (lock held). */
void remus_group_watch(remus_group *g);
void remus_group_hold(remus_group *g); /* lock held */
void remus_group_drop(remus_group *g); /* lock not held */

/* wait.c */
void *remus_group_thread_main(void *arg);

/* cancel.c */
/* Does a wait for this device end by a call that may hang itself? */
int remus_group_has_waker(const struct remus_group_device *d);
void *remus_group_waker_main(void *arg);

#endif
