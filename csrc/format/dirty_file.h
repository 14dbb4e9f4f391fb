/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The file of a dirty map: which blocks of a primary's disks a backup may
 * lack.  What its bits mean while a primary runs is in dirty.h.
 *
 * Where it is.  RUN_DIR/RESOURCE-HASH.dirty.map, a file on tmpfs (checked),
 * written once with zeros and locked in memory (mlock), so that no store into
 * it ever waits for a disk: not for a frozen or full file system, and not for
 * swap.  HASH is of the real path of the state directory, so two resources
 * never share one.  A killed process leaves it as it was; with the machine's
 * memory it is gone, and both sides are compared.
 *
 * A clean end leaves a copy, STATE_DIR/dirty.map, and then removes the file.
 * A start takes the copy over into a new file, and the copy is gone, durably,
 * before the first write.
 *
 *   offset size  (numbers little-endian)
 *    0     4    magic 0x444d4552 ("REMD")
 *    4     4    version, 2
 *    8     4    bytes of a block, 16384
 *   12     4    sets: 4 in memory, 1 in a copy
 *   16     4    CRC32C of the resource's name
 *   20     4    volumes
 *   24     8    bytes of one set, a multiple of 4096
 *   32    16    generation of the primary
 *   48    16    run: id of the machine's boot, and of the mounts of this file
 *               and of the images
 *   64     4    clean: in a copy CRC32C of bytes 0..63 and 68..3167; else 0
 *   68     4    valid: 1 if a backup lacks at most what is marked
 *   72     8    stable: newest epoch that was forgotten
 *   80   512    bytes of each volume; 0 beyond `volumes`
 *  592     4    CRC32C of bytes 0..47, 80..591 and 600..607
 *  596     4    zero
 *  600     8    id of this map, random
 *  608   512    stamp of each image, of a block device what it has counted;
 *               0: nothing tells of a write to it
 * 1120   512    writes to each image that this map's primary began
 * 1632   512    ... of them those that the stamp was taken after
 * 2144  1024    path of the state directory, for people; cut if longer
 * 4096          the sets, one after the other: bit k of byte j of a volume's
 *               part is its block 8 j + k; each part begins at a multiple of
 *               8 bytes.  What lies beyond the end of a copy is zero.
 *
 * A map is believed if and only if the header is right for the resource, its
 * volumes and the primary's generation, `valid` is 1, its id is the one that
 * primary.state names, and no image can have been written to by others since:
 * in memory `run` is as now, and of each image the two counts are equal and
 * the stamp is as now; in a copy `clean` is right, and the stamps are as now.
 * No bit may be set that stands for no block.  A stamp of 0 is never as now,
 * and that of a block device only within one run of the machine, and only of
 * what went through that very device.  A count of writes that is beyond the
 * stamp's says that the primary was killed in a write, or so soon after it
 * that the image's times could not tell another's write from it: then both
 * sides are compared.  If the mount of its process lives on, and another
 * process goes on under it, nobody else had the images: in memory the counts
 * and stamps do not matter
 * then.
 *
 * The order of a start: the map is in place; primary.state names its id,
 * durably (so an older map, or a copy, that is left anywhere is not believed
 * any more); the copy is removed, durably; only then writes begin.  Of a
 * clean end: the disks are synced; the copy with a header of zeros; synced;
 * its header; synced, and the directory; the file in memory is removed.
 */
#ifndef REMUS_DIRTY_FILE_H
#define REMUS_DIRTY_FILE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/io.h"
#include "remus.h"

#define REMUS_DIRTY_SETS 4u

/* Whose map, and what there is now. */
struct remus_dirty_of {
    const char *resource;
    const char *state_dir;
    const char *run_dir; /* NULL: the default, see remus_dirty_run_dir() */
    const unsigned char *generation; /* REMUS_ID_BYTES */
    uint64_t id;   /* of the map that counts; 0: there is none */
    int continues; /* nobody else had the images since the last process */
    unsigned int volumes;
    uint64_t size[REMUS_VOLUMES_MAX];  /* bytes of each */
    uint64_t stamp[REMUS_VOLUMES_MAX]; /* of each image, as it is now; 0:
                                          there is none */
    int counts[REMUS_VOLUMES_MAX];     /* ... and it counts (a block device) */
    uint64_t where;                    /* mounts of the images */
};

