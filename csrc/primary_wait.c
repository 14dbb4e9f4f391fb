/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Waits for an ack that hold no thread: parked ioctls 30 of a node, and the
 * devices of a group.  Each ends exactly once, by its ack, a loss, its
 * deadline, or a cancel, whichever takes it off the list first.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "error.h"
#include "primary_int.h"

typedef unsigned long long ull;

#define NS_PER_MS 1000000u

static struct remus_waiter *take_if(remus_primary *p,
                                    int (*wanted)(const struct remus_waiter *,
                                                  uint64_t),
                                    uint64_t arg)
{
    struct remus_waiter *taken = NULL, **at = &p->waiters;
    while (*at) {
        struct remus_waiter *w = *at;
        if (!wanted(w, arg)) {
            at = &w->next;
            continue;
        }
        *at = w->next;
        w->next = taken;
        taken = w;
    }
    return taken;
}

static int up_to(const struct remus_waiter *w, uint64_t epoch)
{
    return w->epoch <= epoch;
}

static int late(const struct remus_waiter *w, uint64_t now)
{
    return w->deadline_ns <= now;
}

static int owned_by(const struct remus_waiter *w, uint64_t owner)
{
    return w->owner == (const void *)(uintptr_t)owner;
}

static int is_it(const struct remus_waiter *w, uint64_t id)
{
    return w->id == id;
}

struct remus_waiter *remus_primary_take_waiters(remus_primary *p,
                                                uint64_t epoch)
{
    return take_if(p, up_to, epoch);
}

void remus_primary_note_heard(remus_primary *p, const struct remus_waiter *w)
{
    for (; w; w = w->next)
        if (w->id && w->epoch > p->node_heard)
            p->node_heard = w->epoch;
}

int remus_primary_holds(const remus_primary *p)
{
    return p->hold && !p->resumed && !p->stopping &&
           p->state != REMUS_STATE_FENCED &&
           p->state != REMUS_STATE_SPLIT_BRAIN;
}

struct remus_waiter *remus_primary_let_go(remus_primary *p)
{
    p->resumed = 1;
    pthread_cond_broadcast(&p->changed);
    return p->stats.connected ? NULL
                              : remus_primary_take_waiters(p, UINT64_MAX);
}

int remus_primary_resume(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
    struct remus_waiter *w = NULL;
    if (!p->stats.connected)
        w = remus_primary_let_go(p);
    pthread_mutex_unlock(&p->lock);
    remus_primary_answer(p, w, -EPROTO);
    return remus_primary_go_alone(p);
}

void remus_primary_answer(remus_primary *p, struct remus_waiter *w,
                          int result)
{
    while (w) {
        struct remus_waiter *next = w->next;
        w->done(w->opaque, result);
        pthread_mutex_lock(&p->lock);
        w->next = p->free_waiters;
        p->free_waiters = w;
        pthread_mutex_unlock(&p->lock);
        w = next;
    }
}

int remus_primary_expire_waiters(remus_primary *p, int ms)
{
    uint64_t now = p->io->now_ns(p->io);
    struct remus_waiter *w = take_if(p, late, now);
    if (w) {
        pthread_mutex_unlock(&p->lock);
        remus_primary_answer(p, w, -ETIMEDOUT);
        pthread_mutex_lock(&p->lock);
    }
    uint64_t left = (uint64_t)ms * NS_PER_MS;
    for (w = p->waiters; w; w = w->next) {
        if (w->deadline_ns <= now)
            left = 0;
        else if (w->deadline_ns - now < left)
            left = w->deadline_ns - now;
    }
    return (int)((left + NS_PER_MS - 1) / NS_PER_MS);
}

/* Park (lock held). */
static int park(remus_primary *p, const struct remus_waiter *wanted)
{
    struct remus_waiter *w = p->free_waiters;
    if (w)
        p->free_waiters = w->next;
    else
        w = malloc(sizeof *w);
    if (!w)
        return remus_fail(-ENOMEM, "resource %s: out of memory", p->resource);
    *w = *wanted;
    w->next = p->waiters;
    p->waiters = w;
    if (!p->rx_wanted) {
        p->rx_wanted = 1;
        pthread_cond_signal(&p->rx_resume);
    }
    return REMUS_PARKED;
}

static uint64_t deadline_of(const remus_primary *p, int64_t timeout_ms)
{
    return timeout_ms < 0 ? UINT64_MAX
                          : p->io->now_ns(p->io) +
                                (uint64_t)timeout_ms * NS_PER_MS;
}

