/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Does what is sent arrive?  A backup can answer, and its pings come in, on a
 * path on which nothing large gets through: its MTU is smaller than the ends
 * know.  Each connection would succeed, and each would let the guest wait for
 * room until it counts as lost.  So what a guest waits for counts over the
 * whole outage, until a barrier is acked, and not in each connection anew:
 *
 *   - nothing that was sent is acked by the other host for `loss`: lost
 *   - writes waited for room, and nothing moved, for `stall` in this outage:
 *     lost; from then on a connection has SPENT_MS, or nothing until it is
 *     proven
 *   - after such a loss a connection is proven first, by so many bytes that
 *     they can't have been small packets, before anything more is sent; and
 *     in between there are pauses, in which the primary says hello and no
 *     more (REMUS_PLAN_WAIT): the other side knows that it lives
 */
#include <errno.h>
#include <stdio.h>

#include "base/error.h"
#include "primary/internal.h"

typedef unsigned long long ull;

#define UNPROVEN_MS 1000u /* for the first bytes to arrive */
#define SPENT_MS 500u     /* without movement, once `stall` is used up */
#define PAUSE_MS 1000u    /* after the second failure; doubled up to */
#define PAUSE_MAX_MS 30000u
#define PROVEN_BYTES (32u << 10)

int remus_primary_flow_waits(const remus_primary *p)
{
    return p->flow.until_ns > remus_primary_now(p);
}

void remus_primary_flow_moves(remus_primary *p)
{
    p->flow = (struct remus_flow){.failures = 0};
}

/* lock held */
static void failed(remus_primary *p, uint64_t now)
{
    unsigned int n = p->flow.failures++;
    uint64_t ms = n ? (uint64_t)PAUSE_MS << (n < 6 ? n - 1 : 5) : 0;
    if (ms > PAUSE_MAX_MS)
        ms = PAUSE_MAX_MS;
    p->flow.until_ns = now + ms * 1000000u;
}

/* What has reached the other host, and is anything on its way?  (lock held) */
static void look(remus_primary *p, uint64_t now, uint64_t *moved_ms)
{
    uint64_t acked;
    int known = remus_conn_arrived(&p->conn, &acked);
    uint64_t at = known < 0 ? atomic_load(&p->queue.sent) : acked;
    if (at != p->c.arrived || known == 0)
        p->c.on_its_way_ns = now; /* or nothing is */
    if (at != p->c.arrived)
        p->c.moved_ns = now;
    p->c.arrived = at;
    if (known < 0 || at >= PROVEN_BYTES ||
        (known == 0 && !remus_sendq_bytes(&p->queue)))
        p->c.proven = 1;
    *moved_ms = (now - p->c.moved_ns) / 1000000u;
    if (known < 0)
        p->c.on_its_way_ns = now; /* a Unix socket: nobody can tell */
}

/* lock held */
static int is_unproven(const remus_primary *p)
{
    return p->flow.failures && !p->c.proven;
}

/* Have writes waited for too long, in all of this outage?  (lock held) */
static int waited_too_long(remus_primary *p, uint64_t tick_ns,
                           uint64_t moved_ms)
{
    int held = remus_primary_oldest_wait(p, remus_primary_now(p)) != 0 &&
               remus_sendq_bytes(&p->queue) >= REMUS_PAGE && moved_ms;
    if (!held) {
        p->c.held_ns = 0;
        return 0;
    }
    uint64_t stall_ns = p->stall_ms * 1000000ull;
    int spent = p->flow.waited_ns >= stall_ns;
    p->c.held_ns += tick_ns;
    p->flow.waited_ns += tick_ns;
    if (spent)
        return is_unproven(p) || p->c.held_ns >= SPENT_MS * 1000000ull;
    return p->flow.waited_ns >= stall_ns;
}

void remus_primary_check_flow(remus_primary *p, uint64_t now, uint64_t tick_ns)
{
    char text[REMUS_REASON_MAX] = "";
    uint64_t moved_ms;
    remus_primary_lock(p);
    if (!remus_link_up(p) || p->fd < 0) {
        remus_primary_unlock(p);
        return;
    }
    look(p, now, &moved_ms);
    uint64_t ms = (now - p->c.on_its_way_ns) / 1000000u;
    uint32_t limit =
        is_unproven(p) && p->loss_ms > UNPROVEN_MS ? UNPROVEN_MS : p->loss_ms;
    if (ms > limit)
        snprintf(text, sizeof text,
                 "backup lost: it answers, but for %llu ms (limit %u) nothing "
                 "that was sent has reached its host: does the path let large "
                 "packets through (MTU)?",
                 (ull)ms, limit);
    else if (waited_too_long(p, tick_ns, moved_ms))
        snprintf(
            text, sizeof text,
            "backup or link too slow: it answers pings, but writes waited "
            "%llu ms in this outage (limit %u), and nothing moved",
            (ull)(p->flow.waited_ns / 1000000u), p->stall_ms);
    if (*text)
        failed(p, now);
    remus_primary_unlock(p);
    if (*text)
        remus_primary_link_lost(p, "%s", text);
}

int remus_primary_flow_prove(remus_primary *p)
{
    int err = 0;
    remus_primary_lock(p);
    while (!err && is_unproven(p)) {
        remus_primary_timed_wait(p, &p->engine_wake, 20);
        uint64_t ignored;
        if (!remus_link_up(p) || p->fd < 0 || remus_stopping(p))
            err = -EPROTO;
        else /* the watch does not, where it was held up itself */
            look(p, remus_primary_now(p), &ignored);
    }
    remus_primary_unlock(p);
    return err;
}

size_t remus_primary_flow_piece(remus_primary *p, size_t piece)
{
    remus_primary_lock(p);
    size_t n =
        is_unproven(p) && piece > 2 * PROVEN_BYTES ? 2 * PROVEN_BYTES : piece;
    remus_primary_unlock(p);
    return n;
}

void remus_primary_flow_text(const remus_primary *p, uint64_t now)
{
    remus_fail(
        -EAGAIN,
        "%.150s; this happened %u times in a row: the next try is in %llu s",
        p->lost_reason, p->flow.failures,
        (ull)((p->flow.until_ns - now) / 1000000000u + 1));
}
