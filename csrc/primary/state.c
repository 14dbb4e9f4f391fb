/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A primary's ground: what all its files stand on (see primary/state.h). */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/states.h"
#include "primary/state.h"

typedef unsigned long long ull;

/* ---- the state that users see ----------------------------------------- */

int remus_primary_state(const remus_primary *p)
{
    return remus_primary_public_state(p->authority, &p->link);
}

/* lock held */
static void log_that(remus_primary *p, const char *text)
{
    remus_log_add(&p->log, remus_primary_now(p),
                  (enum remus_state)remus_primary_state(p), remus_link_up(p),
                  text);
}

void remus_primary_shows(remus_primary *p)
{
    if (remus_events_show(&p->events, REMUS_ROLE_PRIMARY,
                          remus_primary_state(p), remus_link_up(p)))
        log_that(p, ""); /* what is said next completes it */
}

void remus_primary_say(remus_primary *p, const char *text)
{
    snprintf(p->reason, sizeof p->reason, "%s", text);
    log_that(p, text);
    pthread_cond_broadcast(&p->changed);
}

unsigned int remus_primary_link_event(remus_primary *p,
                                      enum remus_link_event event,
                                      const char *text)
{
    const struct remus_link_facts facts = {.map_counts =
                                               remus_dirty_valid(&p->dirty),
                                           .holds = remus_primary_holds(p)};
    int up = remus_link_up(p);
    unsigned int effects = remus_link_step(&p->link, event, &facts);
    (void)REMUS_CHECK(!(effects & REMUS_DO_FORBIDDEN));
    if (up != remus_link_up(p))
        p->stats.link_changed_ns = remus_primary_now(p);
    if (event == REMUS_LINK_LOST)
        snprintf(p->lost_reason, sizeof p->lost_reason, "%s", text);
    remus_primary_shows(p);
    int state = remus_primary_state(p);
    /* What was decided for good is all there is to say. */
    if (text && state != REMUS_STATE_FENCED &&
        state != REMUS_STATE_SPLIT_BRAIN)
        remus_primary_say(p, text);
    pthread_cond_broadcast(&p->changed);
    return effects;
}

void remus_primary_ends(remus_primary *p, enum remus_life life)
{
    p->life = life;
    pthread_cond_broadcast(&p->changed);
}

int remus_primary_holds(const remus_primary *p)
{
    int state = remus_primary_state(p);
    return p->hold && !p->c.let_go && !remus_stopping(p) &&
           state != REMUS_STATE_FENCED && state != REMUS_STATE_SPLIT_BRAIN;
}

/* ---- sleeping and waking ------------------------------------------------ */

int remus_primary_wait(remus_primary *p, pthread_cond_t *cond,
                       struct remus_deadline end)
{
#ifdef REMUS_CHECKED
    remus_primary_invariants(p); /* the lock is given up */
#endif
    return remus_cond_wait(cond, &p->lock, remus_primary_now(p), end);
}

void remus_primary_timed_wait(remus_primary *p, pthread_cond_t *cond, int ms)
{
    (void)remus_primary_wait(p, cond,
                             remus_deadline_in(remus_primary_now(p), ms));
}

int remus_primary_sleep(remus_primary *p, uint32_t ms)
{
    struct pollfd pf = {.fd = p->wake, .events = POLLIN};
    return poll(&pf, 1, (int)ms) > 0;
}

void remus_primary_wake_parked(remus_primary *p)
{
    if (p->parked && !p->park_wake) {
        p->park_wake = 1;
        pthread_cond_signal(&p->park_changed);
    }
}

void remus_primary_wake_volume(struct remus_pvolume *v)
{
    if (v->queue && !v->queue_wake) {
        v->queue_wake = 1;
        pthread_cond_signal(&v->queue_changed);
    }
}

uint64_t remus_primary_oldest_wait(remus_primary *p, uint64_t now)
{
    const struct remus_request *q = p->parked;
    return q && now > q->since_ns ? now - q->since_ns : 0;
}

/* ---- what is known of epochs -------------------------------------------- */

int remus_primary_epoch_lost(const remus_primary *p, uint64_t epoch)
{
    unsigned int known =
        p->outages < REMUS_OUTAGES ? p->outages : REMUS_OUTAGES;
    for (unsigned int i = 0; i < known; i++)
        if (epoch >= p->outage[i].from && epoch <= p->outage[i].to)
            return 1;
    return epoch <= p->outage_floor;
}

/* ---- volumes ------------------------------------------------------------- */

int remus_primary_check_io(remus_primary *p, unsigned int volume,
                           uint64_t offset, uint64_t len, int err)
{
    if (volume >= p->volume_count)
        return remus_fail(-EINVAL, "resource %s: no volume %u, there are %u",
                          p->resource, volume, p->volume_count);
    const struct remus_pvolume *v = &p->volumes[volume];
    if (offset > v->size || len > v->size - offset)
        return remus_fail(err,
                          "volume %s: %llu bytes at %llu reach beyond the "
                          "end at %llu",
                          v->name, (ull)len, (ull)offset, (ull)v->size);
    return 0;
}
