/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Waits for an ack that hold no thread: parked ioctls 30 of a node, and the
 * devices of a group.  Each ends exactly once, by its ack, a loss, its
 * deadline, or a cancel, whichever takes it off the list first.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/entry.h"
#include "base/wake.h"
#include "primary/internal.h"

typedef unsigned long long ull;

int remus_primary_resume(remus_primary *p)
{
    int no = remus_enter(p, "primary_resume");
    if (no)
        return no;
    remus_primary_lock(p);
    struct remus_waiter *w = NULL;
    if (!remus_link_up(p))
        w = remus_primary_let_go(p);
    remus_primary_unlock(p);
    remus_primary_answer(p, w, -EPROTO);
    return remus_primary_go_alone(p);
}

static uint64_t deadline_of(const remus_primary *p, int64_t timeout_ms)
{
    return remus_deadline_in(remus_primary_now(p), timeout_ms).ns;
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
    remus_primary_lock(p);
    int rc = remus_primary_acked_or_lost(p, epoch);
    rc = rc > 0 ? 0 : rc < 0 ? rc : remus_primary_park_waiter(p, &w);
    remus_primary_unlock(p);
    return rc;
}

int remus_primary_wait_error(remus_primary *p, uint64_t epoch, int rc,
                             int64_t timeout_ms)
{
    remus_primary_lock(p);
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
                   remus_state_name(remus_primary_state(p)), p->reason);
        break;
    }
    remus_primary_unlock(p);
    return rc;
}

/* What a cancellable wait in the calling thread looks at. */
struct until {
    uint64_t epoch;
    const _Atomic int *cancel; /* may be NULL */
};

/* lock held */
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
    int no = remus_enter(p, "primary_preresume");
    if (no)
        return no;
    return remus_primary_preresume_until(p, epoch, timeout_ms, NULL);
}

void remus_primary_wait_wake(remus_primary *p)
{
    remus_primary_lock(p);
    pthread_cond_broadcast(&p->changed);
    remus_primary_unlock(p);
    remus_wake(p->rx_wake);
}
