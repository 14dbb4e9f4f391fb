/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whether a primary writes, and what its connection is good for
 * (primary/steps.h): the link, going alone, authority and the public state,
 * walked through all states, events and facts.  What is asked here is what
 * must hold, not the tables once more.
 */
#include <string.h>

#include "primary/steps.h"
#include "steps.h"

/* ---- the link ----------------------------------------------------------- */

/* All that moves it, but for a loss: everything else can't be. */
static const struct {
    enum remus_link from;
    enum remus_link_event event;
    enum remus_link to;
} moves_of_link[] = {
    {REMUS_LINK_DOWN, REMUS_LINK_COMPARE, REMUS_LINK_COMPARING},
    {REMUS_LINK_DOWN, REMUS_LINK_COPY, REMUS_LINK_COPYING},
    {REMUS_LINK_DOWN, REMUS_LINK_CATCH_UP, REMUS_LINK_CATCHING_UP},
    {REMUS_LINK_DOWN, REMUS_LINK_REFUSED, REMUS_LINK_DOWN},
    {REMUS_LINK_COMPARING, REMUS_LINK_COPY, REMUS_LINK_COPYING},
    {REMUS_LINK_COMPARING, REMUS_LINK_CATCH_UP, REMUS_LINK_CATCHING_UP},
    {REMUS_LINK_COPYING, REMUS_LINK_COUNT, REMUS_LINK_CATCHING_UP},
    {REMUS_LINK_CATCHING_UP, REMUS_LINK_QUEUED, REMUS_LINK_CAUGHT_UP},
    {REMUS_LINK_CAUGHT_UP, REMUS_LINK_SAFE, REMUS_LINK_STREAMING},
};

/* Where it leads, or -1. */
static int leads(enum remus_link from, int event)
{
    if (event == REMUS_LINK_LOST)
        return REMUS_LINK_DOWN;
    for (size_t i = 0; i < sizeof moves_of_link / sizeof *moves_of_link; i++)
        if (moves_of_link[i].from == from &&
            (int)moves_of_link[i].event == event)
            return (int)moves_of_link[i].to;
    return -1;
}

static void one_link(struct remus_link_state before, int event,
                     const struct remus_link_facts *facts)
{
    struct remus_link_state s = before;
    unsigned int done =
        remus_link_step(&s, (enum remus_link_event)event, facts);
    int up = before.link != REMUS_LINK_DOWN;
    int begins = event <= REMUS_LINK_CATCH_UP;
    EXPECT(s.link < REMUS_LINKS);
    int to = leads(before.link, event);
    EXPECT(!(done & REMUS_DO_FORBIDDEN) == (to >= 0));
    EXPECT(to < 0 || (int)s.link == to);
    if (done & REMUS_DO_FORBIDDEN) {
        EXPECT(done == REMUS_DO_FORBIDDEN);
        EXPECT(s.link == before.link && s.had == before.had);
        EXPECT(event != REMUS_LINK_LOST);
        return;
    }
    /* A connection's state is new whenever there is a new connection. */
    EXPECT(!(done & REMUS_DO_RESET) == !(begins && !up));
    EXPECT(!(done & REMUS_DO_SETTLE) == !(done & REMUS_DO_RESET));
    /* The backup knows our generation from the first write that it takes. */
    EXPECT(!(done & REMUS_DO_SHARE) == !(before.link < REMUS_LINK_COPYING &&
                                         s.link >= REMUS_LINK_COPYING));
    /* Nobody waits for an ack that can't come, but where he wants to. */
    EXPECT(!(done & REMUS_DO_END_WAITS) ==
           !(event == REMUS_LINK_LOST && up && !facts->holds));
    if (event == REMUS_LINK_LOST)
        EXPECT(s.link == REMUS_LINK_DOWN);
    else
        EXPECT(s.link >= before.link);
    /* Protected is who was caught up, and only by a safe checkpoint. */
    if (s.link == REMUS_LINK_STREAMING && before.link != s.link)
        EXPECT(event == REMUS_LINK_SAFE &&
               before.link == REMUS_LINK_CAUGHT_UP);
    /* Parked writes look again when nobody takes them any more. */
    EXPECT(!(done & REMUS_DO_RESUME) == !(event == REMUS_LINK_LOST && up));
    /* What the map tells of is there to lose; and so is who answered. */
    if (event == REMUS_LINK_LOST && up && before.link < REMUS_LINK_STREAMING)
        EXPECT(s.had == facts->map_counts);
    else if (event == REMUS_LINK_REFUSED)
        EXPECT(s.had);
    else if (event != REMUS_LINK_LOST)
        EXPECT(s.had == before.had);
    /* Who was Protected has something to lose. */
    if (before.link == REMUS_LINK_STREAMING && event == REMUS_LINK_LOST)
        EXPECT(s.had);
}

