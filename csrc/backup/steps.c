/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A backup's decisions about failing over; see steps.h. */
#include "backup/steps.h"

/* ---- who decides --------------------------------------------------------- */

int remus_claim_step(struct remus_claim *s, enum remus_claim_event event)
{
    struct remus_claim before = *s;
    switch (event) {
    case REMUS_CLAIM_STEPPED_DOWN:
        s->stepped_down = 1;
        if (s->who == REMUS_DECIDES_PRIMARY)
            s->who = REMUS_DECIDES_GIVEN;
        break;
    case REMUS_CLAIM_PROMOTE:
    case REMUS_CLAIM_FOUND:
        s->who = REMUS_DECIDES_OURS;
        break;
    case REMUS_CLAIM_NOT_STORED:
        if (s->who == REMUS_DECIDES_OURS)
            s->who =
                s->stepped_down ? REMUS_DECIDES_GIVEN : REMUS_DECIDES_PRIMARY;
        break;
    default: /* FAILED: it may be stored, so nothing is taken any more */
        break;
    }
    return s->who != before.who || s->stepped_down != before.stepped_down;
}

/* ---- how far the connection is ------------------------------------------- */

enum remus_backup_phase remus_phase_step(enum remus_backup_phase at,
                                         enum remus_phase_event event)
{
    static const unsigned char next[REMUS_AT_PHASES][REMUS_PHASE_EVENTS] = {
        /* HELLO, COPY, CATCH_UP, COPIED, CAUGHT_UP, END; 0: it can't be */
        [REMUS_AT_NOBODY] = {1 + REMUS_AT_GREETED, 0, 0, 0, 0,
                             1 + REMUS_AT_NOBODY},
        [REMUS_AT_GREETED] = {0, 1 + REMUS_AT_COPYING, 1 + REMUS_AT_CATCHING,
                              0, 0, 1 + REMUS_AT_NOBODY},
        [REMUS_AT_COPYING] = {0, 0, 0, 1 + REMUS_AT_STREAMING, 0,
                              1 + REMUS_AT_NOBODY},
        [REMUS_AT_CATCHING] = {0, 0, 0, 0, 1 + REMUS_AT_STREAMING,
                               1 + REMUS_AT_NOBODY},
        [REMUS_AT_STREAMING] = {0, 0, 0, 0, 0, 1 + REMUS_AT_NOBODY},
    };
    if ((unsigned int)at >= REMUS_AT_PHASES ||
        (unsigned int)event >= REMUS_PHASE_EVENTS || !next[at][event])
        return REMUS_AT_PHASES;
    return (enum remus_backup_phase)(next[at][event] - 1);
}

/* ---- which checkpoint ---------------------------------------------------- */

/* Without a name. */
static enum remus_target by_default(const struct remus_target_facts *f)
{
    if (f->as_base && f->none_committed)
        return REMUS_TARGET_NONE_YET;
    if (f->as_base && f->untouched)
        return REMUS_TARGET_AS_LEFT;
    return f->stale && !f->stepped_down ? REMUS_TARGET_STALE : REMUS_TARGET_GO;
}

enum remus_target remus_target_step(const struct remus_target_facts *f)
{
    if (f->begun)
        return f->by == REMUS_PROMOTE_DEFAULT || f->fitting == 1
                   ? REMUS_TARGET_GO
                   : REMUS_TARGET_FIXED;
    if (f->failed)
        return REMUS_TARGET_FAILED;
    if (!f->taken || (!f->untouched && !f->consistent))
        return REMUS_TARGET_NOTHING;
    switch (f->by) {
    case REMUS_PROMOTE_DEFAULT:
        return by_default(f);
    case REMUS_PROMOTE_EPOCH:
        return f->fitting ? REMUS_TARGET_GO : REMUS_TARGET_NO_NUMBER;
    case REMUS_PROMOTE_TAG:
        return f->fitting == 1 ? REMUS_TARGET_GO : REMUS_TARGET_NO_TAG;
    default:
        return REMUS_TARGET_NO_WAY;
    }
}

/* ---- one call of promote ------------------------------------------------- */

/* What can't be promoted to must not cost a connection that works, or stop a
 * primary. */
static enum remus_promote_at looked(struct remus_promote *c,
                                    const struct remus_promote_facts *f)
{
    if (!f->connected)
        return REMUS_CALL_CUTS;
    if (!f->go && !(f->may_come && !f->forced))
        return REMUS_CALL_REFUSED;
    c->may_cut |= f->forced;
    return f->forced ? REMUS_CALL_CUTS : REMUS_CALL_ASKS;
}

static enum remus_promote_at decided(const struct remus_promote_facts *f)
{
    if (!f->go)
        return REMUS_CALL_REFUSED;
    if (f->done)
        return REMUS_CALL_DONE;
    if (f->failed)
        return REMUS_CALL_REFUSED;
    return f->begun ? REMUS_CALL_APPLIES : REMUS_CALL_STORES;
}

/* Where the call goes; REMUS_CALL_PLACES: forbidden. */
static enum remus_promote_at next(struct remus_promote *c,
                                  enum remus_promote_event event,
                                  const struct remus_promote_facts *f)
{
    switch (c->at) {
    case REMUS_CALL_LOOKS:
        return event == REMUS_CALL_LOOKED ? looked(c, f) : REMUS_CALL_PLACES;
    case REMUS_CALL_ASKS:
        if (event == REMUS_CALL_STAYS)
            return REMUS_CALL_REFUSED;
        if (event != REMUS_CALL_MAY)
            return REMUS_CALL_PLACES;
        c->may_cut = 1;
        return REMUS_CALL_CUTS;
    case REMUS_CALL_CUTS:
        if (event == REMUS_CALL_CAME && !c->may_cut)
            return REMUS_CALL_LOOKS;
        return event == REMUS_CALL_CUT ? REMUS_CALL_DECIDES
                                       : REMUS_CALL_PLACES;
    case REMUS_CALL_DECIDES:
        return event == REMUS_CALL_LOOKED ? decided(f) : REMUS_CALL_PLACES;
    case REMUS_CALL_STORES:
    case REMUS_CALL_APPLIES:
        if (event == REMUS_CALL_BAD)
            return REMUS_CALL_REFUSED;
        if (event != REMUS_CALL_OK)
            return REMUS_CALL_PLACES;
        return c->at == REMUS_CALL_STORES ? REMUS_CALL_APPLIES
                                          : REMUS_CALL_DONE;
    default: /* DONE, REFUSED: it is over */
        return REMUS_CALL_PLACES;
    }
}

int remus_promote_step(struct remus_promote *c, enum remus_promote_event event,
                       const struct remus_promote_facts *f)
{
    enum remus_promote_at to = next(c, event, f);
    if (to == REMUS_CALL_PLACES)
        return 0;
    c->at = to;
    return 1;
}
