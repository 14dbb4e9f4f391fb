/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who waits for an ack without a thread.  Each wait ends exactly once, by its
 * ack, a loss, its deadline, or a cancel, whichever takes it off the list
 * first.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/error.h"
#include "primary/internal.h"

/* lock held */
static struct remus_waiter *
take_if(remus_primary *p, int (*wanted)(const struct remus_waiter *, uint64_t),
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
    return !w->later && w->epoch <= epoch;
}

static int each(const struct remus_waiter *w, uint64_t ignored)
{
    (void)w;
    (void)ignored;
    return 1;
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

struct remus_waiter *remus_primary_take_all_waiters(remus_primary *p)
{
    return take_if(p, each, 0);
}

void remus_primary_note_heard(remus_primary *p, const struct remus_waiter *w)
{
    for (; w; w = w->next) {
        if (!w->file)
            continue;
        if (w->epoch > w->file->heard)
            w->file->heard = w->epoch;
        if (w->epoch > p->heard)
            p->heard = w->epoch;
    }
}

struct remus_waiter *remus_primary_let_go(remus_primary *p)
{
    p->c.let_go = 1;
    pthread_cond_broadcast(&p->changed);
    return remus_link_up(p) ? NULL : remus_primary_take_all_waiters(p);
}

void remus_primary_answer(remus_primary *p, struct remus_waiter *w, int result)
{
    while (w) {
        struct remus_waiter *next = w->next;
        w->done(w->opaque, result);
        remus_primary_lock(p);
        w->next = p->free_waiters;
        p->free_waiters = w;
        remus_primary_unlock(p);
        w = next;
    }
}

int remus_primary_expire_waiters(remus_primary *p, int ms)
{
    uint64_t now = p->io->now_ns(p->io);
    struct remus_waiter *w = take_if(p, late, now);
    if (w) {
        remus_primary_unlock(p);
        remus_primary_answer(p, w, -ETIMEDOUT);
        remus_primary_lock(p);
    }
    uint64_t left = (uint64_t)ms * REMUS_NS_PER_MS;
    for (w = p->waiters; w; w = w->next) {
        if (w->deadline_ns <= now)
            left = 0;
        else if (w->deadline_ns - now < left)
            left = w->deadline_ns - now;
    }
    return (int)((left + REMUS_NS_PER_MS - 1) / REMUS_NS_PER_MS);
}

int remus_primary_park_waiter(remus_primary *p,
                              const struct remus_waiter *wanted)
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

static int cancel_if(remus_primary *p,
                     int (*wanted)(const struct remus_waiter *, uint64_t),
                     uint64_t arg, int result)
{
    remus_primary_lock(p);
    struct remus_waiter *w = take_if(p, wanted, arg);
    remus_primary_unlock(p);
    remus_primary_answer(p, w, result);
    return w != NULL;
}

int remus_primary_wait_cancel(remus_primary *p, const void *owner, int result)
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
