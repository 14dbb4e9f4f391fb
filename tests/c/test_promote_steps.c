/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A backup's decisions about failing over, over all states, events and facts:
 * who decides, how far a connection is, which checkpoint, and what one call
 * of promote does next; and every way that such a call can take.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/steps.h"
#include "expect.h"

/* ---- who decides ----------------------------------------------------------- */

static unsigned int claims(void)
{
    unsigned int n = 0;
    for (int who = 0; who < REMUS_DECIDES; who++)
        for (int down = 0; down < 2; down++)
            for (int e = 0; e < REMUS_CLAIM_EVENTS; e++, n++) {
                struct remus_claim s = {(enum remus_decides)who, down};
                struct remus_claim before = s;
                int changed = remus_claim_step(&s, (enum remus_claim_event)e);
                EXPECT(changed == (s.who != before.who ||
                                   s.stepped_down != before.stepped_down));
                /* A primary that stepped down never decides again. */
                EXPECT(s.stepped_down >= before.stepped_down);
                if (s.stepped_down && !(before.who == REMUS_DECIDES_PRIMARY &&
                                        before.stepped_down))
                    EXPECT(s.who != REMUS_DECIDES_PRIMARY);
                if (e == REMUS_CLAIM_PROMOTE || e == REMUS_CLAIM_FOUND)
                    EXPECT(s.who == REMUS_DECIDES_OURS);
                /* What a promote took is given back if, and only if, it is
                 * known that nothing is stored. */
                if (before.who == REMUS_DECIDES_OURS)
                    EXPECT((s.who == REMUS_DECIDES_OURS) ==
                           (e != REMUS_CLAIM_NOT_STORED));
                if (e == REMUS_CLAIM_FAILED)
                    EXPECT(!changed);
            }
    return n;
}

/* ---- how far a connection is ------------------------------------------------- */

static unsigned int phases(void)
{
    unsigned int n = 0;
    for (int p = 0; p <= REMUS_AT_PHASES; p++)
        for (int e = 0; e <= REMUS_PHASE_EVENTS; e++, n++) {
            enum remus_backup_phase at = (enum remus_backup_phase)p;
            enum remus_backup_phase to =
                remus_phase_step(at, (enum remus_phase_event)e);
            if (p == REMUS_AT_PHASES || e == REMUS_PHASE_EVENTS) {
                EXPECT(to == REMUS_AT_PHASES);
                continue;
            }
            /* Whatever happens, a connection can end. */
            if (e == REMUS_ON_END)
                EXPECT(to == REMUS_AT_NOBODY);
            else if (to != REMUS_AT_PHASES)
                EXPECT(to > at); /* and else it only goes on */
            /* Counted records come after one of three, and no other way. */
            if (to == REMUS_AT_STREAMING)
                EXPECT((e == REMUS_ON_COPIED && at == REMUS_AT_COPYING) ||
                       (e == REMUS_ON_CAUGHT_UP && at == REMUS_AT_CATCHING));
            if (to == REMUS_AT_COPYING || to == REMUS_AT_CATCHING)
                EXPECT(at == REMUS_AT_GREETED);
        }
    return n;
}

/* ---- which checkpoint ---------------------------------------------------------- */

static void one_target(const struct remus_target_facts *f)
{
    enum remus_target t = remus_target_step(f);
    EXPECT(t < REMUS_TARGETS);
    int named = f->by == REMUS_PROMOTE_EPOCH || f->by == REMUS_PROMOTE_TAG;
    if (f->begun) {
        /* There is one checkpoint, and naming it, or none, leads there. */
        EXPECT((t == REMUS_TARGET_GO) ==
               (f->by == REMUS_PROMOTE_DEFAULT || f->fitting == 1));
        EXPECT(t == REMUS_TARGET_GO || t == REMUS_TARGET_FIXED);
        return;
    }
    EXPECT(t != REMUS_TARGET_FIXED);
    EXPECT((t == REMUS_TARGET_FAILED) == (f->failed != 0));
    if (t != REMUS_TARGET_GO) {
        /* Old disks and those of a primary can be had by name. */
        if (t == REMUS_TARGET_STALE || t == REMUS_TARGET_AS_LEFT ||
            t == REMUS_TARGET_NONE_YET)
            EXPECT(!named);
        return;
    }
    EXPECT(f->taken && (f->consistent || f->untouched));
    EXPECT(named || f->by == REMUS_PROMOTE_DEFAULT);
    EXPECT(f->by != REMUS_PROMOTE_TAG || f->fitting == 1);
    EXPECT(f->by != REMUS_PROMOTE_EPOCH || f->fitting);
    /* Nobody promotes an old state, or disks as they were left, without
     * saying so. */
    if (!named) {
        EXPECT(!f->stale || f->stepped_down);
        EXPECT(!(f->as_base && (f->untouched || f->none_committed)));
    }
}

static unsigned int targets(void)
{
    unsigned int n = 0;
    for (int by = 0; by < 4; by++)
        for (unsigned int fitting = 0; fitting < 3; fitting++)
            for (int m = 0; m < 1 << 9; m++, n++) {
                const struct remus_target_facts f = {
                    .by = by < 3 ? by : 99,
                    .fitting = fitting,
                    .begun = m & 1,
                    .failed = m >> 1 & 1,
                    .taken = m >> 2 & 1,
                    .consistent = m >> 3 & 1,
                    .untouched = m >> 4 & 1,
                    .none_committed = m >> 5 & 1,
                    .as_base = m >> 6 & 1,
                    .stepped_down = m >> 7 & 1,
                    .stale = m >> 8 & 1};
                one_target(&f);
            }
    return n;
}

