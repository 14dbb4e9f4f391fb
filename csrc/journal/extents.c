/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The epoch index; see extents.h. */
#include "journal/extents.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_CAP 16u
#define FRESH_MIN 1024u /* so many may wait for a sweep anyway */
#define PER REMUS_EXTENT_BLOCK

size_t remus_extents_count(const struct remus_extents *x)
{
    return x->swept + x->fresh_count;
}

const struct remus_extent *remus_extents_at(const struct remus_extents *x,
                                            size_t i)
{
    return i < x->swept ? &x->blocks[i / PER][i % PER]
                        : &x->fresh[i - x->swept];
}

static uint64_t end_of(const struct remus_extent *e)
{
    return e->offset + e->length;
}

/* By place, then older first. */
static int compare(const void *pa, const void *pb)
{
    const struct remus_extent *a = pa, *b = pb;
    if (a->volume != b->volume)
        return a->volume < b->volume ? -1 : 1;
    if (a->offset != b->offset)
        return a->offset < b->offset ? -1 : 1;
    return a->order < b->order ? -1 : a->order > b->order;
}

/* ---- a sweep -------------------------------------------------------------- */

/*
 * Two ordered lists are run through together: the old blocks, which are
 * disjoint, and the fresh ones, which may overlap and are all newer.  Under
 * way are at most one old extent and a heap of fresh ones, newest on top.
 */
struct sweep {
    struct remus_extents *x;
    size_t old_at, fresh_at; /* the next of each */
    struct remus_extent old; /* under way; length 0: none */
    size_t *heap;            /* under way: indexes into fresh */
    size_t heap_count;
    uint32_t volume;
    uint64_t cur; /* all before it is put out */
    struct remus_extent **out;
    size_t out_count;            /* extents put out */
    struct remus_extent **spare; /* blocks to put out into */
    size_t spare_count;
};

static uint32_t order(const struct sweep *s, size_t i)
{
    return s->x->fresh[s->heap[i]].order;
}

static void heap_swap(struct sweep *s, size_t a, size_t b)
{
    size_t t = s->heap[a];
    s->heap[a] = s->heap[b];
    s->heap[b] = t;
}

static void heap_push(struct sweep *s, size_t item)
{
    size_t i = s->heap_count++;
    s->heap[i] = item;
    for (; i && order(s, (i - 1) / 2) < order(s, i); i = (i - 1) / 2)
        heap_swap(s, i, (i - 1) / 2);
}

static void heap_pop(struct sweep *s)
{
    s->heap[0] = s->heap[--s->heap_count];
    for (size_t i = 0;;) {
        size_t down = 2 * i + 1;
        if (down + 1 < s->heap_count && order(s, down + 1) > order(s, down))
            down++;
        if (down >= s->heap_count || order(s, down) <= order(s, i))
            return;
        heap_swap(s, i, down);
        i = down;
    }
}

/* Does a piece go on where the last one ended, on the disk and in the
 * journal? */
static int goes_on(const struct remus_extent *last, uint32_t volume,
                   uint64_t start, uint64_t pos)
{
    if (last->volume != volume || end_of(last) != start)
        return 0;
    if (pos == REMUS_EXTENT_ZERO || last->pos == REMUS_EXTENT_ZERO)
        return pos == last->pos;
    return last->pos + last->length == pos;
}

/* Put out [cur, end) of an extent. */
static void emit(struct sweep *s, const struct remus_extent *e, uint64_t end)
{
    uint64_t pos =
        e->pos == REMUS_EXTENT_ZERO ? e->pos : e->pos + (s->cur - e->offset);
    size_t n = s->out_count;
    struct remus_extent *last =
        n ? &s->out[(n - 1) / PER][(n - 1) % PER] : NULL;
    if (last && goes_on(last, e->volume, s->cur, pos)) {
        last->length += end - s->cur;
    } else {
        if (n % PER == 0)
            s->out[n / PER] = s->spare[--s->spare_count];
        s->out[n / PER][n % PER] =
            (struct remus_extent){.offset = s->cur,
                                  .length = end - s->cur,
                                  .pos = pos,
                                  .volume = e->volume,
                                  .order = 0};
        s->out_count++;
    }
    s->cur = end;
}

/* Put out all that is under way before `limit`, the newest of each byte. */
static void advance(struct sweep *s, uint64_t limit)
{
    while (s->cur < limit) {
        const struct remus_extent *e = &s->old;
        if (s->heap_count) {
            e = &s->x->fresh[s->heap[0]];
            if (end_of(e) <= s->cur) {
                heap_pop(s);
                continue;
            }
        } else if (!s->old.length || end_of(&s->old) <= s->cur) {
            return;
        }
        emit(s, e, end_of(e) < limit ? end_of(e) : limit);
    }
}

/* One more begins; `old`: it is a swept one. */
static void begin(struct sweep *s, const struct remus_extent *e, int old)
{
    if (e->volume != s->volume) {
        advance(s, UINT64_MAX);
        s->heap_count = 0;
        s->old.length = 0;
        s->volume = e->volume;
        s->cur = 0;
    }
    advance(s, e->offset);
    s->cur = e->offset;
    if (!old) {
        heap_push(s, s->fresh_at++);
        return;
    }
    s->old = *e;
    /* Its block is read: the output may have it. */
    if (++s->old_at % PER == 0 || s->old_at == s->x->swept)
        s->spare[s->spare_count++] = s->x->blocks[(s->old_at - 1) / PER];
}

static void run(struct sweep *s)
{
    struct remus_extents *x = s->x;
    while (s->old_at < x->swept || s->fresh_at < x->fresh_count) {
        const struct remus_extent *a =
            s->old_at < x->swept ? remus_extents_at(x, s->old_at) : NULL;
        const struct remus_extent *b =
            s->fresh_at < x->fresh_count ? &x->fresh[s->fresh_at] : NULL;
        int old = a && (!b || compare(a, b) <= 0);
        begin(s, old ? a : b, old);
    }
    advance(s, UINT64_MAX);
}

