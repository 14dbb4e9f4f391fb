/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sectors of the first volume that several threads of the guest write at once,
 * and nobody else.  Of a sector it is known when each write of it began and
 * when it was answered, in states of the oracle.  A checkpoint may hold a write
 * unless a later one, begun after its answer, was answered before; and it
 * holds a sector from one write, whole.  One that was taken while all of
 * them stood still holds what the primary's disk held.
 */
#ifndef REMUS_WORLD_SHARED_H
#define REMUS_WORLD_SHARED_H

#include <stddef.h>
#include <stdint.h>

#define SHARED_SECTOR 512u
#define SHARED_SECTORS 32u
#define SHARED_BYTES (SHARED_SECTOR * SHARED_SECTORS)

void shared_begin(void);
/* Sectors [first, first + count) are being written: the write's number. */
uint64_t shared_write(unsigned int first, unsigned int count,
                      const void *data);
/* That write was answered. */
void shared_answered(unsigned int first, unsigned int count, uint64_t write);
/* Whoever wrote is gone: what was not answered is over. */
void shared_writers_gone(void);
/* These sectors were found to hold this. */
void shared_found(unsigned int first, unsigned int count, const void *data);

/* One thread reads them: NULL, or which value came back that another one had
 * followed.  No two writes have the same first bytes. */
void shared_reader_begins(void);
const char *shared_read(const void *data);

/* Checkpoint n was taken while all sectors held this, and nobody wrote. */
void shared_stood_still(uint64_t n, const void *data);
/* Checkpoints of before are another branch's. */
void shared_branch(void);
/* NULL if checkpoint n, taken between these states, may hold this. */
const char *shared_check(uint64_t n, uint64_t from, uint64_t to,
                         const void *data);

#endif
