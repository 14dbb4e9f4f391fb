/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The dirty map; see dirty.h. */
#include "primary/dirty.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/record.h"

#define PAGE_WORDS (REMUS_PAGE / 8u)

int remus_dirty_valid(const struct remus_dirty *d)
{
    return remus_dirty_file_valid(&d->f);
}

void remus_dirty_doubt(struct remus_dirty *d)
{
    d->doubts++;
    remus_dirty_file_set_valid(&d->f, 0);
}

void remus_dirty_renew(struct remus_dirty *d)
{
    d->renewed = d->doubts;
    remus_dirty_file_set_valid(&d->f, 0);
}

uint64_t remus_dirty_forgotten(const struct remus_dirty *d)
{
    return remus_dirty_file_forgotten(&d->f);
}

void remus_dirty_base(struct remus_dirty *d, uint64_t epoch)
{
    /* A kill between the stores must find the number there already. */
    remus_dirty_file_set_forgotten(&d->f, epoch);
    d->stable = epoch;
    if (d->doubts == d->renewed)
        remus_dirty_file_set_valid(&d->f, 1);
}

/* ---- marking ----------------------------------------------------------- */

static void touch_page(struct remus_dirty_set *s, uint64_t word)
{
    uint64_t page = word / PAGE_WORDS;
    uint64_t bit = 1ull << (page % 64);
    if (!(atomic_load_explicit(&s->pages[page / 64], memory_order_relaxed) &
          bit))
        atomic_fetch_or(&s->pages[page / 64], bit);
}

/* Blocks that are marked already cost a look and no store. */
static void set_bits(struct remus_dirty_set *s, uint64_t word, uint64_t mask)
{
    uint64_t old = atomic_load_explicit(&s->bits[word], memory_order_relaxed);
    if ((old & mask) == mask)
        return;
    touch_page(s, word);
    atomic_fetch_or(&s->bits[word], mask);
}

void remus_dirty_mark(struct remus_dirty *d, uint32_t set, unsigned int volume,
                      uint64_t offset, uint64_t len)
{
    if (!len)
        return;
    struct remus_dirty_set *s = &d->sets[set];
    uint64_t from = d->f.first[volume] + offset / REMUS_BLOCK;
    uint64_t last = d->f.first[volume] + (offset + len - 1) / REMUS_BLOCK;
    uint64_t head = ~0ull << (from % 64);
    uint64_t tail = ~0ull >> (63 - last % 64);
    if (from / 64 == last / 64) {
        set_bits(s, from / 64, head & tail);
        return;
    }
    set_bits(s, from / 64, head);
    for (uint64_t word = from / 64 + 1; word < last / 64; word++)
        set_bits(s, word, ~0ull);
    set_bits(s, last / 64, tail);
}

uint32_t remus_dirty_pin(struct remus_dirty *d)
{
    for (;;) {
        uint32_t set = atomic_load(&d->open);
        atomic_fetch_add(&d->sets[set].pins, 1);
        /* Still open with the pin on it: whoever closes it sees the pin. */
        if (atomic_load(&d->open) == set)
            return set;
        atomic_fetch_sub(&d->sets[set].pins, 1);
    }
}

void remus_dirty_unpin(struct remus_dirty *d, uint32_t set)
{
    atomic_fetch_sub(&d->sets[set].pins, 1);
}

/* ---- epochs ------------------------------------------------------------- */

void remus_dirty_roll(struct remus_dirty *d, uint64_t epoch)
{
    uint32_t was = atomic_load(&d->open);
    for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++) {
        if (d->sets[i].use != REMUS_DIRTY_FREE)
            continue;
        d->sets[was].use = REMUS_DIRTY_CLOSED;
        d->sets[was].last = epoch;
        d->sets[i].use = REMUS_DIRTY_OPEN;
        atomic_store(&d->open, i);
        return;
    }
}

void remus_dirty_relabel(struct remus_dirty *d, uint64_t epoch)
{
    for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++)
        if (d->sets[i].use == REMUS_DIRTY_CLOSED && d->sets[i].last > epoch)
            d->sets[i].last = epoch;
}

void remus_dirty_stable(struct remus_dirty *d, uint64_t epoch)
{
    if (epoch > d->stable)
        d->stable = epoch;
}

int remus_dirty_forget_begin(struct remus_dirty *d)
{
    for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++) {
        struct remus_dirty_set *s = &d->sets[i];
        if (s->use != REMUS_DIRTY_CLOSED || s->last > d->stable ||
            atomic_load(&s->pins))
            continue;
        s->use = REMUS_DIRTY_CLEARING;
        /* Said before the first bit goes: who finds less than all of them
         * knows which epochs the backup must have. */
        if (remus_dirty_forgotten(d) < s->last)
            remus_dirty_file_set_forgotten(&d->f, s->last);
        return (int)i;
    }
    return -1;
}

