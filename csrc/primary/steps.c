/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A primary's decisions, as tables and pure functions (see steps.h). */
#include "primary/steps.h"

#include "format/record.h"

/* ---- the link ----------------------------------------------------------- */

#define NO (-1) /* can't be */

/* Where an event leads. */
static const signed char links[REMUS_LINKS][REMUS_LINK_EVENTS] = {
    [REMUS_LINK_DOWN] = {[REMUS_LINK_COMPARE] = REMUS_LINK_COMPARING,
                         [REMUS_LINK_COPY] = REMUS_LINK_COPYING,
                         [REMUS_LINK_CATCH_UP] = REMUS_LINK_CATCHING_UP,
                         [REMUS_LINK_COUNT] = NO,
                         [REMUS_LINK_QUEUED] = NO,
                         [REMUS_LINK_SAFE] = NO,
                         [REMUS_LINK_REFUSED] = REMUS_LINK_DOWN,
                         [REMUS_LINK_LOST] = REMUS_LINK_DOWN},
    [REMUS_LINK_COMPARING] = {[REMUS_LINK_COMPARE] = NO,
                              [REMUS_LINK_COPY] = REMUS_LINK_COPYING,
                              [REMUS_LINK_CATCH_UP] = REMUS_LINK_CATCHING_UP,
                              [REMUS_LINK_COUNT] = NO,
                              [REMUS_LINK_QUEUED] = NO,
                              [REMUS_LINK_SAFE] = NO,
                              [REMUS_LINK_REFUSED] = NO,
                              [REMUS_LINK_LOST] = REMUS_LINK_DOWN},
    [REMUS_LINK_COPYING] = {[REMUS_LINK_COMPARE] = NO,
                            [REMUS_LINK_COPY] = NO,
                            [REMUS_LINK_CATCH_UP] = NO,
                            [REMUS_LINK_COUNT] = REMUS_LINK_CATCHING_UP,
                            [REMUS_LINK_QUEUED] = NO,
                            [REMUS_LINK_SAFE] = NO,
                            [REMUS_LINK_REFUSED] = NO,
                            [REMUS_LINK_LOST] = REMUS_LINK_DOWN},
    [REMUS_LINK_CATCHING_UP] = {[REMUS_LINK_COMPARE] = NO,
                                [REMUS_LINK_COPY] = NO,
                                [REMUS_LINK_CATCH_UP] = NO,
                                [REMUS_LINK_COUNT] = NO,
                                [REMUS_LINK_QUEUED] = REMUS_LINK_CAUGHT_UP,
                                [REMUS_LINK_SAFE] = NO,
                                [REMUS_LINK_REFUSED] = NO,
                                [REMUS_LINK_LOST] = REMUS_LINK_DOWN},
    [REMUS_LINK_CAUGHT_UP] = {[REMUS_LINK_COMPARE] = NO,
                              [REMUS_LINK_COPY] = NO,
                              [REMUS_LINK_CATCH_UP] = NO,
                              [REMUS_LINK_COUNT] = NO,
                              [REMUS_LINK_QUEUED] = NO,
                              [REMUS_LINK_SAFE] = REMUS_LINK_STREAMING,
                              [REMUS_LINK_REFUSED] = NO,
                              [REMUS_LINK_LOST] = REMUS_LINK_DOWN},
    [REMUS_LINK_STREAMING] = {[REMUS_LINK_COMPARE] = NO,
                              [REMUS_LINK_COPY] = NO,
                              [REMUS_LINK_CATCH_UP] = NO,
                              [REMUS_LINK_COUNT] = NO,
                              [REMUS_LINK_QUEUED] = NO,
                              [REMUS_LINK_SAFE] = NO,
                              [REMUS_LINK_REFUSED] = NO,
                              [REMUS_LINK_LOST] = REMUS_LINK_DOWN},
};

/* A loss in the middle of a first copy: there was nothing to lose. */
static int nothing_lost(enum remus_link was,
                        const struct remus_link_facts *facts)
{
    return was < REMUS_LINK_STREAMING && !facts->map_counts;
}

