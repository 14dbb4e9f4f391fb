/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The epoch index: which bytes of which volume an epoch holds, and where in
 * the journal the newest data of each lies.  Last writer wins.
 *
 * Records are added in stream order to a list that is kept short against the
 * rest: when it is an eighth of that it is swept into an ordered, disjoint,
 * merged one, so adding costs amortised O(log n).  The ordered one is in
 * small blocks, which a sweep takes up one by one as it puts out others.
 *
 * Memory grows with extents, never with bytes: at any moment, also within a
 * sweep, it is at most 48 bytes an extent that comes of it (and some 100 KiB).
 * One record comes to two extents at most: its own, and one that it splits.
 * remus_record_cost() counts that.
 *
 * Not thread-safe: the owner's lock guards it.
 */
#ifndef REMUS_EXTENTS_H
#define REMUS_EXTENTS_H

#include <stddef.h>
#include <stdint.h>

#define REMUS_EXTENT_ZERO UINT64_MAX /* pos of an extent that is zeroes */
#define REMUS_EXTENT_BLOCK 64u       /* extents of a block */

struct remus_extent {
    uint64_t offset; /* bytes, in the volume */
    uint64_t length; /* bytes, > 0 */
    uint64_t pos;    /* linear journal position of the data, or ZERO */
    uint32_t volume;
    uint32_t order; /* newer is larger; 0 once swept */
};

struct remus_extents {
    struct remus_extent *
        *blocks; /* of the swept ones; all but the last full */
    size_t block_count;
    size_t swept;               /* extents in them: ordered and disjoint */
    struct remus_extent *fresh; /* added since, in order of adding */
    size_t fresh_count, fresh_cap;
    uint64_t added; /* bytes ever added since the last clear */
};

/* How many there are; one of them.  Those below `swept` are ordered. */
size_t remus_extents_count(const struct remus_extents *x);
const struct remus_extent *remus_extents_at(const struct remus_extents *x,
                                            size_t i);
/* 0 or -ENOMEM (then nothing was added). */
int remus_extents_add(struct remus_extents *x, uint32_t volume,
                      uint64_t offset, uint64_t length, uint64_t pos);
/* Append what `from`, which was swept, holds of [start, end) of a volume, as
 * newer than what is here.  0 or -ENOMEM. */
int remus_extents_slice(struct remus_extents *x,
                        const struct remus_extents *from, uint32_t volume,
                        uint64_t start, uint64_t end);
/* How many of `x`, which was swept, that takes. */
size_t remus_extents_within(const struct remus_extents *x, uint32_t volume,
                            uint64_t start, uint64_t end);
/* Put all in order by (volume, offset), disjoint, merged.  0 or -ENOMEM (then
 * nothing has changed). */
int remus_extents_sweep(struct remus_extents *x);
/*
 * What it holds (sweeps first): bytes covered, the rest of `added` was
 * overwritten; and ranges of consecutive bytes, wherever their data lies.
 */
int remus_extents_measure(struct remus_extents *x, uint64_t *bytes,
                          uint64_t *ranges);
/* Forget all; what little memory it has is kept, more is not. */
void remus_extents_clear(struct remus_extents *x);
void remus_extents_free(struct remus_extents *x);

#endif
