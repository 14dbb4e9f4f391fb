/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The backup's threads and its connection.
 *   lobby     accepts, shakes hands, and hands over who is proven (lobby.c)
 *   pinger    sends a PING with progress every PING_MS; never touches a
 *             disk, so a stalled disk and a dead host can be told apart
 *   session   receives from the one primary that is connected; journals,
 *             acks
 *   applier   moves committed epochs to the disks, many at once
 */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "backup.h"
#include "config.h"
#include "error.h"
#include "lobby.h"
#include "transport.h"

#define PING_MS 500
#define ASK_MS 100             /* between looks at a primary that is asked */
#define HEARD_S 15            /* how old `heard` may be while connected */
#define APPLY_MS 250          /* between applies, unless space is needed */
#define OUT_BYTES (64u * 1024) /* answers that the socket did not take yet */

/* Lock order: backup.lock before send_lock; net.lock is taken alone. */
struct remus_backup_net {
    remus_backup *b;               /* constant */
    struct remus_address address;  /* constant */
    int listener;                  /* constant */
    int wake;                      /* constant: eventfd, set to stop */
    uint32_t loss_ms;              /* constant */
    struct remus_tls_keys *keys;   /* constant; NULL: no TLS */
    struct remus_lobby *lobby;     /* constant */
    struct remus_refusals refusals; /* its own lock; leaf */
    pthread_t pinger, session, applier;
    struct remus_input input;      /* session thread */

    pthread_mutex_t lock;
    pthread_cond_t changed;        /* conn, stopping, fenced changed */
    pthread_cond_t apply;          /* the applier has something to do */
    int conn;                      /* lock: link.fd once taken, or -1 */
    struct remus_conn link;        /* session thread's while conn >= 0; its
                                      sending side is send_lock's */
    int connected;                 /* lock: its hello was accepted */
    uint64_t link_changed_ns;      /* lock */
    int had_primary;               /* lock: one was ever connected */
    int stopping;                  /* lock */
    int fenced;                    /* lock: nobody is let in */
    int apply_now;                 /* lock: space is needed */
    int answer;                    /* lock: to our asking: 1 yes, -1 no */
    char why_not[REMUS_REASON_MAX]; /* lock */
    _Atomic uint64_t last_rx_ns;   /* when something came in */

    pthread_mutex_t send_lock;
    struct remus_conn *send_conn;  /* send_lock: &link, or NULL */
    uint64_t greeted;              /* send_lock: session whose hello has its
                                      answer; 0: none */
    size_t out_len;                /* send_lock */
    unsigned char out[OUT_BYTES];  /* send_lock */
    struct remus_record last_ping; /* pinger thread */
    uint64_t told;                 /* applier thread: epoch last announced */
};

/* lock held; ms < 1000 */
static void timed_wait(struct remus_backup_net *net, pthread_cond_t *cond,
                       int ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += ms * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(cond, &net->lock, &until);
}

/* ---- output ------------------------------------------------------------ */

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
    } else if (net->out_len + REMUS_REC_HEADER + r->length > OUT_BYTES) {
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

static int send_record(struct remus_backup_net *net, struct remus_record *r,
                       const void *payload)
{
    unsigned char header[REMUS_REC_HEADER];
    r->payload_crc =
        r->length ? remus_crc32c(0, payload, r->length) : 0;
    remus_record_encode(r, header);
    pthread_mutex_lock(&net->send_lock);
    int err = send_locked(net, header, r, payload);
    /* What other threads send unasked must not come before this answer. */
    if (!err && r->type == REMUS_REC_HELLO_REPLY)
        net->greeted = r->session;
    pthread_mutex_unlock(&net->send_lock);
    return err;
}

static void send_error(struct remus_backup_net *net, const char *text)
{
    struct remus_record r = {.type = REMUS_REC_ERROR,
                             .length = (uint32_t)strlen(text)};
    send_record(net, &r, text);
}

static int send_progress(struct remus_backup_net *net, uint8_t type)
{
    struct remus_record r = {0};
    remus_backup_progress(net->b, &r);
    r.type = type;
    return send_record(net, &r, NULL);
}

/* To the primary whose session it is about, and to nobody else. */
static void send_measured(struct remus_backup_net *net)
{
    struct remus_measured m[REMUS_MEASURED_RECORD];
    unsigned char out[REMUS_MEASURED_RECORD * REMUS_MEASURED_BYTES];
    unsigned char header[REMUS_REC_HEADER];
    unsigned int n;
    while ((n = remus_backup_untold(net->b, m, REMUS_MEASURED_RECORD))) {
        struct remus_record r = {0};
        remus_backup_progress(net->b, &r);
        r.type = REMUS_REC_APPLIED;
        r.length = n * REMUS_MEASURED_BYTES;
        for (unsigned int i = 0; i < n; i++)
            remus_measured_encode(&m[i], out + i * REMUS_MEASURED_BYTES);
        r.payload_crc = remus_crc32c(0, out, r.length);
        remus_record_encode(&r, header);
        pthread_mutex_lock(&net->send_lock);
        /* One that can't be sent is a gap in statistics and no more. */
        if (net->greeted == r.session)
            send_locked(net, header, &r, out);
        pthread_mutex_unlock(&net->send_lock);
    }
}

static void set_send_conn(struct remus_backup_net *net,
                          struct remus_conn *conn)
{
    pthread_mutex_lock(&net->send_lock);
    net->send_conn = conn;
    net->greeted = 0;
    net->out_len = 0;
    pthread_mutex_unlock(&net->send_lock);
}

/* ---- session thread ------------------------------------------------------ */

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
    pthread_mutex_unlock(&b->lock);
    want_apply(net, low);
}

