/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * TLS 1.3 with a pre-shared key over one connected, non-blocking socket,
 * through GnuTLS.
 *
 * What is spoken, and nothing else: TLS 1.3; external PSK with ECDHE (X25519
 * or P-256), so that a key that is stolen later does not open recorded
 * streams; AES-128-GCM or ChaCha20-Poly1305.  No certificates, no session
 * tickets, no early data: a recorded hello that is replayed gets an answer
 * that only the owner of the key and of that hello's secret can read.
 *
 * GnuTLS never touches the socket once the handshake is done: it reads from
 * `in` and writes to `out`, and the socket is read and written in one call
 * for several records.  So no call of GnuTLS is ever half done for want of
 * room, and after remus_tls_recv() nothing is buffered here that poll(2)
 * would not tell about.
 *
 * One thread may send while another receives.  GnuTLS allows that as long as
 * no keys change; an update of keys (ours after `rekey_after` records, and
 * the other side's) is done with both rx and tx held.
 * Locks, in the order in which they may be taken: rx, tx; each is held for
 * the time of non-blocking calls only.
 */
#ifndef REMUS_TLS_H
#define REMUS_TLS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "remus.h"

#define REMUS_TLS_RECORD 16384u /* bytes of data in a full record */
/* remus_tls_recv() wants this much room. */
#define REMUS_TLS_ROOM (128u * 1024 + 2 * REMUS_TLS_RECORD)

/* The keys of a file and the settings of every connection with them: any
 * number of threads may use it. */
struct remus_tls_keys;
struct remus_tls;

/* Load a key file (see psk.h).  0 or -errno with a text. */
int remus_tls_keys_load(const char *file, const char *identity,
                        struct remus_tls_keys **out);
/* Read the file again, for the connections that begin from here on; if that
 * fails all stays as it is.  NULL is allowed.  0 or -errno with a text. */
int remus_tls_keys_reload(struct remus_tls_keys *keys);
void remus_tls_keys_free(struct remus_tls_keys *keys); /* NULL is allowed */
/* Change keys after so many records sent, not 2^23 (tests). */
void remus_tls_keys_rekey_after(struct remus_tls_keys *keys, uint64_t n);

/*
 * Begin on a socket; `keys` must outlive it.  server: 1 the side that
 * accepted.  Does no I/O.  0 or -errno with a text.
 */
int remus_tls_new(struct remus_tls **out, struct remus_tls_keys *keys,
                  int server, int fd);
/*
 * Go on with the handshake.  0: done and proven; -EAGAIN: *events says what
 * to poll for; else it failed (-EPROTO, -ECONNRESET, ...): the text says
 * why, the other side was sent an alert, remus_tls_cause() names the cause.
 */
int remus_tls_handshake(struct remus_tls *t, short *events);
/* Why a handshake failed: an enum remus_refused. */
int remus_tls_cause(const struct remus_tls *t);
/* What was agreed, such as "TLS1.3 ECDHE-PSK AES-128-GCM". */
void remus_tls_describe(const struct remus_tls *t, char *buf, size_t cap);

/*
 * As remus_conn_send() and remus_conn_recv() (conn.h); `cap` of recv must be
 * at least REMUS_TLS_ROOM.
 */
ssize_t remus_tls_send(struct remus_tls *t, const void *buf, size_t len);
ssize_t remus_tls_recv(struct remus_tls *t, void *buf, size_t cap);

/* Say that nothing more comes, if that can be sent at once, and free.  The
 * socket stays open. */
void remus_tls_free(struct remus_tls *t);

#endif
