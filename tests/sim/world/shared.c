/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What several writers write; see shared.h. */
#include "shared.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "oracle.h"
#include "sched.h"

#define NEVER UINT64_MAX
#define EXACT 4096u

/* One write of one sector. */
struct entry {
    uint64_t write, begun, answered; /* its number; states */
    unsigned char bytes[SHARED_SECTOR];
};

static struct sector {
    struct entry *entries; /* those that may still be seen, oldest first */
    size_t count, cap;
} sectors[SHARED_SECTORS];
static uint64_t writes;
static struct seen {
    uint32_t *values; /* by its reader, one after the other */
    size_t count, cap;
} seen[SHARED_SECTORS];
static struct exact {
    uint64_t n, sum;
} exact[EXACT]; /* a ring */
static size_t exact_count;
static char why[160];

static void add(unsigned int n, uint64_t write, uint64_t begun,
                uint64_t answered, const void *data)
{
    struct sector *s = &sectors[n];
    if (s->count == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 64;
        s->entries = realloc(s->entries, s->cap * sizeof *s->entries);
        if (!s->entries)
            world_fail("out of memory");
    }
    struct entry *e = &s->entries[s->count++];
    *e = (struct entry){.write = write, .begun = begun, .answered = answered};
    memcpy(e->bytes, data, SHARED_SECTOR);
}

void shared_begin(void)
{
    static const unsigned char zeroes[SHARED_SECTOR];
    for (unsigned int n = 0; n < SHARED_SECTORS; n++)
        add(n, 0, 0, 0, zeroes);
}

uint64_t shared_write(unsigned int first, unsigned int count, const void *data)
{
    const unsigned char *bytes = data;
    uint64_t state = oracle_tick();
    writes++;
    for (unsigned int i = 0; i < count; i++)
        add(first + i, writes, state, NEVER, bytes + i * SHARED_SECTOR);
    return writes;
}

void shared_answered(unsigned int first, unsigned int count, uint64_t write)
{
    uint64_t state = oracle_tick();
    for (unsigned int n = first; n < first + count; n++) {
        struct sector *s = &sectors[n];
        size_t i = s->count;
        while (i && s->entries[i - 1].write != write)
            i--;
        if (i && s->entries[i - 1].answered == NEVER)
            s->entries[i - 1].answered = state;
    }
}

void shared_writers_gone(void)
{
    uint64_t state = oracle_tick();
    for (unsigned int n = 0; n < SHARED_SECTORS; n++)
        for (size_t i = 0; i < sectors[n].count; i++)
            if (sectors[n].entries[i].answered == NEVER)
                sectors[n].entries[i].answered = state;
}

void shared_found(unsigned int first, unsigned int count, const void *data)
{
    const unsigned char *bytes = data;
    uint64_t begun = oracle_tick(), answered = oracle_tick();
    for (unsigned int i = 0; i < count; i++)
        add(first + i, 0, begun, answered, bytes + i * SHARED_SECTOR);
}

static uint64_t sum_of(const unsigned char *bytes)
{
    uint64_t sum = 0, word;
    for (size_t i = 0; i < SHARED_BYTES; i += sizeof word) {
        memcpy(&word, bytes + i, sizeof word);
        sum = (sum ^ word) * 0x9e3779b97f4a7c15u;
        sum ^= sum >> 29;
    }
    return sum;
}

void shared_stood_still(uint64_t n, const void *data)
{
    exact[exact_count++ % EXACT] = (struct exact){n, sum_of(data)};
}

void shared_branch(void)
{
    memset(exact, 0, sizeof exact);
}

void shared_reader_begins(void)
{
    for (unsigned int n = 0; n < SHARED_SECTORS; n++)
        seen[n].count = 0;
}

const char *shared_read(const void *data)
{
    for (unsigned int n = 0; n < SHARED_SECTORS; n++) {
        struct seen *s = &seen[n];
        uint32_t value;
        memcpy(&value, (const char *)data + n * SHARED_SECTOR, sizeof value);
        if (s->count && s->values[s->count - 1] == value)
            continue;
        for (size_t i = 0; i < s->count; i++)
            if (s->values[i] == value) {
                snprintf(why, sizeof why,
                         "a reader of sector %u sees A, B, A: write %u comes "
                         "back",
                         n, value);
                return why;
            }
        if (s->count == s->cap) {
            s->cap = s->cap ? 2 * s->cap : 64;
            s->values = realloc(s->values, s->cap * sizeof *s->values);
            if (!s->values)
                world_fail("out of memory");
        }
        s->values[s->count++] = value;
    }
    return NULL;
}

/* ---- what a checkpoint may hold ------------------------------------------------- */

/* When the newest write that was answered by then was begun: nothing that was
 * answered before that is left. */
static uint64_t oldest_end(const struct sector *s, uint64_t from)
{
    uint64_t end = 0;
    for (size_t i = 0; i < s->count; i++)
        if (s->entries[i].answered <= from && s->entries[i].begun > end)
            end = s->entries[i].begun;
    return end;
}

static int may_hold(const struct sector *s, uint64_t from, uint64_t to,
                    const unsigned char *bytes)
{
    uint64_t end = oldest_end(s, from);
    for (size_t i = 0; i < s->count; i++) {
        const struct entry *e = &s->entries[i];
        if (e->begun <= to && e->answered >= end &&
            !memcmp(e->bytes, bytes, SHARED_SECTOR))
            return 1;
    }
    return 0;
}

const char *shared_check(uint64_t n, uint64_t from, uint64_t to,
                         const void *data)
{
    const unsigned char *bytes = data;
    for (size_t i = 0; n && i < EXACT; i++)
        if (exact[i].n == n && exact[i].sum != sum_of(bytes))
            return "contract 6: of overlapping writes another one was last "
                   "on the primary, where all of them had been answered";
    for (unsigned int k = 0; k < SHARED_SECTORS; k++)
        if (!may_hold(&sectors[k], from, to, bytes + k * SHARED_SECTOR)) {
            snprintf(why, sizeof why,
                     "sector %u holds what none of its writers can have left "
                     "there between %llu and %llu",
                     k, (unsigned long long)from, (unsigned long long)to);
            return why;
        }
    return NULL;
}
