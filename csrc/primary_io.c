/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary's disk I/O.  A write takes its range, is marked in the dirty map,
 * goes to the local disk, goes into the queue, and only then gives the range
 * back and is answered: so overlapping writes reach disk and stream in one
 * order, and what a killed process left on the disk is marked.
 *
 * A request that meets a busy range or a full queue is parked.  The resumer
 * thread finishes it; nobody else ever waits for it (FUSE workers least of
 * all), except the synchronous calls, which wait for their own `done`.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "primary_int.h"

typedef unsigned long long ull;

#define REREAD_MAX (64u << 20) /* bytes read again after a failed write */

/* ---- ranges -------------------------------------------------------------- */

/* Take a range.  1: taken; 0: an overlapping one is in flight, and its end
 * will kick the resumer. */
static int range_take(struct remus_pvolume *v, struct remus_range *r,
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

static void range_give(remus_primary *p, struct remus_pvolume *v,
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
        pthread_mutex_lock(&p->lock);
        remus_primary_kick_parked(p);
        pthread_mutex_unlock(&p->lock);
    }
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
    return !p->journaled || p->spent + cost <= p->credit;
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
    int passes = p->alone && remus_primary_has_leave(p);
    if (p->fenced)
        q->result = -EROFS;
    else if (!p->alone && remus_primary_alone_fails(p))
        q->result = p->alone_failed;
    else if (!passes && (p->stopping || p->alone_refused))
        q->result = -EIO;
    else
        return passes;
    return 1;
}

/* 1: the question is queued, or nobody is there to ask; 0: no room. */
static int queue_hashes(remus_primary *p, struct remus_request *q, int first)
{
    uint64_t len = q->range.end - q->range.start;
    struct remus_record r = {
        .type = REMUS_REC_HASH,
        .volume = (uint16_t)q->volume,
        .offset = q->range.start,
        .range = len,
        .length = (uint32_t)((len + REMUS_DIRTY_BLOCK - 1) /
                             REMUS_DIRTY_BLOCK * REMUS_HASH_BYTES)};
    pthread_mutex_lock(&p->lock);
    if (q->result || !p->streaming || !p->journaled ||
        p->session != q->session) {
        if (!q->result)
            q->result = -EPROTO;
        pthread_mutex_unlock(&p->lock);
        return 1;
    }
    if ((first && p->parked_room) ||
        !has_room(p, REMUS_REC_HEADER + r.length, 0)) {
        pthread_mutex_unlock(&p->lock);
        return 0;
    }
    struct remus_slot *slot =
        remus_sendq_reserve(&p->queue, REMUS_REC_HEADER + r.length);
    r.session = p->session;
    r.number = (uint64_t)++p->hash_asked;
    *q->asked = p->hash_asked;
    pthread_mutex_unlock(&p->lock);
    remus_sendq_publish(&p->queue, slot, &r, q->hashes);
    return 1;
}

/*
 * Queue what is left of a request's range, as far as there is room.
 * 1: all is queued (or nothing has to be); 0: no room for the rest.
 */