/* The first commit after a copy ends Inconsistent: the primary may say
 * Protected only when that can't be lost any more. */
static int on_commit(struct remus_backup_net *net,
                     const struct remus_record *r)
{
    remus_backup *b = net->b;
    int err = remus_backup_commit_record(b, r->epoch, 1);
    if (err)
        return err;
    pthread_mutex_lock(&b->lock);
    int first = remus_super_uncommitted(b->super.role);
    /* The applier was too slow: barriers eat up the reserve.  A later ack
     * is better than no room for the next barrier. */
    int now = first || remus_backup_short_of_room(b);
    pthread_mutex_unlock(&b->lock);
    if (!now) {
        check_space(net);
        return 0;
    }
    err = remus_backup_apply(b);
    if (!err)
        err = remus_backup_checkpoint(b);
    return err ? err : send_progress(net, REMUS_REC_APPLIED);
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
        pthread_mutex_unlock(&net->b->lock);
        return remus_backup_copy_begin(net->b,
                                       r->flags == REMUS_RESYNC_PARTIAL);
    case REMUS_RESYNC_FLUSH:
        err = remus_backup_copy_flush(net->b);
        answer.flags = REMUS_RESYNC_FLUSHED;
        return err ? err : send_record(net, &answer, NULL);
    case REMUS_RESYNC_END:
        err = remus_backup_copy_end(net->b, r->epoch);
        answer.flags = REMUS_RESYNC_DONE;
        return err ? err : send_record(net, &answer, NULL);
    default:
        return remus_fail(-EBADMSG, "unknown step %u of a copy", r->flags);
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
    int streaming = net->b->expect_epoch != 0;
    pthread_mutex_unlock(&net->b->lock);
    int err = streaming ? remus_backup_verify(net->b, r, payload, bits)
                        : remus_backup_compare(net->b, r, payload, bits);
    if (err == -EAGAIN) {
        answer.flags = REMUS_HASH_BUSY;
        err = 0;
    }
    return err ? err : send_record(net, &answer, bits);
}

/* 0: go on; 1: the primary said goodbye; <0: the connection ends. */
static int handle(struct remus_backup_net *net, const struct remus_record *r,
                  const unsigned char *header, const unsigned char *payload)
{
    remus_backup *b = net->b;
    int err;
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
        return err ? err : send_progress(net, REMUS_REC_ACK);
    case REMUS_REC_COMMIT:
        return on_commit(net, r);
    case REMUS_REC_RESYNC:
        return on_resync(net, r);
    case REMUS_REC_HASH:
        return on_hashes(net, r, payload);
    case REMUS_REC_GAVE_WAY:
        pthread_mutex_lock(&net->lock);
        net->answer = r->flags == 1 ? 1 : -1;
        snprintf(net->why_not, sizeof net->why_not, "%.*s", (int)r->length,
                 (const char *)payload);
        pthread_cond_broadcast(&net->changed);
        pthread_mutex_unlock(&net->lock);
        return 0;
    case REMUS_REC_PING:
        return 0;
    case REMUS_REC_BYE:
        return 1;
    case REMUS_REC_ERROR:
        return remus_fail(-EPROTO, "the primary says: %.*s", (int)r->length,
                          (const char *)payload);
    default:
        return remus_fail(-EBADMSG, "record type %u from a primary", r->type);
    }
}

