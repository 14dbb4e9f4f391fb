/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a checkpoint must not cost on either side: system calls, memory and
 * wake-ups beyond those that it has.  The library is linked here, so its
 * calls of libc come to the functions below, which count them.  Of each kind
 * the fewest of some rounds counts: a busy machine, pings and the timers of
 * both sides can only add some.
 */
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "pair.h"
#include "primary/internal.h"

#define EPOCHS 100 /* of a round */
#define ROUNDS 20

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNTED 0 /* their functions are in the place of ours */
#else
#define COUNTED 1
#endif

/* ---- counting ------------------------------------------------------------ */

enum { SEND, RECV, POLL, PWRITE, SYNC, MEMORY, KINDS };

static const char *const kind_name[KINDS] = {"send",   "recv",      "poll",
                                             "pwrite", "fdatasync", "malloc"};

struct counts {
    atomic_ulong n[KINDS];
};

static struct counts *mine; /* in shared memory; NULL: nobody counts */
static _Thread_local void (*in_send)(void); /* called in the next send */

/* A lock, and how often this thread took it. */
static pthread_mutex_t *watched;
static _Thread_local int watched_here;

#if COUNTED
static void count(int kind)
{
    if (mine)
        atomic_fetch_add(&mine->n[kind], 1);
}

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);

void *malloc(size_t size)
{
    count(MEMORY);
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    count(MEMORY);
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
    count(MEMORY);
    return __libc_realloc(p, size);
}

ssize_t send(int fd, const void *buf, size_t len, int flags)
{
    count(SEND);
    void (*hook)(void) = in_send;
    in_send = NULL;
    if (hook)
        hook();
    return syscall(SYS_sendto, fd, buf, len, flags, NULL, 0);
}

ssize_t recv(int fd, void *buf, size_t len, int flags)
{
    ssize_t n = syscall(SYS_recvfrom, fd, buf, len, flags, NULL, NULL);
    if (n >= 0) /* else somebody looks out for an answer that is near */
        count(RECV);
    return n;
}

int poll(struct pollfd *fds, nfds_t n, int ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000l};
    count(POLL);
    return (int)syscall(SYS_ppoll, fds, n, ms < 0 ? NULL : &t, NULL, 0);
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t at)
{
    count(PWRITE);
    return syscall(SYS_pwrite64, fd, buf, len, at);
}

int fdatasync(int fd)
{
    count(SYNC);
    return (int)syscall(SYS_fdatasync, fd);
}

int pthread_mutex_lock(pthread_mutex_t *lock)
{
    static int (*_Atomic real)(pthread_mutex_t *);
    if (!real)
        real =
            (int (*)(pthread_mutex_t *))dlsym(RTLD_NEXT, "pthread_mutex_lock");
    watched_here += lock == watched;
    return real(lock);
}
#endif

/* ---- checkpoints --------------------------------------------------------- */

static void by_calls(struct pair *t, int epochs)
{
    for (int i = 0; i < epochs; i++)
        pair_checkpoint(t);
}

static int lives(void *opaque)
{
    (void)opaque;
    return 1;
}

static void answered(void *opaque, int result)
{
    CHECK(result);
    EXPECT(sem_post(opaque) == 0);
}

static struct remus_ioctl_file file; /* of this pair's node */

/* What a node does for ioctls 20 and 30; 20 commits the one before. */
static void by_ioctls(struct pair *t, int epochs)
{
    sem_t safe;
    EXPECT(sem_init(&safe, 0, 0) == 0);
    for (int i = 0; i < epochs; i++) {
        CHECK(remus_primary_ioctl_send(t->p, &file, file.unique + 1, 0));
        remus_primary_look_out(t->p);
        int rc = remus_primary_ioctl_wait(t->p, &file, 20000,
                                          remus_primary_wait_id(t->p), lives,
                                          answered, &safe);
        if (rc == REMUS_PARKED)
            while (sem_wait(&safe))
                ;
        else
            CHECK(rc);
    }
    sem_destroy(&safe);
}

/* ---- counts of both sides ------------------------------------------------ */

enum { PRIMARY, BACKUP, SIDES };

static const char *const side_name[SIDES] = {"primary", "backup"};

struct costs {
    const char *name;
    void (*take)(struct pair *t, int epochs);
    enum remus_ack ack;
    unsigned long most[SIDES][KINDS]; /* of one checkpoint */
};

/*
 * The barrier goes out and its ack comes in, then the commit goes out; with
 * ioctls the word that a 30 was answered goes out, and the commit with the
 * next barrier.  A backup that has no time to apply keeps its epochs: here it
 * may need memory for them.
 */
