/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* remus/replica.h - the two sides of a resource: primary and backup.
   The conventions stand in remus.h. */
#ifndef REMUS_REPLICA_H
#define REMUS_REPLICA_H

#include <sys/uio.h>

#include "remus/common.h"
#include "remus/statistics.h"

#ifdef __cplusplus
extern "C" {
#endif

/* cffi:begin */
/* ---- Primary -------------------------------------------------------- */

typedef struct remus_primary remus_primary;

struct remus_primary_config {
    uint32_t struct_size;  /* sizeof of this struct, see remus.h */
    const char *resource;  /* name, 1..REMUS_NAME_MAX */
    const char *state_dir; /* existing directory, this side's own */
    const struct remus_volume *volumes;
    unsigned int volume_count; /* 1..REMUS_VOLUMES_MAX */
    const char *address;       /* "unix:/path" or "tcp:HOST:PORT" */
    int tls_off;               /* 1: TCP without TLS is allowed: who can
                                   connect can replace the disks */
    enum remus_ack ack;        /* as on the backup */
    enum remus_commit_by commit_by;
    uint32_t queue_bytes;    /* send queue at most; 0: 64 MiB */
    uint32_t max_pause_ms;   /* queue at most this much time; 0: 200 */
    uint32_t loss_ms;        /* silence that means loss, at least 1000;
                                   0: 3000 */
    uint32_t stall_ms;       /* a write that waited so long ends
                                   replication; 0: 10000 */
    uint32_t connect_ms;     /* pause between connects, doubled up to 8
                                   times it; 0: 250 */
    int allow_inconsistent;  /* 1: a catch-up beyond the backup's journal
                                   may go straight to its disks, which are
                                   Inconsistent until its epoch is acked */
    uint32_t idle_ms;        /* without a session, a checkpoint by itself
                                   so often; 0: 1000 */
    uint32_t grace_ms;       /* ... but not so soon after a session that
                                   ended without teardown; 0: 60000 */
    uint64_t resync_rate;    /* copies and catch-ups send at most so many
                                   bytes a second; 0: no limit */
    const char *epochs_file; /* where other processes find the epoch
                                   statistics (remus_epochs_create); NULL:
                                   they are kept for this process only */
    enum remus_on_loss on_loss;
    int ask_alone;            /* 1: while no backup takes the writes, they
                                   wait for remus_primary_go_alone() */
    const char *psk_file;     /* TLS 1.3 with a key of this file, which
                                   psktool wrote (0600, ours or root's);
                                   NULL: no TLS */
    const char *psk_identity; /* whose key; NULL: the resource's name */
    const char *run_dir;      /* directory in memory (tmpfs) for the dirty
                                  map, this user's own; made if its parent is
                                  there; resources can share it.  NULL:
                                  /run/remus-native, or where /run is on a
                                  disk /dev/shm/remus-native; of users other
                                  than root /run/user/UID/remus-native or
                                  /dev/shm/remus-native-UID */
    uint64_t continues;       /* 1: see remus_export_open_kept() */
};

/*
 * Open the local disks of a resource, exclusively, and start its engine,
 * which connects to the backup, again and again, and brings it up to date:
 * all of the disks the first time, later only what changed.  Which blocks
 * that are is kept in memory, in a file of `run_dir`, and from a clean end to
 * the next start in state_dir/dirty.map.  Reads and writes work at once.
 * Blocks for local I/O only.
 * Errors: -EBUSY another process has the state directory or a disk;
 * -EINVAL bad configuration, or a run_dir that is not in memory; -ENOENT no
 * such disk, key file or identity; -ENOMEM the dirty map can't be locked in
 * memory; -EPERM TCP with neither TLS nor tls_off, a key file that others can
 * use, or a state directory or run_dir that they can write to; others of
 * open(2).
 */
REMUS_API int remus_primary_open(const struct remus_primary_config *config,
                                 remus_primary **out);

/*
 * Wait until the resource is Protected, at most `timeout_ms`.  Errors:
 * -ETIMEDOUT (the text says what it is instead, and why).
 */
REMUS_API int remus_primary_wait_protected(remus_primary *p,
                                           int64_t timeout_ms);

/*
 * Disk I/O of the guest, any offset and length inside the volume, from any
 * number of threads.  They block for the local disk, for an overlapping
 * write in flight, and, writes only, while the send queue or the backup's
 * journal has no room.  A write is in the send queue when it returns: it
 * belongs to the epoch that was open then.  discard and write_zeroes are
 * both executed as zeroes on both sides.
 * Errors: -EINVAL no such volume; -ENOSPC beyond the end (reads: -EINVAL);
 * -EIO and others of the local disk (the range is then read again and sent
 * again, so both sides agree).  The loss of the backup is no error here.
 */
REMUS_API int remus_primary_pread(remus_primary *p, unsigned int volume,
                                  void *buf, size_t len, uint64_t offset);
REMUS_API int remus_primary_pwrite(remus_primary *p, unsigned int volume,
                                   const void *buf, size_t len,
                                   uint64_t offset);
REMUS_API int remus_primary_discard(remus_primary *p, unsigned int volume,
                                    uint64_t offset, uint64_t len);
REMUS_API int remus_primary_write_zeroes(remus_primary *p, unsigned int volume,
                                         uint64_t offset, uint64_t len);

#define REMUS_VECTOR_MAX 1024 /* pieces of one vector */

/*
 * The same with the bytes in `count` pieces of memory (struct iovec of
 * <sys/uio.h>), at most REMUS_VECTOR_MAX; a piece may be empty.  A vector is
 * one write, as if it were one buffer: no write that overlaps it comes
 * between its pieces, on neither side.
 *
 * A write (of either kind) of at most 1 MiB, or a quarter of the backup's
 * segment_bytes if that is less, is in one epoch as a whole, whatever
 * postsuspend does beside it.  A barrier may divide a longer one that another
 * thread is in.
 * Errors: those above; -EINVAL too many pieces, a piece with a length but no
 * memory, lengths whose sum is no length.
 */
REMUS_API int remus_primary_preadv(remus_primary *p, unsigned int volume,
                                   const struct iovec *vector,
                                   unsigned int count, uint64_t offset);
REMUS_API int remus_primary_pwritev(remus_primary *p, unsigned int volume,
                                    const struct iovec *vector,
                                    unsigned int count, uint64_t offset);
/* Sync the local disk only (what the guest's fsync reaches). */
REMUS_API int remus_primary_flush(remus_primary *p, unsigned int volume);
/* The size of a volume; 0 if there is no such volume. */
REMUS_API uint64_t remus_primary_size(remus_primary *p, unsigned int volume);

/*
 * Close the open epoch on every volume with one barrier and open the next.
 * `tag`/`tag_len`: NULL/0, or up to REMUS_TAG_MAX bytes that promote accepts
 * as a name.  Never blocks on the network or a disk.  Mirrors libxl's
 * postsuspend; mends its "an error counts as sent".
 * Result: 0 and *epoch; 1 and *epoch if the epoch was empty (its barrier is
 * sent all the same).
 * Errors: -EPROTO not Protected (the text says the state and why);
 * -EAGAIN too many barriers without an ack; -EINVAL tag too long.
 */
REMUS_API int remus_primary_postsuspend(remus_primary *p, const void *tag,
                                        size_t tag_len, uint64_t *epoch);

/*
 * Wait until `epoch` is safe on the backup.  The caller becomes the receiver
 * of acks while it waits.  Retrying after -ETIMEDOUT is allowed.
 * Errors: -EPROTO the backup is lost and had not acked it; -ETIMEDOUT;
 * -EINVAL there was no such barrier.
 */
REMUS_API int remus_primary_preresume(remus_primary *p, uint64_t epoch,
                                      int64_t timeout_ms);

/*
 * The same for a poll loop, without a thread: begin the wait, poll the
 * descriptor for POLLIN, finish.
 *
 * begin: never blocks.  One wait at a time for a primary, beside any number
 * of remus_primary_preresume().  Errors: -EINPROGRESS one was begun and is not
 * finished; -ENOMEM.  All others are the result, which comes from finish.
 * fd: readable when there is a result; the same one as long as the primary,
 * which owns it: only poll it.
 * finish: never blocks.  The result, as remus_primary_preresume(), up to
 * 0.1 s after the timeout; -ECANCELED.  Then the next one can be begun.
 * Errors: -EAGAIN there is none yet; -EBADFD no wait was begun.
 * cancel: never blocks.  0: the result is -ECANCELED; 1: there is no wait, or
 * it has its result.  Any thread.
 */
REMUS_API int remus_primary_preresume_begin(remus_primary *p, uint64_t epoch,
                                            int64_t timeout_ms);
REMUS_API int remus_primary_preresume_fd(remus_primary *p);
REMUS_API int remus_primary_preresume_finish(remus_primary *p);
REMUS_API int remus_primary_preresume_cancel(remus_primary *p);

/*
 * Say that checkpoint `epoch`, memory too, is complete: the backup applies
 * it and every prepared one before it.  Never blocks.  Idempotent.  With
 * REMUS_COMMIT_BY_BACKUP it does nothing: what is said on the backup counts.
 * Errors: -EINVAL not acked yet, or no such barrier; -EPROTO backup lost (the
 * backup is told when it is back, unless that epoch was lost with it), or it
 * is being copied to, and what it held before is void.
 */
REMUS_API int remus_primary_commit(remus_primary *p, uint64_t epoch);

/*
 * A session: the time in which a toolstack takes the checkpoints.  Outside
 * of one the engine takes them by itself (REMUS_CP_DISK_ONLY), every
 * `idle_ms` in which something was written; in one it never does.  The first
 * postsuspend begins one, too.  After a loss, a catch-up that ends in a
 * session is completed by that session's next postsuspend, which succeeds as
 * soon as all that changed is queued.  Never block.  Idempotent.
 *
 * end: no memory waits for its last checkpoint, so the engine goes on at once;
 * also after a session through nodes, whose files were closed before (without
 * it the engine waits `grace_ms`).  0, or -EBUSY: such a file is open still,
 * and that session goes on.
 */
REMUS_API int remus_primary_session_begin(remus_primary *p);
REMUS_API int remus_primary_session_end(remus_primary *p);

/*
 * A guest's disks are about to be written to through this handle; and they
 * are not any more.  As long as somebody writes, or a session is open, a
 * backup that asks the primary to step down is refused: else it may take the
 * disks away under a guest.  (A file of a node that is open for writing counts
 * by itself.)  Never block.  opens: 0, or -EROFS: it is fenced.
 */
REMUS_API int remus_primary_writer_opens(remus_primary *p);
REMUS_API void remus_primary_writer_closes(remus_primary *p);

/*
 * With REMUS_ON_LOSS_HOLD: end the waits for acks that go on in this outage,
 * with -EPROTO, and let no later one begin: an operator's word that the guest
 * shall go on unprotected.  It counts until the next connection.  Includes
 * remus_primary_go_alone().  Never blocks; returns 0.
 *
 * Without it such a wait ends when the backup is back: with 0 if it has the
 * epoch, with -EPROTO if the barrier was lost on the way (a new postsuspend
 * will do: what was written travels in the catch-up); or by its own deadline
 * or cancel.  A postsuspend (ioctl 20) never waits: it fails while the backup
 * is away.
 */
REMUS_API int remus_primary_resume(remus_primary *p);

/*
 * With `ask_alone` of the configuration: let the guest's writes pass though
 * no backup takes them, until the next connection.  Call it when the status
 * says `asks_alone` and it is sure that the backup is not and will not be
 * promoted (a fence command has succeeded, an operator says so).  The writes
 * go on as soon as a new generation is durable.  While a backup is connected
 * it counts for nothing: it came too late.  Never blocks; returns 0.
 */
REMUS_API int remus_primary_go_alone(remus_primary *p);

/*
 * The opposite: writes that wait, and later ones, fail with -EIO until the
 * next connection or remus_primary_go_alone().  Never blocks; returns 0.
 */
REMUS_API int remus_primary_refuse_alone(remus_primary *p);

#define REMUS_VERIFY_KEPT 64 /* blocks that differ and are named */

/* How far a comparison of both sides is, or what the last one found. */
struct remus_verify {
    uint32_t struct_size; /* sizeof of this struct, see remus.h */
    int running;
    int complete;         /* 1: it went through to the end */
    uint64_t bytes_total; /* of all volumes */
    uint64_t bytes_done;
    uint64_t blocks_different; /* of 16 KiB */
    uint64_t bytes_repaired;
    struct {
        uint32_t volume;
        uint64_t offset; /* bytes */
    } different[64];     /* the first of them */
};

/*
 * Compare both sides, block hash by block hash, while the guest runs and
 * checkpoints go on.  Each piece of 256 KiB is compared at one point of the
 * stream, so nothing that is on its way counts as a difference.  `repair` 1:
 * blocks that differ are sent again, as part of the open epoch: the next
 * checkpoint has them.  `rate`: at most so many bytes a second; 0: no limit.
 * A question holds back acks, and writes to its piece, for as long as reading
 * and hashing it takes on both sides (a millisecond from the page cache).
 * Blocks.  *out (may be NULL): what was found.
 * Errors: -EPROTO not Protected, or lost meanwhile; -EBUSY another one is
 * under way; -ECANCELED; -EIO.
 */
REMUS_API int remus_primary_verify(remus_primary *p, int repair, uint64_t rate,
                                   struct remus_verify *out);
/* Any thread.  Never blocks. */
REMUS_API void remus_primary_verify_status(remus_primary *p,
                                           struct remus_verify *out);
/* End the one under way, soon.  Never blocks. */
REMUS_API void remus_primary_verify_cancel(remus_primary *p);

/* The state and counters now.  Never blocks on I/O. */
REMUS_API int remus_primary_status(remus_primary *p,
                                   struct remus_status *status);

/*
 * To hear of changes without asking again and again.  event_fd: becomes
 * readable when the state or the link has changed since the last call of
 * events, also if it has changed back; the same descriptor as long as the
 * handle, which owns it: only poll it (level-triggered is enough).  events:
 * what has changed (enum remus_changed, or 0), which is told once.  Ask for
 * the status after it, not before: then no change is missed, for a later one
 * makes the descriptor readable again.  Two who share a handle must share
 * what events says, too.  Any thread; never block; costs nothing while nothing
 * changes.
 */
REMUS_API int remus_primary_event_fd(remus_primary *p);
REMUS_API int remus_primary_events(remus_primary *p);

/*
 * For a host program's log: each change of state or link, and each new reason,
 * why a connect failed, say; what would be said twice in a row is said once.
 * It is read, not called back: nothing that the program does with it can hold
 * up a disk, and a program that reads late loses the oldest ones.
 *
 * The entries from number `after` on, oldest first: 0 at first, then what
 * *next was.  Returns how many were written, at most `cap`.  *lost: how many
 * since `after` were pushed out by newer ones.  Those of a change are there
 * once the event descriptor tells of it.  Any thread, any number of readers;
 * never blocks on I/O.
 */
REMUS_API int remus_primary_log(remus_primary *p, uint64_t after,
                                struct remus_log_entry *out, unsigned int cap,
                                uint64_t *next, uint64_t *lost);

/*
 * End replication cleanly (what is queued is sent, at most `loss_ms`), sync
 * and close the disks, stop the threads, free the handle.  NULL is allowed.
 */
REMUS_API void remus_primary_close(remus_primary *p);

/* ---- Backup ---------------------------------------------------------- */

typedef struct remus_backup remus_backup;

struct remus_backup_config {
    uint32_t struct_size; /* sizeof of this struct, see remus.h */
    const char *resource;
    const char *state_dir;   /* existing directory, this side's own */
    const char *journal_dir; /* NULL: state_dir/journal */
    const struct remus_volume *volumes;
    unsigned int volume_count;
    enum remus_ack ack;
    enum remus_commit_by commit_by;
    uint64_t journal_bytes;   /* all segments; 0: 512 MiB */
    uint64_t segment_bytes;   /* one segment; 0: 16 MiB; >= 64 KiB */
    int discard_local;        /* 1: what this side wrote by itself, as a
                                   primary or promoted, is to be lost: it
                                   follows a primary of any branch again */
    int read_only;            /* 1: only status and checkpoints are wanted:
                                   nothing is changed, no disk opened */
    uint32_t stale_ms;        /* a checkpoint that was the newest state to
                                   be had longer ago must be named by a promote;
                                   0: 60000; UINT32_MAX: never */
    const char *psk_file;     /* as in struct remus_primary_config; read by
                                   remus_backup_serve() */
    const char *psk_identity; /* the only one that is let in; NULL: the
                                   resource's name */
    const char *run_dir;      /* as in struct remus_primary_config, of the
                                 primary that this side was */
};

/*
 * Open a backup: lock its state directory and disks, create or recover its
 * journal.  Blocks for disk I/O.  Nothing listens and nothing is applied
 * until remus_backup_serve().
 * Errors: -EBUSY another process has the directory; -EINVAL configuration;
 * -EIO, -EBADMSG unreadable state; -ENOSPC no room for the journal, of which
 * nothing is left then; -EPERM a state or journal directory of another user,
 * or one that others can write to.
 */
REMUS_API int remus_backup_open(const struct remus_backup_config *config,
                                remus_backup **out);

/*
 * Listen on `address` ("unix:/path" 0600, or "tcp:HOST:PORT") and serve one
 * primary at a time, applying in the background, in threads of the handle.
 * With the psk_file of the configuration every connection must prove the
 * key with TLS.  Connections wait for that, and for their first bytes, in a
 * thread of their own: at most 64 of them, 32 of one source, 3 s each.
 * Errors: -EADDRINUSE; -EPERM TCP with neither TLS nor `tls_off`; -EINVAL
 * both of them; those of remus_psk_check(); -EALREADY.
 */
REMUS_API int remus_backup_serve(remus_backup *b, const char *address,
                                 int tls_off, uint32_t loss_ms);

/*
 * Commit `epoch` and every prepared one before it, durably.  Blocks for one
 * journal sync.  Idempotent.  Errors: -EINVAL not prepared here (the text
 * names what is); -EBUSY an older one is pinned (remus_backup_pin); -EROFS a
 * promote began; -EIO the journal failed.
 */
REMUS_API int remus_backup_commit(remus_backup *b, uint64_t epoch);

/*
 * Who holds the complete memory of checkpoint `epoch` on this host pins it:
 * nothing newer is committed, by anybody, until another one is pinned, or 0,
 * which lets go.  A journal that fills meanwhile makes its primary's guest go
 * on unprotected, and both say why.  No copy goes straight to the disks then
 * (allow_inconsistent).  Ends with the handle, or a promote.  Errors: -EINVAL
 * it is not here, or a newer one is committed; -EBUSY a switch; -EROFS.
 */
REMUS_API int remus_backup_pin(remus_backup *b, uint64_t epoch);

/* How a promote names its checkpoint. */
enum remus_promote_by {
    REMUS_PROMOTE_DEFAULT, /* last committed; if the resource is driven
                              through ioctls, the newest that a 30 was told
                              is safe, or that was empty */
    REMUS_PROMOTE_EPOCH,
    REMUS_PROMOTE_TAG
};

/* Flags of remus_backup_ask(). */
enum remus_ask {
    REMUS_ASK_KEEP = 1,  /* a checkpoint that is there will be named: the
                            primary shall not take a last one */
    REMUS_ASK_SWITCH = 2 /* the primary shall become the backup: its status
                            says `switches` then */
};

/*
 * Ask the primary to step down, as remus_backup_promote() does; for a caller
 * that has something to do between the answer and the promote (fence the
 * primary, if there is no answer).  `flags`: enum remus_ask, or-ed.  Blocks
 * until the primary answers or is lost: `loss_ms` after its link went down or,
 * if it never came, after remus_backup_serve(); at once if it ended on
 * purpose.
 * Returns 1: it stepped down, fenced for good (or a promote was begun before);
 * 0: no primary is connected, or it fell silent.  Errors: -EBUSY it refused,
 * or a checkpoint is pinned here and it is a switch; -EINVAL unknown flags.
 */
REMUS_API int remus_backup_ask(remus_backup *b, int flags);

/*
 * Fail over: make the volumes exactly what the primary's were at one
 * checkpoint and give them free.  Blocks for disk I/O.  Durable at every
 * step: one that is interrupted can be finished, at the same checkpoint
 * only.  A promoted backup refuses every primary, and a new generation has
 * begun: the old one can never write here again.
 * A connected primary is asked: it steps down, after a last checkpoint if none
 * is named, if nobody writes there (a file of a volume's node that is open
 * for writing, remus_primary_writer_opens) and no toolstack's session is open;
 * else this is refused.  `force` 1 does not ask, and cuts
 * the primary off: what it writes from then on is lost, or split brain.
 * Result: 0 and *epoch (the checkpoint it is at now).
 * Errors: -EINVAL no such checkpoint, tag not unique, Inconsistent (the text
 * names what can be had); -EBUSY the primary did not step down; -ESTALE no
 * checkpoint is named, and the one that would be taken was the newest state
 * that could be had longer than `stale_ms` ago; -EIO.
 * Disks that are as a primary left them, because this side was one, are no
 * checkpoint; until the first commit of another one's they can be had by the
 * number in the reason of the status, which is lost to the other side then.
 */
REMUS_API int remus_backup_promote(remus_backup *b, enum remus_promote_by by,
                                   uint64_t epoch, const void *tag,
                                   size_t tag_len, int force,
                                   uint64_t *promoted);

/*
 * To which checkpoint would that promote go?  For who has something to do
 * before it that can't be undone (stop a primary, fence it).  Never blocks on
 * I/O.  Result: 0 and *epoch.  Errors: as remus_backup_promote(), but for
 * -EBUSY and -EIO.
 */
REMUS_API int remus_backup_target(remus_backup *b, enum remus_promote_by by,
                                  uint64_t epoch, const void *tag,
                                  size_t tag_len, uint64_t *target);

/*
 * The checkpoints that promote accepts, oldest first.  Returns how many
 * there are; writes at most `cap` of them (the newest if there are more).
 */
REMUS_API int remus_backup_checkpoints(remus_backup *b,
                                       struct remus_checkpoint *out,
                                       unsigned int cap);

/* The state and counters now.  Never blocks on I/O. */
REMUS_API int remus_backup_status(remus_backup *b,
                                  struct remus_status *status);

/* As remus_primary_event_fd() and remus_primary_events(). */
REMUS_API int remus_backup_event_fd(remus_backup *b);
REMUS_API int remus_backup_events(remus_backup *b);

/* As remus_primary_log(). */
REMUS_API int remus_backup_log(remus_backup *b, uint64_t after,
                               struct remus_log_entry *out, unsigned int cap,
                               uint64_t *next, uint64_t *lost);

/* Why a connection was refused. */
enum remus_refused {
    REMUS_REFUSED_SILENT, /* did not prove itself or say hello in time */
    REMUS_REFUSED_CLOSED, /* went away by itself before that */
    REMUS_REFUSED_TLS,    /* no TLS 1.3 with a key, or a damaged or replayed
                             handshake */
    REMUS_REFUSED_KEY,    /* wrong key, or unknown identity */
    REMUS_REFUSED_FULL,   /* too many pending connections: made room */
    REMUS_REFUSED_PEER,   /* another user, on a Unix socket */
    REMUS_REFUSED_HELLO,  /* proven, but its hello is wrong */
    REMUS_REFUSED_BUSY    /* proven, but no primary is taken now */
};

/* The name of a cause ("silent", "key", ...); "?" for any other number. */
REMUS_API const char *remus_refused_name(enum remus_refused cause);

/* The connections from one source that were refused.  Times are
 * CLOCK_MONOTONIC. */
struct remus_refusal {
    uint32_t struct_size;     /* sizeof of this struct, see remus.h */
    char source[64];          /* "192.0.2.7", "2001:db8::/64", "uid 1000",
                                   "others" */
    enum remus_refused cause; /* of the last one */
    uint64_t count;
    uint64_t first_ns, last_ns;
    char text[192]; /* about the last one */
};

/*
 * The sources whose connections were refused since serve, for a log: each
 * new entry is news.  There are at most REMUS_REFUSALS_MAX: an entry that
 * was quiet for ten minutes makes room, and beyond that they are counted
 * under "others".  Returns how many there are; writes at most `cap`.  Never
 * blocks.
 */
REMUS_API int remus_backup_refusals(remus_backup *b, struct remus_refusal *out,
                                    unsigned int cap);

/*
 * Stop serving, apply what is committed, sync, free the handle.  NULL is
 * allowed.
 */
REMUS_API void remus_backup_close(remus_backup *b);

/* ---- the old address of a backup that is a primary now ----------------- */

typedef struct remus_former remus_former;

struct remus_former_config {
    uint32_t struct_size; /* sizeof of this struct, see remus.h */
    const char *resource;
    const char *state_dir; /* of the primary that this side is now */
    const char *address;   /* where this side listened as the backup */
    int tls_off;
    const char *psk_file; /* as in struct remus_backup_config */
    const char *psk_identity;
};

/* What was told to the newest primary that looked for its backup there. */
enum remus_former_news {
    REMUS_FORMER_NOBODY, /* none came */
    REMUS_FORMER_TOLD,   /* that it was failed away from: it is fenced */
    REMUS_FORMER_SPLIT   /* that both sides went on: split brain */
};

/*
 * Listen where this side listened as the backup, and tell a primary that
 * comes back there that it was failed away from, or that both sides went on.
 * Without it that one hears "connection refused" for ever, lets its guest
 * write, and nobody names the split brain.  Takes nothing; in threads of the
 * handle.  Errors: those of remus_backup_serve().
 */
REMUS_API int remus_former_open(const struct remus_former_config *config,
                                remus_former **out);
/* enum remus_former_news, and a text about it.  Never blocks. */
REMUS_API int remus_former_news(remus_former *f, char *text, size_t cap);
/* NULL is allowed. */
REMUS_API void remus_former_close(remus_former *f);

/*
 * Both sides went on from one checkpoint, as remus_former_news() has told: let
 * this primary's status say so, with that text, until a backup takes it.  Its
 * guest goes on.  Nothing changes while a backup is connected.  Never blocks;
 * returns 0.
 */
REMUS_API int remus_primary_name_split(remus_primary *p, const char *text);

/* ---- Epoch statistics of a primary ------------------------------------ */

/*
 * The statistics of the epochs that a toolstack closed on this primary, by a
 * call or by ioctl 20 (not of those that the engine takes by itself).  An
 * epoch is added when its ack has come, or failed (-EPROTO) when the link is
 * lost.  Its ack is timed as it arrives, whoever waits for it and how long.
 * An ioctl 20 that commits the epoch before leaves that one's commit_ns 0.
 * For reading, until remus_primary_close(); not to be closed by the caller.
 * Never blocks.
 */
REMUS_API remus_epochs *remus_primary_epochs(remus_primary *p);

/*
 * One epoch out of these statistics, for who keeps statistics of several
 * devices together: `bytes` is known when preresume returns, `extents` and
 * `coalesced` some time after the commit.  Never blocks.  Returns 1; 0 if
 * it is not there (not acked yet, or one of the engine's own, or more than
 * REMUS_EPOCHS_RING epochs ago).
 */
REMUS_API int remus_primary_epoch(remus_primary *p, uint64_t epoch,
                                  struct remus_epoch_sample *out);

/* cffi:end */

#ifdef __cplusplus
}
#endif
#endif
