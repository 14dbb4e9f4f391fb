/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One primary after the other, in the session thread: its hello, then its
 * records, each of which is journaled, answered, or ends the connection.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "backup/net.h"
#include "base/clock.h"
#include "base/error.h"

#define NEWS_MS 2 /* that a commit was taken: with the next ack, or then */

static void want_apply(struct remus_backup_net *net, int now)
{
    pthread_mutex_lock(&net->lock);
    if (now && !net->apply_now) {
        net->apply_now = 1;
        pthread_cond_signal(&net->apply);
    }
    pthread_mutex_unlock(&net->lock);
}

/* Space runs low: apply without waiting for the timer. */
static void check_space(struct remus_backup_net *net)
{
    remus_backup *b = net->b;
    pthread_mutex_lock(&b->lock);
    int low = 2 * remus_journal_used(&b->journal) > b->journal.segments &&
              b->committed > b->super.applied;
    remus_backup_unlock(b);
    want_apply(net, low);
}

/* The first commit after a copy: the primary says Protected only when it
 * can't be lost any more, so that a promote needs no name. */
static int on_commit(struct remus_backup_net *net,
                     const struct remus_record *r)
{
    remus_backup *b = net->b;
    enum remus_word word =
        r->flags & REMUS_COMMIT_OVER ? REMUS_WORD_OVER : REMUS_WORD_PRIMARY;
    int err = remus_backup_commit_record(b, r->epoch, word);
    if (err)
        return err;
    net->news = 1;
    pthread_mutex_lock(&b->lock);
    int first = remus_super_uncommitted(b->super.role);
    /* The applier was too slow: barriers eat up the reserve.  A later ack
     * is better than no room for the next barrier. */
    int now = first || remus_backup_short_of_room(b);
    remus_backup_unlock(b);
    if (!now) {
        check_space(net);
        return 0;
    }
    err = remus_backup_apply(b);
    if (!err)
        err = remus_backup_checkpoint(b);
    return err ? err : remus_backup_send_progress(net, REMUS_REC_APPLIED);
}

static int on_resync(struct remus_backup_net *net,
                     const struct remus_record *r)
{
    struct remus_record answer = {.type = REMUS_REC_RESYNC};
    int err;
    switch (r->flags) {
    case REMUS_RESYNC_CATCH_UP:
        return remus_backup_catch_up(net->b, r->epoch, r->range);
    case REMUS_RESYNC_BEGIN:
    case REMUS_RESYNC_PARTIAL:
        pthread_mutex_lock(&net->b->lock);
        net->b->stats.resync_total = r->range;
        net->b->stats.resync_done = 0;
        remus_backup_unlock(net->b);
        return remus_backup_copy_begin(net->b,
                                       r->flags == REMUS_RESYNC_PARTIAL);
    case REMUS_RESYNC_FLUSH:
        err = remus_backup_copy_flush(net->b);
        answer.flags = REMUS_RESYNC_FLUSHED;
        return err ? err : remus_backup_send(net, &answer, NULL);
    case REMUS_RESYNC_END:
        err = remus_backup_copy_end(net->b, r->epoch);
        answer.flags = REMUS_RESYNC_DONE;
        return err ? err : remus_backup_send(net, &answer, NULL);
    default: /* refused already */
        return remus_fail(-EBADMSG, "step %u of a copy", r->flags);
    }
}

static int on_hashes(struct remus_backup_net *net,
                     const struct remus_record *r,
                     const unsigned char *payload)
{
    unsigned char bits[REMUS_HASH_BLOCKS / 8];
    struct remus_record answer = {.type = REMUS_REC_HASH_REPLY,
                                  .volume = r->volume,
                                  .offset = r->offset,
                                  .range = r->range,
                                  .session = r->session,
                                  .number = r->number,
                                  .length = sizeof bits};
    pthread_mutex_lock(&net->b->lock);
    int streaming = net->b->now.expect_epoch != 0;
    remus_backup_unlock(net->b);
    int err = !r->length  ? remus_backup_marks_answer(net->b, r, bits)
              : streaming ? remus_backup_verify(net->b, r, payload, bits)
                          : remus_backup_compare(net->b, r, payload, bits);
    return err ? err : remus_backup_send(net, &answer, bits);
}

static int on_answer(struct remus_backup_net *net,
                     const struct remus_record *r,
                     const unsigned char *payload)
{
    pthread_mutex_lock(&net->lock);
    net->answer = r->flags == 1 ? 1 : -1;
    net->answer_epoch = r->epoch;
    snprintf(net->why_not, sizeof net->why_not, "%.*s", (int)r->length,
             (const char *)payload);
    pthread_cond_broadcast(&net->changed);
    pthread_mutex_unlock(&net->lock);
    return 0;
}

/* Is it taken in this role and phase?  As remus_backup_check_takes(). */
static int check(remus_backup *b, const struct remus_record *r)
{
    /* Of what is counted it is asked where it is written. */
    if (remus_record_counted(r))
        return 0;
    pthread_mutex_lock(&b->lock);
    int rc = remus_backup_check_takes(b, r);
    remus_backup_unlock(b);
    return rc < 0 ? remus_fail_in(rc, "backup of %s", b->resource) : rc;
}

