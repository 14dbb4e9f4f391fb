/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Epoch statistics: the layout of their memory.  docs/formats.md tells the
 * same.  One mapping holds everything: anonymous, or a file that readers in
 * other processes map read-only.  The file is always one in memory (why:
 * epochs_file.c).
 *
 *   offset   size
 *        0   4096   header
 *     4096   80 x 4096  ring: the slot of position p is p mod 4096
 *   331776   30272 x 7  series, in the order of enum remus_epochs_series
 *   543680   1088   zero, to a whole page
 *
 * Header: bytes 0..147 are constant, little-endian, and complete before the
 * file has its name.  The words from 192 on change.
 *
 *        0   4      magic 0x454d4552 ("REME")
 *        4   4      version, 1
 *        8   8      bytes of the file
 *       16   4      slots of the ring
 *       20   4      bytes of a slot
 *       24   4      series
 *       28   4      buckets of a series
 *       32   4      offset of the ring
 *       36   4      offset of the first series
 *       40   4      bytes of a series
 *       44   4      sub-bucket bits, 6
 *       48   8      CLOCK_MONOTONIC at creation, ns
 *       56   8      pid of the writer, as it sees itself
 *       64   16     boot id of the kernel
 *       80   64     name, NUL-padded
 *      144   4      CRC32C of bytes 0..143
 *      192   8      added: samples ever added; the next position
 *      200   8      failed: of them, those with a result
 *      208   8      closed: 1 once the writer ended on purpose
 *
 * Slot, words of 8 bytes: sequence, epoch, start, barrier, ack, commit,
 * bytes, extents, coalesced, and result (low 32 bits) with flags (high).
 * The sequence is 2p + 1 while the sample of position p is being written
 * and 2p + 2 once it is there; 0 before.
 *
 * Series, words: sequence (odd while it changes), count, min, max, sum (low),
 * sum (high), 0, 0, then the counts of the buckets.
 *
 * Words that change are in the host's byte order and are only accessed as
 * atomics.  Writing: sequence odd (relaxed), the words (release), sequence
 * even (release), `added` (release).  Reading: `added`, sequence, the words
 * (all acquire), sequence again: a reader that saw one word of a later
 * sample therefore sees that sample's sequence too, and drops what it has.
 * It needs no fence and never waits: the sequence that a position must have
 * is known, so a slot that has another one is overwritten, or was being
 * overwritten when its writer died; both count as lost.
 *
 * What becomes known later goes into a slot without its sequence: commit is
 * one word, 0 until then; coalesced is stored before extents and read after
 * it, so it is meant if and only if extents is not 0.
 *
 * The writer holds flock(LOCK_EX) on the file for as long as it lives.
 */
#ifndef REMUS_EPOCHS_H
#define REMUS_EPOCHS_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/entry.h"
#include "remus.h"

#define REMUS_EPOCHS_MAGIC 0x454d4552u
#define REMUS_EPOCHS_VERSION 1u
#define REMUS_EPOCHS_SUB_BITS 6u
#define REMUS_EPOCHS_HEADER 4096u
#define REMUS_EPOCHS_CRC_AT 144u
#define REMUS_EPOCHS_WORDS_AT 192u
#define REMUS_EPOCHS_SLOT 80u
#define REMUS_EPOCHS_SERIES_HEAD 64u
#define REMUS_EPOCHS_RING_AT REMUS_EPOCHS_HEADER
#define REMUS_EPOCHS_SERIES_AT                                                \
    (REMUS_EPOCHS_RING_AT + REMUS_EPOCHS_RING * REMUS_EPOCHS_SLOT)
#define REMUS_EPOCHS_SERIES                                                   \
    (REMUS_EPOCHS_SERIES_HEAD + REMUS_EPOCHS_BUCKETS * 8u)
#define REMUS_EPOCHS_BYTES                                                    \
    ((REMUS_EPOCHS_SERIES_AT + REMUS_SERIES_COUNT * REMUS_EPOCHS_SERIES +     \
      4095u) /                                                                \
     4096u * 4096u)

typedef _Atomic uint64_t remus_word;
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && sizeof(remus_word) == 8,
               "epoch statistics need lock-free 64-bit atomics");

