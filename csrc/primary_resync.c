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

/* ---- what to do ------------------------------------------------------- */

/* Journal cost of a catch-up of so many bytes. */
static uint64_t journal_cost(uint64_t bytes)
{
    return bytes + bytes / REMUS_DIRTY_BLOCK * REMUS_REC_HEADER +
           4u * REMUS_PAGE;
}

/* Does the map tell all that this backup lacks?  (lock held) */
static int map_counts(const remus_primary *p,
                      const struct remus_hello_reply *reply)
{
    return remus_dirty_valid(&p->dirty) &&
           !memcmp(reply->generation, p->generation, REMUS_ID_BYTES) &&
           reply->held >= remus_dirty_forgotten(&p->dirty) &&
           reply->held < p->open_epoch;
}

enum remus_plan remus_primary_plan(remus_primary *p,
                                   const struct remus_hello_reply *reply)
{
    if (reply->content < REMUS_CONTENT_COMPLETE)
        return REMUS_PLAN_COPY;
    pthread_mutex_lock(&p->lock);
    int counts = map_counts(p, reply);
    uint64_t refused = p->wont_fit;
    uint64_t bytes = remus_dirty_lacking(&p->dirty, reply->held);
    pthread_mutex_unlock(&p->lock);
    if (!counts)
        return REMUS_PLAN_COPY;
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

static int copy_volume(remus_primary *p, unsigned int volume,
                       unsigned char *buf)
{
    uint64_t size = p->volumes[volume].size;
    int err = 0;
    for (uint64_t at = 0; !err && at < size;) {
        uint64_t left = size - at;
        size_t n = left < COPY_BYTES ? (size_t)left : COPY_BYTES;
        err = remus_primary_copy_range(p, volume, at, n, buf);
        if (!err)
            err = still_connected(p);
        at += n;
    }
    return err;
}

static int copy_all(remus_primary *p, unsigned char *buf)
{
    int err = 0;
    for (unsigned int i = 0; !err && i < p->volume_count; i++)
        err = copy_volume(p, i, buf);
    return err;
}

static int copy_changed(remus_primary *p, unsigned char *buf)
{
    unsigned int volume;
    uint64_t offset, len;
    int err = 0;
    while (!err &&
           remus_dirty_next(&p->dirty, COPY_BYTES, &volume, &offset, &len)) {
        err = remus_primary_copy_range(p, volume, offset, (size_t)len, buf);
        if (!err)
            err = still_connected(p);
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

int remus_primary_resync(remus_primary *p, enum remus_plan plan)
{
    unsigned char *buf = aligned_alloc(REMUS_PAGE, COPY_BYTES);
    int err = buf ? 0 : remus_fail(-ENOMEM, "out of memory");
    if (!err)
        err = plan == REMUS_PLAN_COPY ? copy_all(p, buf)
                                      : copy_changed(p, buf);
    free(buf);
    if (!err && plan != REMUS_PLAN_CATCH_UP)
        err = end_direct(p);
    if (err) {
        remus_primary_link_lost(p, "catch-up ended: %s",
                                remus_last_error());
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
