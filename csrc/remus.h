/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * remus.h - checkpointed disk replication for highly available guests.
 *
 * The only public header of libremus_native.
 *
 * Conventions that hold for every function unless it says otherwise:
 *  - Result: 0 (or a count, where said) on success, -errno on failure.  The
 *    text behind the last failure of the calling thread is
 *    remus_last_error(); it names the object, the operation and what to do.
 *  - Sizes and offsets are bytes, times are milliseconds (`_ms`) or
 *    nanoseconds (`_ns`).  A negative timeout waits without a limit.
 *  - Handles may be used from any number of threads at once, except that
 *    nothing else may run on a handle during or after its close.
 *  - Nothing prints, installs a signal handler, forks, or keeps global
 *    state.  Threads exist only inside a handle, between open and close.
 *  - Strings passed in are copied; strings handed out belong to the library.
 */
#ifndef REMUS_H
#define REMUS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define REMUS_API __attribute__((visibility("default")))
#else
#define REMUS_API
#endif

/* cffi:begin */

/* ---- Limits and numbers ------------------------------------------- */

#define REMUS_TAG_MAX 32          /* bytes of a checkpoint's tag */
#define REMUS_VOLUMES_MAX 64      /* volumes of one resource */
#define REMUS_NAME_MAX 63         /* bytes of a resource or volume name */
#define REMUS_REASON_MAX 256      /* bytes of a status reason, with NUL */
#define REMUS_ID_BYTES 16         /* bytes of a generation's id */
#define REMUS_REFUSALS_MAX 65     /* entries of remus_backup_refusals() */

/* The ioctl numbers of a protocol D device, and our own third one. */
#define REMUS_IOCTL_SEND_CHECKPOINT 20
#define REMUS_IOCTL_WAIT_CHECKPOINT_ACK 30
#define REMUS_IOCTL_COMMIT_CHECKPOINT 40

/*
 * The argument of ioctl 30 on a node of ours: 0 waits without a limit, as
 * libxl does; this ends every wait of the same open file with ECANCELED; any
 * other is a limit in ms, after which it fails with ETIMEDOUT.  A signal to
 * the caller ends it with EINTR; the same barrier can be waited for again.
 */
#define REMUS_WAIT_CANCEL 4294967295u

/*
 * What a resource is doing.  The same names are used in status, logs,
 * errors and docs; remus_state_name() spells them.
 */
enum remus_state {
    REMUS_STATE_CONNECTING,   /* no first connection yet: not protected */
    REMUS_STATE_CATCHING_UP,  /* the backup is being brought up to date */
    REMUS_STATE_PROTECTED,    /* checkpoints are safe on the backup */
    REMUS_STATE_UNPROTECTED,  /* the backup is lost, the guest runs on */
    REMUS_STATE_PROMOTING,    /* a promote was begun and is not finished */
    REMUS_STATE_PROMOTED,     /* this side failed over: its volumes live */
    REMUS_STATE_SPLIT_BRAIN,  /* both sides went on from one checkpoint */
    REMUS_STATE_INCONSISTENT, /* backup: a copy is not complete */
    REMUS_STATE_STANDBY,      /* backup: complete, no primary connected */
    REMUS_STATE_FAILED,       /* a local error ended it; see the reason */
    REMUS_STATE_FENCED        /* primary: the backup took over: no write
                                 passes here any more */
};

enum remus_role { REMUS_ROLE_PRIMARY, REMUS_ROLE_BACKUP };

enum remus_ack {
    REMUS_ACK_DURABLE,  /* acked = on stable storage of the backup */
    REMUS_ACK_MEMORY    /* acked = in the backup's page cache */
};

enum remus_commit_by {
    REMUS_COMMIT_BY_PRIMARY, /* commits of the primary count (and those
                                given on the backup) */
    REMUS_COMMIT_BY_BACKUP   /* only commits given on the backup count */
};

enum remus_on_loss {
    REMUS_ON_LOSS_CONTINUE, /* who waits for an ack is told, the guest goes
                               on */
    REMUS_ON_LOSS_HOLD      /* who waits goes on waiting: for the backup, or
                               for remus_primary_resume() */
};

/* Flags of a checkpoint (struct remus_checkpoint.flags). */
#define REMUS_CP_IOCTL 1      /* taken through ioctl 20 */
#define REMUS_CP_DISK_ONLY 2  /* taken by the engine: no memory goes with it */
#define REMUS_CP_COMMITTED 4  /* the last committed one */

/* One volume of a resource, as given to an open call. */
struct remus_volume {
    const char *name;  /* 1..REMUS_NAME_MAX of [A-Za-z0-9._-] */
    const char *path;  /* local regular file or block device */
    uint64_t size;     /* bytes, a multiple of 512; 0: the file's own */
};

/*
 * The counters and state of one side of a resource, at one moment.
 * Times are CLOCK_MONOTONIC.  `reason` says in words why the state is what
 * it is and, for a bad one, what to do.
 */
