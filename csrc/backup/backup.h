/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The backup of one resource, inside.  One job a file:
 *   state.c, roles.c, steps.c, may_commit.c  the ground: what the state is,
 *                   what is taken in it, what a promote does next, who may
 *                   commit
 *   recover.c       what the journal holds at the start
 *   resize.c        another size of the journal
 *   answer.c        to a primary of which nothing is taken
 *   room.c          how much of the journal may be spent
 *   hello.c         sessions: whose, and from where on
 *   marks.c         what needs no comparison after roles were exchanged
 *   foreign.c       what somebody else wrote to the disks
 *   log.c           receive: records, barriers, commits into the journal
 *   window.c        closed epochs, looked at together
 *   apply.c         apply, checkpoint, copy: out of the journal
 *   promote.c       failover
 *   compare.c       hashes of blocks, for a primary that lost its map
 *   verify.c        the same while a stream goes on
 *   net.c           the threads and the connection: see net.h
 *   former.c        the old address of a side that is a primary now
 *   backup.c        the roof: open, status, close
 * Tests drive it record by record: tests/sim/backup_test.c.
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
 *   shown_lock      the status as it was last told; leaf
 */
#ifndef REMUS_BACKUP_H
#define REMUS_BACKUP_H

#include <pthread.h>

#include "backup/may_commit.h"
#include "backup/state.h"
#include "journal/extents.h"
#include "base/entry.h"
#include "base/events.h"
#include "base/log.h"
#include "base/hash.h"
#include "base/io.h"
#include "journal/journal.h"
#include "format/record.h"
#include "format/dirty_file.h"
#include "format/super.h"
#include "remus.h"

/* One closed or open epoch that is not applied yet.  Guard: lock. */
struct remus_epoch {
    uint64_t number;
    struct remus_extents extents; /* open: lock; closed: apply_lock and
                                     view_lock to change, one to read (it
                                     is also freed with `lock` held) */
    uint64_t first_seq;           /* journal segment of its first record */
    uint64_t records;             /* counted records before the barrier */
    uint64_t barrier_number;      /* number of its barrier; 0: open */
    uint32_t run;                 /* running CRC of the header CRCs */
    int acked;                    /* or recovered: may be a default */
    struct remus_moment closed;   /* how current was what is here when its
                                     barrier came; unknown: recovered */
    struct remus_checkpoint cp;
    struct remus_ioctl_id by; /* the ioctl that took it */
    struct remus_epoch *next_free;
};

struct remus_disk {
    char *name;    /* constant */
    char *path;    /* constant */
    uint64_t size; /* constant, bytes */
    int file;      /* apply_lock, also view_lock to change; -1 once
                      promoted */
};

/* What applied epochs came to, until the primary was told. */
#define REMUS_MEASURED_KEPT 1024u

struct remus_backup_net; /* net.c */

struct remus_backup {
    struct remus_entry entry;      /* constant; the first: see entry.h */
    remus_io *io;                  /* constant */
    char *resource;                /* constant */
    char *state_dir;               /* constant */
    char *super_path;              /* constant */
    char *run_dir;                 /* constant; NULL: the default */
    struct remus_dirty_left left;  /* apply_lock, also lock to change: what the
                                      primary that was here left */
    int ack, commit_by;            /* constant */
    char *psk_file, *psk_identity; /* constant; NULL: none given */
    unsigned int disk_count;       /* constant */
    struct remus_disk *disks;      /* constant array */
    uint64_t disk_bytes;           /* constant: of all; 0: not looked at */
    int lock_file, super_file;     /* constant */
    int journal_lock;              /* constant; -1: none */
    unsigned char *buffer;         /* apply_lock: REMUS_APPLY_BYTES */
    int opened;                    /* lock: open succeeded */
    int read_only;                 /* constant: nothing may be changed */
    int discard_local;             /* lock: what this side has beyond a primary
                                  may be lost, whatever it is; once */
    int discards; /* lock: ... which the newest hello relies on */

    pthread_mutex_t apply_lock;
    pthread_mutex_t view_lock;
    pthread_mutex_t lock;
    pthread_mutex_t shown_lock;   /* leaf */
    struct remus_status shown;    /* shown_lock: as it was last told */
    struct remus_journal journal; /* its owner lock is `lock` */
    uint64_t writing; /* lock: the apply under way goes up to it; 0: none */
    uint64_t writes;  /* lock: how many applies have begun */
    uint64_t rest_writes, rest_ns; /* lock: so many, seen first at that time */
    unsigned int doubt; /* lock: of this disk, plus 1, it is not known what it
                           holds; 0: of none */
    struct remus_extents merge; /* apply_lock: what is looked at */

