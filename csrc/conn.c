/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A connection, plain or with TLS; see conn.h. */
#include "conn.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "transport.h"

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Wait for the socket until `end` (ms).  0; -ETIMEDOUT; -EINTR: wake. */
static int wait_for(const struct remus_conn *c, short events, int64_t end,
                    int wake)
{
    for (;;) {
        struct pollfd p[2] = {{.fd = c->fd, .events = events},
                              {.fd = wake, .events = POLLIN}};
        int64_t left = end - now_ms();
        int n = poll(p, 2, left > 0 ? (int)left : 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return remus_fail(-errno, "poll: %s", remus_errno_text(errno));
        if (n > 0 && p[1].revents)
            return remus_fail(-EINTR, "interrupted");
        if (n > 0)
            return 0;
        if (left <= 0)
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

static int shake_hands(struct remus_conn *c,
                       const struct remus_tls_keys *keys, int64_t end,
                       int wake)
{
    int err = remus_tls_new(&c->tls, keys, 0, c->fd);
    short events;
    while (!err && (err = remus_tls_handshake(c->tls, &events)) == -EAGAIN)
        err = wait_for(c, events, end, wake);
    return err;
}

int remus_conn_connect(struct remus_conn *c, const struct remus_address *a,
                       const struct remus_tls_keys *keys, int timeout_ms,
                       int wake)
{
    int64_t end = now_ms() + timeout_ms;
    *c = REMUS_CONN_NONE;
    c->fd = remus_connect(a);
    if (c->fd < 0)
        return c->fd;
    int err = wait_for(c, POLLOUT, end, wake);
    if (!err)
        err = connected(c);
    if (err)
        remus_fail_in(err, "address %s: connect", a->text);
    if (!err)
        err = remus_connected(c->fd, a);
    if (!err && keys) {
        err = shake_hands(c, keys, end, wake);
        if (err)
            remus_fail_in(err, "address %s", a->text);
    }
    if (err)
        remus_conn_close(c);
    else
        remus_conn_describe(c, a);
    return err;
}

void remus_conn_describe(struct remus_conn *c, const struct remus_address *a)
{
    if (c->tls)
        remus_tls_describe(c->tls, c->security, sizeof c->security);
    else
        snprintf(c->security, sizeof c->security, "%s",
                 a->sa.ss_family == AF_UNIX ? "unix socket" : "none");
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

void remus_conn_shutdown(const struct remus_conn *c)
{
    if (c->fd >= 0)
        shutdown(c->fd, SHUT_RDWR);
}

void remus_conn_close(struct remus_conn *c)
{
    remus_tls_free(c->tls);
    if (c->fd >= 0)
        close(c->fd);
    *c = REMUS_CONN_NONE;
}
