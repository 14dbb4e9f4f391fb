/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Addresses, sockets, and records out of a byte stream. */
#include "transport.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "error.h"

#define INPUT_BYTES (2u * REMUS_REC_PAYLOAD_MAX + 65536u)
#define SOCKET_BUFFER (1 << 20)
#define SOURCE_BYTES 64u

static int parse_unix(const char *path, struct remus_address *out)
{
    struct sockaddr_un *un = (struct sockaddr_un *)&out->sa;
    if (*path != '/' || strlen(path) >= sizeof un->sun_path)
        return remus_fail(-EINVAL,
                          "address %s: give an absolute path of at most %zu "
                          "characters",
                          out->text, sizeof un->sun_path - 1);
    un->sun_family = AF_UNIX;
    strcpy(un->sun_path, path);
    out->len = sizeof *un;
    return 0;
}

/* "HOST:PORT" or "[HOST]:PORT", numeric hosts or names. */
static int parse_tcp(const char *rest, struct remus_address *out)
{
    char host[128];
    const char *colon = strrchr(rest, ':');
    size_t n = colon ? (size_t)(colon - rest) : 0;
    if (!n || n >= sizeof host || !colon[1])
        return remus_fail(-EINVAL, "address %s: expected tcp:HOST:PORT",
                          out->text);
    memcpy(host, rest, n);
    host[n] = '\0';
    char *name = host;
    if (host[0] == '[' && host[n - 1] == ']') {
        host[n - 1] = '\0';
        name++;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_NUMERICSERV};
    struct addrinfo *list;
    int rc = getaddrinfo(name, colon + 1, &hints, &list);
    if (rc)
        return remus_fail(-EINVAL, "address %s: %s", out->text,
                          gai_strerror(rc));
    memcpy(&out->sa, list->ai_addr, list->ai_addrlen);
    out->len = list->ai_addrlen;
    freeaddrinfo(list);
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
        return remus_fail(-EINVAL,
                          "address %s: expected unix:/path or tcp:HOST:PORT",
                          text);
    int err = parse_tcp(text + 4, out);
    if (err)
        return err;
    if (!tls && !tls_off)
        return remus_fail(-EPERM,
                          "address %s: TCP needs proof of who is there: set "
                          "tls = \"psk\" and a psk_file, or say tls = "
                          "\"off\"",
                          text);
    return 0;
}

static const char *unix_path(const struct remus_address *a)
{
    return a->sa.ss_family == AF_UNIX
               ? ((const struct sockaddr_un *)&a->sa)->sun_path
               : NULL;
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
    int rc = connect(fd, (const struct sockaddr *)&a->sa, a->len);
    int refused = rc && errno == ECONNREFUSED;
    close(fd);
    if (!refused)
        return remus_fail(-EADDRINUSE,
                          "address %s: another process listens there",
                          a->text);
    unlink(path);
    return 0;
}

