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

#include "base/clock.h"
#include "base/error.h"
#include "base/sized.h"
#include "base/entry.h"
#include "primary/internal.h"

typedef unsigned long long ull;

#define PIECE                                                                 \
    (16u * REMUS_BLOCK) /* of one question: what acks and
                                           writes to it may wait for */

struct verify {
    remus_primary *p;
    int repair;
    uint64_t rate;
    uint64_t since_ns;
    uint64_t session;
    int64_t question;
    unsigned char *buf; /* PIECE bytes */
    unsigned char hashes[PIECE / REMUS_BLOCK * REMUS_HASH_BYTES];
};

/* ---- one question -------------------------------------------------------- */

/* lock held; arg: struct verify.  The answer is one of this connection: the
 * next one has its own, and begins with none. */
static int answered(remus_primary *p, uint64_t arg)
{
    const struct verify *v = (const struct verify *)(uintptr_t)arg;
    if (!remus_link_up(p) || p->c.id != v->session || remus_stopping(p) ||
        p->verify_cancel)
        return -EPROTO;
    return p->c.hash_answered == v->question;
}

static int cancelled(remus_primary *p)
{
    remus_primary_lock(p);
    int yes = p->verify_cancel;
    remus_primary_unlock(p);
    return yes ? remus_fail(-ECANCELED, "resource %s: verify was cancelled",
                            p->resource)
               : 0;
}

static int lost(const struct verify *v)
{
    remus_primary *p = v->p;
    int err = cancelled(p);
    if (err)
        return err;
    remus_primary_lock(p);
    if (remus_link_up(p) && p->c.id != v->session) {
        remus_primary_unlock(p);
        return remus_fail(-EPROTO,
                          "resource %s: verify ended: the backup was lost "
                          "meanwhile, and is back: verify again",
                          p->resource);
    }
    err = remus_fail(-EPROTO, "resource %s: verify ended: it is %s: %s",
                     p->resource, remus_state_name(remus_primary_state(p)),
                     p->reason);
    remus_primary_unlock(p);
    return err;
}

/* 0 and the bits of the blocks that differ. */
static int ask(struct verify *v, unsigned int volume, uint64_t at, size_t len,
               unsigned char *bits)
{
    remus_primary *p = v->p;
    uint64_t arg = (uint64_t)(uintptr_t)v;
    int err = remus_primary_hash_range(p, volume, at, len, v->buf, v->hashes,
                                       v->session, &v->question);
    if (err)
        return err == -EPROTO ? lost(v) : err;
    if (remus_primary_wait_for(p, answered, arg, -1) < 0)
        return lost(v);
    remus_primary_lock(p);
    int there = answered(p, arg) > 0;
    if (there)
        memcpy(bits, p->c.hash_bits, sizeof p->c.hash_bits);
    remus_primary_unlock(p);
    return there ? 0 : lost(v);
}

/* ---- all of it ---------------------------------------------------------- */

/* Sleep, or until cancelled. */
static int pause_for(struct verify *v, uint64_t ms)
{
    remus_primary *p = v->p;
    remus_primary_lock(p);
    struct remus_deadline end = remus_deadline_in(
        remus_primary_now(p), ms > INT64_MAX ? INT64_MAX : (int64_t)ms);
    while (!p->verify_cancel && !remus_stopping(p) && remus_link_up(p) &&
           !remus_deadline_over(end, remus_primary_now(p)))
        remus_primary_timed_wait(p, &p->changed, ms < 20 ? (int)ms : 20);
    remus_primary_unlock(p);
    return cancelled(p);
}

static int keep_rate(struct verify *v)
{
    if (!v->rate)
        return cancelled(v->p);
    remus_primary_lock(v->p);
    uint64_t due_ms = v->p->verify.bytes_done * 1000u / v->rate;
    remus_primary_unlock(v->p);
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
    remus_primary_lock(p);
    struct remus_verify *out = &p->verify;
    if (out->blocks_different < REMUS_VERIFY_KEPT) {
        out->different[out->blocks_different].volume = volume;
        out->different[out->blocks_different].offset = at;
    }
    out->blocks_different++;
    if (v->repair && !err)
        out->bytes_repaired += len;
    remus_primary_unlock(p);
    return err;
}

static int piece(struct verify *v, unsigned int volume, uint64_t at,
                 size_t len)
{
    unsigned char bits[REMUS_HASH_BLOCKS / 8];
    int err = ask(v, volume, at, len, bits);
    for (size_t i = 0; !err && i * REMUS_BLOCK < len; i++) {
        uint64_t from = at + i * REMUS_BLOCK;
        uint64_t n =
            at + len - from < REMUS_BLOCK ? at + len - from : REMUS_BLOCK;
        if (bits[i / 8] >> (i % 8) & 1)
            err = differs(v, volume, from, n);
    }
    remus_primary_lock(v->p);
    v->p->verify.bytes_done += len;
    remus_primary_unlock(v->p);
    return err ? err : keep_rate(v);
}

static int all(struct verify *v)
{
    remus_primary *p = v->p;
    int err = 0;
    for (unsigned int i = 0; !err && i < p->volume_count; i++) {
        uint64_t size = p->volumes[i].size;
        err = remus_primary_see_disk(p, i);
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
    if (remus_primary_state(p) != REMUS_STATE_PROTECTED)
        return remus_fail(-EPROTO,
                          "resource %s: verify: it is %s: %s: only a "
                          "Protected resource can be compared",
                          p->resource,
                          remus_state_name(remus_primary_state(p)), p->reason);
    p->verify = (struct remus_verify){.running = 1};
    p->verify_cancel = 0;
    for (unsigned int i = 0; i < p->volume_count; i++)
        p->verify.bytes_total += p->volumes[i].size;
    v->session = p->c.id;
    return 0;
}

int remus_primary_verify(remus_primary *p, int repair, uint64_t rate,
                         struct remus_verify *out)
{
    int no = remus_enter(p, "primary_verify");
    if (!no && out)
        no = remus_sized_check(out, sizeof *out, "primary_verify", "out");
    if (no)
        return no;
    struct verify v = {.p = p,
                       .repair = repair,
                       .rate = rate,
                       .since_ns = p->io->now_ns(p->io)};
    v.buf = aligned_alloc(REMUS_PAGE, PIECE);
    if (!v.buf)
        return remus_fail(-ENOMEM, "resource %s: out of memory", p->resource);
    remus_primary_lock(p);
    int err = begin(&v);
    remus_primary_unlock(p);
    if (!err) {
        err = all(&v);
        remus_primary_lock(p);
        p->verify.running = 0;
        p->verify.complete = !err;
        if (out)
            remus_sized_give(out, &p->verify, sizeof *out);
        remus_primary_unlock(p);
    }
    free(v.buf);
    return err;
}

void remus_primary_verify_status(remus_primary *p, struct remus_verify *out)
{
    if (remus_enter(p, "primary_verify_status") ||
        remus_sized_check(out, sizeof *out, "primary_verify_status", "out"))
        return;
    remus_primary_lock(p);
    remus_sized_give(out, &p->verify, sizeof *out);
    remus_primary_unlock(p);
}

void remus_primary_verify_cancel(remus_primary *p)
{
    if (remus_enter(p, "primary_verify_cancel"))
        return;
    remus_primary_lock(p);
    p->verify_cancel = 1;
    pthread_cond_broadcast(&p->changed);
    remus_primary_unlock(p);
    remus_primary_wait_wake(p);
}
