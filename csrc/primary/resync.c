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

#include "base/error.h"
#include "primary/internal.h"

typedef unsigned long long ull;

#define COPY_BYTES (1u << 20)
#define HOLE_BYTES (64u << 20) /* of a hole, in one record */

/* ---- straight to the disks --------------------------------------------- */

/* lock held */
static int step_reached(remus_primary *p, uint64_t step)
{
    if (!remus_link_up(p) || remus_stopping(p))
        return -EPROTO;
    return p->c.resync_step == (int)step;
}

static int send_step(remus_primary *p, enum remus_resync_step step)
{
    struct remus_record r = {.type = REMUS_REC_RESYNC, .flags = (uint8_t)step};
    remus_primary_lock(p);
    struct remus_slot *slot = NULL;
    if (remus_link_up(p) && remus_sendq_fits(&p->queue, REMUS_REC_HEADER, 1)) {
        slot = remus_sendq_reserve(&p->queue, REMUS_REC_HEADER);
        r.session = p->c.id;
        if (step == REMUS_RESYNC_END) {
            r.epoch = p->open_epoch;
            remus_primary_link_event(p, REMUS_LINK_COUNT, NULL);
            /* What is marked so far is in the disks once END is answered;
             * what comes now belongs to the epoch that opens. */
            remus_dirty_roll(&p->dirty, r.epoch - 1);
            remus_dirty_relabel(&p->dirty, r.epoch - 1);
        }
    }
    remus_primary_unlock(p);
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
    remus_primary_lock(p);
    int go = remus_link_up(p) && !remus_stopping(p);
    remus_primary_unlock(p);
    return go ? 0 : -EPROTO;
}

/* Not faster than `resync_rate`, counted from `since`. */
static int keep_rate(remus_primary *p, uint64_t since)
{
    int err = 0;
    remus_primary_lock(p);
    while (p->resync_rate && !err) {
        uint64_t ms = p->stats.resync_done * 1000u / p->resync_rate;
        uint64_t now = (p->io->now_ns(p->io) - since) / 1000000u;
        if (now >= ms)
            break;
        uint64_t left = ms - now;
        remus_primary_timed_wait(p, &p->engine_wake,
                                 left > 100 ? 100 : (int)left);
        if (!remus_link_up(p) || remus_stopping(p))
            err = -EPROTO;
    }
    remus_primary_unlock(p);
    return err;
}

/* Copy [at, end), whose blocks may be holes.  0 or -errno. */
static int copy_piece(remus_primary *p, unsigned int volume, uint64_t at,
                      uint64_t end, unsigned char *buf)
{
    int err = 0;
    while (!err && at < end) {
        size_t n = end - at < COPY_BYTES ? (size_t)(end - at) : COPY_BYTES;
        n = remus_primary_flow_piece(p, n);
        err = remus_primary_copy_range(p, volume, at, n, buf);
        if (!err)
            err = remus_primary_flow_prove(p);
        if (!err)
            err = still_connected(p);
        at += n;
    }
    return err;
}

/* [at, end) of a volume; holes travel as zeroes, and the backup makes
 * holes. */
