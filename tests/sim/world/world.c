/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Both sides, whole, in a world that a seed decides.
 *
 *   world SEED [COUNT]           seeds from SEED on; fails if one does
 *   world --jobs N SEED COUNT    ... dealt out to N processes, each on one CPU
 *   world --trace SEED           one, and what happens in it
 *   world --twice SEED [COUNT]   each twice: the same to the last point, with the
 *                                baton handed on by hand and by the kernel?
 *   world --by-kernel ...        with every thread a task that waits (for gdb)
 *   world --first, --as-it-is    end with the first that fails; don't shrink it
 *   world --skip BITS --plain BITS --trace SEED    one that was shrunk
 *
 * Two hosts with disks: a primary with a guest that writes and a toolstack that
 * takes checkpoints, and a backup.  The operator kills either process, takes
 * the power from either host, cuts, holds and resets the link, stalls and
 * fails disks, and in the end fails over.  The oracle (oracle.h) says what the
 * disks may hold then, and what may not be missing.
 *
 * Every seed is run in a process of its own.  All threads of a world share
 * one CPU: only one of them runs at a time, and a baton that goes to another
 * CPU costs twenty times as much.
 */
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "run.h"
#include "sched.h"

#define SHOWN 12000 /* bytes of what a failed seed said, at most */
#define FULL 3      /* so many of them are shown */
#define ENOUGH 25   /* failures: no more seeds are begun; --first: 1 */

/* What the processes of one call share. */
struct shared {
    atomic_ullong next; /* the next seed to be run, from 0 on */
    atomic_ullong failed, run, points;
    uint64_t shrink; /* the first that failed */
};

static struct options {
    int trace, twice, as_it_is, by_kernel;
    unsigned int enough;
    struct reduction less;
    unsigned int jobs;
    uint64_t seed, count;
} options;

/* What one run came to. */
struct outcome {
    uint64_t digest, points;
};

/* ---- one seed ------------------------------------------------------------------- */

/* libgcov's, where it is linked (`make coverage`). */
extern void __gcov_dump(void) __attribute__((weak));

static void child(uint64_t seed, int out, int result, int by_kernel)
{
    if (!options.trace) {
        dup2(out, STDOUT_FILENO);
        dup2(out, STDERR_FILENO);
    }
    alarm(120);
    world_run(seed, options.trace, by_kernel, &options.less);
    struct outcome o = {world_digest(), world_points()};
    if (write(result, &o, sizeof o) != sizeof o)
        _exit(2);
    fflush(stdout);
    if (__gcov_dump)
        __gcov_dump();
    _exit(0);
}

/* The end of what it said. */
static const char *said(int out)
{
    static char text[SHOWN + 1];
    off_t size = lseek(out, 0, SEEK_END);
    off_t from = size > SHOWN ? size - SHOWN : 0;
    ssize_t n = pread(out, text, SHOWN, from);
    text[n > 0 ? n : 0] = 0;
    const char *line = from ? strchr(text, '\n') : NULL;
    return line ? line + 1 : text;
}

static const char *failure(int out)
{
    const char *line = strstr(said(out), "FAILED seed");
    return line ? line : "FAILED";
}

/* What it said last, and how to see all of it. */
static void show(uint64_t seed, int out, int status)
{
    printf("%s", said(out));
    if (WIFSIGNALED(status))
        printf("FAILED seed %llu: signal %d\n", (unsigned long long)seed,
               WTERMSIG(status));
    printf("to see all of it: build/world --trace");
    if (options.less.skip || options.less.plain)
        printf(" --skip 0x%llx --plain 0x%x",
               (unsigned long long)options.less.skip, options.less.plain);
    printf(" %llu\n\n", (unsigned long long)seed);
    fflush(stdout);
}

/* 0 and its outcome, or the status of its process. */
static int in_process(uint64_t seed, int out, struct outcome *o, int by_kernel)
{
    int result[2], status = -1;
    fflush(stdout);
    if (ftruncate(out, 0) || lseek(out, 0, SEEK_SET) || pipe(result))
        return -1;
    pid_t pid = fork();
    if (pid == 0) {
        close(result[0]);
        child(seed, out, result[1], by_kernel);
    }
    close(result[1]);
    *o = (struct outcome){0};
    ssize_t n = read(result[0], o, sizeof *o);
    close(result[0]);
    waitpid(pid, &status, 0);
    return n == sizeof *o ? status : status ? status : -1;
}

static void one(struct shared *shared, uint64_t seed, int out)
{
    struct outcome first, again;
    int status = in_process(seed, out, &first, options.by_kernel);
    shared->points += first.points;
    shared->run++;
    if (!status && options.twice) {
        status = in_process(seed, out, &again, !options.by_kernel);
        if (!status &&
            (again.digest != first.digest || again.points != first.points)) {
            shared->failed++;
            printf("FAILED seed %llu: it does not run the same twice\n",
                   (unsigned long long)seed);
            return;
        }
    }
    if (!status)
        return;
    uint64_t before = shared->failed++;
    if (before < FULL)
        show(seed, out, status);
    else
        printf("%.*s\n", (int)strcspn(failure(out), "\n"), failure(out));
    if (!before)
        shared->shrink = seed;
}

/* ---- shrinking ------------------------------------------------------------------ */

