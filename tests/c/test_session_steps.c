/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who takes a primary's checkpoints, who may commit what, and what is done
 * with a backup that answered (primary/steps.h), walked through all states,
 * events and facts.  What is asked here is what must hold, not the tables once
 * more.
 */
#include "format/record.h"
#include "primary/steps.h"
#include "steps.h"

/* ---- sessions ----------------------------------------------------------- */

static void session_steps(void)
{
    for (int s = 0; s < REMUS_SESSIONS; s++)
        for (int event = 0; event < REMUS_SESSION_EVENTS; event++) {
            int to = (int)remus_session_step((enum remus_session)s,
                                             (enum remus_session_event)event);
            EXPECT(to < REMUS_SESSIONS);
            EXPECT((event == REMUS_SESSION_OPENS) <=
                   (to == REMUS_SESSION_TOOLSTACK));
            if (event == REMUS_SESSION_CLOSES)
                EXPECT(to == REMUS_SESSION_GRACE);
            int engine =
                to == REMUS_SESSION_ENGINE || to == REMUS_SESSION_TAKEN_OVER;
            /* Nothing but an open begins a session, nothing but a close a
             * grace. */
            if (to == REMUS_SESSION_TOOLSTACK)
                EXPECT(event == REMUS_SESSION_OPENS || s == to);
            if (to == REMUS_SESSION_GRACE)
                EXPECT(event == REMUS_SESSION_CLOSES ||
                       (s == to && event == REMUS_SESSION_COMMITTED));
            if (event == REMUS_SESSION_ENDS)
                EXPECT(engine);
            if (s == REMUS_SESSION_GRACE && event == REMUS_SESSION_GRACE_ENDS)
                EXPECT(to == REMUS_SESSION_TAKEN_OVER);
            if (s == REMUS_SESSION_ENGINE && engine)
                EXPECT(to == s);
            if (s == REMUS_SESSION_TAKEN_OVER && engine &&
                event != REMUS_SESSION_COMMITTED)
                EXPECT(to == s);
            if (s == REMUS_SESSION_GRACE && event == REMUS_SESSION_COMMITTED)
                EXPECT(to == s);
            if (s == REMUS_SESSION_TAKEN_OVER &&
                event == REMUS_SESSION_COMMITTED)
                EXPECT(to == REMUS_SESSION_ENGINE);
            /* What a session leaves is the engine's only once it is over. */
            if (to == REMUS_SESSION_ENGINE)
                EXPECT(s == REMUS_SESSION_ENGINE ||
                       (s == REMUS_SESSION_TAKEN_OVER &&
                        event == REMUS_SESSION_COMMITTED));
            if (s == REMUS_SESSION_TOOLSTACK &&
                (event == REMUS_SESSION_GRACE_ENDS ||
                 event == REMUS_SESSION_COMMITTED))
                EXPECT(to == REMUS_SESSION_TOOLSTACK);
        }
    counted("session", REMUS_SESSIONS, REMUS_SESSION_EVENTS, 1);
}

static void dues(void)
{
    for (int s = 0; s < REMUS_SESSIONS; s++)
        for (int link = 0; link < REMUS_LINKS; link++)
            for (unsigned int f = 0; f < 128; f++) {
                struct remus_due_facts d = {.session = (enum remus_session)s,
                                            .link = (enum remus_link)link,
                                            .over = bit(f, 0),
                                            .direct = bit(f, 1),
                                            .on_its_way = bit(f, 2),
                                            .pressed = bit(f, 3),
                                            .written = bit(f, 4),
                                            .uncommitted = bit(f, 5),
                                            .idle_over = bit(f, 6)};
                int due = remus_engine_due(&d);
                if (d.over || link < REMUS_LINK_CAUGHT_UP)
                    EXPECT(!due);
                /* In a toolstack's session the engine ends a copy, which
                 * leaves no older checkpoint, and does nothing else. */
                if (s == REMUS_SESSION_TOOLSTACK && due)
                    EXPECT(link == REMUS_LINK_CAUGHT_UP && d.direct &&
                           !d.on_its_way);
                /* Grace ends early only for want of room. */
                if (s == REMUS_SESSION_GRACE && due)
                    EXPECT((d.pressed && d.written) || d.direct);
                /* Nothing happened: no checkpoint. */
                if (link == REMUS_LINK_STREAMING && !d.written &&
                    !d.uncommitted)
                    EXPECT(!due);
                if (link == REMUS_LINK_CAUGHT_UP && d.on_its_way)
                    EXPECT(!due);
                int engine =
                    s == REMUS_SESSION_ENGINE || s == REMUS_SESSION_TAKEN_OVER;
                /* Where nobody else takes them a catch-up is completed at
                 * once, and what was written is safe after an interval. */
                if (!d.over && link == REMUS_LINK_CAUGHT_UP && !d.on_its_way &&
                    (engine || d.direct))
                    EXPECT(due);
                if (!d.over && link == REMUS_LINK_STREAMING && engine)
                    EXPECT(!due ==
                           !((d.pressed && d.written) ||
                             ((d.written || d.uncommitted) && d.idle_over)));
            }
    counted("due", REMUS_SESSIONS * REMUS_LINKS, 1, 128);
}

