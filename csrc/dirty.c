/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The dirty map; see dirty.h. */
#include "dirty.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "record.h"

#define MAGIC 0x444d4552u
#define VERSION 1u
#define PAGE_WORDS (REMUS_PAGE / 8u)
#define FILL_BYTES (1u << 20)

#define AT_GENERATION 32u
#define AT_BOOT 48u
#define AT_CLEAN 64u
#define AT_VALID 68u
#define AT_STABLE 72u
#define AT_SIZES 80u
#define AT_CRC 592u
#define AT_STAMPS 596u
#define END_STAMPS (AT_STAMPS + 8u * REMUS_VOLUMES_MAX)

/* ---- the header ------------------------------------------------------ */

static uint32_t fixed_crc(const unsigned char *h)
{
    return remus_crc32c(remus_crc32c(0, h, AT_BOOT), h + AT_SIZES,
                        AT_CRC - AT_SIZES);
}

/* 0 says "not clean": a sum of 0 is told as 1. */
static uint32_t clean_crc(const unsigned char *h)
{
    uint32_t crc = remus_crc32c(remus_crc32c(0, h, AT_CLEAN), h + AT_VALID,
                                END_STAMPS - AT_VALID);
    return crc ? crc : 1;
}

static void make_header(const struct remus_dirty *d, const char *resource,
                        const unsigned char *generation, unsigned char *h)
{
    memset(h, 0, REMUS_PAGE);
    remus_put32(h, MAGIC);
    remus_put32(h + 4, VERSION);
    remus_put32(h + 8, REMUS_DIRTY_BLOCK);
    remus_put32(h + 12, REMUS_DIRTY_SETS);
    remus_put32(h + 16, remus_crc32c(0, resource, strlen(resource)));
    remus_put32(h + 20, d->volumes);
    remus_put64(h + 24, d->words * 8);
    memcpy(h + AT_GENERATION, generation, REMUS_ID_BYTES);
    for (unsigned int i = 0; i < d->volumes; i++)
        remus_put64(h + AT_SIZES + 8 * i, d->size[i]);
    remus_put32(h + AT_CRC, fixed_crc(h));
}

int remus_dirty_valid(const struct remus_dirty *d)
{
    return remus_get32(d->map + AT_VALID) == 1;
}

void remus_dirty_set_valid(struct remus_dirty *d, int valid)
{
    remus_put32(d->map + AT_VALID, valid ? 1 : 0);
}

uint64_t remus_dirty_forgotten(const struct remus_dirty *d)
{
    return remus_get64(d->map + AT_STABLE);
}

void remus_dirty_base(struct remus_dirty *d, uint64_t epoch)
{
    remus_put64(d->map + AT_STABLE, epoch);
    d->stable = epoch;
    /* A kill between the stores must find the number there already. */
    atomic_signal_fence(memory_order_seq_cst);
    remus_dirty_set_valid(d, 1);
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

void remus_dirty_mark(struct remus_dirty *d, uint32_t set,
                      unsigned int volume, uint64_t offset, uint64_t len)
{
    if (!len)
        return;
    struct remus_dirty_set *s = &d->sets[set];
    uint64_t from = d->first[volume] + offset / REMUS_DIRTY_BLOCK;
    uint64_t last =
        d->first[volume] + (offset + len - 1) / REMUS_DIRTY_BLOCK;
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
            remus_put64(d->map + AT_STABLE, s->last);
        atomic_signal_fence(memory_order_seq_cst);
        return (int)i;
    }
    return -1;
}

/* The bits of page `page` of a set. */
static void zero_page(struct remus_dirty *d, struct remus_dirty_set *s,
                      uint64_t page)
{
    uint64_t end = (page + 1) * PAGE_WORDS;
    for (uint64_t w = page * PAGE_WORDS; w < end && w < d->words; w++)
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
            for (; w < end && w < d->words; w++)
                d->todo[w] |= atomic_load(&s->bits[w]);
        }
    }
}

/* Bytes of volume `v` that its block `block` really has. */
static uint64_t block_bytes(const struct remus_dirty *d, unsigned int v,
                            uint64_t block)
{
    uint64_t left = d->size[v] - block * REMUS_DIRTY_BLOCK;
    return left < REMUS_DIRTY_BLOCK ? left : REMUS_DIRTY_BLOCK;
}

static int lacks(const struct remus_dirty_set *s, uint64_t has)
{
    return s->use == REMUS_DIRTY_OPEN ||
           (s->use == REMUS_DIRTY_CLOSED && s->last > has);
}

uint64_t remus_dirty_lacking(struct remus_dirty *d, uint64_t has)
{
    memset(d->todo, 0, d->words * 8);
    d->todo_word = 0;
    for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++)
        if (lacks(&d->sets[i], has))
            add_set(d, &d->sets[i]);
    uint64_t blocks = 0;
    for (uint64_t w = 0; w < d->words; w++)
        blocks += (uint64_t)__builtin_popcountll(d->todo[w]);
    return blocks * REMUS_DIRTY_BLOCK;
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
    unsigned int v = d->volumes - 1;
    while (v && d->first[v] > bit)
        v--;
    return v;
}

