/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who sent a request.  FUSE names the thread, as it is seen from the
 * namespace of the mount (0: it can't be); sessions are processes.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "node/fuse_int.h"

#define EXITING 0x4ul     /* PF_EXITING, in the flags of /proc/N/stat */
#define KILLED (1ul << 8) /* SIGKILL, in its pending signals */

/* A file of /proc, which takes no disk.  Its length, or -1. */
static ssize_t slurp(const char *name, char *buf, size_t cap)
{
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, cap - 1);
    if (fd >= 0)
        close(fd);
    buf[n > 0 ? n : 0] = '\0';
    return n;
}

int32_t remus_process_of(int32_t tid, int32_t likely)
{
    char name[64], text[2048];
    if (tid <= 0)
        return 0;
    snprintf(name, sizeof name, "/proc/%d/task/%d", likely, tid);
    if (likely > 0 && access(name, F_OK) == 0)
        return likely;
    snprintf(name, sizeof name, "/proc/%d/status", tid);
    const char *at =
        slurp(name, text, sizeof text) > 0 ? strstr(text, "\nTgid:") : NULL;
    long pid = at ? strtol(at + strlen("\nTgid:"), NULL, 10) : 0;
    return pid > 0 ? (int32_t)pid : tid; /* without /proc: most have one */
}

int remus_process_open(int32_t pid)
{
    return pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
}

int remus_process_lives(int pidfd)
{
    struct pollfd pf = {.fd = pidfd, .events = POLLIN};
    return pidfd >= 0 && poll(&pf, 1, 0) == 0;
}

/* 1: it is being killed; 0: it is not; -1: there is none. */
static int thread_dies(const char *name)
{
    char text[1024];
    if (slurp(name, text, sizeof text) <= 0)
        return -1;
    /* The name, field 2, may hold anything, a ')' too. */
    char *at = strrchr(text, ')'), *save;
    unsigned long flags = 0, pending = 0;
    at = at ? strtok_r(at + 1, " ", &save) : NULL;
    for (int field = 3; at; field++) {
        if (field == 9)
            flags = strtoul(at, NULL, 10);
        else if (field == 31)
            pending = strtoul(at, NULL, 10);
        at = strtok_r(NULL, " ", &save);
    }
    return (flags & EXITING) != 0 || (pending & KILLED) != 0;
}

/* All threads that it still has?  One that ends by itself kills nobody. */
static int process_dies(int32_t pid)
{
    char name[sizeof "/proc//task//stat" + 2 * 16 + 256];
    snprintf(name, sizeof name, "/proc/%d/task", pid);
    DIR *dir = pid > 0 ? opendir(name) : NULL;
    const struct dirent *entry;
    int dies = dir != NULL;
    while (dies && (entry = readdir(dir))) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(name, sizeof name, "/proc/%d/task/%s/stat", pid,
                 entry->d_name);
        dies = thread_dies(name) != 0;
    }
    if (dir)
        closedir(dir);
    return dies;
}

int remus_waiter_dies(int32_t tid, int32_t pid)
{
    char name[64];
    snprintf(name, sizeof name, "/proc/%d/stat", tid);
    int dies = tid > 0 ? thread_dies(name) : -1;
    return dies < 0 ? process_dies(pid) : dies;
}
