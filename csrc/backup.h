/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The backup of one resource, inside.  One job a file:
 *   super.c         the superblock: what survives, two alternating slots
 *   backup.c        open, status, close
 *   backup_recover.c  what the journal holds at the start
 *   backup_hello.c  sessions: whose, from where on, with how much room
 *   backup_log.c    receive: records, barriers, commits into the journal
 *   backup_apply.c  apply, checkpoint, copy: out of the journal
 *   backup_promote.c  failover
 *   backup_compare.c  hashes of blocks, for a primary that lost its map
 *   backup_verify.c  the same while a stream goes on
 *   backup_net.c    the threads and the connection: see backup_net.h
 *   lobby.c         who wants to connect, until it has proven itself
 *   backup_test.c   the same, driven record by record (tests)
 *
 * Locks, in the order in which they may be taken:
 *   apply_lock      one apply, checkpoint, copy step or promote at a time;
 *                   held during disk I/O
 *   view_lock       closed epochs keep their extents as they are, and the
 *                   journal keeps its segments; held for milliseconds
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
#include "hash.h"
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
    REMUS_SUPER_PROMOTED = 5,  /* is at `target`; never replays */
    REMUS_SUPER_LEFT = 6,      /* a primary took it over since: its state is
                                  what counts */
    REMUS_SUPER_FOREIGN = 7,   /* the disks are as a primary left them: no
                                  checkpoint; another one may overwrite them */
    REMUS_SUPER_JOINED = 8     /* was FOREIGN; the disks are not written to
                                  before a commit, and consistent with each
                                  prepared epoch > base on top of them */
};

/* SYNCED, JOINED: nothing was ever committed on top of these disks. */
static inline int remus_super_uncommitted(uint32_t role)
{
    return role == REMUS_SUPER_SYNCED || role == REMUS_SUPER_JOINED;
}

/* Can they follow a primary through the journal? */
static inline int remus_super_follows(uint32_t role)
{
    return remus_super_uncommitted(role) || role == REMUS_SUPER_BACKUP;
}

/*
 * The superblock, state_dir/backup.state: two slots of 4096 bytes, slot
 * (sequence mod 2) is written, so one old or new is always whole.  Valid is
 * the one with the right magic, version and CRC and the higher sequence.
 *
 *   offset size
 *    0     4    magic 0x424d4552 ("REMB")
 *    4     4    version, 2
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
 *   88     8    when a primary was last heard of, s since 1970; 0 never
 *   96     8    bytes of all volumes together; 0 not known
 *  104    16    generation taken by promote
 *  120     8    next number of a counted record, at least
 *  128     4    flags of the checkpoint `applied` (or `target`)
 *  132     4    length of its tag
 *  136    32    its tag
 *  168   312    lineage of the primary (lineage.h): whose epochs these are
 *  480     4    CRC32C of bytes 0..479
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
    uint64_t heard; /* s since 1970 */
    uint64_t bytes; /* of all volumes together; 0: not known */
    struct remus_lineage lineage;
    unsigned char promoted_generation[REMUS_ID_BYTES];
};

/* Did a promote begin, or end? */
int remus_super_promoted(const struct remus_super *s);
/* The lineage that a promote began. */
void remus_super_descend(const struct remus_super *s,
                         struct remus_lineage *out);
/* 0, -ENOENT (no file), -EBADMSG (no valid slot), -errno; with a text. */
int remus_super_load(remus_io *io, int file, const char *path,
                     const char *resource, struct remus_super *s);
/* Advance the sequence and make it durable. */
int remus_super_store(remus_io *io, int file, const char *path,
                      const char *resource, struct remus_super *s);

/* One closed or open epoch that is not applied yet.  Guard: lock. */
struct remus_epoch {
    uint64_t number;
    struct remus_extents extents; /* open: lock; closed: apply_lock and
                                     view_lock to change, one to read (it
                                     is also freed with `lock` held) */
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

/* What applied epochs came to, until the primary was told. */
#define REMUS_MEASURED_KEPT 1024u

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
    uint64_t disk_bytes;      /* constant: of all; 0: not looked at */
    int lock_file, super_file; /* constant */
    int journal_lock;         /* constant; -1: none */
    unsigned char *buffer;    /* apply_lock: REMUS_APPLY_BYTES */
    int recovered;            /* open/close only: open succeeded */
    int look;                 /* constant: nothing may be changed */
    int discard_local;        /* constant: FOREIGN disks may be overwritten
                                 whatever is on them */

    pthread_mutex_t apply_lock;
    pthread_mutex_t view_lock;
    pthread_mutex_t lock;
    struct remus_journal journal; /* its owner lock is `lock` */
    struct remus_extents merge;   /* apply_lock: what is being applied */
    uint64_t merged;          /* apply_lock: newest epoch of all in it, if it
                                 was collected to be looked at; else 0 */