static void commits(void)
{
    for (int who = 0; who < REMUS_COMMITTERS; who++)
        for (int link = 0; link < REMUS_LINKS; link++)
            for (int s = 0; s < REMUS_SESSIONS; s++)
                for (unsigned int f = 0; f < 8; f++) {
                    struct remus_commit_facts c = {
                        (enum remus_link)link, (enum remus_session)s,
                        bit(f, 0), bit(f, 1), bit(f, 2)};
                    enum remus_commit word =
                        remus_commit_step((enum remus_committer)who, &c);
                    int engine = who == REMUS_COMMITTER_ENGINE;
                    /* commit_by = "backup" is not overruled. */
                    if (c.by_backup && !engine)
                        EXPECT(word == REMUS_COMMIT_NOTHING);
                    if (!c.by_backup)
                        EXPECT(word != REMUS_COMMIT_NOTHING &&
                               word != REMUS_COMMIT_KEEP);
                    /* What somebody may still name stays. */
                    if (c.by_backup && engine && !c.own &&
                        (s == REMUS_SESSION_GRACE ||
                         s == REMUS_SESSION_TOOLSTACK))
                        EXPECT(word == REMUS_COMMIT_KEEP);
                    /* What nobody can name any more never fills the
                     * journal for good. */
                    if (engine && s == REMUS_SESSION_TAKEN_OVER &&
                        link >= REMUS_LINK_CATCHING_UP && !c.before_copy)
                        EXPECT(word == REMUS_COMMIT_SEND);
                    /* In a copy a backup has nothing to commit. */
                    if (link == REMUS_LINK_DOWN || c.before_copy ||
                        link == REMUS_LINK_COPYING)
                        EXPECT(word != REMUS_COMMIT_SEND);
                }
    counted("commit", REMUS_SESSIONS * REMUS_LINKS, REMUS_COMMITTERS, 8);
}

/* ---- plans --------------------------------------------------------------- */

static void one_plan(const struct remus_offer *o)
{
    enum remus_plan plan = remus_plan_step(o);
    int goes = remus_plan_connects(plan);
    int empty = o->content == REMUS_CONTENT_NONE;
    int partial = o->content == REMUS_CONTENT_PARTIAL;
    int apart = o->content == REMUS_CONTENT_PROMOTED ||
                o->content == REMUS_CONTENT_SPLIT;
    EXPECT(plan < REMUS_PLANS);
    EXPECT(!goes == !(plan == REMUS_PLAN_COPY || plan == REMUS_PLAN_MEND ||
                      plan == REMUS_PLAN_CATCH_UP ||
                      plan == REMUS_PLAN_REWRITE || plan == REMUS_PLAN_MARKS ||
                      plan == REMUS_PLAN_COMPARE));
    EXPECT(!remus_plan_direct(plan) ==
           !(plan == REMUS_PLAN_COPY || plan == REMUS_PLAN_MEND ||
             plan == REMUS_PLAN_REWRITE));
    /* Who goes on from an ancestor of ours has split from us. */
    if (o->content == REMUS_CONTENT_PROMOTED && !o->fenced && !o->storing)
        EXPECT(plan == (o->origin == REMUS_ORIGIN_OURS ? REMUS_PLAN_FENCE
                        : o->origin == REMUS_ORIGIN_RELATED
                            ? REMUS_PLAN_SPLIT
                            : REMUS_PLAN_STRANGER));
    if (o->fenced || o->storing || apart)
        EXPECT(!goes);
    /* Where there is a checkpoint, all is overwritten only by leave. */
    if (remus_plan_direct(plan))
        EXPECT(empty || partial || (o->allow && (!o->fits || o->full)));
    /* What the map does not tell is never left out. */
    if (goes && !o->map_counts)
        EXPECT(plan == REMUS_PLAN_COMPARE || empty || partial);
    if (plan == REMUS_PLAN_CATCH_UP)
        EXPECT(o->fits && !o->full && o->map_counts);
    /* What was written on a side that was the primary is never left out. */
    if (o->content == REMUS_CONTENT_MARKED && goes && !o->known)
        EXPECT(remus_plan_asks(plan));
    if (o->known)
        EXPECT(plan != REMUS_PLAN_MARKS);
    if (plan == REMUS_PLAN_MARKS)
        EXPECT(o->content == REMUS_CONTENT_MARKED && o->map_counts);
    if (plan == REMUS_PLAN_FENCE)
        EXPECT(o->content == REMUS_CONTENT_PROMOTED &&
               o->origin == REMUS_ORIGIN_OURS);
    /* A checkpoint that we never gave is not overwritten in silence. */
    if (o->set_back && (o->content == REMUS_CONTENT_CONSISTENT ||
                        o->content == REMUS_CONTENT_COMPLETE))
        EXPECT(!goes);
    /* After a comparison there is an end of it. */
    if (o->map_counts)
        EXPECT(plan != REMUS_PLAN_COMPARE);
}

static void plans(void)
{
    for (int content = 0; content <= REMUS_CONTENT_MARKED; content++)
        for (int origin = 0; origin < 3; origin++)
            for (unsigned int f = 0; f < 256; f++) {
                struct remus_offer o = {.content = content,
                                        .origin = (enum remus_origin)origin,
                                        .set_back = bit(f, 0),
                                        .map_counts = bit(f, 1),
                                        .fits = bit(f, 2),
                                        .allow = bit(f, 3),
                                        .storing = bit(f, 4),
                                        .fenced = bit(f, 5),
                                        .full = bit(f, 6),
                                        .known = bit(f, 7)};
                one_plan(&o);
            }
    counted("plan", (REMUS_CONTENT_MARKED + 1) * 3, 1, 256);
}

int main(void)
{
    session_steps();
    dues();
    commits();
    plans();
    return 0;
}
