/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A primary's link is watched: pings, silence, stalls, what lasts too long. */
#include <errno.h>

#include "base/error.h"
#include "link/full.h"
#include "primary/internal.h"

typedef unsigned long long ull;

#define HOPELESS_MS 1000u     /* a catch-up without room for so long */
#define SLOWEST_PER_MS 16384u /* bytes of an epoch for a ms more patience */

static void send_ping(remus_primary *p)
{
    struct remus_record r = {.type = REMUS_REC_PING};
    remus_primary_lock(p);
    struct remus_slot *slot = NULL;
    if (remus_link_up(p) && remus_sendq_fits(&p->queue, REMUS_REC_HEADER, 1))
        slot = remus_sendq_reserve(&p->queue, REMUS_REC_HEADER);
    r.session = p->c.id;
    remus_primary_unlock(p);
    if (slot)
        remus_sendq_publish(&p->queue, slot, &r, NULL);
}

/* Does nothing lack but commits of what the backup has?  (lock held) */
static int lacks_commits(const remus_primary *p)
{
    return remus_counting(p) && remus_sendq_bytes(&p->queue) < REMUS_PAGE &&
           p->acked >= p->c.first && p->acked > p->c.accepted;
}

int remus_primary_waits_for_commits(remus_primary *p, char *text)
{
    uint64_t wait_ns = remus_primary_oldest_wait(p, remus_primary_now(p));
    if (wait_ns < HOPELESS_MS * 1000000u || !lacks_commits(p))
        return 0;
    remus_full_text(text, &(struct remus_full){.role = REMUS_ROLE_PRIMARY,
                                               .pinned = p->c.pinned,
                                               .committed = p->c.accepted,
                                               .newest = p->acked});
    return 1;
}

static void check_silence(remus_primary *p, uint64_t now)
{
    remus_primary_lock(p);
    int up = remus_link_up(p);
    /* Something may have come in since `now` was read. */
    uint64_t silent_ms = now > p->c.rx_ns ? (now - p->c.rx_ns) / 1000000u : 0;
    uint64_t stalled_ms = remus_primary_oldest_wait(p, now) / 1000000u;
    /* Nothing but a ping is waiting to be sent: room is not what lacks. */
    uint64_t queued = remus_sendq_bytes(&p->queue);
    int credit = remus_counting(p) && queued < REMUS_PAGE;
    uint64_t epoch = p->open_epoch;
    char full[REMUS_REASON_MAX];
    int commits = remus_primary_waits_for_commits(p, full);
    /* In a catch-up no checkpoint of anybody's can make room. */
    int hopeless = remus_primary_state(p) == REMUS_STATE_CATCHING_UP &&
                   p->c.applied >= p->c.committed && stalled_ms > HOPELESS_MS;
    uint64_t waiting = p->barrier_epoch >= p->c.first ? p->barrier_epoch : 0;
    uint64_t late_ms = 0;
    if (waiting > p->acked && queued < REMUS_PAGE && now > p->c.progress_ns)
        late_ms = (now - p->c.progress_ns) / 1000000u;
    /* A large epoch may take its time to become durable. */
    uint64_t patience =
        p->loss_ms + (p->c.spent - p->c.progress_spent) / SLOWEST_PER_MS;
    if (up && credit && hopeless) {
        p->wont_fit = p->c.capacity;
        p->wont_fit_ns = now;
    }
    remus_primary_unlock(p);
    if (!up)
        return;
    if (silent_ms > p->loss_ms)
        remus_primary_link_lost(
            p, "backup lost: nothing from it for %llu ms (limit %u)",
            (ull)silent_ms, p->loss_ms);
    else if (late_ms > patience)
        remus_primary_link_lost(
            p,
            "backup stalled: it answers pings, but epoch %llu has had no ack "
            "for %llu ms (limit %llu): check its journal's disk",
            (ull)waiting, (ull)late_ms, (ull)patience);
    else if (credit && hopeless)
        remus_primary_link_lost(
            p,
            "the catch-up and what was written meanwhile do not fit into the "
            "backup's journal: enlarge the journal, or set "
            "allow_inconsistent = true");
    else if (stalled_ms > p->stall_ms && commits)
        remus_primary_link_lost(p, "%s", full);
    else if (stalled_ms > p->stall_ms && credit)
        remus_primary_link_lost(
            p,
            "epoch %llu does not fit into the backup's journal, and for %llu "
            "ms no checkpoint made room: take checkpoints, or give "
            "the journal more room",
            (ull)epoch, (ull)stalled_ms);
    else if (stalled_ms > p->stall_ms)
        remus_primary_link_lost(p,
                                "backup or link too slow: it answers pings, "
                                "but a write waited %llu ms for the queue "
                                "(limit %u)",
                                (ull)stalled_ms, p->stall_ms);
}

/* Sets of the dirty map that can be forgotten are zeroed here, off the path
 * of writes and acks. */
static void forget_stable(remus_primary *p)
{
    int set;
    remus_primary_lock(p);
    while ((set = remus_dirty_forget_begin(&p->dirty)) >= 0) {
        remus_primary_unlock(p);
        remus_dirty_forget(&p->dirty, set);
        remus_primary_lock(p);
        remus_dirty_forget_end(&p->dirty, set);
    }
    remus_primary_unlock(p);
}

/* A separate thread watches, because the engine may wait in a copy. */
void *remus_primary_watch_main(void *arg)
{
    remus_primary *p = arg;
    uint64_t before = remus_primary_now(p), pinged = 0;
    while (!remus_primary_sleep(p, 100)) {
        uint64_t now = remus_primary_now(p);
        if (now - pinged > REMUS_PING_MS * 1000000ull) {
            send_ping(p);
            pinged = now;
        }
        forget_stable(p);
        remus_primary_asked_in_vain(p, 0);
        /* If we were stopped ourselves, let what waits be received. */
        if (now - before < 1000000000u) {
            check_silence(p, now);
            remus_primary_check_flow(p, now, now - before);
        }
        before = now;
    }
    return NULL;
}
