/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/fork.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/file.h>
#include <unistd.h>

/* One bit a descriptor; those from 2^20 on, which no usual limit allows, are
 * not registered. */
#define WORDS (1u << 14)
#define BITS 64u

static _Atomic uint64_t owned[WORDS];
static _Atomic unsigned int words;        /* in use: the highest, plus 1 */
static _Atomic unsigned int generation;   /* of this process, from 0 */
static _Atomic unsigned int begun, ended; /* forks */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void before(void)
{
    atomic_fetch_add(&begun, 1);
}

static void after(void)
{
    atomic_fetch_add(&ended, 1);
}

/* Only what is allowed in a child of a process with threads: no locks. */
static void in_child(void)
{
    unsigned int used = atomic_load(&words);
    for (unsigned int i = 0; i < used; i++) {
        uint64_t bits = atomic_exchange(&owned[i], 0);
        for (unsigned int bit = 0; bits; bit++, bits >>= 1)
            if (bits & 1)
                close((int)(i * BITS + bit));
    }
    atomic_store(&words, 0);
    atomic_fetch_add(&generation, 1);
    atomic_store(&ended, atomic_load(&begun));
}

static void install(void)
{
    pthread_atfork(before, after, in_child);
}

int remus_fd_own(int fd)
{
    if (fd < 0 || (unsigned int)fd >= WORDS * BITS)
        return fd;
    int err = errno;
    pthread_once(&once, install);
    unsigned int word = (unsigned int)fd / BITS;
    unsigned int used = atomic_load(&words);
    while (used <= word &&
           !atomic_compare_exchange_weak(&words, &used, word + 1))
        ;
    atomic_fetch_or(&owned[word], UINT64_C(1) << (unsigned int)fd % BITS);
    errno = err;
    return fd;
}

void remus_fd_disown(int fd)
{
    if (fd >= 0 && (unsigned int)fd < WORDS * BITS)
        atomic_fetch_and(&owned[(unsigned int)fd / BITS],
                         ~(UINT64_C(1) << (unsigned int)fd % BITS));
}

/* A fork after the disowning leaves the child with the descriptor: at least
 * it keeps no lock with it.  (To close first could make a child close what
 * somebody else has opened under this number since.) */
int remus_fd_close(int fd)
{
    int err = errno;
    (void)flock(fd, LOCK_UN);
    struct flock all = {.l_type = F_UNLCK}; /* and those of single bytes */
    (void)fcntl(fd, F_OFD_SETLK, &all);
    errno = err;
    remus_fd_disown(fd);
    return close(fd);
}

unsigned int remus_fork_generation(void)
{
    pthread_once(&once, install);
    return atomic_load(&generation);
}

unsigned int remus_fork_quiet(void)
{
    pthread_once(&once, install);
    for (;;) {
        unsigned int number = atomic_load(&begun);
        if (atomic_load(&ended) == number)
            return number;
        sched_yield();
    }
}

int remus_fork_since(unsigned int number)
{
    return atomic_load(&begun) != number;
}