static int take_bit(struct remus_dirty *d, uint64_t bit)
{
    uint64_t mask = 1ull << (bit % 64);
    if (bit / 64 >= d->words || !(d->todo[bit / 64] & mask))
        return 0;
    d->todo[bit / 64] &= ~mask;
    return 1;
}

int remus_dirty_next(struct remus_dirty *d, uint64_t max,
                     unsigned int *volume, uint64_t *offset, uint64_t *len)
{
    while (d->todo_word < d->words && !d->todo[d->todo_word])
        d->todo_word++;
    if (d->todo_word == d->words)
        return 0;
    uint64_t bit = d->todo_word * 64 +
                   (uint64_t)__builtin_ctzll(d->todo[d->todo_word]);
    unsigned int v = *volume = volume_of(d, bit);
    uint64_t block = bit - d->first[v];
    uint64_t blocks =
        (d->size[v] + REMUS_DIRTY_BLOCK - 1) / REMUS_DIRTY_BLOCK;
    *offset = block * REMUS_DIRTY_BLOCK;
    *len = 0;
    while (block < blocks && *len + REMUS_DIRTY_BLOCK <= max &&
           take_bit(d, d->first[v] + block))
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
        for (uint64_t w = page * PAGE_WORDS; w < end && w < d->words; w++) {
            uint64_t bits = 0;
            for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++)
                bits |= atomic_load_explicit(&d->sets[i].bits[w],
                                             memory_order_relaxed);
            blocks += (uint64_t)__builtin_popcountll(bits);
        }
    }
    return blocks * REMUS_DIRTY_BLOCK;
}

int remus_dirty_test(const struct remus_dirty *d, unsigned int volume,
                     uint64_t block)
{
    uint64_t bit = d->first[volume] + block;
    for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++)
        if (atomic_load(&d->sets[i].bits[bit / 64]) >> (bit % 64) & 1)
            return 1;
    return 0;
}

/* ---- open and close ----------------------------------------------------- */

static int lay_out(struct remus_dirty *d, const uint64_t *sizes,
                   unsigned int volumes)
{
    uint64_t bits = 0;
    d->volumes = volumes;
    for (unsigned int i = 0; i < volumes; i++) {
        d->size[i] = sizes[i];
        d->first[i] = bits;
        bits += sizes[i] / REMUS_DIRTY_BLOCK + 1;
        bits = (bits + 63) / 64 * 64;
    }
    uint64_t pages = (bits / 64 + PAGE_WORDS - 1) / PAGE_WORDS;
    d->words = pages * PAGE_WORDS;
    d->page_words = (pages + 63) / 64;
    d->map_bytes = REMUS_PAGE + REMUS_DIRTY_SETS * d->words * 8;
    d->todo = calloc(d->words, sizeof *d->todo);
    int err = d->todo ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++) {
        d->sets[i].pages = calloc(d->page_words, sizeof(uint64_t));
        if (!d->sets[i].pages)
            err = -ENOMEM;
    }
    return err ? remus_fail(err, "dirty map: out of memory") : 0;
}

/* Every block of the file is written: no store can meet a full disk. */
static int fill(struct remus_dirty *d, const unsigned char *header)
{
    unsigned char *zeros = calloc(1, FILL_BYTES);
    if (!zeros)
        return -ENOMEM;
    /* Nothing of what was there may be believed half erased. */
    int err = remus_io_write(d->io, d->file, zeros, REMUS_PAGE, 0);
    if (!err)
        err = d->io->fdatasync(d->io, d->file);
    for (uint64_t at = REMUS_PAGE; !err && at < d->map_bytes;) {
        uint64_t left = d->map_bytes - at;
        size_t n = left < FILL_BYTES ? (size_t)left : FILL_BYTES;
        err = remus_io_write(d->io, d->file, zeros, n, at);
        at += n;
    }
    free(zeros);
    if (!err)
        err = d->io->fdatasync(d->io, d->file);
    if (!err)
        err = remus_io_write(d->io, d->file, header, REMUS_PAGE, 0);
    if (!err)
        err = d->io->fdatasync(d->io, d->file);
    return err;
}

