/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/wake.h"

#include <errno.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork.h"

int remus_wake_open(void)
{
    int fd = remus_fd_own(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    return fd < 0 ? remus_fail(-errno, "eventfd: %s", remus_errno_text(errno))
                  : fd;
}

void remus_wake(int wake)
{
    uint64_t one = 1;
    ssize_t n = wake < 0 ? 0 : write(wake, &one, sizeof one);
    (void)n; /* it takes 2^64-2 of them */
}

int remus_wake_clear(int wake)
{
    uint64_t count;
    return read(wake, &count, sizeof count) == sizeof count;
}

void remus_wake_close(int wake)
{
    if (wake >= 0)
        remus_fd_close(wake);
}