/* Wait for bytes.  1: some came; 0: `ms` passed; <0: ended. */
static int wait_input(struct remus_backup_net *net, int fd, uint32_t ms)
{
    struct pollfd p[2] = {{.fd = fd, .events = POLLIN},
                          {.fd = net->wake, .events = POLLIN}};
    int n = poll(p, 2, (int)ms);
    if (n < 0)
        return errno == EINTR ? 1
                              : remus_fail(-errno, "poll: %s",
                                           remus_errno_text(errno));
    if (n == 0)
        return 0;
    if (p[1].revents)
        return remus_fail(-ESHUTDOWN, "the backup process ends");
    ssize_t got = remus_input_fill(&net->input, &net->link);
    atomic_store(&net->last_rx_ns, net->b->io->now_ns(net->b->io));
    return got < 0 ? (int)got : 1;
}

static int greet(struct remus_backup_net *net, int fd)
{
    remus_backup *b = net->b;
    struct remus_record r;
    const unsigned char *header, *payload;
    int rc;
    while ((rc = remus_input_next(&net->input, &r, &header, &payload)) == 0) {
        rc = wait_input(net, fd, net->loss_ms);
        if (rc == 0)
            return remus_fail(-ETIMEDOUT, "a client connected and said "
                                          "nothing");
        if (rc < 0)
            return rc;
    }
    if (rc < 0)
        return rc;
    struct remus_hello hello;
    struct remus_hello_reply reply;
    if (r.type != REMUS_REC_HELLO)
        return remus_fail(-EBADMSG, "record type %u instead of a hello",
                          r.type);
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
    rc = send_record(net, &answer, out);
    /* What is said no to has all that it needs. */
    if (!rc && reply.content >= REMUS_CONTENT_PROMOTED &&
        reply.content != REMUS_CONTENT_FOREIGN)
        return 1;
    return rc;
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
        rc = wait_input(net, fd, 3 * net->loss_ms);
        if (rc == 0)
            return remus_fail(-ETIMEDOUT, "nothing from the primary for %u "
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
        net->answer = 0;
        net->had_primary = 1;
        pthread_cond_broadcast(&net->changed);
    }
    pthread_mutex_unlock(&net->lock);
}

static void keep_reason(remus_backup *b, const char *text)
{
    pthread_mutex_lock(&b->lock);
    if (!b->failed)
        snprintf(b->reason, sizeof b->reason, "%s", text);
    pthread_mutex_unlock(&b->lock);
}

static void refused(struct remus_backup_net *net,
                    const struct remus_conn *conn, int cause,
                    const char *text)
{
    remus_refusals_note(&net->refusals, conn->peer, cause, text,
                        net->b->io->now_ns(net->b->io));
}

static void serve_one(struct remus_backup_net *net, int fd)
{
    remus_input_reset(&net->input);
    set_send_conn(net, &net->link);
    int err = greet(net, fd);
    if (err)
        refused(net, &net->link, REMUS_REFUSED_HELLO, remus_last_error());
    if (!err) {
        keep_reason(net->b, "");
        set_connected(net, 1);
        err = converse(net, fd);
        remus_backup_session_end(net->b);
    }
    if (err < 0) {
        char text[REMUS_REASON_MAX];
        snprintf(text, sizeof text, "%s", remus_last_error());
        send_error(net, text);
        if (net->connected)
            keep_reason(net->b, text);
    }
    set_send_conn(net, NULL);
    set_connected(net, 0);
}

static void *session_main(void *arg)
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

/* ---- who comes from the lobby (lobby's thread) ------------------------------ */

static void refuse(struct remus_backup_net *net, struct remus_conn *conn,
                   const char *text)
{
    remus_tell_error(conn, text);
    refused(net, conn, REMUS_REFUSED_BUSY, text);
    remus_conn_close(conn);
}

static void admit(void *opaque, struct remus_conn *conn)
{
    struct remus_backup_net *net = opaque;
    char why[REMUS_REASON_MAX] = "";
    pthread_mutex_lock(&net->lock);
    if (net->fenced)
        snprintf(why, sizeof why,
                 "backup of %s: promoted or being promoted: it takes no "
                 "more writes of a primary",
                 net->b->resource);
    else if (net->conn >= 0)
        snprintf(why, sizeof why,
                 "backup of %s: another primary is connected",
                 net->b->resource);
    else {
        net->link = *conn;
        net->conn = conn->fd;
        *conn = REMUS_CONN_NONE;
        pthread_cond_broadcast(&net->changed);
    }
    pthread_mutex_unlock(&net->lock);
    if (*why)
        refuse(net, conn, why);
}

