/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Groups: what an epoch must not cost.  No memory is allocated in any thread
 * (malloc is counted), and no process, thread, file or mapping is made (the
 * kernel is told to end this process at the first such system call).  And
 * whoever waits is woken once, however many devices answer.
 *
 * Usage: test_group_costs [FILE...]: with FILEs, nodes that ack at once, the
 * epochs are those of their devices.
 */
#include <errno.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "group/drbd.h"
#include "group_dev.h"

#define EPOCHS 2000

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNTED 0 /* their allocator is in the place of ours */
#else
#define COUNTED 1
#endif

/* ---- counting ------------------------------------------------------------ */

static atomic_ulong allocations;

#if COUNTED
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);

void *malloc(size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_realloc(p, size);
}
#endif

/* ---- what the kernel shall not let us do any more ------------------------ */

#define FORBID(name)                                                          \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1),                    \
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)

/* For good, in all threads. */
static void forbid(void)
{
    static struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        FORBID(clone),
        FORBID(clone3),
        FORBID(execve),
        FORBID(openat),
        FORBID(openat2),
        FORBID(memfd_create),
        FORBID(eventfd2),
        FORBID(epoll_create1),
        FORBID(timerfd_create),
        FORBID(pipe2),
        FORBID(socket),
        FORBID(socketpair),
        FORBID(dup),
        FORBID(dup3),
        FORBID(mmap),
        FORBID(mremap),
        FORBID(brk),
#ifdef SYS_fork
        FORBID(fork),
        FORBID(vfork),
        FORBID(open),
        FORBID(creat),
        FORBID(eventfd),
        FORBID(epoll_create),
        FORBID(pipe),
        FORBID(dup2),
#endif
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    static const struct sock_fprog program = {
        (unsigned short)(sizeof filter / sizeof *filter), filter};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                  SECCOMP_FILTER_FLAG_TSYNC, &program));
}

/* ---- epochs -------------------------------------------------------------- */

static void epochs(remus_group *g, int begins, remus_primary *p, int count)
{
    static const char data[4096] = "x";
    for (int i = 0; i < count; i++) {
        if (p)
            for (int k = 0; k < 4; k++)
                CHECK(remus_primary_pwrite(p, 0, data, sizeof data,
                                           (uint64_t)(i % 4) * 4096));
        CHECK(remus_group_postsuspend(g, "7", 1));
        if (begins) {
            CHECK(remus_group_preresume_begin(g, 20000));
            EXPECT(readable(g, 20000) == 1);
            CHECK(remus_group_preresume_finish(g));
        } else {
            CHECK(remus_group_preresume(g, 20000));
        }
        CHECK(remus_group_commit(g));
    }
}

/* Everything that is made once is made by the first epochs. */
static void measure(remus_group *g, int begins, remus_primary *p)
{
    epochs(g, begins, p, 200);
    forbid();
    unsigned long before = atomic_load(&allocations);
    epochs(g, begins, p, EPOCHS);
    unsigned long made = atomic_load(&allocations) - before;
    if (made) {
        fprintf(stderr, "%lu allocations in %d epochs\n", made, EPOCHS);
        _exit(1);
    }
}

static void own_devices(int count, int begins, char **unused, struct pair *t)
{
    (void)unused;
    (void)t;
    measure(group_of(count, begins), begins, NULL);
}

static void node_devices(int count, int begins, char **files, struct pair *t)
{
    (void)t;
    remus_group *g;
    CHECK(remus_group_open("guest0", &g));
    for (int i = 0; i < count; i++) {
        remus_drbd *dev;
        CHECK(remus_drbd_open(files[i], &dev));
        CHECK(remus_group_add_drbd(g, files[i], dev));
    }
    CHECK(remus_group_start(g, begins));
    measure(g, begins, NULL);
}

/* The primary of a pair; its backup is another process. */
static void replica_device(int others, int begins, char **unused,
                           struct pair *t)
{
    (void)unused;
    pair_open_primary(t, NULL);
    remus_group *g;
    CHECK(remus_group_open("guest0", &g));
    for (int i = 0; i < others; i++) {
        dev_init(&devs[i]);
        CHECK(remus_group_add_device(g, "other", &dev_ops, &devs[i]));
    }
    CHECK(remus_group_add_primary(g, "disks", t->p));
    CHECK(remus_group_start(g, begins));
    measure(g, begins, t->p);
}

/* Each in a process of its own, which ends with its filter. */
typedef void test_fn(int count, int begins, char **files, struct pair *t);

