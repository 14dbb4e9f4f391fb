/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The epoch index against a map of single bytes: last writer wins. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "journal/extents.h"

#define VOLUMES 3u
#define BYTES 3000u
#define NOTHING (UINT64_MAX - 1)

#define EXPECT(what)                                                          \
    do {                                                                      \
        if (!(what)) {                                                        \
            printf("%s:%d: seed %u: %s\n", __FILE__, __LINE__, seed, #what);  \
            exit(1);                                                          \
        }                                                                     \
    } while (0)

/* Where the newest data of each byte lies. */
struct model {
    uint64_t at[VOLUMES][BYTES];
};

static unsigned int seed;
static uint64_t state;

static uint64_t draw(uint64_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % below;
}

static void clear(struct model *m)
{
    for (unsigned int v = 0; v < VOLUMES; v++)
        for (unsigned int i = 0; i < BYTES; i++)
            m->at[v][i] = NOTHING;
}

static void add(struct remus_extents *x, struct model *m, uint64_t *pos)
{
    static const uint64_t lengths[] = {1, 1, 2, 7, 64, 512, 1500};
    uint64_t length = lengths[draw(sizeof lengths / sizeof lengths[0])];
    uint64_t offset = draw(BYTES - length + 1);
    unsigned int volume = (unsigned int)draw(VOLUMES);
    int zero = draw(5) == 0;
    /* Often right behind the record before, as a journal is. */
    *pos += draw(3) ? 0 : 64;
    EXPECT(remus_extents_add(x, volume, offset, length,
                             zero ? REMUS_EXTENT_ZERO : *pos) == 0);
    for (uint64_t i = 0; i < length; i++)
        m->at[volume][offset + i] = zero ? REMUS_EXTENT_ZERO : *pos + i;
    if (!zero)
        *pos += length;
}

/* Is `b` just behind `a`, on the disk and in the journal? */
static int mergeable(const struct remus_extent *a,
                     const struct remus_extent *b)
{
    if (a->volume != b->volume || a->offset + a->length != b->offset)
        return 0;
    if (a->pos == REMUS_EXTENT_ZERO || b->pos == REMUS_EXTENT_ZERO)
        return a->pos == b->pos;
    return a->pos + a->length == b->pos;
}

static void check(struct remus_extents *x, const struct model *m)
{
    static struct model seen;
    uint64_t bytes, ranges, covered = 0, runs = 0;
    EXPECT(remus_extents_measure(x, &bytes, &ranges) == 0);
    clear(&seen);
    EXPECT(x->swept == remus_extents_count(x));
    for (size_t i = 0; i < x->swept; i++) {
        const struct remus_extent *e = remus_extents_at(x, i);
        EXPECT(e->length && e->offset + e->length <= BYTES);
        if (i) {
            const struct remus_extent *last = remus_extents_at(x, i - 1);
            EXPECT(last->volume < e->volume ||
                   (last->volume == e->volume &&
                    last->offset + last->length <= e->offset));
            EXPECT(!mergeable(last, e));
        }
        for (uint64_t k = 0; k < e->length; k++)
            seen.at[e->volume][e->offset + k] =
                e->pos == REMUS_EXTENT_ZERO ? e->pos : e->pos + k;
    }
    EXPECT(!memcmp(&seen, m, sizeof seen));
    for (unsigned int v = 0; v < VOLUMES; v++)
        for (unsigned int i = 0; i < BYTES; i++) {
            if (m->at[v][i] == NOTHING)
                continue;
            covered++;
            runs += !i || m->at[v][i - 1] == NOTHING;
        }
    EXPECT(bytes == covered && ranges == runs);
}

/* The newer of two, laid over the older. */
static void overlay(struct model *m, const struct model *newer)
{
    for (unsigned int v = 0; v < VOLUMES; v++)
        for (unsigned int i = 0; i < BYTES; i++)
            if (newer->at[v][i] != NOTHING)
                m->at[v][i] = newer->at[v][i];
}

/* All of an epoch, in pieces: none is missing, none comes twice. */
static void slices(struct remus_extents *merge,
                   const struct remus_extents *epoch)
{
    size_t before, most = 0;
    for (unsigned int v = 0; v < VOLUMES; v++)
        for (uint64_t at = 0, end; at < BYTES; at = end) {
            end = at + 1 + draw(BYTES);
            before = remus_extents_within(epoch, v, at, end);
            EXPECT(before <= epoch->swept);
            most += before;
            EXPECT(remus_extents_slice(merge, epoch, v, at, end) == 0);
        }
    EXPECT(most >= epoch->swept);
}

/* Kilobytes that this process ever had at once. */
static uint64_t peak_kb(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (uint64_t)u.ru_maxrss;
}

/* 48 bytes an extent, at any moment: many tiny ones, by chance or in order,
 * apart, or splitting a large one. */
static void memory(uint64_t records, int order, int split)
{
    struct remus_extents x = {0};
    uint64_t before = peak_kb(), bytes, ranges;
    if (split)
        EXPECT(remus_extents_add(&x, 0, 0, records * 4096, 64) == 0);
    for (uint64_t i = 0; i < records; i++) {
        uint64_t at = order ? i : draw(records);
        EXPECT(remus_extents_add(&x, 0, at * 4096, 512, REMUS_EXTENT_ZERO) ==
               0);
    }
    EXPECT(remus_extents_measure(&x, &bytes, &ranges) == 0);
    uint64_t grown = (peak_kb() - before) * 1024;
    printf("%zu extents, %llu bytes each at most\n", x.swept,
           (unsigned long long)(grown / x.swept));
    EXPECT(grown <= 48 * x.swept + (1u << 20));
    remus_extents_free(&x);
}

/* Each in a process of its own: a peak stays. */
static void memories(void)
{
    for (int i = 0; i < 4; i++) {
        pid_t child = fork();
        int status = 1;
        EXPECT(child >= 0);
        if (!child) {
            memory(600000, i & 1, i & 2);
            fflush(stdout);
            _exit(0);
        }
        EXPECT(waitpid(child, &status, 0) == child && status == 0);
    }
}

static void one(unsigned int adds)
{
    static struct model all, each;
    struct remus_extents merge = {0}, epoch = {0};
    uint64_t pos = 4096;
    clear(&all);
    for (int round = 0; round < 3; round++) {
        remus_extents_clear(&epoch);
        clear(&each);
        for (uint64_t i = draw(adds); i--;) {
            add(&epoch, &each, &pos);
            if (draw(200) == 0)
                check(&epoch, &each);
        }
        check(&epoch, &each);
        slices(&merge, &epoch);
        overlay(&all, &each);
        if (draw(2))
            check(&merge, &all);
    }
    check(&merge, &all);
    remus_extents_free(&merge);
    remus_extents_free(&epoch);
}

int main(void)
{
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    const int measured = 0; /* a sanitizer's own memory would count */
#else
    const int measured = 1;
#endif
    if (measured)
        memories();
    for (seed = 1; seed <= 300; seed++) {
        state = seed;
        one(seed % 10 ? 60 : 3000);
    }
    return 0;
}