struct remus_status {
    int role;                   /* enum remus_role */
    int state;                  /* enum remus_state */
    int connected;              /* 1: the other side is connected */
    int ioctl_driven;           /* 1: newest checkpoint came by ioctl 20 */
    unsigned int volumes;
    char resource[64];
    char generation[33];        /* hex */
    char reason[256];
    uint64_t open_epoch;        /* primary: the epoch that writes go to */
    uint64_t prepared_epoch;    /* newest acked (backup: received) epoch */
    uint64_t committed_epoch;   /* newest committed epoch */
    uint64_t applied_epoch;     /* newest epoch in the backup's disks */
    uint64_t stable_epoch;      /* newest epoch that survives power loss */
    uint64_t promoted_epoch;    /* backup: checkpoint it was promoted to */
    uint64_t epochs;            /* barriers sent / received */
    uint64_t bytes_written;     /* bytes of writes replicated */
    uint64_t bytes_zeroed;      /* bytes of discards replicated */
    uint64_t bytes_coalesced;   /* backup: bytes overwritten before apply;
                                   primary: those within one epoch, as far
                                   as the backup has told */
    uint64_t bytes_applied;     /* backup: bytes written into its disks */
    uint64_t records;           /* stream records sent / received */
    uint64_t queue_bytes;       /* primary: bytes waiting to be sent */
    uint64_t queue_limit;       /* primary: bound on queue_bytes now */
    uint64_t journal_bytes;     /* backup: bytes of segments in use */
    uint64_t journal_limit;     /* backup: bytes of all segments */
    uint64_t parked_writes;     /* primary: writes waiting for room now */
    uint64_t stalls;            /* primary: writes that ever had to wait */
    uint64_t resync_done;       /* bytes of the copy or catch-up so far */
    uint64_t resync_total;      /* bytes of the copy or catch-up */
    uint64_t link_changed_ns;   /* when `connected` last changed */
    uint64_t measured_epoch;    /* newest epoch of which the next two are
                                   known: the backup finds them out when it
                                   applies it, and tells the primary */
    uint64_t epoch_extents;     /* ranges of bytes that it holds */
    uint64_t epoch_coalesced;   /* bytes overwritten within it */
    uint64_t dirty_bytes;       /* primary, not Protected: what the backup
                                   lacks, in whole blocks of 16 KiB */
    int asks_alone;             /* primary: writes wait for
                                   remus_primary_go_alone(), and the backup
                                   has been away for `loss_ms` */
    int holds;                  /* primary: waits for acks go on, though the
                                   backup is lost */
    unsigned int writers;       /* primary: files open for writing */
    int turns;                  /* primary: gave way to become the backup */
    uint64_t refused;           /* backup: connections refused since serve,
                                   see remus_backup_refusals() */
    char security[64];          /* what proves the connected other side:
                                   "TLS1.3 ECDHE-PSK AES-128-GCM", "unix
                                   socket", "none"; "" if not connected */
};

/* A checkpoint that a backup can be promoted to. */
struct remus_checkpoint {
    uint64_t epoch;
    uint32_t flags;             /* REMUS_CP_* */
    uint32_t tag_len;           /* 0..REMUS_TAG_MAX */
    unsigned char tag[32];
};

/* ---- Library ------------------------------------------------------- */

/* The version of the library, "MAJOR.MINOR.PATCH".  Never fails. */
REMUS_API const char *remus_version(void);

/*
 * The text behind the last error that a remus_ function returned in this
 * thread; "" if there was none.  Valid until the next failing call in the
 * same thread.  Never blocks.
 */
REMUS_API const char *remus_last_error(void);

/* The name of an enum remus_state ("Protected"); "?" for any other. */
REMUS_API const char *remus_state_name(int state);

/*
 * Can a side of this role (enum remus_role) go from one state straight to
 * the other?  docs/operations.md shows the table.  Never fails.
 */
REMUS_API int remus_state_follows(int role, int from, int to);

/* The name of the CRC32C code that runs here: "sse4.2" or "table". */
REMUS_API const char *remus_crc32c_name(void);

/* CRC32C (Castagnoli) of `len` bytes, continuing from `crc` (0 at first). */
REMUS_API uint32_t remus_crc32c(uint32_t crc, const void *data, size_t len);

/*
 * Prepare this process to serve disks of guests: mlockall, OOM score -1000,
 * PR_SET_IO_FLUSHER, so that serving a disk never waits for memory that
 * could only be freed by writing to that disk.  Call it before other
 * threads start.  Each step that the system refuses is skipped; returns the
 * number of steps that took effect (0..3).  Never fails.
 */
REMUS_API int remus_harden_process(void);

/*
 * Write `status` as text: json 0: a first line
 * "remus-native resource=R role=primary state=S ..." and one key=value a
 * line; json 1: one JSON object.  Returns the length (without the NUL);
 * -ENOSPC if `cap` is too small (8192 is enough).  Never blocks.
 */
REMUS_API int remus_status_format(const struct remus_status *status,
                                  int json, char *buf, size_t cap);

/*
 * Would this key file do, with a key for `identity`?  Reads it; blocks for
 * its disk.
 * Errors: -ENOENT no such file, or no such identity in it; -EPERM group or
 * others can use it, or it belongs to somebody other than root and us;
 * -EINVAL a line that is not identity:hexkey; others of open(2).
 */
REMUS_API int remus_psk_check(const char *file, const char *identity);

/* ---- DRBD protocol D devices --------------------------------------- */

typedef struct remus_drbd remus_drbd;

/*
 * Open a device that answers the protocol D ioctls: a DRBD node, or a file
 * of our FUSE node.  O_RDONLY and O_CLOEXEC, as libxl does.  May block as
 * long as open(2) does.  No ioctl is sent (on a protocol D module every
 * unknown ioctl is a checkpoint).
 * Errors: -ENOENT/-ENXIO no such device; -EMEDIUMTYPE the DRBD device is
 * Secondary here; others of open(2).
 */
REMUS_API int remus_drbd_open(const char *path, remus_drbd **out);