static void link_steps(void)
{
    for (int link = 0; link < REMUS_LINKS; link++)
        for (int event = 0; event < REMUS_LINK_EVENTS; event++)
            for (unsigned int f = 0; f < 8; f++) {
                struct remus_link_state s = {(enum remus_link)link, bit(f, 0)};
                struct remus_link_facts facts = {bit(f, 1), bit(f, 2)};
                one_link(s, event, &facts);
            }
    counted("link", REMUS_LINKS * 2, REMUS_LINK_EVENTS, 4);
}

/* ---- going alone -------------------------------------------------------- */

/* What the two states and the facts come to. */
static void one_leave(const struct remus_alone *a,
                      const struct remus_alone_facts *f)
{
    enum remus_leave is = remus_leave(a, f);
    int no = a->word == REMUS_ALONE_WORD_REFUSED;
    int may = !f->ask || f->connected || f->answers ||
              a->word == REMUS_ALONE_WORD_GRANTED;
    switch (a->generation) {
    case REMUS_GENERATION_STORING:
        EXPECT(is == REMUS_LEAVE_STORING);
        return;
    case REMUS_GENERATION_OWN:
        /* What is ours already a refusal stops only where it was asked. */
        EXPECT(is == (may  ? REMUS_LEAVE_NOT_NEEDED
                      : no ? REMUS_LEAVE_REFUSED
                           : REMUS_LEAVE_WITHHELD));
        return;
    case REMUS_GENERATION_SHARED:
    case REMUS_GENERATION_FAILED:
        EXPECT(is == (no     ? REMUS_LEAVE_REFUSED
                      : !may ? REMUS_LEAVE_WITHHELD
                      : a->generation == REMUS_GENERATION_SHARED
                          ? REMUS_LEAVE_GRANTED
                          : REMUS_LEAVE_FAILED));
        return;
    }
}

