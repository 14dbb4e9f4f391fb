/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The backup's superblock: what survives it. */
#ifndef REMUS_SUPER_H
#define REMUS_SUPER_H

#include "base/io.h"
#include "format/lineage.h"
#include "format/moment.h"
#include "format/record.h"
#include "format/role.h"
#include "format/two_slots.h"
#include "remus.h"

/*
 * The superblock, state_dir/backup.state: a file of two slots (two_slots.h).
 * A decision (a role, a promote, a commit, a new log) is written to the other
 * slot, too, with the same serial, and synced: damage to one slot can't take
 * it back.
 *
 * Only where the disks and the tail are can be in one slot alone.  If that is
 * lost, the other one is believed unless the journal knows of a higher serial
 * (segment.h): its segments have been reused then.
 *
 *   offset size
 *    0     4    magic 0x424d4552 ("REMB")
 *    4     4    version, 3
 *    8     8    serial
 *   16     4    role (enum remus_backup_role)
 *   20     4    CRC32C of the resource's name
 *   24     8    applied: epoch that the disks durably hold
 *   32     8    base: epoch before the first after the last copy
 *   40     8    target of a promote
 *   48     8    last epoch ever seen
 *   56     8    tail: the first segment to read; of an empty journal the next
 *               one to begin
 *   64     4    salt of the tail; 0: the journal is empty
 *   68     4    flags: 1 = a disk could not be synced in a copy
 *   72     8    next number of a counted record, at least
 *   80     8    committed, at least
 *   88     8    told: newest epoch of which an ioctl 30 was told that it is
 *               safe; 0 none
 *   96     8    segment bytes
 *  104     8    segments
 *  112     8    bytes of all volumes together; 0 not known
 *  120    16    generation taken by promote; JOINED: whose the disks were
 *  136     4    flags of the checkpoint `applied` (or `target`)
 *  140     4    length of its tag
 *  144    32    its tag
 *  176    24    the ioctl that took it (record.h)
 *  200     8    current: the checkpoint that a promote takes without a name
 *  208     8    ... last the newest state to be had at this moment, or
 *               later, s since 1970; 0 never
 *  216     8    ... CLOCK_BOOTTIME in ns
 *  224    16    ... boot id
 *  240     8    zero
 *  248    16    boot id of the run in which flag 1 was set
 *  264   248    zeros
 *  512   312    lineage of the primary (lineage.h): whose epochs these are
 *  824     8    sessions that the primary counted up to the newest one that
 *               was adopted here; 0: none was
 *  832     8    id of that one
 *  840   512    stamp of each disk, taken at rest (foreign.c); 0: none
 * 1352    16    boot id of the machine then
 * 1368     4    not 0: the journal's files are being made anew (resize.c); so
 *               many may be there
 * 4092     4    CRC32C of bytes 0..4091
 *
 * A slot counts only if its numbers can be: applied, committed and, in a
 * promote, target are not beyond the last epoch; last epoch, next number and
 * tail are not beyond REMUS_NUMBER_MAX.
 */
struct remus_super {
    uint64_t serial;
    uint32_t role;
    uint32_t flags; /* REMUS_SUPER_* below */
    uint64_t applied;
    uint64_t base;
    uint64_t target;
    uint64_t last_epoch;
    uint64_t tail;
    uint32_t tail_salt;
    uint64_t committed;
    uint64_t told;
    uint64_t segment_bytes;
    uint64_t segments;
    uint64_t next_number;
    struct remus_checkpoint cp;  /* of `applied`, or of `target` */
    struct remus_ioctl_id cp_by; /* the ioctl that took it */
    struct remus_moment current; /* moment.h; of: */
    uint64_t current_epoch;
    uint64_t bytes; /* of all volumes together; 0: not known */
    unsigned char unsynced_boot[REMUS_BOOT_ID];
    struct remus_lineage lineage;
    uint64_t sessions;
    uint64_t session;
    unsigned char promoted_generation[REMUS_ID_BYTES];
    uint64_t stamp[REMUS_VOLUMES_MAX]; /* of each disk at rest; 0: none */
    unsigned char stamp_boot[REMUS_BOOT_ID];
    uint32_t reshape; /* not 0: the journal is empty and its files are being
                         made anew; so many may be there */
};

/* A write or sync of a disk failed in a copy: what the page cache holds need
 * not be on the disk, as long as the machine runs. */
#define REMUS_SUPER_UNSYNCED 1u

/* Let that happen to it, by the table in role.h: the only writer of `role`.
 * 0; -EPROTO, with a text: it may not, and nothing is changed.  ADOPT keeps
 * whose the disks were, in promoted_generation, until they are written to. */
int remus_super_change(struct remus_super *s, enum remus_role_event event);
/* Did a promote begin, or end? */
int remus_super_promoted(const struct remus_super *s);
/* The lineage that a promote began. */
void remus_super_descend(const struct remus_super *s,
                         struct remus_lineage *out);
/* Its disks are as a primary left them (FOREIGN, JOINED): make the lineage
 * that one's again. */
void remus_super_as_left(struct remus_super *s);
/*
 * 0, -ENOENT (no file), -EBADMSG (no valid slot), -EPROTONOSUPPORT (another
 * release's), -errno; with a text.
 */
int remus_super_load(remus_io *io, int file, const char *path,
                     const char *resource, struct remus_super *s);

/* Take the next serial and make it durable. */
int remus_super_store(remus_io *io, int file, const char *path,
                      const char *resource, enum remus_slot_store what,
                      struct remus_super *s);

#endif
