/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A connection, plain or with TLS; see conn.h. */
#include "link/conn.h"

#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork.h"
#include "link/address.h"
#include "link/input.h"
#include "link/resolve.h"

#define CLOSED 7 /* of a socket, as the kernel numbers states */

/* Until when, by whose clock, or until which descriptor can be read. */
struct limit {
    remus_io *io;
    struct remus_deadline end;
    int wake;
};

/* Wait for the socket.  0; -ETIMEDOUT; -EINTR: wake. */
static int wait_for(const struct remus_conn *c, short events,
                    const struct limit *limit)
{
    for (;;) {
        struct pollfd p[2] = {{.fd = c->fd, .events = events},
                              {.fd = limit->wake, .events = POLLIN}};
        int ms =
            remus_deadline_poll_ms(limit->end, limit->io->now_ns(limit->io));
        int n = poll(p, 2, ms);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return remus_fail(-errno, "poll: %s", remus_errno_text(errno));
        if (n > 0 && p[1].revents)
            return remus_fail(-EINTR, "interrupted");
        if (n > 0)
            return 0;
        if (!ms)
            return remus_fail(-ETIMEDOUT, "no answer in time");
    }
}

static int connected(const struct remus_conn *c)
{
    int err = 0;
    socklen_t len = sizeof err;
    if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &len))
        err = errno;
    return err ? remus_fail(-err, "%s", remus_errno_text(err)) : 0;
}

static int shake_hands(struct remus_conn *c, struct remus_tls_keys *keys,
                       const struct limit *limit)
{
    int err = remus_tls_new(&c->tls, keys, 0, c->fd);
    short events;
    while (!err && (err = remus_tls_handshake(c->tls, &events)) == -EAGAIN)
        err = wait_for(c, events, limit);
    return err;
}

/* One place of the address: 0 or -errno; *c is none then. */
static int connect_to(struct remus_conn *c, const struct remus_address *a,
                      const struct remus_place *place,
                      struct remus_tls_keys *keys, const struct limit *limit)
{
    *c = REMUS_CONN_NONE;
    c->fd = remus_connect(a, place);
    if (c->fd < 0)
        return c->fd;
    int err = wait_for(c, POLLOUT, limit);
    if (!err)
        err = connected(c);
    if (err)
        remus_fail_in(err, "address %s: connect", a->text);
    if (!err)
        err = remus_connected(c->fd, a);
    if (!err && keys) {
        err = shake_hands(c, keys, limit);
        if (err)
            remus_fail_in(err, "address %s", a->text);
    }
    if (err) {
        remus_conn_close(c);
    } else {
        remus_place_text(place, c->peer);
        remus_conn_describe(c, a);
    }
    return err;
}

int remus_conn_connect(struct remus_conn *c, const struct remus_address *a,
                       struct remus_resolver *resolver,
                       struct remus_tls_keys *keys, remus_io *io,
                       int timeout_ms, int wake)
{
    struct limit limit = {io, remus_deadline_in(io->now_ns(io), timeout_ms),
                          wake};
    const struct remus_deadline end = limit.end;
    struct remus_places places;
    *c = REMUS_CONN_NONE;
    int err = remus_resolve(resolver, a, io, end, wake, &places);
    if (err)
        return err;
    for (unsigned int i = 0; i < places.count; i++) {
        /* What is left, in equal parts: a place that swallows everything
         * must leave time for the others. */
        int64_t left = remus_deadline_ms(end, io->now_ns(io));
        limit.end = remus_deadline_in(io->now_ns(io),
                                      left / (int64_t)(places.count - i));
        err = connect_to(c, a, &places.place[i], keys, &limit);
        if (!err || err == -EINTR)
            break;
    }
    return err;
}

void remus_conn_describe(struct remus_conn *c, const struct remus_address *a)
{
    if (c->tls)
        remus_tls_describe(c->tls, c->security, sizeof c->security);
    else
        snprintf(c->security, sizeof c->security, "%s",
                 a->is_tcp ? "none" : "unix socket");
}

ssize_t remus_conn_send(struct remus_conn *c, const void *buf, size_t len)
{
    if (c->tls)
        return remus_tls_send(c->tls, buf, len);
    ssize_t n;
    do {
        n = send(c->fd, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    return n >= 0 ? n : errno == EWOULDBLOCK ? -EAGAIN : -errno;
}

ssize_t remus_conn_recv(struct remus_conn *c, void *buf, size_t cap)
{
    if (c->tls)
        return remus_tls_recv(c->tls, buf, cap);
    ssize_t n;
    do {
        n = recv(c->fd, buf, cap, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n > 0)
        return n;
    if (n == 0)
        return remus_fail(-ECONNRESET, "the other side closed the "
                                       "connection");
    if (errno == EAGAIN || errno == EWOULDBLOCK)
        return -EAGAIN;
    return remus_fail(-errno, "receive: %s", remus_errno_text(errno));
}

int remus_conn_arrived(const struct remus_conn *c, uint64_t *acked)
{
    struct tcp_info info = {0};
    socklen_t len = sizeof info;
    *acked = 0;
    if (getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &len) ||
        len < offsetof(struct tcp_info, tcpi_bytes_acked) + sizeof *acked ||
        info.tcpi_state == CLOSED)
        return -1;
    *acked = info.tcpi_bytes_acked;
    return info.tcpi_unacked != 0;
}

void remus_conn_close(struct remus_conn *c)
{
    remus_tls_free(c->tls);
    if (c->fd >= 0)
        remus_fd_close(c->fd);
    *c = REMUS_CONN_NONE;
}