/*
 * Send a checkpoint barrier (ioctl 20).  `tag`: 0, or a number that travels
 * in the barrier as its decimal text (our nodes only; the kernel ignores
 * it).  Never blocks on the network.
 * Returns 0: a barrier is on its way, an ack must be waited for; 1: the
 * epoch was empty.  A 1 still counts as a barrier whose ack
 * remus_drbd_preresume() waits for if the device is one of our nodes (they
 * always send it); on a kernel device nothing was sent.
 * Errors: -EPROTO no backup connected; -EINVAL not protocol D (no net
 * configuration); -ENOTTY the driver has no checkpoint ioctls at all;
 * -EBUSY a barrier is outstanding (phases out of order); -ESTALE a wait
 * failed with a loss before: the kernel driver would pretend to send, so
 * the device must be reconnected and opened again (mends libxl, which
 * counts an error as sent).
 */
REMUS_API int remus_drbd_postsuspend(remus_drbd *dev, uint64_t tag);

/*
 * Wait until the backup has the barrier (ioctl 30), at most `timeout_ms`.
 * Blocks, in the calling thread, with all signals blocked for that time (a
 * signal would look like a lost backup).  The kernel's own limit is 2 x
 * ping-timeout and ends in EPROTO though the backup may be well: the ioctl
 * is repeated until our own deadline, unless it failed at once (< 5 ms,
 * twice), which is a lost connection.  One kernel call may outlast the
 * deadline by its own limit; a node of ours keeps to it.
 * Returns 0: safe on the backup, or nothing was outstanding.
 * Errors: -EPROTO lost, and again until the next barrier; -ETIMEDOUT no ack
 * in time, -ECANCELED: may be called again.  The kernel's ENOMEM is "acked,
 * but the next epoch could not be allocated": the checkpoint is safe, the
 * device is not usable further (0 now, -ESTALE at the next postsuspend).
 */
REMUS_API int remus_drbd_preresume(remus_drbd *dev, int64_t timeout_ms);

/*
 * End the preresume that another thread is in; it returns -ECANCELED (or 0,
 * if the ack came meanwhile).  0 at once if there is none.  On one of our
 * nodes it takes a few microseconds.  A wait inside the kernel's driver ends
 * only by a signal or by its own limit of 2 x ping-timeout; no signal is
 * ever sent unless remus_drbd_cancel_signal() named one.  Blocks at most
 * 0.1 s; on a node whose server hangs, as long as that does (a group's
 * cancel does not).
 * Errors: -EINPROGRESS the wait is still in the driver, which will end it.
 */
REMUS_API int remus_drbd_cancel(remus_drbd *dev);

/*
 * Let remus_drbd_cancel() end a wait inside the kernel's driver by sending
 * `signal` to the waiting thread; 0: by nothing (the default).  The signal
 * must be the program's own, with a handler without SA_RESTART that does
 * nothing; it is the only one that is not blocked during a wait, so nobody
 * else may send it to the process: a stray one costs an early -EPROTO.
 * Never blocks.
 * Errors: -EINVAL no such signal, or no handler that would end a call;
 * -EBUSY a preresume is under way.
 */
REMUS_API int remus_drbd_cancel_signal(remus_drbd *dev, int signal);

/*
 * How many barriers were sent through this handle, and whether the newest
 * closed an empty epoch (`empty` may be NULL).  Never blocks for long: a
 * postsuspend under way in another thread is waited for.
 */
REMUS_API uint64_t remus_drbd_barriers(remus_drbd *dev, int *empty);

/*
 * Commit the acked checkpoint (ioctl 40) on one of our FUSE nodes.  A no-op
 * on a block device: protocol D has no commit.  Never blocks on the network.
 * Errors: -EPROTO not connected; -EBUSY the ack is still outstanding.
 */
REMUS_API int remus_drbd_commit(remus_drbd *dev);

/* 1 if the device is a file of our FUSE node, else 0.  Never blocks. */
REMUS_API int remus_drbd_is_node(const remus_drbd *dev);

/* Close the device and free the handle.  NULL is allowed. */
REMUS_API void remus_drbd_close(remus_drbd *dev);

/* ---- Primary -------------------------------------------------------- */

typedef struct remus_primary remus_primary;

struct remus_primary_config {
    const char *resource;       /* name, 1..REMUS_NAME_MAX */
    const char *state_dir;      /* existing directory, this side's own */
    const struct remus_volume *volumes;
    unsigned int volume_count;  /* 1..REMUS_VOLUMES_MAX */
    const char *address;        /* "unix:/path" or "tcp:HOST:PORT" */
    int tls_off;                /* 1: TCP without TLS is allowed: who can
                                   connect can replace the disks */
    int ack;                    /* enum remus_ack, as on the backup */
    int commit_by;              /* enum remus_commit_by */
    uint32_t queue_bytes;       /* send queue at most; 0: 64 MiB */
    uint32_t max_pause_ms;      /* queue at most this much time; 0: 200 */
    uint32_t loss_ms;           /* silence that means loss, at least 1000;
                                   0: 3000 */
    uint32_t stall_ms;          /* a write that waited so long ends
                                   replication; 0: 10000 */
    uint32_t connect_ms;        /* pause between connects, doubled up to 8
                                   times it; 0: 250 */
    int allow_inconsistent;     /* 1: a catch-up beyond the backup's journal
                                   may go straight to its disks, which are
                                   Inconsistent until it is committed */
    uint32_t idle_ms;           /* without a session, a checkpoint by itself
                                   so often; 0: 1000 */
    uint32_t grace_ms;          /* ... but not so soon after a session that
                                   ended without teardown; 0: 60000 */
    uint64_t resync_rate;       /* copies and catch-ups send at most so many
                                   bytes a second; 0: no limit */
    const char *epochs_file;    /* where other processes find the epoch
                                   statistics (remus_epochs_create); NULL:
                                   they are kept for this process only */
    int on_loss;                /* enum remus_on_loss */
    int ask_alone;              /* 1: while no backup takes the writes, they
                                   wait for remus_primary_go_alone() */
    const char *psk_file;       /* TLS 1.3 with a key of this file, which
                                   psktool wrote (0600, ours or root's);
                                   NULL: no TLS */
    const char *psk_identity;   /* whose key; NULL: the resource's name */
};

