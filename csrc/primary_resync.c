/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bringing a backup up to date.  What changed goes through its journal as
 * ordinary records of one epoch, so that until this epoch is committed the
 * backup can be promoted to its old checkpoint; or, the first time and where
 * the file allows it, straight to its disks, which are Inconsistent then.
 *
 * A block is read and queued under its range lock.  A guest's writes go on
 * and into the same epoch; what is read later holds them anyway.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "primary_int.h"

typedef unsigned long long ull;

#define COPY_BYTES (1u << 20)
#define AGAIN_MS 30000u          /* after a catch-up that did not fit */
#define HOLE_BYTES (64u << 20) /* of a hole, in one record */

/* ---- what to do ------------------------------------------------------- */

/* Journal cost of a catch-up of so many bytes. */
static uint64_t journal_cost(uint64_t bytes)
{
    return bytes + bytes / REMUS_DIRTY_BLOCK * REMUS_REC_HEADER +
           4u * REMUS_PAGE;
}

/* Does the map tell all that this backup lacks?  (lock held) */
static int map_counts(const remus_primary *p,
                      const struct remus_hello_reply *reply, int compared)
{
    if (compared)
        return 1;
    uint64_t end;
    return reply->content != REMUS_CONTENT_FOREIGN &&
           remus_dirty_valid(&p->dirty) &&
           remus_lineage_has(&p->kept.lineage, reply->generation, &end) &&
           reply->held <= end &&
           reply->held >= remus_dirty_forgotten(&p->dirty) &&
           reply->held < p->open_epoch;
}

enum remus_plan remus_primary_plan(remus_primary *p,
                                   const struct remus_hello_reply *reply,
                                   int compared)
{
    if (reply->content == REMUS_CONTENT_NONE)
        return REMUS_PLAN_COPY;
    if (reply->content == REMUS_CONTENT_PARTIAL)
        return REMUS_PLAN_MEND;
    pthread_mutex_lock(&p->lock);
    int counts = map_counts(p, reply, compared);
    uint64_t refused = p->wont_fit;
    /* Perhaps the guest writes less by now. */
    if (p->io->now_ns(p->io) - p->wont_fit_ns > AGAIN_MS * 1000000ull)
        refused = 0;
    uint64_t bytes = remus_dirty_lacking(&p->dirty, reply->held);
    pthread_mutex_unlock(&p->lock);
    if (!counts)
        return REMUS_PLAN_COMPARE;
    if (journal_cost(bytes) <= reply->capacity &&
        (!refused || reply->capacity > refused))
        return REMUS_PLAN_CATCH_UP;
    if (p->allow_inconsistent)
        return REMUS_PLAN_REWRITE;
    remus_fail(-ENOSPC,
               "the catch-up (%llu KiB changed) does not fit into the "
               "backup's journal (room for %llu KiB): enlarge the journal, or "
               "set allow_inconsistent = true",
               (ull)(bytes >> 10), (ull)(reply->capacity >> 10));
    return REMUS_PLAN_WAIT;
}

/* ---- straight to the disks --------------------------------------------- */

/* lock held */
static int step_reached(remus_primary *p, uint64_t step)
{
    if (!p->stats.connected || p->stopping)
        return -EPROTO;
    return p->resync_step == (int)step;
}

static int send_step(remus_primary *p, enum remus_resync_step step)
{
    struct remus_record r = {.type = REMUS_REC_RESYNC, .flags = (uint8_t)step};
    pthread_mutex_lock(&p->lock);
    struct remus_slot *slot = NULL;
    if (p->stats.connected &&
        remus_sendq_fits(&p->queue, REMUS_REC_HEADER, 1)) {
        slot = remus_sendq_reserve(&p->queue, REMUS_REC_HEADER);
        r.session = p->session;
        if (step == REMUS_RESYNC_END) {
            r.epoch = p->open_epoch;
            p->journaled = 1;
            /* What is marked so far is in the disks once END is answered;
             * what comes now belongs to the epoch that opens. */
            remus_dirty_roll(&p->dirty, r.epoch - 1);
            remus_dirty_relabel(&p->dirty, r.epoch - 1);
        }
    }
    pthread_mutex_unlock(&p->lock);
    if (!slot)
        return -EPROTO;
    remus_sendq_publish(&p->queue, slot, &r, NULL);
    return 0;
}

