/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Addresses, sockets, and records out of a byte stream.
 *
 * Who may connect: on a Unix socket (mode 0600) a peer with our own uid, or
 * root; over TCP who proves the shared key with TLS (conn.h), or anybody
 * where the configuration says tls = "off" in so many words.
 */
#ifndef REMUS_TRANSPORT_H
#define REMUS_TRANSPORT_H

#include <sys/socket.h>

#include "conn.h"
#include "record.h"

struct remus_address {
    struct sockaddr_storage sa;
    socklen_t len;
    char text[160]; /* as given */
};

/* "unix:/path" or "tcp:HOST:PORT".  0; -EINVAL; -EPERM: TCP, and neither
 * TLS nor `tls_off`. */
int remus_address_parse(const char *text, int tls, int tls_off,
                        struct remus_address *out);
/* Listen; the socket is non-blocking.  fd or -errno with a text. */
int remus_listen(const struct remus_address *a);
/* Remove the socket file of a Unix listener. */
void remus_unlisten(const struct remus_address *a);
/*
 * fd (non-blocking); -EAGAIN; -EPERM a peer that may not.  `peer`, 64 bytes,
 * gets where it came from without the port: "192.0.2.7", the network of 64
 * bits for IPv6, "uid 1000" on a Unix socket.
 */
int remus_accept(int listener, const struct remus_address *a, char *peer);
/* Begin to connect; fd (non-blocking) or -errno.  Once it can be written,
 * remus_connected() checks who is there. */
int remus_connect(const struct remus_address *a);
int remus_connected(int fd, const struct remus_address *a);
/* Send an ERROR record of its own, if that can be sent at once. */
void remus_tell_error(struct remus_conn *conn, const char *text);

/* Bytes that arrived and are not yet records.  One reader at a time. */
struct remus_input {
    unsigned char *buf;
    size_t cap;
    size_t start, end; /* unread bytes are buf[start..end) */
};

int remus_input_init(struct remus_input *in);
void remus_input_free(struct remus_input *in);
void remus_input_reset(struct remus_input *in);
/*
 * One remus_conn_recv().  > 0: bytes came; 0: nothing there now;
 * -ECONNRESET: the peer closed; -errno.
 */
ssize_t remus_input_fill(struct remus_input *in, struct remus_conn *conn);
/*
 * The next whole record, proven (header and payload CRC).  1; 0: more bytes
 * are needed; -EBADMSG with a text.  Pointers hold until the next fill.
 */
int remus_input_next(struct remus_input *in, struct remus_record *r,
                     const unsigned char **header,
                     const unsigned char **payload);

#endif