static int queue_range(remus_primary *p, struct remus_request *q, int first)
{
    uint64_t total = q->range.end - q->range.start;
    if (q->kind == REMUS_REQ_HASH)
        return queue_hashes(p, q, first);
    while (q->queued < total) {
        int zero = q->kind == REMUS_REQ_ZERO;
        uint64_t left = total - q->queued;
        struct remus_record r = {
            .type = zero ? REMUS_REC_ZERO : REMUS_REC_WRITE,
            .volume = (uint16_t)q->volume,
            .offset = q->range.start + q->queued,
        };
        pthread_mutex_lock(&p->lock);
        if (!p->streaming) {
            mark_again(p, q, q->queued, left);
            int passes = q->copy || may_pass(p, q);
            pthread_mutex_unlock(&p->lock);
            return passes;
        }
        /* It is on our disk: if giving way fails we go on, and the backup
         * must have it, too. */
        if (p->fenced && !q->copy) {
            q->result = -EROFS;
            if (p->gave_way) {
                pthread_mutex_unlock(&p->lock);
                return 1;
            }
        }
        uint32_t max = p->journaled ? p->max_payload : REMUS_REC_PAYLOAD_MAX;
        uint64_t n = zero || left < max ? left : max;
        if (zero)
            r.range = n;
        else
            r.length = (uint32_t)n;
        r.flags = (uint8_t)((p->journaled ? 0 : REMUS_REC_DIRECT) |
                            (q->copy ? REMUS_REC_CATCH_UP : 0));
        uint64_t cost = remus_record_cost(&r);
        /* Those who wait go first, or large writes would wait for ever. */
        if ((first && p->parked_room) ||
            !has_room(p, REMUS_REC_HEADER + r.length, cost)) {
            pthread_mutex_unlock(&p->lock);
            return 0;
        }
        struct remus_slot *slot =
            remus_sendq_reserve(&p->queue, REMUS_REC_HEADER + r.length);
        r.session = p->session;
        if (p->journaled) {
            r.epoch = p->open_epoch;
            r.number = p->next_number++;
            p->epoch_records++;
            p->epoch_bytes += n;
            p->spent += cost;
        }
        p->stats.records++;
        mark_again(p, q, q->queued, n);
        if (q->copy)
            p->stats.resync_done += n;
        else if (zero)
            p->stats.bytes_zeroed += n;
        else
            p->stats.bytes_written += n;
        pthread_mutex_unlock(&p->lock);
        remus_sendq_publish(&p->queue, slot, &r,
                            zero ? NULL : q->data + q->queued);
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
    int err = again ? remus_io_read(p->io, v->file, again, len,
                                    q->range.start)
                    : -ENOMEM;
    if (err) {
        free(again);
        q->queued = len;
        pthread_mutex_lock(&p->lock);
        mark_again(p, q, 0, len);
        pthread_mutex_unlock(&p->lock);
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
    q->kind = REMUS_REQ_WRITE;
}

/* With the range held: the part that only the local disk decides. */
static void do_local(remus_primary *p, struct remus_request *q)
{
    struct remus_pvolume *v = &p->volumes[q->volume];
    size_t len = (size_t)(q->range.end - q->range.start);
    int err = 0;
    if (!q->copy) {
        q->set = remus_dirty_pin(&p->dirty);
        remus_dirty_mark(&p->dirty, q->set, q->volume, q->range.start, len);
    }
    switch (q->kind) {
    case REMUS_REQ_WRITE:
        err = remus_io_write(p->io, v->file, q->data, len, q->range.start);
        break;
    case REMUS_REQ_ZERO:
        err = p->io->zero(p->io, v->file, q->range.start, len);
        break;
    case REMUS_REQ_COPY:
        q->result = remus_io_read(p->io, v->file, q->into, len,
                                  q->range.start);
        q->data = q->into;
        if (q->result)
            q->queued = len;
        /* A hole or free space: no need to carry zeroes. */
        else if (q->data[0] == 0 &&
                 !memcmp(q->data, q->data + 1, len - 1))
            q->kind = REMUS_REQ_ZERO;
        return;
    case REMUS_REQ_HASH:
        q->result = remus_io_read(p->io, v->file, q->into, len,
                                  q->range.start);
        for (size_t at = 0; !q->result && at < len; at += REMUS_DIRTY_BLOCK)
            remus_hash(q->into + at,
                       len - at < REMUS_DIRTY_BLOCK ? len - at
                                                    : REMUS_DIRTY_BLOCK,
                       q->hashes + at / REMUS_DIRTY_BLOCK * REMUS_HASH_BYTES);
        return;
    case REMUS_REQ_HOLE: {
        uint64_t start, end;
        int more = p->io->next_data(p->io, v->file, q->range.start, &start,
                                    &end);
        if (more < 0 || (more && start < q->range.end)) {
            q->result = more < 0 ? more : -EAGAIN;
            q->queued = len;
        }
        q->kind = REMUS_REQ_ZERO;
        return;
    }
    }
    q->result = err;
    if (err)
        after_local_error(p, q);
}

/* It is queued, or marked where it stays marked until it was. */
static void release(remus_primary *p, struct remus_request *q)
{
    if (!q->copy)
        remus_dirty_unpin(&p->dirty, q->set);
    range_give(p, &p->volumes[q->volume], &q->range);
}

/* ---- parking ------------------------------------------------------------ */

void remus_primary_kick_parked(remus_primary *p)
{
    if (p->parked && !p->park_kick) {
        p->park_kick = 1;
        pthread_cond_signal(&p->park_changed);
    }
}

/* lock held */
static void park(remus_primary *p, struct remus_request *q,
                 enum remus_request_step step)
{
    q->step = step;
    q->since_ns = p->io->now_ns(p->io);
    q->next = NULL;
    *p->parked_tail = q;
    p->parked_tail = &q->next;
    p->stats.stalls++;
    if (step == REMUS_REQ_ROOM) {
        p->parked_room++;
        atomic_store(&p->room_wanted, 1);
        pthread_cond_signal(&p->engine_wake); /* a checkpoint makes room */
    }
    /* What it waits for may have come while it was on its way here. */
    p->park_kick = 1;
    pthread_cond_signal(&p->park_changed);
    /* Credit arrives in acks and pings. */
    if (!p->rx_wanted) {
        p->rx_wanted = 1;
        pthread_cond_signal(&p->rx_resume);
    }
}

/* lock held */
static void unpark(remus_primary *p, struct remus_request **at)
{
    struct remus_request *q = *at;
    *at = q->next;
    if (p->parked_tail == &q->next)
        p->parked_tail = at;
    if (q->step == REMUS_REQ_ROOM && --p->parked_room == 0)
        atomic_store(&p->room_wanted, 0);
}

static void free_request(remus_primary *p, struct remus_request *q)
{
    free(q->owned);
    q->owned = NULL;
    pthread_mutex_lock(&p->lock);
    q->next = p->free_requests;
    p->free_requests = q;
    pthread_mutex_unlock(&p->lock);
}

static void finish(remus_primary *p, struct remus_request *q)
{
    release(p, q);
    remus_done_fn done = q->done;
    void *opaque = q->opaque;
    int result = q->result;
    free_request(p, q);
    done(opaque, result);
}

static void range_stop_waiting(struct remus_pvolume *v)
{
    pthread_mutex_lock(&v->lock);
    v->waiting--;
    pthread_mutex_unlock(&v->lock);
}

/*
 * Look at every parked request once, in order.  Only this thread takes them
 * off the list, so a pointer into it stays good while the lock is not held.
 */
static void resume_parked(remus_primary *p)
{
    int room = 1; /* nobody before had to go on waiting for room */
    pthread_mutex_lock(&p->lock);
    if (p->parked_room && remus_primary_may_go_alone(p)) {
        pthread_mutex_unlock(&p->lock);
        remus_primary_take_generation(p);
        pthread_mutex_lock(&p->lock);
    }
    struct remus_request **at = &p->parked;
    while (*at) {
        struct remus_request *q = *at;
        struct remus_pvolume *v = &p->volumes[q->volume];
        if (q->step == REMUS_REQ_ROOM && !room) {
            at = &q->next;
            continue;
        }
        pthread_mutex_unlock(&p->lock);
        int ready = 1;
        if (q->step == REMUS_REQ_RANGE) {
            ready = range_take(v, &q->range, 0);
            if (ready) {
                range_stop_waiting(v);
                do_local(p, q);
                pthread_mutex_lock(&p->lock);
                q->step = REMUS_REQ_ROOM;
                p->parked_room++;
                atomic_store(&p->room_wanted, 1);
                pthread_mutex_unlock(&p->lock);
            }
        }
        if (q->step == REMUS_REQ_ROOM) {
            ready = room && queue_range(p, q, 0);
            if (!ready)
                room = 0;
        }
        pthread_mutex_lock(&p->lock);
        if (!ready) {
            at = &q->next;
            continue;
        }
        unpark(p, at);
        pthread_mutex_unlock(&p->lock);
        finish(p, q);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
}

void *remus_primary_resumer_main(void *arg)
{
    remus_primary *p = arg;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->park_kick && !p->stopping)
            pthread_cond_wait(&p->park_changed, &p->lock);
        if (p->stopping && !p->parked)
            break;
        p->park_kick = 0;
        pthread_mutex_unlock(&p->lock);
        resume_parked(p);
        pthread_mutex_lock(&p->lock);
        if (p->stopping && p->parked)
            p->park_kick = 1; /* its range is given back by another thread */
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

uint64_t remus_primary_oldest_wait(remus_primary *p, uint64_t now)
{
    for (const struct remus_request *q = p->parked; q; q = q->next)
        if (q->step == REMUS_REQ_ROOM)
            return now > q->since_ns ? now - q->since_ns : 0;
    return 0;
}

/* ---- requests ---------------------------------------------------------- */

static struct remus_request *new_request(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
    struct remus_request *q = p->free_requests;
    if (q)
        p->free_requests = q->next;
    pthread_mutex_unlock(&p->lock);
    return q ? q : malloc(sizeof *q);
}

int remus_primary_fenced(remus_primary *p, const struct remus_pvolume *v)
{
    pthread_mutex_lock(&p->lock);
    int err = remus_fail(-EROFS, "volume %s: this side is %s: %s", v->name,
                         remus_state_name(p->state), p->reason);
    pthread_mutex_unlock(&p->lock);
    return err;
}

/*
 * The fast path lives on the caller's stack; a request object and a copy of
 * the data are made only to be parked.
 */
int remus_primary_submit(remus_primary *p, struct remus_request *proto,
                         int borrow)
{
    struct remus_pvolume *v = &p->volumes[proto->volume];
    enum remus_request_step step = REMUS_REQ_RANGE;
    struct remus_request *q = proto;
    if (atomic_load_explicit(&p->no_writes, memory_order_relaxed) && !q->copy)
        return remus_primary_fenced(p, v);
    if (range_take(v, &q->range, 1)) {
        do_local(p, q);
        if (queue_range(p, q, 1)) {
            release(p, q);
            free(q->owned);
            return q->result;
        }
        step = REMUS_REQ_ROOM;
    }
    struct remus_request *parked = new_request(p);
    size_t len = (size_t)(q->range.end - q->range.start);
    unsigned char *copy = NULL;
    if (parked && q->kind == REMUS_REQ_WRITE && !borrow && !q->owned) {
        copy = malloc(len);
        if (copy)
            memcpy(copy, q->data, len);
    }
    if (!parked || (q->kind == REMUS_REQ_WRITE && !borrow && !q->owned &&
                    !copy)) {
        /* Nothing was changed, or what was changed can't be sent. */
        if (step == REMUS_REQ_ROOM) {
            remus_primary_link_lost(p, "volume %s: out of memory for a "
                                       "waiting write",
                                    v->name);
            queue_range(p, q, 0); /* marks it: nothing is sent any more */
            release(p, q);
        } else {
            range_stop_waiting(v);
        }
        free(parked);
        return remus_fail(-ENOMEM, "volume %s: out of memory", v->name);
    }
    pthread_mutex_lock(&v->lock);
    *parked = *q;
    if (step == REMUS_REQ_ROOM) {
        /* The range on the stack is in the list: put ours in its place. */
        struct remus_range **at = &v->busy;
        while (*at != &q->range)
            at = &(*at)->next;
        *at = &parked->range;
        parked->range.next = q->range.next;
    }
    pthread_mutex_unlock(&v->lock);
    if (copy) {
        parked->owned = copy;
        parked->data = copy;
    }
    pthread_mutex_lock(&p->lock);
    park(p, parked, step);
    pthread_mutex_unlock(&p->lock);
    return REMUS_PARKED;
}

int remus_primary_submit_write(remus_primary *p, unsigned int volume,
                               const void *buf, size_t len, uint64_t offset,
                               remus_done_fn done, void *opaque)
{
    int err = remus_primary_check_io(p, volume, offset, len, -ENOSPC);
    if (err || !len)
        return err;
    struct remus_request q = {.kind = REMUS_REQ_WRITE,
                              .volume = volume,
                              .range = {offset, offset + len, NULL},
                              .data = buf,
                              .done = done,
                              .opaque = opaque};
    return remus_primary_submit(p, &q, 0);
}

int remus_primary_submit_zero(remus_primary *p, unsigned int volume,
                              uint64_t offset, uint64_t len,
                              remus_done_fn done, void *opaque)
{
    int err = remus_primary_check_io(p, volume, offset, len, -ENOSPC);
    if (err || !len)
        return err;
    struct remus_request q = {.kind = REMUS_REQ_ZERO,
                              .volume = volume,
                              .range = {offset, offset + len, NULL},
                              .done = done,
                              .opaque = opaque};
    return remus_primary_submit(p, &q, 0);
}
