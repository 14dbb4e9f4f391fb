/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * From the name of a host to its addresses, in getaddrinfo(3)'s order.
 *
 * A name is asked for anew each time: hosts move.  The C library's resolver
 * can't be interrupted and may take half a minute while no server answers, so
 * it runs in a thread of its own, and who asks waits for it no longer than it
 * wants to.  A thread that is still at it is asked again, not joined by a
 * second one.  Numeric addresses and Unix sockets need no thread.
 */
#ifndef REMUS_RESOLVE_H
#define REMUS_RESOLVE_H

#include "base/clock.h"
#include "base/io.h"
#include "link/address.h"

#define REMUS_PLACES_MAX 8u

/* Where an address can be reached, or listened at. */
struct remus_places {
    unsigned int count;
    struct remus_place place[REMUS_PLACES_MAX];
};

struct remus_lookup; /* one that is under way */

/* Whoever asks for one name after the other, one thread at a time. */
struct remus_resolver {
    struct remus_lookup *lookup; /* NULL: none */
};

/*
 * All places of `a`; blocks until `end` at most, or until `wake` (a file
 * descriptor, -1: none) can be read.  0; -EINTR: `wake`; -EHOSTUNREACH, with a
 * text: not resolved, or not in time.
 */
int remus_resolve(struct remus_resolver *r, const struct remus_address *a,
                  remus_io *io, struct remus_deadline end, int wake,
                  struct remus_places *out);
/* The same in the calling thread, for who may wait: to listen there. */
int remus_resolve_here(const struct remus_address *a,
                       struct remus_places *out);
/* Let go of a lookup that is under way; its thread ends by itself. */
void remus_resolver_free(struct remus_resolver *r);

#endif