static int exit_of(test_fn *test, int count, int begins, char **files,
                   struct pair *t)
{
    int status;
    pid_t pid = fork();
    CHECK(pid);
    if (!pid) {
        test(count, begins, files, t);
        _exit(0);
    }
    EXPECT(waitpid(pid, &status, 0) == pid);
    return status;
}

static void expect_none(int status, int count, int begins)
{
    if (!status)
        return;
    fprintf(stderr, "%d devices, begins %d: %s %d\n", count, begins,
            WIFSIGNALED(status) ? "a forbidden system call, signal"
                                : "exit code",
            WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    exit(1);
}

static void alone(test_fn *test, int count, int begins, char **files)
{
    expect_none(exit_of(test, count, begins, files, NULL), count, begins);
}

static void with_backup(int others, int begins)
{
    struct pair t;
    pair_make(&t, 64u << 10, 64u << 10);
    pid_t pid = fork();
    CHECK(pid);
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pair_open_backup(&t, NULL);
        for (;;)
            pause();
    }
    int status = exit_of(replica_device, others, begins, NULL, &t);
    kill(pid, SIGKILL);
    EXPECT(waitpid(pid, NULL, 0) == pid);
    pair_remove(&t);
    expect_none(status, others + 1, begins);
}

static void opens(int count, int begins, char **files, struct pair *t)
{
    (void)count;
    (void)begins;
    (void)files;
    (void)t;
    forbid();
    open("/dev/null", O_RDONLY);
}

static void allocates(int count, int begins, char **files, struct pair *t)
{
    (void)count;
    (void)begins;
    (void)files;
    (void)t;
    unsigned long before = atomic_load(&allocations);
    void *volatile p = malloc(1);
    free(p);
    EXPECT(atomic_load(&allocations) == before + 1);
}

/* Does this test see what it looks for? */
static void test_the_test(void)
{
    int status = exit_of(opens, 0, 0, NULL, NULL);
    EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
    alone(allocates, 0, 0, NULL);
}

/* ---- wake-ups ------------------------------------------------------------ */

struct waiter {
    remus_group *group;
    int rc;
    long wakeups; /* times that the thread slept in preresume */
    atomic_int id;
};

static long slept(void)
{
    struct rusage u;
    CHECK(getrusage(RUSAGE_THREAD, &u));
    return u.ru_nvcsw;
}

static void *waiter_main(void *arg)
{
    struct waiter *w = arg;
    long before = slept();
    atomic_store(&w->id, (int)syscall(SYS_gettid));
    w->rc = remus_group_preresume(w->group, 20000);
    w->wakeups = slept() - before;
    return NULL;
}

/* The caller sleeps in its own device, then for the others, and that is all. */
static long wake_ups(void)
{
    remus_group *g = group_of(DEVICES, 0);
    struct waiter w = {.group = g};
    pthread_t thread;
    for (int i = 0; i < DEVICES; i++)
        dev_set(&devs[i], &devs[i].open, 0);
    CHECK(remus_group_postsuspend(g, NULL, 0));
    EXPECT(pthread_create(&thread, NULL, waiter_main, &w) == 0);
    for (int i = 0; i < DEVICES; i++)
        dev_await(&devs[i], 1);
    /* One after the other, each with time to wake whoever it would. */
    for (int i = 0; i < DEVICES; i++) {
        dev_set(&devs[i], &devs[i].open, 1);
        if (i + 1 < DEVICES)
            await_ack(g, i);
        usleep(2000);
    }
    pthread_join(thread, NULL);
    EXPECT(w.rc == 0);
    remus_group_close(g);
    return w.wakeups;
}

/* Two, and a contended lock or two, of which a busy machine has more: the
 * fewest of some rounds. */
static void test_one_wake_up(void)
{
    long fewest = LONG_MAX;
    for (int i = 0; i < 10 && fewest > 4; i++) {
        long n = wake_ups();
        fewest = n < fewest ? n : fewest;
    }
    if (fewest > 4) {
        fprintf(stderr, "woken %ld times by %d devices\n", fewest, DEVICES);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    if (!COUNTED) {
        test_one_wake_up();
        return 0;
    }
    for (int begins = 0; argc > 1 && begins < 2; begins++) {
        alone(node_devices, 1, begins, argv + 1);
        alone(node_devices, argc - 1, begins, argv + 1);
    }
    if (argc > 1)
        return 0;
    test_the_test();
    for (int begins = 0; begins < 2; begins++) {
        alone(own_devices, 1, begins, NULL);
        alone(own_devices, DEVICES, begins, NULL);
        with_backup(0, begins);
        with_backup(2, begins);
    }
    test_one_wake_up();
    return 0;
}
