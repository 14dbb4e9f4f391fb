/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The dirty map: which blocks of the primary's disks the backup may lack.
 *
 * It is a file in memory (format/dirty_file.h) with REMUS_DIRTY_SETS bitmaps,
 * "sets".  A write sets its bits before it touches the local disk, and stands
 * in the set that is open when it is queued.  When an epoch closes its set
 * closes with it (or, if no other set is free, goes on and takes in the next
 * epoch, too).  A set is forgotten as a whole, once the backup has its last
 * epoch on stable storage.  So what a lost backup lacks is the union of all
 * sets, with nothing to merge and nothing to allocate.
 *
 * A block is 16 KiB.  Smaller ones cost memory (1 TiB: 8 MiB for each of the
 * sets), larger ones fill the journal with bytes that did not change: a
 * guest's random writes are of 4 to 16 KiB.
 */
#ifndef REMUS_DIRTY_H
#define REMUS_DIRTY_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "format/dirty_file.h"

enum remus_dirty_use {
    REMUS_DIRTY_FREE,    /* all zero */
    REMUS_DIRTY_OPEN,    /* takes the writes of the open epoch */
    REMUS_DIRTY_CLOSED,  /* waits for `last` to be stable */
    REMUS_DIRTY_CLEARING /* is stable; being zeroed */
};

/* "owner" is the lock of the map's user (the primary's `lock`). */
struct remus_dirty_set {
    _Atomic uint64_t *bits;   /* the map; constant pointer */
    _Atomic uint64_t *pages;  /* which pages of it are not zero; ditto */
    enum remus_dirty_use use; /* owner */
    uint64_t last;            /* owner: newest epoch in it, if closed */
    _Atomic uint32_t pins;    /* writes under way that rely on it */
};

struct remus_dirty {
    struct remus_dirty_file f; /* see there; header fields: owner */
    uint64_t page_words;       /* constant: of one set's summary */
    struct remus_dirty_set sets[REMUS_DIRTY_SETS];
    _Atomic uint32_t open; /* index; owner to change */
    uint64_t stable;       /* owner: newest stable epoch heard of */
    uint32_t doubts;       /* owner: how often it was doubted */
    uint32_t renewed;      /* owner: ... before the newest renewal */
    uint64_t *todo;        /* catch-up: blocks still to be sent; one thread */
    uint64_t todo_word;    /* where the search goes on; ditto */
};

/*
 * Open or make the map (blocks for disk I/O).  Afterwards `valid` says
 * whether it can be believed; if not, it is empty.  Before the first write
 * see remus_dirty_file_begin().  0 or -errno with a text.
 */
int remus_dirty_open(struct remus_dirty *d, remus_io *io,
                     const struct remus_dirty_of *of);
/* Unmap and close; clean: the disks are synced, and these are their files. */
void remus_dirty_close(struct remus_dirty *d, int clean, const int *files);

/* May it be believed?  Newest epoch that was forgotten (owner held). */
int remus_dirty_valid(const struct remus_dirty *d);
/* What it says is not to be believed: a disk failed a sync (owner held). */
void remus_dirty_doubt(struct remus_dirty *d);
uint64_t remus_dirty_forgotten(const struct remus_dirty *d);
/* A comparison or copy begins, at whose end it can be believed (owner
 * held). */
void remus_dirty_renew(struct remus_dirty *d);
/* ... and ends: believe the map from now on, relative to `epoch`, if there
 * was no doubt since (owner held). */
void remus_dirty_base(struct remus_dirty *d, uint64_t epoch);
/*
 * The open set, which from here to the unpin is not forgotten, whatever
 * closes.  No lock; wait-free but for a close at the same moment.
 */
uint32_t remus_dirty_pin(struct remus_dirty *d);
void remus_dirty_unpin(struct remus_dirty *d, uint32_t set);
/* Set the bits of a range: in a pinned set without a lock, in the open one
 * under the owner. */
void remus_dirty_mark(struct remus_dirty *d, uint32_t set, unsigned int volume,
                      uint64_t offset, uint64_t len);

/* `epoch` closes (owner held). */
void remus_dirty_roll(struct remus_dirty *d, uint64_t epoch);
/* What is closed belongs to epochs up to this one (owner held). */
void remus_dirty_relabel(struct remus_dirty *d, uint64_t epoch);
/* Epochs up to this one are stable on the backup (owner held). */
void remus_dirty_stable(struct remus_dirty *d, uint64_t epoch);
/* Take a set that can be forgotten: its index or -1 (owner held). */
int remus_dirty_forget_begin(struct remus_dirty *d);
/* ... zero it, without the lock. */
void remus_dirty_forget(struct remus_dirty *d, int set);
/* ... give it back (owner held). */
void remus_dirty_forget_end(struct remus_dirty *d, int set);
/* All of it, where nobody else uses the map. */
void remus_dirty_forget_all(struct remus_dirty *d);

/* What a backup lacks that holds every epoch up to `has`, in whole blocks
 * (owner held, by the one thread that uses the work to do). */
uint64_t remus_dirty_lacking(struct remus_dirty *d, uint64_t has);

/*
 * A catch-up begins: collect what a backup lacks that holds every epoch up
 * to `has`, as the work to do; all of it will be in `epoch`, which opens now
 * (owner held).  Returns bytes, in whole blocks.
 */
uint64_t remus_dirty_collect(struct remus_dirty *d, uint64_t has,
                             uint64_t epoch);
/* The next run of blocks to send, at most `max` bytes (a multiple of the
 * block).  1, or 0: no more.  One thread. */
int remus_dirty_next(struct remus_dirty *d, uint64_t max, unsigned int *volume,
                     uint64_t *offset, uint64_t *len);
/* The same without taking it: from bit *at on, which goes on. */
int remus_dirty_look_on(const struct remus_dirty *d, uint64_t *at,
                        uint64_t max, unsigned int *volume, uint64_t *offset,
                        uint64_t *len);
/* Bytes marked, in whole blocks.  No lock; approximate while it changes. */
uint64_t remus_dirty_bytes(const struct remus_dirty *d);
/* Is this block marked in any set?  (owner held; tests) */
int remus_dirty_test(const struct remus_dirty *d, unsigned int volume,
                     uint64_t block);

#endif