/*
 * Open the local disks of a resource, exclusively, and start its engine,
 * which connects to the backup, again and again, and brings it up to date:
 * all of the disks the first time, later only what changed.  Which blocks
 * that are is kept in state_dir/dirty.map.  Reads and writes work at once.
 * Blocks for local I/O only.
 * Errors: -EBUSY another process has the state directory or a disk;
 * -EINVAL bad configuration; -ENOENT no such disk, key file or identity;
 * -EPERM TCP with neither TLS nor tls_off, or a key file that others can
 * use; others of open(2).
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
REMUS_API int remus_primary_write_zeroes(remus_primary *p,
                                         unsigned int volume,
                                         uint64_t offset, uint64_t len);
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
 * Say that checkpoint `epoch`, memory too, is complete: the backup applies
 * it and every prepared one before it.  Never blocks.  Idempotent.
 * Errors: -EINVAL not acked yet, or no such barrier; -EPROTO backup lost (the
 * backup is told when it is back, unless that epoch was lost with it).
 */
REMUS_API int remus_primary_commit(remus_primary *p, uint64_t epoch);

/*
 * A session: the time in which a toolstack takes the checkpoints.  Outside
 * of one the engine takes them by itself (REMUS_CP_DISK_ONLY), every
 * `idle_ms` in which something was written; in one it never does.  The first
 * postsuspend begins one, too.  After a loss, a catch-up that ends in a
 * session is completed by that session's next postsuspend, which succeeds as
 * soon as all that changed is queued.  Never block.  Idempotent.
 */
REMUS_API int remus_primary_session_begin(remus_primary *p);
REMUS_API int remus_primary_session_end(remus_primary *p);

/*
 * A guest's disks are about to be written to through this handle; and they
 * are not any more.  As long as somebody writes, or a session is open, a
 * backup that asks the primary to give way is told no: else it may take the
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
    int running;
    int complete;              /* 1: it went through to the end */
    uint64_t bytes_total;      /* of all volumes */
    uint64_t bytes_done;
    uint64_t blocks_different; /* of 16 KiB */
    uint64_t bytes_repaired;
    struct {
        uint32_t volume;
        uint64_t offset;       /* bytes */
    } different[64];           /* the first of them */
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
REMUS_API int remus_primary_verify(remus_primary *p, int repair,
                                   uint64_t rate, struct remus_verify *out);
/* Any thread.  Never blocks. */
REMUS_API void remus_primary_verify_status(remus_primary *p,
                                           struct remus_verify *out);
/* End the one under way, soon.  Never blocks. */
REMUS_API void remus_primary_verify_cancel(remus_primary *p);

/* The state and counters now.  Never blocks on I/O. */
REMUS_API int remus_primary_status(remus_primary *p,
                                   struct remus_status *status);

/*
 * End replication cleanly (what is queued is sent, at most `loss_ms`), sync
 * and close the disks, stop the threads, free the handle.  NULL is allowed.
 */
REMUS_API void remus_primary_close(remus_primary *p);

/* ---- Backup ---------------------------------------------------------- */

typedef struct remus_backup remus_backup;

struct remus_backup_config {
    const char *resource;
    const char *state_dir;      /* existing directory, this side's own */
    const char *journal_dir;    /* NULL: state_dir/journal */
    const struct remus_volume *volumes;
    unsigned int volume_count;
    int ack;                    /* enum remus_ack */
    int commit_by;              /* enum remus_commit_by */
    uint64_t journal_bytes;     /* all segments; 0: 512 MiB */
    uint64_t segment_bytes;     /* one segment; 0: 16 MiB; >= 64 KiB */
    int discard_local;          /* 1: what this side wrote by itself, as a
                                   primary or promoted, is to be lost: it
                                   follows a primary of any branch again */
    int look;                   /* 1: only status and checkpoints are wanted:
                                   nothing is changed, no disk opened */
    uint32_t stale_ms;          /* a link lost longer ago: promote must name
                                   a checkpoint; 0: 60000; UINT32_MAX: never */
    const char *psk_file;       /* as in struct remus_primary_config; read by
                                   remus_backup_serve() */
    const char *psk_identity;   /* the only one that is let in; NULL: the
                                   resource's name */
};

/*
 * Open a backup: lock its state directory and disks, create or recover its
 * journal.  Blocks for disk I/O.  Nothing listens and nothing is applied
 * until remus_backup_serve().
 * Errors: -EBUSY another process has the directory; -EINVAL configuration;
 * -EIO, -EBADMSG unreadable state; -ENOSPC no room for the journal.
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
 * names what is); -EIO the journal failed.
 */
REMUS_API int remus_backup_commit(remus_backup *b, uint64_t epoch);

/* How a promote names its checkpoint. */
enum remus_promote_by {
    REMUS_PROMOTE_DEFAULT,  /* last committed; last prepared if the resource
                               is driven through ioctls */
    REMUS_PROMOTE_EPOCH,
    REMUS_PROMOTE_TAG
};

#define REMUS_ASK_KEEP 1 /* a checkpoint that is there will be named: the
                            primary shall not take a last one */
#define REMUS_ASK_TURN 2 /* the primary shall become the backup: its status
                            says `turns` then */

