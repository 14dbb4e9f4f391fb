/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The lobby: where connections wait until they have proven themselves and
 * said something.  One thread of its own, with low priority, accepts them
 * and shakes hands with all of them at once; who is done is handed on by
 * `admit`.  So neither the serving of a running primary nor the pings to it
 * ever wait for a stranger, and a silent one does not keep others out.
 *
 * Bounds: REMUS_LOBBY_MAX connections at once, REMUS_LOBBY_SOURCE of one
 * source, REMUS_LOBBY_MS for each.  A TLS session is made only when the
 * first byte came.  When there is no room for a new one, one that is there
 * leaves: of the sources that have most of them the one that got least far,
 * of those the oldest.  So a flood displaces itself.  Without a file
 * descriptor for a new one, the lobby looks again ten times a second.
 */
#ifndef REMUS_LOBBY_H
#define REMUS_LOBBY_H

#include "io.h"
#include "refusals.h"
#include "transport.h"

#define REMUS_LOBBY_MAX 64u
#define REMUS_LOBBY_SOURCE 32u
#define REMUS_LOBBY_MS 3000u

struct remus_lobby;

/* Takes the connection over (and sets *conn to none); in the lobby's
 * thread: must not block. */
typedef void (*remus_admit_fn)(void *opaque, struct remus_conn *conn);

struct remus_lobby_config {
    int listener;                      /* stays the caller's */
    const struct remus_address *address;
    const struct remus_tls_keys *keys; /* NULL: plain */
    struct remus_refusals *refusals;
    remus_io *io;                      /* the clock */
    remus_admit_fn admit;
    void *opaque;
};

/* Start the thread.  What config points to must outlive it.  0 or -errno. */
int remus_lobby_start(const struct remus_lobby_config *config,
                      struct remus_lobby **out);
/* Drop who waits, stop and free.  NULL is allowed. */
void remus_lobby_stop(struct remus_lobby *lobby);

#endif