/* The bits of page `page` of a set. */
static void zero_page(struct remus_dirty *d, struct remus_dirty_set *s,
                      uint64_t page)
{
    uint64_t end = (page + 1) * PAGE_WORDS;
    for (uint64_t w = page * PAGE_WORDS; w < end && w < d->f.words; w++)
        atomic_store_explicit(&s->bits[w], 0, memory_order_relaxed);
}

void remus_dirty_forget(struct remus_dirty *d, int set)
{
    struct remus_dirty_set *s = &d->sets[set];
    for (uint64_t i = 0; i < d->page_words; i++) {
        uint64_t left = atomic_load(&s->pages[i]);
        for (; left; left &= left - 1)
            zero_page(d, s, i * 64 + (uint64_t)__builtin_ctzll(left));
        atomic_store(&s->pages[i], 0);
    }
}

void remus_dirty_forget_end(struct remus_dirty *d, int set)
{
    d->sets[set].use = REMUS_DIRTY_FREE;
}

void remus_dirty_forget_all(struct remus_dirty *d)
{
    int set;
    while ((set = remus_dirty_forget_begin(d)) >= 0) {
        remus_dirty_forget(d, set);
        remus_dirty_forget_end(d, set);
    }
}

/* ---- catching up -------------------------------------------------------- */

/* Take the bits of a set into the work to do. */
static void add_set(struct remus_dirty *d, const struct remus_dirty_set *s)
{
    for (uint64_t i = 0; i < d->page_words; i++) {
        uint64_t left = atomic_load(&s->pages[i]);
        for (; left; left &= left - 1) {
            uint64_t w =
                (i * 64 + (uint64_t)__builtin_ctzll(left)) * PAGE_WORDS;
            uint64_t end = w + PAGE_WORDS;
            for (; w < end && w < d->f.words; w++)
                d->todo[w] |= atomic_load(&s->bits[w]);
        }
    }
}

/* Bytes of volume `v` that its block `block` really has. */
static uint64_t block_bytes(const struct remus_dirty *d, unsigned int v,
                            uint64_t block)
{
    uint64_t left = d->f.size[v] - block * REMUS_BLOCK;
    return left < REMUS_BLOCK ? left : REMUS_BLOCK;
}

/* owner held */
static int lacks(const struct remus_dirty_set *s, uint64_t has)
{
    return s->use == REMUS_DIRTY_OPEN ||
           (s->use == REMUS_DIRTY_CLOSED && s->last > has);
}

uint64_t remus_dirty_lacking(struct remus_dirty *d, uint64_t has)
{
    memset(d->todo, 0, d->f.words * 8);
    d->todo_word = 0;
    for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++)
        if (lacks(&d->sets[i], has))
            add_set(d, &d->sets[i]);
    uint64_t blocks = 0;
    for (uint64_t w = 0; w < d->f.words; w++)
        blocks += (uint64_t)__builtin_popcountll(d->todo[w]);
    return blocks * REMUS_BLOCK;
}

uint64_t remus_dirty_collect(struct remus_dirty *d, uint64_t has,
                             uint64_t epoch)
{
    uint64_t bytes = remus_dirty_lacking(d, has);
    for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++)
        if (d->sets[i].use == REMUS_DIRTY_CLOSED && lacks(&d->sets[i], has))
            d->sets[i].last = epoch;
    return bytes;
}

/* The volume that a bit belongs to. */
static unsigned int volume_of(const struct remus_dirty *d, uint64_t bit)
{
    unsigned int v = d->f.volumes - 1;
    while (v && d->f.first[v] > bit)
        v--;
    return v;
}

static int take_bit(struct remus_dirty *d, uint64_t bit)
{
    uint64_t mask = 1ull << (bit % 64);
    if (bit / 64 >= d->f.words || !(d->todo[bit / 64] & mask))
        return 0;
    d->todo[bit / 64] &= ~mask;
    return 1;
}

int remus_dirty_next(struct remus_dirty *d, uint64_t max, unsigned int *volume,
                     uint64_t *offset, uint64_t *len)
{
    while (d->todo_word < d->f.words && !d->todo[d->todo_word])
        d->todo_word++;
    if (d->todo_word == d->f.words)
        return 0;
    uint64_t bit =
        d->todo_word * 64 + (uint64_t)__builtin_ctzll(d->todo[d->todo_word]);
    unsigned int v = *volume = volume_of(d, bit);
    uint64_t block = bit - d->f.first[v];
    uint64_t blocks = (d->f.size[v] + REMUS_BLOCK - 1) / REMUS_BLOCK;
    *offset = block * REMUS_BLOCK;
    *len = 0;
    while (block < blocks && *len + REMUS_BLOCK <= max &&
           take_bit(d, d->f.first[v] + block))
        *len += block_bytes(d, v, block++);
    return 1;
}

static int has_bit(const struct remus_dirty *d, uint64_t bit)
{
    return bit / 64 < d->f.words && (d->todo[bit / 64] >> (bit % 64) & 1);
}