/* All memory that a sweep can need: then it can't fail half way. */
static int prepare(struct sweep *s)
{
    const struct remus_extents *x = s->x;
    /* Each fresh one comes to at most two more. */
    size_t more = 2 * x->fresh_count / PER + 2;
    s->heap = malloc(x->fresh_count * sizeof *s->heap);
    s->out = malloc((x->block_count + more) * sizeof(*s->out));
    s->spare = malloc((x->block_count + more) * sizeof(*s->spare));
    if (!s->heap || !s->out || !s->spare)
        return -ENOMEM;
    for (; s->spare_count < more; s->spare_count++) {
        s->spare[s->spare_count] = malloc(PER * sizeof(struct remus_extent));
        if (!s->spare[s->spare_count])
            return -ENOMEM;
    }
    return 0;
}

static void finish(struct sweep *s)
{
    while (s->spare_count)
        free(s->spare[--s->spare_count]);
    free(s->spare);
    free(s->heap);
}

int remus_extents_sweep(struct remus_extents *x)
{
    if (!x->fresh_count)
        return 0;
    struct sweep s = {.x = x, .volume = UINT32_MAX};
    qsort(x->fresh, x->fresh_count, sizeof *x->fresh, compare);
    int err = prepare(&s);
    if (err) {
        free(s.out);
        finish(&s);
        return err;
    }
    run(&s);
    free(x->blocks);
    x->blocks = s.out;
    x->swept = s.out_count;
    x->block_count = (s.out_count + PER - 1) / PER;
    x->fresh_count = 0;
    finish(&s);
    return 0;
}

/* ---- adding ----------------------------------------------------------------- */

/* Room for one more fresh one: as few as a sweep may take at once. */
static int grow(struct remus_extents *x)
{
    size_t most = x->swept / 8 > FRESH_MIN ? x->swept / 8 : FRESH_MIN;
    if (x->fresh_count >= most) {
        int err = remus_extents_sweep(x);
        if (err)
            return err;
    }
    if (x->fresh_count < x->fresh_cap)
        return 0;
    size_t cap = x->fresh_cap ? x->fresh_cap + x->fresh_cap / 2 : FIRST_CAP;
    if (cap > most)
        cap = most;
    struct remus_extent *v = realloc(x->fresh, cap * sizeof *v);
    if (!v)
        return -ENOMEM;
    x->fresh = v;
    x->fresh_cap = cap;
    return 0;
}

int remus_extents_add(struct remus_extents *x, uint32_t volume,
                      uint64_t offset, uint64_t length, uint64_t pos)
{
    /* An empty extent holds no byte. */
    int err = length ? grow(x) : 0;
    if (err || !length)
        return err;
    x->fresh[x->fresh_count] =
        (struct remus_extent){.offset = offset,
                              .length = length,
                              .pos = pos,
                              .volume = volume,
                              .order = (uint32_t)x->fresh_count + 1};
    x->fresh_count++;
    x->added += length;
    return 0;
}

/* The first swept one that ends behind `start`. */
static size_t find(const struct remus_extents *x, uint32_t volume,
                   uint64_t start)
{
    size_t low = 0, high = x->swept;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const struct remus_extent *e = remus_extents_at(x, mid);
        if (e->volume < volume || (e->volume == volume && end_of(e) <= start))
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* Of [start, end): is the one at `i` in it? */
static int is_within(const struct remus_extents *x, size_t i, uint32_t volume,
                     uint64_t end)
{
    const struct remus_extent *e =
        i < x->swept ? remus_extents_at(x, i) : NULL;
    return e && e->volume == volume && e->offset < end;
}

size_t remus_extents_within(const struct remus_extents *x, uint32_t volume,
                            uint64_t start, uint64_t end)
{
    size_t first = find(x, volume, start), last = find(x, volume, end);
    return last - first + (size_t)is_within(x, last, volume, end);
}

int remus_extents_slice(struct remus_extents *x,
                        const struct remus_extents *from, uint32_t volume,
                        uint64_t start, uint64_t end)
{
    int err = 0;
    for (size_t i = find(from, volume, start);
         !err && is_within(from, i, volume, end); i++) {
        const struct remus_extent *e = remus_extents_at(from, i);
        uint64_t at = e->offset > start ? e->offset : start;
        uint64_t to = end_of(e) < end ? end_of(e) : end;
        err = remus_extents_add(
            x, volume, at, to - at,
            e->pos == REMUS_EXTENT_ZERO ? e->pos : e->pos + (at - e->offset));
    }
    return err;
}

int remus_extents_measure(struct remus_extents *x, uint64_t *bytes,
                          uint64_t *ranges)
{
    int err = remus_extents_sweep(x);
    if (err)
        return err;
    *bytes = *ranges = 0;
    const struct remus_extent *last = NULL;
    for (size_t i = 0; i < x->swept; i++) {
        const struct remus_extent *e = remus_extents_at(x, i);
        *bytes += e->length;
        *ranges +=
            !last || last->volume != e->volume || end_of(last) != e->offset;
        last = e;
    }
    return 0;
}

void remus_extents_clear(struct remus_extents *x)
{
    if (x->block_count || x->fresh_cap > FRESH_MIN)
        remus_extents_free(x);
    x->fresh_count = 0;
    x->added = 0;
}

void remus_extents_free(struct remus_extents *x)
{
    for (size_t i = 0; i < x->block_count; i++)
        free(x->blocks[i]);
    free(x->blocks);
    free(x->fresh);
    memset(x, 0, sizeof *x);
}