    struct remus_super super; /* written with apply_lock and lock held */
    int fenced;               /* lock: a promote began; nothing is taken */
    int given;                /* lock: the primary gave way, for good */
    uint64_t given_epoch;     /* lock: ... with this one; 0: none of its own */
    uint64_t alone_s;         /* lock: promote: how long without a primary */
    uint64_t stale_s;         /* constant: see remus_backup_config */
    int failed;               /* lock: -errno that ended it */
    char reason[REMUS_REASON_MAX]; /* lock */

    struct remus_epoch **epochs; /* lock: closed, unapplied, oldest first */
    size_t epoch_count, epoch_cap; /* lock */
    struct remus_epoch *open; /* lock: the open epoch; NULL: no record yet */
    struct remus_epoch *free_epochs; /* lock */
    size_t free_count;        /* lock: of them */

    uint64_t session;         /* lock */
    int session_start;        /* lock: the next segment starts a session */
    int copying;              /* lock: between RESYNC BEGIN and END */
    uint64_t catching;        /* lock: epoch of the catch-up that is under
                                 way; 0: none */
    struct remus_lineage session_lineage; /* lock: the primary's */
    int split;                /* lock: the newest hello was of one that went
                                 on by itself, as these disks did */
    int ahead;                /* lock: it was of one that these disks, left by
                                 a primary, went on from */
    uint64_t next_number;     /* lock: of the next counted record */
    uint64_t expect_epoch;    /* lock: epoch of the next counted record;
                                 0: none may come before a session */
    uint64_t last_epoch;      /* lock: highest ever seen */
    uint64_t last_barrier;    /* lock: number of the last barrier */
    struct remus_mark mark;   /* lock: the last barrier or commit */
    uint64_t prepared;        /* lock: newest closed epoch */
    uint64_t acked;           /* lock: newest acked epoch */
    uint64_t committed;       /* lock */
    uint64_t applied;         /* lock: in the disks, perhaps not synced */
    struct remus_checkpoint committed_cp; /* lock: of `committed` */
    struct remus_checkpoint applied_cp; /* lock: of `applied` */
    uint64_t cost;            /* lock: credit spent in this session */
    struct remus_measured measured[REMUS_MEASURED_KEPT]; /* lock: ring */
    uint64_t measured_end;    /* lock: how many there ever were */
    uint64_t measured_told;   /* lock: of them, the primary knows */
    struct remus_status stats; /* lock: the counters in it */

    struct remus_backup_net *net; /* NULL until served */
};

#define REMUS_APPLY_BYTES (1u << 20)
#define REMUS_RESERVED_BARRIERS 64u /* the journal keeps room for so many */
#define REMUS_COMMIT_COST (REMUS_PAGE + 96u) /* a commit, padded, at most */

/* backup.c */
int remus_backup_open_io(const struct remus_backup_config *config,
                         remus_io *io, remus_backup **out);
void remus_backup_free(remus_backup *b); /* memory only */
/* Newest epoch that survives a power loss (lock held). */
uint64_t remus_backup_stable(const remus_backup *b);
/* Is there a checkpoint to promote to, and if so, was one committed since
 * the disks were copied?  (lock held) */
int remus_backup_consistent(const remus_backup *b);
int remus_backup_committed(const remus_backup *b);
/* Seconds since 1970. */
uint64_t remus_backup_now_s(const remus_backup *b);
/* 0, or the final failure with its text: also a primary that writes nothing
 * is told of it (lock not held). */
int remus_backup_check_well(remus_backup *b);
/* Keep the reason of a final failure (lock not held); returns err. */
int remus_backup_failed(remus_backup *b, int err);

/* backup_recover.c: list what the journal holds (before any thread). */
int remus_backup_recover(remus_backup *b);

/* backup_hello.c; all take `lock` themselves unless said otherwise */
int remus_backup_session_begin(remus_backup *b, const struct remus_hello *h,
                               uint64_t session,
                               struct remus_hello_reply *reply);
void remus_backup_session_end(remus_backup *b);
/* Store that a primary is heard of now, if what is stored is older than so
 * many seconds; takes apply_lock. */
void remus_backup_note_heard(remus_backup *b, uint64_t older_s);
/* Counted records follow, first `epoch`, with what the disks lack. */
int remus_backup_catch_up(remus_backup *b, uint64_t epoch, uint64_t bytes);
/* Forget what no barrier closed, so that it keeps no segment in use (lock
 * and the journal's sync_lock held). */
void remus_backup_drop_open(remus_backup *b);
/* Is nothing left but the reserve?  (lock held) */
int remus_backup_short_of_room(const remus_backup *b);
/* What the primary may spend in its session, up to now (lock held). */
uint64_t remus_backup_credit(const remus_backup *b);

/* backup_log.c; all take `lock` themselves unless said otherwise */
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
/* Let b->merge tell where the newest data of all closed epochs lies
 * (apply_lock held; session thread). */
int remus_backup_collect_closed(remus_backup *b);

/* backup_compare.c; takes apply_lock itself.
 * One bit for each block of a HASH record that differs here. */
