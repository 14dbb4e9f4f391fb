/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What stands between the code under test and the C library, by the linker's
 * --wrap (the list is WORLD_WRAPS in the Makefile).  A thread that is not of a
 * world gets the real thing.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "net.h"
#include "sched.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define REAL(result, name, args) result __real_##name args;
REAL(int, pthread_mutex_lock, (pthread_mutex_t *))
REAL(int, pthread_mutex_trylock, (pthread_mutex_t *))
REAL(int, pthread_mutex_unlock, (pthread_mutex_t *))
REAL(int, pthread_cond_wait, (pthread_cond_t *, pthread_mutex_t *))
REAL(int, pthread_cond_timedwait,
     (pthread_cond_t *, pthread_mutex_t *, const struct timespec *))
REAL(int, pthread_cond_signal, (pthread_cond_t *))
REAL(int, pthread_cond_broadcast, (pthread_cond_t *))
REAL(int, pthread_create,
     (pthread_t *, const pthread_attr_t *, void *(*)(void *), void *))
REAL(int, pthread_join, (pthread_t, void **))
REAL(int, clock_gettime, (clockid_t, struct timespec *))
REAL(int, nanosleep, (const struct timespec *, struct timespec *))
REAL(int, sched_yield, (void))
REAL(int, eventfd, (unsigned int, int))
REAL(int, socket, (int, int, int))
REAL(int, bind, (int, const struct sockaddr *, socklen_t))
REAL(int, listen, (int, int))
REAL(int, connect, (int, const struct sockaddr *, socklen_t))
REAL(int, accept4, (int, struct sockaddr *, socklen_t *, int))
REAL(int, getsockopt, (int, int, int, void *, socklen_t *))
REAL(int, setsockopt, (int, int, int, const void *, socklen_t))
REAL(ssize_t, send, (int, const void *, size_t, int))
REAL(ssize_t, recv, (int, void *, size_t, int))
REAL(ssize_t, read, (int, void *, size_t))
REAL(ssize_t, write, (int, const void *, size_t))
REAL(int, shutdown, (int, int))
REAL(int, close, (int))
REAL(int, poll, (struct pollfd *, nfds_t, int))
REAL(void *, mmap, (void *, size_t, int, int, int, off_t))
REAL(int, madvise, (void *, size_t, int))
REAL(int, fcntl, (int, int, ...))
REAL(uid_t, geteuid, (void))
REAL(ssize_t, getrandom, (void *, size_t, unsigned int))

/* ---- locks: the first words of a mutex say who has it ------------------------- */

struct lock {
    uint32_t owner;   /* number of its thread + 1 */
    uint32_t process; /* its own */
};

static struct lock *lock_of(pthread_mutex_t *m)
{
    return (struct lock *)m;
}

/* The process of the calling thread. */
static uint32_t process(void)
{
    int host = world_thread_host();
    return world_life(host) << 4 | (uint32_t)(host + 1);
}

static int is_free(void *on)
{
    const struct lock *l = on;
    return !l->owner;
}

static void take(struct lock *l)
{
    l->owner = (uint32_t)world_self() + 1;
    l->process = process();
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *m)
{
    if (!world_here())
        return __real_pthread_mutex_lock(m);
    struct lock *l = lock_of(m);
    world_point("lock");
    if (l->owner == (uint32_t)world_self() + 1)
        world_fail("a lock is taken twice by one thread");
    /* A process-wide lock whose owner was killed: another process's. */
    if (l->owner && l->process != process())
        l->owner = 0;
    while (l->owner)
        world_wait("lock", is_free, l, WORLD_NEVER);
    take(l);
    return 0;
}

int __wrap_pthread_mutex_trylock(pthread_mutex_t *m)
{
    if (!world_here())
        return __real_pthread_mutex_trylock(m);
    struct lock *l = lock_of(m);
    world_point("trylock");
    if (l->owner)
        return EBUSY;
    take(l);
    return 0;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *m)
{
    if (!world_here())
        return __real_pthread_mutex_unlock(m);
    struct lock *l = lock_of(m);
    if (l->owner != (uint32_t)world_self() + 1)
        world_fail("a lock is given back by a thread that has not got it");
    l->owner = 0;
    world_point("unlock");
    return 0;
}

struct waiter {
    struct waiter *next;
    pthread_cond_t *cond;
    int host, woken;
};

static struct waiter *waiters;

static int is_woken(void *on)
{
    return ((struct waiter *)on)->woken;
}

