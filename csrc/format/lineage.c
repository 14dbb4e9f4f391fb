/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Generations and their ancestors: what is told from them is in lineage.h. */
#include "format/lineage.h"

#include <stdio.h>
#include <string.h>

#include "format/record.h"

static int same(const unsigned char *a, const unsigned char *b)
{
    return !memcmp(a, b, REMUS_ID_BYTES);
}

void remus_lineage_push(struct remus_lineage *l,
                        const unsigned char id[REMUS_ID_BYTES], uint64_t end)
{
    uint32_t keep =
        l->count < REMUS_ANCESTORS_MAX ? l->count : REMUS_ANCESTORS_MAX - 1;
    memmove(l->ancestor + 1, l->ancestor, keep * sizeof l->ancestor[0]);
    memcpy(l->ancestor[0].id, l->id, REMUS_ID_BYTES);
    l->ancestor[0].end = end;
    l->count = keep + 1;
    memcpy(l->id, id, REMUS_ID_BYTES);
}

uint32_t remus_lineage_prune(struct remus_lineage *l,
                             const unsigned char id[REMUS_ID_BYTES])
{
    uint32_t skip = 0;
    while (skip < l->count && !same(l->ancestor[skip].id, id))
        skip++;
    if (skip == l->count)
        return 0;
    l->count -= skip;
    memmove(l->ancestor, l->ancestor + skip, l->count * sizeof *l->ancestor);
    memset(l->ancestor + l->count, 0, skip * sizeof *l->ancestor);
    return skip;
}

void remus_lineage_at(const struct remus_lineage *l, uint64_t epoch,
                      struct remus_lineage *out)
{
    uint32_t skip = 0; /* ancestors, from the newest, that came after it */
    while (skip < l->count && epoch <= l->ancestor[skip].end)
        skip++;
    *out = *l;
    if (!skip)
        return;
    memcpy(out->id, l->ancestor[skip - 1].id, REMUS_ID_BYTES);
    out->count = l->count - skip;
    memset(out->ancestor, 0, sizeof out->ancestor);
    memcpy(out->ancestor, l->ancestor + skip,
           out->count * sizeof l->ancestor[0]);
}

int remus_lineage_has(const struct remus_lineage *l,
                      const unsigned char id[REMUS_ID_BYTES], uint64_t *end)
{
    *end = UINT64_MAX;
    if (same(l->id, id))
        return 1;
    for (uint32_t i = 0; i < l->count; i++)
        if (same(l->ancestor[i].id, id)) {
            *end = l->ancestor[i].end;
            return 1;
        }
    return 0;
}

enum remus_relation remus_lineage_compare(const struct remus_lineage *a,
                                          const struct remus_lineage *b)
{
    uint64_t end;
    if (same(a->id, b->id))
        return REMUS_RELATION_SAME;
    if (remus_lineage_has(b, a->id, &end))
        return REMUS_RELATION_BEHIND;
    if (remus_lineage_has(a, b->id, &end))
        return REMUS_RELATION_AHEAD;
    for (uint32_t i = 0; i < a->count; i++)
        if (remus_lineage_has(b, a->ancestor[i].id, &end))
            return REMUS_RELATION_SPLIT;
    return REMUS_RELATION_STRANGERS;
}

void remus_lineage_encode(const struct remus_lineage *l,
                          unsigned char out[REMUS_LINEAGE_BYTES])
{
    memset(out, 0, REMUS_LINEAGE_BYTES);
    memcpy(out, l->id, REMUS_ID_BYTES);
    remus_put32(out + 16, l->count);
    for (uint32_t i = 0; i < l->count; i++) {
        memcpy(out + 24 + 24 * i, l->ancestor[i].id, REMUS_ID_BYTES);
        remus_put64(out + 40 + 24 * i, l->ancestor[i].end);
    }
}

int remus_lineage_decode(const unsigned char in[REMUS_LINEAGE_BYTES],
                         struct remus_lineage *l)
{
    memset(l, 0, sizeof *l);
    memcpy(l->id, in, REMUS_ID_BYTES);
    l->count = remus_get32(in + 16);
    if (l->count > REMUS_ANCESTORS_MAX)
        return 0;
    for (uint32_t i = 0; i < l->count; i++) {
        memcpy(l->ancestor[i].id, in + 24 + 24 * i, REMUS_ID_BYTES);
        l->ancestor[i].end = remus_get64(in + 40 + 24 * i);
    }
    return 1;
}

const char *remus_id_text(const unsigned char id[REMUS_ID_BYTES], char out[9])
{
    for (int i = 0; i < 4; i++)
        snprintf(out + 2 * i, 3, "%02x", id[i]);
    return out;
}
