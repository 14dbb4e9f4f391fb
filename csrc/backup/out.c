/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a backup says to its primary; see net.h. */
#include <errno.h>
#include <string.h>

#include "backup/net.h"
#include "base/error.h"

/* send_lock held */
static int flush_out(struct remus_backup_net *net)
{
    while (net->out_len) {
        ssize_t n = remus_conn_send(net->send_conn, net->out, net->out_len);
        if (n < 0)
            return n == -EAGAIN ? 0 : (int)n;
        memmove(net->out, net->out + n, net->out_len - (size_t)n);
        net->out_len -= (size_t)n;
    }
    return 0;
}

/* send_lock held */
static int send_locked(struct remus_backup_net *net,
                       const unsigned char header[REMUS_REC_HEADER],
                       const struct remus_record *r, const void *payload)
{
    int err = 0;
    if (!net->send_conn) {
        err = remus_fail(-ENOTCONN, "no primary connected");
    } else if (net->out_len + REMUS_REC_HEADER + r->length >
               REMUS_BACKUP_OUT) {
        err = remus_fail(-ENOBUFS, "the primary does not read our answers");
    } else {
        memcpy(net->out + net->out_len, header, REMUS_REC_HEADER);
        if (r->length)
            memcpy(net->out + net->out_len + REMUS_REC_HEADER, payload,
                   r->length);
        net->out_len += REMUS_REC_HEADER + r->length;
        err = flush_out(net);
        if (err)
            remus_fail(err, "send: %s", remus_errno_text(err));
    }
    return err;
}

int remus_backup_send(struct remus_backup_net *net, struct remus_record *r,
                      const void *payload)
{
    unsigned char header[REMUS_REC_HEADER];
    r->payload_crc = r->length ? remus_crc32c(0, payload, r->length) : 0;
    remus_record_encode(r, header);
    pthread_mutex_lock(&net->send_lock);
    int err = send_locked(net, header, r, payload);
    /* What other threads send unasked must not come before this answer. */
    if (!err && r->type == REMUS_REC_HELLO_REPLY)
        net->greeted = r->session;
    pthread_mutex_unlock(&net->send_lock);
    return err;
}

void remus_backup_send_error(struct remus_backup_net *net, const char *text)
{
    struct remus_record r = {.type = REMUS_REC_ERROR,
                             .length = (uint32_t)strlen(text)};
    remus_backup_send(net, &r, text);
}

static int send_progress(struct remus_backup_net *net, struct remus_news *p,
                         uint8_t type)
{
    unsigned char committed[REMUS_PROGRESS_BYTES];
    remus_put64(committed, p->committed);
    p->r.type = type;
    p->r.length = sizeof committed;
    return remus_backup_send(net, &p->r, committed);
}

int remus_backup_send_progress(struct remus_backup_net *net, uint8_t type)
{
    struct remus_news p = {0};
    remus_backup_progress(net->b, &p);
    return send_progress(net, &p, type);
}

void remus_backup_send_ping(struct remus_backup_net *net)
{
    /* The lock may be held by a thread that a disk holds up: then the news
     * is old, but the host is alive. */
    struct remus_news p = net->last_ping;
    if (remus_backup_try_progress(net->b, &p))
        net->last_ping = p;
    send_progress(net, &p, REMUS_REC_PING);
}

/* To the primary whose session it is about, and to nobody else. */
void remus_backup_send_measured(struct remus_backup_net *net)
{
    struct remus_measured m[REMUS_MEASURED_RECORD];
    unsigned char out[REMUS_PROGRESS_BYTES +
                      REMUS_MEASURED_RECORD * REMUS_MEASURED_BYTES];
    unsigned char header[REMUS_REC_HEADER];
    unsigned int n;
    while ((n = remus_backup_untold(net->b, m, REMUS_MEASURED_RECORD))) {
        struct remus_news p = {0};
        remus_backup_progress(net->b, &p);
        struct remus_record r = p.r;
        r.type = REMUS_REC_APPLIED;
        r.length = REMUS_PROGRESS_BYTES + n * REMUS_MEASURED_BYTES;
        remus_put64(out, p.committed);
        for (unsigned int i = 0; i < n; i++)
            remus_measured_encode(&m[i], out + REMUS_PROGRESS_BYTES +
                                             i * REMUS_MEASURED_BYTES);
        r.payload_crc = remus_crc32c(0, out, r.length);
        remus_record_encode(&r, header);
        pthread_mutex_lock(&net->send_lock);
        /* One that can't be sent is a gap in statistics and no more. */
        if (net->greeted == r.session)
            send_locked(net, header, &r, out);
        pthread_mutex_unlock(&net->send_lock);
    }
}

void remus_backup_send_to(struct remus_backup_net *net,
                          struct remus_conn *conn)
{
    pthread_mutex_lock(&net->send_lock);
    net->send_conn = conn;
    net->greeted = 0;
    net->out_len = 0;
    pthread_mutex_unlock(&net->send_lock);
}