static void one_alone(struct remus_alone before, int event,
                      const struct remus_alone_facts *facts)
{
    struct remus_alone a = before;
    enum remus_leave was = remus_leave(&before, facts);
    unsigned int done =
        remus_alone_step(&a, (enum remus_alone_event)event, facts);
    enum remus_leave is = remus_leave(&a, facts);
    int there = facts->connected || facts->answers;
    one_leave(&before, facts);
    EXPECT(was < REMUS_LEAVES && is < REMUS_LEAVES);
    if (done & REMUS_DO_FORBIDDEN) {
        EXPECT(!memcmp(&a, &before, sizeof a));
        return;
    }
    /* A write passes only in a generation that no backup knows ... */
    if (is == REMUS_LEAVE_NOT_NEEDED)
        EXPECT(a.generation == REMUS_GENERATION_OWN);
    /* ... that becomes ours by being stored, or since the backup says that it
     * never stored it, and by nothing else ... */
    if (a.generation == REMUS_GENERATION_OWN &&
        before.generation != REMUS_GENERATION_OWN)
        EXPECT((event == REMUS_ALONE_STORED &&
                before.generation == REMUS_GENERATION_STORING) ||
               (event == REMUS_ALONE_NEVER &&
                before.generation != REMUS_GENERATION_STORING));
    /* ... and with leave, where leave is to be asked for. */
    if (facts->ask && !there && a.word != REMUS_ALONE_WORD_GRANTED)
        EXPECT(is != REMUS_LEAVE_NOT_NEEDED && is != REMUS_LEAVE_GRANTED &&
               is != REMUS_LEAVE_FAILED);
    EXPECT(!(done & REMUS_DO_STORE) ==
           !(event == REMUS_ALONE_WRITE &&
             (was == REMUS_LEAVE_GRANTED || was == REMUS_LEAVE_FAILED)));
    /* The word counts for one outage. */
    if (event == REMUS_ALONE_SHARED)
        EXPECT(a.word == REMUS_ALONE_WORD_NONE &&
               a.generation == REMUS_GENERATION_SHARED);
    if (event == REMUS_ALONE_GRANT && facts->connected)
        EXPECT(a.word != REMUS_ALONE_WORD_GRANTED || before.word == a.word);
    if (event == REMUS_ALONE_GRANT)
        EXPECT(is != REMUS_LEAVE_REFUSED);
    if (event == REMUS_ALONE_REFUSE && facts->ask && !there)
        EXPECT(is == REMUS_LEAVE_REFUSED || is == REMUS_LEAVE_STORING);
    /* What changes for those who wait, they hear. */
    if (was != is && event != REMUS_ALONE_WRITE && event != REMUS_ALONE_SHARED)
        EXPECT(done & REMUS_DO_RESUME);
}

static void alone_steps(void)
{
    for (int word = 0; word < 3; word++)
        for (int generation = 0; generation < 4; generation++)
            for (int event = 0; event < REMUS_ALONE_EVENTS; event++)
                for (unsigned int f = 0; f < 8; f++) {
                    struct remus_alone a = {(enum remus_alone_word)word,
                                            (enum remus_generation)generation};
                    struct remus_alone_facts facts = {bit(f, 0), bit(f, 1),
                                                      bit(f, 2)};
                    one_alone(a, event, &facts);
                }
    counted("alone", 12, REMUS_ALONE_EVENTS, 8);
}

static void verdicts(void)
{
    for (int s = 0; s < REMUS_AUTHORITIES; s++)
        for (int leave = 0; leave < REMUS_LEAVES; leave++)
            for (unsigned int f = 0; f < 4; f++) {
                enum remus_authority a = (enum remus_authority)s;
                enum remus_verdict v = remus_write_verdict(
                    a, (enum remus_leave)leave, bit(f, 0), bit(f, 1));
                /* Fenced: nothing passes, whatever else is true. */
                EXPECT((v == REMUS_VERDICT_FENCED) ==
                       (remus_authority_fenced(a) != 0));
                if (v == REMUS_VERDICT_PASSES)
                    EXPECT(leave == REMUS_LEAVE_NOT_NEEDED);
                if (v == REMUS_VERDICT_WAITS)
                    EXPECT(leave != REMUS_LEAVE_REFUSED &&
                           leave != REMUS_LEAVE_NOT_NEEDED);
                EXPECT(!remus_leave_asks(a, (enum remus_leave)leave) ==
                       !((leave == REMUS_LEAVE_WITHHELD ||
                          leave == REMUS_LEAVE_REFUSED) &&
                         a <= REMUS_AUTHORITY_ASKED));
                /* Nobody waits for a close. */
                if (bit(f, 0))
                    EXPECT(v != REMUS_VERDICT_WAITS);
                /* Who waits for a word is one whom somebody is asked about,
                 * but in split brain. */
                if (remus_leave_asks(a, (enum remus_leave)leave))
                    EXPECT(v == REMUS_VERDICT_WAITS ||
                           v == REMUS_VERDICT_REFUSED);
            }
    counted("verdict", REMUS_AUTHORITIES * REMUS_LEAVES, 1, 4);
}

