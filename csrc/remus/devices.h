/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* remus/devices.h - disks as a toolstack meets them: DRBD devices, the
   FUSE nodes of a replica, groups of devices.
   remus.h has the conventions. */
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

/*
 * The phases of libxl's device kind for DRBD (libxl_remus_disk_drbd.c), for a
 * device that answers the two ioctls of a protocol D module.  No call sends
 * another ioctl to a kernel's device: on that module every unknown ioctl is a
 * checkpoint.  Calls have no errors of their own, unless they say so.
 */

typedef struct remus_drbd remus_drbd;

/*
 * Open a device that answers the protocol D ioctls: a DRBD node, or a file of
 * our FUSE node.  O_RDONLY as libxl does, and O_CLOEXEC.  Blocks as long as
 * open(2) does.
 * Errors: -ENOENT/-ENXIO no such device; -EMEDIUMTYPE the DRBD device is
 * Secondary here; others of open(2).
 */
REMUS_API int remus_drbd_open(const char *path, remus_drbd **out);

/*
 * Block until the first barrier of a session can be sent, at most
 * `timeout_ms`.  Call it with the guest running.  One of our nodes is ready at
 * once.  A kernel's driver has one ack bit and no numbers: the late ack of an
 * earlier handle's barrier, even of a process that was killed, would count for
 * the new one.  So a kernel's device is ready once /proc/drbd has shown the
 * minor Connected, Primary/Primary and with `pe:` 0.  (Outside Primary/Primary
 * the driver reports an epoch that the backup lacks as empty, and never acks
 * another.)
 * Errors: what is missing at the end: -EPROTO not connected; -ENOTCONN not
 * Primary/Primary; -ETIMEDOUT an old barrier is on its way; -EINVAL another
 * protocol; -ENODATA /proc/drbd does not show it; -ECANCELED
 * remus_drbd_cancel(); -EBUSY another thread is in a phase.
 */
REMUS_API int remus_drbd_wait_ready(remus_drbd *dev, int64_t timeout_ms);

/*
 * Send a checkpoint barrier (ioctl 20).  `tag`: 0, or a number that travels in
 * the barrier as its decimal text (our nodes only; the kernel ignores it).
 * Never blocks on the network, with one exception: on a kernel's device the
 * first one of a handle, and the first one after a failure, waits for the acks
 * of old barriers unless remus_drbd_wait_ready() has done so, at most 2 s
 * (with the guest suspended it took 0.8 s at most).
 * Returns 0: a barrier is on its way, and its ack must be waited for; 1: the
 * epoch was empty.  Our nodes send the barrier of an empty epoch too, and
 * remus_drbd_preresume() waits for its ack; a kernel's device sends nothing
 * then, and the backup has everything.
 * Errors: -EPROTO no backup connected (StandAlone, too, which the driver calls
 * EINVAL); -ENOTCONN, -ETIMEDOUT, -ENODATA as remus_drbd_wait_ready(); -EINVAL
 * not protocol D; -ENOTTY the driver has no checkpoint ioctls at all; -EBUSY a
 * barrier is outstanding whose ack may come (phases out of order); -ESTALE a
 * wait ended with the kernel's ENOMEM: open the device again.  A barrier that
 * failed never counts as sent: preresume returns the same error (mends libxl,
 * which ignores it).
 */
REMUS_API int remus_drbd_postsuspend(remus_drbd *dev, uint64_t tag);

/*
 * Block until the backup has the barrier (ioctl 30), at most `timeout_ms`, in
 * the calling thread, whose signals are all blocked meanwhile (to libxl a
 * signal looks like a lost backup).  The driver's own limit is 2 x
 * ping-timeout; it ends in EPROTO although the backup may be well.  So the
 * ioctl is repeated until our own deadline, unless it failed at once (< 5 ms,
 * twice) or /proc/drbd says that the connection is gone: that is a loss.  One
 * call of the driver may outlast the deadline by the driver's limit; our nodes
 * keep to the deadline.
 * Returns 0: safe on the backup, or no postsuspend came before.
 * Errors: -EPROTO lost, and again until the next barrier; -ETIMEDOUT no ack in
 * time, -ECANCELED: may be called again; -ETIME (kernel) no ack can come any
 * more, because /proc/drbd shows nothing on its way or the roles are not
 * Primary/Primary: it is unknown whether the epoch is safe, and the next
 * postsuspend may follow.  The driver's ENOMEM means "acked, but the next
 * epoch could not be allocated": this checkpoint is safe (0), and the next
 * postsuspend fails with -ESTALE.
 */
