/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For who sleeps in poll(2): that the state or the link has changed, and one
 * wait for an ack that holds no thread.
 */
#include <errno.h>

#include "base/entry.h"
#include "base/error.h"
#include "base/wake.h"
#include "primary/internal.h"

typedef unsigned long long ull;

int remus_primary_event_fd(remus_primary *p)
{
    int no = remus_enter(p, "primary_event_fd");
    return no ? no : p->events.fd;
}

int remus_primary_events(remus_primary *p)
{
    int no = remus_enter(p, "primary_events");
    return no ? no : (int)remus_events_take(&p->events);
}

int remus_primary_log(remus_primary *p, uint64_t after,
                      struct remus_log_entry *out, unsigned int cap,
                      uint64_t *next, uint64_t *lost)
{
    int no = remus_enter(p, "primary_log");
    if (!no)
        no = remus_log_given(out, cap, next, lost, "primary_log");
    if (no)
        return no;
    remus_primary_lock(p);
    int n = remus_log_read(&p->log, after, out, cap, next, lost);
    remus_primary_unlock(p);
    return n;
}

/* ---- a wait for an ack ---------------------------------------------------- */

/* In which of them a wait is; only BUSY's owner changes the rest of it. */
enum { NONE, BUSY, BEGUN, ANSWERED };

static void answered(void *opaque, int result)
{
    struct remus_ack_wait *w = opaque;
    w->result = result;
    atomic_store(&w->at, ANSWERED);
    remus_wake(w->fd);
}

int remus_primary_preresume_begin(remus_primary *p, uint64_t epoch,
                                  int64_t timeout_ms)
{
    int no = remus_enter(p, "primary_preresume_begin");
    if (no)
        return no;
    struct remus_ack_wait *w = &p->ack_wait;
    int at = NONE;
    if (!atomic_compare_exchange_strong(&w->at, &at, BUSY))
        return remus_fail(-EINPROGRESS,
                          "resource %s: a wait for an ack was begun and is "
                          "not finished: finish or cancel that one first",
                          p->resource);
    w->epoch = epoch;
    w->timeout_ms = timeout_ms;
    atomic_store(&w->at, BEGUN);
    int rc = remus_primary_wait_begin(p, epoch, timeout_ms, w, answered, w);
    if (rc == -ENOMEM)
        atomic_store(&w->at, NONE);
    else if (rc != REMUS_PARKED)
        answered(w, rc);
    return rc == -ENOMEM ? rc : 0;
}

int remus_primary_preresume_fd(remus_primary *p)
{
    int no = remus_enter(p, "primary_preresume_fd");
    return no ? no : p->ack_wait.fd;
}

int remus_primary_preresume_finish(remus_primary *p)
{
    int no = remus_enter(p, "primary_preresume_finish");
    if (no)
        return no;
    struct remus_ack_wait *w = &p->ack_wait;
    int at = ANSWERED;
    if (!atomic_compare_exchange_strong(&w->at, &at, BUSY))
        return at == NONE
                   ? remus_fail(-EBADFD,
                                "resource %s: no wait for an ack was begun",
                                p->resource)
                   : remus_fail(-EAGAIN, "resource %s: no ack yet",
                                p->resource);
    uint64_t epoch = w->epoch;
    int64_t timeout_ms = w->timeout_ms;
    int rc = w->result;
    /* What began the next one will make it readable again. */
    remus_wake_clear(w->fd);
    atomic_store(&w->at, NONE);
    return rc ? remus_primary_wait_error(p, epoch, rc, timeout_ms) : 0;
}

int remus_primary_preresume_cancel(remus_primary *p)
{
    int no = remus_enter(p, "primary_preresume_cancel");
    if (no)
        return no;
    return remus_primary_wait_cancel(p, &p->ack_wait, -ECANCELED) ? 0 : 1;
}
