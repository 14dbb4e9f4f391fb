/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One minor of a protocol D driver, as its two ioctls and /proc/drbd show
 * it, with the backup behind it.
 *
 * The driver has one ack bit and no numbers.  Writes go into the newest
 * object of its transfer log.  A barrier closes that object and sets the
 * "queued" flag; the next write opens a new object and clears the flag, and
 * so does the barrier's ordinary ack.  Each barrier is answered twice: by the
 * checkpoint ack, which sets the ack bit, and by the ordinary barrier ack,
 * which takes it out of `pe:`.
 *
 *   SEND, flag set      0: nothing is sent; the ack bit is cleared
 *   SEND, no write      1: nothing is sent; the ack bit stays as it is
 *   SEND, else          0: a barrier is sent; the ack bit is cleared
 *   WAIT                0 as soon as the ack bit is set, which clears it;
 *                       else EPROTO after its limit
 *   no connection       EPROTO, StandAlone EINVAL, of both
 *
 * Outside Primary/Primary a barrier of SEND has no number, so the backup
 * never gives a checkpoint ack for it, and a flush closes an object, too.
 */
#ifndef PROTOCOL_D_H
#define PROTOCOL_D_H

#include <stddef.h>
#include <stdint.h>

#define PD_BARRIERS 32
#define PD_NEVER UINT64_MAX

enum pd_connection { PD_CONNECTED, PD_WF_CONNECTION, PD_STAND_ALONE };

struct pd_barrier {
    int numbered;    /* a checkpoint ack belongs to it */
    int acked;       /* it has come */
    uint64_t covers; /* writes up to it */
    uint64_t ack_ns; /* when its acks come; PD_NEVER: when told */
    uint64_t done_ns;
};

struct protocol_d {
    enum pd_connection connection;
    int both_primary;
    int queued;          /* a barrier is queued, no write came since */
    int ack;             /* the one ack bit */
    uint64_t in_newest;  /* writes in the newest object */
    uint64_t written;    /* writes so far */
    uint64_t held;       /* of them, those that the backup has for sure */
    int ack_ms, done_ms; /* until the acks come by themselves; -1 when told */
    int limit_ms;        /* of WAIT */
    struct pd_barrier sent[PD_BARRIERS]; /* oldest first */
    unsigned int count;                  /* pe: */
};

void pd_init(struct protocol_d *d);
void pd_write(struct protocol_d *d);
void pd_flush(struct protocol_d *d, uint64_t now_ns);
void pd_connect(struct protocol_d *d, enum pd_connection connection);
/* The oldest checkpoint ack, or ordinary ack, that is outstanding comes. */
void pd_ack(struct protocol_d *d);
void pd_done(struct protocol_d *d);
/* What time has brought. */
void pd_settle(struct protocol_d *d, uint64_t now_ns);
/* The ioctls: >= 0 or -errno; a wait that is not over is -EAGAIN. */
int pd_send(struct protocol_d *d, uint64_t now_ns);
int pd_wait(struct protocol_d *d);
/* The text of /proc/drbd; returns its length. */
size_t pd_proc(const struct protocol_d *d, char *buf, size_t cap);

#endif