/* ---- pinger thread --------------------------------------------------------- */

static void ping(struct remus_backup_net *net)
{
    remus_backup *b = net->b;
    pthread_mutex_lock(&net->lock);
    int connected = net->connected;
    pthread_mutex_unlock(&net->lock);
    if (!connected)
        return;
    /* The lock may be held by a thread that a disk holds up: then the news
     * is old, but the host is alive. */
    struct remus_record r = net->last_ping;
    if (remus_backup_try_progress(b, &r))
        net->last_ping = r;
    r.type = REMUS_REC_PING;
    send_record(net, &r, NULL);
}

static void *pinger_main(void *arg)
{
    struct remus_backup_net *net = arg;
    struct pollfd p = {.fd = net->wake, .events = POLLIN};
    do {
        ping(net);
    } while (poll(&p, 1, PING_MS) <= 0);
    return NULL;
}

/* ---- applier thread ------------------------------------------------------ */

/* Has the primary heard of everything that the disks hold?  Notes it. */
static int told_already(struct remus_backup_net *net)
{
    pthread_mutex_lock(&net->b->lock);
    uint64_t applied = net->b->super.applied;
    pthread_mutex_unlock(&net->b->lock);
    int told = applied == net->told;
    net->told = applied;
    return told;
}

/* So that a later process knows how old the last word of a primary is, also
 * where nothing was written for hours. */
static void keep_heard(struct remus_backup_net *net)
{
    pthread_mutex_lock(&net->lock);
    int connected = net->connected;
    pthread_mutex_unlock(&net->lock);
    if (connected)
        remus_backup_note_heard(net->b, HEARD_S);
}

/* What failed takes nothing more.  The primary hears of it now, not when it
 * has something to send: it may be waiting for room that will not come. */
static void end_failed(struct remus_backup_net *net)
{
    char why[REMUS_REASON_MAX];
    pthread_mutex_lock(&net->b->lock);
    int failed = net->b->failed && !net->b->fenced;
    snprintf(why, sizeof why, "%s", net->b->reason);
    pthread_mutex_unlock(&net->b->lock);
    pthread_mutex_lock(&net->lock);
    failed = failed && net->connected;
    pthread_mutex_unlock(&net->lock);
    if (!failed)
        return;
    send_error(net, why);
    pthread_mutex_lock(&net->lock);
    if (net->conn >= 0)
        shutdown(net->conn, SHUT_RDWR);
    pthread_mutex_unlock(&net->lock);
}

static void apply_round(struct remus_backup_net *net, int now)
{
    remus_backup *b = net->b;
    pthread_mutex_lock(&b->lock);
    uint64_t before = b->applied;
    int failed = b->failed || b->fenced;
    pthread_mutex_unlock(&b->lock);
    if (!failed)
        keep_heard(net);
    if (failed || remus_backup_apply(b))
        return;
    send_measured(net);
    pthread_mutex_lock(&b->lock);
    int idle = b->applied == before;
    int half = 2 * remus_journal_used(&b->journal) > b->journal.segments;
    pthread_mutex_unlock(&b->lock);
    if (!idle && !half && !now)
        return;
    if (remus_backup_checkpoint(b) == 0 && !told_already(net))
        send_progress(net, REMUS_REC_APPLIED);
}

static void *applier_main(void *arg)
{
    struct remus_backup_net *net = arg;
    pthread_mutex_lock(&net->lock);
    while (!net->stopping) {
        if (!net->apply_now) {
            timed_wait(net, &net->apply, APPLY_MS);
        }
        int now = net->apply_now;
        net->apply_now = 0;
        if (net->stopping)
            break;
        pthread_mutex_unlock(&net->lock);
        apply_round(net, now);
        end_failed(net);
        pthread_mutex_lock(&net->lock);
    }
    pthread_mutex_unlock(&net->lock);
    return NULL;
}

/* ---- start, fence, stop ------------------------------------------------ */