int remus_primary_wait_begin(remus_primary *p, uint64_t epoch,
                             int64_t timeout_ms, const void *owner,
                             remus_done_fn done, void *opaque)
{
    struct remus_waiter w = {.epoch = epoch,
                             .deadline_ns = deadline_of(p, timeout_ms),
                             .owner = owner,
                             .done = done,
                             .opaque = opaque};
    pthread_mutex_lock(&p->lock);
    int rc = remus_primary_acked_or_lost(p, epoch);
    rc = rc > 0 ? 0 : rc < 0 ? rc : park(p, &w);
    pthread_mutex_unlock(&p->lock);
    return rc;
}

int remus_primary_ioctl_wait(remus_primary *p, unsigned int volume,
                             int64_t timeout_ms, const void *owner,
                             uint64_t id, remus_done_fn done, void *opaque)
{
    struct remus_pvolume *v = &p->volumes[volume];
    struct remus_waiter w = {.deadline_ns = deadline_of(p, timeout_ms),
                             .owner = owner,
                             .id = id,
                             .done = done,
                             .opaque = opaque};
    int rc = 0;
    pthread_mutex_lock(&p->lock);
    w.epoch = v->joined;
    if (v->joined && remus_primary_epoch_lost(p, v->joined))
        rc = -EPROTO;
    else if (v->joined && p->acked < v->joined)
        rc = p->stats.connected || remus_primary_holds(p) ? park(p, &w)
                                                          : -EPROTO;
    if (!rc)
        remus_primary_note_heard(p, &w);
    pthread_mutex_unlock(&p->lock);
    return rc;
}

static int cancel_if(remus_primary *p,
                     int (*wanted)(const struct remus_waiter *, uint64_t),
                     uint64_t arg, int result)
{
    pthread_mutex_lock(&p->lock);
    struct remus_waiter *w = take_if(p, wanted, arg);
    pthread_mutex_unlock(&p->lock);
    remus_primary_answer(p, w, result);
    return w != NULL;
}

int remus_primary_wait_cancel(remus_primary *p, const void *owner,
                              int result)
{
    return cancel_if(p, owned_by, (uint64_t)(uintptr_t)owner, result);
}

int remus_primary_wait_cancel_id(remus_primary *p, uint64_t id, int result)
{
    return cancel_if(p, is_it, id, result);
}

uint64_t remus_primary_wait_id(remus_primary *p)
{
    return atomic_fetch_add(&p->wait_ids, 1) + 1;
}

int remus_primary_wait_error(remus_primary *p, uint64_t epoch, int rc,
                             int64_t timeout_ms)
{
    pthread_mutex_lock(&p->lock);
    switch (rc) {
    case -EINVAL:
        remus_fail(rc, "resource %s: no barrier was sent for epoch %llu",
                   p->resource, (ull)epoch);
        break;
    case -ETIMEDOUT:
        remus_fail(rc,
                   "barrier %llu on resource %s: no ack after %lld ms; it "
                   "may still come: wait again, or go on with a new epoch",
                   (ull)epoch, p->resource, (long long)timeout_ms);
        break;
    case -ECANCELED:
        remus_fail(rc,
                   "barrier %llu on resource %s: the wait was cancelled; the "
                   "ack may still come: wait again, or go on with a new "
                   "epoch",
                   (ull)epoch, p->resource);
        break;
    default:
        remus_fail(rc,
                   "barrier %llu on resource %s: no ack will come: %s; %s is "
                   "its state now: %s",
                   (ull)epoch, p->resource, p->lost_reason,
                   remus_state_name(p->state), p->reason);
        break;
    }
    pthread_mutex_unlock(&p->lock);
    return rc;
}

/* What a cancellable wait in the calling thread looks at. */
struct until {
    uint64_t epoch;
    const _Atomic int *cancel; /* may be NULL */
};

static int acked_lost_or_cancelled(remus_primary *p, uint64_t arg)
{
    const struct until *u = (const struct until *)(uintptr_t)arg;
    int rc = remus_primary_acked_or_lost(p, u->epoch);
    return !rc && u->cancel && atomic_load(u->cancel) ? -ECANCELED : rc;
}

int remus_primary_preresume_until(remus_primary *p, uint64_t epoch,
                                  int64_t timeout_ms,
                                  const _Atomic int *cancel)
{
    struct until u = {epoch, cancel};
    int rc = remus_primary_wait_for(p, acked_lost_or_cancelled,
                                    (uint64_t)(uintptr_t)&u, timeout_ms);
    return rc > 0 ? 0 : remus_primary_wait_error(p, epoch, rc, timeout_ms);
}

int remus_primary_preresume(remus_primary *p, uint64_t epoch,
                            int64_t timeout_ms)
{
    return remus_primary_preresume_until(p, epoch, timeout_ms, NULL);
}

void remus_primary_wait_kick(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    uint64_t one = 1;
    ssize_t n = write(p->kick, &one, sizeof one);
    (void)n; /* an eventfd takes 2^64-2 of them */
}
