/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary's disk I/O, step by step.  A write takes its range, is marked in
 * the dirty map, goes to the local disk, goes into the queue, is answered,
 * and only then gives the range back: so overlapping writes reach disk and
 * stream in one order, and what a killed process left on the disk is marked.
 * request.c has who takes these steps, and when.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "primary/internal.h"

typedef unsigned long long ull;

#define REREAD_MAX (64u << 20) /* bytes read again after a failed write */

/* ---- ranges -------------------------------------------------------------- */

int remus_primary_range_take(struct remus_pvolume *v, struct remus_range *r,
                             int will_park)
{
    int taken = 1;
    pthread_mutex_lock(&v->lock);
    for (const struct remus_range *b = v->busy; b; b = b->next)
        if (b->start < r->end && r->start < b->end) {
            taken = 0;
            break;
        }
    if (taken) {
        r->next = v->busy;
        v->busy = r;
    } else if (will_park) {
        v->waiting++;
    }
    pthread_mutex_unlock(&v->lock);
    return taken;
}

void remus_primary_range_give(remus_primary *p, struct remus_pvolume *v,
                              struct remus_range *r)
{
    pthread_mutex_lock(&v->lock);
    struct remus_range **at = &v->busy;
    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    int waiting = v->waiting;
    pthread_mutex_unlock(&v->lock);
    if (waiting) {
        remus_primary_lock(p);
        remus_primary_wake_volume(v);
        remus_primary_unlock(p);
    }
}

void remus_primary_range_stop_waiting(struct remus_pvolume *v)
{
    pthread_mutex_lock(&v->lock);
    v->waiting--;
    pthread_mutex_unlock(&v->lock);
}

/* ---- into the queue ---------------------------------------------------- */

/* lock held */
static int has_room(remus_primary *p, uint64_t length, uint64_t cost)
{
    uint64_t queued = remus_sendq_bytes(&p->queue);
    if (!remus_sendq_fits(&p->queue, length, 0))
        return 0;
    /* One record always may go, however small the limit. */
    if (queued && queued + length > p->queue_limit)
        return 0;
    return !remus_counting(p) || p->c.spent + cost <= p->c.credit;
}

/*
 * The set in which a write was marked before it went to the disk can be of
 * an epoch that closed since, and forgotten once that is stable: so it is
 * marked again in the one to which it belongs, now that this is known
 * (lock held).
 */
static void mark_again(remus_primary *p, const struct remus_request *q,
                       uint64_t from, uint64_t len)
{
    uint32_t open = atomic_load(&p->dirty.open);
    if (q->repair || (!q->copy && q->set != open))
        remus_dirty_mark(&p->dirty, open, q->volume, q->range.start + from,
                         len);
}

/*
 * No backup takes this write.  May it be answered?  If a backup knows this
 * generation, only after a new one is durable: else that backup could be
 * promoted, and nobody could tell that both sides went on.  (lock held)
 */
static int may_pass(const remus_primary *p, struct remus_request *q)
{
    switch (remus_primary_verdict(p)) {
    case REMUS_VERDICT_PASSES:
        return 1;
    case REMUS_VERDICT_WAITS:
        return 0;
    case REMUS_VERDICT_FENCED:
        q->result = -EROFS;
        return 1;
    case REMUS_VERDICT_FAILED:
        q->result = p->alone_error;
        return 1;
    case REMUS_VERDICT_REFUSED:
        break;
    }
    q->result = -EIO;
    return 1;
}

/* 1: the question is queued, or nobody is there to ask; 0: no room. */
static int queue_hashes(remus_primary *p, struct remus_request *q, int first)
{
    uint64_t len = q->range.end - q->range.start;
    struct remus_record r = {.type = REMUS_REC_HASH,
                             .volume = (uint16_t)q->volume,
                             .offset = q->range.start,
                             .range = len,
                             .length =
                                 (uint32_t)((len + REMUS_BLOCK - 1) /
                                            REMUS_BLOCK * REMUS_HASH_BYTES)};
    remus_primary_lock(p);
    if (q->result || !remus_streaming(p) || !remus_counting(p) ||
        p->c.id != q->session) {
        if (!q->result)
            q->result = -EPROTO;
        remus_primary_unlock(p);
        return 1;
    }
    if ((first && p->parked_room) ||
        !has_room(p, REMUS_REC_HEADER + r.length, 0)) {
        remus_primary_unlock(p);
        return 0;
    }
    struct remus_slot *slot =
        remus_sendq_reserve(&p->queue, REMUS_REC_HEADER + r.length);
    r.session = p->c.id;
    r.number = (uint64_t)++p->hash_asked;
    *q->asked = p->hash_asked;
    remus_primary_unlock(p);
    remus_sendq_publish(&p->queue, slot, &r, q->hashes);
    return 1;
}

