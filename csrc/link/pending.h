/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pending connections: those that have not proven themselves yet, or have not
 * said anything.  One thread of its own, with low priority, accepts them
 * and shakes hands with all of them at once; who is done is handed on by
 * `admit`.  So neither the serving of a running primary nor the pings to it
 * ever wait for a stranger, and a silent one does not keep others out.
 *
 * Bounds: REMUS_PENDING_MAX connections at once, REMUS_PENDING_SOURCE of one
 * source, REMUS_PENDING_MS for each.  A TLS session is made only when the
 * first byte came.  When there is no room for a new one, one that is there
 * leaves: of the sources that have most of them the one that got least far,
 * of those the oldest.  So a flood displaces itself.  Without a file
 * descriptor for a new one, it looks again ten times a second.
 */
#ifndef REMUS_PENDING_H
#define REMUS_PENDING_H

#include "base/io.h"
#include "link/refusals.h"
#include "link/address.h"
#include "link/input.h"

#define REMUS_PENDING_MAX 64u
#define REMUS_PENDING_SOURCE 32u
#define REMUS_PENDING_MS 3000u

struct remus_pending;

/* Takes the connection over (and sets *conn to none); in the thread of
 * the pending ones: must not block. */
typedef void (*remus_admit_fn)(void *opaque, struct remus_conn *conn);

struct remus_pending_config {
    int listener; /* stays the caller's */
    const struct remus_address *address;
    struct remus_tls_keys *keys; /* NULL: plain */
    struct remus_refusals *refusals;
    remus_io *io; /* the clock */
    remus_admit_fn admit;
    void *opaque;
};

/* Start the thread.  What config points to must outlive it.  0 or -errno. */
int remus_pending_start(const struct remus_pending_config *config,
                        struct remus_pending **out);
/* Drop who waits, stop and free.  NULL is allowed. */
void remus_pending_stop(struct remus_pending *pending);

#endif
