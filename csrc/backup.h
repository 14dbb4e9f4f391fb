/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The backup of one resource, inside.  One job a file:
 *   super.c         the superblock: what survives, two alternating slots
 *   backup.c        open, recover, status, close
 *   backup_log.c    receive: records, barriers, commits into the journal
 *   backup_apply.c  apply, checkpoint, promote: out of the journal
 *   backup_net.c    the threads and the connection
 *   lobby.c         who wants to connect, until it has proven itself
 *   backup_test.c   the same, driven record by record (tests)
 *
 * Locks, in the order in which they may be taken:
 *   apply_lock      one apply, checkpoint, copy step or promote at a time;
 *                   held during disk I/O
 *   journal.sync_lock
 *   lock            everything marked "lock" below; never held during a
 *                   sync or disk I/O (appends to the journal's page cache
 *                   happen under it)
 *   net.send_lock   the connection's output; leaf
 */
#ifndef REMUS_BACKUP_H
#define REMUS_BACKUP_H

#include <pthread.h>

#include "extents.h"
#include "io.h"
#include "journal.h"
#include "record.h"
#include "remus.h"

/* What the backup durably is. */
enum remus_backup_role {
    REMUS_SUPER_EMPTY = 0,     /* never had a primary: Inconsistent */
    REMUS_SUPER_COPYING = 1,   /* a copy writes to the disks: Inconsistent */
    REMUS_SUPER_SYNCED = 2,    /* copied; consistent once an epoch > base is
                                  committed */
    REMUS_SUPER_BACKUP = 3,    /* consistent at `applied` and later ones */
    REMUS_SUPER_PROMOTING = 4, /* will be at `target`, nothing else */
    REMUS_SUPER_PROMOTED = 5   /* is at `target`; never replays */
};

/*
 * The superblock, state_dir/backup.state: two slots of 4096 bytes, slot
 * (sequence mod 2) is written, so one old or new is always whole.  Valid is
 * the one with the right magic, version and CRC and the higher sequence.
 *
 *   offset size
 *    0     4    magic 0x424d4552 ("REMB")
 *    4     4    version, 1
 *    8     8    sequence
 *   16     4    role (enum remus_backup_role)
 *   20     4    CRC32C of the resource's name
 *   24     8    applied: epoch that the disks durably hold
 *   32     8    base: epoch before the first after the last copy
 *   40     8    target of a promote
 *   48     8    last epoch ever seen
 *   56     8    tail: first journal segment to scan
 *   64     8    number of the last barrier before that was stored
 *   72     8    segment bytes
 *   80     8    segments
 *   88    16    generation of the primary
 *  104    16    generation taken by promote
 *  120     8    next number of a counted record, at least
 *  128     4    flags of the checkpoint `applied` (or `target`)
 *  132     4    length of its tag
 *  136    32    its tag
 *  168     4    CRC32C of bytes 0..167
 */
struct remus_super {
    uint64_t sequence;
    uint32_t role;
    uint64_t applied;
    uint64_t base;
    uint64_t target;
    uint64_t last_epoch;
    uint64_t tail;
    uint64_t number;
    uint64_t segment_bytes;
    uint64_t segments;
    uint64_t next_number;
    struct remus_checkpoint cp; /* of `applied`, or of `target` */
    unsigned char generation[REMUS_ID_BYTES];
    unsigned char promoted_generation[REMUS_ID_BYTES];
};

/* 0, -ENOENT (no file), -EBADMSG (no valid slot), -errno; with a text. */
int remus_super_load(remus_io *io, int file, const char *path,
                     const char *resource, struct remus_super *s);
/* Advance the sequence and make it durable. */
int remus_super_store(remus_io *io, int file, const char *path,
                      const char *resource, struct remus_super *s);

/* One closed or open epoch that is not applied yet.  Guard: lock. */
struct remus_epoch {
    uint64_t number;
    struct remus_extents extents;
    uint64_t first_seq;      /* journal segment of its first record */
    uint64_t records;        /* counted records before the barrier */
    uint64_t barrier_number; /* number of its barrier; 0: open */
    uint32_t run;            /* running CRC of the header CRCs */
    int acked;               /* or recovered: may be a default */
    struct remus_checkpoint cp;
    struct remus_epoch *next_free;
};

struct remus_disk {
    char *name;    /* constant */
    char *path;    /* constant */
    uint64_t size; /* constant, bytes */
    int file;      /* apply_lock; -1 once promoted */
};

struct remus_backup_net; /* backup_net.c */

struct remus_backup {
    remus_io *io;             /* constant */
    char *resource;           /* constant */
    char *state_dir;          /* constant */
    char *super_path;         /* constant */
    int ack, commit_by;       /* constant */
    char *psk_file, *psk_identity; /* constant; NULL: none given */
    unsigned int disk_count;  /* constant */
    struct remus_disk *disks; /* constant array */
    int lock_file, super_file; /* constant */
    unsigned char *buffer;    /* apply_lock: REMUS_APPLY_BYTES */
    int recovered;            /* open/close only: open succeeded */

