/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* remus/replica.h - the two sides of a resource: primary and backup.
   remus.h has the conventions. */
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

/* Calls never block, and have no errors of their own, unless they say so. */

typedef struct remus_primary remus_primary;

/* What a primary can be told; docs/resource-file.md explains each setting. */
struct remus_primary_config {
    uint32_t struct_size;  /* sizeof of this struct, see remus.h */
    const char *resource;  /* name, 1..REMUS_NAME_MAX */
    const char *state_dir; /* existing directory, this side's own */
    const struct remus_volume *volumes;
    unsigned int volume_count; /* 1..REMUS_VOLUMES_MAX */
    const char *address;       /* "unix:/path" or "tcp:HOST:PORT" */
    int tls_off;               /* 1: TCP without TLS is allowed: whoever
                                   can connect can replace the disks */
    enum remus_ack ack;        /* as on the backup, like the next one */
    enum remus_commit_by commit_by;
    uint32_t queue_bytes;    /* send queue at most; 0: 64 MiB */
    uint32_t max_pause_ms;   /* ... and what the link carries in this time;
                                   0: 200 */
    uint32_t loss_ms;        /* silence that means loss, at least 1000;
                                   0: 3000 */
    uint32_t stall_ms;       /* a write that waited so long ends
                                   replication; 0: 10000 */
    uint32_t connect_ms;     /* pause between tries to connect, doubled up
                                   to 8 times it; 0: 250 */
    int allow_inconsistent;  /* 1: a catch-up beyond the backup's journal
                                   may go straight to its disks, which are
                                   Inconsistent until its epoch is acked */
    uint32_t idle_ms;        /* without a session, the engine takes a
                                   checkpoint this often; 0: 1000 */
    uint32_t grace_ms;       /* ... but not until this long after a session
                                   that ended without teardown; 0: 60000 */
    uint64_t resync_rate;    /* copies and catch-ups send at most this many
                                   bytes a second; 0: no limit */
    const char *epochs_file; /* where other processes find the epoch
                                   statistics (remus_epochs_create); NULL:
                                   they are kept for this process only */
    enum remus_on_loss on_loss;
    int ask_alone;            /* 1: while no backup takes the writes, they
                                   wait for remus_primary_go_alone() */
    const char *psk_file;     /* TLS 1.3 with a key of this file of psktool's
                                   (0600, ours or root's); NULL: no TLS */
    const char *psk_identity; /* whose key; NULL: the resource's name */
    const char *run_dir;      /* directory in memory (tmpfs) for the dirty
                                  map, this user's own; made if its parent
                                  exists; resources can share it.  NULL: the
                                  first of /run (or /run/user/UID) and
                                  /dev/shm that is in memory */
    uint64_t continues;       /* 1: see remus_export_open_kept() */
};

/*
 * Open the local disks of a resource, exclusively, and start its engine.  The
 * engine connects to the backup and brings it up to date: all of the disks the
 * first time, later only what changed.  A file of `run_dir` in memory says
 * which blocks changed; from a clean end to the next start state_dir/dirty.map
 * says it.  Reads and writes work at once.  Blocks for local I/O only.
 * Errors: -EBUSY another process has the state directory or a disk; -EINVAL
 * bad configuration, or a run_dir that is not in memory; -ENOENT no such disk,
 * key file or identity; -ENOMEM the dirty map can't be locked in memory;
 * -EPERM TCP with neither TLS nor tls_off, a key file that others can use, or
 * a state directory or run_dir that others can write to; others of open(2).
 */
REMUS_API int remus_primary_open(const struct remus_primary_config *config,
                                 remus_primary **out);

/*
 * Block until the resource is Protected, at most `timeout_ms`.  Errors:
 * -ETIMEDOUT (the text says what the state is, and why).
 */
REMUS_API int remus_primary_wait_protected(remus_primary *p,
                                           int64_t timeout_ms);

