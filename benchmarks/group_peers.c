/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The C side of bench_group.py: one checkpoint of some disks, in three ways.
 *   raw    ioctl 20 on each, then ioctl 30 on each: no error handling
 *   group  csrc/group/group.c
 *   fork   a child process for each disk's ioctl 30, as libxl waits
 * And what a group costs by itself:
 *   null   a group of one device that returns at once; time per call
 *
 * Usage: group_peers MIB NODE...  It holds MIB mebibytes resident.  Then, for
 * each line "WAY DISKS EPOCHS" on its input, it answers with the nanoseconds
 * of each epoch on one line.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "remus.h"

#define DISKS 16
#define CALLS 1000

#define NEED(expr)                                                            \
    do {                                                                      \
        if ((long long)(expr) < 0) {                                          \
            fprintf(stderr, "%s: %s; %s\n", #expr, strerror(errno),           \
                    remus_last_error());                                      \
            exit(1);                                                          \
        }                                                                     \
    } while (0)

static int fds[DISKS];
static remus_drbd *disks[DISKS];

static unsigned long long now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (unsigned long long)ts.tv_sec * 1000000000u +
           (unsigned long long)ts.tv_nsec;
}

static void raw(int n)
{
    for (int i = 0; i < n; i++)
        NEED(ioctl(fds[i], REMUS_IOCTL_SEND_CHECKPOINT, 0));
    for (int i = 0; i < n; i++)
        NEED(ioctl(fds[i], REMUS_IOCTL_WAIT_CHECKPOINT_ACK, 0));
}

static void forks(int n)
{
    pid_t children[DISKS];
    for (int i = 0; i < n; i++)
        NEED(ioctl(fds[i], REMUS_IOCTL_SEND_CHECKPOINT, 0));
    for (int i = 0; i < n; i++) {
        NEED(children[i] = fork());
        if (!children[i])
            _exit(ioctl(fds[i], REMUS_IOCTL_WAIT_CHECKPOINT_ACK, 0) < 0);
    }
    for (int i = 0; i < n; i++) {
        int status;
        NEED(waitpid(children[i], &status, 0));
        if (status)
            exit(1);
    }
}

static remus_group *group_of(int n)
{
    remus_group *g;
    NEED(remus_group_open("bench", &g));
    for (int i = 0; i < n; i++)
        NEED(remus_group_add_drbd(g, "disk", disks[i]));
    NEED(remus_group_start(g, 0));
    return g;
}

static void checkpoint(remus_group *g)
{
    NEED(remus_group_postsuspend(g, NULL, 0));
    NEED(remus_group_preresume(g, 5000));
}

static int null_send(void *opaque, const void *tag, size_t len,
                     uint64_t *epoch)
{
    static uint64_t epochs;
    (void)opaque;
    (void)tag;
    (void)len;
    *epoch = ++epochs;
    return 0;
}

static int null_wait(void *opaque, uint64_t epoch, int64_t timeout_ms)
{
    (void)opaque;
    (void)epoch;
    (void)timeout_ms;
    return 0;
}

static int null_commit(void *opaque, uint64_t epoch)
{
    (void)opaque;
    (void)epoch;
    return 0;
}

/* Nanoseconds of the three calls, CALLS times each. */
static void null_device(int epochs)
{
    static const struct remus_device_ops ops = {sizeof ops, null_send,
                                                null_wait, null_commit, NULL};
    remus_group *g;
    NEED(remus_group_open("null", &g));
    NEED(remus_group_add_device(g, "null", &ops, NULL));
    NEED(remus_group_start(g, 0));
    for (int i = 0; i < epochs; i++) {
        unsigned long long start = now();
        for (int k = 0; k < CALLS; k++) {
            NEED(remus_group_postsuspend(g, NULL, 0));
            NEED(remus_group_preresume(g, 5000));
            NEED(remus_group_commit(g));
        }
        printf("%llu ", (now() - start) / CALLS);
    }
    remus_group_close(g);
}

static void measure(const char *way, int n, int epochs)
{
    if (!strcmp(way, "null")) {
        null_device(epochs);
        return;
    }
    remus_group *g = strcmp(way, "group") ? NULL : group_of(n);
    for (int i = 0; i < epochs; i++) {
        unsigned long long start = now();
        if (g)
            checkpoint(g);
        else if (!strcmp(way, "raw"))
            raw(n);
        else
            forks(n);
        printf("%llu ", now() - start);
    }
    remus_group_close(g);
}

int main(int argc, char **argv)
{
    if (argc < 3 || argc > 2 + DISKS)
        return 2;
    size_t size = strtoul(argv[1], NULL, 10) << 20;
    char *resident = malloc(size + 1);
    if (!resident)
        return 1;
    for (size_t i = 0; i < size; i += 4096)
        resident[i] = 1;
    for (int i = 2; i < argc; i++) {
        NEED(fds[i - 2] = open(argv[i], O_RDONLY | O_CLOEXEC));
        NEED(remus_drbd_open(argv[i], &disks[i - 2]));
    }
    char line[64], way[16];
    int n, epochs;
    while (fgets(line, sizeof line, stdin) &&
           sscanf(line, "%15s %d %d", way, &n, &epochs) == 3) {
        measure(way, n, epochs);
        printf("\n");
        fflush(stdout);
    }
    free(resident);
    return 0;
}
