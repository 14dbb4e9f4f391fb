/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Records out of a byte stream. */
#ifndef REMUS_INPUT_H
#define REMUS_INPUT_H

#include "format/record.h"
#include "link/conn.h"

/* Send an ERROR record of its own, if that can be sent at once. */
void remus_tell_error(struct remus_conn *conn, const char *text);

/* Bytes that arrived and are not yet records.  One reader at a time. */
struct remus_input {
    unsigned char *buf;
    size_t cap;
    size_t start, end; /* unread bytes are buf[start..end) */
};

int remus_input_init(struct remus_input *in);
void remus_input_free(struct remus_input *in);
void remus_input_reset(struct remus_input *in);
/*
 * One remus_conn_recv().  > 0: bytes came; 0: nothing there now;
 * -ECONNRESET: the peer closed; -errno.
 */
ssize_t remus_input_fill(struct remus_input *in, struct remus_conn *conn);
/*
 * The same, again and again without sleeping, until something came or
 * `end_ns` has; not at all if it has already.  Others run between two looks.
 * It ends early if the clock stands still, as a simulated one may.
 */
ssize_t remus_input_look_out(struct remus_input *in, struct remus_conn *conn,
                             remus_io *io, uint64_t end_ns);
/*
 * The next whole record, proven (header and payload CRC).  1; 0: more bytes
 * are needed; -EBADMSG with a text.  Pointers hold until the next fill.
 */
int remus_input_next(struct remus_input *in, struct remus_record *r,
                     const unsigned char **header,
                     const unsigned char **payload);

#endif
