/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Addresses and sockets.
 *
 * Who may connect: on a Unix socket (mode 0600) a peer with our own uid, or
 * root; over TCP who proves the shared key with TLS (conn.h), or anybody
 * where the configuration says tls = "off" expressly.
 */
#ifndef REMUS_ADDRESS_H
#define REMUS_ADDRESS_H

#include <sys/socket.h>

/* One place of an address: what a socket is bound or connected to. */
struct remus_place {
    struct sockaddr_storage sa;
    socklen_t len;
};

struct remus_address {
    int is_tcp;
    struct remus_place local; /* of a Unix socket */
    char host[128];           /* TCP: name or number; see resolve.h */
    char port[8];             /* TCP: a number */
    char text[160];           /* as given */
};

/* "unix:/path" or "tcp:HOST:PORT"; asks no name server.  0; -EINVAL; -EPERM:
 * TCP, and neither TLS nor `tls_off`. */
int remus_address_parse(const char *text, int tls, int tls_off,
                        struct remus_address *out);
/* Listen at the first of its places that is this host's; the socket is
 * non-blocking.  Blocks for a name server.  fd or -errno with a text. */
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
 * remus_connected() checks who is there: -EPERM; -ECONNREFUSED it is our own
 * socket, for a port without a listener may be given to who connects to it. */
int remus_connect(const struct remus_address *a,
                  const struct remus_place *place);
int remus_connected(int fd, const struct remus_address *a);
/* "192.0.2.7", the network of 64 bits for IPv6; `text` has 64 bytes. */
void remus_place_text(const struct remus_place *place, char *text);

#endif