REMUS_API int remus_drbd_preresume(remus_drbd *dev, int64_t timeout_ms);

/*
 * End the preresume or wait_ready that another thread is in; that call returns
 * -ECANCELED (or 0, if the ack came meanwhile).  Returns 0 at once if there is
 * none.  On one of our nodes it takes a few microseconds.  A wait inside the
 * DRBD driver ends only by a signal or by the driver's own limit of 2 x
 * ping-timeout; a signal is sent only if remus_drbd_cancel_signal() named one.
 * Blocks at most 0.1 s; on a node whose server hangs, as long as that hangs
 * (remus_group_cancel() does not).
 * Errors: -EINPROGRESS the wait is still in the driver, which will end it.
 */
REMUS_API int remus_drbd_cancel(remus_drbd *dev);

/*
 * Let remus_drbd_cancel() end a wait inside the kernel's driver by sending
 * `signal` to the waiting thread; 0 (the default): no signal.  The signal must
 * be the program's own, with a handler without SA_RESTART that does nothing.
 * It is the only one that is not blocked during a wait, so nobody else may
 * send it to the process: a stray one makes a wait fail early with -EPROTO.
 * Never blocks.
 * Errors: -EINVAL no such signal, or no handler that would end a call; -EBUSY
 * a preresume is under way.
 */
REMUS_API int remus_drbd_cancel_signal(remus_drbd *dev, int signal);

/*
 * How many barriers were sent through this handle, and whether the newest
 * closed an empty epoch (`empty` may be NULL).  Never blocks for long: a
 * postsuspend under way in another thread is waited for.
 */
REMUS_API uint64_t remus_drbd_barriers(remus_drbd *dev, int *empty);

/*
 * Commit the acked checkpoint (ioctl 40) on one of our FUSE nodes.  A no-op on
 * a block device: protocol D has no commit.  Never blocks on the network.
 * Errors: -EPROTO not connected; -EBUSY the ack is still outstanding.
 */
REMUS_API int remus_drbd_commit(remus_drbd *dev);

/* 1 if the device is a file of our FUSE node, else 0.  Never blocks. */
REMUS_API int remus_drbd_is_node(const remus_drbd *dev);

/* Close the device and free the handle.  NULL is allowed.  Blocks as long as
 * close(2) does. */
REMUS_API void remus_drbd_close(remus_drbd *dev);

/* ---- FUSE nodes of a primary ----------------------------------------- */

/*
 * The disks of a replica as files that answer the ioctls of protocol D, so
 * that libxl's Remus and whatever else drives such a device drives a replica
 * too. libfuse writes to stderr what it has to say (a mount that fails),
 * unless the program gives it a function (fuse_set_log_func of libfuse).  That
 * function is the whole process's; this library never sets or changes it.
 * Calls have no errors of their own, unless they say so.
 */

typedef struct remus_export remus_export;

/* Owner and mode of a volume's node. */
struct remus_node {
    uint32_t struct_size; /* sizeof of this struct, see remus.h */
    uint32_t uid;
    uint32_t gid;
    uint32_t mode; /* permission bits; 0: 0600 */
};

/*
 * Mount at `mountpoint` (an existing, empty directory) a directory with one
 * file for each volume, `status` and `status.json`.  The files answer the
 * checkpoint ioctls 20, 30 and 40.  `nodes`: one per volume, or NULL for root
 * 0600.  The mount lasts until remus_export_close(), or until somebody
 * unmounts it.  Blocks for the mount.
 * Errors: -ENODEV no /dev/fuse; -EPERM; -ENOTDIR; -EBUSY; others of mount(2).
 */
REMUS_API int remus_export_open(remus_primary *p, const char *mountpoint,
                                const struct remus_node *nodes,
                                remus_export **out);

