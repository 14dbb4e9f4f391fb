/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "protocol_d.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

void pd_init(struct protocol_d *d)
{
    *d = (struct protocol_d){
        .both_primary = 1, .ack_ms = -1, .done_ms = -1, .limit_ms = 50};
}

void pd_write(struct protocol_d *d)
{
    if (d->queued)
        d->in_newest = 0;
    d->queued = 0;
    d->in_newest++;
    d->written++;
}

static uint64_t later(uint64_t now_ns, int ms)
{
    return ms < 0 ? PD_NEVER : now_ns + (uint64_t)ms * 1000000u;
}

static void push(struct protocol_d *d, int numbered, uint64_t now_ns)
{
    if (d->count == PD_BARRIERS)
        return;
    uint64_t ack_ns = later(now_ns, d->ack_ms);
    d->sent[d->count++] = (struct pd_barrier){
        .numbered = numbered,
        .covers = d->written,
        .ack_ns = ack_ns,
        .done_ns = ack_ns == PD_NEVER ? PD_NEVER : later(ack_ns, d->done_ms),
    };
}

void pd_flush(struct protocol_d *d, uint64_t now_ns)
{
    if (d->both_primary || !d->in_newest || d->queued)
        return;
    push(d, 0, now_ns);
    d->in_newest = 0;
}

void pd_connect(struct protocol_d *d, enum pd_connection connection)
{
    d->connection = connection;
    d->count = 0;
    d->queued = 0;
    d->in_newest = 0;
    if (connection == PD_CONNECTED) /* resynchronised */
        d->held = d->written;
}

void pd_ack(struct protocol_d *d)
{
    for (unsigned int i = 0; i < d->count; i++) {
        struct pd_barrier *b = &d->sent[i];
        if (!b->numbered || b->acked)
            continue;
        b->acked = 1;
        d->ack = 1;
        if (d->held < b->covers)
            d->held = b->covers;
        return;
    }
}

void pd_done(struct protocol_d *d)
{
    if (!d->count)
        return;
    struct pd_barrier *b = &d->sent[0];
    if (b->numbered && !b->acked)
        pd_ack(d);
    if (d->held < b->covers)
        d->held = b->covers;
    memmove(d->sent, d->sent + 1, --d->count * sizeof *d->sent);
    if (d->queued)
        d->in_newest = 0;
    d->queued = 0;
}

void pd_settle(struct protocol_d *d, uint64_t now_ns)
{
    for (unsigned int i = 0; i < d->count; i++)
        if (d->sent[i].numbered && !d->sent[i].acked &&
            d->sent[i].ack_ns <= now_ns)
            pd_ack(d);
    while (d->count && d->sent[0].done_ns <= now_ns)
        pd_done(d);
}

/* What both ioctls say first. */
static int refused(const struct protocol_d *d)
{
    return d->connection == PD_STAND_ALONE     ? -EINVAL
           : d->connection == PD_WF_CONNECTION ? -EPROTO
                                               : 0;
}

int pd_send(struct protocol_d *d, uint64_t now_ns)
{
    int err = refused(d);
    if (err)
        return err;
    if (d->queued) {
        d->ack = 0;
        return 0;
    }
    if (!d->in_newest)
        return 1;
    d->ack = 0;
    push(d, d->both_primary, now_ns);
    d->queued = 1;
    return 0;
}

int pd_wait(struct protocol_d *d)
{
    int err = refused(d);
    if (err)
        return err;
    if (!d->ack)
        return -EAGAIN;
    d->ack = 0;
    return 0;
}

size_t pd_proc(const struct protocol_d *d, char *buf, size_t cap)
{
    static const char *const names[] = {"Connected", "WFConnection",
                                        "StandAlone"};
    int n = snprintf(
        buf, cap,
        "version: 8.3.11 (api:88/proto:86-96)\n"
        "GIT-hash: 0000000000000000000000000000000000000000 build\n"
        " 0: cs:%s ro:Primary/%s ds:UpToDate/%s %c r-----\n"
        "    ns:%llu nr:0 dw:%llu dr:664 al:1 bm:0 lo:0 pe:%u ua:0 ap:0 ep:1 "
        "wo:b oos:0\n"
        " 1: cs:Unconfigured\n"
        "10: cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate C "
        "r-----\n"
        "    ns:0 nr:0 dw:0 dr:0 al:0 bm:0 lo:0 pe:7 ua:0 ap:0 ep:1 wo:b "
        "oos:0\n",
        names[d->connection],
        d->connection != PD_CONNECTED ? "Unknown"
        : d->both_primary             ? "Primary"
                                      : "Secondary",
        d->connection == PD_CONNECTED ? "UpToDate" : "DUnknown",
        d->connection == PD_STAND_ALONE ? ' ' : 'D',
        (unsigned long long)d->held, (unsigned long long)d->written, d->count);
    return n < 0 ? 0 : (size_t)n < cap ? (size_t)n : cap;
}
