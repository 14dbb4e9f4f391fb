/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A backup's decisions, over all states and events: what its role may become,
 * what it takes, who may commit, how old a checkpoint is, what its status is
 * derived from, and what a primary hears of which nothing is taken.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/answer.h"
#include "backup/may_commit.h"
#include "backup/state.h"
#include "base/error.h"
#include "format/moment.h"
#include "expect.h"

static int fresh(uint32_t role)
{
    return role == REMUS_SUPER_EMPTY || role == REMUS_SUPER_COPYING;
}

/* ---- roles ------------------------------------------------------------------ */

static unsigned int roles(void)
{
    unsigned int pairs = 0;
    for (uint32_t r = 0; r < REMUS_SUPER_ROLES; r++)
        for (int e = 0; e < REMUS_ROLE_EVENTS; e++, pairs++) {
            enum remus_role_event event = (enum remus_role_event)e;
            int to = remus_role_next(r, event);
            EXPECT(to >= -1 && to < REMUS_SUPER_ROLES);
            struct remus_super s = {.role = r}, before = s;
            EXPECT((remus_super_change(&s, event) == 0) == (to >= 0));
            EXPECT(to >= 0 ? s.role == (uint32_t)to : s.role == before.role);
            if (to < 0)
                continue;
            /* A promote that was begun can only be finished, and then the
             * disks are nobody's but a primary's. */
            if (r == REMUS_SUPER_PROMOTING)
                EXPECT(event == REMUS_ROLE_FINISH);
            if (r == REMUS_SUPER_PROMOTED || r == REMUS_SUPER_LEFT)
                EXPECT(event == REMUS_ROLE_LEAVE || event == REMUS_ROLE_FIND);
            /* Nothing becomes consistent but by a commit, or as it was left. */
            if (to == REMUS_SUPER_BACKUP)
                EXPECT(event == REMUS_ROLE_APPLY ||
                       (r == REMUS_SUPER_BACKUP && event == REMUS_ROLE_ADOPT));
            if (to == REMUS_SUPER_PROMOTING)
                EXPECT(remus_super_follows(r) || r == REMUS_SUPER_FOREIGN);
            if (to == REMUS_SUPER_SYNCED)
                EXPECT(r == REMUS_SUPER_COPYING || r == REMUS_SUPER_SYNCED);
            /* Only who has nothing, or is to lose what it has, is found. */
            if (event == REMUS_ROLE_FIND)
                EXPECT(to == REMUS_SUPER_FOREIGN && !remus_super_follows(r) &&
                       r != REMUS_SUPER_PROMOTING);
        }
    EXPECT(remus_role_next(REMUS_SUPER_ROLES, REMUS_ROLE_COPY) == -1);
    EXPECT(remus_role_next(0, REMUS_ROLE_EVENTS) == -1);
    return pairs;
}

/* Whose the disks were is kept until they are written to. */
static void left(void)
{
    struct remus_super s = {.role = REMUS_SUPER_FOREIGN}, was;
    memset(s.lineage.id, 'a', REMUS_ID_BYTES);
    s.lineage.count = 1;
    memset(s.lineage.ancestor[0].id, 'z', REMUS_ID_BYTES);
    s.lineage.ancestor[0].end = 5;
    was = s;
    remus_super_as_left(&s);
    EXPECT(!memcmp(&s.lineage, &was.lineage, sizeof s.lineage));
    EXPECT(remus_super_change(&s, REMUS_ROLE_ADOPT) == 0);
    unsigned char b[REMUS_ID_BYTES];
    memset(b, 'b', sizeof b);
    remus_lineage_push(&s.lineage, b, 9); /* the new primary's */
    struct remus_super joined = s;
    EXPECT(remus_super_change(&s, REMUS_ROLE_ADOPT) == 0); /* it came again */
    remus_super_as_left(&s);
    EXPECT(!memcmp(&s.lineage, &was.lineage, sizeof s.lineage));
    EXPECT(remus_super_change(&joined, REMUS_ROLE_APPLY) == 0);
    EXPECT(joined.role == REMUS_SUPER_BACKUP);
    unsigned char none[REMUS_ID_BYTES] = {0};
    EXPECT(!memcmp(joined.promoted_generation, none, sizeof none));
}

/* ---- what is taken ------------------------------------------------------------ */