static int wait_on(pthread_cond_t *c, pthread_mutex_t *m, uint64_t deadline)
{
    struct waiter w = {.cond = c, .host = world_thread_host()}, **at;
    if (deadline <= world_now())
        return ETIMEDOUT;
    w.next = waiters;
    waiters = &w;
    lock_of(m)->owner = 0;
    /* Once in a while for no reason, as it is allowed to. */
    uint64_t end = deadline;
    if (world_chance(64) && world_now() + 1000000 < end)
        end = world_now() + 1000000;
    int late = world_wait("wait", is_woken, &w, end);
    for (at = &waiters; *at != &w; at = &(*at)->next)
        ;
    *at = w.next;
    __wrap_pthread_mutex_lock(m);
    return late && end == deadline ? ETIMEDOUT : 0;
}

int __wrap_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)
{
    if (!world_here())
        return __real_pthread_cond_wait(c, m);
    return wait_on(c, m, WORLD_NEVER);
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m,
                                  const struct timespec *t)
{
    if (!world_here())
        return __real_pthread_cond_timedwait(c, m, t);
    return wait_on(c, m,
                   (uint64_t)t->tv_sec * 1000000000u + (uint64_t)t->tv_nsec);
}

static void wake(pthread_cond_t *c, int all)
{
    int n = 0, host = world_thread_host();
    for (struct waiter *w = waiters; w; w = w->next)
        n += w->cond == c && !w->woken && w->host == host;
    int chosen = all || !n ? -1 : (int)world_below((uint64_t)n);
    for (struct waiter *w = waiters; w; w = w->next)
        if (w->cond == c && !w->woken && w->host == host &&
            (all || chosen-- == 0))
            w->woken = 1;
    world_point("wake");
}

int __wrap_pthread_cond_signal(pthread_cond_t *c)
{
    if (!world_here())
        return __real_pthread_cond_signal(c);
    wake(c, 0);
    return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *c)
{
    if (!world_here())
        return __real_pthread_cond_broadcast(c);
    wake(c, 1);
    return 0;
}

int __wrap_pthread_create(pthread_t *out, const pthread_attr_t *attr,
                          void *(*main)(void *), void *arg)
{
    if (!world_here())
        return __real_pthread_create(out, attr, main, arg);
    *out = (pthread_t)world_spawn(world_thread_host(),
                                  world_thread_host() ? "host1" : "host0",
                                  main, arg);
    return 0;
}

int __wrap_pthread_join(pthread_t t, void **result)
{
    if (!world_here())
        return __real_pthread_join(t, result);
    world_join((int)t);
    if (result)
        *result = world_result((int)t);
    return 0;
}

/* ---- time --------------------------------------------------------------------------- */

int __wrap_clock_gettime(clockid_t clock, struct timespec *t)
{
    if (!world_here())
        return __real_clock_gettime(clock, t);
    world_point("clock");
    uint64_t ns = clock == CLOCK_REALTIME ? world_wall() : world_now();
    *t = (struct timespec){(time_t)(ns / 1000000000u),
                           (long)(ns % 1000000000u)};
    return 0;
}

int __wrap_nanosleep(const struct timespec *t, struct timespec *left)
{
    if (!world_here())
        return __real_nanosleep(t, left);
    world_wait("sleep", NULL, NULL,
               world_now() + (uint64_t)t->tv_sec * 1000000000u +
                   (uint64_t)t->tv_nsec);
    return 0;
}

int __wrap_sched_yield(void)
{
    if (!world_here())
        return __real_sched_yield();
    world_wait("yield", NULL, NULL, world_now() + 1000);
    return 0;
}

/* ---- descriptors ----------------------------------------------------------------------- */

int __wrap_eventfd(unsigned int count, int flags)
{
    return world_here() ? world_eventfd() : __real_eventfd(count, flags);
}

int __wrap_socket(int domain, int type, int protocol)
{
    return world_here() ? world_socket()
                        : __real_socket(domain, type, protocol);
}

static unsigned int port_of(const struct sockaddr *a)
{
    return ntohs(((const struct sockaddr_in *)a)->sin_port);
}

int __wrap_bind(int fd, const struct sockaddr *a, socklen_t len)
{
    return world_fd(fd) ? world_bind(fd, port_of(a)) : __real_bind(fd, a, len);
}

int __wrap_listen(int fd, int n)
{
    return world_fd(fd) ? world_listen(fd) : __real_listen(fd, n);
}