/* The bytes of the range from q->queued on, as far as the record goes. */
static void publish(remus_primary *p, const struct remus_request *q,
                    struct remus_slot *slot, struct remus_record *r)
{
    if (r->type == REMUS_REC_ZERO)
        remus_sendq_publish(&p->queue, slot, r, NULL);
    else if (q->vector)
        remus_sendq_publish_vector(&p->queue, slot, r, q->vector, q->queued);
    else
        remus_sendq_publish(&p->queue, slot, r, q->data + q->queued);
}

int remus_all_zero(const unsigned char *data, size_t len)
{
    return !data[0] && !memcmp(data, data + 1, len - 1);
}

/* Of what was read for a catch-up: how much from q->queued on, in blocks, is
 * all zeroes, or all not. */
static uint64_t run_of(const struct remus_request *q, uint64_t left, int *zero)
{
    *zero = q->kind == REMUS_REQ_ZERO;
    if (q->kind != REMUS_REQ_COPY)
        return left;
    uint64_t run = 0;
    while (run < left) {
        uint64_t n = left - run < REMUS_BLOCK ? left - run : REMUS_BLOCK;
        int z = remus_all_zero(q->data + q->queued + run, (size_t)n);
        if (run && z != *zero)
            break;
        *zero = z;
        run += n;
    }
    return run;
}

/* A record of so many bytes is queued (lock held). */
static void count(remus_primary *p, const struct remus_request *q, uint64_t n,
                  int zero)
{
    p->stats.records++;
    if (q->copy)
        p->stats.resync_done += n;
    else if (zero)
        p->stats.bytes_zeroed += n;
    else
        p->stats.bytes_written += n;
}

int remus_primary_queue_range(remus_primary *p, struct remus_request *q,
                              int first)
{
    uint64_t total = q->range.end - q->range.start;
    if (q->kind == REMUS_REQ_HASH)
        return queue_hashes(p, q, first);
    while (q->queued < total) {
        int zero;
        uint64_t left = total - q->queued;
        uint64_t run = run_of(q, left, &zero);
        struct remus_record r = {.type =
                                     zero ? REMUS_REC_ZERO : REMUS_REC_WRITE,
                                 .volume = (uint16_t)q->volume,
                                 .offset = q->range.start + q->queued};
        remus_primary_lock(p);
        if (!remus_streaming(p)) {
            mark_again(p, q, q->queued, left);
            int passes = q->copy || may_pass(p, q);
            remus_primary_unlock(p);
            return passes;
        }
        /* It is on our disk: if stepping down fails we go on, and the backup
         * must have it, too. */
        if (remus_authority_fenced(p->authority) && !q->copy) {
            q->result = -EROFS;
            if (p->authority != REMUS_AUTHORITY_YIELDING) {
                remus_primary_unlock(p);
                return 1;
            }
        }
        /* Straight to a disk many small holes are no gain. */
        if (!remus_counting(p) && q->kind == REMUS_REQ_COPY) {
            r.type = REMUS_REC_WRITE;
            zero = 0;
            run = left;
        }
        uint32_t max =
            remus_counting(p) ? p->c.max_payload : REMUS_REC_PAYLOAD_MAX;
        uint64_t n = zero || run < max ? run : max;
        if (zero)
            r.range = n;
        else
            r.length = (uint32_t)n;
        r.flags = (uint8_t)((remus_counting(p) ? 0 : REMUS_REC_DIRECT) |
                            (q->copy ? REMUS_REC_CATCH_UP : 0));
        uint64_t cost = remus_record_cost(&r);
        /* Those who wait go first, or large writes would wait for ever. */
        if ((first && p->parked_room) ||
            !has_room(p, REMUS_REC_HEADER + r.length, cost)) {
            remus_primary_unlock(p);
            return 0;
        }
        struct remus_slot *slot =
            remus_sendq_reserve(&p->queue, REMUS_REC_HEADER + r.length);
        r.session = p->c.id;
        if (remus_counting(p)) {
            r.epoch = p->open_epoch;
            r.number = p->c.next_number++;
            p->c.records++;
            p->c.bytes += n;
            p->c.spent += cost;
        }
        mark_again(p, q, q->queued, n);
        count(p, q, n, zero);
        remus_primary_unlock(p);
        publish(p, q, slot, &r);
        q->queued += n;
    }
    return 1;
}