/*
 * Ask the primary to give way, as remus_backup_promote() does; for who has
 * something to do between its answer and the promote (fence it, if there is
 * none).  `flags`: REMUS_ASK_*.  Blocks until it answers or is lost: a link
 * that went down, or a primary that has not come since remus_backup_serve(),
 * counts as lost after `loss_ms`, one that ended on purpose at once.
 * Returns 1: it gave way, fenced for good (or a promote was begun before);
 * 0: no primary is connected, or it fell silent.  Errors: -EBUSY it said no.
 */
REMUS_API int remus_backup_ask(remus_backup *b, int flags);

/*
 * Fail over: make the volumes exactly what the primary's were at one
 * checkpoint and give them free.  Blocks for disk I/O.  Durable at every
 * step: one that is interrupted can be finished, at the same checkpoint
 * only.  A promoted backup refuses every primary, and a new generation has
 * begun: the old one can never write here again.
 * A connected primary is asked: it gives way, after a last checkpoint if none
 * is named, if nobody writes there (a file of a volume's node that is open
 * for writing, remus_primary_writer_opens) and no toolstack's session is open;
 * else this is refused.  `force` 1 does not ask, and cuts
 * the primary off: what it writes from then on is lost, or split brain.
 * Result: 0 and *epoch (the checkpoint it is at now).
 * Errors: -EINVAL no such checkpoint, tag not unique, Inconsistent (the text
 * names what can be had); -EBUSY the primary did not give way; -ESTALE no
 * checkpoint is named and the link was lost longer than `stale_ms` ago; -EIO.
 */
REMUS_API int remus_backup_promote(remus_backup *b, int by, uint64_t epoch,
                                   const void *tag, size_t tag_len,
                                   int force, uint64_t *promoted);

/*
 * To which checkpoint would that promote go?  For who has something to do
 * before it that can't be undone (stop a primary, fence it).  Never blocks on
 * I/O.  Result: 0 and *epoch.  Errors: as remus_backup_promote(), but for
 * -EBUSY and -EIO.
 */
REMUS_API int remus_backup_target(remus_backup *b, int by, uint64_t epoch,
                                  const void *tag, size_t tag_len,
                                  uint64_t *target);

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

/* Why a connection was refused. */
enum remus_refused {
    REMUS_REFUSED_SILENT, /* did not prove itself or say hello in time */
    REMUS_REFUSED_CLOSED, /* went away by itself before that */
    REMUS_REFUSED_TLS,    /* no TLS 1.3 with a key, or a damaged or replayed
                             handshake */
    REMUS_REFUSED_KEY,    /* wrong key, or unknown identity */
    REMUS_REFUSED_CROWD,  /* made room for others: too many at once */
    REMUS_REFUSED_PEER,   /* another user, on a Unix socket */
    REMUS_REFUSED_HELLO,  /* proven, but its hello is wrong */
    REMUS_REFUSED_BUSY    /* proven, but no primary is taken now */
};

/* The name of an enum remus_refused ("silent", "key", ...); "?" for any
 * other. */
REMUS_API const char *remus_refused_name(int cause);

/* The connections from one source that were refused.  Times are
 * CLOCK_MONOTONIC. */
struct remus_refusal {
    char source[64];            /* "192.0.2.7", "2001:db8::/64", "uid 1000",
                                   "others" */
    int cause;                  /* of the last one: enum remus_refused */
    uint64_t count;
    uint64_t first_ns, last_ns;
    char text[192];             /* about the last one */
};

/*
 * The sources whose connections were refused since serve, for a log: each
 * new entry is news.  There are at most REMUS_REFUSALS_MAX: an entry that
 * was quiet for ten minutes makes room, and beyond that they are counted
 * under "others".  Returns how many there are; writes at most `cap`.  Never
 * blocks.
 */
REMUS_API int remus_backup_refusals(remus_backup *b,
                                    struct remus_refusal *out,
                                    unsigned int cap);

/*
 * Stop serving, apply what is committed, sync, free the handle.  NULL is
 * allowed.
 */
REMUS_API void remus_backup_close(remus_backup *b);

/* ---- FUSE nodes of a primary ----------------------------------------- */

typedef struct remus_export remus_export;

/* Owner and mode of a volume's node. */
struct remus_node {
    uint32_t uid;
    uint32_t gid;
    uint32_t mode;  /* permission bits; 0: 0600 */
};

/*
 * Mount a directory at `mountpoint` (existing, empty) that holds one file a
 * volume, `status` and `status.json`.  The files answer the checkpoint
 * ioctls 20, 30 and 40.  `nodes`: one per volume, or NULL for root 0600.
 * Works until remus_export_close() or until somebody unmounts it.
 * Errors: -ENODEV no /dev/fuse; -EPERM; -ENOTDIR; -EBUSY; others of mount.
 */
REMUS_API int remus_export_open(remus_primary *p, const char *mountpoint,
                                const struct remus_node *nodes,
                                remus_export **out);

/*
 * The same on the backup's host, before it is promoted: the nodes have their
 * place, size and mode; reading gives the applied state (it waits for an apply
 * under way); the checkpoint ioctls fail with EPROTO.  Opening one for writing
 * fails with EROFS, or, with `auto_promote` 1, waits, without holding a worker
 * up, until the owner of the export calls turn or refuse.  So a toolstack that
 * just opens its disk on the backup's host works unchanged.
 * Errors: as remus_export_open().
 */
REMUS_API int remus_standby_open(remus_backup *b, const char *mountpoint,
                                 const struct remus_node *nodes,
                                 int auto_promote, remus_export **out);
/* 1: somebody waits with an open for writing.  Never blocks. */
REMUS_API int remus_standby_wanted(remus_export *e);
/* Use the backup no more, so that it can be closed: until the turn, reading
 * gives what its images hold.  Waits for reads under way. */