    pthread_mutex_t apply_lock;
    pthread_mutex_t lock;
    struct remus_journal journal; /* its owner lock is `lock` */
    struct remus_extents merge;   /* apply_lock: what is being applied */

    struct remus_super super; /* written with apply_lock and lock held */
    int fenced;               /* lock: a promote began; nothing is taken */
    int failed;               /* lock: -errno that ended it */
    char reason[REMUS_REASON_MAX]; /* lock */

    struct remus_epoch **epochs; /* lock: closed, unapplied, oldest first */
    size_t epoch_count, epoch_cap; /* lock */
    struct remus_epoch *open; /* lock: the open epoch; NULL: no record yet */
    struct remus_epoch *free_epochs; /* lock */

    uint64_t session;         /* lock */
    int session_start;        /* lock: the next segment starts a session */
    int copying;              /* lock: between RESYNC BEGIN and END */
    uint64_t next_number;     /* lock: of the next counted record */
    uint64_t expect_epoch;    /* lock: epoch of the next counted record;
                                 0: none may come before a session */
    uint64_t last_epoch;      /* lock: highest ever seen */
    uint64_t last_barrier;    /* lock: number of the last barrier */
    uint64_t prepared;        /* lock: newest closed epoch */
    uint64_t acked;           /* lock: newest acked epoch */
    uint64_t committed;       /* lock */
    uint64_t applied;         /* lock: in the disks, perhaps not synced */
    struct remus_checkpoint committed_cp; /* lock: of `committed` */
    struct remus_checkpoint applied_cp; /* lock: of `applied` */
    uint64_t cost;            /* lock: credit spent in this session */
    struct remus_status stats; /* lock: the counters in it */

    struct remus_backup_net *net; /* NULL until served */
};

#define REMUS_APPLY_BYTES (1u << 20)

/* backup.c */
int remus_backup_open_io(const struct remus_backup_config *config,
                         remus_io *io, remus_backup **out);
void remus_backup_free(remus_backup *b); /* memory only */
/* Newest epoch that survives a power loss (lock held). */
uint64_t remus_backup_stable(const remus_backup *b);
/* Is there a checkpoint to promote to?  (lock held) */
int remus_backup_consistent(const remus_backup *b);
/* Keep the reason of a final failure (lock not held); returns err. */
int remus_backup_failed(remus_backup *b, int err);

/* backup_log.c; all take `lock` themselves unless said otherwise */
int remus_backup_session_begin(remus_backup *b, const struct remus_hello *h,
                               uint64_t session,
                               struct remus_hello_reply *reply);
void remus_backup_session_end(remus_backup *b);
/* A counted record.  `header` as it came; payload proven by the caller. */
int remus_backup_record(remus_backup *b,
                        const unsigned char header[REMUS_REC_HEADER],
                        const struct remus_record *r,
                        const unsigned char *payload);
/* After a barrier: make it durable if the ack is, and note it acked. */
int remus_backup_ack(remus_backup *b, uint64_t epoch);
/* A commit of the wire (from_primary) or of an operator; not synced. */
int remus_backup_commit_record(remus_backup *b, uint64_t epoch,
                               int from_primary);
/* `epoch` is committed (lock held; its epoch is listed). */
void remus_backup_note_commit(remus_backup *b, uint64_t epoch);
/* Fields of ACK, APPLIED, PING as of now. */
void remus_backup_progress(remus_backup *b, struct remus_record *r);
/* Epoch objects with their memory (lock held). */
struct remus_epoch *remus_epoch_take(remus_backup *b, uint64_t number);
void remus_epoch_give(remus_backup *b, struct remus_epoch *e);
int remus_epoch_index(remus_backup *b, struct remus_epoch *e,
                      const struct remus_record *r, uint64_t pos);
/* Close the open epoch with its barrier and list it as prepared. */
int remus_epoch_close(remus_backup *b, const struct remus_record *r,
                      const unsigned char *tag);
/* Is a write, zero or barrier record sane for this resource? */
int remus_backup_check_range(const remus_backup *b,
                             const struct remus_record *r);

/* backup_apply.c; all take apply_lock themselves */
int remus_backup_apply(remus_backup *b);
int remus_backup_checkpoint(remus_backup *b);
int remus_backup_copy_begin(remus_backup *b);
int remus_backup_copy_data(remus_backup *b, const struct remus_record *r,
                           const unsigned char *payload);
int remus_backup_copy_flush(remus_backup *b);
int remus_backup_copy_end(remus_backup *b, uint64_t first_epoch);

/* backup_net.c */
/* End the connection and keep others out (net may be NULL).  force 0:
 * -EBUSY if a primary is connected.  reopen: let them in again. */
int remus_backup_net_fence(remus_backup *b, int force);
void remus_backup_net_reopen(remus_backup *b);
void remus_backup_net_stop(remus_backup *b);
void remus_backup_net_status(remus_backup *b, struct remus_status *s);

#endif
