/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A primary's checkpoints: barrier, ack, commit. */
#include <errno.h>

#include "error.h"
#include "primary_int.h"

typedef unsigned long long ull;

#define SEND_NOW_MAX 65536u /* bytes that postsuspend sends itself */

int remus_primary_check_protected(remus_primary *p)
{
    if (p->state == REMUS_STATE_PROTECTED)
        return 0;
    /* A session's next checkpoint is what ends its catch-up. */
    if (p->state == REMUS_STATE_CATCHING_UP && p->caught_up && !p->direct)
        return 0;
    return remus_fail(-EPROTO, "resource %s is %s: %s", p->resource,
                      remus_state_name(p->state), p->reason);
}

struct remus_slot *remus_primary_close_epoch(remus_primary *p,
                                             struct remus_record *r,
                                             int flags, size_t tag_len,
                                             int *empty, int *err)
{
    uint32_t length = (uint32_t)(REMUS_REC_HEADER + tag_len);
    *r = (struct remus_record){.type = REMUS_REC_BARRIER,
                               .flags = (uint8_t)flags,
                               .length = (uint32_t)tag_len,
                               .epoch = p->open_epoch,
                               .session = p->session,
                               .number = p->next_number};
    uint64_t cost = remus_record_cost(r);
    uint64_t unacked = 0, base = p->session_first - 1;
    if (p->barrier_epoch > base)
        unacked = p->barrier_epoch - (p->acked > base ? p->acked : base);
    if (unacked >= REMUS_UNACKED_MAX ||
        !remus_sendq_fits(&p->queue, length, 1) ||
        p->spent + cost > p->credit + p->reserve) {
        *err = remus_fail(
            -EAGAIN,
            "resource %s: no barrier for epoch %llu: %llu before it have no "
            "ack yet, newest committed is %llu, newest applied %llu: wait "
            "for acks, and commit",
            p->resource, (ull)p->open_epoch,
            (ull)unacked, (ull)p->committed, (ull)p->applied);
        return NULL;
    }
    *empty = p->epoch_records == 0;
    if (!p->first_epoch)
        p->first_epoch = p->open_epoch;
    if (!unacked)
        p->progress_ns = p->io->now_ns(p->io);
    remus_dirty_roll(&p->dirty, p->open_epoch);
    p->barrier_epoch = p->open_epoch++;
    p->next_number++;
    p->spent += cost;
    p->epoch_records = 0;
    p->closed_bytes = p->epoch_bytes;
    p->epoch_bytes = 0;
    p->stats.epochs++;
    p->stats.records++;
    p->stats.ioctl_driven = (flags & REMUS_CP_IOCTL) != 0;
    return remus_sendq_reserve(&p->queue, length);
}

struct remus_slot *remus_primary_reserve_commit(remus_primary *p,
                                                struct remus_record *r,
                                                uint64_t epoch, int *err)
{
    *err = 0;
    if (epoch <= p->committed)
        return NULL;
    if (!p->stats.connected) {
        *err = remus_fail(-EPROTO,
                          "resource %s: commit of epoch %llu: %s: %s",
                          p->resource, (ull)epoch,
                          remus_state_name(p->state), p->reason);
        return NULL;
    }
    if (!remus_sendq_fits(&p->queue, REMUS_REC_HEADER, 1)) {
        *err = remus_fail(-EAGAIN, "resource %s: the send queue is full of "
                                   "barriers and commits",
                          p->resource);
        return NULL;
    }
    *r = (struct remus_record){.type = REMUS_REC_COMMIT,
                               .epoch = epoch,
                               .session = p->session};
    p->committed = epoch;
    return remus_sendq_reserve(&p->queue, REMUS_REC_HEADER);
}

void remus_primary_send_now(remus_primary *p, struct remus_slot *slot,
                            struct remus_record *r, const void *payload)
{
    remus_sendq_publish_quietly(&p->queue, slot, r, payload);
    if (pthread_mutex_trylock(&p->queue.send_lock)) {
        remus_sendq_wake(&p->queue);
        return;
    }
    pthread_mutex_lock(&p->lock);
    int fd = p->stats.connected ? p->fd : -1;
    /* What is before it is for the sender to encrypt and send. */
    int much = remus_sendq_bytes(&p->queue) > SEND_NOW_MAX;
    pthread_mutex_unlock(&p->lock);
    int rc = fd < 0 ? 0 : much ? 1 : remus_sendq_pump(&p->queue, &p->conn);
    pthread_mutex_unlock(&p->queue.send_lock);
    if (rc < 0)
        remus_primary_link_lost(p, "backup lost: send: %s",
                                remus_errno_text(rc));
    else if (rc > 0)
        remus_sendq_wake(&p->queue);
}