static void free_net(struct remus_backup_net *net)
{
    remus_lobby_stop(net->lobby);
    remus_conn_close(&net->link);
    if (net->listener >= 0) {
        close(net->listener);
        remus_unlisten(&net->address);
    }
    if (net->wake >= 0)
        close(net->wake);
    remus_input_free(&net->input);
    remus_tls_keys_free(net->keys);
    remus_refusals_destroy(&net->refusals);
    pthread_cond_destroy(&net->changed);
    pthread_cond_destroy(&net->apply);
    pthread_mutex_destroy(&net->lock);
    pthread_mutex_destroy(&net->send_lock);
    free(net);
}

static void stop_threads(struct remus_backup_net *net, int started)
{
    remus_lobby_stop(net->lobby); /* from here on nobody is admitted */
    net->lobby = NULL;
    pthread_mutex_lock(&net->lock);
    net->stopping = 1;
    if (net->conn >= 0)
        shutdown(net->conn, SHUT_RDWR);
    pthread_cond_broadcast(&net->changed);
    pthread_cond_broadcast(&net->apply);
    pthread_mutex_unlock(&net->lock);
    uint64_t one = 1;
    ssize_t n = write(net->wake, &one, sizeof one);
    (void)n; /* an eventfd takes 2^64-2 of them */
    if (started > 0)
        pthread_join(net->pinger, NULL);
    if (started > 1)
        pthread_join(net->session, NULL);
    if (started > 2)
        pthread_join(net->applier, NULL);
}

static struct remus_backup_net *new_net(remus_backup *b, uint32_t loss_ms)
{
    struct remus_backup_net *net = calloc(1, sizeof *net);
    if (!net)
        return NULL;
    net->b = b;
    net->loss_ms = loss_ms ? loss_ms : 3000;
    net->listener = net->wake = net->conn = -1;
    net->link = REMUS_CONN_NONE;
    remus_refusals_init(&net->refusals);
    pthread_mutex_init(&net->lock, NULL);
    pthread_mutex_init(&net->send_lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&net->changed, &attr);
    pthread_cond_init(&net->apply, &attr);
    pthread_condattr_destroy(&attr);
    return net;
}

/* The address, the key, and everything else but threads. */
static int prepare(struct remus_backup_net *net, const char *address,
                   int tls_off)
{
    const remus_backup *b = net->b;
    int err = remus_config_keys(b->resource, b->psk_file, b->psk_identity,
                                &net->keys);
    if (!err)
        err = remus_config_tls(net->keys, tls_off);
    if (!err)
        err = remus_address_parse(address, net->keys != NULL, tls_off,
                                  &net->address);
    if (!err)
        err = remus_input_init(&net->input);
    if (!err) {
        net->listener = remus_listen(&net->address);
        err = net->listener < 0 ? net->listener : 0;
    }
    if (!err) {
        net->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (net->wake < 0)
            err = remus_fail(-errno, "eventfd: %s", remus_errno_text(errno));
    }
    return err;
}

static int start_lobby(struct remus_backup_net *net)
{
    const struct remus_lobby_config config = {.listener = net->listener,
                                              .address = &net->address,
                                              .keys = net->keys,
                                              .refusals = &net->refusals,
                                              .io = net->b->io,
                                              .admit = admit,
                                              .opaque = net};
    return remus_lobby_start(&config, &net->lobby);
}

int remus_backup_serve(remus_backup *b, const char *address, int tls_off,
                       uint32_t loss_ms)
{
    if (b->net || b->look)
        return remus_fail(b->look ? -EROFS : -EALREADY,
                          "backup of %s: %s", b->resource,
                          b->look ? "was opened to look at only"
                                  : "serves already");
    struct remus_backup_net *net = new_net(b, loss_ms);
    if (!net)
        return remus_fail(-ENOMEM, "backup of %s: out of memory",
                          b->resource);
    int started = 0;
    int err = prepare(net, address, tls_off);
    pthread_mutex_lock(&b->lock);
    net->fenced = b->fenced && b->super.role != REMUS_SUPER_PROMOTED;
    pthread_mutex_unlock(&b->lock);
    if (!err && (err = -pthread_create(&net->pinger, NULL, pinger_main,
                                       net)) == 0)
        started++;
    if (!err && (err = -pthread_create(&net->session, NULL, session_main,
                                       net)) == 0)
        started++;
    if (!err && (err = -pthread_create(&net->applier, NULL, applier_main,
                                       net)) == 0)
        started++;
    if (!err)
        err = start_lobby(net);
    if (err) {
        if (started)
            stop_threads(net, started);
        free_net(net);
        return remus_fail_in(err, "backup of %s", b->resource);
    }
    b->net = net;
    return 0;
}