/*
 * Disk I/O of the guest, any offset and length inside the volume.  It blocks
 * for the local disk and for an overlapping write in flight; writes also block
 * while the send queue or the backup's journal has no room.  When a write
 * returns it is in the send queue: it belongs to the epoch that was open at
 * that moment.  Both sides execute discard and write_zeroes as zeroes.
 * Errors: -EINVAL no such volume; -ENOSPC beyond the end (reads: -EINVAL);
 * -EIO and others of the local disk (the range is then read and sent again, so
 * that both sides agree).  The loss of the backup is no error here.
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
 * one write, as if it were one buffer: on neither side does a write that
 * overlaps it come between its pieces.  Blocks as those above.
 *
 * A write (of either kind) of at most 1 MiB, or a quarter of the backup's
 * segment_bytes if that is less, is in one epoch as a whole, whatever
 * postsuspend does in another thread.  A barrier may divide a longer one.
 * Errors: those above; -EINVAL too many pieces, a piece with a length but no
 * memory, lengths whose sum is no length.
 */
REMUS_API int remus_primary_preadv(remus_primary *p, unsigned int volume,
                                   const struct iovec *vector,
                                   unsigned int count, uint64_t offset);
REMUS_API int remus_primary_pwritev(remus_primary *p, unsigned int volume,
                                    const struct iovec *vector,
                                    unsigned int count, uint64_t offset);
/* Sync the local disk only (what the guest's fsync reaches).  Blocks for it.
 * Errors: as remus_primary_pread(). */
REMUS_API int remus_primary_flush(remus_primary *p, unsigned int volume);
/* The size of a volume in bytes; 0 if there is no such volume. */
REMUS_API uint64_t remus_primary_size(remus_primary *p, unsigned int volume);

/*
 * Close the open epoch on every volume with one barrier and open the next.
 * `tag`/`tag_len`: NULL/0, or up to REMUS_TAG_MAX bytes that promote accepts
 * as a name.  Never blocks.  Mirrors libxl's postsuspend, but an error never
 * counts as a barrier that was sent.
 * Result: 0 and *epoch; 1 and *epoch if the epoch was empty (its barrier is
 * sent all the same).
 * Errors: -EPROTO not Protected (the text says the state and why); -EAGAIN too
 * many barriers without an ack; -EINVAL tag too long.
 */
REMUS_API int remus_primary_postsuspend(remus_primary *p, const void *tag,
                                        size_t tag_len, uint64_t *epoch);

/*
 * Block until `epoch` is safe on the backup (libxl's preresume).  The caller
 * receives the acks while it waits.  Retrying after -ETIMEDOUT is allowed.
 * Errors: -EPROTO the backup is lost and had not acked it; -ETIMEDOUT; -EINVAL
 * there was no such barrier.
 */
REMUS_API int remus_primary_preresume(remus_primary *p, uint64_t epoch,
                                      int64_t timeout_ms);

/*
 * The same for a poll loop, without a thread: begin the wait, poll the
 * descriptor for POLLIN, finish.  None of them blocks.
 *
 * begin: one wait at a time for a primary, beside any number of
 * remus_primary_preresume().  Errors: -EINPROGRESS one was begun and is not
 * finished; -ENOMEM.  Any other error is the result, which comes from finish.
 * fd: readable when there is a result; the same descriptor for the life of the
 * primary, which owns it: only poll it.
 * finish: the result, as remus_primary_preresume(), at most 0.1 s after the
 * timeout; -ECANCELED.  Then the next wait can begin.
 * Errors: -EAGAIN there is none yet; -EBADFD no wait was begun.
 * cancel: 0: the result is -ECANCELED; 1: there is no wait, or it has its
 * result.
 */
REMUS_API int remus_primary_preresume_begin(remus_primary *p, uint64_t epoch,
                                            int64_t timeout_ms);
REMUS_API int remus_primary_preresume_fd(remus_primary *p);
REMUS_API int remus_primary_preresume_finish(remus_primary *p);
REMUS_API int remus_primary_preresume_cancel(remus_primary *p);

/*
 * Say that checkpoint `epoch` is complete, with its memory (libxl's commit):
 * the backup applies it and every prepared one before it.  Idempotent.  With
 * REMUS_COMMIT_BY_BACKUP it does nothing: a commit on the backup counts.
 * Errors: -EINVAL not acked yet, or no such barrier; -EPROTO the backup is
 * lost (it is told later, unless it has lost that epoch), or a copy to it goes
 * on, and its earlier checkpoints are void.
 */
REMUS_API int remus_primary_commit(remus_primary *p, uint64_t epoch);