/*
 * The same for a mount that outlives this process.  Another process that has
 * the mount's two descriptors can open it again once this process is wholly
 * gone, and finishes the requests that were under way.  No open file fails; a
 * checkpoint whose ack was not reported to anybody counts as failed, unless
 * the backup says that it has it.
 * That process opens the primary with `continues` 1.  Until the nodes are its
 * own they count as open for writing, and the backup is not connected to.
 * Nobody else may have had the disks meanwhile.
 *
 * remus_keep_open() makes the descriptors, `memory` and `device`, for the mount
 * of so many volumes; hand them on before anything is mounted.  They stay the
 * caller's, also on an error.  Close both, wherever they are, before
 * remus_export_close(); otherwise whoever has a file open waits for ever.
 * remus_export_open_kept() blocks until the writes that were under way are on
 * the local disk.
 * Errors: as remus_export_open(); -EPERM not root; -EINVAL the memory is of
 * another version or of other volumes; -ENOTCONN it was unmounted meanwhile.
 */
REMUS_API int remus_keep_open(unsigned int volumes, int *memory, int *device);
REMUS_API int remus_export_open_kept(remus_primary *p, const char *mountpoint,
                                     const struct remus_node *nodes,
                                     int memory, int device,
                                     remus_export **out);
/* Could that go on with this `memory`, for so many `volumes`?  A version whose
 * layout is another one can not: ask before the process that has it ends.
 * Never blocks.  Errors: -EINVAL no; the text says what differs. */
REMUS_API int remus_keep_check(unsigned int volumes, int memory);

/*
 * The same on the backup's host, before the promote.  The nodes have their
 * final place, size and mode.  Reading one gives the applied state, and waits
 * for an apply under way; the checkpoint ioctls fail with EPROTO.  Opening one
 * for writing fails with EROFS or, with `auto_promote` 1, waits until the
 * owner of the export calls switch or refuse; no worker waits with it.  So a
 * toolstack that just opens its disk on the backup's host, as xl does, works
 * unchanged.  Blocks for the mount.  Errors: as remus_export_open().
 */
REMUS_API int remus_standby_open(remus_backup *b, const char *mountpoint,
                                 const struct remus_node *nodes,
                                 int auto_promote, remus_export **out);
/*
 * The same, `auto_promote` too, for a mount that outlives this process;
 * `memory` and `device` are those of remus_keep_open().  The process that goes
 * on with it opens the side that this host is by then: a primary can go on
 * with a standby's mount, and a standby with a primary's.  Without a primary,
 * writes to a file that the primary's process left open fail with EROFS.
 * Blocks for the mount.
 * Errors: as remus_export_open_kept().
 */
REMUS_API int remus_standby_open_kept(remus_backup *b, const char *mountpoint,
                                      const struct remus_node *nodes,
                                      int auto_promote, int memory, int device,
                                      remus_export **out);
/* 1: an open for writing waits.  Never blocks. */
REMUS_API int remus_standby_wanted(remus_export *e);
/* Let go of the backup, so that it can be closed; until the switch, reading
 * gives what its images hold.  Blocks until reads under way are done. */
REMUS_API void remus_standby_release(remus_export *e);
/*
 * From here on `p`, the primary that took over from the promoted backup,
 * serves the nodes; opens that wait succeed.  `p` must outlive the export.
 * Never blocks.
 * Errors: -EINVAL it has other volumes.
 */
REMUS_API int remus_standby_switch(remus_export *e, remus_primary *p);
/* There is no promote: opens that wait fail with `err` (an errno).  Never
 * blocks. */
REMUS_API void remus_standby_refuse(remus_export *e, int err);

/*
 * Where root mounts, the directory below the mount has mode 0 and is immutable
 * (if its file system can do that), so that nobody makes a file in it while no
 * disk is served.  It stays so if this process dies; remus_export_close()
 * restores it, unless this function was called.  Never blocks.
 */
REMUS_API void remus_export_stay_guarded(remus_export *e);

/* 1 while mounted, 0 once somebody else has unmounted it.  Never blocks.
 * Errors: none of its own. */
REMUS_API int remus_export_alive(remus_export *e);

/*
 * Unmount, block until requests under way are done, stop the threads, free the
 * handle.  NULL is allowed.  If somebody still has a file open, the mount is
 * detached, and open files then fail with ENOTCONN.  Call it before
 * remus_primary_close().
 */
REMUS_API void remus_export_close(remus_export *e);

/* ---- Groups: the devices of one guest ---------------------------------- */