REMUS_API void remus_standby_release(remus_export *e);
/*
 * From here on `p`, the primary that took the promoted backup over, serves the
 * nodes; who waits is let in.  `p` must outlive the export.  Never blocks.
 * Errors: -EINVAL it has other volumes.
 */
REMUS_API int remus_standby_turn(remus_export *e, remus_primary *p);
/* There is no promote: who waits gets `err` (an errno).  Never blocks. */
REMUS_API void remus_standby_refuse(remus_export *e, int err);

/* 1 while mounted, 0 once it was unmounted from outside.  Never blocks. */
REMUS_API int remus_export_alive(remus_export *e);

/*
 * Unmount, wait for requests under way, stop the threads, free the handle.
 * If somebody still holds a file open the mount is detached (the open files
 * then fail with ENOTCONN).  Call it before remus_primary_close().
 */
REMUS_API void remus_export_close(remus_export *e);

/* ---- Epoch statistics ------------------------------------------------- */

/*
 * The epochs of a device, of a resource or of a group of devices: the last
 * REMUS_EPOCHS_RING of them one by one, and histograms of all of them.  One
 * writer; any number of readers, in other threads or (with a file) in other
 * processes, who never slow the writer down.
 */
typedef struct remus_epochs remus_epochs;

#define REMUS_EPOCHS_RING 4096    /* epochs that are kept one by one */
#define REMUS_EPOCHS_BUCKETS 3776 /* buckets of a histogram, at most */

/*
 * One epoch.  Times are nanoseconds.  `epoch` must never fall from one
 * sample to the next.
 */
struct remus_epoch_sample {
    uint64_t epoch;      /* its number (of a group: a running number) */
    uint64_t start_ns;   /* CLOCK_MONOTONIC when postsuspend was called */
    uint64_t barrier_ns; /* time that postsuspend took */
    uint64_t ack_ns;     /* from the end of postsuspend to the ack, or to
                            the failure */
    uint64_t commit_ns;  /* time that commit took; 0: not committed (yet),
                            or only by the commit of a later epoch */
    uint64_t bytes;      /* written and zeroed in the epoch */
    uint64_t extents;    /* separate ranges that it holds once overwritten
                            data is left out; 0: unknown */
    uint64_t coalesced;  /* of `bytes`, those overwritten within the epoch
                            before they travelled to a disk; meant only if
                            `extents` is known */
    int32_t result;      /* 0, or -errno of the first phase that failed */
    uint32_t flags;      /* reserved: 0 */
};

/*
 * What a histogram is kept of.  Times are nanoseconds.  Epochs that failed
 * are in the ring and counted, but in no series: the time until a loss is
 * noticed is not the time of an ack.
 */
enum remus_epochs_series {
    REMUS_SERIES_BARRIER,   /* barrier_ns */
    REMUS_SERIES_ACK,       /* ack_ns */
    REMUS_SERIES_COMMIT,    /* commit_ns of committed epochs */
    REMUS_SERIES_PAUSE,     /* barrier_ns + ack_ns */
    REMUS_SERIES_BYTES,     /* bytes */
    REMUS_SERIES_EXTENTS,   /* extents, where known */
    REMUS_SERIES_COALESCED, /* coalesced, where extents are known */
    REMUS_SERIES_COUNT      /* how many series there are */
};

/*
 * One series in numbers; all 0 if count is.  min, max, mean are exact (the
 * mean is rounded down).  A quantile is that of the sorted list of all
 * values (the smallest value that so many of them do not exceed), never less
 * and at most 1/64 more.
 */
struct remus_series_summary {
    uint64_t count;
    uint64_t min;
    uint64_t max;
    uint64_t mean;
    uint64_t p50;
    uint64_t p90;
    uint64_t p99;
    uint64_t p999;
    uint64_t total; /* sum of all values; UINT64_MAX if it is larger */
};

/* One bucket of a histogram: values from `low` to `high`, both included. */
struct remus_epochs_bucket {
    uint64_t low;
    uint64_t high;
    uint64_t count; /* never 0 */
};

/* Where statistics come from, at one moment. */
struct remus_epochs_info {
    char name[64];       /* as given to create */
    uint64_t added;      /* epochs ever added: the position after the newest */
    uint64_t failed;     /* of them, those with a result other than 0 */
    uint64_t created_ns; /* CLOCK_MONOTONIC at creation */
    int64_t pid;         /* of the writer, as it sees itself */
    int closed;          /* 1: the writer closed them: nothing follows */
    int writing;         /* 1: the writer lives and has not closed them */
    int this_boot;       /* 1: created since this host was started, so its
                            CLOCK_MONOTONIC times can be compared */
};

/*
 * Create statistics, as their one writer.  `path` NULL: anonymous memory,
 * for readers in this process.  Else the name under which other processes
 * find them (0600, 532 KiB): what had it is replaced at once, and readers of
 * that keep what they have.  On a file system in memory (/run, /dev/shm) a
 * file is made.  Elsewhere, where a store into a file could wait for its
 * disk, `path` becomes a symbolic link to memory of this process, and a file
 * with the final state at close; if the process dies before, only who had
 * attached still has them.
 * `name`: of the device, resource or group, at most REMUS_NAME_MAX bytes.
 * Blocks for file I/O.  Errors: -EINVAL name; -ENOSPC; others of open(2),
 * rename(2), mmap(2).
 */
REMUS_API int remus_epochs_create(const char *path, const char *name,
                                  remus_epochs **out);

/*
 * Read the statistics of another process, or the file of one that has
 * ended.  The handle stays with what it found if something newer takes its
 * place: attach again when remus_epochs_info() says that nobody writes any
 * more.  Blocks for file I/O.  Errors: -EBADMSG not such a file, of another
 * version, or damaged (the text says which); -ENOENT no file, or its writer
 * died and took them along; others of open(2), mmap(2).
 */