/*
 * A session: the time in which a toolstack takes the checkpoints.  Outside a
 * session the engine takes them by itself (REMUS_CP_DISK_ONLY), every
 * `idle_ms` in which something was written; in a session it never does.  The
 * first postsuspend begins a session, too.  After a loss, the next postsuspend
 * of the session completes a catch-up that ends in it; that postsuspend
 * succeeds as soon as all that changed is queued.  Idempotent.
 *
 * end: no memory waits for the last checkpoint, so the engine goes on at once;
 * also after a session through nodes, whose files were closed before (without
 * this call the engine waits `grace_ms`).  Errors: -EBUSY such a file is still
 * open, and its session goes on.
 */
REMUS_API int remus_primary_session_begin(remus_primary *p);
REMUS_API int remus_primary_session_end(remus_primary *p);

/*
 * A guest is about to write to the disks through this handle; and it has
 * stopped.  As long as somebody writes, or a session is open, the primary
 * refuses to step down for a backup that asks; otherwise the backup could take
 * the disks away under a guest.  (A node's file that is open for writing
 * counts by itself.)  Errors: -EROFS it is fenced.
 */
REMUS_API int remus_primary_writer_opens(remus_primary *p);
REMUS_API void remus_primary_writer_closes(remus_primary *p);

/*
 * An operator's word that the guest shall go on unprotected.  With
 * REMUS_ON_LOSS_HOLD: end the waits for acks that go on in this outage, with
 * -EPROTO, and let no later one begin.  It counts until the next connection.
 * Includes remus_primary_go_alone().  Returns 0.
 *
 * Without it such a wait ends when the backup is back: with 0 if the backup
 * has the epoch, with -EPROTO if the barrier was lost on the way (then call
 * postsuspend again: what was written travels in the catch-up); or by its own
 * deadline or cancel.  A postsuspend (ioctl 20) never waits: it fails while
 * the backup is away.
 */
REMUS_API int remus_primary_resume(remus_primary *p);

/*
 * With `ask_alone` of the configuration: let the guest's writes pass although
 * no backup takes them, until the next connection.  Call it when the status
 * says `asks_alone` and it is certain that the backup is not and will not be
 * promoted (a fence command has succeeded, an operator says so).  The writes
 * go on as soon as a new generation is durable.  While a backup is connected
 * it does nothing.  Returns 0.
 */
REMUS_API int remus_primary_go_alone(remus_primary *p);

/*
 * The opposite: writes that wait, and later ones, fail with -EIO until the
 * next connection or remus_primary_go_alone().
 */
REMUS_API int remus_primary_refuse_alone(remus_primary *p);

#define REMUS_VERIFY_KEPT 64 /* blocks that differ and are named */

/* The progress of a comparison of both sides, or the result of the last one. */
struct remus_verify {
    uint32_t struct_size; /* sizeof of this struct, see remus.h */
    int running;          /* 1: one is under way */
    int complete;         /* 1: it went through to the end */
    uint64_t bytes_total; /* of all volumes */
    uint64_t bytes_done;
    uint64_t blocks_different; /* of 16 KiB */
    uint64_t bytes_repaired;   /* of them, sent again */
    struct {
        uint32_t volume;
        uint64_t offset; /* bytes */
    } different[64];     /* the first of them */
};

/*
 * Compare both sides by the hashes of their blocks, while the guest runs and
 * checkpoints go on.  Each piece of 256 KiB is compared at one point of the
 * stream, so nothing that is on its way counts as a difference.  `repair` 1:
 * blocks that differ are sent again, in the open epoch.  `rate`: at most this
 * many bytes a second; 0: no limit. A question delays acks, and writes to its
 * piece, while both sides read and hash it (a millisecond from the page
 * cache). Blocks until the end.  *out (may be NULL): what was found.
 * Errors: -EPROTO not Protected, or lost meanwhile; -EBUSY another one is
 * under way; -ECANCELED; -EIO.
 */
REMUS_API int remus_primary_verify(remus_primary *p, int repair, uint64_t rate,
                                   struct remus_verify *out);
/* The progress of the one under way, or the result of the last one. */
REMUS_API void remus_primary_verify_status(remus_primary *p,
                                           struct remus_verify *out);
/* End the one under way, soon. */
REMUS_API void remus_primary_verify_cancel(remus_primary *p);

/* The state and counters now. */
REMUS_API int remus_primary_status(remus_primary *p,
                                   struct remus_status *status);

