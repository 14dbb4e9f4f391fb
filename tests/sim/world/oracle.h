/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the guest's disks held, and what was promised about it.
 *
 * One write is under way at a time (but for shared.h), so the disks go through states 0, 1, 2, ...
 * one a write.  A state is known by a sum over its bytes, which a write changes
 * by what it touches.  Of a checkpoint it is known between which two states it
 * was taken.
 */
#ifndef REMUS_WORLD_ORACLE_H
#define REMUS_WORLD_ORACLE_H

#include <stddef.h>
#include <stdint.h>

#define ORACLE_VOLUMES 64u
#define ORACLE_TAG 32u             /* bytes, at most */
#define ORACLE_BYTES (512u * 1024) /* of a volume, at most */

void oracle_begin(unsigned int volumes, const uint64_t *sizes);

/* The guest is about to write, and has its answer. */
void oracle_write(unsigned int volume, uint64_t offset, const void *data,
                  size_t len);
void oracle_answered(void);
/* The disks are found to hold this (after the guest's host died). */
void oracle_found(unsigned int volume, const void *data);
void oracle_found_all(void);

/* The first bytes of volume 0 are others' (shared.h). */
void oracle_without(uint64_t bytes);
/* Something happened that is no write of these disks: the state it leads to. */
uint64_t oracle_tick(void);

/* The disks' server was killed under its guest, which waits: what is being
 * written may be there in part, until another server has answered. */
void oracle_interrupted(void);

/* A read that began at `before` has ended with these bytes: NULL, or why that
 * can't be.  Of what is being written any part may be seen. */
struct oracle_moment {
    uint64_t begun, answered;
};
struct oracle_moment oracle_moment(void);
const char *oracle_read(const struct oracle_moment *before,
                        unsigned int volume, uint64_t offset,
                        const unsigned char *data, size_t len);

/* States that the guest may have reached: those answered, those begun. */
uint64_t oracle_answered_state(void);
uint64_t oracle_begun_state(void);

/* How a checkpoint was asked for. */
enum oracle_kind {
    ORACLE_CALL,
    ORACLE_IOCTL,
    ORACLE_EMPTY /* by an ioctl, which was told that there is nothing in it */
};

/* Checkpoint n was taken between two states; was it said to be safe? */
void oracle_checkpoint(uint64_t n, uint64_t from, uint64_t to,
                       enum oracle_kind kind);
/* ... with this tag. */
void oracle_tagged(uint64_t n, const void *tag, size_t len);
/* NULL if checkpoint n may have this tag, else why not. */
const char *oracle_check_tag(uint64_t n, const void *tag, size_t len);
uint64_t oracle_newest_taken(void);
void oracle_acked(uint64_t n);
/* What was acked may be lost from here on (ack = "memory", no power). */
void oracle_nothing_acked(void);
uint64_t oracle_newest_acked(void);
int oracle_is_acked(uint64_t n);

/* What may be a default: n, and all before it, is being committed; an ioctl
 * 30 was told that n is safe; what was taken so far may be committed by
 * anybody, its session is over. */
void oracle_committed(uint64_t n);
void oracle_heard(uint64_t n);
/* An ioctl 30 waits for n: the backup is told before who waits is. */
void oracle_asks(uint64_t n, int begins);
void oracle_session_over(void);
/* NULL if checkpoint n may be a default, else why not. */
const char *oracle_default(uint64_t n);

/* A side has said that n is committed on the backup. */
void oracle_said_committed(uint64_t n);
/* Output of the guest was sent that shows state n. */
void oracle_sent(uint64_t n);
uint64_t oracle_newest_sent(void);
/* That was only a word, and the power went before it was synced. */
void oracle_nothing_said(void);
uint64_t oracle_newest_said(void);

/* The guest goes on from checkpoint n, in the newest state: later promises
 * were another branch's, and nothing is safe yet. */
void oracle_branch(uint64_t n);

/* NULL if these disks may be checkpoint n, else why not. */
const char *oracle_check(uint64_t n, unsigned char *const *disks);
/* ... if they are what the guest's disks hold now. */
const char *oracle_check_last(unsigned char *const *disks);

#endif