/* ---- who writes --------------------------------------------------------- */

/* What can't be: an answer without a question, a hello in the middle of it,
 * a connection of who is fenced. */
static int can_be(enum remus_authority s, int event)
{
    int fenced = remus_authority_fenced(s);
    switch (event) {
    case REMUS_EVENT_ANSWER:
        return s != REMUS_AUTHORITY_YIELDING &&
               s != REMUS_AUTHORITY_FAILED_AWAY && s != REMUS_AUTHORITY_SPLIT;
    case REMUS_EVENT_CHECKPOINTED:
    case REMUS_EVENT_NO_CHECKPOINT:
        return s == REMUS_AUTHORITY_YIELDING;
    case REMUS_EVENT_PROMOTED:
    case REMUS_EVENT_SPLIT:
        return s != REMUS_AUTHORITY_YIELDING;
    case REMUS_EVENT_CONNECTED:
        return !fenced;
    default:
        return 1;
    }
}

static void one_authority(enum remus_authority before, int event, int idle)
{
    enum remus_authority s = before;
    unsigned int done =
        remus_authority_step(&s, (enum remus_authority_event)event, idle);
    EXPECT(s < REMUS_AUTHORITIES);
    EXPECT(((done & REMUS_DO_FORBIDDEN) == 0) == can_be(before, event));
    if (done & REMUS_DO_FORBIDDEN) {
        EXPECT(done == REMUS_DO_FORBIDDEN && s == before);
        EXPECT(event != REMUS_EVENT_ASK);
        return;
    }
    /* Fenced for good: no way back but from a last checkpoint that failed. */
    if (remus_authority_fenced(before) && !remus_authority_fenced(s))
        EXPECT(before == REMUS_AUTHORITY_YIELDING &&
               event == REMUS_EVENT_NO_CHECKPOINT);
    /* Yes is said only by who is fenced, durably. */
    if (done & REMUS_DO_REPLY_YES)
        EXPECT(s == REMUS_AUTHORITY_YIELDED);
    if (s == REMUS_AUTHORITY_YIELDED && before != s)
        EXPECT(event == REMUS_EVENT_CHECKPOINTED);
    /* Nobody steps down under a guest. */
    if (!idle && (event == REMUS_EVENT_ASK || event == REMUS_EVENT_ANSWER) &&
        before != REMUS_AUTHORITY_YIELDED)
        EXPECT(done == REMUS_DO_REPLY_NO);
    EXPECT(!(done & REMUS_DO_LAST_CHECKPOINT) ==
           !(s == REMUS_AUTHORITY_YIELDING && before != s));
    EXPECT(!(done & REMUS_DO_FENCE) ==
           !(s == REMUS_AUTHORITY_FAILED_AWAY && before != s));
    /* The last checkpoint's end is an answer, and writes hear of it. */
    if (event == REMUS_EVENT_CHECKPOINTED)
        EXPECT(done == (REMUS_DO_REPLY_YES | REMUS_DO_RESUME));
    if (event == REMUS_EVENT_NO_CHECKPOINT)
        EXPECT(s == REMUS_AUTHORITY_WRITER &&
               done == (REMUS_DO_REPLY_NO | REMUS_DO_RESUME));
    /* Who hears that the other side went on waits for it no longer. */
    EXPECT(!(done & REMUS_DO_LET_GO) ==
           !((event == REMUS_EVENT_PROMOTED || event == REMUS_EVENT_SPLIT) &&
             (before != s || s == REMUS_AUTHORITY_SPLIT)));
    if (event == REMUS_EVENT_CONNECTED)
        EXPECT(s == REMUS_AUTHORITY_WRITER);
    /* Every question gets an answer, or the engine is woken for it. */
    if (event == REMUS_EVENT_ASK)
        EXPECT(done == REMUS_DO_REPLY_NO || done == REMUS_DO_WAKE_ENGINE);
    if (event == REMUS_EVENT_ANSWER)
        EXPECT(done == REMUS_DO_REPLY_NO || done == REMUS_DO_REPLY_YES ||
               done == REMUS_DO_LAST_CHECKPOINT);
}