static const struct costs all[] = {
    {"calls, memory",
     by_calls,
     REMUS_ACK_MEMORY,
     {{2, 1, 1, 0, 0, 0}, {1, 2, 2, 2, 0, 1}}},
    {"calls, durable",
     by_calls,
     REMUS_ACK_DURABLE,
     {{2, 1, 1, 0, 0, 0}, {1, 2, 2, 2, 1, 1}}},
    {"ioctls, memory",
     by_ioctls,
     REMUS_ACK_MEMORY,
     {{2, 1, 1, 0, 0, 0}, {1, 2, 2, 3, 0, 1}}},
    {"ioctls, durable",
     by_ioctls,
     REMUS_ACK_DURABLE,
     {{2, 1, 1, 0, 0, 0}, {1, 2, 2, 3, 1, 1}}},
};

static void add_round(struct pair *t, const struct costs *c,
                      struct counts *both, unsigned long fewest[SIDES][KINDS])
{
    for (int s = 0; s < SIDES; s++)
        for (int k = 0; k < KINDS; k++)
            atomic_store(&both[s].n[k], 0);
    c->take(t, EPOCHS);
    for (int s = 0; s < SIDES; s++)
        for (int k = 0; k < KINDS; k++) {
            unsigned long n = atomic_load(&both[s].n[k]);
            if (n < fewest[s][k])
                fewest[s][k] = n;
        }
}

static int compare(const struct costs *c, unsigned long got[SIDES][KINDS],
                   int tell)
{
    int bad = 0;
    for (int s = 0; s < SIDES; s++)
        for (int k = 0; k < KINDS; k++) {
            /* A tenth, for what belongs to no checkpoint. */
            unsigned long most = c->most[s][k] * EPOCHS;
            if (got[s][k] <= most + most / 10)
                continue;
            bad = 1;
            if (tell)
                fprintf(stderr,
                        "%s: %s: %lu times %s in %d checkpoints, not %lu\n",
                        c->name, side_name[s], got[s][k], kind_name[k], EPOCHS,
                        most);
        }
    return bad;
}

static int costs_of(const struct costs *c)
{
    struct pair t;
    struct counts *both =
        mmap(NULL, SIDES * sizeof *both, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(both != MAP_FAILED);
    pair_make(&t, 64u << 10, 64u << 10);
    t.ack = c->ack;
    file = (struct remus_ioctl_file){.session = "one"};
    pid_t pid = fork();
    CHECK(pid);
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        mine = &both[BACKUP];
        pair_open_backup(&t, NULL);
        for (;;)
            pause();
    }
    mine = &both[PRIMARY];
    pair_open_primary(&t, NULL);
    c->take(&t, EPOCHS); /* what is made once is made now */
    unsigned long fewest[SIDES][KINDS];
    memset(fewest, 0xff, sizeof fewest);
    for (int i = 0; i < ROUNDS && compare(c, fewest, 0); i++)
        add_round(&t, c, both, fewest);
    mine = NULL;
    remus_primary_close(t.p);
    kill(pid, SIGKILL);
    EXPECT(waitpid(pid, NULL, 0) == pid);
    pair_remove(&t);
    munmap(both, SIDES * sizeof *both);
    return compare(c, fewest, 1);
}

/* ---- who sends ------------------------------------------------------------ */

static struct pair *hooked;
static uint64_t safe_epoch;

static void commit_meanwhile(void)
{
    CHECK(remus_primary_commit(hooked->p, safe_epoch));
}

/* Another thread's commit while a barrier is being sent: who sends the one
 * sends the other, and nobody wakes the sender for it. */
static void test_whoever_sends_goes_on(void)
{
    struct pair t;
    uint64_t epoch;
    pair_make(&t, 64u << 10, 64u << 10);
    pair_open_backup(&t, NULL);
    pair_open_primary(&t, NULL);
    hooked = &t;
    CHECK(remus_primary_postsuspend(t.p, NULL, 0, &safe_epoch));
    CHECK(remus_primary_preresume(t.p, safe_epoch, 20000));
    watched = &t.p->queue.wake_lock;
    watched_here = 0;
    in_send = commit_meanwhile;
    CHECK(remus_primary_postsuspend(t.p, NULL, 0, &epoch));
    EXPECT(!in_send && watched_here == 0);
    remus_sendq_wake(&t.p->queue); /* is it seen? */
    EXPECT(watched_here == 1);
    watched = NULL;
    CHECK(remus_primary_preresume(t.p, epoch, 20000));
    pair_prove_and_close(&t, epoch);
}

int main(void)
{
    if (!COUNTED) {
        struct pair t;
        pair_open(&t, 64u << 10, 64u << 10, NULL);
        by_ioctls(&t, EPOCHS);
        by_calls(&t, EPOCHS);
        pair_prove_and_close(&t, pair_checkpoint(&t));
        return 0;
    }
    int bad = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        bad |= costs_of(&all[i]);
    test_whoever_sends_goes_on();
    return bad;
}