int remus_listen(const struct remus_address *a)
{
    int err = remove_stale(a);
    if (err)
        return err;
    int fd = socket(a->sa.ss_family,
                    SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return remus_fail(-errno, "address %s: socket: %s", a->text,
                          remus_errno_text(errno));
    int one = 1;
    if (!unix_path(a))
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    else
        fchmod(fd, 0600); /* the mode that bind gives to the file */
    if (bind(fd, (const struct sockaddr *)&a->sa, a->len) ||
        (unix_path(a) && chmod(unix_path(a), 0600)) || listen(fd, SOMAXCONN)) {
        err = -errno;
        close(fd);
        return remus_fail(err, "address %s: listen: %s", a->text,
                          remus_errno_text(err));
    }
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
        return remus_fail(-EPERM,
                          "address %s: peer has uid %u, expected %u",
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
    int fd = accept4(listener, (struct sockaddr *)&sa, &len,
                     SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return remus_fail(errno == EWOULDBLOCK ? -EAGAIN : -errno,
                          "address %s: accept: %s", a->text,
                          remus_errno_text(errno));
    if (!unix_path(a))
        tcp_source(&sa, peer);
    int err = check_peer(fd, a, peer);
    if (err) {
        close(fd);
        return err;
    }
    tune(fd, a);
    return fd;
}

int remus_connect(const struct remus_address *a)
{
    int fd = socket(a->sa.ss_family,
                    SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return remus_fail(-errno, "address %s: socket: %s", a->text,
                          remus_errno_text(errno));
    if (connect(fd, (const struct sockaddr *)&a->sa, a->len) &&
        errno != EINPROGRESS) {
        int err = -errno;
        close(fd);
        return remus_fail(err, "address %s: connect: %s", a->text,
                          remus_errno_text(err));
    }
    return fd;
}

int remus_connected(int fd, const struct remus_address *a)
{
    int err = check_peer(fd, a, NULL);
    if (!err)
        tune(fd, a);
    return err;
}

void remus_tell_error(struct remus_conn *conn, const char *text)
{
    size_t len = strnlen(text, REMUS_REASON_MAX);
    struct remus_record r = {.type = REMUS_REC_ERROR,
                             .length = (uint32_t)len,
                             .payload_crc = remus_crc32c(0, text, len)};
    unsigned char out[REMUS_REC_HEADER + REMUS_REASON_MAX];
    remus_record_encode(&r, out);
    memcpy(out + REMUS_REC_HEADER, text, len);
    ssize_t n = remus_conn_send(conn, out, REMUS_REC_HEADER + len);
    /* Unread, a hello would make a reset of our end that overtakes what we
     * say. */
    n = recv(conn->fd, out, sizeof out, MSG_DONTWAIT);
    (void)n; /* told, or not: the connection ends either way */
}

/* ---- input ------------------------------------------------------------ */

int remus_input_init(struct remus_input *in)
{
    memset(in, 0, sizeof *in);
    in->buf = malloc(INPUT_BYTES);
    if (!in->buf)
        return remus_fail(-ENOMEM, "out of memory");
    in->cap = INPUT_BYTES;
    return 0;
}

void remus_input_free(struct remus_input *in)
{
    free(in->buf);
    memset(in, 0, sizeof *in);
}

void remus_input_reset(struct remus_input *in)
{
    in->start = in->end = 0;
}

ssize_t remus_input_fill(struct remus_input *in, struct remus_conn *conn)
{
    if (in->start == in->end) {
        in->start = in->end = 0;
    } else if (in->cap - in->end < REMUS_REC_PAYLOAD_MAX + REMUS_PAGE) {
        memmove(in->buf, in->buf + in->start, in->end - in->start);
        in->end -= in->start;
        in->start = 0;
    }
    ssize_t n = remus_conn_recv(conn, in->buf + in->end, in->cap - in->end);
    if (n == -EAGAIN)
        return 0;
    if (n > 0)
        in->end += (size_t)n;
    return n;
}

int remus_input_next(struct remus_input *in, struct remus_record *r,
                     const unsigned char **header,
                     const unsigned char **payload)
{
    size_t have = in->end - in->start;
    if (have < REMUS_REC_HEADER)
        return 0;
    const unsigned char *p = in->buf + in->start;
    int err = remus_record_decode(p, r);
    if (err)
        return err;
    if (r->salt)
        return remus_fail(-EBADMSG, "record: salt on the wire");
    if (have < REMUS_REC_HEADER + (size_t)r->length)
        return 0;
    if (r->length && remus_crc32c(0, p + REMUS_REC_HEADER, r->length) !=
                         r->payload_crc)
        return remus_fail(-EBADMSG,
                          "record %llu of epoch %llu: payload CRC differs: "
                          "data was damaged on the way",
                          (unsigned long long)r->number,
                          (unsigned long long)r->epoch);
    *header = p;
    *payload = p + REMUS_REC_HEADER;
    in->start += REMUS_REC_HEADER + r->length;
    return 1;
}