/* ---- local part -------------------------------------------------------- */

/*
 * The disk failed: what does it hold now?  Read the range again and send
 * that, so both sides agree; where it can't be read, replication ends.
 */
static void after_local_error(remus_primary *p, struct remus_request *q)
{
    struct remus_pvolume *v = &p->volumes[q->volume];
    size_t len = (size_t)(q->range.end - q->range.start);
    unsigned char *again = len <= REREAD_MAX ? malloc(len) : NULL;
    int err = again ? remus_io_read(p->io, v->file, again, len, q->range.start)
                    : -ENOMEM;
    if (err) {
        free(again);
        q->queued = len;
        remus_primary_lock(p);
        mark_again(p, q, 0, len);
        remus_primary_unlock(p);
        remus_primary_link_lost(
            p,
            "volume %s: a local write of %zu bytes at %llu failed and the "
            "range can't be read back (%s): the backup stays at its last "
            "checkpoint",
            v->name, len, (ull)q->range.start, remus_errno_text(err));
        return;
    }
    free(q->owned);
    q->owned = again;
    q->data = again;
    q->vector = NULL;
    q->kind = REMUS_REQ_WRITE;
}

void remus_primary_do_local(remus_primary *p, struct remus_request *q)
{
    struct remus_pvolume *v = &p->volumes[q->volume];
    size_t len = (size_t)(q->range.end - q->range.start);
    int err = 0;
    if (!q->copy) {
        if (q->who.begins)
            q->who.begins(q->who.opaque);
        q->set = remus_dirty_pin(&p->dirty);
        remus_dirty_mark(&p->dirty, q->set, q->volume, q->range.start, len);
        remus_dirty_write_begins(&p->dirty.f, q->volume);
    }
    switch (q->kind) {
    case REMUS_REQ_WRITE:
        err = q->vector ? remus_io_writev(p->io, v->file, q->vector, q->pieces,
                                          q->range.start)
                        : remus_io_write(p->io, v->file, q->data, len,
                                         q->range.start);
        break;
    case REMUS_REQ_ZERO:
        err = p->io->zero(p->io, v->file, q->range.start, len);
        break;
    case REMUS_REQ_COPY:
        q->result =
            remus_io_read(p->io, v->file, q->into, len, q->range.start);
        q->data = q->into;
        if (q->result)
            q->queued = len;
        /* A hole or free space: no need to carry zeroes. */
        else if (remus_all_zero(q->data, len))
            q->kind = REMUS_REQ_ZERO;
        return;
    case REMUS_REQ_HASH:
        q->result =
            remus_io_read(p->io, v->file, q->into, len, q->range.start);
        if (!q->result)
            q->result =
                remus_hash_blocks(q->into, len, REMUS_BLOCK, q->hashes);
        return;
    case REMUS_REQ_HOLE: {
        uint64_t start, end;
        int more =
            p->io->next_data(p->io, v->file, q->range.start, &start, &end);
        if (more < 0 || (more && start < q->range.end)) {
            q->result = more < 0 ? more : -EAGAIN;
            q->queued = len;
        }
        q->kind = REMUS_REQ_ZERO;
        return;
    }
    }
    if (!q->copy)
        remus_dirty_write_ended(&p->dirty.f, q->volume);
    q->result = err;
    if (err)
        after_local_error(p, q);
}

void remus_primary_range_release(remus_primary *p, struct remus_request *q)
{
    if (!q->copy)
        remus_dirty_unpin(&p->dirty, q->set);
    remus_primary_range_give(p, &p->volumes[q->volume], &q->range);
}