static unsigned int takes(void)
{
    unsigned int n = 0;
    for (uint32_t r = 0; r < REMUS_SUPER_ROLES; r++)
        for (int p = 0; p < REMUS_AT_PHASES; p++)
            for (int k = 0; k < REMUS_REQUEST_KINDS; k++, n++) {
                enum remus_backup_phase phase = (enum remus_backup_phase)p;
                enum remus_request_kind kind = (enum remus_request_kind)k;
                enum remus_taken t = remus_backup_takes(r, phase, kind);
                int yes = t == REMUS_TAKEN_YES;
                int streams =
                    p == REMUS_AT_CATCHING || p == REMUS_AT_STREAMING;
                EXPECT(*remus_request_kind_name(kind) != '?');
                if (t == REMUS_TAKEN_NO) {
                    EXPECT(remus_backup_refuses(r, phase, kind, NULL) ==
                           -EBADMSG);
                    EXPECT(strstr(remus_last_error(), "refused"));
                }
                if (kind >= REMUS_CALLS_COMMIT) { /* whatever the phase is */
                    EXPECT(t == remus_backup_takes(r, REMUS_AT_NOBODY, kind));
                    continue;
                }
                if (kind == REMUS_ASKS_STRANGE)
                    EXPECT(t == REMUS_TAKEN_NO);
                if (p == REMUS_AT_NOBODY && kind != REMUS_ASKS_HELLO)
                    EXPECT(t == REMUS_TAKEN_NO);
                if (kind == REMUS_ASKS_COUNTED || kind == REMUS_ASKS_BARRIER)
                    EXPECT(yes == (streams && remus_super_follows(r)));
                /* What writes to the disks at once needs disks that are
                 * Inconsistent; what makes them so, that nothing is lost by
                 * it, or that it is moved into them first. */
                if (kind == REMUS_ASKS_DIRECT)
                    EXPECT(yes == (p == REMUS_AT_COPYING &&
                                   r == REMUS_SUPER_COPYING));
                if (kind == REMUS_ASKS_BEGIN)
                    EXPECT(yes == (p == REMUS_AT_GREETED && fresh(r)));
                if (kind == REMUS_ASKS_PARTIAL && yes)
                    EXPECT(p == REMUS_AT_GREETED && !fresh(r));
                if (t == REMUS_TAKEN_VOID)
                    EXPECT(kind == REMUS_ASKS_COMMIT ||
                           kind == REMUS_ASKS_TOLD);
            }
    return n;
}

/* Each type and step is one of the kinds, and the right one. */
static void kinds(void)
{
    unsigned int strange = 0;
    for (unsigned int type = 1; type < REMUS_REC_TYPES; type++) {
        struct remus_record r = {.type = (uint8_t)type};
        strange += remus_request_kind_of(&r) == REMUS_ASKS_STRANGE;
    }
    /* RESYNC without a step is one of them. */
    EXPECT(strange == 6);
    struct remus_record direct = {.type = REMUS_REC_ZERO,
                                  .flags = REMUS_REC_DIRECT};
    EXPECT(remus_request_kind_of(&direct) == REMUS_ASKS_DIRECT);
}

/* ---- who may commit ------------------------------------------------------------- */

static unsigned int commits(void)
{
    unsigned int n = 0;
    for (int i = 0; i < REMUS_WORDS * 2 * 2 * 3; i++, n++) {
        struct remus_commit_case c = {.word = (enum remus_word)(i / 12),
                                      .by_backup = i / 6 % 2,
                                      .memory = i / 3 % 2,
                                      .epoch = 7,
                                      .pin = (uint64_t[]){0, 7, 6}[i % 3]};
        int counts =
            !(c.word == REMUS_WORD_PRIMARY && c.by_backup && c.memory);
        EXPECT(remus_backup_may_commit(&c) ==
               (!counts      ? REMUS_COMMIT_NOT_ITS_WORD
                : c.pin == 6 ? REMUS_COMMIT_PINNED
                             : REMUS_COMMIT_YES));
    }
    return n;
}

/* ---- how old ---------------------------------------------------------------------- */

static void ages(void)
{
    const uint64_t s = 1000000000u;
    struct remus_moment never = {.wall_s = 0};
    struct remus_moment a = {{1}, 100 * s, 5000}, b = {{1}, 160 * s, 4000};
    struct remus_moment other = {{2}, 10 * s, 5100};
    struct remus_moment blind = {{0}, 10 * s, 5100};
    EXPECT(!remus_moment_known(&never) && remus_moment_known(&a));
    EXPECT(remus_moment_age_s(&never, &a) == REMUS_LONG_AGO);
    /* Within a boot nobody's clock counts but that of the boot. */
    EXPECT(remus_moment_age_s(&a, &b) == 60);
    EXPECT(remus_moment_age_s(&b, &a) == REMUS_LONG_AGO);
    EXPECT(remus_moment_age_s(&a, &a) == 0);
    EXPECT(remus_moment_age_s(&a, &other) == 100);
    EXPECT(remus_moment_age_s(&other, &a) == REMUS_LONG_AGO);
    EXPECT(remus_moment_age_s(&a, &blind) == 100);
    EXPECT(remus_moment_age_s(&blind, &blind) == 0);
}

