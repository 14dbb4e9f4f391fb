/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the FUSE node needs of a primary beyond remus.h: requests that never
 * wait.  A request that can't be finished at once is parked by the primary
 * and finished later by one of its own threads, which then calls `done`.
 */
#ifndef REMUS_PRIMARY_H
#define REMUS_PRIMARY_H

#include <stdatomic.h>

#include "base/io.h"
#include "remus.h"

/* "Not finished: `done` will be called exactly once, from another thread
 * (perhaps before this call returns)." */
#define REMUS_PARKED 1

/* `result`: 0 or -errno.  Must not block and must not call the primary. */
typedef void (*remus_done_fn)(void *opaque, int result);

/* Who gets the answer of a request, and who waits for it. */
struct remus_asker {
    /* Called before anything is changed on the disk, under the request's
     * range; not if that never begins.  Must not block.  NULL: nobody. */
    void (*begins)(void *opaque);
    remus_done_fn done;
    void *opaque;
    const void *owner; /* these two name the request */
    uint64_t id;
    int32_t thread;  /* who waits; 0: not known */
    int32_t process; /* whose it is if that is gone; 0: not known */
};

/*
 * Like remus_primary_pwrite and _write_zeroes.  They block for the local disk
 * of that volume only.  REMUS_PARKED: `done` was called, or will be; it is
 * called before the range is given back, so that nothing that overlaps it is
 * carried out before the answer is out.  Else -errno, and `done` is not
 * called.  `buf` is copied if the request is parked.
 */
int remus_primary_submit_write(remus_primary *p, unsigned int volume,
                               const void *buf, size_t len, uint64_t offset,
                               const struct remus_asker *who);
int remus_primary_submit_zero(remus_primary *p, unsigned int volume,
                              uint64_t offset, uint64_t len,
                              const struct remus_asker *who);

/* A parked request. */
struct remus_parked {
    uint64_t id;
    int32_t thread, process;
};

/* The parked ones of an owner: how many, at most `max` of them in `out`. */
unsigned int remus_primary_parked(remus_primary *p, const void *owner,
                                  struct remus_parked *out, unsigned int max);
/*
 * Answer a parked one with -EINTR: who waits for it is being killed.  If its
 * local write was not begun it never is; else it goes on, with nobody to hear
 * of it, and reaches both sides whole.
 */
void remus_primary_abandon(remus_primary *p, const void *owner, uint64_t id);

#define REMUS_SESSION_BYTES 16

/*
 * What an open file of a node has done through ioctls.  All open files of one
 * process are one session, which a random id names; numbers, and what was
 * joined and heard, belong to the open file.  There is no pointer in it, so
 * that a table of them can outlive the process.
 *
 * Guard: the primary's lock; while there is no primary, the node's.
 */
struct remus_ioctl_file {
    unsigned char session[REMUS_SESSION_BYTES]; /* constant from its first
                                                   ioctl 20 on */
    uint64_t number; /* of its newest 20, failed ones too; 0: none */
    uint64_t before; /* ... the number before it */
    uint64_t unique; /* ... the request that this was; 0: not known */
    int answered;    /* ... it is, with `result` */
    int result;
    int failed;      /* ... it has no barrier: one of the two below */
    uint64_t since;  /* ... the newest barrier's epoch before it */
    uint64_t joined; /* epoch of the newest barrier it joined; 0: none */
    int empty;       /* ... was that epoch empty */
    uint64_t heard;  /* newest that a 30 was told to be safe; 0: none */
    int attached;    /* it has joined one: its close may end the session */
};

#define REMUS_20_FAILED 1
#define REMUS_20_ASKED                                                        \
    2 /* perhaps it has: `joined`, in another process, which
                          is gone; the backup is asked */

/*
 * Ioctl 20.  0, 1 (the resource's epoch was empty), -EPROTO, or -EAGAIN (too
 * many barriers without an ack, or no room for one); never blocks.  It joins
 * the newest barrier if and only if that has this file's session and its
 * number, which is 1 + the 20s before it, and its round is not over; else it
 * opens one.  (Of a file that was opened again the numbers begin again: its
 * 20 must not meet a barrier from before what was written since.)  `unique`
 * names the request: the same one again gets the same number and answer.
 * `tag` 0: none.
 */