/* Did the other end close its socket? */
static int hung_up(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};
    return poll(&p, 1, 0) > 0 &&
           (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

int remus_backup_net_live(remus_backup *b)
{
    struct remus_backup_net *net = b->net;
    if (!net)
        return 0;
    pthread_mutex_lock(&net->lock);
    int live = net->connected && !hung_up(net->conn);
    pthread_mutex_unlock(&net->lock);
    return live;
}

int remus_backup_net_ask(remus_backup *b, int flags)
{
    struct remus_backup_net *net = b->net;
    if (!net)
        return 0;
    struct remus_record ask = {.type = REMUS_REC_GIVE_WAY,
                               .flags = (uint8_t)flags};
    pthread_mutex_lock(&net->lock);
    net->answer = 0;
    int go = net->connected;
    pthread_mutex_unlock(&net->lock);
    if (!go || send_record(net, &ask, NULL))
        return 0;
    uint64_t start = b->io->now_ns(b->io);
    int rc = 0;
    pthread_mutex_lock(&net->lock);
    while (net->connected && !net->answer && !rc) {
        timed_wait(net, &net->changed, ASK_MS);
        uint64_t now = b->io->now_ns(b->io);
        uint64_t heard = atomic_load(&net->last_rx_ns);
        if (now > heard && now - heard > net->loss_ms * 1000000ull)
            break; /* silent for so long: it is lost */
        if (now - start > 2 * net->loss_ms * 1000000ull)
            rc = remus_fail(-EBUSY,
                            "promote: the primary is alive, but does not "
                            "say whether it gives way: stop it there first, "
                            "or force this");
    }
    if (!rc && net->connected && net->answer < 0)
        rc = remus_fail(-EBUSY, "promote: %s, or force this", net->why_not);
    else if (!rc)
        rc = net->answer > 0;
    pthread_mutex_unlock(&net->lock);
    return rc;
}

uint64_t remus_backup_net_alone_s(remus_backup *b)
{
    struct remus_backup_net *net = b->net;
    if (!net)
        return UINT64_MAX;
    pthread_mutex_lock(&net->lock);
    uint64_t s = UINT64_MAX;
    if (net->connected)
        s = 0;
    else if (net->had_primary)
        s = (b->io->now_ns(b->io) - net->link_changed_ns) / 1000000000u;
    pthread_mutex_unlock(&net->lock);
    return s;
}

void remus_backup_net_fence(remus_backup *b)
{
    struct remus_backup_net *net = b->net;
    if (!net)
        return;
    pthread_mutex_lock(&net->lock);
    /* A dead primary's last bytes may still be on the way through. */
    while (net->connected && hung_up(net->conn))
        pthread_cond_wait(&net->changed, &net->lock);
    net->fenced = 1;
    while (net->conn >= 0) {
        shutdown(net->conn, SHUT_RDWR);
        pthread_cond_wait(&net->changed, &net->lock);
    }
    pthread_mutex_unlock(&net->lock);
}

void remus_backup_net_reopen(remus_backup *b)
{
    struct remus_backup_net *net = b->net;
    if (!net)
        return;
    pthread_mutex_lock(&b->lock);
    /* One that was promoted tells so, in its answer to a hello. */
    int fenced = b->fenced && b->super.role != REMUS_SUPER_PROMOTED;
    pthread_mutex_unlock(&b->lock);
    pthread_mutex_lock(&net->lock);
    net->fenced = fenced;
    pthread_mutex_unlock(&net->lock);
}

void remus_backup_net_stop(remus_backup *b)
{
    if (!b->net)
        return;
    stop_threads(b->net, 3);
    free_net(b->net);
    b->net = NULL;
}

void remus_backup_net_status(remus_backup *b, struct remus_status *s)
{
    struct remus_backup_net *net = b->net;
    if (!net)
        return;
    pthread_mutex_lock(&net->lock);
    s->connected = net->connected;
    s->link_changed_ns = net->link_changed_ns;
    if (net->connected)
        memcpy(s->security, net->link.security, sizeof s->security);
    pthread_mutex_unlock(&net->lock);
    s->refused = remus_refusals_total(&net->refusals);
}

int remus_backup_refusals(remus_backup *b, struct remus_refusal *out,
                          unsigned int cap)
{
    return b->net ? remus_refusals_read(&b->net->refusals, out, cap) : 0;
}