int remus_primary_barrier(remus_primary *p, const void *tag, size_t tag_len,
                          int flags, int need_protected, uint64_t *epoch)
{
    struct remus_record r;
    struct remus_slot *slot = NULL;
    int empty = 0;
    uint64_t start = p->io->now_ns(p->io);
    pthread_mutex_lock(&p->lock);
    int err = 0;
    if (need_protected)
        err = remus_primary_check_protected(p);
    else if (!p->stats.connected || !p->journaled)
        err = -EPROTO;
    if (!err)
        slot = remus_primary_close_epoch(p, &r, flags, tag_len, &empty, &err);
    int timed = slot && !(flags & REMUS_CP_DISK_ONLY);
    if (timed)
        remus_primary_epoch_closed(p, r.epoch, start);
    if (slot && need_protected)
        remus_primary_session_opens(p);
    pthread_mutex_unlock(&p->lock);
    if (err)
        return err;
    *epoch = r.epoch;
    remus_primary_send_now(p, slot, &r, tag);
    if (timed)
        remus_primary_epoch_sent(p, r.epoch);
    return empty;
}

int remus_primary_postsuspend(remus_primary *p, const void *tag,
                              size_t tag_len, uint64_t *epoch)
{
    if (tag_len > REMUS_TAG_MAX)
        return remus_fail(-EINVAL,
                          "resource %s: a tag of %zu bytes; at most %d",
                          p->resource, tag_len, REMUS_TAG_MAX);
    return remus_primary_barrier(p, tag, tag_len, 0, 1, epoch);
}

int remus_primary_epoch_lost(const remus_primary *p, uint64_t epoch)
{
    unsigned int known = p->outages < REMUS_OUTAGES ? p->outages
                                                    : REMUS_OUTAGES;
    for (unsigned int i = 0; i < known; i++)
        if (epoch >= p->outage[i].from && epoch <= p->outage[i].to)
            return 1;
    return epoch <= p->outage_floor;
}

void remus_primary_check_caught_up(remus_primary *p)
{
    if (p->state != REMUS_STATE_CATCHING_UP || !p->caught_up)
        return;
    uint64_t have = p->direct ? p->applied : p->acked;
    if (have < p->catch_epoch ||
        (!p->session_open && p->committed < p->catch_epoch &&
         p->applied < p->catch_epoch))
        return;
    p->wont_fit = 0;
    remus_primary_set_state(p, REMUS_STATE_PROTECTED,
                            "every checkpoint is safe on the backup");
}

int remus_primary_acked_or_lost(remus_primary *p, uint64_t epoch)
{
    if (!p->first_epoch || epoch > p->barrier_epoch || epoch < p->first_epoch)
        return -EINVAL;
    if (remus_primary_epoch_lost(p, epoch))
        return -EPROTO;
    if (p->acked >= epoch)
        return 1;
    return !p->stopping && (p->stats.connected || remus_primary_holds(p))
               ? 0
               : -EPROTO;
}

int remus_primary_commit(remus_primary *p, uint64_t epoch)
{
    struct remus_record r;
    struct remus_slot *slot = NULL;
    int err = 0;
    uint64_t start = p->io->now_ns(p->io);
    pthread_mutex_lock(&p->lock);
    if (p->first_epoch && epoch >= p->first_epoch &&
        remus_primary_epoch_lost(p, epoch))
        err = remus_fail(-EPROTO,
                         "resource %s: commit of epoch %llu: it was lost with "
                         "the backup (%s): a later one covers it",
                         p->resource, (ull)epoch, p->lost_reason);
    else if (epoch > p->acked || epoch < p->first_epoch || !p->first_epoch)
        err = remus_fail(-EINVAL,
                         "resource %s: commit of epoch %llu: not acked; the "
                         "newest acked is %llu",
                         p->resource, (ull)epoch, (ull)p->acked);
    else
        slot = remus_primary_reserve_commit(p, &r, epoch, &err);
    /* Said while the link is down it is still said, once it is back: it may
     * be what makes room for the catch-up. */
    if (err != -EINVAL && epoch <= p->acked && epoch > p->commit_given &&
        !remus_primary_epoch_lost(p, epoch))
        p->commit_given = epoch;
    pthread_mutex_unlock(&p->lock);
    if (slot) {
        remus_primary_send_now(p, slot, &r, NULL);
        remus_primary_epoch_committed(p, epoch, start);
    }
    return err;
}