unsigned int remus_link_step(struct remus_link_state *s,
                             enum remus_link_event event,
                             const struct remus_link_facts *facts)
{
    enum remus_link was = s->link;
    int to = links[was][event];
    if (to == NO)
        return REMUS_DO_FORBIDDEN;
    s->link = (enum remus_link)to;
    switch (event) {
    case REMUS_LINK_COMPARE:
        return REMUS_DO_RESET | REMUS_DO_SETTLE;
    case REMUS_LINK_COPY:
    case REMUS_LINK_CATCH_UP:
        return was == REMUS_LINK_DOWN
                   ? REMUS_DO_RESET | REMUS_DO_SETTLE | REMUS_DO_SHARE
                   : REMUS_DO_SHARE;
    case REMUS_LINK_REFUSED:
        s->had = 1;
        return 0;
    case REMUS_LINK_LOST:
        if (was == REMUS_LINK_DOWN)
            return 0;
        s->had = !nothing_lost(was, facts);
        return facts->holds ? REMUS_DO_RESUME
                            : REMUS_DO_RESUME | REMUS_DO_END_WAITS;
    default:
        return 0;
    }
}

/* ---- going alone -------------------------------------------------------- */

enum remus_leave remus_leave(const struct remus_alone *a,
                             const struct remus_alone_facts *facts)
{
    int may = !facts->ask || a->word == REMUS_ALONE_WORD_GRANTED ||
              facts->connected || facts->answers;
    switch (a->generation) {
    case REMUS_GENERATION_STORING:
        return REMUS_LEAVE_STORING;
    case REMUS_GENERATION_OWN:
        if (may)
            return REMUS_LEAVE_NOT_NEEDED;
        break;
    case REMUS_GENERATION_FAILED:
        if (may && a->word != REMUS_ALONE_WORD_REFUSED)
            return REMUS_LEAVE_FAILED;
        break;
    case REMUS_GENERATION_SHARED:
        if (may && a->word != REMUS_ALONE_WORD_REFUSED)
            return REMUS_LEAVE_GRANTED;
        break;
    }
    return a->word == REMUS_ALONE_WORD_REFUSED ? REMUS_LEAVE_REFUSED
                                               : REMUS_LEAVE_WITHHELD;
}

unsigned int remus_alone_step(struct remus_alone *a,
                              enum remus_alone_event event,
                              const struct remus_alone_facts *facts)
{
    enum remus_leave leave = remus_leave(a, facts);
    int storing = a->generation == REMUS_GENERATION_STORING;
    switch (event) {
    case REMUS_ALONE_GRANT:
        /* While one is connected it is too late for the outage that it was
         * about; but it takes a refusal back. */
        if (!facts->connected)
            a->word = REMUS_ALONE_WORD_GRANTED;
        else if (a->word == REMUS_ALONE_WORD_REFUSED)
            a->word = REMUS_ALONE_WORD_NONE;
        return REMUS_DO_RESUME;
    case REMUS_ALONE_REFUSE:
        a->word = REMUS_ALONE_WORD_REFUSED;
        return REMUS_DO_RESUME;
    case REMUS_ALONE_WRITE:
        if (leave != REMUS_LEAVE_GRANTED && leave != REMUS_LEAVE_FAILED)
            return 0;
        a->generation = REMUS_GENERATION_STORING;
        return REMUS_DO_STORE;
    case REMUS_ALONE_STORED:
    case REMUS_ALONE_NOT_STORED:
        if (!storing)
            return REMUS_DO_FORBIDDEN;
        a->generation = event == REMUS_ALONE_STORED ? REMUS_GENERATION_OWN
                                                    : REMUS_GENERATION_FAILED;
        return REMUS_DO_RESUME;
    case REMUS_ALONE_SHARED:
        /* No connection begins with a generation that is about to end. */
        if (storing)
            return REMUS_DO_FORBIDDEN;
        a->word = REMUS_ALONE_WORD_NONE;
        a->generation = REMUS_GENERATION_SHARED;
        return 0;
    case REMUS_ALONE_NEVER:
        if (storing)
            return REMUS_DO_FORBIDDEN;
        a->generation = REMUS_GENERATION_OWN;
        return REMUS_DO_RESUME;
    case REMUS_ALONE_EVENTS:
        break;
    }
    return REMUS_DO_FORBIDDEN;
}

/* ---- who writes --------------------------------------------------------- */