/* What is marked already is lacking, since no epoch that we know. */
static void load_sets(struct remus_dirty *d)
{
    uint32_t free_one = REMUS_DIRTY_SETS;
    for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++) {
        struct remus_dirty_set *s = &d->sets[i];
        s->use = REMUS_DIRTY_FREE;
        for (uint64_t w = 0; w < d->words; w++)
            if (atomic_load_explicit(&s->bits[w], memory_order_relaxed)) {
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

/* What tells this run of the machine, with everything still mounted, from
 * every other. */
static int run_id(const struct remus_dirty *d, unsigned char *id)
{
    uint64_t mount;
    int err = d->io->boot_id(d->io, id);
    if (!err)
        err = d->io->mount_id(d->io, d->file, &mount);
    if (!err)
        remus_put64(id + 8, remus_get64(id + 8) ^
                                remus_dirty_where(d->where, mount));
    return err;
}

/* 1: these bytes say what the file should; what they say is to be believed
 * if *believe. */
static int check_header(const struct remus_dirty *d, const unsigned char *h,
                        const unsigned char *want, int *believe)
{
    unsigned char boot[REMUS_BOOT_ID];
    if (memcmp(h, want, AT_BOOT) ||
        memcmp(h + AT_SIZES, want + AT_SIZES, AT_CRC + 4 - AT_SIZES))
        return 0;
    int same_boot = run_id(d, boot) == 0 &&
                    !memcmp(boot, h + AT_BOOT, REMUS_BOOT_ID);
    int clean = remus_get32(h + AT_CLEAN) == clean_crc(h);
    for (unsigned int i = 0; i < d->volumes; i++)
        if (clean && remus_get64(h + AT_STAMPS + 8 * i) != d->stamp[i])
            return 1; /* somebody else wrote to a disk since */
    *believe = remus_get32(h + AT_VALID) == 1 && (same_boot || clean);
    return 1;
}

/* Open for use: durably not clean, of this run. */
static int begin_use(struct remus_dirty *d)
{
    int err = run_id(d, d->map + AT_BOOT);
    if (err)
        return err;
    remus_put32(d->map + AT_CLEAN, 0);
    return d->io->fdatasync(d->io, d->file);
}

static int open_file(struct remus_dirty *d, const char *path,
                     const unsigned char *want)
{
    unsigned char header[REMUS_PAGE];
    uint64_t size;
    int believe = 0;
    d->file = d->io->open(d->io, path, O_RDWR | O_CREAT);
    int err = d->file < 0 ? d->file : 0;
    if (!err)
        err = d->io->size(d->io, d->file, &size);
    if (!err && size >= d->map_bytes)
        err = remus_io_read(d->io, d->file, header, sizeof header, 0);
    if (err)
        return err;
    int known = size >= d->map_bytes &&
                check_header(d, header, want, &believe);
    if (!known || !believe) {
        err = fill(d, want);
        if (err)
            return err;
    }
    void *at = NULL;
    err = d->io->map(d->io, d->file, d->map_bytes, &at);
    if (err)
        return err;
    d->map = at;
    for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++)
        d->sets[i].bits =
            (_Atomic uint64_t *)(void *)(d->map + REMUS_PAGE +
                                         i * d->words * 8);
    load_sets(d);
    d->stable = remus_dirty_forgotten(d);
    return begin_use(d);
}

int remus_dirty_open(struct remus_dirty *d, remus_io *io,
                     const char *state_dir, const char *resource,
                     const unsigned char generation[REMUS_ID_BYTES],
                     const uint64_t *sizes, const uint64_t *stamps,
                     unsigned int volumes, uint64_t where)
{
    char path[4096];
    unsigned char want[REMUS_PAGE];
    memset(d, 0, sizeof *d);
    d->io = io;
    d->file = -1;
    d->where = where;
    memcpy(d->stamp, stamps, volumes * sizeof *stamps);
    int err = lay_out(d, sizes, volumes);
    if (err)
        return err;
    make_header(d, resource, generation, want);
    snprintf(path, sizeof path, "%s/dirty.map", state_dir);
    err = open_file(d, path, want);
    if (!err)
        err = io->sync_dir(io, state_dir);
    if (err)
        return remus_fail(err, "dirty map %s (%llu bytes): %s", path,
                          (unsigned long long)d->map_bytes,
                          remus_errno_text(err));
    return 0;
}

int remus_dirty_generation(struct remus_dirty *d, const char *resource,
                           const unsigned char id[REMUS_ID_BYTES])
{
    unsigned char want[REMUS_PAGE];
    make_header(d, resource, id, want);
    memcpy(d->map + AT_GENERATION, want + AT_GENERATION, REMUS_ID_BYTES);
    memcpy(d->map + AT_CRC, want + AT_CRC, 4);
    int err = d->io->fdatasync(d->io, d->file);
    return err ? remus_fail(err, "dirty map of %s: sync: %s", resource,
                            remus_errno_text(err))
               : 0;
}

/* The mark is worth something only if all that it vouches for is durable. */
static void leave_clean(struct remus_dirty *d)
{
    if (d->io->fdatasync(d->io, d->file))
        return;
    for (unsigned int i = 0; i < d->volumes; i++)
        remus_put64(d->map + AT_STAMPS + 8 * i, d->stamp[i]);
    remus_put32(d->map + AT_CLEAN, clean_crc(d->map));
    if (d->io->fdatasync(d->io, d->file))
        remus_put32(d->map + AT_CLEAN, 0);
}

void remus_dirty_close(struct remus_dirty *d, int clean)
{
    if (d->map) {
        if (clean)
            leave_clean(d);
        d->io->unmap(d->io, d->map, d->map_bytes);
    }
    if (d->io && d->file >= 0)
        d->io->close(d->io, d->file);
    for (uint32_t i = 0; i < REMUS_DIRTY_SETS; i++)
        free((void *)(uintptr_t)d->sets[i].pages);
    free(d->todo);
    memset(d, 0, sizeof *d);
    d->file = -1;
}