    struct remus_super super;     /* written with apply_lock and lock held */
    struct remus_claim authority; /* lock */
    uint64_t given_epoch;         /* lock: the primary stepped down with this
                                     one; 0: none of its own */
    struct remus_moment current;  /* lock: when the newest that is here was
                                    the newest there is */
    unsigned char boot[REMUS_BOOT_ID]; /* constant; zero: not known */
    uint64_t pin;      /* lock: nothing newer is committed; 0: none */
    int switching;     /* lock: the primary is asked, or was told, to switch
                          roles, so often: nothing is pinned */
    uint64_t deciding; /* lock: a commit that is being stored, or all ones:
                          that what is here is given up; 0: neither */
    uint64_t stale_s;  /* constant: see remus_backup_config */
    int failed;        /* lock: -errno that ended it */
    char reason[REMUS_REASON_MAX]; /* lock */

    struct remus_epoch **epochs;   /* lock: closed, unapplied, oldest first */
    size_t epoch_count, epoch_cap; /* lock */
    struct remus_epoch *open; /* lock: the open epoch; NULL: no record yet */
    struct remus_epoch *free_epochs; /* lock */
    size_t free_count;               /* lock: of them */

    struct remus_backup_session now; /* lock: the connection */
    enum remus_met met;              /* lock: the newest hello */
    struct remus_progress at;        /* lock: how far the log has come */
    uint64_t last_epoch;             /* lock: highest ever seen */
    uint64_t prepared;               /* lock: newest closed epoch */
    uint64_t acked;                  /* lock: newest acked epoch */
    uint64_t committed;              /* lock */
    uint64_t told;    /* lock: newest epoch of which an ioctl 30 was told that
                         it is safe, or that needed none */
    uint64_t applied; /* lock, also apply_lock to change: in the disks,
                          perhaps not synced */
    struct remus_checkpoint committed_cp; /* lock: of `committed` */
    struct remus_checkpoint applied_cp;   /* lock: of `applied` */
    struct remus_ioctl_id applied_by;     /* lock: ... and the ioctl */
    struct remus_measured measured[REMUS_MEASURED_KEPT]; /* lock: ring */
    uint64_t measured_end;     /* lock: how many there ever were */
    uint64_t measured_told;    /* lock: of them, the primary knows */
    struct remus_status stats; /* lock: the counters in it */

    struct remus_events events; /* see events.h */
    struct remus_log log;       /* lock: what was said */
    int log_due;                /* lock: `reason` is new */
    _Atomic int connected;      /* net's: its hello was accepted */

    /* Set once, by serve; NULL: does not serve.  Others may call meanwhile. */
    _Atomic(struct remus_backup_net *) net;
};

#define REMUS_APPLY_BYTES (1u << 20)
#define REMUS_RESERVED_BARRIERS 64u /* the journal keeps room for so many */
#define REMUS_COMMIT_COST (REMUS_PAGE + 96u) /* a commit, padded, at most */

/* backup.c */
int remus_backup_open_io(const struct remus_backup_config *config,
                         remus_io *io, remus_backup **out);
void remus_backup_free(remus_backup *b); /* memory only */
/* former.c */
int remus_former_open_io(const struct remus_former_config *config,
                         remus_io *io, remus_former **out);
/* recover.c: list what the journal holds (before any thread). */
int remus_backup_recover(remus_backup *b);

/* resize.c, before any thread */
struct remus_limits {
    uint64_t total, segment; /* bytes of the journal, of a segment */
};
struct remus_limits remus_backup_limits(const struct remus_super *s);
/* The log was read: give the journal this size if it has another one, and
 * nothing in it is needed. */
int remus_backup_resize(remus_backup *b, struct remus_limits to);

/* hello.c; all take `lock` themselves unless said otherwise */
int remus_backup_session_begin(remus_backup *b, const struct remus_hello *h,
                               uint64_t session,
                               struct remus_hello_reply *reply);
void remus_backup_session_end(remus_backup *b);
/* Store how current the checkpoint is, if what is stored is older by so many
 * seconds; takes apply_lock. */
