/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Addresses and sockets. */
#include "link/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork.h"
#include "link/resolve.h"

#define SOCKET_BUFFER (1 << 20)
#define SOURCE_BYTES 64u

static int parse_unix(const char *path, struct remus_address *out)
{
    struct sockaddr_un *un = (struct sockaddr_un *)&out->local.sa;
    if (*path != '/' || strlen(path) >= sizeof un->sun_path)
        return remus_fail(-EINVAL,
                          "address %s: give an absolute path of at most %zu "
                          "characters",
                          out->text, sizeof un->sun_path - 1);
    un->sun_family = AF_UNIX;
    strcpy(un->sun_path, path);
    out->local.len = sizeof *un;
    return 0;
}

/* 1 to 65535, in digits. */
static int is_port(const char *text)
{
    long n = 0;
    for (const char *c = text; *c; c++) {
        if (*c < '0' || *c > '9' || c - text >= 5)
            return 0;
        n = 10 * n + (*c - '0');
    }
    return n > 0 && n <= 65535;
}

/* "HOST:PORT" or "[HOST]:PORT", numeric hosts or names. */
static int parse_tcp(const char *rest, struct remus_address *out)
{
    const char *colon = strrchr(rest, ':');
    size_t n = colon ? (size_t)(colon - rest) : 0;
    int quoted = n > 2 && rest[0] == '[' && rest[n - 1] == ']';
    if (quoted) {
        rest++;
        n -= 2;
    }
    if (!n || n >= sizeof out->host || !is_port(colon + 1))
        return remus_fail(-EINVAL,
                          "address %s: expected tcp:HOST:PORT, with a port "
                          "from 1 to 65535",
                          out->text);
    memcpy(out->host, rest, n);
    strcpy(out->port, colon + 1);
    out->is_tcp = 1;
    return 0;
}

int remus_address_parse(const char *text, int tls, int tls_off,
                        struct remus_address *out)
{
    memset(out, 0, sizeof *out);
    if (!text || strlen(text) >= sizeof out->text)
        return remus_fail(-EINVAL, "address: expected unix:/path or "
                                   "tcp:HOST:PORT");
    strcpy(out->text, text);
    if (!strncmp(text, "unix:", 5))
        return parse_unix(text + 5, out);
    if (strncmp(text, "tcp:", 4))
        return remus_fail(
            -EINVAL, "address %s: expected unix:/path or tcp:HOST:PORT", text);
    int err = parse_tcp(text + 4, out);
    if (err)
        return err;
    if (!tls && !tls_off)
        return remus_fail(-EPERM,
                          "address %s: TCP needs authentication: set "
                          "tls = \"psk\" and a psk_file, or say tls = "
                          "\"off\"",
                          text);
    return 0;
}

static const char *unix_path(const struct remus_address *a)
{
    return a->is_tcp ? NULL
                     : ((const struct sockaddr_un *)&a->local.sa)->sun_path;
}

/* A socket file that nobody listens on is left over from a dead process. */
static int remove_stale(const struct remus_address *a)
{
    const char *path = unix_path(a);
    struct stat st;
    if (!path || lstat(path, &st))
        return 0;
    if (!S_ISSOCK(st.st_mode))
        return remus_fail(-EADDRINUSE,
                          "address %s: a file that is not a socket is there: "
                          "remove it or choose another path",
                          a->text);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return remus_fail(-errno, "socket: %s", remus_errno_text(errno));
    int rc = connect(fd, (const struct sockaddr *)&a->local.sa, a->local.len);
    int refused = rc && errno == ECONNREFUSED;
    close(fd);
    if (!refused)
        return remus_fail(
            -EADDRINUSE, "address %s: another process listens there", a->text);
    unlink(path);
    return 0;
}