int remus_dirty_look_on(const struct remus_dirty *d, uint64_t *at,
                        uint64_t max, unsigned int *volume, uint64_t *offset,
                        uint64_t *len)
{
    uint64_t bits = d->f.words * 64;
    while (*at < bits && !has_bit(d, *at))
        *at = d->todo[*at / 64] >> (*at % 64) ? *at + 1 : (*at / 64 + 1) * 64;
    if (*at >= bits)
        return 0;
    unsigned int v = *volume = volume_of(d, *at);
    uint64_t block = *at - d->f.first[v];
    uint64_t blocks = (d->f.size[v] + REMUS_BLOCK - 1) / REMUS_BLOCK;
    *offset = block * REMUS_BLOCK;
    *len = 0;
    for (; block < blocks && *len + REMUS_BLOCK <= max && has_bit(d, *at);
         ++*at)
        *len += block_bytes(d, v, block++);
    return 1;
}

uint64_t remus_dirty_bytes(const struct remus_dirty *d)
{
    uint64_t blocks = 0;
    for (uint64_t page = 0; page < d->page_words * 64; page++) {
        uint64_t any = 0, bit = 1ull << (page % 64);
        for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++)
            any |= atomic_load(&d->sets[i].pages[page / 64]);
        if (!(any & bit))
            continue;
        uint64_t end = (page + 1) * PAGE_WORDS;
        for (uint64_t w = page * PAGE_WORDS; w < end && w < d->f.words; w++) {
            uint64_t bits = 0;
            for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++)
                bits |= atomic_load_explicit(&d->sets[i].bits[w],
                                             memory_order_relaxed);
            blocks += (uint64_t)__builtin_popcountll(bits);
        }
    }
    return blocks * REMUS_BLOCK;
}

int remus_dirty_test(const struct remus_dirty *d, unsigned int volume,
                     uint64_t block)
{
    uint64_t bit = d->f.first[volume] + block;
    for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++)
        if (atomic_load(&d->sets[i].bits[bit / 64]) >> (bit % 64) & 1)
            return 1;
    return 0;
}

/* ---- open and close ----------------------------------------------------- */

static int make_summaries(struct remus_dirty *d)
{
    d->page_words = (d->f.words / PAGE_WORDS + 63) / 64;
    d->todo = calloc(d->f.words, sizeof *d->todo);
    int err = d->todo ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++) {
        d->sets[i].bits = remus_dirty_file_set(&d->f, i);
        d->sets[i].pages = calloc(d->page_words, sizeof(uint64_t));
        if (!d->sets[i].pages)
            err = -ENOMEM;
    }
    return err ? remus_fail(err, "dirty map: out of memory") : 0;
}

/* Of a word of a set: the bits that stand for a block. */
static uint64_t real_bits(const struct remus_dirty *d, uint64_t word)
{
    unsigned int v = volume_of(d, word * 64);
    uint64_t from = word * 64 - d->f.first[v];
    uint64_t blocks = (d->f.size[v] + REMUS_BLOCK - 1) / REMUS_BLOCK;
    if (from >= blocks)
        return 0;
    return blocks - from < 64 ? (1ull << (blocks - from)) - 1 : UINT64_MAX;
}

/* A bit that stands for no block was set by nobody here: the map is damaged,
 * and nothing else in it is to be believed either. */
static void drop_strays(struct remus_dirty *d, struct remus_dirty_set *s,
                        uint64_t word)
{
    uint64_t real = real_bits(d, word);
    if (atomic_fetch_and(&s->bits[word], real) & ~real)
        remus_dirty_file_set_valid(&d->f, 0);
}

/* What is marked already is lacking, since no epoch that we know. */
static void load_sets(struct remus_dirty *d)
{
    uint32_t free_one = REMUS_DIRTY_SETS;
    for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++) {
        struct remus_dirty_set *s = &d->sets[i];
        s->use = REMUS_DIRTY_FREE;
        for (uint64_t w = 0; w < d->f.words; w++)
            if (atomic_load_explicit(&s->bits[w], memory_order_relaxed)) {
                drop_strays(d, s, w);
                touch_page(s, w);
                s->use = REMUS_DIRTY_CLOSED;
                s->last = UINT64_MAX;
            }
        if (s->use == REMUS_DIRTY_FREE && free_one == REMUS_DIRTY_SETS)
            free_one = i;
    }
    if (free_one == REMUS_DIRTY_SETS)
        free_one = 0;
    d->sets[free_one].use = REMUS_DIRTY_OPEN;
    atomic_store(&d->open, free_one);
}

int remus_dirty_open(struct remus_dirty *d, remus_io *io,
                     const struct remus_dirty_of *of)
{
    memset(d, 0, sizeof *d);
    int err = remus_dirty_file_open(&d->f, io, of);
    if (!err)
        err = make_summaries(d);
    if (err)
        return err;
    load_sets(d);
    d->stable = remus_dirty_forgotten(d);
    return 0;
}

void remus_dirty_close(struct remus_dirty *d, int clean, const int *files)
{
    remus_dirty_file_close(&d->f, clean, files);
    for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++)
        free((void *)(uintptr_t)d->sets[i].pages);
    free(d->todo);
    memset(d, 0, sizeof *d);
    d->f.file = -1;
}
