/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What holds of a primary whenever its lock is free.  Asked at each unlock and
 * before each sleep in builds with -DREMUS_CHECKED.
 */
#include "base/check.h"
#include "primary/state.h"

#define HOLDS(condition) (void)REMUS_CHECK(condition)

/* The link, and what a connection brought.  (lock held) */
static void of_the_link(const remus_primary *p)
{
    const struct remus_connection *c = &p->c;
    HOLDS(p->link.link < REMUS_LINKS);
    if (!remus_link_up(p))
        return;
    HOLDS(p->fd >= 0);
    HOLDS(!remus_stopping(p));
    HOLDS(remus_plan_connects(c->plan));
    /* Not all that was written is in the queue while it compares. */
    HOLDS((p->link.link == REMUS_LINK_COMPARING) == remus_plan_asks(c->plan));
    if (p->link.link == REMUS_LINK_COPYING)
        HOLDS(remus_plan_direct(c->plan));
    /* Credit is not overspent; barriers have a reserve. */
    HOLDS(c->spent <= c->credit + c->reserve);
    HOLDS(c->progress_spent <= c->spent);
    HOLDS(c->first <= p->open_epoch);
    /* What the map does not tell is not believed to be the same. */
    if (remus_caught_up(p))
        HOLDS(remus_dirty_valid(&p->dirty));
    if (p->link.link == REMUS_LINK_STREAMING)
        HOLDS((remus_plan_direct(c->plan) ? c->applied : p->acked) >=
              c->first);
}

/* Who writes, and in whose generation.  (lock held) */
static void of_writing(const remus_primary *p)
{
    HOLDS(p->authority < REMUS_AUTHORITIES);
    HOLDS(atomic_load(&p->no_writes) == remus_authority_fenced(p->authority));
    /* A question goes with its connection. */
    if (p->authority == REMUS_AUTHORITY_ASKED)
        HOLDS(p->c.question || !remus_link_up(p));
    if (p->authority == REMUS_AUTHORITY_FAILED_AWAY ||
        p->authority == REMUS_AUTHORITY_SPLIT)
        HOLDS(!remus_link_up(p));
    /* Who takes every write knows our generation. */
    if (p->link.link >= REMUS_LINK_COPYING)
        HOLDS(p->alone.generation == REMUS_GENERATION_SHARED);
    HOLDS((p->alone.generation == REMUS_GENERATION_FAILED) ==
          (p->alone_error != 0 &&
           p->alone.generation != REMUS_GENERATION_STORING));
}

/* Epochs, from old to new.  (lock held) */
static void of_epochs(const remus_primary *p)
{
    HOLDS(p->acked <= p->barrier_epoch);
    HOLDS(p->barrier_epoch < p->open_epoch || !p->barrier_epoch);
    HOLDS(p->first_epoch <= p->barrier_epoch);
    HOLDS(p->c.applied <= p->open_epoch);
    HOLDS(p->timed_end - p->timed_start <= REMUS_TIMED_MAX);
}

/* Who waits.  (lock held) */
static void of_waiting(const remus_primary *p)
{
    HOLDS(!p->parked == (p->parked_tail == &p->parked || !p->parked_tail));
    HOLDS(!p->parked_room == !atomic_load(&p->room_wanted));
    HOLDS(p->session < REMUS_SESSIONS);
    HOLDS(p->newest.epoch <= p->barrier_epoch);
    HOLDS(p->heard <= p->barrier_epoch);
    HOLDS(!p->newest.epoch == !p->newest.by.number);
    for (unsigned int i = 0; i < p->volume_count; i++) {
        const struct remus_pvolume *v = &p->volumes[i];
        HOLDS(!v->queue == (v->queue_tail == &v->queue));
    }
    for (const struct remus_waiter *w = p->waiters; w; w = w->next)
        HOLDS(!w->later || w->file);
}

/* lock held */
void remus_primary_invariants(remus_primary *p)
{
    of_the_link(p);
    of_writing(p);
    of_epochs(p);
    of_waiting(p);
    int state = remus_primary_public_state(p->authority, &p->link);
    HOLDS(state == p->events.state && remus_link_up(p) == p->events.up);
}
