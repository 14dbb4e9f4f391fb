/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Groups: waiting for the acks of all devices.
 *
 * A replica calls back from its own receiver; a device that can only be
 * waited for in a call (DRBD, a device of somebody's own) is queued, and
 * taken by a parked thread or by the caller.  The caller wakes one thread,
 * which wakes the next when it finds more in the queue: whoever is awake
 * takes what is left, and with acks that are there already the caller takes
 * most of it itself.
 */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "group/drbd.h"
#include "base/error.h"
#include "base/entry.h"
#include "base/wake.h"
#include "group/internal.h"

#define STATE(s) (1u << REMUS_GROUP_##s)

/* ---- answers ------------------------------------------------------------- */

/* lock held */
static void push(remus_group *g, struct remus_group_device *d)
{
    d->wait = REMUS_WAIT_QUEUED;
    g->queue[g->queued++] = (unsigned int)(d - g->devices);
}

/* The oldest of the queue, or NULL (lock held). */
static struct remus_group_device *pop(remus_group *g)
{
    if (!g->queued)
        return NULL;
    struct remus_group_device *d = &g->devices[g->queue[0]];
    remus_group_unqueue(g, d);
    return d;
}

/*
 * A device's wait has ended with `rc`, whose words are the calling thread's
 * last error (lock held).
 */
static void settle(remus_group *g, struct remus_group_device *d, int rc)
{
    uint64_t now = remus_clock_now();
    int by_caller = d->by_caller;
    d->wait = REMUS_WAIT_IDLE;
    d->by_caller = 0;
    if (rc >= 0) {
        d->pending = 0;
        d->acked = d->r.epoch;
        d->r.acked = 1;
        d->r.ack_ns = now;
    } else if (d->counted && d->adopted &&
               (rc == -ETIMEDOUT || rc == -ECANCELED) &&
               !remus_deadline_over(g->deadline, now) &&
               !atomic_load(&g->cancel)) {
        /* That was the end of an earlier preresume, not of ours. */
        d->adopted = 0;
        d->timeout_ms = remus_deadline_ms(g->deadline, now);
        push(g, d);
        pthread_cond_signal(&g->work);
        return;
    }
    if (d->counted) {
        d->r.phase = REMUS_PHASE_PRERESUME;
        d->r.error = 0;
        if (rc < 0)
            remus_group_failed(d, REMUS_PHASE_PRERESUME, rc);
        remus_group_uncount(g, d);
    }
    /* The caller needs no word from itself, and from others only the last:
     * that is one wake-up, however many devices there are. */
    if (g->watchers || (!by_caller && !g->outstanding))
        pthread_cond_broadcast(&g->done);
}

/* A primary answers: no lock of the group is held. */
static void on_ack(void *opaque, int rc)
{
    struct remus_group_device *d = opaque;
    remus_group *g = d->group;
    /* Epoch and limit do not change while the device is parked. */
    if (rc < 0)
        remus_primary_wait_error(d->primary, d->r.epoch, rc, d->timeout_ms);
    pthread_mutex_lock(&g->lock);
    settle(g, d, rc);
    pthread_mutex_unlock(&g->lock);
}

/* Wait for a device in this thread (lock held, given up meanwhile). */
static void run(remus_group *g, struct remus_group_device *d)
{
    uint64_t epoch = d->r.epoch;
    int64_t timeout_ms = d->timeout_ms;
    d->wait = REMUS_WAIT_INSIDE;
    pthread_mutex_unlock(&g->lock);
    int rc;
    switch (d->kind) {
    case REMUS_KIND_DRBD:
        rc = remus_drbd_preresume_until(d->drbd, timeout_ms, &g->cancel);
        break;
    case REMUS_KIND_PRIMARY:
        rc = remus_primary_preresume_until(d->primary, epoch, timeout_ms,
                                           &g->cancel);
        break;
    default:
        rc = remus_group_own(d, REMUS_PHASE_PRERESUME,
                             d->ops.preresume(d->opaque, epoch, timeout_ms));
        break;
    }
    pthread_mutex_lock(&g->lock);
    settle(g, d, rc);
}

void *remus_group_thread_main(void *arg)
{
    struct remus_group_thread *t = arg;
    remus_group *g = t->group;
    pthread_mutex_lock(&g->lock);
    while (!g->quit) {
        struct remus_group_device *d = pop(g);
        if (!d) {
            pthread_cond_wait(&g->work, &g->lock);
            continue;
        }
        if (g->queued)
            pthread_cond_signal(&g->work);
        t->busy = 1;
        run(g, d);
        t->busy = 0;
    }
    pthread_mutex_unlock(&g->lock);
    remus_group_drop(g);
    return NULL;
}

/* ---- a wait -------------------------------------------------------------- */

/* Let a primary call back (lock held). */
static void ask_primary(remus_group *g, struct remus_group_device *d)
{
    d->wait = REMUS_WAIT_PARKED;
    int rc = remus_primary_wait_begin(d->primary, d->r.epoch, d->timeout_ms, d,
                                      on_ack, d);
    if (rc == REMUS_PARKED)
        return;
    if (rc < 0)
        remus_primary_wait_error(d->primary, d->r.epoch, rc, d->timeout_ms);
    settle(g, d, rc);
}

/* Is there exactly one device to wait for, and nobody in it?  (lock held) */
static struct remus_group_device *only_one(remus_group *g)
{
    struct remus_group_device *only = NULL;
    for (unsigned int i = 0; i < g->count; i++) {
        struct remus_group_device *d = &g->devices[i];
        if (!d->pending)
            continue;
        if (only || d->wait != REMUS_WAIT_IDLE)
            return NULL;
        only = d;
    }
    return only;
}

/*
 * Ask every device without an ack.  Returns the primary that the caller
 * shall wait for itself, or NULL (lock held).
 */
static struct remus_group_device *ask_all(remus_group *g)
{
    struct remus_group_device *mine = NULL;
    for (unsigned int i = 0; i < g->count; i++) {
        struct remus_group_device *d = &g->devices[i];
        if (!d->pending)
            continue;
        d->counted = 1;
        g->outstanding++;
        d->adopted = d->wait != REMUS_WAIT_IDLE;
        if (!d->adopted)
            d->timeout_ms = g->timeout_ms;
    }
    for (unsigned int i = 0; i < g->count; i++) {
        struct remus_group_device *d = &g->devices[i];
        if (!d->counted || d->adopted || d->wait != REMUS_WAIT_IDLE)
            continue;
        if (d->kind != REMUS_KIND_PRIMARY)
            push(g, d);
        else if (!mine && !g->begun)
            mine = d;
        else
            ask_primary(g, d);
    }
    return mine;
}

/* lock held */
static int begin(remus_group *g, int64_t timeout_ms, int begun)
{
    int rc = remus_group_may(g, REMUS_PHASE_PRERESUME,
                             STATE(CLOSED) | STATE(UNKNOWN));
    if (rc)
        return rc;
    g->running = REMUS_PHASE_PRERESUME;
    g->begun = begun;
    atomic_store(&g->cancel, 0);
    g->outstanding = 0;
    /* A device can have answered since the last try, with nobody there. */
    for (unsigned int i = 0; i < g->count; i++)
        g->devices[i].r.error = 0;
    g->timeout_ms = timeout_ms;
    g->deadline = remus_deadline_in(remus_clock_now(), timeout_ms);
    return 0;
}

/* Whoever has not answered is late (lock held, given up meanwhile). */
static void give_up(remus_group *g)
{
    for (unsigned int i = 0; i < g->count; i++) {
        struct remus_group_device *d = &g->devices[i];
        if (!d->counted)
            continue;
        if (d->wait == REMUS_WAIT_PARKED) {
            pthread_mutex_unlock(&g->lock);
            remus_primary_wait_cancel(d->primary, d, -ETIMEDOUT);
            pthread_mutex_lock(&g->lock);
            /* If its answer was on the way it is here in a moment. */
            while (d->wait == REMUS_WAIT_PARKED)
                remus_group_watch(g);
            continue;
        }
        remus_fail(-ETIMEDOUT,
                   "device %s: preresume: no ack after %lld ms; it may still "
                   "come: wait again",
                   d->r.name, (long long)g->timeout_ms);
        remus_group_failed(d, REMUS_PHASE_PRERESUME, -ETIMEDOUT);
        if (d->wait == REMUS_WAIT_QUEUED)
            remus_group_unqueue(g, d);
        remus_group_uncount(g, d);
    }
}

/* The result of a wait that is over (lock held). */
static int conclude(remus_group *g)
{
    g->concluding = 1;
    while (g->cancelling)
        remus_group_watch(g);
    if (g->outstanding)
        give_up(g);
    int rc = remus_group_first_error(g, REMUS_PHASE_PRERESUME);
    if (!rc) {
        for (unsigned int i = 0; i < g->count; i++) {
            g->devices[i].complete = g->devices[i].acked;
            g->devices[i].failed = 0;
        }
        g->complete = g->number;
        remus_group_add_sample(g);
    }
    if (g->begun) /* nothing there if the deadline came first */
        remus_wake_clear(g->fd);
    g->state = rc ? REMUS_GROUP_UNKNOWN : REMUS_GROUP_READY;
    g->running = REMUS_PHASE_NONE;
    g->begun = g->concluding = 0;
    pthread_cond_broadcast(&g->done);
    return rc;
}

/* Take part in the work, then wait for the others (lock held). */
static void wait_all(remus_group *g, struct remus_group_device *mine)
{
    if (!mine)
        mine = pop(g);
    if (g->queued)
        pthread_cond_signal(&g->work);
    while (mine) {
        mine->by_caller = 1;
        run(g, mine);
        /* Late, it leaves the rest to give_up(). */
        mine = remus_deadline_over(g->deadline, remus_clock_now()) ? NULL
                                                                   : pop(g);
    }
    while (g->outstanding && !remus_cond_wait(&g->done, &g->lock,
                                              remus_clock_now(), g->deadline))
        ;
}

int remus_group_preresume(remus_group *g, int64_t timeout_ms)
{
    int no = remus_enter(g, "group_preresume");
    if (no)
        return no;
    pthread_mutex_lock(&g->lock);
    int rc = begin(g, timeout_ms, 0);
    if (!rc) {
        /* Stop may come meanwhile, and close right after it. */
        remus_group_hold(g);
        struct remus_group_device *mine = only_one(g);
        if (mine) {
            mine->counted = 1;
            mine->adopted = 0;
            mine->timeout_ms = timeout_ms;
            g->outstanding = 1;
            mine->by_caller = 1;
            run(g, mine);
        } else {
            wait_all(g, ask_all(g));
        }
        rc = conclude(g);
        pthread_mutex_unlock(&g->lock);
        remus_group_drop(g);
        return rc;
    }
    pthread_mutex_unlock(&g->lock);
    return rc;
}

int remus_group_preresume_begin(remus_group *g, int64_t timeout_ms)
{
    int no = remus_enter(g, "group_preresume_begin");
    if (no)
        return no;
    pthread_mutex_lock(&g->lock);
    int rc = g->begins ? begin(g, timeout_ms, 1)
                       : remus_fail(-EBADFD,
                                    "group %s: begin: the group was started "
                                    "without the threads for it",
                                    g->name);
    if (!rc) {
        /* One more, so that it is over once, here or at the last answer. */
        g->outstanding = 1;
        ask_all(g);
        if (g->queued)
            pthread_cond_signal(&g->work);
        remus_group_one_less(g);
    }
    pthread_mutex_unlock(&g->lock);
    return rc;
}

int remus_group_preresume_finish(remus_group *g)
{
    int no = remus_enter(g, "group_preresume_finish");
    if (no)
        return no;
    pthread_mutex_lock(&g->lock);
    int rc;
    if (!g->begun)
        rc = remus_fail(-EBADFD, "group %s: finish without a begun preresume",
                        g->name);
    else if (g->concluding)
        rc = remus_fail(-EINPROGRESS,
                        "group %s: finish while another call finishes it",
                        g->name);
    else if (g->cancelling || /* its end makes the descriptor readable */
             (g->outstanding &&
              !remus_deadline_over(g->deadline, remus_clock_now())))
        rc = remus_fail(-EAGAIN,
                        "group %s: finish: not every device has answered "
                        "yet: poll the descriptor",
                        g->name);
    else
        rc = conclude(g);
    pthread_mutex_unlock(&g->lock);
    return rc;
}