static void authority_steps(void)
{
    for (int s = 0; s < REMUS_AUTHORITIES; s++)
        for (int event = 0; event < REMUS_AUTHORITY_EVENTS; event++)
            for (int idle = 0; idle < 2; idle++)
                one_authority((enum remus_authority)s, event, idle);
    counted("authority", REMUS_AUTHORITIES, REMUS_AUTHORITY_EVENTS, 2);
}

/* ---- the public state: all that can be reached ---------------------------- */

struct whole {
    enum remus_authority authority;
    struct remus_link_state link;
};

static unsigned char seen[REMUS_AUTHORITIES][REMUS_LINKS][2];
static unsigned int reached, moves;

static void visit(struct whole w);

static int public(const struct whole *w)
{
    return remus_primary_public_state(w->authority, &w->link);
}

static void move(const struct whole *from, struct whole to)
{
    moves++;
    int a = public(from), b = public(&to);
    if (a != b && !remus_state_follows(REMUS_ROLE_PRIMARY, a, b)) {
        fprintf(stderr, "%s is followed by %s\n", remus_state_name(a),
                remus_state_name(b));
        exit(1);
    }
    visit(to);
}

static void visit_link(struct whole w)
{
    for (int event = 0; event < REMUS_LINK_EVENTS; event++)
        for (unsigned int f = 0; f < 4; f++) {
            struct whole to = w;
            struct remus_link_facts facts = {bit(f, 0), bit(f, 1)};
            /* Its end must have come from a map that counts. */
            if (w.link.link == REMUS_LINK_STREAMING && !facts.map_counts)
                continue;
            if (event <= REMUS_LINK_CATCH_UP &&
                w.link.link == REMUS_LINK_DOWN) {
                /* Who is fenced says no hello. */
                if (remus_authority_fenced(w.authority))
                    continue;
                EXPECT(!(remus_authority_step(&to.authority,
                                              REMUS_EVENT_CONNECTED, 0) &
                         REMUS_DO_FORBIDDEN));
            }
            if (remus_link_step(&to.link, (enum remus_link_event)event,
                                &facts) &
                REMUS_DO_FORBIDDEN)
                continue;
            move(&w, to);
        }
}

static void visit(struct whole w)
{
    unsigned char *been = &seen[w.authority][w.link.link][w.link.had != 0];
    if (*been)
        return;
    *been = 1;
    reached++;
    visit_link(w);
    int up = w.link.link != REMUS_LINK_DOWN;
    for (int event = 0; event < REMUS_AUTHORITY_EVENTS; event++)
        for (int idle = 0; idle < 2; idle++) {
            struct whole to = w;
            int hello =
                event == REMUS_EVENT_PROMOTED || event == REMUS_EVENT_SPLIT;
            if (event == REMUS_EVENT_CONNECTED || (hello && up) ||
                (event == REMUS_EVENT_ASK && !up) ||
                (idle && w.link.link != REMUS_LINK_STREAMING && !hello) ||
                /* The one thread that could hear it is taking the last
                 * checkpoint. */
                (hello && w.authority == REMUS_AUTHORITY_YIELDING))
                continue;
            if (remus_authority_step(&to.authority,
                                     (enum remus_authority_event)event, idle) &
                REMUS_DO_FORBIDDEN)
                continue;
            move(&w, to);
        }
}

static void public_states(void)
{
    visit((struct whole){.authority = REMUS_AUTHORITY_WRITER});
    EXPECT(reached == 25);
    printf("public     %u of %u states are reached by %u moves\n", reached,
           REMUS_AUTHORITIES * REMUS_LINKS * 2, moves);
}

int main(void)
{
    link_steps();
    alone_steps();
    verdicts();
    authority_steps();
    public_states();
    return 0;
}
