/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Simulated descriptors; see net.h. */
#include "net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "sched.h"

#define FIRST (1 << 20)
#define FDS 8192
#define BACKLOG 64

enum kind { NONE, EVENT, SOCKET, LISTENER, DEVICE };

/* What is on its way to an end, in order. */
struct piece {
    struct piece *next;
    uint64_t at;
    enum { DATA, FIN, RST } what;
    size_t len, used;
    unsigned char bytes[];
};

struct end {
    struct end *peer; /* NULL: it is gone, or there was never one */
    struct piece *first, **last;
    uint64_t latest; /* when the newest piece arrives */
    size_t queued;   /* bytes that were not read */
    uint64_t ready;  /* connecting until then */
    int host, error, refused, shut, eof, reset, vanished;
};

struct fd {
    enum kind kind;
    int host;
    uint64_t count; /* EVENT */
    struct end *end;
    unsigned int port; /* LISTENER, or bound; DEVICE: its host */
    struct end *backlog[BACKLOG];
    uint64_t backlog_at[BACKLOG];
    unsigned int waiting;
};

static struct fd fds[FDS];
static int used;
static int cut[WORLD_HOSTS];
static uint64_t delay_ns; /* at most */
static size_t capacity;

static struct fd *of(int fd)
{
    return &fds[fd - FIRST];
}

int world_fd(int fd)
{
    return fd >= FIRST && fd < FIRST + FDS && of(fd)->kind != NONE;
}

static int new_fd(enum kind kind)
{
    int i = used;
    /* Numbers come again, as they do for real. */
    for (int k = 0; k < used; k++)
        if (fds[k].kind == NONE) {
            i = k;
            break;
        }
    if (i == FDS)
        world_fail("more than %d descriptors", FDS);
    if (i == used)
        used++;
    fds[i] = (struct fd){.kind = kind, .host = world_thread_host()};
    return FIRST + i;
}

static uint64_t soon(void)
{
    return world_now() + 1000 + world_below(delay_ns);
}

/* ---- pieces ----------------------------------------------------------------- */

static void put(struct end *to, int what, const void *bytes, size_t len)
{
    struct piece *p = malloc(sizeof *p + len);
    if (!p)
        world_fail("out of memory");
    uint64_t at = soon();
    if (at < to->latest)
        at = to->latest;
    *p = (struct piece){.at = at, .what = what, .len = len};
    if (len)
        memcpy(p->bytes, bytes, len);
    to->latest = at;
    to->queued += len;
    *to->last = p;
    to->last = &p->next;
}

/* The first piece that has arrived, or NULL. */
static struct piece *arrived(const struct end *e)
{
    int from = e->host == 0 ? 1 : 0;
    if (!e->first || e->first->at > world_now() || cut[from])
        return NULL;
    return e->first;
}

static void drop(struct end *e)
{
    struct piece *p = e->first;
    e->first = p->next;
    if (!e->first)
        e->last = &e->first;
    e->queued -= p->len - p->used;
    free(p);
}

static struct end *new_end(int host)
{
    struct end *e = calloc(1, sizeof *e);
    if (!e)
        world_fail("out of memory");
    e->host = host;
    e->last = &e->first;
    return e;
}

/* Nobody is at this end any more. */
static void leave(struct end *e, int silent)
{
    if (!e->peer)
        return;
    struct end *peer = e->peer;
    if (silent) {
        e->vanished = 1;
        return;
    }
    if (!e->shut || e->first)
        put(peer, e->first ? RST : FIN, NULL, 0);
    peer->peer = NULL;
    e->peer = NULL;
}

/* ---- what the C library would do ------------------------------------------------ */

static int fails(int err)
{
    errno = err;
    return -1;
}

int world_eventfd(void)
{
    world_point("eventfd");
    return new_fd(EVENT);
}

int world_device(int host)
{
    int fd = new_fd(DEVICE);
    of(fd)->host = world_guest_of(host);
    of(fd)->port = (unsigned int)host;
    return fd;
}

int world_socket(void)
{
    world_point("socket");
    return new_fd(SOCKET);
}

int world_bind(int fd, unsigned int port)
{
    for (int i = 0; i < used; i++)
        if (fds[i].kind == LISTENER && fds[i].port == port)
            return fails(EADDRINUSE);
    of(fd)->port = port;
    return 0;
}

int world_listen(int fd)
{
    world_point("listen");
    of(fd)->kind = LISTENER;
    return 0;
}