#define WRITER REMUS_AUTHORITY_WRITER
#define ASKED REMUS_AUTHORITY_ASKED
#define YIELDING REMUS_AUTHORITY_YIELDING
#define YIELDED REMUS_AUTHORITY_YIELDED
#define AWAY REMUS_AUTHORITY_FAILED_AWAY
#define SPLIT REMUS_AUTHORITY_SPLIT

struct authority_row {
    enum remus_authority to;
    unsigned int effects;
};

#define STAY(s, effects)                                                      \
    {                                                                         \
        s, effects                                                            \
    }
#define NEVER(s)                                                              \
    {                                                                         \
        s, REMUS_DO_FORBIDDEN                                                 \
    }

/* Two rows for what depends on being idle: no writer, no session, Protected. */
static const struct authority_row asks[2][REMUS_AUTHORITIES] = {
    {[WRITER] = {WRITER, REMUS_DO_REPLY_NO},
     [ASKED] = {ASKED, REMUS_DO_REPLY_NO},
     [YIELDING] = {YIELDING, REMUS_DO_REPLY_NO},
     [YIELDED] = {YIELDED, REMUS_DO_WAKE_ENGINE},
     [AWAY] = {AWAY, REMUS_DO_REPLY_NO},
     [SPLIT] = {SPLIT, REMUS_DO_REPLY_NO}},
    {[WRITER] = {ASKED, REMUS_DO_WAKE_ENGINE},
     [ASKED] = {ASKED, REMUS_DO_WAKE_ENGINE},
     [YIELDING] = {YIELDING, REMUS_DO_WAKE_ENGINE},
     [YIELDED] = {YIELDED, REMUS_DO_WAKE_ENGINE},
     [AWAY] = {AWAY, REMUS_DO_REPLY_NO},
     [SPLIT] = {SPLIT, REMUS_DO_REPLY_NO}},
};

/* WRITER: it was asked again while a last checkpoint failed. */
static const struct authority_row answers[2][REMUS_AUTHORITIES] = {
    {[WRITER] = {WRITER, REMUS_DO_REPLY_NO},
     [ASKED] = {WRITER, REMUS_DO_REPLY_NO},
     [YIELDING] = NEVER(YIELDING),
     [YIELDED] = {YIELDED, REMUS_DO_REPLY_YES},
     [AWAY] = NEVER(AWAY),
     [SPLIT] = NEVER(SPLIT)},
    {[WRITER] = {YIELDING, REMUS_DO_LAST_CHECKPOINT},
     [ASKED] = {YIELDING, REMUS_DO_LAST_CHECKPOINT},
     [YIELDING] = NEVER(YIELDING),
     [YIELDED] = {YIELDED, REMUS_DO_REPLY_YES},
     [AWAY] = NEVER(AWAY),
     [SPLIT] = NEVER(SPLIT)},
};

static const struct authority_row
    others[REMUS_AUTHORITY_EVENTS][REMUS_AUTHORITIES] = {
        [REMUS_EVENT_CHECKPOINTED] = {[WRITER] = NEVER(WRITER),
                                      [ASKED] = NEVER(ASKED),
                                      [YIELDING] = {YIELDED,
                                                    REMUS_DO_REPLY_YES |
                                                        REMUS_DO_RESUME},
                                      [YIELDED] = NEVER(YIELDED),
                                      [AWAY] = NEVER(AWAY),
                                      [SPLIT] = NEVER(SPLIT)},
        [REMUS_EVENT_NO_CHECKPOINT] = {[WRITER] = NEVER(WRITER),
                                       [ASKED] = NEVER(ASKED),
                                       [YIELDING] = {WRITER,
                                                     REMUS_DO_REPLY_NO |
                                                         REMUS_DO_RESUME},
                                       [YIELDED] = NEVER(YIELDED),
                                       [AWAY] = NEVER(AWAY),
                                       [SPLIT] = NEVER(SPLIT)},
        /* A hello is heard by the engine, which has no question open then,
         * and says no hello once it is fenced. */
        [REMUS_EVENT_PROMOTED] =
            {[WRITER] = {AWAY, REMUS_DO_FENCE | REMUS_DO_LET_GO},
             [ASKED] = {AWAY, REMUS_DO_FENCE | REMUS_DO_LET_GO},
             [YIELDING] = NEVER(YIELDING),
             [YIELDED] = STAY(YIELDED, 0),
             [AWAY] = STAY(AWAY, 0),
             [SPLIT] = {AWAY, REMUS_DO_FENCE | REMUS_DO_LET_GO}},
        [REMUS_EVENT_SPLIT] = {[WRITER] = {SPLIT, REMUS_DO_LET_GO},
                               [ASKED] = {SPLIT, REMUS_DO_LET_GO},
                               [YIELDING] = NEVER(YIELDING),
                               [YIELDED] = STAY(YIELDED, 0),
                               [AWAY] = STAY(AWAY, 0),
                               [SPLIT] = STAY(SPLIT, REMUS_DO_LET_GO)},
        /* A question goes with its connection; a choice was made. */
        [REMUS_EVENT_CONNECTED] = {[WRITER] = STAY(WRITER, 0),
                                   [ASKED] = {WRITER, 0},
                                   [YIELDING] = NEVER(YIELDING),
                                   [YIELDED] = NEVER(YIELDED),
                                   [AWAY] = NEVER(AWAY),
                                   [SPLIT] = {WRITER, 0}},
};