/*
 * A group takes the devices of one guest through the phases together, as
 * libxl's checkpoint device layer does, but without a fork: postsuspend on
 * all, then one wait for all acks.  Add the devices, then start the group.
 *
 * Phases come in order: postsuspend, preresume, commit, again and again;
 * postsuspend of n+1 may precede commit of n, not the end of preresume of n.
 * One thread at a time takes a phase.  Every phase runs on every device,
 * whatever the others return; it returns 0, or -errno of the device that
 * failed first, and remus_group_results() has the result of each. Errors of
 * every phase: -EINPROGRESS another thread is in one, -EBADFD it is out of
 * order, or the group is not started, or is stopped (neither changes
 * anything); those of the devices.
 *
 * The group does not own its devices: close it before them.  Calls never
 * block, and have no errors of their own, unless they say so.
 */

#define REMUS_GROUP_MAX 64 /* devices of one group */

typedef struct remus_group remus_group;

/* The phases of a checkpoint, for struct remus_device_result. */
enum remus_phase {
    REMUS_PHASE_NONE,
    REMUS_PHASE_POSTSUSPEND,
    REMUS_PHASE_PRERESUME,
    REMUS_PHASE_COMMIT
};

/*
 * A device of another kind (a NIC, a test).  A phase that is NULL is a no-op.
 * `postsuspend` must not block; it returns 0 or 1 (empty) and stores its
 * number in *epoch, or returns -errno.  `preresume` returns 0 once `epoch` is
 * safe.  It is called in a thread of the group or in the caller's, and may
 * block until `timeout_ms` (negative: no limit) or until `cancel` is called.
 * `cancel` comes from another thread, perhaps a moment before the preresume
 * that it is meant for.  `commit`: checkpoint `epoch` is complete.
 */
struct remus_device_ops {
    uint32_t struct_size; /* sizeof of this struct, see remus.h */
    int (*postsuspend)(void *opaque, const void *tag, size_t tag_len,
                       uint64_t *epoch);
    int (*preresume)(void *opaque, uint64_t epoch, int64_t timeout_ms);
    int (*commit)(void *opaque, uint64_t epoch);
    void (*cancel)(void *opaque);
};

/* The newest results of one device of a group. */
struct remus_device_result {
    uint32_t struct_size;   /* sizeof of this struct, see remus.h */
    enum remus_phase phase; /* its newest phase */
    int error;              /* -errno of that phase; 0: it succeeded */
    int empty;              /* 1: the newest epoch was empty */
    int acked;              /* 1: the newest epoch is safe */
    uint64_t epoch;         /* number of the newest epoch; 0 none */
    uint64_t sent_ns;       /* when its barrier had been sent */
    uint64_t ack_ns;        /* when its ack was known; 0 not yet */
    uint64_t failed_ns;     /* when `error` happened */
    uint64_t failed_epoch;  /* the epoch of `error`; 0: postsuspend
                                 failed, so the epoch has no number */
    char name[64];          /* as it was added */
    char text[256];         /* the text of `error` */
};

/* Make an empty group; `name` has 1..REMUS_NAME_MAX bytes.  Errors: -EINVAL
 * name; -ENOMEM. */
REMUS_API int remus_group_open(const char *name, remus_group **out);

/* Add a device, before the start; it must outlive the group.  Returns its
 * index.  Errors: -EBADFD started; -ENOSPC REMUS_GROUP_MAX; -EINVAL name; -ENOMEM. */
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
 * memory.  Call it before start.  Blocks for file I/O.
 * Errors: -EBADFD started; as remus_epochs_create().
 */
REMUS_API int remus_group_record(remus_group *g, const char *path);

/*
 * The statistics of the group (`device` -1; an epoch's number is then a
 * running one, from 1) or of one device; those of a primary are its own
 * (remus_primary_epochs).  An epoch is added when preresume has succeeded, or
 * when the next postsuspend shows that it never did.  Bytes, extents and
 * coalesced bytes are those of the group's primaries.  The handle belongs to
 * the group or the primary: only read from it, and not after its owner's
 * close.
 * Returns NULL before start, or if there is no such device.
 */
REMUS_API remus_epochs *remus_group_statistics(remus_group *g, int device);

/*
 * Start the threads that wait.  A device that can only be waited for in a call
 * (DRBD, or one of your own) needs one, except the device for which the caller
 * of preresume waits itself.  `begins` 1: remus_group_preresume_begin() will
 * be used, so each of them needs one.  The threads block all signals.
 * Errors: -EBADFD started; -EAGAIN no thread.
 */
REMUS_API int remus_group_start(remus_group *g, int begins);