/*
 * To hear of changes without polling the status.
 * event_fd: becomes readable when the state or the link has changed since the
 * last call of events, even if it has changed back; the same descriptor for
 * the life of the handle, which owns it: only poll it (level-triggered is
 * enough).
 * events: what has changed (enum remus_changed, or 0), reported once.  Ask for
 * the status after it, not before: then no change is missed, because a later
 * one makes the descriptor readable again.  Two users of one handle must share
 * what events returns.
 */
REMUS_API int remus_primary_event_fd(remus_primary *p);
REMUS_API int remus_primary_events(remus_primary *p);

/*
 * For a host program's log: each change of state or link, and each new
 * reason; none twice in a row.  There is no callback: nothing that the program
 * does with its log can delay a disk, and one that reads late loses the oldest
 * entries.
 *
 * The entries from number `after` on, oldest first: 0 at first, then the last
 * *next.  Returns how many were written, at most `cap`.  *lost: how many since
 * `after` newer ones have replaced.  A change's entries are there once its
 * event descriptor is readable.
 */
REMUS_API int remus_primary_log(remus_primary *p, uint64_t after,
                                struct remus_log_entry *out, unsigned int cap,
                                uint64_t *next, uint64_t *lost);

/*
 * End replication cleanly, sync and close the disks, stop the threads, free
 * the handle.  Blocks while what is queued is sent, at most `loss_ms`, and for
 * the disks.  NULL is allowed.
 */
REMUS_API void remus_primary_close(remus_primary *p);

/* ---- Backup ---------------------------------------------------------- */

/* Calls never block (-EAGAIN: the journal's disk has stalled for a second), and
 * have no errors of their own, unless they say so. */

typedef struct remus_backup remus_backup;

/* What a backup can be told; docs/resource-file.md explains each setting. */
struct remus_backup_config {
    uint32_t struct_size;    /* sizeof of this struct, see remus.h */
    const char *resource;    /* name, 1..REMUS_NAME_MAX */
    const char *state_dir;   /* existing directory, this side's own */
    const char *journal_dir; /* NULL: state_dir/journal */
    const struct remus_volume *volumes;
    unsigned int volume_count; /* 1..REMUS_VOLUMES_MAX */
    enum remus_ack ack;        /* as on the primary, like the next one */
    enum remus_commit_by commit_by;
    uint64_t journal_bytes;   /* all segments; 0: 512 MiB */
    uint64_t segment_bytes;   /* one segment; 0: 16 MiB; >= 64 KiB */
    int discard_local;        /* 1: discard what this side wrote by itself: it
                                   follows a primary of any branch again */
    int read_only;            /* 1: for status and checkpoints only: nothing
                                   is changed, no disk is opened */
    uint32_t stale_ms;        /* a promote must name a checkpoint that was the
                                   newest available state longer ago than this;
                                   0: 60000; UINT32_MAX: never */
    const char *psk_file;     /* as in struct remus_primary_config; read by
                                   remus_backup_serve() */
    const char *psk_identity; /* who alone may connect; NULL: its name */
    const char *run_dir;      /* of the primary that this side was */
};

/*
 * Open a backup: lock its state directory and disks, create or recover its
 * journal.  Blocks for disk I/O.  Nothing listens and nothing is applied until
 * remus_backup_serve().
 * Errors: -EBUSY another process has the directory; -EINVAL configuration;
 * -EIO, -EBADMSG unreadable state; -ENOSPC no room for the journal (no part of
 * it is left); -EPERM a state or journal directory of another user, or one
 * that others can write to.
 */
REMUS_API int remus_backup_open(const struct remus_backup_config *config,
                                remus_backup **out);

/*
 * Listen on `address` ("unix:/path" 0600, or "tcp:HOST:PORT") and serve one
 * primary at a time, applying in the background, in threads of the handle.
 * With the psk_file of the configuration every connection must prove the key
 * with TLS.  Pending connections, which have not done so or sent nothing yet,
 * have a thread of their own: at most 64, 32 from one source, 3 s each.
 * Errors: -EADDRINUSE; -EPERM TCP with neither TLS nor `tls_off`; -EINVAL both
 * of them; those of remus_psk_check(); -EALREADY.
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
 * Pin checkpoint `epoch`, for whoever holds its complete memory on this host:
 * nobody commits anything newer until another one is pinned, or 0, which
 * releases the pin.  If the journal fills meanwhile, the guest goes on
 * unprotected, and both sides say why.  No copy goes straight to the disks
 * meanwhile (allow_inconsistent).  A pin ends with the handle, or a promote.
 * Errors: -EINVAL it is not here, or a newer one is committed; -EBUSY both
 * sides switch roles; -EROFS a promote began.
 */
