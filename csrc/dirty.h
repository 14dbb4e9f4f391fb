/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The dirty map: which blocks of the primary's disks the backup may lack.
 *
 * state_dir/dirty.map is written with zeros once and mapped ever after, so a
 * full disk is an error at the start and a killed process leaves it right.
 * It holds a page of header and REMUS_DIRTY_SETS bitmaps, "sets".  A write
 * sets its bits before it touches the local disk, and stands in the set that
 * is open when it is queued.  When an epoch closes its set closes with it
 * (or, if no other set is free, goes on and takes in the next epoch, too).  A
 * set is forgotten as a whole, once the backup has its last epoch on stable
 * storage.  So what a lost backup lacks is the union of all sets, with
 * nothing to merge and nothing to allocate.
 *
 * A block is 16 KiB.  Smaller ones cost memory (1 TiB: 8 MiB for each of the
 * sets), larger ones fill the journal with bytes that did not change: a
 * guest's random writes are of 4 to 16 KiB.
 *
 *   offset size  (numbers little-endian)
 *    0     4    magic 0x444d4552 ("REMD")
 *    4     4    version, 1
 *    8     4    bytes of a block
 *   12     4    sets
 *   16     4    CRC32C of the resource's name
 *   20     4    volumes
 *   24     8    bytes of one set, a multiple of 4096
 *   32    16    generation of the primary
 *   48    16    id of the boot of the machine that used it last, and of the
 *               mounts of this file and of the images
 *   64     4    clean: CRC32C of bytes 0..63 and 68..1107 if it was closed
 *               cleanly, else 0
 *   68     4    valid: 1 if the backup lacks at most what is marked
 *   72     8    stable: newest epoch that was forgotten
 *   80   512    bytes of each volume; 0 beyond `volumes`
 *  592     4    CRC32C of bytes 0..47 and 80..591
 *  596   512    at a clean close, each image's time of modification in ns
 *               since 1970; 0 for a block device
 * 4096          the sets, one after the other: bit k of byte j of a volume's
 *               part is its block 8 j + k; each part begins at a multiple of
 *               8 bytes
 *
 * It can be believed if and only if the header is right, `valid` is 1, the
 * generation is the primary's, and either `clean` is right or the boot id is
 * that of the running machine and everything is still mounted as it was:
 * after a power loss, or when a file system failed, any part of it or of the
 * images may have been written.  Nor can it be believed if an image was
 * written to since the clean close.  The clean mark is taken away durably
 * before the first bit is set, and made after the disks and the map were
 * synced.
 */
#ifndef REMUS_DIRTY_H
#define REMUS_DIRTY_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "io.h"
#include "remus.h"

#define REMUS_DIRTY_BLOCK 16384u
#define REMUS_DIRTY_SETS 4u

enum remus_dirty_use {
    REMUS_DIRTY_FREE,     /* all zero */
    REMUS_DIRTY_OPEN,     /* takes the writes of the open epoch */
    REMUS_DIRTY_CLOSED,   /* waits for `last` to be stable */
    REMUS_DIRTY_CLEARING  /* is stable; being zeroed */
};

/* "owner" is the lock of the map's user (the primary's `lock`). */
struct remus_dirty_set {
    _Atomic uint64_t *bits;  /* the map; constant pointer */
    _Atomic uint64_t *pages; /* which pages of it are not zero; ditto */
    enum remus_dirty_use use; /* owner */
    uint64_t last;           /* owner: newest epoch in it, if closed */
    _Atomic uint32_t pins;   /* writes under way that rely on it */
};

struct remus_dirty {
    remus_io *io;            /* constant after open, as all up to `sets` */
    int file;
    unsigned char *map;      /* header and sets; NULL: not open */
    size_t map_bytes;
    unsigned int volumes;
    uint64_t size[REMUS_VOLUMES_MAX];  /* bytes of a volume */
    uint64_t first[REMUS_VOLUMES_MAX]; /* first bit of a volume */
    uint64_t words;          /* of one set */
    uint64_t page_words;     /* of one set's summary */
    struct remus_dirty_set sets[REMUS_DIRTY_SETS];
    _Atomic uint32_t open;   /* index; owner to change */
    uint64_t stamp[REMUS_VOLUMES_MAX]; /* of the images; open/close only */
    uint64_t where;          /* mounts of the images; open only */
    uint64_t stable;         /* owner: newest stable epoch heard of */
    uint64_t *todo;          /* catch-up: blocks still to be sent; one thread */
    uint64_t todo_word;      /* where the search goes on; ditto */
};

/* One number for several mounts: the one so far, and the next. */
static inline uint64_t remus_dirty_where(uint64_t where, uint64_t mount_id)
{
    return where * 0x9e3779b97f4a7c15u + mount_id;
}

/*
 * Open or make the map (blocks for disk I/O).  Afterwards `valid` says
 * whether it can be believed; if not, it is empty.  `where`: the mounts of
 * the images, in their order.  0 or -errno with a text.
 */
int remus_dirty_open(struct remus_dirty *d, remus_io *io,
                     const char *state_dir, const char *resource,
                     const unsigned char generation[REMUS_ID_BYTES],
                     const uint64_t *sizes, const uint64_t *stamps,
                     unsigned int volumes, uint64_t where);
/* Unmap and close; clean: the disks are synced and `stamp` is theirs: leave
 * the clean mark. */
void remus_dirty_close(struct remus_dirty *d, int clean);

/* May it be believed?  Newest epoch that was forgotten (owner held). */
int remus_dirty_valid(const struct remus_dirty *d);
void remus_dirty_set_valid(struct remus_dirty *d, int valid);
uint64_t remus_dirty_forgotten(const struct remus_dirty *d);
/* Believe the map from now on, relative to `epoch` (owner held). */
void remus_dirty_base(struct remus_dirty *d, uint64_t epoch);
/* Another generation, durably (no lock; nobody else changes the header). */
int remus_dirty_generation(struct remus_dirty *d, const char *resource,
                           const unsigned char id[REMUS_ID_BYTES]);

/*
 * The open set, which from here to the unpin is not forgotten, whatever
 * closes.  No lock; wait-free but for a close at the same moment.
 */
uint32_t remus_dirty_pin(struct remus_dirty *d);
void remus_dirty_unpin(struct remus_dirty *d, uint32_t set);
/* Set the bits of a range in a pinned set, or in the open one with the owner
 * held.  No lock otherwise. */
void remus_dirty_mark(struct remus_dirty *d, uint32_t set,
                      unsigned int volume, uint64_t offset, uint64_t len);

/* `epoch` closes (owner held). */
void remus_dirty_roll(struct remus_dirty *d, uint64_t epoch);
/* What is closed belongs to epochs up to this one (owner held). */
void remus_dirty_relabel(struct remus_dirty *d, uint64_t epoch);
/* Epochs up to this one are stable on the backup (owner held). */
void remus_dirty_stable(struct remus_dirty *d, uint64_t epoch);
/* Take a set that can be forgotten: its index or -1 (owner held); zero it
 * (owner not held); give it back (owner held). */
int remus_dirty_forget_begin(struct remus_dirty *d);
void remus_dirty_forget(struct remus_dirty *d, int set);
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
int remus_dirty_next(struct remus_dirty *d, uint64_t max,
                     unsigned int *volume, uint64_t *offset, uint64_t *len);
/* Bytes marked, in whole blocks.  No lock; approximate while it changes. */
uint64_t remus_dirty_bytes(const struct remus_dirty *d);
/* Is this block marked in any set?  (owner held; tests) */
int remus_dirty_test(const struct remus_dirty *d, unsigned int volume,
                     uint64_t block);

#endif