static int copy_span(remus_primary *p, unsigned int volume, uint64_t at,
                     uint64_t end, unsigned char *buf, uint64_t since)
{
    int err = 0;
    while (!err && at < end) {
        uint64_t next;
        uint64_t n = remus_primary_hole(p, volume, at, end, &next);
        if (n > HOLE_BYTES)
            n = HOLE_BYTES;
        err = n ? remus_primary_copy_hole(p, volume, at, n) : -EAGAIN;
        if (err == -EAGAIN) { /* data, or by now it is */
            n = next - at < COPY_BYTES ? next - at : COPY_BYTES;
            err = copy_piece(p, volume, at, at + n, buf);
        }
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
        err = copy_span(p, i, 0, p->volumes[i].size, buf, since);
    return err;
}

/* ---- comparing ---------------------------------------------------------- */

/* lock held */
static int hash_answered(remus_primary *p, uint64_t question)
{
    if (!remus_link_up(p) || remus_stopping(p))
        return -EPROTO;
    return p->c.hash_answered == (int64_t)question;
}

/* Hashes of the blocks of a range, read without its lock: what a guest
 * writes meanwhile is marked, or queued behind the question. */
static int hash_range(remus_primary *p, unsigned int volume, uint64_t at,
                      uint64_t len, unsigned char *buf, unsigned char *out)
{
    for (uint64_t end = at + len; at < end;) {
        size_t n = end - at < COPY_BYTES ? (size_t)(end - at) : COPY_BYTES;
        int err = remus_primary_pread(p, volume, buf, n, at);
        if (!err)
            err = remus_hash_blocks(buf, n, REMUS_BLOCK, out);
        if (err)
            return err;
        out += (n + REMUS_BLOCK - 1) / REMUS_BLOCK * REMUS_HASH_BYTES;
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
    remus_primary_lock(p);
    struct remus_slot *slot = NULL;
    if (remus_link_up(p) &&
        remus_sendq_fits(&p->queue, REMUS_REC_HEADER + bytes, 1)) {
        slot = remus_sendq_reserve(&p->queue, REMUS_REC_HEADER + bytes);
        r.session = p->c.id;
        r.number = (uint64_t)++p->hash_asked;
    }
    remus_primary_unlock(p);
    if (!slot)
        return -EPROTO;
    remus_sendq_publish(&p->queue, slot, &r, hashes);
    int rc = remus_primary_wait_for(p, hash_answered, r.number, -1);
    if (rc < 0)
        return rc;
    remus_primary_lock(p);
    int right = hash_answered(p, r.number) == 1 && p->c.id == r.session;
    memcpy(bits, p->c.hash_bits, sizeof p->c.hash_bits);
    remus_primary_unlock(p);
    return right ? 0 : remus_fail(-EPROTO, "the link was lost");
}

/* A block differs: mark it (the stream is not open yet), or copy it. */
static int differs(remus_primary *p, unsigned int volume, uint64_t at,
                   uint64_t len, int copy, unsigned char *buf)
{
    if (copy)
        return copy_piece(p, volume, at, at + len, buf);
    remus_primary_lock(p);
    remus_dirty_mark(&p->dirty, atomic_load(&p->dirty.open), volume, at, len);
    p->stats.resync_done += len;
    remus_primary_unlock(p);
    return 0;
}

static int compare_volume(remus_primary *p, unsigned int volume, int copy,
                          unsigned char *buf, uint64_t since)
{
    unsigned char hashes[REMUS_HASH_BLOCKS * REMUS_HASH_BYTES];
    unsigned char bits[REMUS_HASH_BLOCKS / 8];
    const uint64_t step = (uint64_t)REMUS_HASH_BLOCKS * REMUS_BLOCK;
    uint64_t size = p->volumes[volume].size;
    int err = 0;
    for (uint64_t at = 0; !err && at < size; at += step) {
        uint64_t len = size - at < step ? size - at : step;
        uint32_t blocks = (uint32_t)((len + REMUS_BLOCK - 1) / REMUS_BLOCK);
        err = hash_range(p, volume, at, len, buf, hashes);
        if (!err)
            err = ask(p, volume, at, len, hashes, blocks * REMUS_HASH_BYTES,
                      bits);
        for (uint32_t i = 0; !err && i < blocks; i++) {
            uint64_t from = at + (uint64_t)i * REMUS_BLOCK;
            uint64_t n = size - from < REMUS_BLOCK ? size - from : REMUS_BLOCK;
            if (bits[i / 8] >> (i % 8) & 1) {
                err = differs(p, volume, from, n, copy, buf);
                continue;
            }
            remus_primary_lock(p);
            p->stats.resync_done += n;
            remus_primary_unlock(p);
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
    for (unsigned int i = 0; !err && i < p->volume_count; i++) {
        err = remus_primary_see_disk(p, i);
        if (!err)
            err = compare_volume(p, i, copy, buf, since);
    }
    return err;
}

/* Add what the backup's own map marks to ours.  (A write of the guest's that
 * comes meanwhile is marked anyway.) */
static int ask_marks(remus_primary *p, unsigned char *buf)
{
    unsigned char bits[REMUS_HASH_BLOCKS / 8];
    const uint64_t step = (uint64_t)REMUS_HASH_BLOCKS * REMUS_BLOCK;
    int err = 0;
    for (unsigned int i = 0; !err && i < p->volume_count; i++) {
        uint64_t size = p->volumes[i].size;
        for (uint64_t at = 0; !err && at < size; at += step) {
            uint64_t len = size - at < step ? size - at : step;
            err = ask(p, i, at, len, NULL, 0, bits);
            for (uint64_t from = 0; !err && from < len; from += REMUS_BLOCK)
                if (bits[from / REMUS_BLOCK / 8] >> (from / REMUS_BLOCK % 8) &
                    1)
                    err = differs(p, i, at + from,
                                  len - from < REMUS_BLOCK ? len - from
                                                           : REMUS_BLOCK,
                                  0, buf);
        }
    }
    return err;
}

/* Now the map tells what the backup lacks: go on as if it always had.
 * *plan: what is left to do. */
static int compared(remus_primary *p, const struct remus_hello_reply *reply,
                    enum remus_plan *plan)
{
    remus_primary_lock(p);
    /* After a sync error of ours the map counts for nothing, whatever was
     * answered before. */
    int up = remus_link_up(p);
    if (up && *plan == REMUS_PLAN_COMPARE)
        remus_dirty_base(&p->dirty, reply->held);
    int counts = remus_dirty_valid(&p->dirty);
    uint64_t id = p->c.id;
    remus_primary_unlock(p);
    if (!up || !counts)
        return remus_fail(-EPROTO, up ? "a disk failed meanwhile: the "
                                        "sides must be compared again"
                                      : "the link was lost");
    *plan = remus_primary_plan(p, reply, 1);
    if (*plan == REMUS_PLAN_WAIT)
        return -ENOSPC;
    int err = remus_primary_state_session(p, id);
    if (err)
        return err;
    struct remus_record r;
    struct remus_slot *slot = NULL;
    remus_primary_lock(p);
    if (remus_link_up(p))
        slot = remus_primary_begin_plan(p, reply, *plan, &r);
    remus_primary_unlock(p);
    if (!slot)
        return remus_fail(-EPROTO,
                          "a new generation began, or the link was lost");
    remus_sendq_publish(&p->queue, slot, &r, NULL);
    return 0;
}

static int copy_changed(remus_primary *p, unsigned char *buf, uint64_t since)
{
    unsigned int volume;
    uint64_t offset, len;
    int err = 0;
    while (!err &&
           remus_dirty_next(&p->dirty, HOLE_BYTES, &volume, &offset, &len))
        err = copy_span(p, volume, offset, offset + len, buf, since);
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
    remus_primary_lock(p);
    int up = remus_link_up(p);
    if (up)
        remus_dirty_base(&p->dirty, p->c.first - 1);
    remus_primary_unlock(p);
    return up ? 0 : remus_fail(-EPROTO, "the link was lost");
}

static int carry_out(remus_primary *p, enum remus_plan plan,
                     const struct remus_hello_reply *reply, unsigned char *buf)
{
    int err = 0;
    uint64_t since = p->io->now_ns(p->io);
    if (remus_plan_asks(plan)) {
        err = plan == REMUS_PLAN_MARKS ? ask_marks(p, buf)
                                       : compare_all(p, 0, buf, since);
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
    remus_primary_lock(p);
    if (remus_link_up(p))
        remus_primary_link_event(
            p, REMUS_LINK_QUEUED,
            "all that changed is sent; the next checkpoint completes it");
    remus_primary_unlock(p);
    return 0;
}
