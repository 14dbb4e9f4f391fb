/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The epoch index: which bytes of which volume an epoch holds, and where in
 * the journal the newest data of each lies.  Last writer wins.
 *
 * Records are appended in stream order; every time the list has doubled it
 * is swept into an ordered, disjoint, merged one, so adding costs amortised
 * O(log n) and memory grows with extents, never with bytes.  Not
 * thread-safe: the owner's lock guards it.
 */
#ifndef REMUS_EXTENTS_H
#define REMUS_EXTENTS_H

#include <stddef.h>
#include <stdint.h>

#define REMUS_EXTENT_ZERO UINT64_MAX /* pos of an extent that is zeroes */

struct remus_extent {
    uint64_t offset; /* bytes, in the volume */
    uint64_t length; /* bytes, > 0 */
    uint64_t pos;    /* linear journal position of the data, or ZERO */
    uint32_t volume;
    uint32_t order;  /* newer is larger; 0 once swept */
};

struct remus_extents {
    struct remus_extent *v;
    size_t n;
    size_t cap;
    size_t swept;        /* v[0..swept) is ordered and disjoint */
    uint64_t added;      /* bytes ever added since the last clear */
};

/* 0 or -ENOMEM (then nothing was added). */
int remus_extents_add(struct remus_extents *x, uint32_t volume,
                      uint64_t offset, uint64_t length, uint64_t pos);
/* Append all of `from`, as newer than what is here.  0 or -ENOMEM. */
int remus_extents_join(struct remus_extents *x,
                       const struct remus_extents *from);
/* Make v[0..n) ordered by (volume, offset), disjoint, merged. */
int remus_extents_sweep(struct remus_extents *x);
/*
 * What it holds (sweeps first): bytes covered, the rest of `added` was
 * overwritten; and ranges of consecutive bytes, wherever their data lies.
 */
int remus_extents_measure(struct remus_extents *x, uint64_t *bytes,
                          uint64_t *ranges);
/* Forget all, keep the memory. */
void remus_extents_clear(struct remus_extents *x);
void remus_extents_free(struct remus_extents *x);

#endif