int __wrap_connect(int fd, const struct sockaddr *a, socklen_t len)
{
    return world_fd(fd) ? world_connect(fd, port_of(a))
                        : __real_connect(fd, a, len);
}

int __wrap_accept4(int fd, struct sockaddr *a, socklen_t *len, int flags)
{
    if (!world_fd(fd))
        return __real_accept4(fd, a, len, flags);
    int got = world_accept(fd);
    if (got >= 0 && a) {
        struct sockaddr_in in = {.sin_family = AF_INET};
        in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        memcpy(a, &in, sizeof in);
        *len = sizeof in;
    }
    return got;
}

int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
    if (!world_fd(fd))
        return __real_getsockopt(fd, level, name, value, len);
    int err = world_socket_error(fd);
    memcpy(value, &err, sizeof err);
    return 0;
}

int __wrap_setsockopt(int fd, int level, int name, const void *value,
                      socklen_t len)
{
    return world_fd(fd) ? 0 : __real_setsockopt(fd, level, name, value, len);
}

ssize_t __wrap_send(int fd, const void *buf, size_t len, int flags)
{
    return world_fd(fd) ? world_send(fd, buf, len)
                        : __real_send(fd, buf, len, flags);
}

ssize_t __wrap_recv(int fd, void *buf, size_t cap, int flags)
{
    return world_fd(fd) ? world_recv(fd, buf, cap, flags & MSG_PEEK)
                        : __real_recv(fd, buf, cap, flags);
}

ssize_t __wrap_sendmsg(int fd, const struct msghdr *m, int flags)
{
    (void)flags;
    if (!world_fd(fd))
        world_fail("sendmsg on a real descriptor");
    ssize_t sum = 0;
    for (size_t i = 0; i < m->msg_iovlen; i++) {
        size_t len = m->msg_iov[i].iov_len;
        ssize_t n = len ? world_send(fd, m->msg_iov[i].iov_base, len) : 0;
        if (n < 0)
            return sum ? sum : n;
        sum += n;
        if ((size_t)n < len)
            break;
    }
    return sum;
}

ssize_t __wrap_read(int fd, void *buf, size_t len)
{
    return world_fd(fd) ? world_read(fd, buf, len) : __real_read(fd, buf, len);
}

ssize_t __wrap_write(int fd, const void *buf, size_t len)
{
    return world_fd(fd) ? world_write(fd, buf, len)
                        : __real_write(fd, buf, len);
}

int __wrap_shutdown(int fd, int how)
{
    return world_fd(fd) ? world_shutdown(fd) : __real_shutdown(fd, how);
}

int __wrap_close(int fd)
{
    return world_fd(fd) ? world_close(fd) : __real_close(fd);
}

int __wrap_poll(struct pollfd *p, nfds_t n, int ms)
{
    return world_here() ? world_poll(p, n, ms) : __real_poll(p, n, ms);
}

/* Pages that are never touched need not be there: a world is short. */
void *__wrap_mmap(void *at, size_t len, int prot, int flags, int fd, off_t off)
{
    return __real_mmap(at, len, prot,
                       world_here() ? flags & ~MAP_POPULATE : flags, fd, off);
}

int __wrap_madvise(void *at, size_t len, int advice)
{
    return world_here() && advice == MADV_POPULATE_WRITE
               ? 0
               : __real_madvise(at, len, advice);
}

/* ---- what a process is ------------------------------------------------------------------ */

int __wrap_pthread_cancel(pthread_t t)
{
    world_cancel((int)t);
    return 0;
}

int __wrap_fcntl(int fd, int command, ...)
{
    va_list args;
    va_start(args, command);
    long arg = va_arg(args, long);
    va_end(args);
    return world_fd(fd) ? fd : __real_fcntl(fd, command, arg);
}

uid_t __wrap_geteuid(void)
{
    return world_here() ? 0 : __real_geteuid();
}

ssize_t __wrap_getrandom(void *buf, size_t len, unsigned int flags)
{
    unsigned char *out = buf;
    if (!world_here())
        return __real_getrandom(buf, len, flags);
    for (size_t i = 0; i < len; i++)
        out[i] = (unsigned char)world_below(256);
    return (ssize_t)len;
}

/* Nobody's priority counts here. */
int __wrap_setpriority(int which, unsigned int who, int priority)
{
    (void)which;
    (void)who;
    (void)priority;
    return 0;
}