REMUS_API int remus_epochs_attach(const char *path, remus_epochs **out);

/*
 * Add one epoch.  One thread at a time.  A few dozen stores: no system call,
 * no allocation, no lock, no loop.  A no-op on an attached handle.
 */
REMUS_API void remus_epochs_add(remus_epochs *e,
                                const struct remus_epoch_sample *s);

/*
 * The epoch was committed, and that took `commit_ns` (0 counts as 1).
 * Called by the writer, at any time after remus_epochs_add(); looks for its
 * newest sample from the newest of all on, through the ring at most.  A
 * no-op if it is not in the ring any more, or has a commit already.
 */
REMUS_API void remus_epochs_committed(remus_epochs *e, uint64_t epoch,
                                      uint64_t commit_ns);

/*
 * The samples from position `after` on, oldest first: 0 at first, then what
 * *next was.  Every sample is whole.  Returns how many were written to
 * `out`, at most `cap`.  *next: the position after the last of them; *lost:
 * how many since `after` were skipped because newer ones took their place.
 * A position beyond the newest (UINT64_MAX) yields none, and *next is where
 * new ones will appear.  From any thread; never waits, whatever the writer
 * does, also if it died half-way through a sample.
 */
REMUS_API int remus_epochs_read(remus_epochs *e, uint64_t after,
                                struct remus_epoch_sample *out,
                                unsigned int cap, uint64_t *next,
                                uint64_t *lost);

/*
 * One series (enum remus_epochs_series) since creation, at one moment.
 * (Beside a writer that adds epochs faster than a series can be read, some
 * microseconds, or that died while it changed one, the numbers can differ
 * by the epochs of that time.)  From any thread; never waits.
 * Errors: -EINVAL no such series.
 */
REMUS_API int remus_epochs_summary(remus_epochs *e, int series,
                                   struct remus_series_summary *out);

/*
 * The buckets of a series that are not empty, lowest first.  Returns how
 * many there are; writes at most `cap` of them.  Threads and errors as
 * remus_epochs_summary().
 */
REMUS_API int remus_epochs_histogram(remus_epochs *e, int series,
                                     struct remus_epochs_bucket *out,
                                     unsigned int cap);

/*
 * The backup has told what the epoch came to: as remus_epochs_committed()
 * for `extents` and `coalesced` (extents 0: a no-op).
 */
REMUS_API void remus_epochs_measured(remus_epochs *e, uint64_t epoch,
                                     uint64_t extents, uint64_t coalesced);

/*
 * Whose statistics these are, and whether more will come.  Any thread.
 * (`writing` asks for the writer's lock on the file, which a child that it
 * forked without an exec keeps.)
 */
REMUS_API int remus_epochs_info(remus_epochs *e,
                                struct remus_epochs_info *out);

/*
 * The writer says that nothing follows; a file stays.  A reader lets go.
 * Frees the handle.  Blocks for file I/O.  NULL is allowed.
 */
REMUS_API void remus_epochs_close(remus_epochs *e);

/* ---- Groups: the devices of one guest ---------------------------------- */

#define REMUS_GROUP_MAX 64        /* devices of one group */

typedef struct remus_group remus_group;

/* The phases of a checkpoint, as in struct remus_device_result. */
enum remus_phase {
    REMUS_PHASE_NONE,
    REMUS_PHASE_POSTSUSPEND,
    REMUS_PHASE_PRERESUME,
    REMUS_PHASE_COMMIT
};

/*
 * A device of another kind (a NIC, a test).  A phase that is NULL is a
 * no-op.  `postsuspend` must not block; it returns 0 or 1 (empty) and its
 * number in *epoch, or -errno.  `preresume` returns 0 once `epoch` is safe;
 * it is called in a thread of the group or in the caller's, and may block
 * until `timeout_ms` (negative: no limit) or until `cancel` is called, which
 * comes from another thread, perhaps a moment before the call that it means.
 * `commit`: `epoch` is complete.
 */
struct remus_device_ops {
    int (*postsuspend)(void *opaque, const void *tag, size_t tag_len,
                       uint64_t *epoch);
    int (*preresume)(void *opaque, uint64_t epoch, int64_t timeout_ms);
    int (*commit)(void *opaque, uint64_t epoch);
    void (*cancel)(void *opaque);
};

/* What one device of a group answered. */
struct remus_device_result {
    int phase;                /* enum remus_phase: the newest on it */
    int error;                /* -errno of that phase; 0 it went well */
    int empty;                /* 1: the newest epoch was empty */
    int acked;                /* 1: the newest epoch is safe */
    uint64_t epoch;           /* number of the newest epoch; 0 none */
    uint64_t sent_ns;         /* when its barrier had been sent */
    uint64_t ack_ns;          /* when its ack was known; 0 not yet */
    uint64_t failed_ns;       /* when `error` happened */
    uint64_t failed_epoch;    /* which epoch it is about; 0: postsuspend
                                 failed, the epoch has no number */
    char name[64];
    char text[256];           /* the words for `error` */
};

/*
 * A group takes the devices of one guest through the phases together, as
 * libxl's checkpoint device layer does, without a fork: postsuspend on all,
 * then one wait for all acks.  Add the devices, then start it.
 *
 * Phases come in order: postsuspend, preresume, commit, again and again;
 * postsuspend of n+1 may precede commit of n, not the end of preresume of n.
 * One at a time: a phase that another thread is in, or that is out of order,
 * changes nothing (-EINPROGRESS, -EBADFD).  A phase runs on every device,
 * whatever the others answer; it returns 0, or -errno of the device that
 * failed first, and remus_group_results() tells of every one.
 *
 * The group does not own its devices: close it first.
 */