/* 0: go on; 1: the primary said goodbye; <0: the connection ends. */
static int handle(struct remus_backup_net *net, const struct remus_record *r,
                  const unsigned char *header, const unsigned char *payload)
{
    remus_backup *b = net->b;
    int err = check(b, r);
    if (err)
        return err < 0 ? err : 0;
    switch (r->type) {
    case REMUS_REC_WRITE:
    case REMUS_REC_ZERO:
        if (r->flags & REMUS_REC_DIRECT)
            return remus_backup_copy_data(b, r, payload);
        return remus_backup_record(b, header, r, payload);
    case REMUS_REC_BARRIER:
        err = remus_backup_record(b, header, r, payload);
        if (!err)
            err = remus_backup_ack(b, r->epoch);
        net->news = 0; /* the ack tells it */
        if (!err)
            err = remus_backup_send_progress(net, REMUS_REC_ACK);
        net->acked_ns = net->b->io->now_ns(net->b->io);
        return err;
    case REMUS_REC_COMMIT:
        return on_commit(net, r);
    case REMUS_REC_TOLD:
        return remus_backup_told_record(b, r->epoch);
    case REMUS_REC_RESYNC:
        return on_resync(net, r);
    case REMUS_REC_HASH:
        return on_hashes(net, r, payload);
    case REMUS_REC_STEPPED_DOWN:
        return on_answer(net, r, payload);
    case REMUS_REC_PING:
        return remus_backup_check_well(b);
    case REMUS_REC_BYE:
        return 1;
    case REMUS_REC_ERROR:
        return remus_fail(-EPROTO, "the primary says: %.*s", (int)r->length,
                          (const char *)payload);
    default: /* refused already */
        return remus_fail(-EBADMSG, "record type %u", r->type);
    }
}

/* Sleep until bytes come.  1: they may be there; 0: `ms` passed; <0: ended. */
static int sleep_on(struct remus_backup_net *net, int fd, uint32_t ms)
{
    struct pollfd p[2] = {{.fd = fd, .events = POLLIN},
                          {.fd = net->wake, .events = POLLIN}};
    int n = poll(p, 2, (int)ms);
    if (n < 0)
        return errno == EINTR
                   ? 1
                   : remus_fail(-errno, "poll: %s", remus_errno_text(errno));
    if (n > 0 && p[1].revents)
        return remus_fail(-ESHUTDOWN, "the backup process ends");
    return n > 0;
}

/* Wait for bytes.  1: some came; 0: `ms` passed; <0: ended. */
static int wait_input(struct remus_backup_net *net, int fd, uint32_t ms)
{
    /* What follows an ack may be near: the word that an ioctl 30 was answered,
     * or the commit.  Whoever sends it then need not wake us. */
    uint64_t near = net->acked_ns ? remus_spin_end(&net->follow, net->acked_ns,
                                                   net->spin_most / 4)
                                  : 0;
    ssize_t got =
        remus_input_look_out(&net->input, &net->link, net->b->io, near);
    if (!got) {
        int n = sleep_on(net, fd, ms);
        if (n <= 0)
            return n;
        got = remus_input_fill(&net->input, &net->link);
    }
    uint64_t now = net->b->io->now_ns(net->b->io);
    atomic_store(&net->last_rx_ns, now);
    if (got < 0)
        return (int)got;
    if (got > 0 && net->acked_ns) {
        remus_spin_took(&net->follow, now - net->acked_ns);
        net->acked_ns = 0;
    }
    pthread_mutex_lock(&net->b->lock);
    remus_backup_heard(net->b);
    remus_backup_unlock(net->b);
    return 1;
}

/* The first record, whole within loss_ms.  0 or -errno. */
static int wait_hello(struct remus_backup_net *net, int fd,
                      struct remus_record *r, const unsigned char **payload)
{
    const unsigned char *header;
    remus_io *io = net->b->io;
    struct remus_deadline end =
        remus_deadline_in(io->now_ns(io), net->loss_ms);
    int rc;
    while ((rc = remus_input_next(&net->input, r, &header, payload)) == 0) {
        int ms = remus_deadline_poll_ms(end, io->now_ns(io));
        rc = ms ? wait_input(net, fd, (uint32_t)ms) : 0;
        if (rc == 0)
            return remus_fail(
                -ETIMEDOUT,
                net->input.end
                    ? "began a hello and did not complete it in time"
                    : "a client connected and sent nothing");
        if (rc < 0)
            return rc;
    }
    if (rc < 0)
        return rc;
    return r->type == REMUS_REC_HELLO
               ? 0
               : remus_fail(-EBADMSG, "record type %u instead of a hello",
                            r->type);
}

/* 0: go on; 1: what is here is not for this primary, and it was told so, or
 * <0: it is refused; both with a text. */
