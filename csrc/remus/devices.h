/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* remus/devices.h - disks as a toolstack meets them: DRBD devices, the
   FUSE nodes of a replica, groups of devices.
   The conventions stand in remus.h. */
#ifndef REMUS_DEVICES_H
#define REMUS_DEVICES_H

#include "remus/common.h"
#include "remus/replica.h"
#include "remus/statistics.h"

#ifdef __cplusplus
extern "C" {
#endif

/* cffi:begin */

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
 * Wait until the first barrier of a session can be sent, at most
 * `timeout_ms`.  One of our nodes is ready at once.  A kernel's driver has one
 * ack bit and no numbers: the late ack of a barrier of an earlier handle, also
 * of a process that was killed, would count for a new one.  So it is ready
 * when /proc/drbd has shown the minor Connected, Primary/Primary and with
 * `pe:` 0.  (Outside Primary/Primary the driver says 1 of an epoch that the
 * backup lacks, and never acks another.)  Call it with the guest running.
 * Errors: what is missing at the end: -EPROTO not connected; -ENOTCONN not
 * Primary/Primary; -ETIMEDOUT an old barrier is on its way; -EINVAL another
 * protocol; -ENODATA /proc/drbd does not tell; -ECANCELED; -EBUSY.
 */
REMUS_API int remus_drbd_wait_ready(remus_drbd *dev, int64_t timeout_ms);

/*
 * Send a checkpoint barrier (ioctl 20).  `tag`: 0, or a number that travels
 * in the barrier as its decimal text (our nodes only; the kernel ignores
 * it).  Never blocks on the network, but for the first one of a handle on a
 * kernel device, and the first after a failure: unless
 * remus_drbd_wait_ready() did, it waits for an old barrier's acks, at most
 * 2 s (with the guest suspended that took 0.8 s at most).
 * Returns 0: a barrier is on its way, an ack must be waited for; 1: the
 * epoch was empty.  A 1 still counts as a barrier whose ack
 * remus_drbd_preresume() waits for if the device is one of our nodes (they
 * always send it); on a kernel device nothing was sent, and the backup has
 * everything.
 * Errors: -EPROTO no backup connected (StandAlone, too, which the driver
 * calls EINVAL); -ENOTCONN, -ETIMEDOUT, -ENODATA as remus_drbd_wait_ready();
 * -EINVAL not protocol D; -ENOTTY the driver has no checkpoint ioctls at all;
 * -EBUSY a barrier is outstanding whose ack may come (phases out of order);
 * -ESTALE a wait ended with the kernel's ENOMEM: open the device again.  An
 * error never counts as sent: preresume then gives it, too (mends libxl).
 */
REMUS_API int remus_drbd_postsuspend(remus_drbd *dev, uint64_t tag);

/*
 * Wait until the backup has the barrier (ioctl 30), at most `timeout_ms`.
 * Blocks, in the calling thread, with all signals blocked for that time (a
 * signal would look like a lost backup).  The kernel's own limit is 2 x
 * ping-timeout and ends in EPROTO though the backup may be well: the ioctl
 * is repeated until our own deadline, unless it failed at once (< 5 ms,
 * twice) or /proc/drbd says that the connection is gone: that is a loss.  One
 * kernel call may outlast the deadline by its own limit; a node of ours keeps
 * to it.
 * Returns 0: safe on the backup, or no postsuspend came before.
 * Errors: -EPROTO lost, and again until the next barrier; -ETIMEDOUT no ack
 * in time, -ECANCELED: may be called again; -ETIME (kernel) no ack can come
 * any more, for /proc/drbd shows nothing on its way or the roles are not
 * Primary/Primary: the epoch's fate is unknown, and the next postsuspend may
 * follow.  The kernel's ENOMEM is "acked, but the next epoch could not be
 * allocated": the checkpoint is safe, the device is not usable further (0
 * now, -ESTALE at the next postsuspend).
 */
REMUS_API int remus_drbd_preresume(remus_drbd *dev, int64_t timeout_ms);

/*
 * End the preresume or wait_ready that another thread is in; it returns
 * -ECANCELED (or 0, if the ack came meanwhile).  0 at once if there is none.  On one of our
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

/* ---- FUSE nodes of a primary ----------------------------------------- */

typedef struct remus_export remus_export;

/* Owner and mode of a volume's node. */
struct remus_node {
    uint32_t struct_size; /* sizeof of this struct, see remus.h */
    uint32_t uid;
    uint32_t gid;
    uint32_t mode; /* permission bits; 0: 0600 */
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
 * The same for a mount that outlives this process: who else has its two
 * descriptors can open it again in another process once this one is wholly
 * gone, and requests that were under way are finished there.  No open file
 * fails; a checkpoint whose ack nobody was told of counts as failed.
 * There the primary is opened with `continues` 1: until the nodes are its own
 * they count as open for writing, and it relies on it that nobody else had
 * the disks meanwhile.
 *
 * remus_keep_open() makes the descriptors for so many volumes; hand them on
 * before anything is mounted.  They stay the caller's, also on an error: close both, wherever
 * they are, before remus_export_close(), or whoever has a file open waits for
 * ever.  Blocks until writes that were under way are on the local disk.
 * Errors: as remus_export_open(); -EPERM not root; -EINVAL the memory is of
 * another version or of other volumes; -ENOTCONN it was unmounted meanwhile.
 */
REMUS_API int remus_keep_open(unsigned int volumes, int *memory, int *device);
REMUS_API int remus_export_open_kept(remus_primary *p, const char *mountpoint,
                                     const struct remus_node *nodes,
                                     int memory, int device,
                                     remus_export **out);

/*
 * The same on the backup's host, before it is promoted: the nodes have their
 * place, size and mode; reading gives the applied state (it waits for an apply
 * under way); the checkpoint ioctls fail with EPROTO.  Opening one for writing
 * fails with EROFS, or, with `auto_promote` 1, waits, without holding a worker
 * up, until the owner of the export calls switch or refuse.  So a toolstack that
 * just opens its disk on the backup's host works unchanged.
 * Errors: as remus_export_open().
 */
REMUS_API int remus_standby_open(remus_backup *b, const char *mountpoint,
                                 const struct remus_node *nodes,
                                 int auto_promote, remus_export **out);
/*
 * The same for a mount that outlives this process, as
 * remus_export_open_kept().  The process that goes on with it opens the side
 * that its host is then: what a standby's process left can be a primary's, and
 * the other way round.  Where there is no primary, what a primary's process
 * left open for writing can't be written to.
 */
REMUS_API int remus_standby_open_kept(remus_backup *b, const char *mountpoint,
                                      const struct remus_node *nodes,
                                      int auto_promote, int memory, int device,
                                      remus_export **out);
/* 1: somebody waits with an open for writing.  Never blocks. */
REMUS_API int remus_standby_wanted(remus_export *e);
/* Let go of the backup, so that it can be closed: until the switch, reading
 * gives what its images hold.  Waits for reads under way. */
REMUS_API void remus_standby_release(remus_export *e);
/*
 * From here on `p`, the primary that took the promoted backup over, serves the
 * nodes; who waits is let in.  `p` must outlive the export.  Never blocks.
 * Errors: -EINVAL it has other volumes.
 */
REMUS_API int remus_standby_switch(remus_export *e, remus_primary *p);
/* There is no promote: who waits gets `err` (an errno).  Never blocks. */
REMUS_API void remus_standby_refuse(remus_export *e, int err);

/*
 * Where root mounts, the directory below the mount has mode 0 and is immutable
 * (where its file system has that), so that nobody makes a file in it while no
 * disk is served.  So it stays if this process dies; remus_export_close()
 * restores what was, unless this was called.  Never blocks.
 */
REMUS_API void remus_export_stay_guarded(remus_export *e);

/* 1 while mounted, 0 once it was unmounted from outside.  Never blocks. */
REMUS_API int remus_export_alive(remus_export *e);

/*
 * Unmount, wait for requests under way, stop the threads, free the handle.
 * If somebody still holds a file open the mount is detached (the open files
 * then fail with ENOTCONN).  Call it before remus_primary_close().
 */
REMUS_API void remus_export_close(remus_export *e);

/* ---- Groups: the devices of one guest ---------------------------------- */

#define REMUS_GROUP_MAX 64 /* devices of one group */

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
    uint32_t struct_size; /* sizeof of this struct, see remus.h */
    int (*postsuspend)(void *opaque, const void *tag, size_t tag_len,
                       uint64_t *epoch);
    int (*preresume)(void *opaque, uint64_t epoch, int64_t timeout_ms);
    int (*commit)(void *opaque, uint64_t epoch);
    void (*cancel)(void *opaque);
};

/* What one device of a group answered. */
struct remus_device_result {
    uint32_t struct_size;   /* sizeof of this struct, see remus.h */
    enum remus_phase phase; /* the newest on it */
    int error;              /* -errno of that phase; 0 it went well */
    int empty;              /* 1: the newest epoch was empty */
    int acked;              /* 1: the newest epoch is safe */
    uint64_t epoch;         /* number of the newest epoch; 0 none */
    uint64_t sent_ns;       /* when its barrier had been sent */
    uint64_t ack_ns;        /* when its ack was known; 0 not yet */
    uint64_t failed_ns;     /* when `error` happened */
    uint64_t failed_epoch;  /* which epoch it is about; 0: postsuspend
                                 failed, the epoch has no number */
    char name[64];
    char text[256]; /* the words for `error` */
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
 * postsuspend again.  (A kernel's DRBD device then waits first until nothing
 * old is on its way, see remus_drbd_postsuspend().)
 *
 * After a preresume that failed it is refused, like a phase out of order,
 * while the barrier before can still be waited for: a call is still inside a
 * driver, or a kernel's DRBD device has no ack that may yet come.
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
REMUS_API int remus_group_preresume_begin(remus_group *g, int64_t timeout_ms);
REMUS_API int remus_group_fd(remus_group *g);
REMUS_API int remus_group_preresume_finish(remus_group *g);

/*
 * Say on every device that the newest epoch that was safe on all of them is
 * complete.  Never blocks.  Idempotent.  Refused (-EBADFD) while a device
 * that can't name an epoch (DRBD, one of your own) has acked one that another
 * has not.
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

/* cffi:end */

#ifdef __cplusplus
}
#endif
#endif
