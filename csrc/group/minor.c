/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "group/minor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fork.h"

/* Read line by line with what fits; longer lines are cut. */
struct lines {
    int fd;
    size_t at, end;
    char buf[4096];
};

/* The next line without its end: 1; 0 none; -errno. */
static int next_line(struct lines *in, char *line, size_t cap)
{
    size_t used = 0;
    for (;;) {
        if (in->at == in->end) {
            ssize_t n = read(in->fd, in->buf, sizeof in->buf);
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0)
                return -errno;
            if (n == 0) {
                line[used] = '\0';
                return used > 0;
            }
            in->at = 0;
            in->end = (size_t)n;
        }
        char c = in->buf[in->at++];
        if (c == '\n') {
            line[used] = '\0';
            return 1;
        }
        if (used + 1 < cap)
            line[used++] = c;
    }
}

/* The number that a minor's first line begins with; -1: not such a line. */
static long number_of(const char *line)
{
    char *end;
    while (*line == ' ')
        line++;
    if (*line < '0' || *line > '9')
        return -1;
    long number = strtol(line, &end, 10);
    return strncmp(end, ": cs:", 5) ? -1 : number;
}

static void read_first(const char *line, struct remus_minor *out)
{
    char disks[40] = "", letter[8] = "";
    const char *cs = strstr(line, "cs:");
    /* "%7s" of a blank letter reads the flags, which are longer. */
    int got = sscanf(cs, "cs:%31s ro:%39s ds:%39s %7s", out->state, out->roles,
                     disks, letter);
    out->connected = !strcmp(out->state, "Connected");
    out->stand_alone = !strcmp(out->state, "StandAlone");
    out->both_primary = !strcmp(out->roles, "Primary/Primary");
    if (got == 4 && letter[0] >= 'A' && letter[0] <= 'Z' && !letter[1])
        out->protocol = letter[0];
}

/* 1: found; 0: not there. */
static int read_minor(struct lines *in, unsigned int minor,
                      struct remus_minor *out)
{
    char line[512];
    int found = 0, rc;
    while ((rc = next_line(in, line, sizeof line)) > 0) {
        long number = number_of(line);
        if (number >= 0 && found)
            break; /* the next minor: no counters for ours */
        if (number == (long)minor) {
            read_first(line, out);
            if (!strcmp(out->state, "Unconfigured"))
                break;
            found = 1;
        }
        const char *pe = found ? strstr(line, " pe:") : NULL;
        if (pe) {
            out->pending = strtoul(pe + 4, NULL, 10);
            return 1;
        }
    }
    return rc < 0 ? rc : 0;
}

int remus_minor_read(const char *path, unsigned int minor,
                     struct remus_minor *out)
{
    memset(out, 0, sizeof *out);
    struct lines in = {
        .fd = remus_fd_own(open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY))};
    if (in.fd < 0)
        return -errno;
    int rc = read_minor(&in, minor, out);
    remus_fd_close(in.fd);
    return rc < 0 ? rc : rc ? 0 : -ENXIO;
}