int remus_primary_ioctl_send(remus_primary *p, struct remus_ioctl_file *f,
                             uint64_t unique, uint64_t tag);
/* The file was opened in another process, which is gone: whether a 20 whose
 * barrier nobody heard of has failed is asked of the backup, with the first
 * hello after the last of them. */
void remus_primary_ioctl_adopt(remus_primary *p, struct remus_ioctl_file *f);
void remus_primary_ioctl_adopted(remus_primary *p);
/* The same where there is no primary yet: it has failed. */
void remus_ioctl_adopt_nowhere(struct remus_ioctl_file *f);
/* An ioctl 20 there: -EPROTO, and numbered. */
int remus_ioctl_send_nowhere(struct remus_ioctl_file *f, uint64_t unique);
/* Before an ioctl 30: receive the newest barrier's ack if it can be had
 * without a sleep, within remus_spin_most().  What comes is handled. */
void remus_primary_look_out(remus_primary *p);
/*
 * Ioctl 30: waits for the newest barrier that this file joined.  0, -EPROTO,
 * -EINTR, or REMUS_PARKED, as remus_primary_wait_begin() below.  After a 20
 * that failed it is -EPROTO; with on_loss = "hold" it waits, and the barrier
 * is taken once that can be, if lives(opaque) then says that the process
 * which sent the 20 lives (called under a lock: it must not wait).  The
 * file must stay until `done`.
 */
int remus_primary_ioctl_wait(remus_primary *p, struct remus_ioctl_file *f,
                             int64_t timeout_ms, uint64_t id,
                             int (*lives)(void *opaque), remus_done_fn done,
                             void *opaque);
/* The files that were open under the mount of the process before are counted. */
void remus_primary_continued(remus_primary *p);
/* Ioctl 40: commit the newest acked checkpoint.  0 or -EPROTO. */
int remus_primary_ioctl_commit(remus_primary *p);
/* The file was closed: with the last of them the session ends. */
void remus_primary_ioctl_release(remus_primary *p,
                                 const struct remus_ioctl_file *f);

/*
 * remus_primary_preresume() without a thread: returns the result (`done` is
 * not called), or REMUS_PARKED, and then `done` gets 0, -EPROTO, -ETIMEDOUT
 * (up to 0.1 s late) or what a cancel gave.  `owner`: by which it is
 * cancelled.
 */
int remus_primary_wait_begin(remus_primary *p, uint64_t epoch,
                             int64_t timeout_ms, const void *owner,
                             remus_done_fn done, void *opaque);
/*
 * End the waits of an owner, or the one with an id (a number that
 * remus_primary_wait_id() gave), with `result`.  1; 0: there was none (any
 * more): it was answered, or is about to be.
 */
int remus_primary_wait_cancel(remus_primary *p, const void *owner, int result);
int remus_primary_wait_cancel_id(remus_primary *p, uint64_t id, int result);
uint64_t remus_primary_wait_id(remus_primary *p);
/* Put the words for a wait's failure where remus_last_error() finds them;
 * returns rc. */
int remus_primary_wait_error(remus_primary *p, uint64_t epoch, int rc,
                             int64_t timeout_ms);
/*
 * remus_primary_preresume(), which ends with -ECANCELED once *cancel is not
 * 0 and remus_primary_wait_wake() was called after that.
 */
int remus_primary_preresume_until(remus_primary *p, uint64_t epoch,
                                  int64_t timeout_ms,
                                  const _Atomic int *cancel);
void remus_primary_wait_wake(remus_primary *p);

unsigned int remus_primary_volume_count(remus_primary *p);
const char *remus_primary_volume_name(remus_primary *p, unsigned int volume);
/* Both stay as long as the primary. */
void remus_primary_names(const remus_primary *p, const char **resource,
                         const char **state_dir);

/* As remus_primary_open, with an I/O table of the caller's (tests). */
int remus_primary_open_io(const struct remus_primary_config *config,
                          remus_io *io, remus_primary **out);

#endif
