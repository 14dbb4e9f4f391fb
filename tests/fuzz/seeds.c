/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inputs to begin with: --seeds DIR. */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "fuzz.h"

static const char *seeds_dir;
static unsigned int seeds;

void fuzz_seed(const void *data, size_t size)
{
    char path[4096];
    if (!seeds_dir)
        return;
    snprintf(path, sizeof path, "%s/seed-%03u", seeds_dir, seeds++);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    MUST(fd >= 0);
    MUST(write(fd, data, size) == (ssize_t)size);
    MUST(close(fd) == 0);
}

void fuzz_begin(int *argc, char ***argv, void (*make_seeds)(void))
{
    if (*argc != 3 || strcmp((*argv)[1], "--seeds"))
        return;
    seeds_dir = (*argv)[2];
    make_seeds();
    exit(0);
}
