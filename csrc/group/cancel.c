/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Groups: a wait that is ended from outside.
 *
 * Whoever cancels counts as one more device that is outstanding, so the
 * preresume that is meant can't be over, and the next one not begin, before
 * he is done with its devices; stop waits for him, too.
 *
 * A wait in a file of our node is ended by another ioctl, and that hangs if
 * the process that serves the node does.  So it is sent by a thread of its
 * own, the waker, which is parked all the time; whoever cancels looks after
 * it for a while and goes on without it.
 */
#include <errno.h>

#include "group/drbd.h"
#include "base/error.h"
#include "base/entry.h"
#include "group/internal.h"

#define WAKE_MS 100 /* as long may a node take to hear */

/* ---- the waker ---------------------------------------------------------- */

int remus_group_has_waker(const struct remus_group_device *d)
{
    return d->kind == REMUS_KIND_DRBD && remus_drbd_is_node(d->drbd);
}

/* lock held */
static struct remus_group_device *to_wake(remus_group *g)
{
    for (unsigned int i = 0; i < g->count; i++)
        if (g->devices[i].wake)
            return &g->devices[i];
    return NULL;
}

void *remus_group_waker_main(void *arg)
{
    struct remus_group_thread *t = arg;
    remus_group *g = t->group;
    pthread_mutex_lock(&g->lock);
    while (g->quit < 2) {
        struct remus_group_device *d = to_wake(g);
        if (!d) {
            pthread_cond_wait(&g->wake, &g->lock);
            continue;
        }
        remus_drbd *dev = d->drbd;
        remus_drbd_hold(dev);
        t->busy = 1;
        pthread_mutex_unlock(&g->lock);
        remus_drbd_cancel_if(dev, &g->cancel);
        remus_drbd_close(dev);
        pthread_mutex_lock(&g->lock);
        t->busy = 0;
        d->wake = 0;
        if (g->watchers || g->cancelling)
            pthread_cond_broadcast(&g->done);
    }
    pthread_mutex_unlock(&g->lock);
    remus_group_drop(g);
    return NULL;
}

/* ---- cancel -------------------------------------------------------------- */

/* A device that does not answer itself counts as cancelled (lock held). */
static void cancelled(remus_group *g, struct remus_group_device *d)
{
    remus_fail(-ECANCELED,
               "device %s: preresume: cancelled; the ack may still come: "
               "wait again",
               d->r.name);
    remus_group_failed(d, REMUS_PHASE_PRERESUME, -ECANCELED);
    remus_group_uncount(g, d);
}

/* End the call that somebody is in (lock held, given up meanwhile). */
static void tell_inside(remus_group *g, struct remus_group_device *d)
{
    if (remus_group_has_waker(d)) {
        d->wake = 1;
        pthread_cond_signal(&g->wake);
        return;
    }
    pthread_mutex_unlock(&g->lock);
    if (d->kind == REMUS_KIND_PRIMARY)
        remus_primary_wait_wake(d->primary);
    else if (d->kind == REMUS_KIND_DRBD)
        remus_drbd_cancel_if(d->drbd, &g->cancel);
    else if (d->ops.cancel)
        d->ops.cancel(d->opaque);
    pthread_mutex_lock(&g->lock);
}

/* lock held, given up meanwhile */
static void tell(remus_group *g, struct remus_group_device *d)
{
    switch (d->wait) {
    case REMUS_WAIT_QUEUED:
        remus_group_unqueue(g, d);
        cancelled(g, d);
        break;
    case REMUS_WAIT_PARKED:
        pthread_mutex_unlock(&g->lock);
        remus_primary_wait_cancel(d->primary, d, -ECANCELED);
        pthread_mutex_lock(&g->lock);
        break;
    case REMUS_WAIT_INSIDE:
        tell_inside(g, d);
        break;
    default:
        break;
    }
}

/* Is a primary's answer on the way, or a node told just now? (lock held) */
static int on_the_way(const remus_group *g, int waking)
{
    for (unsigned int i = 0; i < g->count; i++) {
        const struct remus_group_device *d = &g->devices[i];
        if (d->counted &&
            (d->wait == REMUS_WAIT_PARKED ||
             (waking && d->wake && d->wait == REMUS_WAIT_INSIDE)))
            return 1;
    }
    return 0;
}

/* Until all have answered that will; nodes have WAKE_MS (lock held). */
static void look_after(remus_group *g)
{
    struct remus_deadline end = remus_deadline_in(remus_clock_now(), WAKE_MS);
    int waking = 1;
    g->watchers++;
    while (on_the_way(g, waking))
        if (remus_cond_wait(&g->done, &g->lock, remus_clock_now(),
                            waking ? end : REMUS_NEVER))
            waking = 0;
    g->watchers--;
}

int remus_group_cancel(remus_group *g)
{
    int no = remus_enter(g, "group_cancel");
    if (no)
        return no;
    pthread_mutex_lock(&g->lock);
    if (g->running != REMUS_PHASE_PRERESUME || g->concluding) {
        pthread_mutex_unlock(&g->lock);
        return 1;
    }
    remus_group_hold(g);
    g->cancelling++;
    g->outstanding++;
    atomic_store(&g->cancel, 1);
    for (unsigned int i = 0; i < g->count; i++)
        if (g->devices[i].counted)
            tell(g, &g->devices[i]);
    look_after(g);
    for (unsigned int i = 0; i < g->count; i++) {
        struct remus_group_device *d = &g->devices[i];
        /* A thread of ours may stay there; the caller must come himself. */
        if (d->counted && d->wait == REMUS_WAIT_INSIDE && !d->by_caller)
            cancelled(g, d);
    }
    g->cancelling--;
    remus_group_one_less(g);
    pthread_cond_broadcast(&g->done);
    pthread_mutex_unlock(&g->lock);
    remus_group_drop(g);
    return 0;
}