/*
 * Close the epoch on every device.  Never blocks (for the exception see
 * remus_drbd_postsuspend()).  `tag`: NULL/0, or up to REMUS_TAG_MAX bytes; for
 * a DRBD device the text of a number from 1 to 2^63-1.  If a device fails, the
 * epoch can't be waited for: call postsuspend again.
 *
 * After a failed preresume it is refused, like a phase out of order, while the
 * barrier before can still be waited for: a call is still inside a driver, or
 * the ack of a kernel's DRBD device may yet come.
 */
REMUS_API int remus_group_postsuspend(remus_group *g, const void *tag,
                                      size_t tag_len);

/*
 * Return only when the epoch is safe on every device.  Blocks at most
 * `timeout_ms`, plus the driver's own limit where the calling thread itself is
 * inside a DRBD wait.  A single device is waited for in the calling thread;
 * with more, a parked thread is woken, which wakes the next.  After a failure
 * it may be called again: it waits for the devices without an ack.
 * Errors: -ETIMEDOUT; -ECANCELED; those of the devices.
 */
REMUS_API int remus_group_preresume(remus_group *g, int64_t timeout_ms);

/*
 * The same for event loops, where libxl forks a process for each wait.
 * begin: never blocks; the result comes from finish.
 * fd: becomes readable when every device has its result; the same descriptor
 * for the life of the group, which owns it: only poll it.
 * finish: -EAGAIN as long as there is no result and the deadline of begin is
 * not over.  After the deadline, devices that are still inside the driver
 * count as timed out; the next preresume goes on waiting for them.
 */
REMUS_API int remus_group_preresume_begin(remus_group *g, int64_t timeout_ms);
REMUS_API int remus_group_fd(remus_group *g);
REMUS_API int remus_group_preresume_finish(remus_group *g);

/*
 * Tell every device that the newest epoch that was safe on all of them is
 * complete (libxl's commit).  Never blocks.  Idempotent.  Refused (-EBADFD)
 * while a device that can't name an epoch (DRBD, one of your own) has acked
 * one that another device has not.
 */
REMUS_API int remus_group_commit(remus_group *g);

/*
 * End the wait under way, whether another thread is in it or it was begun:
 * devices without an ack return -ECANCELED, and preresume may be called again.
 * Blocks at most 0.1 s, even if the process that serves a node hangs, plus the
 * time that the cancel of a device of your own takes.  Only a thread that is
 * itself inside the kernel's driver, or in a node that hangs, stays there
 * until the driver's limit or the signal of remus_drbd_cancel_signal().
 * Returns 0; 1: nothing was under way.
 */
REMUS_API int remus_group_cancel(remus_group *g);

/* The results of each device, in the order of adding.  Returns how many devices
 * there are; writes at most `cap`.  Never blocks. */
REMUS_API int remus_group_results(remus_group *g,
                                  struct remus_device_result *out,
                                  unsigned int cap);

/* The number of each device's newest epoch (0: its postsuspend failed), in the
 * order of adding: an array that lives as long as the group and changes only
 * in postsuspend.  Never blocks. */
REMUS_API const uint64_t *remus_group_epochs(remus_group *g);

/*
 * End everything: cancel, and let no further call reach a device.  When it
 * returns, primaries and devices of your own are no longer used; the thread
 * that is still inside the driver of a DRBD device keeps that device open and
 * ends by itself.  Later calls return -EBADFD.  Blocks as remus_group_cancel()
 * does, and until the preresume of a device of your own has obeyed its cancel.
 * Idempotent.  Not to be called from a device's own phase.
 */
REMUS_API void remus_group_stop(remus_group *g);

/* remus_group_stop(), and free the handle; blocks as that does.  NULL is
 * allowed. */
REMUS_API void remus_group_close(remus_group *g);

/* ---- keys ---------------------------------------------------------------- */

/*
 * Read the key file again.  What it holds counts from the next connection on;
 * the present one stays.  While a key is replaced the file may have several
 * for one identity: "guest0", and each that is "guest0+" and anything.  The
 * side that listens takes any of them, the one that connects has the last in
 * the file.  Nothing happens without a key file, or if a backup does not serve.
 * Blocks for the file's disk.  Errors: those of remus_psk_check(); the keys
 * stay as they are.
 */
REMUS_API int remus_primary_reload_keys(remus_primary *p);
REMUS_API int remus_backup_reload_keys(remus_backup *b);
REMUS_API int remus_former_reload_keys(remus_former *f);

/* cffi:end */

#ifdef __cplusplus
}
#endif
#endif