unsigned int remus_authority_step(enum remus_authority *s,
                                  enum remus_authority_event event, int idle)
{
    const struct authority_row *row = &others[event][*s];
    if (event == REMUS_EVENT_ASK)
        row = &asks[idle != 0][*s];
    else if (event == REMUS_EVENT_ANSWER)
        row = &answers[idle != 0][*s];
    *s = row->to;
    return row->effects;
}

int remus_authority_fenced(enum remus_authority s)
{
    return s == YIELDING || s == YIELDED || s == AWAY;
}

enum remus_verdict remus_write_verdict(enum remus_authority authority,
                                       enum remus_leave leave, int closing,
                                       int failed_now)
{
    if (remus_authority_fenced(authority))
        return REMUS_VERDICT_FENCED;
    if (leave == REMUS_LEAVE_NOT_NEEDED)
        return REMUS_VERDICT_PASSES;
    if (leave == REMUS_LEAVE_FAILED && failed_now)
        return REMUS_VERDICT_FAILED;
    if (leave == REMUS_LEAVE_REFUSED || closing)
        return REMUS_VERDICT_REFUSED;
    return REMUS_VERDICT_WAITS;
}

int remus_leave_asks(enum remus_authority authority, enum remus_leave leave)
{
    return (leave == REMUS_LEAVE_WITHHELD || leave == REMUS_LEAVE_REFUSED) &&
           authority != SPLIT && !remus_authority_fenced(authority);
}

/* ---- the state that users see ------------------------------------------- */

int remus_primary_public_state(enum remus_authority authority,
                               const struct remus_link_state *link)
{
    if (authority == YIELDED || authority == AWAY)
        return REMUS_STATE_FENCED;
    if (authority == SPLIT)
        return REMUS_STATE_SPLIT_BRAIN;
    if (link->link == REMUS_LINK_DOWN)
        return link->had ? REMUS_STATE_UNPROTECTED : REMUS_STATE_CONNECTING;
    return link->link == REMUS_LINK_STREAMING ? REMUS_STATE_PROTECTED
                                              : REMUS_STATE_CATCHING_UP;
}

/* ---- sessions ----------------------------------------------------------- */

#define ENGINE REMUS_SESSION_ENGINE
#define TOOLSTACK REMUS_SESSION_TOOLSTACK
#define GRACE REMUS_SESSION_GRACE
#define TAKEN REMUS_SESSION_TAKEN_OVER

static const unsigned char sessions[REMUS_SESSIONS][REMUS_SESSION_EVENTS] = {
    /*          opens      ends    closes  grace ends  committed */
    [ENGINE] = {TOOLSTACK, ENGINE, GRACE, ENGINE, ENGINE},
    [TOOLSTACK] = {TOOLSTACK, TAKEN, GRACE, TOOLSTACK, TOOLSTACK},
    [GRACE] = {TOOLSTACK, TAKEN, GRACE, TAKEN, GRACE},
    [TAKEN] = {TOOLSTACK, TAKEN, GRACE, TAKEN, ENGINE},
};

enum remus_session remus_session_step(enum remus_session s,
                                      enum remus_session_event event)
{
    return (enum remus_session)sessions[s][event];
}