/* Why it failed, up to the first number. */
static void reason(int out, char *why, size_t cap)
{
    const char *line = strchr(failure(out), ':');
    size_t n = line ? 2 + strcspn(line + 2, "0123456789\n") : 0;
    snprintf(why, cap, "%.*s", (int)n, line ? line : "");
}

/* Does it still fail for that reason with this reduction? */
static int still(uint64_t seed, int out, const struct reduction *less,
                 const char *why)
{
    struct reduction before = options.less;
    struct outcome o;
    char now[120];
    options.less = *less;
    int status = in_process(seed, out, &o, options.by_kernel);
    reason(out, now, sizeof now);
    if (status && !strcmp(now, why))
        return 1;
    options.less = before;
    return 0;
}

/* Leave out what is not needed for the failure, and show what is left. */
static void shrink(uint64_t seed)
{
    struct outcome o;
    char why[120];
    int out = memfd_create("world", 0), news = 1;
    if (out < 0 || !in_process(seed, out, &o, options.by_kernel))
        return;
    reason(out, why, sizeof why);
    while (news) {
        news = 0;
        for (unsigned int i = 0; i < PROGRAM_STEPS; i++) {
            struct reduction less = options.less;
            less.skip |= (uint64_t)1 << i;
            if (less.skip != options.less.skip)
                news |= still(seed, out, &less, why);
        }
        for (unsigned int bit = 1; bit < PLAIN_ALL; bit *= 2) {
            struct reduction less = options.less;
            less.plain |= bit;
            if (less.plain != options.less.plain)
                news |= still(seed, out, &less, why);
        }
    }
    int status = in_process(seed, out, &o, options.by_kernel);
    printf("---- seed %llu, shrunk ----\n", (unsigned long long)seed);
    show(seed, out, status);
}

/* ---- all of them ------------------------------------------------------------------ */

/* The `n`th CPU that this process may use, and no other. */
static void on_one_cpu(unsigned int n)
{
    cpu_set_t may, one_cpu;
    if (sched_getaffinity(0, sizeof may, &may) || !CPU_COUNT(&may))
        return;
    n %= (unsigned int)CPU_COUNT(&may);
    CPU_ZERO(&one_cpu);
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &may) && n-- == 0) {
            CPU_SET(cpu, &one_cpu);
            break;
        }
    sched_setaffinity(0, sizeof one_cpu, &one_cpu);
}

static void work(struct shared *shared, unsigned int job)
{
    int out = memfd_create("world", 0);
    if (out < 0)
        _exit(2);
    on_one_cpu(job);
    for (uint64_t i; (i = shared->next++) < options.count &&
                     shared->failed < options.enough;)
        one(shared, options.seed + i, out);
    fflush(stdout);
    _exit(0);
}

static int run_all(struct shared *shared)
{
    int broken = 0;
    for (unsigned int job = 0; job < options.jobs; job++)
        if (fork() == 0)
            work(shared, job);
    for (int status; wait(&status) > 0;)
        broken |= status;
    return broken;
}

static int usage(void)
{
    fprintf(stderr, "usage: world [--trace | --twice] [--first] [--as-it-is] "
                    "[--by-kernel]\n    [--jobs N]"
                    " [--skip STEPS] [--plain WHAT] SEED [COUNT]\n");
    return 2;
}

static int parse(int argc, char **argv)
{
    options.jobs = 1;
    options.count = 1;
    options.enough = ENOUGH;
    int i = 1;
    for (; i < argc && argv[i][0] == '-'; i++) {
        if (!strcmp(argv[i], "--trace"))
            options.trace = 1;
        else if (!strcmp(argv[i], "--twice"))
            options.twice = 1;
        else if (!strcmp(argv[i], "--by-kernel"))
            options.by_kernel = 1;
        else if (!strcmp(argv[i], "--as-it-is"))
            options.as_it_is = 1;
        else if (!strcmp(argv[i], "--skip") && i + 1 < argc)
            options.less.skip = strtoull(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--plain") && i + 1 < argc)
            options.less.plain = (unsigned int)strtoul(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--first"))
            options.enough = 1;
        else if (!strcmp(argv[i], "--jobs") && i + 1 < argc)
            options.jobs = (unsigned int)strtoul(argv[++i], NULL, 10);
        else
            return usage();
    }
    if (i == argc || argc - i > 2 || !options.jobs)
        return usage();
    options.seed = strtoull(argv[i], NULL, 10);
    if (i + 1 < argc)
        options.count = strtoull(argv[i + 1], NULL, 10);
    return 0;
}

int main(int argc, char **argv)
{
    struct timespec start, stop;
    if (parse(argc, argv))
        return 2;
    setvbuf(stdout, NULL, _IOFBF, 65536);
    struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return 2;
    clock_gettime(CLOCK_MONOTONIC, &start);
    int broken = run_all(shared);
    clock_gettime(CLOCK_MONOTONIC, &stop);
    double s = (double)(stop.tv_sec - start.tv_sec) +
               (double)(stop.tv_nsec - start.tv_nsec) / 1e9;
    if (shared->failed && !options.as_it_is && !options.trace &&
        !options.twice) {
        on_one_cpu(0);
        shrink(shared->shrink);
    }
    printf("%llu seeds from %llu on, %llu failed; %.1f s, %.0f seeds/s, "
           "%.1f million points\n",
           (unsigned long long)shared->run, (unsigned long long)options.seed,
           (unsigned long long)shared->failed, s, (double)shared->run / s,
           (double)shared->points / 1e6);
    return shared->failed || broken ? 1 : 0;
}