int remus_backup_compare(remus_backup *b, const struct remus_record *r,
                         const unsigned char *hashes,
                         unsigned char bits[REMUS_HASH_BLOCKS / 8]);

int remus_backup_check_hashes(const remus_backup *b,
                              const struct remus_record *r);
/*
 * Read a piece of a disk that is not given free.  Blocks that the disk can't
 * give are zero then, and count as different: `bits` from block `first` on.
 * So they are sent again, and writing a block is what may mend it.
 */
int remus_backup_read_piece(remus_backup *b, const struct remus_disk *d,
                            unsigned char *buf, size_t len, uint64_t offset,
                            unsigned int first, unsigned char *bits);
/* Add the blocks whose hashes differ. */
void remus_backup_hash_piece(const unsigned char *buf, size_t len,
                             const unsigned char *hashes, unsigned int first,
                             unsigned char *bits);
/* backup_verify.c: the same in the middle of a stream (session thread), also
 * while an apply is under way. */
int remus_backup_verify(remus_backup *b, const struct remus_record *r,
                        const unsigned char *hashes,
                        unsigned char bits[REMUS_HASH_BLOCKS / 8]);

/* Fields of ACK, APPLIED, PING as of now. */
void remus_backup_progress(remus_backup *b, struct remus_record *r);
/* The same; 0 and nothing if the lock is taken: never waits. */
int remus_backup_try_progress(remus_backup *b, struct remus_record *r);
/* Take what epochs came to that was not told yet, oldest first. */
unsigned int remus_backup_untold(remus_backup *b, struct remus_measured *out,
                                 unsigned int cap);
/* Epoch objects with their memory (lock held). */
struct remus_epoch *remus_epoch_take(remus_backup *b, uint64_t number);
void remus_epoch_give(remus_backup *b, struct remus_epoch *e);
int remus_epoch_index(remus_backup *b, struct remus_epoch *e,
                      const struct remus_record *r, uint64_t pos);
/* Close the open epoch with its barrier and list it as prepared. */
int remus_epoch_close(remus_backup *b, const struct remus_record *r,
                      const unsigned char *tag);
/* Is a write, zero or barrier record well-formed?  And sane for this
 * resource? */
int remus_backup_check_shape(const struct remus_record *r);
int remus_backup_check_range(const remus_backup *b,
                             const struct remus_record *r);

/* backup_apply.c; all take apply_lock themselves */
int remus_backup_apply(remus_backup *b);
int remus_backup_checkpoint(remus_backup *b);
/* keep: the disks count, and every closed epoch is moved into them first. */
/* Take over the lineage of the session, durably: from here on its epochs
 * come.  FOREIGN disks are the backup's then. */
int remus_backup_adopt(remus_backup *b);
int remus_backup_copy_begin(remus_backup *b, int keep);
int remus_backup_copy_data(remus_backup *b, const struct remus_record *r,
                           const unsigned char *payload);
/* Read a disk as it is applied.  -EAGAIN: it was given free. */
int remus_backup_read(remus_backup *b, unsigned int volume, void *buf,
                      size_t len, uint64_t offset);
int remus_backup_copy_flush(remus_backup *b);
int remus_backup_copy_end(remus_backup *b, uint64_t first_epoch);
/* The rest: apply_lock held by the caller. */
/* Make the superblock durable, then believe it. */
int remus_backup_store_super(remus_backup *b, struct remus_super *s);
int remus_backup_sync_disks(remus_backup *b);
/* Move the newest data of all epochs up to `target` into the disks.  They
 * and their commit (or the promote) are durable already. */
int remus_backup_write_epochs(remus_backup *b, uint64_t target);
/* Forget every epoch: the disks are about to change (lock held, too). */
void remus_backup_drop_epochs(remus_backup *b, uint64_t next_seq);

/* backup_net.c */
/*
 * Ask the primary to give way, if one is connected, and wait for its answer.
 * flags: REMUS_ASK_*.
 * 1: it did, with the checkpoint *epoch (0: none of its own); 0: there is
 * none, or it fell silent; -EBUSY: no, and why.
 */
int remus_backup_net_ask(remus_backup *b, int flags, uint64_t *epoch);
/* Seconds since a primary was connected to this process: 0 now; UINT64_MAX
 * never. */
uint64_t remus_backup_net_alone_s(remus_backup *b);
/* Is a primary connected that has not ended its connection? */
int remus_backup_net_live(remus_backup *b);
/* End the connection and keep others out (net may be NULL), once what a
 * primary that has gone had sent is through.  0; -EAGAIN: one is connected
 * that was not asked, and `cut` is 0.  reopen: let them in again, if only to
 * be told that a promote began. */
int remus_backup_net_fence(remus_backup *b, int cut);
void remus_backup_net_reopen(remus_backup *b);
void remus_backup_net_stop(remus_backup *b);
void remus_backup_net_status(remus_backup *b, struct remus_status *s);

#endif
