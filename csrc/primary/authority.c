/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who may write.  A primary that steps down for its backup, or learns that the
 * backup was promoted, is fenced: durably, so that no later process of this
 * generation writes either.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/error.h"
#include "base/entry.h"
#include "primary/internal.h"

typedef unsigned long long ull;

/* lock held */
static unsigned int step(remus_primary *p, enum remus_authority_event event,
                         int idle)
{
    unsigned int effects = remus_authority_step(&p->authority, event, idle);
    (void)REMUS_CHECK(!(effects & REMUS_DO_FORBIDDEN));
    atomic_store(&p->no_writes, remus_authority_fenced(p->authority));
    return effects;
}

void remus_primary_authority_connected(remus_primary *p)
{
    (void)step(p, REMUS_EVENT_CONNECTED, 0);
}

unsigned int remus_primary_authority_event(remus_primary *p,
                                           enum remus_authority_event event,
                                           int idle)
{
    unsigned int effects = step(p, event, idle);
    remus_primary_shows(p);
    remus_primary_wake_parked(p);
    return effects;
}

int remus_primary_fenced(remus_primary *p, const struct remus_pvolume *v)
{
    remus_primary_lock(p);
    int err = remus_fail(-EROFS, "volume %s: this side is %s: %s", v->name,
                         remus_state_name(remus_primary_state(p)), p->reason);
    remus_primary_unlock(p);
    return err;
}

int remus_primary_writer_opens(remus_primary *p)
{
    int no = remus_enter(p, "primary_writer_opens");
    if (no)
        return no;
    remus_primary_lock(p);
    int err =
        remus_authority_fenced(p->authority)
            ? remus_fail(-EROFS, "resource %s is %s: %s", p->resource,
                         remus_state_name(remus_primary_state(p)), p->reason)
            : 0;
    if (!err)
        p->writers++;
    remus_primary_unlock(p);
    return err;
}

void remus_primary_writer_closes(remus_primary *p)
{
    if (remus_enter(p, "primary_writer_closes"))
        return;
    remus_primary_lock(p);
    p->writers--;
    remus_primary_unlock(p);
}

/* ---- stepping down ---------------------------------------------------------- */

void remus_primary_reply_to_ask(remus_primary *p, int yes, uint64_t epoch,
                                const char *why)
{
    struct remus_record r = {.type = REMUS_REC_STEPPED_DOWN,
                             .flags = (uint8_t)(yes ? 1 : 0),
                             .length = (uint32_t)strlen(why),
                             .epoch = epoch};
    uint32_t bytes = REMUS_REC_HEADER + r.length;
    remus_primary_lock(p);
    struct remus_slot *slot = NULL;
    if (remus_link_up(p) && remus_sendq_fits(&p->queue, bytes, 1)) {
        slot = remus_sendq_reserve(&p->queue, bytes);
        r.session = p->c.id;
    }
    remus_primary_unlock(p);
    if (slot)
        remus_sendq_publish(&p->queue, slot, &r, why);
}

/* Protected, or nothing is on its way to that but the backup's word on the
 * last commit, which it says before it takes what comes behind.
 * (lock held) */
static int as_good_as_protected(const remus_primary *p)
{
    return remus_primary_state(p) == REMUS_STATE_PROTECTED ||
           (p->link.link == REMUS_LINK_CAUGHT_UP &&
            !remus_plan_direct(p->c.plan) && p->acked >= p->c.first &&
            p->c.committed >= p->c.first);
}

int remus_primary_may_step_down(const remus_primary *p, char *why, size_t cap)
{
    if (p->writers)
        snprintf(why, cap,
                 "the primary is alive and %u files of its volumes are open "
                 "for writing: stop the guest there first",
                 p->writers);
    else if (p->session == REMUS_SESSION_TOOLSTACK)
        snprintf(why, cap,
                 "the primary is alive and a toolstack takes "
                 "checkpoints of it: stop the guest there first");
    else if (!as_good_as_protected(p))
        snprintf(why, cap,
                 "the primary is alive and %s: wait until it is "
                 "Protected",
                 remus_state_name(remus_primary_state(p)));
    else
        return 1;
    return 0;
}

/* Whoever asks is told no at once, also in the middle of a copy. */
void remus_primary_asked(remus_primary *p, int flags)
{
    char why[REMUS_REASON_MAX] = "";
    remus_primary_lock(p);
    int idle = remus_primary_may_step_down(p, why, sizeof why);
    unsigned int effects =
        remus_primary_authority_event(p, REMUS_EVENT_ASK, idle);
    if (effects & REMUS_DO_WAKE_ENGINE) {
        p->c.question = 1u | (unsigned int)flags << 1;
        pthread_cond_signal(&p->engine_wake);
    }
    remus_primary_unlock(p);
    if (effects & REMUS_DO_REPLY_NO)
        remus_primary_reply_to_ask(p, 0, 0, why);
}