/* One of our records, and the backup's answer to it. */
static int exchange_step(remus_primary *p, enum remus_resync_step ask,
                         enum remus_resync_step answer_step)
{
    int err = send_step(p, ask);
    if (!err)
        err = remus_primary_wait_for(p, step_reached, answer_step, -1);
    return err < 0 ? err : 0;
}

static int still_connected(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
    int go = p->stats.connected && !p->stopping;
    pthread_mutex_unlock(&p->lock);
    return go ? 0 : -EPROTO;
}

/* Not faster than `resync_rate`, counted from `since`. */
static int keep_rate(remus_primary *p, uint64_t since)
{
    int err = 0;
    pthread_mutex_lock(&p->lock);
    while (p->resync_rate && !err) {
        uint64_t ms = p->stats.resync_done * 1000u / p->resync_rate;
        uint64_t now = (p->io->now_ns(p->io) - since) / 1000000u;
        if (now >= ms)
            break;
        uint64_t left = ms - now;
        remus_primary_engine_wait(p, left > 100 ? 100 : (uint32_t)left);
        if (!p->stats.connected || p->stopping)
            err = -EPROTO;
    }
    pthread_mutex_unlock(&p->lock);
    return err;
}

/* Copy [at, end), whose blocks may be holes.  0 or -errno. */
static int copy_piece(remus_primary *p, unsigned int volume, uint64_t at,
                      uint64_t end, unsigned char *buf)
{
    int err = 0;
    while (!err && at < end) {
        size_t n = end - at < COPY_BYTES ? (size_t)(end - at) : COPY_BYTES;
        err = remus_primary_copy_range(p, volume, at, n, buf);
        if (!err)
            err = still_connected(p);
        at += n;
    }
    return err;
}

/* All of a volume; holes travel as zeroes, and the backup makes holes. */
static int copy_volume(remus_primary *p, unsigned int volume,
                       unsigned char *buf, uint64_t since)
{
    const struct remus_pvolume *v = &p->volumes[volume];
    int err = 0;
    for (uint64_t at = 0; !err && at < v->size;) {
        uint64_t start, end;
        int more = p->io->next_data(p->io, v->file, at, &start, &end);
        if (more < 0)
            return remus_fail(more, "volume %s: look for holes of %s: %s",
                              v->name, v->path, remus_errno_text(more));
        uint64_t hole = (more ? start : v->size) - at;
        if (hole > HOLE_BYTES)
            hole = HOLE_BYTES;
        uint64_t n = v->size - at < COPY_BYTES ? v->size - at : COPY_BYTES;
        err = hole ? remus_primary_copy_hole(p, volume, at, hole) : -EAGAIN;
        if (!err)
            n = hole;
        else if (err == -EAGAIN) /* data, or by now it is */
            err = copy_piece(p, volume, at, at + n, buf);
        if (!err)
            err = still_connected(p);
        if (!err)
            err = keep_rate(p, since);
        at += n;
    }
    return err;
}

static int copy_all(remus_primary *p, unsigned char *buf, uint64_t since)
{
    int err = 0;
    for (unsigned int i = 0; !err && i < p->volume_count; i++)
        err = copy_volume(p, i, buf, since);
    return err;
}

/* ---- comparing ---------------------------------------------------------- */

/* lock held */
static int hash_answered(remus_primary *p, uint64_t question)
{
    if (!p->stats.connected || p->stopping)
        return -EPROTO;
    return p->hash_answered == (int64_t)question;
}

/* Hashes of the blocks of a range, read without its lock: what a guest
 * writes meanwhile is marked, or queued behind the question. */
