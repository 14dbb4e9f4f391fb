/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sessions: the time in which a toolstack takes the checkpoints.  Without
 * one the engine takes them by itself, so that a guest whose first memory
 * copy takes minutes, or that no toolstack drives, is followed all the same.
 *
 * After a session that ended without teardown (its file was closed; its
 * toolstack perhaps died) the engine waits for the grace time: the last
 * prepared checkpoint has a memory that may still be failed over to, and
 * a commit of the engine's would take it away.
 */
#include <errno.h>

#include "base/error.h"
#include "base/entry.h"
#include "primary/internal.h"

/* lock held */
static void event(remus_primary *p, enum remus_session_event what)
{
    p->session = remus_session_step(p->session, what);
}

void remus_primary_session_opens(remus_primary *p)
{
    event(p, REMUS_SESSION_OPENS);
}

void remus_primary_session_committed(remus_primary *p)
{
    event(p, REMUS_SESSION_COMMITTED);
}

enum remus_session remus_primary_session_now(remus_primary *p)
{
    if (p->session == REMUS_SESSION_GRACE &&
        remus_primary_now(p) - p->ended_ns > p->grace_ms * 1000000ull)
        event(p, REMUS_SESSION_GRACE_ENDS);
    return p->session;
}

int remus_primary_session_begin(remus_primary *p)
{
    int no = remus_enter(p, "primary_session_begin");
    if (no)
        return no;
    remus_primary_lock(p);
    remus_primary_session_opens(p);
    remus_primary_unlock(p);
    return 0;
}

/* lock held */
static void session_ends(remus_primary *p, enum remus_session_event how)
{
    event(p, how);
    p->idle_ns = p->ended_ns = remus_primary_now(p);
    pthread_cond_signal(&p->engine_wake);
}

int remus_primary_session_end(remus_primary *p)
{
    int no = remus_enter(p, "primary_session_end");
    if (no)
        return no;
    remus_primary_lock(p);
    int open = p->node_users != 0;
    if (!open)
        session_ends(p, REMUS_SESSION_ENDS);
    remus_primary_unlock(p);
    return open ? remus_fail(-EBUSY,
                             "resource %s: a toolstack has nodes open that it "
                             "takes checkpoints through: its session goes on",
                             p->resource)
                : 0;
}

void remus_primary_ioctl_attach(remus_primary *p)
{
    p->node_users++;
    remus_primary_session_opens(p);
}

void remus_primary_ioctl_release(remus_primary *p,
                                 const struct remus_ioctl_file *f)
{
    remus_primary_lock(p);
    if (f->attached && --p->node_users == 0) {
        p->heard = 0;
        session_ends(p, REMUS_SESSION_CLOSES);
    }
    remus_primary_unlock(p);
}