int world_connect(int fd, unsigned int port)
{
    world_point("connect");
    struct fd *f = of(fd), *l = NULL;
    struct end *e = f->end = new_end(f->host);
    e->ready = soon() + world_below(delay_ns);
    for (int i = 0; i < used; i++)
        if (fds[i].kind == LISTENER && fds[i].port == port)
            l = &fds[i];
    /* SYN or its answer is held back: nothing comes of it, in time. */
    if (cut[0] || cut[1]) {
        e->ready = world_now() + 60000000000u;
        e->error = ETIMEDOUT;
    } else if (!l || l->waiting == BACKLOG) {
        e->error = ECONNREFUSED;
    } else {
        struct end *other = new_end(l->host);
        other->peer = e;
        e->peer = other;
        l->backlog_at[l->waiting] = e->ready;
        l->backlog[l->waiting++] = other;
    }
    return fails(EINPROGRESS);
}

int world_accept(int fd)
{
    world_point("accept");
    struct fd *l = of(fd);
    if (!l->waiting || l->backlog_at[0] > world_now())
        return fails(EAGAIN);
    struct end *e = l->backlog[0];
    l->waiting--;
    memmove(l->backlog, l->backlog + 1, l->waiting * sizeof *l->backlog);
    memmove(l->backlog_at, l->backlog_at + 1,
            l->waiting * sizeof *l->backlog_at);
    int got = new_fd(SOCKET);
    of(got)->end = e;
    return got;
}

int world_socket_error(int fd)
{
    struct end *e = of(fd)->end;
    return e ? e->error : ENOTCONN;
}

ssize_t world_send(int fd, const void *buf, size_t len)
{
    world_point("send");
    struct end *e = of(fd)->end;
    if (!e || e->ready > world_now())
        return fails(e ? EAGAIN : ENOTCONN);
    if (e->error || e->reset)
        return fails(e->error ? e->error : ECONNRESET);
    if (e->shut || !e->peer)
        return fails(EPIPE);
    struct end *to = e->peer;
    if (to->vanished) {
        /* Its host is dark, or back and knows nothing of it. */
        if (!world_killed(to->host)) {
            to->vanished = 0;
            e->peer = NULL;
            put(e, RST, NULL, 0);
        }
        return (ssize_t)len;
    }
    size_t room = to->queued < capacity ? capacity - to->queued : 0;
    if (!room)
        return fails(EAGAIN);
    if (len > room)
        len = room;
    if (len > 1 && world_chance(8))
        len = 1 + world_below(len - 1);
    put(to, DATA, buf, len);
    return (ssize_t)len;
}

/* What has arrived, of however many pieces, as TCP does: to read them one by
 * one would let a link of small pieces stay one for ever. */
static size_t take_bytes(struct end *e, struct piece *p, unsigned char *to,
                         size_t cap, int peek)
{
    size_t got = 0;
    while (p && p->what == DATA && got < cap) {
        size_t n = p->len - p->used < cap - got ? p->len - p->used : cap - got;
        memcpy(to + got, p->bytes + p->used, n);
        got += n;
        if (peek)
            break;
        p->used += n;
        e->queued -= n;
        if (p->used == p->len)
            drop(e);
        p = arrived(e);
    }
    return got;
}

ssize_t world_recv(int fd, void *buf, size_t cap, int peek)
{
    world_point("recv");
    struct end *e = of(fd)->end;
    if (!e)
        return fails(ENOTCONN);
    if (e->error || e->reset)
        return fails(e->error ? e->error : ECONNRESET);
    struct piece *p = arrived(e);
    if (e->eof || (e->shut && !p))
        return 0;
    if (!p)
        return fails(EAGAIN);
    if (p->what == RST) {
        e->reset = 1;
        return fails(ECONNRESET);
    }
    if (p->what == FIN) {
        e->eof = !peek;
        return 0;
    }
    if (cap > 1 && world_chance(16))
        cap = 1 + world_below(cap - 1);
    return (ssize_t)take_bytes(e, p, buf, cap, peek);
}

ssize_t world_read(int fd, void *buf, size_t cap)
{
    struct fd *f = of(fd);
    world_point("read");
    if (f->kind == DEVICE)
        return device_read((int)f->port, buf, cap);
    if (f->kind != EVENT)
        return world_recv(fd, buf, cap, 0);
    if (!f->count)
        return fails(EAGAIN);
    memcpy(buf, &f->count, sizeof f->count);
    f->count = 0;
    return sizeof f->count;
}

ssize_t world_write(int fd, const void *buf, size_t len)
{
    struct fd *f = of(fd);
    world_point("write");
    if (f->kind != EVENT)
        return world_send(fd, buf, len);
    uint64_t add;
    memcpy(&add, buf, sizeof add);
    f->count += add;
    return sizeof add;
}

int world_shutdown(int fd)
{
    world_point("shutdown");
    struct end *e = of(fd)->end;
    if (e && !e->shut) {
        e->shut = 1;
        if (e->peer && !e->peer->vanished)
            put(e->peer, FIN, NULL, 0);
    }
    return 0;
}