static int hash_range(remus_primary *p, unsigned int volume, uint64_t at,
                      uint64_t len, unsigned char *buf, unsigned char *out)
{
    for (uint64_t end = at + len; at < end;) {
        size_t n = end - at < COPY_BYTES ? (size_t)(end - at) : COPY_BYTES;
        int err = remus_primary_pread(p, volume, buf, n, at);
        if (err)
            return err;
        for (size_t i = 0; i < n;
             i += REMUS_DIRTY_BLOCK, out += REMUS_HASH_BYTES)
            remus_hash(buf + i,
                       n - i < REMUS_DIRTY_BLOCK ? n - i : REMUS_DIRTY_BLOCK,
                       out);
        at += n;
    }
    return 0;
}

/* Ask which blocks of a range differ; `bits` of the answer. */
static int ask(remus_primary *p, unsigned int volume, uint64_t at,
               uint64_t len, const unsigned char *hashes, uint32_t bytes,
               unsigned char *bits)
{
    struct remus_record r = {.type = REMUS_REC_HASH,
                             .volume = (uint16_t)volume,
                             .offset = at,
                             .range = len,
                             .length = bytes};
    pthread_mutex_lock(&p->lock);
    struct remus_slot *slot = NULL;
    if (p->stats.connected &&
        remus_sendq_fits(&p->queue, REMUS_REC_HEADER + bytes, 1)) {
        slot = remus_sendq_reserve(&p->queue, REMUS_REC_HEADER + bytes);
        r.session = p->session;
        r.number = (uint64_t)++p->hash_asked;
    }
    pthread_mutex_unlock(&p->lock);
    if (!slot)
        return -EPROTO;
    remus_sendq_publish(&p->queue, slot, &r, hashes);
    int rc = remus_primary_wait_for(p, hash_answered, r.number, -1);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&p->lock);
    memcpy(bits, p->hash_bits, sizeof p->hash_bits);
    pthread_mutex_unlock(&p->lock);
    return 0;
}

/* A block differs: mark it (the stream is not open yet), or copy it. */
static int differs(remus_primary *p, unsigned int volume, uint64_t at,
                   uint64_t len, int copy, unsigned char *buf)
{
    if (copy)
        return copy_piece(p, volume, at, at + len, buf);
    pthread_mutex_lock(&p->lock);
    remus_dirty_mark(&p->dirty, atomic_load(&p->dirty.open), volume, at, len);
    p->stats.resync_done += len;
    pthread_mutex_unlock(&p->lock);
    return 0;
}

static int compare_volume(remus_primary *p, unsigned int volume, int copy,
                          unsigned char *buf, uint64_t since)
{
    unsigned char hashes[REMUS_HASH_BLOCKS * REMUS_HASH_BYTES];
    unsigned char bits[REMUS_HASH_BLOCKS / 8];
    const uint64_t step = (uint64_t)REMUS_HASH_BLOCKS * REMUS_DIRTY_BLOCK;
    uint64_t size = p->volumes[volume].size;
    int err = 0;
    for (uint64_t at = 0; !err && at < size; at += step) {
        uint64_t len = size - at < step ? size - at : step;
        uint32_t blocks =
            (uint32_t)((len + REMUS_DIRTY_BLOCK - 1) / REMUS_DIRTY_BLOCK);
        err = hash_range(p, volume, at, len, buf, hashes);
        if (!err)
            err = ask(p, volume, at, len, hashes, blocks * REMUS_HASH_BYTES,
                      bits);
        for (uint32_t i = 0; !err && i < blocks; i++) {
            uint64_t from = at + (uint64_t)i * REMUS_DIRTY_BLOCK;
            uint64_t n = size - from < REMUS_DIRTY_BLOCK ? size - from
                                                         : REMUS_DIRTY_BLOCK;
            if (bits[i / 8] >> (i % 8) & 1) {
                err = differs(p, volume, from, n, copy, buf);
                continue;
            }
            pthread_mutex_lock(&p->lock);
            p->stats.resync_done += n;
            pthread_mutex_unlock(&p->lock);
        }
        if (!err)
            err = keep_rate(p, since);
    }
    return err;
}

