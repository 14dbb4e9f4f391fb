/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the group and the tests need of a DRBD device beyond remus.h. */
#ifndef REMUS_DRBD_H
#define REMUS_DRBD_H

#include <stdatomic.h>

#include "remus.h"

/*
 * is_node: 1 a file of our node, 0 a kernel device, -1 find out.  proc: where
 * its state is read; ready_ms: how long a first barrier waits for it.
 */
int remus_drbd_open_as(const char *path, int is_node, const char *proc,
                       int ready_ms, remus_drbd **out);

/*
 * Another owner of the handle: it is freed, and its file closed, when
 * remus_drbd_close() was called once more than this.  Somebody may be in the
 * kernel with the file for longer than its user wants the device.
 */
void remus_drbd_hold(remus_drbd *dev);

/*
 * remus_drbd_preresume(), which ends with -ECANCELED once *cancel (may be
 * NULL) is not 0 and remus_drbd_cancel() was called after that, also if that
 * was before this call had begun.
 */
int remus_drbd_preresume_until(remus_drbd *dev, int64_t timeout_ms,
                               const _Atomic int *cancel);

/* remus_drbd_cancel(), unless *only_if (may be NULL) is 0: the wait that it
 * meant is over then. */
int remus_drbd_cancel_if(remus_drbd *dev, const _Atomic int *only_if);

/* 1: its driver would not send a barrier, because the one before can still
 * be waited for. */
int remus_drbd_owes(remus_drbd *dev);

/* Nobody will wait for the newest barrier. */
void remus_drbd_abandon(remus_drbd *dev);

#endif