/* ---- one call of promote --------------------------------------------------------- */

#define FACTS (1 << 7)

static struct remus_promote_facts facts_of(int m)
{
    return (struct remus_promote_facts){.connected = m & 1,
                                        .forced = m >> 1 & 1,
                                        .go = m >> 2 & 1,
                                        .may_come = m >> 3 & 1,
                                        .begun = m >> 4 & 1,
                                        .done = m >> 5 & 1,
                                        .failed = m >> 6 & 1};
}

static int over(enum remus_promote_at at)
{
    return at == REMUS_CALL_DONE || at == REMUS_CALL_REFUSED;
}

static void one_step(enum remus_promote_at at, int may_cut, int event,
                     const struct remus_promote_facts *f)
{
    struct remus_promote c = {at, may_cut};
    if (!remus_promote_step(&c, (enum remus_promote_event)event, f)) {
        EXPECT(c.at == at && c.may_cut == may_cut);
        return;
    }
    EXPECT(!over(at));
    EXPECT(c.at != at && c.at < REMUS_CALL_PLACES);
    EXPECT(c.may_cut >= may_cut);
    /* Leave to cut comes with force, or after the primary was asked. */
    if (c.may_cut > may_cut)
        EXPECT(f->forced ||
               (at == REMUS_CALL_ASKS && event == REMUS_CALL_MAY));
    /* It is gone back from one place only, where nobody was asked yet. */
    if (c.at < at)
        EXPECT(at == REMUS_CALL_CUTS && c.at == REMUS_CALL_LOOKS && !may_cut);
    if (at == REMUS_CALL_LOOKS && c.at == REMUS_CALL_CUTS)
        EXPECT(!f->connected || f->forced);
    /* What can't be had costs no connection, and stops no primary. */
    if (at == REMUS_CALL_LOOKS && f->connected && !f->go)
        EXPECT(c.at == REMUS_CALL_REFUSED ||
               (f->may_come && !f->forced && c.at == REMUS_CALL_ASKS));
    if (c.at == REMUS_CALL_STORES)
        EXPECT(at == REMUS_CALL_DECIDES && f->go && !f->begun && !f->failed);
    if (c.at == REMUS_CALL_APPLIES)
        EXPECT((at == REMUS_CALL_STORES && event == REMUS_CALL_OK) ||
               (at == REMUS_CALL_DECIDES && f->go && f->begun && !f->failed));
    if (c.at == REMUS_CALL_DONE)
        EXPECT((at == REMUS_CALL_APPLIES && event == REMUS_CALL_OK) ||
               (at == REMUS_CALL_DECIDES && f->go && f->done));
}

static unsigned int steps(void)
{
    unsigned int n = 0;
    for (int at = 0; at < REMUS_CALL_PLACES; at++)
        for (int may_cut = 0; may_cut < 2; may_cut++)
            for (int e = 0; e < REMUS_CALL_EVENTS; e++)
                for (int m = 0; m < FACTS; m++, n++) {
                    struct remus_promote_facts f = facts_of(m);
                    one_step((enum remus_promote_at)at, may_cut, e, &f);
                }
    return n;
}

/* What happened on the way to a place. */
struct way {
    struct remus_promote c;
    int forced, asked, stored, begun;
};

static unsigned char been[REMUS_CALL_PLACES][2][2][2][2][2];

/* Every way that a call can take, from here on; 1: it can end. */
static void walk(struct way w, unsigned int *ways, unsigned int *ends)
{
    unsigned char *mark =
        &been[w.c.at][w.c.may_cut][w.forced][w.asked][w.stored][w.begun];
    if (*mark)
        return;
    *mark = 1;
    ++*ways;
    /* Without force nobody is cut off who was not asked. */
    EXPECT(!w.c.may_cut || w.forced || w.asked);
    /* The disks are not written to before it is durable that a promote
     * began. */
    if (w.c.at == REMUS_CALL_APPLIES)
        EXPECT(w.stored || w.begun);
    unsigned int out = 0;
    for (int e = 0; e < REMUS_CALL_EVENTS; e++)
        for (int m = 0; m < FACTS; m++) {
            struct remus_promote_facts f = facts_of(m);
            struct way to = w;
            if (f.forced != w.forced || (f.done && !f.begun) ||
                !remus_promote_step(&to.c, (enum remus_promote_event)e, &f))
                continue;
            out++;
            to.asked |= w.c.at == REMUS_CALL_ASKS;
            to.stored |= w.c.at == REMUS_CALL_STORES && e == REMUS_CALL_OK;
            to.begun |= w.c.at == REMUS_CALL_DECIDES && f.begun;
            walk(to, ways, ends);
        }
    EXPECT((out == 0) == over(w.c.at));
    *ends += over(w.c.at) != 0;
}

int main(void)
{
    unsigned int a = claims(), b = phases(), c = targets(), d = steps();
    unsigned int ways = 0, ends = 0;
    for (int forced = 0; forced < 2; forced++)
        walk((struct way){.c = {REMUS_CALL_LOOKS, forced}, .forced = forced},
             &ways, &ends);
    EXPECT(ends > 2);
    printf("%u claims x events, %u phases x events, %u targets, %u places x "
           "events x facts of a promote; its ways: %u places, %u ends\n",
           a, b, c, d, ways, ends);
    return 0;
}
