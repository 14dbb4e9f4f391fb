/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Records out of a byte stream. */
#include "link/input.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/error.h"

#define INPUT_BYTES (2u * REMUS_REC_PAYLOAD_MAX + 65536u)
#define STILL 8u /* looks in which a clock that moves has moved */

void remus_tell_error(struct remus_conn *conn, const char *text)
{
    size_t len = strnlen(text, REMUS_REASON_MAX);
    struct remus_record r = {.type = REMUS_REC_ERROR,
                             .length = (uint32_t)len,
                             .payload_crc = remus_crc32c(0, text, len)};
    unsigned char out[REMUS_REC_HEADER + REMUS_REASON_MAX];
    remus_record_encode(&r, out);
    memcpy(out + REMUS_REC_HEADER, text, len);
    ssize_t n = remus_conn_send(conn, out, REMUS_REC_HEADER + len);
    /* Unread, a hello would make a reset of our end that overtakes what we
     * say. */
    n = recv(conn->fd, out, sizeof out, MSG_DONTWAIT);
    (void)n; /* told, or not: the connection ends either way */
}

/* ---- input ------------------------------------------------------------ */

int remus_input_init(struct remus_input *in)
{
    memset(in, 0, sizeof *in);
    in->buf = malloc(INPUT_BYTES);
    if (!in->buf)
        return remus_fail(-ENOMEM, "out of memory");
    in->cap = INPUT_BYTES;
    return 0;
}

void remus_input_free(struct remus_input *in)
{
    free(in->buf);
    memset(in, 0, sizeof *in);
}

void remus_input_reset(struct remus_input *in)
{
    in->start = in->end = 0;
}

ssize_t remus_input_fill(struct remus_input *in, struct remus_conn *conn)
{
    if (in->start == in->end) {
        in->start = in->end = 0;
    } else if (in->cap - in->end < REMUS_REC_PAYLOAD_MAX + REMUS_PAGE) {
        memmove(in->buf, in->buf + in->start, in->end - in->start);
        in->end -= in->start;
        in->start = 0;
    }
    ssize_t n = remus_conn_recv(conn, in->buf + in->end, in->cap - in->end);
    if (n == -EAGAIN)
        return 0;
    if (n > 0)
        in->end += (size_t)n;
    return n;
}

ssize_t remus_input_look_out(struct remus_input *in, struct remus_conn *conn,
                             remus_io *io, uint64_t end_ns)
{
    uint64_t began = io->now_ns(io), now = began;
    ssize_t got = 0;
    for (unsigned int looks = 1; !got && now < end_ns; looks++) {
        got = remus_input_fill(in, conn);
        now = io->now_ns(io);
        if (looks >= STILL && now == began)
            break;
        if (!got)
            sched_yield();
    }
    return got;
}

int remus_input_next(struct remus_input *in, struct remus_record *r,
                     const unsigned char **header,
                     const unsigned char **payload)
{
    size_t have = in->end - in->start;
    if (have < REMUS_REC_HEADER)
        return 0;
    const unsigned char *p = in->buf + in->start;
    int err = remus_record_decode(p, r);
    if (err)
        return err;
    if (r->salt)
        return remus_fail(-EBADMSG, "record: salt on the wire");
    if (have < REMUS_REC_HEADER + (size_t)r->length)
        return 0;
    if (r->length &&
        remus_crc32c(0, p + REMUS_REC_HEADER, r->length) != r->payload_crc)
        return remus_fail(-EBADMSG,
                          "record %llu of epoch %llu: payload CRC differs: "
                          "data was damaged on the way",
                          (unsigned long long)r->number,
                          (unsigned long long)r->epoch);
    *header = p;
    *payload = p + REMUS_REC_HEADER;
    in->start += REMUS_REC_HEADER + r->length;
    return 1;
}
