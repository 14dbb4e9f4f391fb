/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A primary's checkpoints: barrier, ack, commit. */
#include <errno.h>

#include "base/error.h"
#include "base/entry.h"
#include "primary/internal.h"

typedef unsigned long long ull;

#define SEND_NOW_MAX 65536u /* bytes that postsuspend sends itself */

int remus_primary_may_barrier(const remus_primary *p)
{
    int state = remus_primary_state(p);
    /* A session's next checkpoint is what ends its catch-up. */
    return state == REMUS_STATE_PROTECTED ||
           (state == REMUS_STATE_CATCHING_UP && remus_caught_up(p) &&
            !remus_plan_direct(p->c.plan));
}

int remus_primary_check_protected(remus_primary *p)
{
    if (remus_primary_may_barrier(p))
        return 0;
    return remus_fail(-EPROTO, "resource %s is %s: %s", p->resource,
                      remus_state_name(remus_primary_state(p)), p->reason);
}

struct remus_slot *remus_primary_close_epoch(remus_primary *p,
                                             struct remus_record *r, int flags,
                                             uint32_t payload_len, int *empty,
                                             int *err)
{
    uint32_t length = REMUS_REC_HEADER + payload_len;
    *r = (struct remus_record){.type = REMUS_REC_BARRIER,
                               .flags = (uint8_t)flags,
                               .length = payload_len,
                               .epoch = p->open_epoch,
                               .session = p->c.id,
                               .number = p->c.next_number};
    uint64_t cost = remus_record_cost(r);
    uint64_t unacked = 0, base = p->c.first - 1;
    if (p->barrier_epoch > base)
        unacked = p->barrier_epoch - (p->acked > base ? p->acked : base);
    if (unacked >= REMUS_UNACKED_MAX ||
        !remus_sendq_fits(&p->queue, length, 1) ||
        p->c.spent + cost > p->c.credit + p->c.reserve) {
        *err = remus_fail(
            -EAGAIN,
            "resource %s: no barrier for epoch %llu: %llu before it have no "
            "ack yet, newest committed is %llu, newest applied %llu: wait "
            "for acks, and commit",
            p->resource, (ull)p->open_epoch, (ull)unacked, (ull)p->c.committed,
            (ull)p->c.applied);
        return NULL;
    }
    /* The state's disk stands still, and did so for half a million epochs. */
    if (p->open_epoch + 1 >= p->kept.limit) {
        *err = remus_fail(-EAGAIN,
                          "resource %s: no barrier for epoch %llu: numbers "
                          "beyond it could not be reserved: check the disk "
                          "of the state directory %s",
                          p->resource, (ull)p->open_epoch, p->state_dir);
        return NULL;
    }
    *empty = p->c.records == 0;
    if (!p->first_epoch)
        p->first_epoch = p->open_epoch;
    p->c.asked_ns = p->io->now_ns(p->io);
    if (!unacked)
        p->c.progress_ns = p->c.asked_ns;
    remus_dirty_roll(&p->dirty, p->open_epoch);
    if (!(flags & REMUS_CP_DISK_ONLY))
        p->named_epoch = p->open_epoch;
    p->barrier_epoch = p->open_epoch++;
    p->c.next_number++;
    p->c.spent += cost;
    p->c.records = 0;
    p->closed_bytes = p->c.bytes;
    p->c.bytes = 0;
    p->stats.epochs++;
    p->stats.records++;
    p->stats.ioctl_driven = (flags & REMUS_CP_IOCTL) != 0;
    return remus_sendq_reserve(&p->queue, length);
}

int remus_primary_over(const remus_primary *p)
{
    return p->session != REMUS_SESSION_TOOLSTACK &&
           p->session != REMUS_SESSION_GRACE;
}

/* May it be said now?  (lock held) */
static enum remus_commit may_commit(const remus_primary *p,
                                    enum remus_committer who, uint64_t epoch)
{
    /* What was before a copy is not there any more. */
    uint64_t gone = remus_plan_direct(p->c.plan) ? p->c.first - 1 : 0;
    const struct remus_commit_facts f = {
        .link = p->link.link,
        .session = p->session,
        .by_backup = p->commit_by == REMUS_COMMIT_BY_BACKUP,
        .own = p->named_epoch <= p->c.committed || p->named_epoch <= gone,
        .before_copy = epoch <= gone};
    return remus_commit_step(who, &f);
}

struct remus_slot *remus_primary_reserve_commit(remus_primary *p,
                                                struct remus_record *r,
                                                enum remus_committer who,
                                                uint64_t epoch, int *err)
{
    *err = 0;
    if (epoch <= p->c.committed)
        return NULL;
    switch (may_commit(p, who, epoch)) {
    case REMUS_COMMIT_SEND:
        break;
    case REMUS_COMMIT_LATER:
        *err = remus_fail(-EPROTO, "resource %s: commit of epoch %llu: %s: %s",
                          p->resource, (ull)epoch,
                          remus_state_name(remus_primary_state(p)), p->reason);
        return NULL;
    case REMUS_COMMIT_VOID:
        *err = remus_fail(
            -EPROTO,
            "resource %s: commit of epoch %llu: a copy to the backup's disks "
            "has begun since: a later epoch covers it",
            p->resource, (ull)epoch);
        return NULL;
    case REMUS_COMMIT_NOTHING:
    case REMUS_COMMIT_KEEP:
        return NULL;
    }
    if (!remus_sendq_fits(&p->queue, REMUS_REC_HEADER, 1)) {
        *err = remus_fail(-EAGAIN,
                          "resource %s: the send queue is full of "
                          "barriers and commits",
                          p->resource);
        return NULL;
    }
    *r = (struct remus_record){
        .type = REMUS_REC_COMMIT, .epoch = epoch, .session = p->c.id};
    if (who == REMUS_COMMITTER_ENGINE && remus_primary_over(p))
        r->flags = REMUS_COMMIT_OVER;
    p->c.committed = epoch;
    return remus_sendq_reserve(&p->queue, REMUS_REC_HEADER);
}