struct remus_dirty_file {
    remus_io *io; /* constant after open, as all up to `words` */
    int file;
    unsigned char *map; /* header and sets; NULL: not open */
    size_t map_bytes;
    uint64_t id;
    unsigned int volumes;
    uint64_t size[REMUS_VOLUMES_MAX];  /* bytes of a volume */
    uint64_t first[REMUS_VOLUMES_MAX]; /* first bit of a volume */
    uint64_t words;                    /* of one set, a multiple of a page's */
    char *path, *copy, *state_dir, *run_dir;
    /* Of one thread, but for `ended`: */
    _Atomic uint64_t ended[REMUS_VOLUMES_MAX]; /* writes of this process */
    uint64_t seen_writes[REMUS_VOLUMES_MAX]; /* when its stamp was looked at */
    uint64_t seen_stamp[REMUS_VOLUMES_MAX];
    uint64_t seen_ns[REMUS_VOLUMES_MAX];
    int counts[REMUS_VOLUMES_MAX]; /* constant; of each image: see there */
};

/* Fill in stamps, sizes and mounts of open images; 0 or -errno. */
int remus_dirty_look(struct remus_dirty_of *of, remus_io *io, const int *files,
                     unsigned int volumes);
/* The id that a map gets which a promote to `generation` leaves. */
uint64_t remus_dirty_id_of(const unsigned char generation[REMUS_ID_BYTES]);

/*
 * Open or make the map; blocks.  What can't be believed is empty and not
 * valid.  If f->id is not of->id, primary.state must name it next; then
 * remus_dirty_file_begin() removes the copy, and writes may come.
 * -EBUSY another process has it; -EINVAL the directory is not in memory;
 * -EPERM others can write there; -ENOMEM, -ENOSPC no room; with a text.
 */
int remus_dirty_file_open(struct remus_dirty_file *f, remus_io *io,
                          const struct remus_dirty_of *of);
int remus_dirty_file_begin(struct remus_dirty_file *f);
/* Another generation, before its first write. */
void remus_dirty_file_generation(struct remus_dirty_file *f,
                                 const unsigned char id[REMUS_ID_BYTES]);
/* The fields that change while it is used (whoever owns the map). */
int remus_dirty_file_valid(const struct remus_dirty_file *f);
void remus_dirty_file_set_valid(struct remus_dirty_file *f, int valid);
uint64_t remus_dirty_file_forgotten(const struct remus_dirty_file *f);
/* A kill between this store and one that follows finds it done. */
void remus_dirty_file_set_forgotten(struct remus_dirty_file *f,
                                    uint64_t epoch);
/* clean: the disks are synced, nothing writes to them any more, and these
 * are their open files: leave a copy.  If that fails, or it is not clean, the
 * file in memory stays for the next process of this run. */
void remus_dirty_file_close(struct remus_dirty_file *f, int clean,
                            const int *files);
_Atomic uint64_t *remus_dirty_file_set(const struct remus_dirty_file *f,
                                       unsigned int set);

/* A write to an image begins, has ended (any thread, no lock). */
void remus_dirty_write_begins(struct remus_dirty_file *f, unsigned int volume);
void remus_dirty_write_ended(struct remus_dirty_file *f, unsigned int volume);
/*
 * Take the stamp of an image whose writes are long enough ago (one thread,
 * about ten times a second; no disk is waited for).
 */
void remus_dirty_settle(struct remus_dirty_file *f, unsigned int volume,
                        int file);

/* ---- without a primary --------------------------------------------------- */

/* What a primary that ended here left. */
struct remus_dirty_left {
    uint64_t *bits;     /* NULL: nothing is known */
    uint64_t forgotten; /* who has all epochs up to it, and is else as
                                these disks were then, lacks what is marked */
    unsigned int volumes;
    uint64_t first[REMUS_VOLUMES_MAX]; /* first bit of a volume */
};

/* Read it; nothing is changed, and what can't be believed is not known.
 * 0 or -ENOMEM. */
int remus_dirty_left_read(struct remus_dirty_left *l, remus_io *io,
                          const struct remus_dirty_of *of);
/* Is this block marked? */
int remus_dirty_left_has(const struct remus_dirty_left *l, unsigned int volume,
                         uint64_t block);
void remus_dirty_left_free(struct remus_dirty_left *l);
/* Nothing of it is needed any more: the disks are about to change. */
void remus_dirty_left_remove(remus_io *io, const struct remus_dirty_of *of);
/*
 * The disks are synced, and exactly what checkpoint `epoch` is: leave an
 * empty map of of->generation, as a clean end does.  0 or -errno: without it
 * both sides are compared.
 */
int remus_dirty_leave_empty(remus_io *io, const struct remus_dirty_of *of,
                            const int *files, uint64_t epoch);

/* One number for several mounts: the one so far, and the next. */
static inline uint64_t remus_dirty_where(uint64_t where, uint64_t mount_id)
{
    return where * 0x9e3779b97f4a7c15u + mount_id;
}

#endif
