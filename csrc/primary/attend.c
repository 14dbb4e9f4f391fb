/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A connection is attended: the engine takes checkpoints by itself while no
 * session is open, and answers a backup that asks it to step down.
 */
#include <errno.h>
#include <stdio.h>

#include "base/error.h"
#include "primary/internal.h"

/* ---- the engine's own checkpoints --------------------------------------- */

/* lock held */
static int epoch_acked(remus_primary *p, uint64_t epoch)
{
    if (!remus_link_up(p) || remus_stopping(p))
        return -EPROTO;
    return p->acked >= epoch;
}

/* A checkpoint of the engine: barrier, ack, commit; blocks.  *epoch. */
static int own_checkpoint(remus_primary *p, uint64_t *epoch)
{
    int rc = remus_primary_barrier(p, NULL, 0, REMUS_CP_DISK_ONLY, 0, epoch);
    if (rc < 0)
        return rc;
    rc = remus_primary_wait_for(p, epoch_acked, *epoch, -1);
    if (rc < 0)
        return rc;
    struct remus_record r;
    int err = 0;
    remus_primary_lock(p);
    struct remus_slot *slot = remus_primary_reserve_commit(
        p, &r, REMUS_COMMITTER_ENGINE, *epoch, &err);
    if (!err && *epoch > p->commit_given)
        p->commit_given = *epoch;
    if (slot)
        remus_primary_session_committed(p);
    remus_primary_check_caught_up(p);
    remus_primary_unlock(p);
    if (slot)
        remus_primary_send_now(p, slot, &r, NULL);
    return err;
}

/* Is the journal's room running out?  (lock held) */
static int under_pressure(const remus_primary *p)
{
    uint64_t left = p->c.credit > p->c.spent ? p->c.credit - p->c.spent : 0;
    return p->parked_room || left < p->c.capacity / 2;
}

/* Shall the engine take a checkpoint now?  (lock held) */
static int due(remus_primary *p)
{
    const struct remus_due_facts f = {
        .session = remus_primary_session_now(p),
        .link = p->link.link,
        .over = remus_authority_fenced(p->authority),
        .direct = remus_plan_direct(p->c.plan),
        /* Acked, but of a session that has ended since: nobody commits it. */
        .on_its_way =
            p->barrier_epoch >= p->c.first &&
            (p->acked < p->barrier_epoch || p->c.committed >= p->c.first),
        .pressed = under_pressure(p),
        .written = p->c.records != 0,
        .uncommitted = p->acked > p->c.committed,
        .idle_over =
            remus_primary_now(p) - p->idle_ns >= p->idle_ms * 1000000ull};
    return remus_engine_due(&f);
}

/* ---- stepping down ------------------------------------------------------- */

/*
 * The last checkpoint of all: everything that was ever answered.  A second
 * one after it, which is empty: by its ack the commit of the first is as safe
 * as the ack says.
 */
static int last_checkpoint(remus_primary *p, int keep, uint64_t *epoch)
{
    int err = 0;
    for (int i = 0; !keep && err >= 0 && i < 2; i++)
        err = own_checkpoint(p, epoch);
    if (err >= 0)
        err = remus_primary_state_flag(p, REMUS_PRIMARY_FENCED);
    return err < 0 ? err : 0;
}

/* Step down, or why not.  Yes: the epoch with which we did.  (lock held,
 * given up meanwhile) */
static void step_down(remus_primary *p, int keep, char *why, size_t cap)
{
    uint64_t epoch = 0;
    remus_primary_unlock(p);
    int err = last_checkpoint(p, keep, &epoch);
    remus_primary_lock(p);
    if (!err) {
        remus_primary_stepped_down(p, epoch);
        return;
    }
    remus_primary_authority_event(p, REMUS_EVENT_NO_CHECKPOINT, 0);
    snprintf(why, cap, "the primary's last checkpoint failed: %.180s",
             remus_last_error());
}

static void answer_ask(remus_primary *p)
{
    char why[REMUS_REASON_MAX] = "";
    remus_primary_lock(p);
    int flags = (int)(p->c.question >> 1);
    int switches = (flags & REMUS_ASK_SWITCH) != 0;
    p->c.question = 0;
    /* Our answer may have been lost, or late: then it is given again. */
    int idle = remus_primary_may_step_down(p, why, sizeof why);
    unsigned int effects =
        remus_primary_authority_event(p, REMUS_EVENT_ANSWER, idle);
    /* The memory of a session that just ended may still be failed over to,
     * and its last checkpoint is the disk that goes with it. */
    int keep =
        flags & REMUS_ASK_KEEP ||
        (!switches && remus_primary_session_now(p) == REMUS_SESSION_GRACE);
    if (effects & REMUS_DO_LAST_CHECKPOINT)
        step_down(p, keep, why, sizeof why);
    int yes = p->authority == REMUS_AUTHORITY_YIELDED;
    if (yes)
        p->switches |= switches;
    uint64_t epoch = yes ? p->yielded_epoch : 0;
    remus_primary_unlock(p);
    remus_primary_reply_to_ask(p, yes, epoch, yes ? "" : why);
}

/* ---- all of it ------------------------------------------------------------ */

void remus_primary_attend(remus_primary *p)
{
    remus_primary_lock(p);
    while (remus_link_up(p) && !remus_stopping(p)) {
        if (p->c.question) {
            remus_primary_unlock(p);
            answer_ask(p);
            remus_primary_lock(p);
            continue;
        }
        if (remus_primary_ioctl_due(p)) {
            remus_primary_unlock(p);
            remus_primary_ioctl_take(p);
            remus_primary_lock(p);
            if (!remus_primary_ioctl_due(p))
                continue;
        }
        if (!due(p)) {
            remus_primary_timed_wait(p, &p->engine_wake, 100);
            continue;
        }
        remus_primary_unlock(p);
        uint64_t epoch;
        int err = own_checkpoint(p, &epoch);
        remus_primary_lock(p);
        p->idle_ns = p->io->now_ns(p->io);
        if (err < 0)
            remus_primary_timed_wait(p, &p->engine_wake, 100);
    }
    remus_primary_unlock(p);
}
