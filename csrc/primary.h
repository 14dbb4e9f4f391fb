/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the FUSE node needs of a primary beyond remus.h: requests that never
 * wait.  A request that can't be finished at once is parked by the primary
 * and finished later by one of its own threads, which then calls `done`.
 */
#ifndef REMUS_PRIMARY_H
#define REMUS_PRIMARY_H

#include <stdatomic.h>

#include "io.h"
#include "remus.h"

/* "Not finished: `done` will be called exactly once, from another thread
 * (perhaps before this call returns)." */
#define REMUS_PARKED 1

/* `result`: 0 or -errno.  Must not block and must not call the primary. */
typedef void (*remus_done_fn)(void *opaque, int result);

/*
 * Like remus_primary_pwrite and _write_zeroes.  They block for the local
 * disk only.  Return the result (0 or -errno; `done` is not called) or
 * REMUS_PARKED.  `buf` is copied if the request is parked.
 */
int remus_primary_submit_write(remus_primary *p, unsigned int volume,
                               const void *buf, size_t len, uint64_t offset,
                               remus_done_fn done, void *opaque);
int remus_primary_submit_zero(remus_primary *p, unsigned int volume,
                              uint64_t offset, uint64_t len,
                              remus_done_fn done, void *opaque);

/*
 * The ioctls of a node, with the rules of one barrier for all volumes.
 * send: 0, 1 (the resource's epoch was empty), -EPROTO, or -EAGAIN (too many
 * barriers without an ack, or no room for one); never blocks.
 * `tag` 0: none.  wait: 0, -EPROTO, or REMUS_PARKED, as
 * remus_primary_wait_begin() below.  commit: 0 or -EPROTO.
 * attach: a file handle sends its first ioctl 20; release: it was closed:
 * with the last of them the session ends.
 */
void remus_primary_ioctl_attach(remus_primary *p);
int remus_primary_ioctl_send(remus_primary *p, unsigned int volume,
                             uint64_t tag);
int remus_primary_ioctl_wait(remus_primary *p, unsigned int volume,
                             int64_t timeout_ms, const void *owner,
                             uint64_t id, remus_done_fn done, void *opaque);
int remus_primary_ioctl_commit(remus_primary *p, unsigned int volume);
void remus_primary_ioctl_release(remus_primary *p, unsigned int volume);

/*
 * remus_primary_preresume() without a thread: returns the result (`done` is
 * not called), or REMUS_PARKED, and then `done` gets 0, -EPROTO, -ETIMEDOUT
 * (up to 0.1 s late) or what a cancel gave.  `owner`: by which it is
 * cancelled.
 */
int remus_primary_wait_begin(remus_primary *p, uint64_t epoch,
                             int64_t timeout_ms, const void *owner,
                             remus_done_fn done, void *opaque);
/*
 * End the waits of an owner, or the one with an id (a number that
 * remus_primary_wait_id() gave), with `result`.  1; 0: there was none (any
 * more): it was answered, or is about to be.
 */
int remus_primary_wait_cancel(remus_primary *p, const void *owner,
                              int result);
int remus_primary_wait_cancel_id(remus_primary *p, uint64_t id, int result);
uint64_t remus_primary_wait_id(remus_primary *p);
/* Put the words for a wait's failure where remus_last_error() finds them;
 * returns rc. */
int remus_primary_wait_error(remus_primary *p, uint64_t epoch, int rc,
                             int64_t timeout_ms);
/*
 * remus_primary_preresume(), which ends with -ECANCELED once *cancel is not
 * 0 and remus_primary_wait_kick() was called after that.
 */
int remus_primary_preresume_until(remus_primary *p, uint64_t epoch,
                                  int64_t timeout_ms,
                                  const _Atomic int *cancel);
void remus_primary_wait_kick(remus_primary *p);

unsigned int remus_primary_volume_count(remus_primary *p);
const char *remus_primary_volume_name(remus_primary *p, unsigned int volume);

/* As remus_primary_open, with an I/O table of the caller's (tests). */
int remus_primary_open_io(const struct remus_primary_config *config,
                          remus_io *io, remus_primary **out);

#endif