void remus_backup_store_current(remus_backup *b, uint64_t older_s);
/* Counted records follow, first `epoch`, with what the disks lack. */
int remus_backup_catch_up(remus_backup *b, uint64_t epoch, uint64_t bytes);
/* Forget what no barrier closed: what comes next is a start (lock and the
 * journal's sync_lock held; all up to the mark is synced). */
void remus_backup_start(remus_backup *b);

/* room.c */
/* Is nothing left but the reserve?  (lock held) */
int remus_backup_short_of_room(const remus_backup *b);
/* What the primary may spend in its session, up to now (lock held). */
uint64_t remus_backup_credit(const remus_backup *b);
/* Can no session begin?  (lock held) */
int remus_backup_is_full(const remus_backup *b);
/* Is anything kept from being committed by a pin?  (lock held) */
int remus_backup_pin_holds(const remus_backup *b);
/* What is left of the reserve when a session begins (lock held). */
uint64_t remus_backup_reserve_left(const remus_backup *b);
/* What one epoch can have once all that is committed is applied (lock
 * held). */
uint64_t remus_backup_capacity(const remus_backup *b);

/* marks.c */
/* FOREIGN disks: what their primary left; before any thread.  0, -ENOMEM. */
int remus_backup_marks_open(remus_backup *b);
/* If that tells all that these disks lack of what this primary went on from:
 * say so (lock held). */
void remus_backup_marks_reply(const remus_backup *b,
                              const struct remus_hello *h,
                              struct remus_hello_reply *reply);
/* One bit for each block of a HASH record without hashes that is marked. */
int remus_backup_marks_answer(remus_backup *b, const struct remus_record *r,
                              unsigned char bits[REMUS_HASH_BLOCKS / 8]);
/* The disks are about to change (apply_lock held). */
void remus_backup_marks_remove(remus_backup *b);
/* They are exactly the checkpoint that was promoted (apply_lock held). */
void remus_backup_marks_leave(remus_backup *b);

/* foreign.c */
/* Before any thread: do the disks look as they were left? */
void remus_backup_foreign_look(remus_backup *b);
/* The disks are about to be written to (apply_lock held). */
int remus_backup_foreign_writes(remus_backup *b);
/* Perhaps they are at rest, or this is the end: then note how they look. */
void remus_backup_foreign_rest(remus_backup *b, int ends);
/* Of disks that are about to be something else. */
void remus_backup_no_stamps(struct remus_super *s);

/* log.c; all take `lock` themselves unless said otherwise */
/* A counted record.  `header` as it came; payload proven by the caller. */
int remus_backup_record(remus_backup *b,
                        const unsigned char header[REMUS_REC_HEADER],
                        const struct remus_record *r,
                        const unsigned char *payload);
/* After a barrier: make it durable if the ack is, and note it acked. */
int remus_backup_ack(remus_backup *b, uint64_t epoch);
/*
 * A commit by whose word it is.  Not synced, unless it comes before the first
 * counted record: then it is in the superblock.  May take apply_lock.
 */
int remus_backup_commit_record(remus_backup *b, uint64_t epoch,
                               enum remus_word word);
/* The primary's word that an ioctl 30 was told that `epoch` is safe, or that
 * it needed none: it may be the default of a promote. */
int remus_backup_told_record(remus_backup *b, uint64_t epoch);
/* `epoch` is committed (lock held; its epoch is listed). */
void remus_backup_note_commit(remus_backup *b, uint64_t epoch);

/* window.c; apply_lock held */
/* Sweep the epochs up to `target` and note what they came to. */
int remus_backup_measure(remus_backup *b, uint64_t target);
/* Sweep all closed epochs; *newest is the newest of them. */
int remus_backup_sweep_closed(remus_backup *b, uint64_t *newest);
/* The end of the window of a volume that begins at `start`. */
uint64_t remus_backup_window(remus_backup *b, uint64_t target,
                             unsigned int volume, uint64_t start);
/* Let b->merge tell where the newest data of a window lies, of the epochs up
 * to `target`, which were swept. */
int remus_backup_look(remus_backup *b, uint64_t target, unsigned int volume,
                      uint64_t start, uint64_t end);

/* compare.c; takes apply_lock itself.
 * One bit for each block of a HASH record that differs here. */
int remus_backup_compare(remus_backup *b, const struct remus_record *r,
                         const unsigned char *hashes,
                         unsigned char bits[REMUS_HASH_BLOCKS / 8]);