static int compare_all(remus_primary *p, int copy, unsigned char *buf,
                       uint64_t since)
{
    int err = 0;
    for (unsigned int i = 0; !err && i < p->volume_count; i++)
        err = compare_volume(p, i, copy, buf, since);
    return err;
}

/* Now the map tells what the backup lacks: go on as if it always had.
 * *plan: what is left to do. */
static int compared(remus_primary *p, const struct remus_hello_reply *reply,
                    enum remus_plan *plan)
{
    pthread_mutex_lock(&p->lock);
    remus_dirty_base(&p->dirty, reply->held);
    pthread_mutex_unlock(&p->lock);
    *plan = remus_primary_plan(p, reply, 1);
    if (*plan == REMUS_PLAN_WAIT)
        return -ENOSPC;
    struct remus_record r;
    struct remus_slot *slot = NULL;
    pthread_mutex_lock(&p->lock);
    if (p->stats.connected)
        slot = remus_primary_begin_plan(p, reply, *plan, &r);
    pthread_mutex_unlock(&p->lock);
    if (!slot)
        return remus_fail(-EPROTO, "a new generation began, or the link went");
    remus_sendq_publish(&p->queue, slot, &r, NULL);
    return 0;
}

static int copy_changed(remus_primary *p, unsigned char *buf,
                        uint64_t since)
{
    unsigned int volume;
    uint64_t offset, len;
    int err = 0;
    while (!err &&
           remus_dirty_next(&p->dirty, COPY_BYTES, &volume, &offset, &len)) {
        err = remus_primary_copy_range(p, volume, offset, (size_t)len, buf);
        if (!err)
            err = still_connected(p);
        if (!err)
            err = keep_rate(p, since);
    }
    return err;
}

/* The backup's disks are durable, the counted records begin. */
static int end_direct(remus_primary *p)
{
    /* Most of the data is synced while writes still go straight to the
     * disks; the second sync, at END, has little left to do. */
    int err = exchange_step(p, REMUS_RESYNC_FLUSH, REMUS_RESYNC_FLUSHED);
    if (!err)
        err = exchange_step(p, REMUS_RESYNC_END, REMUS_RESYNC_DONE);
    if (err)
        return err;
    pthread_mutex_lock(&p->lock);
    remus_dirty_base(&p->dirty, p->catch_epoch - 1);
    pthread_mutex_unlock(&p->lock);
    return 0;
}

static int carry_out(remus_primary *p, enum remus_plan plan,
                     const struct remus_hello_reply *reply,
                     unsigned char *buf)
{
    int err = 0;
    uint64_t since = p->io->now_ns(p->io);
    if (plan == REMUS_PLAN_COMPARE) {
        err = compare_all(p, 0, buf, since);
        if (!err)
            err = compared(p, reply, &plan);
        since = p->io->now_ns(p->io);
    }
    if (err)
        return err;
    if (plan == REMUS_PLAN_COPY)
        err = copy_all(p, buf, since);
    else if (plan == REMUS_PLAN_MEND)
        err = compare_all(p, 1, buf, since);
    else
        err = copy_changed(p, buf, since);
    if (!err && plan != REMUS_PLAN_CATCH_UP)
        err = end_direct(p);
    return err;
}

int remus_primary_resync(remus_primary *p, enum remus_plan plan,
                         const struct remus_hello_reply *reply)
{
    unsigned char *buf = aligned_alloc(REMUS_PAGE, COPY_BYTES);
    int err = buf ? carry_out(p, plan, reply, buf)
                  : remus_fail(-ENOMEM, "out of memory");
    free(buf);
    if (err) {
        remus_primary_link_lost(p, "catch-up ended: %s", remus_last_error());
        return err;
    }
    pthread_mutex_lock(&p->lock);
    if (p->stats.connected) {
        p->caught_up = 1;
        remus_primary_set_state(
            p, REMUS_STATE_CATCHING_UP,
            "all that changed is sent; the next checkpoint completes it");
    }
    pthread_mutex_unlock(&p->lock);
    return 0;
}
