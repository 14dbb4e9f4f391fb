/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sessions: the time in which a toolstack takes the checkpoints.  Without
 * one the engine takes them by itself, so that a guest whose first memory
 * copy takes minutes, or that no toolstack drives, is followed all the same.
 *
 * After a session that ended without teardown (its file was closed; its
 * toolstack perhaps died) the engine waits for the grace time: the last
 * prepared checkpoint has a memory that may still be failed over to, and
 * a commit of the engine's would take it away.
 */
#include <errno.h>

#include "error.h"
#include "primary_int.h"

void remus_primary_session_opens(remus_primary *p)
{
    p->session_open = 1;
    p->session_ended_ns = 0;
}

int remus_primary_session_begin(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
    remus_primary_session_opens(p);
    pthread_mutex_unlock(&p->lock);
    return 0;
}

/* lock held */
static void session_ends(remus_primary *p, int grace)
{
    p->session_open = 0;
    p->idle_ns = p->io->now_ns(p->io);
    p->session_ended_ns = grace ? p->idle_ns : 0;
    pthread_cond_signal(&p->engine_wake);
}

int remus_primary_session_end(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
    session_ends(p, 0);
    pthread_mutex_unlock(&p->lock);
    return 0;
}

void remus_primary_ioctl_attach(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
    p->node_users++;
    remus_primary_session_opens(p);
    pthread_mutex_unlock(&p->lock);
}

void remus_primary_ioctl_release(remus_primary *p, unsigned int volume)
{
    pthread_mutex_lock(&p->lock);
    /* The next ioctl 20 of any volume begins a new session: it must not
     * join a barrier that is older than the writes before it. */
    p->node_barrier = 0;
    p->volumes[volume].joined = 0;
    if (--p->node_users == 0) {
        p->node_heard = 0;
        session_ends(p, 1);
    }
    pthread_mutex_unlock(&p->lock);
}

/* ---- the engine's own checkpoints --------------------------------------- */

/* lock held */
static int epoch_acked(remus_primary *p, uint64_t epoch)
{
    if (!p->stats.connected || p->stopping)
        return -EPROTO;
    return p->acked >= epoch;
}

int remus_primary_own_checkpoint(remus_primary *p, uint64_t *epoch)
{
    int rc = remus_primary_barrier(p, NULL, 0, REMUS_CP_DISK_ONLY, 0, epoch);
    if (rc < 0)
        return rc;
    rc = remus_primary_wait_for(p, epoch_acked, *epoch, -1);
    if (rc < 0)
        return rc;
    struct remus_record r;
    int err = 0;
    pthread_mutex_lock(&p->lock);
    struct remus_slot *slot =
        remus_primary_reserve_commit(p, &r, *epoch, &err);
    if (!err && *epoch > p->commit_given)
        p->commit_given = *epoch;
    remus_primary_check_caught_up(p);
    pthread_mutex_unlock(&p->lock);
    if (slot)
        remus_primary_send_now(p, slot, &r, NULL);
    return err;
}

/* Is the journal's room running out?  (lock held) */
static int under_pressure(const remus_primary *p)
{
    uint64_t left = p->credit > p->spent ? p->credit - p->spent : 0;
    return p->parked_room || left < p->capacity / 2;
}

int remus_primary_in_grace(const remus_primary *p)
{
    return p->session_ended_ns && p->io->now_ns(p->io) - p->session_ended_ns <
                                      p->grace_ms * 1000000ull;
}

/* Shall the engine take a checkpoint now?  (lock held) */
static int due(const remus_primary *p, uint64_t now)
{
    if (p->state == REMUS_STATE_CATCHING_UP && p->caught_up) {
        if (p->barrier_epoch >= p->catch_epoch)
            return 0; /* is on its way */
        if (p->direct)
            return 1; /* there is no older checkpoint to keep */
    } else if (p->state != REMUS_STATE_PROTECTED) {
        return 0;
    }
    if (p->session_open)
        return 0;
    int pressed = under_pressure(p) && p->epoch_records;
    if (remus_primary_in_grace(p))
        return pressed;
    if (pressed || p->state == REMUS_STATE_CATCHING_UP)
        return 1;
    return (p->epoch_records || p->acked > p->committed) &&
           now - p->idle_ns >= p->idle_ms * 1000000ull;
}

void remus_primary_attend(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
    while (p->stats.connected && !p->stopping) {
        if (p->asked) {
            int flags = p->asked >> 1;
            p->asked = 0;
            pthread_mutex_unlock(&p->lock);
            remus_primary_answer_ask(p, flags);
            pthread_mutex_lock(&p->lock);
            continue;
        }
        if (!due(p, p->io->now_ns(p->io))) {
            remus_primary_engine_wait(p, 100);
            continue;
        }
        pthread_mutex_unlock(&p->lock);
        uint64_t epoch;
        int err = remus_primary_own_checkpoint(p, &epoch);
        pthread_mutex_lock(&p->lock);
        p->idle_ns = p->io->now_ns(p->io);
        if (err < 0)
            remus_primary_engine_wait(p, 100);
    }
    pthread_mutex_unlock(&p->lock);
}
