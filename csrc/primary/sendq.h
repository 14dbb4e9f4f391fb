/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The send queue: a ring of encoded records between the writers and the
 * socket.
 *
 * A writer reserves order and room under the primary's lock (a few
 * instructions), copies and hashes outside of it, then publishes.  What is
 * published without a gap is sent by whoever holds send_lock: the sender
 * thread, or postsuspend itself when nothing is in its way.  The ring is
 * mapped twice in a row, so every record is contiguous in memory.
 */
#ifndef REMUS_SENDQ_H
#define REMUS_SENDQ_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/vector.h"
#include "link/conn.h"
#include "format/record.h"

/* Room that only barriers, commits and pings may use. */
#define REMUS_QUEUE_CONTROL (64u * 1024)
#define REMUS_QUEUE_CONTROL_SLOTS 512u

struct remus_slot {
    uint64_t start;         /* position in the stream of bytes */
    uint32_t length;        /* of the record with its header */
    _Atomic uint32_t ready; /* published */
};

struct remus_sendq {
    unsigned char *ring;      /* constant: 2 x size, the second a mirror */
    uint64_t size;            /* constant, bytes */
    struct remus_slot *slots; /* constant array */
    uint64_t slot_count;      /* constant */

    /* Guarded by the primary's lock. */
    uint64_t reserved; /* bytes ever reserved */
    uint64_t slots_reserved;

    /* Guarded by send_lock. */
    pthread_mutex_t send_lock;
    uint64_t next_slot; /* first slot not seen ready yet */
    uint64_t ready_end; /* bytes before this are published */
    uint64_t run_count; /* counted records of the epoch so far */
    uint32_t run_crc;   /* their running CRC */

    _Atomic uint64_t sent; /* bytes the socket took; send_lock to write */
    _Atomic uint64_t slots_sent; /* slots before this are free; ditto */
    _Atomic uint32_t publishing; /* reserved, not yet published */
    _Atomic int pumping; /* send_lock to write: what is published now is sent
                            by who holds that */

    /* The sender's sleep. */
    pthread_mutex_t wake_lock;
    pthread_cond_t wake;
    _Atomic int idle; /* the sender sleeps, or is about to */
    int wanted;       /* wake_lock: somebody said wake */
    int stop;         /* wake_lock */
};

int remus_sendq_init(struct remus_sendq *q, uint64_t bytes);
void remus_sendq_free(struct remus_sendq *q);
/* Forget everything; nobody may be publishing (send_lock and the primary's
 * lock held). */
void remus_sendq_reset(struct remus_sendq *q);

/* Bytes waiting (primary's lock held). */
uint64_t remus_sendq_bytes(const struct remus_sendq *q);
/* Does a record of `length` bytes fit?  control: reserve included (primary's
 * lock held). */
int remus_sendq_fits(const struct remus_sendq *q, uint64_t length,
                     int control);
/* Take room (primary's lock held; it must fit). */
struct remus_slot *remus_sendq_reserve(struct remus_sendq *q, uint32_t length);
/* Copy, hash, and let it go.  `payload` may change under us: it is copied
 * first and hashed from the copy. */
void remus_sendq_publish(struct remus_sendq *q, struct remus_slot *slot,
                         struct remus_record *r, const void *payload);
/* The same of a payload that begins at byte `at` of a vector. */
void remus_sendq_publish_vector(struct remus_sendq *q, struct remus_slot *slot,
                                struct remus_record *r,
                                const struct iovec *vector, uint64_t at);
/* The same without waking the sender: for who will pump at once. */
void remus_sendq_publish_quietly(struct remus_sendq *q,
                                 struct remus_slot *slot,
                                 struct remus_record *r, const void *payload);
/*
 * Send what is ready, without blocking (send_lock held).  0: all that is
 * ready was sent; 1: the socket is full; -errno: the connection is gone.
 */
int remus_sendq_pump(struct remus_sendq *q, struct remus_conn *conn);
/* send_lock is somebody's: will he send what was published before, or else
 * wake the sender (as he must after a pump that did not return 0)? */
int remus_sendq_pumped(const struct remus_sendq *q);
/*
 * After something was sent: sleep a moment, so that writers in a row need not
 * wake the sender one by one, and what they publish leaves together.  A wake
 * ends it.  1: look again; 0: nothing came meanwhile, wait.
 */
int remus_sendq_linger(struct remus_sendq *q);
/* Sleep until there may be something to send.  0: go on; 1: stop. */
int remus_sendq_wait(struct remus_sendq *q);
void remus_sendq_wake(struct remus_sendq *q);
void remus_sendq_stop(struct remus_sendq *q);

#endif