REMUS_API int remus_group_open(const char *name, remus_group **out);

/* Add a device (not after the start).  Returns its index.  Errors: -EBADFD
 * started; -ENOSPC REMUS_GROUP_MAX; -EINVAL name; -ENOMEM. */
REMUS_API int remus_group_add_drbd(remus_group *g, const char *name,
                                   remus_drbd *dev);
REMUS_API int remus_group_add_primary(remus_group *g, const char *name,
                                      remus_primary *p);
REMUS_API int remus_group_add_device(remus_group *g, const char *name,
                                     const struct remus_device_ops *ops,
                                     void *opaque);

/*
 * Keep the statistics of the group's epochs in a file, from which other
 * processes read them (remus_epochs_attach); without this they are kept in
 * memory.  Before start.  Errors: -EBADFD; as remus_epochs_create().
 */
REMUS_API int remus_group_record(remus_group *g, const char *path);

/*
 * The statistics of the group (`device` -1; an epoch's number is then a
 * running one, from 1) or of one device; those of a primary are its own
 * (remus_primary_epochs).  An epoch is added when preresume has succeeded, or
 * when the next postsuspend shows that it never did.  Bytes, extents and
 * coalesced bytes are those of the group's primaries.  The handle is the
 * group's (the primary's): only read from it, and not after close.  NULL:
 * before start, or no such device.
 */
REMUS_API remus_epochs *remus_group_statistics(remus_group *g, int device);

/*
 * Make the threads that will wait: none for a single device without
 * `begins`, else one for each device that can only be waited for in a call
 * (DRBD, devices of your own) less the one that the caller takes itself.
 * `begins` 1: remus_group_preresume_begin() will be used, so all need one.
 * The threads block all signals.  Errors: -EBADFD started; -EAGAIN no thread.
 */
REMUS_API int remus_group_start(remus_group *g, int begins);

/*
 * Close the epoch on every device.  Never blocks on a disk or the network.
 * `tag`: NULL/0, or up to REMUS_TAG_MAX bytes; for a DRBD device the text of
 * a number from 1 to 2^63-1.  If one fails, the epoch can't be waited for:
 * postsuspend again.  A kernel's DRBD device that had its barrier by then
 * answers -ESTALE until it was reconnected and opened again.
 *
 * After a preresume that failed it is refused, like a phase out of order,
 * while the barrier before can still be waited for: a call is still inside a
 * driver, or a kernel's DRBD device has no ack.
 */
REMUS_API int remus_group_postsuspend(remus_group *g, const void *tag,
                                      size_t tag_len);

/*
 * Return only when the epoch is safe on every device.  Blocks at most
 * `timeout_ms`, plus the kernel's own limit where the calling thread itself
 * is inside a DRBD wait.  A single device is waited for in the calling
 * thread; with more, a parked thread is woken, which wakes the next.  After
 * a failure it may be called again: it waits for those without an ack.
 */
REMUS_API int remus_group_preresume(remus_group *g, int64_t timeout_ms);

/*
 * The same for event loops.  begin: never blocks; the result comes from
 * finish.  fd: becomes readable when every device has answered; the same
 * descriptor for the life of the group, which owns it; a program may only
 * poll it.  finish: -EAGAIN as long as there is no result and the deadline
 * of begin is not over; after it, devices that are still inside the driver
 * count as timed out and are waited for further by the next preresume.
 */
REMUS_API int remus_group_preresume_begin(remus_group *g,
                                          int64_t timeout_ms);
REMUS_API int remus_group_fd(remus_group *g);
REMUS_API int remus_group_preresume_finish(remus_group *g);

/*
 * Say on every device that the newest epoch that was safe on all of them is
 * complete.  Never blocks.  Idempotent.  Refused (-EBADFD) while a device
 * that can't name an epoch (DRBD, one of your own) has acked one that another
 * has not.  The phases without a group (NULL): -EBADFD.
 */
REMUS_API int remus_group_commit(remus_group *g);

/*
 * End the wait under way, in another thread or begun: devices without an ack
 * answer -ECANCELED, and preresume may be called again.  Safe from any
 * thread.  Prompt: it blocks at most 0.1 s, also if the process that serves
 * a node hangs, and as long as cancel of a device of your own does; only a
 * caller that is itself inside the kernel's driver, or in a node that hangs,
 * stays there until the driver's limit or the signal of
 * remus_drbd_cancel_signal().  0; 1 nothing was under way.
 */
REMUS_API int remus_group_cancel(remus_group *g);

/* What each device answered, in the order of adding; returns how many there
 * are and writes at most `cap`.  Never blocks; any thread. */
REMUS_API int remus_group_results(remus_group *g,
                                  struct remus_device_result *out,
                                  unsigned int cap);

/* The number of each device's newest epoch (0: its postsuspend failed), in
 * the order of adding: an array that lives as long as the group and changes
 * in postsuspend only. */
REMUS_API const uint64_t *remus_group_epochs(remus_group *g);

/*
 * End everything: cancel, and let no call reach a device any more.  When it
 * returns, primaries and devices of your own are no longer used; a DRBD
 * device whose wait is still inside the kernel's driver is kept open by the
 * thread in it, which ends by itself.  Later calls answer -EBADFD.  Blocks
 * as remus_group_cancel() does, and until preresume of a device of your own
 * has heard its cancel.  Any thread, but not from a device's own phase;
 * idempotent.
 */
REMUS_API void remus_group_stop(remus_group *g);

/* remus_group_stop(), and free the handle.  NULL is allowed. */
REMUS_API void remus_group_close(remus_group *g);

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