REMUS_API int remus_backup_pin(remus_backup *b, uint64_t epoch);

/* How a promote names its checkpoint. */
enum remus_promote_by {
    REMUS_PROMOTE_DEFAULT, /* last committed; if the resource is driven
                              through ioctls, the newest that was reported
                              safe to an ioctl 30, or was empty */
    REMUS_PROMOTE_EPOCH,
    REMUS_PROMOTE_TAG
};

/* Flags of remus_backup_ask(). */
enum remus_ask {
    REMUS_ASK_KEEP = 1,  /* the promote will name a checkpoint that exists:
                            the primary takes no last one */
    REMUS_ASK_SWITCH = 2 /* the primary is to become the backup: its status
                            then has `switches` */
};

/*
 * Ask the primary to step down, as remus_backup_promote() does; for a caller
 * that has something to do between the answer and the promote (fence the
 * primary, if there is no answer).  `flags`: enum remus_ask, or-ed.  Blocks
 * until the primary answers or is lost: `loss_ms` after its link went down or,
 * if it never came, after remus_backup_serve(); not at all if it ended
 * cleanly.
 * Returns 1: it stepped down, permanently fenced (or a promote began before);
 * 0: no primary is connected, or it fell silent.  Errors: -EBUSY it refused,
 * or a checkpoint is pinned here and it is a switch; -EINVAL unknown flags.
 */
REMUS_API int remus_backup_ask(remus_backup *b, int flags);

/*
 * Fail over: make the volumes exactly what the primary's were at one
 * checkpoint, and make them writable.  (With DRBD libxl has no such step:
 * Primary on both hosts.)  Blocks for disk I/O.  Durable at every step: an
 * interrupted promote can be finished, only at the same checkpoint.  A
 * promoted backup refuses every primary, and a new generation begins: the old
 * primary can never write here again.
 * A connected primary is asked to step down.  It does, after a last checkpoint
 * if none is named, if nobody writes there (an open file of a node,
 * remus_primary_writer_opens) and no toolstack's session is open; otherwise
 * the promote is refused.  `force` 1 does not ask, and cuts the primary off:
 * what it writes from then on is lost, or split brain.
 * Result: 0 and *promoted (the checkpoint that the volumes are at).
 * Errors: -EINVAL no such checkpoint, tag not unique, Inconsistent (the text
 * names the checkpoints that exist); -EBUSY the primary did not step down;
 * -ESTALE no checkpoint is named, and the default one was the newest available
 * state longer than `stale_ms` ago; -EIO.
 * Disks that are as a primary left them, because this side was the primary,
 * are no checkpoint.  Until the first commit of another primary they can be
 * promoted by the number in the reason of the status; the other side then
 * loses what it has written since.
 */
REMUS_API int remus_backup_promote(remus_backup *b, enum remus_promote_by by,
                                   uint64_t epoch, const void *tag,
                                   size_t tag_len, int force,
                                   uint64_t *promoted);

/*
 * The checkpoint that such a promote would take; for a caller that has to do
 * something irreversible before it (stop a primary, fence it).  Result: 0 and
 * *target.  Errors: as remus_backup_promote(), without -EBUSY and -EIO.
 */
REMUS_API int remus_backup_target(remus_backup *b, enum remus_promote_by by,
                                  uint64_t epoch, const void *tag,
                                  size_t tag_len, uint64_t *target);

/* The checkpoints that promote accepts, oldest first.  Returns how many there
 * are; writes at most `cap` of them (the newest if there are more). */
REMUS_API int remus_backup_checkpoints(remus_backup *b,
                                       struct remus_checkpoint *out,
                                       unsigned int cap);

/* The state and counters now; if the journal's disk stalls, as they were. */
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
    REMUS_REFUSED_CLOSED, /* closed the connection before that */
    REMUS_REFUSED_TLS,    /* no TLS 1.3 with a key, or a damaged or replayed
                             handshake */
    REMUS_REFUSED_KEY,    /* wrong key, or unknown identity */
    REMUS_REFUSED_FULL,   /* too many pending connections: it made room */
    REMUS_REFUSED_PEER,   /* another user, on a Unix socket */
    REMUS_REFUSED_HELLO,  /* proven, but its hello is wrong */
    REMUS_REFUSED_BUSY    /* proven, but the backup takes no primary now */
};

