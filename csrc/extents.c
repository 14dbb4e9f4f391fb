/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The epoch index; see extents.h. */
#include "extents.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_CAP 64u

static int grow(struct remus_extents *x, size_t need)
{
    if (need <= x->cap)
        return 0;
    size_t cap = x->cap ? x->cap : FIRST_CAP;
    while (cap < need)
        cap *= 2;
    struct remus_extent *v = realloc(x->v, cap * sizeof *v);
    if (!v)
        return -ENOMEM;
    x->v = v;
    x->cap = cap;
    return 0;
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

/* A max-heap of extents under way, by order: indexes into `in`. */
struct heap {
    const struct remus_extent *in;
    size_t *at;
    size_t n;
};

static void heap_push(struct heap *h, size_t item)
{
    size_t i = h->n++;
    while (i) {
        size_t up = (i - 1) / 2;
        if (h->in[h->at[up]].order >= h->in[item].order)
            break;
        h->at[i] = h->at[up];
        i = up;
    }
    h->at[i] = item;
}

static void heap_pop(struct heap *h)
{
    size_t item = h->at[--h->n];
    size_t i = 0;
    for (;;) {
        size_t down = 2 * i + 1;
        if (down >= h->n)
            break;
        if (down + 1 < h->n &&
            h->in[h->at[down + 1]].order > h->in[h->at[down]].order)
            down++;
        if (h->in[h->at[down]].order <= h->in[item].order)
            break;
        h->at[i] = h->at[down];
        i = down;
    }
    if (h->n)
        h->at[i] = item;
}

/* Append a piece to the result, merging it with its neighbour. */
static void emit(struct remus_extent *out, size_t *n,
                 const struct remus_extent *from, uint64_t start,
                 uint64_t end)
{
    uint64_t pos = from->pos == REMUS_EXTENT_ZERO
                       ? REMUS_EXTENT_ZERO
                       : from->pos + (start - from->offset);
    struct remus_extent *last = *n ? &out[*n - 1] : NULL;
    if (last && last->volume == from->volume &&
        last->offset + last->length == start &&
        (pos == REMUS_EXTENT_ZERO ? last->pos == pos
                                  : last->pos != REMUS_EXTENT_ZERO &&
                                        last->pos + last->length == pos)) {
        last->length += end - start;
        return;
    }
    out[(*n)++] = (struct remus_extent){.offset = start,
                                        .length = end - start,
                                        .pos = pos,
                                        .volume = from->volume,
                                        .order = 0};
}

/* Drop finished extents off the top, then emit the newest up to `limit`. */
static void advance(struct heap *h, struct remus_extent *out, size_t *n,
                    uint64_t *cur, uint64_t limit)
{
    while (h->n && *cur < limit) {
        const struct remus_extent *top = &h->in[h->at[0]];
        uint64_t end = top->offset + top->length;
        if (end > *cur) {
            uint64_t stop = end < limit ? end : limit;
            emit(out, n, top, *cur, stop);
            *cur = stop;
        }
        if (end <= *cur)
            heap_pop(h);
    }
}

int remus_extents_sweep(struct remus_extents *x)
{
    if (x->swept == x->n)
        return 0;
    /* k overlapping extents give at most 2k-1 pieces. */
    struct remus_extent *out = malloc(2 * x->n * sizeof *out);
    size_t *at = malloc(x->n * sizeof *at);
    if (!out || !at) {
        free(out);
        free(at);
        return -ENOMEM;
    }
    qsort(x->v, x->n, sizeof *x->v, compare);
    struct heap h = {.in = x->v, .at = at, .n = 0};
    size_t n = 0;
    uint64_t cur = 0;
    for (size_t i = 0; i < x->n; i++) {
        const struct remus_extent *e = &x->v[i];
        if (h.n && x->v[h.at[0]].volume != e->volume)
            advance(&h, out, &n, &cur, UINT64_MAX);
        if (h.n)
            advance(&h, out, &n, &cur, e->offset);
        /* Whatever is still under way reaches beyond e->offset. */
        cur = e->offset;
        heap_push(&h, i);
    }
    advance(&h, out, &n, &cur, UINT64_MAX);
    free(at);
    free(x->v);
    x->v = out;
    x->cap = 2 * x->n;
    x->n = n;
    x->swept = n;
    return 0;
}

static int add_one(struct remus_extents *x, const struct remus_extent *e)
{
    /* Sweep when the unswept part has outgrown the swept one. */
    if (x->n >= 1024 && x->n >= 2 * x->swept + 512) {
        int err = remus_extents_sweep(x);
        if (err)
            return err;
    }
    int err = grow(x, x->n + 1);
    if (err)
        return err;
    x->v[x->n] = *e;
    x->v[x->n].order = (uint32_t)(x->n - x->swept + 1);
    x->n++;
    x->added += e->length;
    return 0;
}

int remus_extents_add(struct remus_extents *x, uint32_t volume,
                      uint64_t offset, uint64_t length, uint64_t pos)
{
    /* An empty extent holds no byte. */
    if (!length)
        return 0;
    struct remus_extent e = {.offset = offset,
                             .length = length,
                             .pos = pos,
                             .volume = volume,
                             .order = 0};
    return add_one(x, &e);
}

int remus_extents_join(struct remus_extents *x,
                       const struct remus_extents *from)
{
    /* In their order: swept ones are disjoint, later ones newer. */
    for (size_t i = 0; i < from->n; i++) {
        int err = add_one(x, &from->v[i]);
        if (err)
            return err;
    }
    return 0;
}

int remus_extents_measure(struct remus_extents *x, uint64_t *bytes,
                          uint64_t *ranges)
{
    int err = remus_extents_sweep(x);
    if (err)
        return err;
    *bytes = *ranges = 0;
    for (size_t i = 0; i < x->n; i++) {
        const struct remus_extent *e = &x->v[i], *last = e - 1;
        *bytes += e->length;
        *ranges += !i || last->volume != e->volume ||
                   last->offset + last->length != e->offset;
    }
    return 0;
}

void remus_extents_clear(struct remus_extents *x)
{
    x->n = 0;
    x->swept = 0;
    x->added = 0;
}

void remus_extents_free(struct remus_extents *x)
{
    free(x->v);
    memset(x, 0, sizeof *x);
}