void remus_primary_send_now(remus_primary *p, struct remus_slot *slot,
                            struct remus_record *r, const void *payload)
{
    remus_sendq_publish_quietly(&p->queue, slot, r, payload);
    if (pthread_mutex_trylock(&p->queue.send_lock)) {
        if (!remus_sendq_pumped(&p->queue))
            remus_sendq_wake(&p->queue);
        return;
    }
    remus_primary_lock(p);
    int fd = remus_link_up(p) ? p->fd : -1;
    /* What is before it is for the sender to encrypt and send. */
    int much = remus_sendq_bytes(&p->queue) > SEND_NOW_MAX;
    remus_primary_unlock(p);
    int rc = fd < 0 ? 0 : much ? 1 : remus_sendq_pump(&p->queue, &p->conn);
    pthread_mutex_unlock(&p->queue.send_lock);
    if (rc) /* the sender goes on, or finds out why that can't be */
        remus_sendq_wake(&p->queue);
}

int remus_primary_barrier(remus_primary *p, const void *tag, size_t tag_len,
                          int flags, int need_protected, uint64_t *epoch)
{
    struct remus_record r;
    struct remus_slot *slot = NULL;
    unsigned char payload[REMUS_BARRIER_MAX];
    uint32_t length = remus_barrier_encode(NULL, tag, tag_len, payload);
    int empty = 0;
    uint64_t start = p->io->now_ns(p->io);
    remus_primary_lock(p);
    int err = 0;
    if (need_protected)
        err = remus_primary_check_protected(p);
    else if (!remus_link_up(p) || !remus_counting(p))
        err = -EPROTO;
    if (!err)
        slot = remus_primary_close_epoch(p, &r, flags, length, &empty, &err);
    int timed = slot && !(flags & REMUS_CP_DISK_ONLY);
    if (timed)
        remus_primary_epoch_closed(p, r.epoch, start);
    if (slot && need_protected)
        remus_primary_session_opens(p);
    remus_primary_unlock(p);
    if (err)
        return err;
    *epoch = r.epoch;
    remus_primary_send_now(p, slot, &r, payload);
    if (timed)
        remus_primary_epoch_sent(p, r.epoch);
    return empty;
}

int remus_primary_postsuspend(remus_primary *p, const void *tag,
                              size_t tag_len, uint64_t *epoch)
{
    int no = remus_enter(p, "primary_postsuspend");
    if (!no)
        no = remus_given(epoch, "primary_postsuspend", "epoch");
    if (!no && tag_len)
        no = remus_given(tag, "primary_postsuspend", "tag");
    if (no)
        return no;
    if (tag_len > REMUS_TAG_MAX)
        return remus_fail(-EINVAL,
                          "resource %s: a tag of %zu bytes; at most %d",
                          p->resource, tag_len, REMUS_TAG_MAX);
    return remus_primary_barrier(p, tag, tag_len, 0, 1, epoch);
}

void remus_primary_check_caught_up(remus_primary *p)
{
    if (p->link.link != REMUS_LINK_CAUGHT_UP)
        return;
    uint64_t have = remus_plan_direct(p->c.plan) ? p->c.applied : p->acked;
    if (have < p->c.first ||
        (p->session != REMUS_SESSION_TOOLSTACK && p->c.accepted < p->c.first &&
         p->c.applied < p->c.first))
        return;
    p->wont_fit = 0;
    remus_primary_link_event(p, REMUS_LINK_SAFE,
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
    return !remus_stopping(p) && (remus_link_up(p) || remus_primary_holds(p))
               ? 0
               : -EPROTO;
}

int remus_primary_commit(remus_primary *p, uint64_t epoch)
{
    int no = remus_enter(p, "primary_commit");
    if (no)
        return no;
    struct remus_record r;
    struct remus_slot *slot = NULL;
    int err = 0;
    uint64_t start = p->io->now_ns(p->io);
    remus_primary_lock(p);
    enum remus_commit word = may_commit(p, REMUS_COMMITTER_CALL, epoch);
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
        slot = remus_primary_reserve_commit(p, &r, REMUS_COMMITTER_CALL, epoch,
                                            &err);
    /* Said while the link is down it is still said, once it is back: it may
     * be what makes room for the catch-up. */
    if ((word == REMUS_COMMIT_SEND || word == REMUS_COMMIT_LATER) &&
        err != -EINVAL && epoch <= p->acked && epoch > p->commit_given &&
        !remus_primary_epoch_lost(p, epoch))
        p->commit_given = epoch;
    remus_primary_unlock(p);
    if (slot) {
        remus_primary_send_now(p, slot, &r, NULL);
        remus_primary_epoch_committed(p, epoch, start);
    }
    return err;
}
