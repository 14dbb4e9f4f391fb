/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Groups: the ground, which every phase stands on: in what state what may
 * come, what a device's failure leaves, who is waited for, who frees it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/wake.h"
#include "group/drbd.h"
#include "group/internal.h"

#define ERRNO_MAX 4095 /* the kernel's largest */

static const char *const state_names[] = {"new",    "ready",   "closed",
                                          "failed", "unknown", "stopped"};
static const char *const phase_names[] = {"no phase", "postsuspend",
                                          "preresume", "commit"};

const char *remus_group_state_name(const remus_group *g)
{
    return state_names[g->state];
}

void remus_group_failed(struct remus_group_device *d, int phase, int error)
{
    d->r.phase = phase;
    d->r.error = error;
    if (phase != REMUS_PHASE_COMMIT && !d->failed)
        d->failed = error;
    d->r.failed_ns = remus_clock_now();
    d->r.failed_epoch = phase == REMUS_PHASE_POSTSUSPEND ? 0
                        : phase == REMUS_PHASE_COMMIT    ? d->complete
                                                         : d->r.epoch;
    snprintf(d->r.text, sizeof d->r.text, "%s", remus_last_error());
}

int remus_group_own(const struct remus_group_device *d, int phase, int rc)
{
    if (rc < -ERRNO_MAX)
        rc = -EIO; /* a number that is no errno */
    return rc >= 0 ? rc
                   : remus_fail(rc, "device %s: %s: %s", d->r.name,
                                phase_names[phase], remus_errno_text(rc));
}

int remus_group_may(remus_group *g, int phase, unsigned int states)
{
    if (g->state == REMUS_GROUP_STOPPED || g->quit)
        return remus_fail(-EBADFD, "group %s: %s: the group was stopped",
                          g->name, phase_names[phase]);
    if (g->running != REMUS_PHASE_NONE)
        return remus_fail(-EINPROGRESS,
                          "group %s: %s while %s is under way in another "
                          "call",
                          g->name, phase_names[phase],
                          phase_names[g->running]);
    if (!(states & 1u << g->state))
        return remus_fail(-EBADFD, "group %s: %s in state %s", g->name,
                          phase_names[phase], state_names[g->state]);
    return 0;
}

int remus_group_first_error(const remus_group *g, enum remus_phase phase)
{
    const struct remus_group_device *first = NULL;
    for (unsigned int i = 0; i < g->count; i++) {
        const struct remus_group_device *d = &g->devices[i];
        if (d->r.phase == phase && d->r.error &&
            (!first || d->r.failed_ns < first->r.failed_ns))
            first = d;
    }
    return first ? remus_fail(first->r.error, "group %s: %s", g->name,
                              first->r.text)
                 : 0;
}

/* ---- who is waited for ---------------------------------------------------- */

int remus_group_waits(const struct remus_group_device *d)
{
    return d->kind != REMUS_KIND_OWN || d->ops.preresume;
}

void remus_group_watch(remus_group *g)
{
    g->watchers++;
    pthread_cond_wait(&g->done, &g->lock);
    g->watchers--;
}

void remus_group_unqueue(remus_group *g, struct remus_group_device *d)
{
    unsigned int kept = 0;
    for (unsigned int i = 0; i < g->queued; i++)
        if (&g->devices[g->queue[i]] != d)
            g->queue[kept++] = g->queue[i];
    g->queued = kept;
    d->wait = REMUS_WAIT_IDLE;
}

void remus_group_one_less(remus_group *g)
{
    if (--g->outstanding == 0 && g->begun)
        remus_wake(g->fd);
}

/* lock held */
void remus_group_uncount(remus_group *g, struct remus_group_device *d)
{
    d->counted = 0;
    remus_group_one_less(g);
}

/* ---- who frees it ---------------------------------------------------------- */

void remus_group_hold(remus_group *g)
{
    g->refs++;
}

void remus_group_drop(remus_group *g)
{
    pthread_mutex_lock(&g->lock);
    int left = --g->refs;
    pthread_mutex_unlock(&g->lock);
    if (left)
        return;
    for (unsigned int i = 0; i < g->count; i++)
        remus_drbd_close(g->devices[i].drbd);
    remus_group_free_stats(g);
    remus_wake_close(g->fd);
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->work);
    pthread_cond_destroy(&g->wake);
    pthread_cond_destroy(&g->done);
    free(g->devices);
    free(g);
}
