/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Addresses, sockets, and records out of a byte stream.
 *
 * Who may connect: on a Unix socket (mode 0600) a peer with our own uid, or
 * root; over TCP only on the loopback, and only where the configuration says
 * tls = "off".  Everything else is refused until TLS is there.
 */
#ifndef REMUS_TRANSPORT_H
#define REMUS_TRANSPORT_H

#include <sys/socket.h>

#include "record.h"

struct remus_address {
    struct sockaddr_storage sa;
    socklen_t len;
    char text[160]; /* as given */
};

/* "unix:/path" or "tcp:HOST:PORT".  0; -EINVAL; -EPERM needs TLS. */
int remus_address_parse(const char *text, int tls_off,
                        struct remus_address *out);
/* Listen; the socket is non-blocking.  fd or -errno with a text. */
int remus_listen(const struct remus_address *a);
/* Remove the socket file of a Unix listener. */
void remus_unlisten(const struct remus_address *a);
/* fd (non-blocking); -EAGAIN; -EPERM a peer that may not. */
int remus_accept(int listener, const struct remus_address *a);
/* Connect, blocking at most `timeout_ms`; fd (non-blocking) or -errno. */
int remus_connect(const struct remus_address *a, int timeout_ms);

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
 * One recv.  > 0: bytes came; 0: nothing there now; -ECONNRESET: the peer
 * closed; -errno.
 */
ssize_t remus_input_fill(struct remus_input *in, int fd);
/*
 * The next whole record, proven (header and payload CRC).  1; 0: more bytes
 * are needed; -EBADMSG with a text.  Pointers hold until the next fill.
 */
int remus_input_next(struct remus_input *in, struct remus_record *r,
                     const unsigned char **header,
                     const unsigned char **payload);

#endif