/* Words of the header, of a slot, and of a series. */
enum { REMUS_EW_ADDED, REMUS_EW_FAILED, REMUS_EW_CLOSED };
enum {
    REMUS_SW_SEQUENCE,
    REMUS_SW_EPOCH,
    REMUS_SW_START,
    REMUS_SW_BARRIER,
    REMUS_SW_ACK,
    REMUS_SW_COMMIT,
    REMUS_SW_BYTES,
    REMUS_SW_EXTENTS,
    REMUS_SW_COALESCED,
    REMUS_SW_RESULT,
    REMUS_SW_COUNT
};
enum {
    REMUS_HW_SEQUENCE,
    REMUS_HW_COUNT,
    REMUS_HW_MIN,
    REMUS_HW_MAX,
    REMUS_HW_SUM_LOW,
    REMUS_HW_SUM_HIGH,
    REMUS_HW_BUCKETS = 8
};
_Static_assert(REMUS_SW_COUNT * 8u == REMUS_EPOCHS_SLOT, "slot");
_Static_assert(REMUS_HW_BUCKETS * 8u == REMUS_EPOCHS_SERIES_HEAD, "series");

/* A handle.  Constant from create or attach to close: no lock. */
struct remus_epochs {
    struct remus_entry entry; /* constant; the first: see entry.h */
    unsigned char *base;      /* the mapping, REMUS_EPOCHS_BYTES */
    int fd;     /* holds (writer) or asks for the lock; -1: none */
    int writer; /* may write to the mapping */
    char *path; /* writer: the name that `link` has; or NULL */
    char *link; /* writer: what the symbolic link says; or NULL */
};

static inline remus_word *remus_epochs_at(const remus_epochs *e,
                                          uint64_t offset)
{
    return (remus_word *)(void *)(e->base + offset);
}

static inline remus_word *remus_epochs_words(const remus_epochs *e)
{
    return remus_epochs_at(e, REMUS_EPOCHS_WORDS_AT);
}

static inline remus_word *remus_epochs_slot(const remus_epochs *e,
                                            uint64_t position)
{
    return remus_epochs_at(e, REMUS_EPOCHS_RING_AT + position %
                                                         REMUS_EPOCHS_RING *
                                                         REMUS_EPOCHS_SLOT);
}

static inline remus_word *remus_epochs_series_at(const remus_epochs *e,
                                                 int series)
{
    return remus_epochs_at(e, REMUS_EPOCHS_SERIES_AT +
                                  (uint64_t)series * REMUS_EPOCHS_SERIES);
}

/* For the writer's own view of a word that nobody else changes, and for the
 * second look at a sequence. */
static inline uint64_t remus_own(const remus_word *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static inline uint64_t remus_get(const remus_word *word)
{
    return atomic_load_explicit(word, memory_order_acquire);
}

static inline void remus_put(remus_word *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_release);
}

/* Before what it announces. */
static inline void remus_put_early(remus_word *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

/* The sample of `epoch`; 1, or 0 if it is not there.  Called by the writer. */
int remus_epochs_find(remus_epochs *e, uint64_t epoch,
                      struct remus_epoch_sample *out);

/*
 * Buckets.  Values below 64 have one each; from there on every power of two
 * is divided into 64 of equal width, so a bucket is at most 1/64 of its
 * lower bound wide.
 */
static inline unsigned int remus_epochs_bucket_of(uint64_t value)
{
    const unsigned int sub = 1u << REMUS_EPOCHS_SUB_BITS;
    if (value < sub)
        return (unsigned int)value;
    unsigned int top = 63u - (unsigned int)__builtin_clzll(value);
    unsigned int shift = top - REMUS_EPOCHS_SUB_BITS;
    return sub * shift + (unsigned int)(value >> shift);
}

static inline uint64_t remus_epochs_bucket_low(unsigned int bucket)
{
    const unsigned int sub = 1u << REMUS_EPOCHS_SUB_BITS;
    if (bucket < 2 * sub)
        return bucket;
    return (uint64_t)(sub + bucket % sub) << (bucket / sub - 1);
}

/* The largest value that belongs to it. */
static inline uint64_t remus_epochs_bucket_high(unsigned int bucket)
{
    const unsigned int sub = 1u << REMUS_EPOCHS_SUB_BITS;
    uint64_t width = bucket < 2 * sub ? 1 : 1ull << (bucket / sub - 1);
    return remus_epochs_bucket_low(bucket) + (width - 1);
}

#endif