int remus_backup_check_hashes(const remus_backup *b,
                              const struct remus_record *r);
/*
 * A comparison begins: let it see what the disk holds.  After a sync that
 * failed, of whatever process, the page cache may hold what no sync will ever
 * make durable.  (apply_lock held)
 */
int remus_backup_see_disk(remus_backup *b, const struct remus_disk *d);
/*
 * Read a piece of a disk that is not given free.  Blocks that the disk can't
 * give are zero then, and count as different: `bits` from block `first` on.
 * So they are sent again, and writing a block is what may mend it.  Under
 * apply_lock or view_lock.
 */
int remus_backup_read_piece(remus_backup *b, const struct remus_disk *d,
                            unsigned char *buf, size_t len, uint64_t offset,
                            unsigned int first, unsigned char *bits);
/* Add the blocks whose hashes differ. */
void remus_backup_hash_piece(const unsigned char *buf, size_t len,
                             const unsigned char *hashes, unsigned int first,
                             unsigned char *bits);
/* verify.c: the same in the middle of a stream (session thread), also
 * while an apply is under way. */
int remus_backup_verify(remus_backup *b, const struct remus_record *r,
                        const unsigned char *hashes,
                        unsigned char bits[REMUS_HASH_BLOCKS / 8]);

/* Fields of ACK, APPLIED, PING as of now. */
struct remus_news {
    struct remus_record r;
    uint64_t committed; /* what was taken as such */
};

void remus_backup_progress(remus_backup *b, struct remus_news *out);
/* The same; 0 and nothing if the lock is taken: never waits. */
int remus_backup_try_progress(remus_backup *b, struct remus_news *out);
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
                      const unsigned char *payload);
/* Is a write, zero or barrier record well-formed?  And sane for this
 * resource? */
int remus_backup_check_shape(const struct remus_record *r);
int remus_backup_check_range(const remus_backup *b,
                             const struct remus_record *r);

/* apply.c; all take apply_lock themselves */
int remus_backup_apply(remus_backup *b);
int remus_backup_checkpoint(remus_backup *b);
/* Take over the lineage of the session, durably, and begin a log: from here
 * on its epochs come, `epoch` first.  FOREIGN disks are the backup's then. */
int remus_backup_accept(remus_backup *b, uint64_t epoch);
/* keep: the disks count, and every closed epoch is moved into them first. */
int remus_backup_copy_begin(remus_backup *b, int keep);
int remus_backup_copy_data(remus_backup *b, const struct remus_record *r,
                           const unsigned char *payload);
/* Read a disk in its applied state; waits for that disk only, and for no
 * apply. */
int remus_backup_read(remus_backup *b, unsigned int volume, void *buf,
                      size_t len, uint64_t offset);
int remus_backup_copy_flush(remus_backup *b);
int remus_backup_copy_end(remus_backup *b, uint64_t first_epoch);
/* The rest: apply_lock held by the caller. */
/* remus_backup_sweep_closed(), if the disks are still the backup's. */
int remus_backup_look_at_closed(remus_backup *b, uint64_t *newest);
/* Make the superblock durable, then believe it. */
int remus_backup_store_super(remus_backup *b, enum remus_slot_store what,
                             struct remus_super *s);
/* The same of one whose role says that a copy begins; from then on the
 * connection is in that phase. */
int remus_backup_store_copy(remus_backup *b, struct remus_super *s);
/* Begin a log, if there is none: its first segment's header, synced, then the
 * superblock that names it. */
int remus_backup_open_log(remus_backup *b);
/* The same, but the caller stores *s. */
int remus_backup_first_segment(remus_backup *b, struct remus_super *s);
int remus_backup_sync_disks(remus_backup *b);
/* Move the newest data of all epochs up to `target` into the disks.  They
 * and their commit (or the promote) are durable already. */
int remus_backup_write_epochs(remus_backup *b, uint64_t target);
/* Forget every epoch and the log: the disks are about to change, and the
 * superblock says so (lock held, too). */
void remus_backup_drop_epochs(remus_backup *b);

/* net.c */
/*
 * Ask the primary to step down, if one is connected, and wait for its answer.
 * flags: REMUS_ASK_*.
 * 1: it did, with the checkpoint *epoch (0: none of its own); 0: there is
 * none, or it fell silent; -EBUSY: no, and why.
 */
int remus_backup_net_ask(remus_backup *b, int flags, uint64_t *epoch);
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
