/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Comparing both sides while the guest runs.  A piece of a disk is read with
 * its range held, so no write to it is under way, and its hashes are queued
 * behind all writes to it before: the backup compares them with what it holds
 * at exactly that point of the stream.  So no difference is found that a
 * write on its way would explain, and none is missed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "primary_int.h"

typedef unsigned long long ull;

#define PIECE (16u * REMUS_DIRTY_BLOCK) /* of one question: what acks and
                                           writes to it may wait for */

struct verify {
    remus_primary *p;
    int repair;
    uint64_t rate;
    uint64_t since_ns;
    uint64_t session;
    unsigned char *buf;    /* PIECE bytes */
    unsigned char hashes[PIECE / REMUS_DIRTY_BLOCK * REMUS_HASH_BYTES];
};

/* ---- one question -------------------------------------------------------- */

/* lock held; arg: the question */
static int answered(remus_primary *p, uint64_t arg)
{
    if (!p->stats.connected || p->stopping || p->verify_cancel)
        return -EPROTO;
    return p->hash_answered == (int64_t)arg;
}

static int cancelled(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
    int yes = p->verify_cancel;
    pthread_mutex_unlock(&p->lock);
    return yes ? remus_fail(-ECANCELED, "resource %s: verify was cancelled",
                            p->resource)
               : 0;
}

static int lost(remus_primary *p)
{
    int err = cancelled(p);
    if (err)
        return err;
    pthread_mutex_lock(&p->lock);
    err = remus_fail(-EPROTO, "resource %s: verify ended: it is %s: %s",
                     p->resource, remus_state_name(p->state), p->reason);
    pthread_mutex_unlock(&p->lock);
    return err;
}

/* 0 and the bits of the blocks that differ. */
static int ask(struct verify *v, unsigned int volume, uint64_t at, size_t len,
               unsigned char *bits)
{
    remus_primary *p = v->p;
    int64_t question;
    int err = remus_primary_hash_range(p, volume, at, len, v->buf, v->hashes,
                                       v->session, &question);
    if (err)
        return err == -EPROTO ? lost(p) : err;
    if (remus_primary_wait_for(p, answered, (uint64_t)question, -1) < 0)
        return lost(p);
    pthread_mutex_lock(&p->lock);
    memcpy(bits, p->hash_bits, sizeof p->hash_bits);
    pthread_mutex_unlock(&p->lock);
    return 0;
}

/* ---- all of it ---------------------------------------------------------- */

/* Sleep, or until cancelled. */
static int pause_for(struct verify *v, uint64_t ms)
{
    remus_primary *p = v->p;
    pthread_mutex_lock(&p->lock);
    uint64_t end = p->io->now_ns(p->io) + ms * 1000000u;
    while (!p->verify_cancel && !p->stopping && p->stats.connected &&
           p->io->now_ns(p->io) < end)
        remus_primary_timed_wait(p, &p->changed, ms < 20 ? (int)ms : 20);
    pthread_mutex_unlock(&p->lock);
    return cancelled(p);
}

static int keep_rate(struct verify *v)
{
    if (!v->rate)
        return cancelled(v->p);
    pthread_mutex_lock(&v->p->lock);
    uint64_t due_ms = v->p->verify.bytes_done * 1000u / v->rate;
    pthread_mutex_unlock(&v->p->lock);
    uint64_t ms = (v->p->io->now_ns(v->p->io) - v->since_ns) / 1000000u;
    return ms < due_ms ? pause_for(v, due_ms - ms) : cancelled(v->p);
}

static int differs(struct verify *v, unsigned int volume, uint64_t at,
                   uint64_t len)
{
    remus_primary *p = v->p;
    int err = v->repair ? remus_primary_repair_range(p, volume, at,
                                                     (size_t)len, v->buf)
                        : 0;
    pthread_mutex_lock(&p->lock);
    struct remus_verify *out = &p->verify;
    if (out->blocks_different < REMUS_VERIFY_KEPT) {
        out->different[out->blocks_different].volume = volume;
        out->different[out->blocks_different].offset = at;
    }
    out->blocks_different++;
    if (v->repair && !err)
        out->bytes_repaired += len;
    pthread_mutex_unlock(&p->lock);
    return err;
}

static int piece(struct verify *v, unsigned int volume, uint64_t at,
                 size_t len)
{
    unsigned char bits[REMUS_HASH_BLOCKS / 8];
    int err = ask(v, volume, at, len, bits);
    for (size_t i = 0; !err && i * REMUS_DIRTY_BLOCK < len; i++) {
        uint64_t from = at + i * REMUS_DIRTY_BLOCK;
        uint64_t n = at + len - from < REMUS_DIRTY_BLOCK
                         ? at + len - from
                         : REMUS_DIRTY_BLOCK;
        if (bits[i / 8] >> (i % 8) & 1)
            err = differs(v, volume, from, n);
    }
    pthread_mutex_lock(&v->p->lock);
    v->p->verify.bytes_done += len;
    pthread_mutex_unlock(&v->p->lock);
    return err ? err : keep_rate(v);
}

static int all(struct verify *v)
{
    remus_primary *p = v->p;
    int err = 0;
    for (unsigned int i = 0; !err && i < p->volume_count; i++) {
        uint64_t size = p->volumes[i].size;
        for (uint64_t at = 0; !err && at < size; at += PIECE)
            err = piece(v, i, at,
                        size - at < PIECE ? (size_t)(size - at) : PIECE);
    }
    return err;
}

/* lock held */
static int begin(struct verify *v)
{
    remus_primary *p = v->p;
    if (p->verify.running)
        return remus_fail(-EBUSY, "resource %s: a verify is under way",
                          p->resource);
    if (p->state != REMUS_STATE_PROTECTED)
        return remus_fail(-EPROTO,
                          "resource %s: verify: it is %s: %s: only what is "
                          "Protected can be compared",
                          p->resource, remus_state_name(p->state), p->reason);
    p->verify = (struct remus_verify){.running = 1};
    p->verify_cancel = 0;
    for (unsigned int i = 0; i < p->volume_count; i++)
        p->verify.bytes_total += p->volumes[i].size;
    v->session = p->session;
    return 0;
}

int remus_primary_verify(remus_primary *p, int repair, uint64_t rate,
                         struct remus_verify *out)
{
    struct verify v = {.p = p,
                       .repair = repair,
                       .rate = rate,
                       .since_ns = p->io->now_ns(p->io)};
    v.buf = aligned_alloc(REMUS_PAGE, PIECE);
    if (!v.buf)
        return remus_fail(-ENOMEM, "resource %s: out of memory", p->resource);
    pthread_mutex_lock(&p->lock);
    int err = begin(&v);
    pthread_mutex_unlock(&p->lock);
    if (!err) {
        err = all(&v);
        pthread_mutex_lock(&p->lock);
        p->verify.running = 0;
        p->verify.complete = !err;
        if (out)
            *out = p->verify;
        pthread_mutex_unlock(&p->lock);
    }
    free(v.buf);
    return err;
}

void remus_primary_verify_status(remus_primary *p, struct remus_verify *out)
{
    pthread_mutex_lock(&p->lock);
    *out = p->verify;
    pthread_mutex_unlock(&p->lock);
}

void remus_primary_verify_cancel(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
    p->verify_cancel = 1;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    remus_primary_wait_kick(p);
}