int remus_engine_due(const struct remus_due_facts *f)
{
    int pressed = f->pressed && f->written;
    if (f->over || f->link < REMUS_LINK_CAUGHT_UP)
        return 0;
    if (f->link == REMUS_LINK_CAUGHT_UP) {
        if (f->on_its_way)
            return 0;
        if (f->direct)
            return 1; /* there is no older checkpoint to keep */
    }
    if (f->session == TOOLSTACK)
        return 0;
    if (f->session == GRACE)
        return pressed;
    if (pressed || f->link == REMUS_LINK_CAUGHT_UP)
        return 1;
    return (f->written || f->uncommitted) && f->idle_over;
}

/* ---- commits ------------------------------------------------------------ */

/*
 * commit_by = "backup": only the backup's word counts, but for what nobody
 * can name: checkpoints of the engine, and what is left of a session that is
 * over.
 */
static enum remus_commit may_say(enum remus_committer who,
                                 const struct remus_commit_facts *f)
{
    if (!f->by_backup)
        return REMUS_COMMIT_SEND;
    if (who != REMUS_COMMITTER_ENGINE)
        return REMUS_COMMIT_NOTHING;
    if (f->own || f->session == TAKEN || f->session == ENGINE)
        return REMUS_COMMIT_SEND;
    return REMUS_COMMIT_KEEP;
}

enum remus_commit remus_commit_step(enum remus_committer who,
                                    const struct remus_commit_facts *f)
{
    enum remus_commit word = may_say(who, f);
    if (word != REMUS_COMMIT_SEND)
        return word;
    if (f->link == REMUS_LINK_DOWN)
        return REMUS_COMMIT_LATER;
    if (f->before_copy || f->link == REMUS_LINK_COPYING)
        return REMUS_COMMIT_VOID;
    return REMUS_COMMIT_SEND;
}

/* ---- a backup that answered --------------------------------------------- */

/* It takes no writes of ours: why? */
static enum remus_plan plan_apart(const struct remus_offer *o)
{
    if (o->content != REMUS_CONTENT_PROMOTED)
        return REMUS_PLAN_SPLIT;
    if (o->origin == REMUS_ORIGIN_OURS)
        return REMUS_PLAN_FENCE;
    return o->origin == REMUS_ORIGIN_RELATED ? REMUS_PLAN_SPLIT
                                             : REMUS_PLAN_STRANGER;
}

enum remus_plan remus_plan_step(const struct remus_offer *o)
{
    if (o->fenced)
        return REMUS_PLAN_OVER;
    if (o->storing)
        return REMUS_PLAN_LATER;
    switch (o->content) {
    case REMUS_CONTENT_NONE:
        return REMUS_PLAN_COPY;
    case REMUS_CONTENT_PARTIAL:
        return REMUS_PLAN_MEND;
    case REMUS_CONTENT_FOREIGN:
        /* Until both sides were compared; see map_counts. */
        if (!o->map_counts)
            return REMUS_PLAN_COMPARE;
        break;
    case REMUS_CONTENT_MARKED:
        if (!o->map_counts)
            return REMUS_PLAN_COMPARE;
        if (!o->known)
            return REMUS_PLAN_MARKS;
        break;
    case REMUS_CONTENT_COMPLETE:
    case REMUS_CONTENT_CONSISTENT:
        if (o->set_back)
            return REMUS_PLAN_SET_BACK;
        if (o->full && !o->allow)
            return REMUS_PLAN_WAIT;
        if (!o->map_counts)
            return REMUS_PLAN_COMPARE;
        break;
    default:
        return plan_apart(o);
    }
    if (o->fits && !o->full)
        return REMUS_PLAN_CATCH_UP;
    return o->allow ? REMUS_PLAN_REWRITE : REMUS_PLAN_WAIT;
}

int remus_plan_connects(enum remus_plan plan)
{
    return plan < REMUS_PLAN_WAIT;
}

int remus_plan_asks(enum remus_plan plan)
{
    return plan == REMUS_PLAN_COMPARE || plan == REMUS_PLAN_MARKS;
}

int remus_plan_direct(enum remus_plan plan)
{
    return plan == REMUS_PLAN_COPY || plan == REMUS_PLAN_REWRITE ||
           plan == REMUS_PLAN_MEND;
}