static void close_fd(struct fd *f, int silent)
{
    if (f->end)
        leave(f->end, silent);
    for (unsigned int i = 0; i < f->waiting; i++)
        leave(f->backlog[i], silent);
    f->kind = NONE;
    f->end = NULL;
    f->waiting = 0;
}

int world_close(int fd)
{
    world_point("close");
    if (of(fd)->kind != DEVICE) /* the keeper has it, too */
        close_fd(of(fd), 0);
    return 0;
}

/* ---- poll --------------------------------------------------------------------------- */

static short events_of(const struct fd *f, short asked)
{
    short got = 0;
    const struct end *e = f->end;
    switch (f->kind) {
    case EVENT:
        return (short)((f->count ? POLLIN : 0) | (asked & POLLOUT)) & asked;
    case LISTENER:
        return f->waiting && f->backlog_at[0] <= world_now() ? POLLIN & asked
                                                             : 0;
    case SOCKET:
        if (!e || e->ready > world_now())
            return 0;
        if (e->error)
            return POLLERR | POLLHUP | (asked & (POLLIN | POLLOUT));
        if (e->reset)
            return POLLERR | POLLHUP | (asked & (POLLIN | POLLRDHUP));
        const struct piece *p = arrived(e);
        if (p || e->eof || e->shut)
            got |= POLLIN;
        if (e->eof || e->shut || (p && p->what != DATA))
            got |= POLLRDHUP;
        /* Linux, too, says so once a third of the room is free. */
        if (!e->peer || e->peer->vanished ||
            e->peer->queued < capacity - capacity / 3)
            got |= POLLOUT;
        got &= asked;
        return p && p->what == RST ? got | POLLHUP | POLLERR : got;
    case DEVICE:
        return 0;
    case NONE:
        break;
    }
    return POLLNVAL;
}

struct polled {
    struct pollfd *fds;
    nfds_t n;
};

static int look(const struct polled *p, int store)
{
    int ready = 0;
    for (nfds_t i = 0; i < p->n; i++) {
        short got = 0;
        if (p->fds[i].fd >= 0) {
            if (p->fds[i].fd < FIRST)
                world_fail("poll of a real descriptor");
            got = events_of(of(p->fds[i].fd), p->fds[i].events);
        }
        if (store)
            p->fds[i].revents = got;
        ready += got != 0;
        if (ready && !store)
            break;
    }
    return ready;
}

static int some_ready(void *on)
{
    return look(on, 0) > 0;
}

int world_poll(struct pollfd *list, nfds_t n, int timeout_ms)
{
    struct polled p = {list, n};
    world_point("poll");
    if (!look(&p, 0) && timeout_ms)
        world_wait("poll", some_ready, &p,
                   timeout_ms < 0
                       ? WORLD_NEVER
                       : world_now() + (uint64_t)timeout_ms * 1000000u);
    return look(&p, 1);
}

/* ---- faults --------------------------------------------------------------------------- */

void world_net_cut(int host, int on)
{
    cut[host] = on;
}

void world_net_reset(void)
{
    for (int i = 0; i < used; i++)
        if (fds[i].kind == SOCKET && fds[i].end && fds[i].end->peer) {
            struct end *e = fds[i].end;
            e->reset = 1;
            e->peer->reset = 1;
        }
}

void world_net_host_gone(int host, int silent)
{
    for (int i = 0; i < used; i++)
        if (fds[i].kind != NONE && fds[i].host == host)
            close_fd(&fds[i], silent);
}

static uint64_t next_event(void)
{
    uint64_t at = WORLD_NEVER, now = world_now();
    for (int i = 0; i < used; i++) {
        const struct fd *f = &fds[i];
        const struct end *e = f->end;
        if (f->kind == LISTENER && f->waiting && f->backlog_at[0] > now &&
            f->backlog_at[0] < at)
            at = f->backlog_at[0];
        if (f->kind != SOCKET || !e)
            continue;
        if (e->ready > now && e->ready < at)
            at = e->ready;
        if (e->first && e->first->at > now && !cut[e->host == 0 ? 1 : 0] &&
            e->first->at < at)
            at = e->first->at;
    }
    return at;
}

void world_net_begin(int fast)
{
    static const uint64_t delays[] = {1000, 100000, 2000000, 80000000};
    static const size_t capacities[] = {1000, 20000, 300000, 1 << 22};
    delay_ns = delays[world_below(4)];
    capacity = capacities[world_below(4)];
    /* On a link that is slow both ways nothing ever gets done. */
    if (delay_ns > 1000000 && capacity < 300000)
        capacity = 300000;
    if (fast) {
        delay_ns = 1000;
        capacity = 1 << 22;
    }
    world_next_event = next_event;
}
