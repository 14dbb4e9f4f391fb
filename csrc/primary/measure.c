/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a catch-up costs in the backup's journal.  Blocks that are marked need
 * not hold anything: a discard, or mkfs, marks a whole disk.  Zeroes travel as
 * one record, however many there are.  So a catch-up that seems not to fit is
 * measured: holes are asked for, the rest is read, until it is more than
 * there is room for.  That is done while nothing is connected.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "primary/internal.h"

#define PIECE_BYTES (1u << 20)
#define RUN_BYTES (64u << 20) /* looked at before anybody may stop it */
#define AGAIN_NS 10000000000u

/* A record, the index of it, and the gap before a large one behind it. */
#define RECORD_COST (REMUS_REC_HEADER + REMUS_INDEX_COST + REMUS_PAGE)

uint64_t remus_primary_journal_cost(uint64_t bytes)
{
    /* A record for each block, or the gaps before large ones, which cost
     * more. */
    const uint64_t each = REMUS_REC_HEADER + REMUS_INDEX_COST +
                          REMUS_PAGE / (REMUS_REC_LARGE / REMUS_BLOCK);
    return bytes + bytes / REMUS_BLOCK * each + 8u * REMUS_PAGE;
}

uint64_t remus_primary_catch_up_cost(const remus_primary *p, uint64_t bytes)
{
    const struct remus_measure *m = &p->measured;
    uint64_t all = remus_primary_journal_cost(bytes);
    if (!m->cost)
        return all;
    uint64_t more = bytes > m->bytes ? bytes - m->bytes : 0;
    uint64_t real = m->cost + remus_primary_journal_cost(more);
    return real < all ? real : all;
}

int remus_all_zero(const unsigned char *data, size_t len)
{
    return !data[0] && !memcmp(data, data + 1, len - 1);
}

/* Add what the pieces of [at, end) cost, which may be data.  0 or -errno. */
static int add_data(const remus_primary *p, unsigned int volume, uint64_t at,
                    uint64_t end, unsigned char *buf, uint64_t *cost)
{
    const struct remus_pvolume *v = &p->volumes[volume];
    int was_zero = 0;
    for (size_t n; at < end; at += n) {
        n = end - at < PIECE_BYTES ? (size_t)(end - at) : PIECE_BYTES;
        int err = remus_io_read(p->io, v->file, buf, n, at);
        if (err)
            return err;
        for (size_t i = 0; i < n; i += REMUS_BLOCK) {
            size_t len = n - i < REMUS_BLOCK ? n - i : REMUS_BLOCK;
            int zero = remus_all_zero(buf + i, len);
            /* A run of zeroes ends with the piece. */
            if (!zero)
                *cost += len + RECORD_COST;
            else if (!was_zero || !i)
                *cost += RECORD_COST;
            was_zero = zero;
        }
    }
    return 0;
}

/* The same of a run of blocks, whose holes need not be read. */
static int add_run(const remus_primary *p, unsigned int volume, uint64_t at,
                   uint64_t end, unsigned char *buf, uint64_t *cost)
{
    int err = 0;
    while (!err && at < end) {
        uint64_t next = end;
        uint64_t hole = remus_primary_hole(p, volume, at, end, &next);
        if (hole)
            *cost += RECORD_COST;
        else
            err = add_data(p, volume, at, next, buf, cost);
        at = hole ? at + hole : next;
    }
    return err;
}

uint64_t remus_primary_hole(const remus_primary *p, unsigned int volume,
                            uint64_t at, uint64_t end, uint64_t *next)
{
    const struct remus_pvolume *v = &p->volumes[volume];
    uint64_t start = at, data_end = end;
    int more = p->io->next_data(p->io, v->file, at, &start, &data_end);
    *next = end;
    if (more < 0)
        return 0; /* whoever reads it will say why */
    if (!more || start >= end)
        return end - at;
    uint64_t hole = (start - at) / REMUS_BLOCK * REMUS_BLOCK;
    uint64_t data =
        (data_end - at + REMUS_BLOCK - 1) / REMUS_BLOCK * REMUS_BLOCK;
    if (!hole && data < end - at)
        *next = at + data;
    return hole;
}

/* Is there any use in it?  (lock held) */
static int is_due(const remus_primary *p, uint64_t now)
{
    return p->measured.due && !remus_stopping(p) &&
           (!p->measured.ns || now - p->measured.ns >= AGAIN_NS);
}

/* What was found missing when it was due.  0, or -errno: it is not known. */
static int measure(remus_primary *p, uint64_t capacity, uint64_t *cost)
{
    unsigned char *buf = aligned_alloc(REMUS_PAGE, PIECE_BYTES);
    uint64_t at = 0, offset, len;
    unsigned int volume;
    int err = buf ? 0 : -ENOMEM;
    *cost = 8u * REMUS_PAGE;
    while (!err && *cost <= capacity &&
           remus_dirty_look_on(&p->dirty, &at, RUN_BYTES, &volume, &offset,
                               &len)) {
        err = add_run(p, volume, offset, offset + len, buf, cost);
        remus_primary_lock(p);
        if (remus_stopping(p))
            err = -EINTR;
        remus_primary_unlock(p);
    }
    free(buf);
    return err;
}

int remus_primary_measure(remus_primary *p, uint64_t capacity)
{
    uint64_t cost = 0;
    remus_primary_lock(p);
    int due = is_due(p, remus_primary_now(p));
    p->measured.due = 0;
    remus_primary_unlock(p);
    if (!due || measure(p, capacity, &cost))
        return 0;
    remus_primary_lock(p);
    p->measured.ns = remus_primary_now(p);
    p->measured.cost = cost <= capacity ? cost : 0;
    p->measured.bytes = p->measured.asked;
    remus_primary_unlock(p);
    return cost <= capacity;
}