static int greet(struct remus_backup_net *net, int fd)
{
    remus_backup *b = net->b;
    struct remus_record r;
    const unsigned char *payload;
    struct remus_hello hello;
    struct remus_hello_reply reply;
    int rc = wait_hello(net, fd, &r, &payload);
    if (!rc)
        rc = remus_hello_decode(payload, r.length, &hello);
    if (!rc)
        rc = remus_backup_session_begin(b, &hello, r.session, &reply);
    if (rc)
        return rc;
    unsigned char out[REMUS_HELLO_REPLY_BYTES];
    remus_hello_reply_encode(&reply, out);
    struct remus_record answer = {.type = REMUS_REC_HELLO_REPLY,
                                  .length = sizeof out,
                                  .session = r.session};
    rc = remus_backup_send(net, &answer, out);
    if (rc || !remus_content_refuses(reply.content))
        return rc;
    /* What is said no to has all that it needs. */
    remus_fail(-EROFS, "backup of %s: %s: a primary was told so", b->resource,
               reply.content == REMUS_CONTENT_PROMOTED
                   ? "promoted"
                   : "both sides went on from one checkpoint");
    return 1;
}

static int converse(struct remus_backup_net *net, int fd)
{
    struct remus_record r;
    const unsigned char *header, *payload;
    for (;;) {
        int rc;
        while ((rc = remus_input_next(&net->input, &r, &header, &payload)) ==
               1) {
            rc = handle(net, &r, header, payload);
            if (rc)
                return rc < 0 ? rc : 0;
        }
        if (rc < 0)
            return rc;
        /* Longer than the primary's own patience: it decides first. */
        rc = wait_input(net, fd, net->news ? NEWS_MS : 3 * net->loss_ms);
        if (rc == 0 && net->news) {
            net->news = 0;
            rc = remus_backup_send_progress(net, REMUS_REC_APPLIED);
            if (rc)
                return rc;
            continue;
        }
        if (rc == 0)
            return remus_fail(-ETIMEDOUT,
                              "nothing from the primary for %u "
                              "ms",
                              3 * net->loss_ms);
        if (rc < 0)
            return rc;
    }
}

static void set_connected(struct remus_backup_net *net, int connected)
{
    pthread_mutex_lock(&net->lock);
    if (net->connected != connected) {
        net->connected = connected;
        net->link_changed_ns = net->b->io->now_ns(net->b->io);
        if (connected)
            net->answer = 0;
        net->had_primary = 1;
        net->said_bye = 0;
        pthread_cond_broadcast(&net->changed);
    }
    pthread_mutex_unlock(&net->lock);
    atomic_store(&net->b->connected, connected);
    pthread_mutex_lock(&net->b->lock);
    remus_backup_unlock(net->b); /* tells of it */
}

void remus_backup_refused(struct remus_backup_net *net,
                          const struct remus_conn *conn, int cause,
                          const char *text)
{
    remus_refusals_note(&net->refusals, conn->peer, cause, text,
                        net->b->io->now_ns(net->b->io));
}

static void keep_reason(remus_backup *b, const char *text)
{
    pthread_mutex_lock(&b->lock);
    if (!b->failed) {
        snprintf(b->reason, sizeof b->reason, "%s", text);
        b->log_due = 1;
    }
    remus_backup_unlock(b);
}

static void serve_one(struct remus_backup_net *net, int fd)
{
    remus_input_reset(&net->input);
    net->acked_ns = 0;
    net->follow = (struct remus_spin){0};
    remus_backup_send_to(net, &net->link);
    int err = greet(net, fd);
    if (err)
        remus_backup_refused(net, &net->link,
                             err > 0 ? REMUS_REFUSED_BUSY
                                     : REMUS_REFUSED_HELLO,
                             remus_last_error());
    else {
        keep_reason(net->b, "");
        set_connected(net, 1);
        err = converse(net, fd);
        remus_backup_session_end(net->b);
    }
    if (err < 0) {
        char text[REMUS_REASON_MAX];
        snprintf(text, sizeof text, "%s", remus_last_error());
        remus_backup_send_error(net, text);
        if (net->connected)
            keep_reason(net->b, text);
    }
    remus_backup_send_to(net, NULL);
    int bye = net->connected && err == 0;
    set_connected(net, 0);
    pthread_mutex_lock(&net->lock);
    net->said_bye |= bye;
    pthread_mutex_unlock(&net->lock);
}

void *remus_backup_session_main(void *arg)
{
    struct remus_backup_net *net = arg;
    pthread_mutex_lock(&net->lock);
    while (!net->stopping) {
        if (net->conn < 0) {
            pthread_cond_wait(&net->changed, &net->lock);
            continue;
        }
        int fd = net->conn;
        pthread_mutex_unlock(&net->lock);
        serve_one(net, fd);
        pthread_mutex_lock(&net->lock);
        remus_conn_close(&net->link);
        net->conn = -1;
        pthread_cond_broadcast(&net->changed);
    }
    pthread_mutex_unlock(&net->lock);
    return NULL;
}
