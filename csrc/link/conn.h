/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A connection: a non-blocking socket, plain or with TLS on it.  Poll `fd`
 * for either; what arrived and could be read is never hidden from poll(2).
 *
 * One thread may send while another receives; opening and closing are for
 * one thread that nobody runs beside.
 */
#ifndef REMUS_CONN_H
#define REMUS_CONN_H

#include <stdint.h>
#include <sys/types.h>

#include "base/io.h"
#include "link/tls.h"

struct remus_address;
struct remus_resolver;

struct remus_conn {
    int fd;                /* -1: none */
    struct remus_tls *tls; /* NULL: plain */
    char peer[64];         /* where the other side is, see remus_accept() */
    char security[64];     /* what proves the other side, for status */
};

/* No connection. */
#define REMUS_CONN_NONE ((struct remus_conn){.fd = -1})

/*
 * Connect, to each place of the address until one answers, and with `keys`
 * (NULL: none) shake hands; blocks at most `timeout_ms`, or until `wake` (a
 * file descriptor, -1: none) can be read.  0, or -errno with a text (of the
 * last place); -EINTR: `wake`; -EHOSTUNREACH: the name was not resolved.
 */
int remus_conn_connect(struct remus_conn *c, const struct remus_address *a,
                       struct remus_resolver *resolver,
                       struct remus_tls_keys *keys, remus_io *io,
                       int timeout_ms, int wake);
/* Note what proves the other side, in c->security. */
void remus_conn_describe(struct remus_conn *c, const struct remus_address *a);

/*
 * Send without blocking.  > 0: so many bytes, from the front, are with the
 * kernel; -EAGAIN: it takes no more now: poll for POLLOUT, then call again
 * with a buffer that begins with the same bytes (and may be longer); else
 * -errno: the connection is gone.
 */
ssize_t remus_conn_send(struct remus_conn *c, const void *buf, size_t len);
/*
 * Receive without blocking.  > 0: bytes; -EAGAIN: nothing (whole) there now;
 * -ECONNRESET: the other side closed; else -errno; with a text.  With TLS
 * `cap` must be at least REMUS_TLS_ROOM.
 */
ssize_t remus_conn_recv(struct remus_conn *c, void *buf, size_t cap);

/*
 * *acked: bytes that the other host's kernel has acked.  1: more are on their
 * way to it; 0: none (a host that takes no more has them not on their way);
 * -1: nobody can tell (no TCP).  Never blocks.
 */
int remus_conn_arrived(const struct remus_conn *c, uint64_t *acked);
/* Close; nothing happens if there is none. */
void remus_conn_close(struct remus_conn *c);

#endif