/* ---- the public state -------------------------------------------------------------- */

static unsigned int states(void)
{
    unsigned int n = 0;
    for (uint32_t r = 0; r < REMUS_SUPER_ROLES; r++)
        for (int p = 0; p < REMUS_AT_PHASES; p++)
            for (int m = 0; m < 3 * 8; m++, n++) {
                const struct remus_backup_facts f = {
                    .role = r,
                    .phase = (enum remus_backup_phase)p,
                    .met = (enum remus_met)(m / 8),
                    .failed = m / 4 % 2,
                    .connected = m / 2 % 2,
                    .consistent = m % 2};
                int state = remus_backup_public_state(&f);
                if (f.failed) {
                    EXPECT(state == REMUS_STATE_FAILED);
                    continue;
                }
                /* Safe is only said of what can be had and is fed. */
                if (state == REMUS_STATE_PROTECTED)
                    EXPECT(f.connected && f.consistent &&
                           p == REMUS_AT_STREAMING &&
                           r != REMUS_SUPER_PROMOTED);
                /* What streams is on its way to be whole. */
                if (state == REMUS_STATE_INCONSISTENT)
                    EXPECT(!f.consistent && p != REMUS_AT_STREAMING);
                if (state == REMUS_STATE_STANDBY)
                    EXPECT(f.consistent);
                EXPECT((state == REMUS_STATE_PROMOTING) ==
                       (r == REMUS_SUPER_PROMOTING));
                if (r != REMUS_SUPER_PROMOTING)
                    EXPECT((state == REMUS_STATE_SPLIT_BRAIN) ==
                           (f.met == REMUS_MET_SPLIT));
                if (state == REMUS_STATE_PROMOTED)
                    EXPECT(r == REMUS_SUPER_PROMOTED);
            }
    return n;
}

/* ---- the answer no -------------------------------------------------------------------- */

static struct remus_lineage line(const char *ids)
{
    struct remus_lineage l = {.count = (uint32_t)strlen(ids) - 1};
    memset(l.id, ids[0], REMUS_ID_BYTES);
    for (uint32_t i = 0; i < l.count; i++) {
        memset(l.ancestor[i].id, ids[i + 1], REMUS_ID_BYTES);
        l.ancestor[i].end = 100 - 10 * i;
    }
    return l;
}

/* The content, and the first letter of `origin`. */
static int answer(const char *ours, uint64_t held, const char *theirs,
                  char *origin, uint64_t *at)
{
    struct remus_lineage a = line(ours), b = line(theirs);
    struct remus_hello_reply reply = {.version = REMUS_WIRE_VERSION};
    int err = remus_answer_no(&a, held, &b, &reply);
    *origin = (char)reply.origin[0];
    *at = reply.held;
    return err ? err : (int)reply.content;
}

static void answers(void)
{
    char origin;
    uint64_t at;
    EXPECT(answer("ba", 0, "a", &origin, &at) == REMUS_CONTENT_PROMOTED);
    EXPECT(origin == 'a' && at == 100);
    EXPECT(answer("cba", 0, "a", &origin, &at) == REMUS_CONTENT_PROMOTED);
    EXPECT(origin == 'a' && at == 90);
    EXPECT(answer("ba", 0, "ca", &origin, &at) == REMUS_CONTENT_SPLIT);
    EXPECT(origin == 'a' && at == 100);
    EXPECT(answer("ba", 0, "x", &origin, &at) == REMUS_CONTENT_PROMOTED);
    EXPECT(origin == 'a'); /* which it does not know */
    EXPECT(answer("a", 0, "a", &origin, &at) == -EROFS);
    EXPECT(answer("a", 0, "ba", &origin, &at) == -EROFS);
    EXPECT(answer("a", 100, "ba", &origin, &at) == -EROFS);
    EXPECT(answer("a", 101, "ba", &origin, &at) == REMUS_CONTENT_SPLIT);
    EXPECT(origin == 'a');
}

int main(void)
{
    unsigned int a = roles(), b = takes(), c = commits(), d = states();
    left();
    kinds();
    ages();
    answers();
    printf("%u roles x events, %u roles x phases x requests, %u commits, %u "
           "states\n",
           a, b, c, d);
    return 0;
}