void remus_primary_stepped_down(remus_primary *p, uint64_t epoch)
{
    char text[REMUS_REASON_MAX], at[48] = "";
    if (epoch)
        snprintf(at, sizeof at, ", with checkpoint %llu", (ull)epoch);
    snprintf(
        text, sizeof text,
        "stepped down for the backup, which asked%s: the backup is the one to "
        "write from here on; if it was not promoted yet, promote it",
        at);
    remus_primary_authority_event(p, REMUS_EVENT_CHECKPOINTED, 0);
    p->yielded_epoch = epoch;
    /* Who is promoted to less finds that the map tells nothing. */
    remus_dirty_stable(&p->dirty, epoch);
    remus_primary_say(p, text);
}

/* ---- being failed away from --------------------------------------------- */

/* Nobody is asked for leave in split brain: so say what writes wait for.
 * (lock held) */
static const char *what_waits(const remus_primary *p)
{
    return p->authority == REMUS_AUTHORITY_SPLIT &&
                   remus_primary_leave(p) == REMUS_LEAVE_WITHHELD
               ? "; until then writes wait here, or for `remus-native resume`"
               : "";
}

/* The last error says why: what the plan means for who may write. */
static void decided(remus_primary *p, enum remus_authority_event event)
{
    char text[REMUS_REASON_MAX];
    struct remus_waiter *w = NULL;
    unsigned int effects = 0;
    remus_primary_lock(p);
    if (!remus_stopping(p) || event == REMUS_EVENT_PROMOTED)
        effects = remus_primary_authority_event(p, event, 0);
    if (effects & REMUS_DO_LET_GO) {
        snprintf(text, sizeof text, "%.195s%s", remus_last_error(),
                 what_waits(p));
        remus_primary_say(p, text);
        w = remus_primary_let_go(p);
    }
    remus_primary_unlock(p);
    remus_primary_answer(p, w, -EPROTO);
    /* If it can't be stored, the backup's answer is the same next time. */
    if (effects & REMUS_DO_FENCE)
        (void)remus_primary_state_flag(p, REMUS_PRIMARY_FENCED);
}

int remus_primary_name_split(remus_primary *p, const char *text)
{
    int no = remus_enter(p, "primary_name_split");
    if (!no)
        no = remus_given(text, "primary_name_split", "text");
    if (no)
        return no;
    remus_primary_lock(p);
    /* Who is connected has another answer. */
    int ours = !remus_link_up(p) && p->authority == REMUS_AUTHORITY_WRITER;
    remus_primary_unlock(p);
    remus_fail(0, "%s", text);
    if (ours)
        decided(p, REMUS_EVENT_SPLIT);
    return 0;
}

void remus_primary_set_apart(remus_primary *p, enum remus_plan plan,
                             const struct remus_hello_reply *reply)
{
    char id[9];
    remus_id_text(reply->generation, id);
    switch (plan) {
    case REMUS_PLAN_FENCE:
        /* All that we have more than it came after that checkpoint, and was
         * never promised. */
        remus_fail(-EROFS,
                   "the backup was promoted to checkpoint %llu: nothing "
                   "written here is kept; stop the guest here, and "
                   "start this side as the backup of the other one",
                   (ull)reply->held);
        decided(p, REMUS_EVENT_PROMOTED);
        return;
    case REMUS_PLAN_SPLIT:
        remus_fail(-EROFS,
                   "both sides went on from one checkpoint (the other one is "
                   "generation %s...): decide which side to discard, stop its "
                   "guest, and start it as the backup with --discard-local",
                   id);
        decided(p, REMUS_EVENT_SPLIT);
        return;
    case REMUS_PLAN_SET_BACK:
        remus_fail(-EROFS,
                   "the backup holds checkpoint %llu, which this side never "
                   "took: its state is an older copy that was restored: "
                   "promote the backup; or, to lose what the backup holds, "
                   "stop it and empty its directories",
                   (ull)reply->held);
        decided(p, REMUS_EVENT_SPLIT);
        return;
    case REMUS_PLAN_STRANGER:
        remus_fail(-EROFS,
                   "the backup was promoted, as the backup of another "
                   "primary (its generation is %s...): correct the address",
                   id);
        return;
    case REMUS_PLAN_LATER:
        remus_fail(-EAGAIN, "a new generation has just begun");
        return;
    default:
        remus_fail(-EROFS, "this side is fenced");
        return;
    }
}
