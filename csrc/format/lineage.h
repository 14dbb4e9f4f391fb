/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Generations.  A generation is one side's unbroken time as the only writer:
 * a random id.  A lineage is a generation with its ancestors, newest first,
 * and the epoch with which each of them ended: that epoch and those before
 * belong to it (or to one before it), later ones to its child.
 *
 * A primary begins a new one, durably, before the first write that it lets
 * pass while no backup takes it, if a backup may have stored the one before; a
 * promote begins one.  When the backup says that it holds an ancestor, those
 * after it were stored by nobody else, and are forgotten: so twelve suffice.
 * So a side whose id stands in the other's lineage has nothing that the other
 * did not know of, but for what came after the checkpoint that was gone on
 * from: it can be overwritten.  Two ids of which neither stands in the other's
 * lineage are
 * split brain, if they have an ancestor in common.
 *
 * Layout in state files (numbers little-endian): the id (16), the count of
 * ancestors (4), zero (4), and REMUS_ANCESTORS_MAX times an id (16) and its
 * end (8); unused ones are zero.
 */
#ifndef REMUS_LINEAGE_H
#define REMUS_LINEAGE_H

#include <stdint.h>

#include "remus.h"

/* With so many a state file's slot fits into one sector of 512 bytes: a torn
 * write leaves the old one or the new one. */
#define REMUS_ANCESTORS_MAX 12
#define REMUS_LINEAGE_BYTES (24u + 24u * REMUS_ANCESTORS_MAX)

struct remus_ancestor {
    unsigned char id[REMUS_ID_BYTES];
    uint64_t end; /* epoch with which it ended */
};

struct remus_lineage {
    unsigned char id[REMUS_ID_BYTES];
    uint32_t count;
    struct remus_ancestor ancestor[REMUS_ANCESTORS_MAX];
};

/* How two lineages are related. */
enum remus_relation {
    REMUS_RELATION_SAME,   /* one generation */
    REMUS_RELATION_BEHIND, /* the first is an ancestor of the second */
    REMUS_RELATION_AHEAD,  /* the second is an ancestor of the first */
    REMUS_RELATION_SPLIT,  /* both went on from a common one */
    REMUS_RELATION_STRANGERS
};

/* The generation ends with `end`, `id` begins; the oldest ancestor is
 * forgotten if there is no room. */
void remus_lineage_push(struct remus_lineage *l,
                        const unsigned char id[REMUS_ID_BYTES], uint64_t end);
/* Forget the ancestors that came after `id`, which is one: nobody else knows
 * them.  Their epochs belong to the generation itself then.  How many. */
uint32_t remus_lineage_prune(struct remus_lineage *l,
                             const unsigned char id[REMUS_ID_BYTES]);
/* The lineage of the generation that `epoch` belongs to. */
void remus_lineage_at(const struct remus_lineage *l, uint64_t epoch,
                      struct remus_lineage *out);
/* Is `id` in it?  0 no; 1 yes: *end is its end (UINT64_MAX if it goes on). */
int remus_lineage_has(const struct remus_lineage *l,
                      const unsigned char id[REMUS_ID_BYTES], uint64_t *end);
enum remus_relation remus_lineage_compare(const struct remus_lineage *a,
                                          const struct remus_lineage *b);

void remus_lineage_encode(const struct remus_lineage *l,
                          unsigned char out[REMUS_LINEAGE_BYTES]);
/* 1: it is sane. */
int remus_lineage_decode(const unsigned char in[REMUS_LINEAGE_BYTES],
                         struct remus_lineage *l);
/* The first digits of an id, for messages. */
const char *remus_id_text(const unsigned char id[REMUS_ID_BYTES], char out[9]);

#endif
