/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * /dev/fuse of a host whose guest outlives its disks' server: the kernel's side
 * of the mount.
 *
 * A request is handed out once, into the memory of whoever reads it; whoever
 * has the descriptor may answer it, once.  What was handed out to a process
 * that is gone stays unanswered, and its guest waits.  The descriptor and the
 * memory that is kept (fuse_kept.h) belong to the guest's machine: both end
 * with it.
 */
#ifndef REMUS_WORLD_DEVICE_H
#define REMUS_WORLD_DEVICE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* A machine begins: its first request, INIT, waits for a server. */
void device_begin(int host, unsigned int volumes);
/* It ends: nobody waits any more. */
void device_end(int host);
int device_lives(int host);
/* What the keeper holds: a server is started with both. */
int device_descriptor(int host);
int device_memory(int host);

/* read(2) of a server; ENODEV: there will be nothing more. */
ssize_t device_read(int host, void *buf, size_t cap);
/* write(2) of one: 0, or -ENOENT nobody waits for this one (any more). */
int device_answer(int host, uint64_t unique, int error, const void *data,
                  size_t len);

/* A request of the guest's, and its answer. */
struct asked {
    uint32_t opcode;
    uint64_t node;
    const void *body, *data; /* behind the header; behind that */
    size_t body_len, data_len;
    void *out; /* the answer's bytes, at most so many */
    size_t cap, len;
};
/* Wait for the answer of whatever server there is: 0 or -errno. */
int device_ask(int host, struct asked *a);

/* Requests that a server has and has not answered. */
unsigned int device_taken(int host);
/* Files that are open for writing; -1: one is about to be, or is closed. */
int device_writers(int host);
/* How many opens and releases there were. */
uint64_t device_moved(int host);

#endif
