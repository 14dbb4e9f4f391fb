/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How a guest's thread reaches its disks: by the library's calls, in the
 * primary's process; or through the nodes of a host whose guest outlives that
 * process (device.h), and then each of these waits until some process has
 * answered.
 */
#ifndef REMUS_WORLD_REACH_H
#define REMUS_WORLD_REACH_H

#include "sides.h"

struct reach {
    struct side *s;
    uint64_t fh[ORACLE_VOLUMES];
};

/* All disks, for writing.  0 or -errno, as each of these. */
int reach_open(struct side *s, struct reach *r);
void reach_close(struct reach *r);
int reach_write(struct reach *r, unsigned int volume, const void *data,
                size_t len, uint64_t offset);
int reach_zero(struct reach *r, unsigned int volume, uint64_t offset,
               uint64_t len, int discard);

/* A guest's thread that reads through the nodes, and what it may not see. */
void *reader_main(void *arg);
/* Contract 10: the primary counts the files that are open there. */
void check_files(int host);

#endif
