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
    REMUS_STATE_FAILED        /* a local error ended it; see the reason */
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
    uint64_t bytes_coalesced;   /* backup: bytes overwritten before apply */
    uint64_t bytes_applied;     /* backup: bytes written into its disks */
    uint64_t records;           /* stream records sent / received */
    uint64_t queue_bytes;       /* primary: bytes waiting to be sent */
    uint64_t queue_limit;       /* primary: bound on queue_bytes now */
    uint64_t journal_bytes;     /* backup: bytes of segments in use */
    uint64_t journal_limit;     /* backup: bytes of all segments */
    uint64_t parked_writes;     /* primary: writes waiting for room now */
    uint64_t stalls;            /* primary: writes that ever had to wait */
    uint64_t resync_done;       /* bytes of the first copy that are sent */
    uint64_t resync_total;      /* bytes of the first copy */
    uint64_t link_changed_ns;   /* when `connected` last changed */
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
 * deadline by its own limit.
 * Returns 0: safe on the backup, or nothing was outstanding.
 * Errors: -EPROTO lost; -ETIMEDOUT no ack in time, may be called again;
 * -ENOMEM is the kernel's "acked, but the next epoch could not be
 * allocated": the checkpoint is safe, the device is not usable further
 * (reported as 0 now, and -ESTALE at the next postsuspend).
 */
REMUS_API int remus_drbd_preresume(remus_drbd *dev, int64_t timeout_ms);

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
    uint32_t connect_ms;        /* pause between first connects; 0: 250 */
    const char *psk_file;       /* TLS 1.3 with a key of this file, which
                                   psktool wrote (0600, ours or root's);
                                   NULL: no TLS */
    const char *psk_identity;   /* whose key; NULL: the resource's name */
};

/*
 * Open the local disks of a resource, exclusively, and start its engine,
 * which connects to the backup (again and again until it is there), copies
 * the disks, and takes the first checkpoint.  Reads and writes work at once.
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
 * -ETIMEDOUT; -EPROTO replication ended (the text says why).
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
 * Errors: -EINVAL not acked yet, or no such barrier; -EPROTO backup lost.
 */
REMUS_API int remus_primary_commit(remus_primary *p, uint64_t epoch);

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

/*
 * Fail over: make the volumes exactly what the primary's were at one
 * checkpoint and give them free.  Blocks for disk I/O.  Durable at every
 * step: one that is interrupted can be finished, at the same checkpoint
 * only.  A promoted backup refuses every primary.
 * `force` 0 refuses while a primary is connected.
 * Result: 0 and *epoch (the checkpoint it is at now).
 * Errors: -EINVAL no such checkpoint, tag not unique, Inconsistent (the text
 * names what can be had); -EBUSY primary connected; -EIO.
 */
REMUS_API int remus_backup_promote(remus_backup *b, int by, uint64_t epoch,
                                   const void *tag, size_t tag_len,
                                   int force, uint64_t *promoted);

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

/* 1 while mounted, 0 once it was unmounted from outside.  Never blocks. */
REMUS_API int remus_export_alive(remus_export *e);

/*
 * Unmount, wait for requests under way, stop the threads, free the handle.
 * If somebody still holds a file open the mount is detached (the open files
 * then fail with ENOTCONN).  Call it before remus_primary_close().
 */
REMUS_API void remus_export_close(remus_export *e);

/* cffi:end */

#ifdef __cplusplus
}
#endif
#endif