static int listen_at(const struct remus_address *a,
                     const struct remus_place *place)
{
    int fd = remus_fd_own(socket(
        place->sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd < 0)
        return remus_fail(-errno, "address %s: socket: %s", a->text,
                          remus_errno_text(errno));
    int one = 1;
    if (!unix_path(a))
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    else
        fchmod(fd, 0600); /* the mode that bind gives to the file */
    if (bind(fd, (const struct sockaddr *)&place->sa, place->len) ||
        (unix_path(a) && chmod(unix_path(a), 0600)) || listen(fd, SOMAXCONN)) {
        int err = -errno;
        remus_fd_close(fd);
        return remus_fail(err, "address %s: listen: %s", a->text,
                          remus_errno_text(err));
    }
    return fd;
}

int remus_listen(const struct remus_address *a)
{
    struct remus_places places;
    int err = remus_resolve_here(a, &places);
    if (!err)
        err = remove_stale(a);
    if (err)
        return err;
    int fd = -EADDRNOTAVAIL;
    for (unsigned int i = 0; i < places.count && fd == -EADDRNOTAVAIL; i++)
        fd = listen_at(a, &places.place[i]);
    return fd;
}

void remus_unlisten(const struct remus_address *a)
{
    if (unix_path(a))
        unlink(unix_path(a));
}

static void tune(int fd, const struct remus_address *a)
{
    int one = 1, bytes = SOCKET_BUFFER;
    if (!unix_path(a)) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
}

/* Only ourselves and root may speak on a Unix socket. */
static int check_peer(int fd, const struct remus_address *a, char *source)
{
    struct ucred peer;
    socklen_t len = sizeof peer;
    if (!unix_path(a))
        return 0;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len))
        return remus_fail(-errno, "address %s: peer's credentials: %s",
                          a->text, remus_errno_text(errno));
    if (source)
        snprintf(source, SOURCE_BYTES, "uid %u", peer.uid);
    if (peer.uid != geteuid() && peer.uid != 0)
        return remus_fail(-EPERM, "address %s: peer has uid %u, expected %u",
                          a->text, peer.uid, geteuid());
    return 0;
}

/* Where a TCP peer is, as one source that may be limited: a host, or the
 * network of 64 bits in which an IPv6 host has all addresses. */
static void tcp_source(const struct sockaddr_storage *sa, char *source)
{
    struct in6_addr a;
    const void *four = NULL;
    if (sa->ss_family == AF_INET) {
        four = &((const struct sockaddr_in *)sa)->sin_addr;
    } else {
        a = ((const struct sockaddr_in6 *)sa)->sin6_addr;
        if (IN6_IS_ADDR_V4MAPPED(&a))
            four = &a.s6_addr[12];
    }
    if (four) {
        inet_ntop(AF_INET, four, source, SOURCE_BYTES);
        return;
    }
    int whole = IN6_IS_ADDR_LOOPBACK(&a);
    if (!whole)
        memset(&a.s6_addr[8], 0, 8);
    inet_ntop(AF_INET6, &a, source, SOURCE_BYTES - 4);
    if (!whole)
        strcat(source, "/64");
}

int remus_accept(int listener, const struct remus_address *a, char *peer)
{
    struct sockaddr_storage sa = {0};
    socklen_t len = sizeof sa;
    strcpy(peer, "?");
    int fd = remus_fd_own(accept4(listener, (struct sockaddr *)&sa, &len,
                                  SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd < 0)
        return remus_fail(errno == EWOULDBLOCK ? -EAGAIN : -errno,
                          "address %s: accept: %s", a->text,
                          remus_errno_text(errno));
    if (!unix_path(a))
        tcp_source(&sa, peer);
    int err = check_peer(fd, a, peer);
    if (err) {
        remus_fd_close(fd);
        return err;
    }
    tune(fd, a);
    return fd;
}

void remus_place_text(const struct remus_place *place, char *text)
{
    if (place->sa.ss_family == AF_UNIX)
        strcpy(text, "unix socket");
    else
        tcp_source(&place->sa, text);
}

int remus_connect(const struct remus_address *a,
                  const struct remus_place *place)
{
    int fd = remus_fd_own(socket(
        place->sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd < 0)
        return remus_fail(-errno, "address %s: socket: %s", a->text,
                          remus_errno_text(errno));
    if (connect(fd, (const struct sockaddr *)&place->sa, place->len) &&
        errno != EINPROGRESS) {
        int err = -errno;
        remus_fd_close(fd);
        return remus_fail(err, "address %s: connect: %s", a->text,
                          remus_errno_text(err));
    }
    return fd;
}

/* Both ends are one socket: a port of this host that nobody listens at, given
 * to our end in the very moment of connecting to it. */
static int is_self(int fd)
{
    struct sockaddr_storage us = {0}, them = {0};
    socklen_t ours = sizeof us, theirs = sizeof them;
    return !getsockname(fd, (struct sockaddr *)&us, &ours) &&
           !getpeername(fd, (struct sockaddr *)&them, &theirs) &&
           ours == theirs && !memcmp(&us, &them, ours);
}

int remus_connected(int fd, const struct remus_address *a)
{
    int err = check_peer(fd, a, NULL);
    if (!err && a->is_tcp && is_self(fd))
        err = remus_fail(-ECONNREFUSED, "address %s: nobody listens there",
                         a->text);
    if (!err)
        tune(fd, a);
    return err;
}