/* The name of a cause ("silent", "key", ...); "?" for any other number.  Never
 * fails. */
REMUS_API const char *remus_refused_name(enum remus_refused cause);

/* The connections from one source that were refused.  Times are
 * CLOCK_MONOTONIC. */
struct remus_refusal {
    uint32_t struct_size;     /* sizeof of this struct, see remus.h */
    char source[64];          /* "192.0.2.7", "2001:db8::/64", "uid 1000",
                                   "others" */
    enum remus_refused cause; /* of the last one */
    uint64_t count;           /* how many */
    uint64_t first_ns, last_ns;
    char text[192]; /* about the last one */
};

/*
 * The sources whose connections were refused since serve, for a log: each new
 * entry is news.  There are at most REMUS_REFUSALS_MAX: an entry that was
 * quiet for ten minutes makes room; further sources count as "others".
 * Returns how many there are; writes at most `cap`.
 */
REMUS_API int remus_backup_refusals(remus_backup *b, struct remus_refusal *out,
                                    unsigned int cap);

/*
 * Stop serving, apply what is committed, sync, free the handle.  Blocks for
 * disk I/O.  NULL is allowed.
 */
REMUS_API void remus_backup_close(remus_backup *b);

/* ---- the old address of a backup that is a primary now ----------------- */

typedef struct remus_former remus_former;

/* Settings of the old address. */
struct remus_former_config {
    uint32_t struct_size;     /* sizeof of this struct, see remus.h */
    const char *resource;     /* name, 1..REMUS_NAME_MAX */
    const char *state_dir;    /* of the primary that this side is now */
    const char *address;      /* where this side listened as the backup */
    int tls_off;              /* as remus_backup_serve() */
    const char *psk_file;     /* as in struct remus_backup_config */
    const char *psk_identity; /* the same */
};

/* What the newest primary that looked for its backup there was told. */
enum remus_former_news {
    REMUS_FORMER_NOBODY, /* none came */
    REMUS_FORMER_TOLD,   /* the backup took over: it is fenced */
    REMUS_FORMER_SPLIT   /* both sides went on: split brain */
};

/*
 * Listen where this side listened as the backup, in threads of the handle, and
 * tell a primary that comes back there that the backup took over, or that both
 * sides went on.  Without it the old primary gets "connection refused" for
 * ever, and nobody names the split brain.  Blocks for local I/O.  Errors:
 * those of remus_backup_serve().
 */
REMUS_API int remus_former_open(const struct remus_former_config *config,
                                remus_former **out);
/* Returns enum remus_former_news, and a text of less than `cap` bytes about it.
 * Never blocks.  Errors: -EINVAL no room for the text. */
REMUS_API int remus_former_news(remus_former *f, char *text, size_t cap);
/* Stop listening, free the handle; blocks for its threads.  NULL is allowed. */
REMUS_API void remus_former_close(remus_former *f);

/*
 * Both sides went on from one checkpoint, as remus_former_news() has reported:
 * this primary's status says so, with that text, until a backup takes its
 * writes.  Nothing changes while one is connected.  Never blocks; no errors of
 * its own.
 */
REMUS_API int remus_primary_name_split(remus_primary *p, const char *text);

/* ---- Epoch statistics of a primary ------------------------------------ */

/*
 * The statistics of the epochs that a toolstack closed on this primary, by a
 * call or by ioctl 20 (not of those that the engine takes by itself).  An
 * epoch is added when its ack has come, or, as failed (-EPROTO), when the link
 * is lost.  The ack's time is that of its arrival, whoever waits for it. An
 * ioctl 20 that commits the epoch before leaves that one's commit_ns 0. Only
 * for reading, until remus_primary_close().  Never blocks.
 */
REMUS_API remus_epochs *remus_primary_epochs(remus_primary *p);

/*
 * One epoch out of these statistics, for a program that combines several
 * devices: `bytes` is known when preresume returns, `extents` and `coalesced`
 * some time after the commit.  Never blocks.  Returns 1; 0 if it is not there
 * (not acked yet, or one of the engine's own, or more than REMUS_EPOCHS_RING
 * epochs ago).  No errors of its own.
 */
REMUS_API int remus_primary_epoch(remus_primary *p, uint64_t epoch,
                                  struct remus_epoch_sample *out);

/* cffi:end */

#ifdef __cplusplus
}
#endif
#endif
