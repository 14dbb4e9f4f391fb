/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary's engine thread connects, brings the backup up to date, attends
 * the connection, and connects again; another thread watches the link.
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/random.h"
#include "primary/internal.h"

typedef unsigned long long ull;

#define HELLO_TIMEOUT_MS 5000
#define RETURN_MS 50u /* after a loss, before the first try */

/* ---- the engine: greeting ---------------------------------------------- */

static int send_plain(remus_primary *p, const unsigned char *buf, size_t len)
{
    while (len) {
        ssize_t n = remus_conn_send(&p->conn, buf, len);
        if (n == -EAGAIN) {
            struct pollfd pf = {.fd = p->conn.fd, .events = POLLOUT};
            if (poll(&pf, 1, HELLO_TIMEOUT_MS) == 0)
                return remus_fail(-ETIMEDOUT, "the backup takes no hello");
            continue;
        }
        if (n < 0)
            return remus_fail((int)n, "send hello: %s",
                              remus_errno_text((int)n));
        buf += n;
        len -= (size_t)n;
    }
    return 0;
}

static int send_hello(remus_primary *p, uint64_t session)
{
    struct remus_hello h = {.version = REMUS_WIRE_VERSION,
                            .ack = (uint8_t)p->ack,
                            .commit_by = (uint8_t)p->commit_by,
                            .volumes = (uint16_t)p->volume_count};
    remus_primary_lock(p);
    h.next_epoch = p->open_epoch;
    h.lineage = p->kept.lineage;
    h.sessions = p->kept.sessions;
    h.session = p->kept.session;
    remus_primary_question(p, &h.asks);
    int storing = p->alone.generation == REMUS_GENERATION_STORING;
    remus_primary_unlock(p);
    if (storing)
        return remus_fail(-EAGAIN, "a new generation has just begun");
    memcpy(p->greeted, h.lineage.id, REMUS_ID_BYTES);
    snprintf(h.resource, sizeof h.resource, "%s", p->resource);
    for (unsigned int i = 0; i < p->volume_count; i++) {
        snprintf(h.name[i], sizeof h.name[i], "%s", p->volumes[i].name);
        h.size[i] = p->volumes[i].size;
    }
    unsigned char out[REMUS_REC_HEADER + REMUS_HELLO_MAX];
    struct remus_record r = {.type = REMUS_REC_HELLO, .session = session};
    r.length = (uint32_t)remus_hello_encode(&h, out + REMUS_REC_HEADER);
    r.payload_crc = remus_crc32c(0, out + REMUS_REC_HEADER, r.length);
    remus_record_encode(&r, out);
    return send_plain(p, out, REMUS_REC_HEADER + r.length);
}

/* rx_lock held: the input buffer is ours. */
static int read_reply(remus_primary *p, int fd,
                      struct remus_hello_reply *reply)
{
    struct remus_record r;
    const unsigned char *header, *payload;
    int rc;
    struct remus_deadline end =
        remus_deadline_in(remus_primary_now(p), HELLO_TIMEOUT_MS);
    while ((rc = remus_input_next(&p->input, &r, &header, &payload)) == 0) {
        struct pollfd pf[2] = {{.fd = fd, .events = POLLIN},
                               {.fd = p->wake, .events = POLLIN}};
        rc = poll(pf, 2, remus_deadline_poll_ms(end, remus_primary_now(p)));
        if (rc == 0)
            return remus_fail(-ETIMEDOUT, "the backup does not answer our "
                                          "hello");
        if (rc < 0 || pf[1].revents)
            return remus_fail(-EINTR, "interrupted");
        ssize_t got = remus_input_fill(&p->input, &p->conn);
        if (got < 0)
            return (int)got;
    }
    if (rc < 0)
        return rc;
    if (r.type == REMUS_REC_ERROR)
        return remus_fail(-EPROTO, "%.*s", (int)r.length,
                          (const char *)payload);
    if (r.type != REMUS_REC_HELLO_REPLY)
        return remus_fail(-EBADMSG, "record type %u instead of a hello",
                          r.type);
    return remus_hello_reply_decode(payload, r.length, reply);
}

static int greet(remus_primary *p, int fd, uint64_t session,
                 struct remus_hello_reply *reply)
{
    int err = send_hello(p, session);
    /* Who refused us without listening has told us why. */
    if (err && err != -EPIPE && err != -ECONNRESET)
        return err;
    pthread_mutex_lock(&p->rx_lock);
    remus_input_reset(&p->input);
    err = read_reply(p, fd, reply);
    pthread_mutex_unlock(&p->rx_lock);
    return err;
}

/* The next epoch is above all that either side ever used. */
static int raise_epoch(remus_primary *p, uint64_t backup_last)
{
    remus_primary_lock(p);
    uint64_t next = p->open_epoch, limit = p->kept.limit;
    remus_primary_unlock(p);
    if (backup_last >= next)
        next = backup_last + 1;
    int store = next + REMUS_EPOCHS_AHEAD / 2 > limit;
    int err =
        store ? remus_primary_state_store(p, next + REMUS_EPOCHS_AHEAD) : 0;
    if (err)
        return err;
    remus_primary_lock(p);
    p->open_epoch = next;
    remus_primary_unlock(p);
    return 0;
}

static int start_stream(remus_primary *p, int fd, uint64_t session,
                        const struct remus_hello_reply *reply,
                        enum remus_plan plan)
{
    struct remus_record r, commit;
    /* A writer of an earlier connection may still be copying. */
    while (atomic_load(&p->queue.publishing))
        sched_yield();
    pthread_mutex_lock(&p->queue.send_lock);
    remus_primary_lock(p);
    remus_sendq_reset(&p->queue);
    int right = remus_primary_greeted_right(p) && !remus_stopping(p);
    struct remus_slot *slot = NULL, *again = NULL;
    struct remus_waiter *safe = NULL, *gone = NULL, *failed = NULL;
    if (right) {
        remus_primary_begin_connection(p, fd, session, reply);
        failed = remus_primary_ask_answered(p, reply, plan);
        slot = remus_primary_begin_plan(p, reply, plan, &r);
        /* Of every barrier it is known by now whether it arrived. */
        safe = remus_primary_take_waiters(p, p->acked);
        remus_primary_note_heard(p, safe);
        gone = remus_primary_take_waiters(p, UINT64_MAX);
        if (plan == REMUS_PLAN_CATCH_UP)
            again = remus_primary_commit_again(p, &commit);
    }
    remus_primary_wake_parked(p);
    pthread_cond_signal(&p->rx_resume);
    remus_primary_unlock(p);
    pthread_mutex_unlock(&p->queue.send_lock);
    remus_primary_answer(p, safe, 0);
    remus_primary_answer(p, gone, -EPROTO);
    remus_primary_answer(p, failed, -EPROTO);
    if (!right)
        return remus_fail(-EAGAIN, "a new generation has just begun");
    if (slot)
        remus_sendq_publish(&p->queue, slot, &r, NULL);
    if (again)
        remus_sendq_publish(&p->queue, again, &commit, NULL);
    return 0;
}

/*
 * There is no room for a catch-up.  Commits that the backup did not get make
 * some; and what no session will commit any more may be committed, too.
 */
static void commit_and_leave(remus_primary *p, uint64_t session,
                             const struct remus_hello_reply *reply)
{
    unsigned char out[2 * REMUS_REC_HEADER];
    struct remus_record r = {.type = REMUS_REC_COMMIT, .session = session};
    struct remus_record bye = {.type = REMUS_REC_BYE, .session = session};
    size_t used = 0;
    remus_primary_lock(p);
    (void)remus_primary_session_now(p); /* a grace may have ended */
    int over = remus_primary_over(p);
    r.flags = over ? REMUS_COMMIT_OVER : 0;
    r.epoch =
        over || p->commit_given > reply->held ? reply->held : p->commit_given;
    if (remus_primary_epoch_lost(p, r.epoch))
        r.epoch = 0;
    remus_primary_unlock(p);
    if (r.epoch > reply->committed && r.epoch <= reply->held) {
        remus_record_encode(&r, out);
        used = REMUS_REC_HEADER;
    }
    remus_record_encode(&bye, out + used);
    /* If it does not arrive: the next try comes soon.  The last error says
     * why nothing fits: it stays. */
    char why[REMUS_REASON_MAX];
    snprintf(why, sizeof why, "%s", remus_last_error());
    (void)send_plain(p, out, used + REMUS_REC_HEADER);
    remus_fail(0, "%s", why);
}

static int connect_backup(remus_primary *p, enum remus_plan *plan,
                          struct remus_hello_reply *reply)
{
    uint64_t session;
    remus_primary_lock(p);
    int fenced = remus_authority_fenced(p->authority);
    remus_primary_unlock(p);
    if (fenced)
        return -EROFS; /* for good: there is nothing to send any more */
    int err = remus_random(p->io, &session, sizeof session, "session");
    if (err)
        return err;
    err = remus_conn_connect(&p->conn, &p->address, &p->resolver, p->keys,
                             p->io, HELLO_TIMEOUT_MS, p->wake);
    if (err)
        return err;
    int fd = p->conn.fd;
    err = greet(p, fd, session, reply);
    if (!err)
        err = remus_primary_state_heard(p, reply);
    if (!err)
        *plan = remus_primary_plan(p, reply, 0); /* WAIT: and the last error */
    if (!err && *plan == REMUS_PLAN_WAIT) {
        commit_and_leave(p, session, reply);
        err = -ENOSPC;
    }
    if (!err && !remus_plan_connects(*plan)) {
        remus_primary_set_apart(p, *plan, reply);
        remus_primary_asked_in_vain(p, 1);
        err = -EROFS;
    }
    if (!err)
        err = raise_epoch(p, reply->last_epoch);
    /* What only asks sends nothing that a backup keeps. */
    if (!err && !remus_plan_asks(*plan))
        err = remus_primary_state_session(p, session);
    if (!err)
        err = start_stream(p, fd, session, reply, *plan);
    if (err)
        remus_conn_close(&p->conn);
    return err;
}

/* Close the socket once nobody can be using it. */
static void drop_socket(remus_primary *p)
{
    pthread_mutex_lock(&p->rx_lock);
    pthread_mutex_lock(&p->queue.send_lock);
    remus_primary_lock(p);
    p->fd = -1;
    remus_primary_unlock(p);
    remus_conn_close(&p->conn);
    pthread_mutex_unlock(&p->queue.send_lock);
    pthread_mutex_unlock(&p->rx_lock);
}

/* Why there is no connection (the last error); beside it, after a loss, how
 * the last one ended. */
static void note_refusal(remus_primary *p, enum remus_plan plan)
{
    char text[REMUS_REASON_MAX];
    remus_primary_lock(p);
    int state = remus_primary_state(p);
    if (plan == REMUS_PLAN_WAIT)
        remus_primary_answers(p);
    if (remus_stopping(p) || state == REMUS_STATE_SPLIT_BRAIN ||
        state == REMUS_STATE_FENCED ||
        p->alone.generation == REMUS_GENERATION_FAILED) {
        /* That is what there is to say, until it is over. */
        remus_primary_unlock(p);
        return;
    }
    if (plan == REMUS_PLAN_WAIT) {
        remus_primary_link_event(p, REMUS_LINK_REFUSED, NULL);
        snprintf(text, sizeof text, "%.250s", remus_last_error());
    } else if (state == REMUS_STATE_CONNECTING || !p->lost_reason[0]) {
        snprintf(text, sizeof text, "waiting for the backup: %.200s",
                 remus_last_error());
    } else {
        snprintf(text, sizeof text, "%.110s; not back: %.120s", p->lost_reason,
                 remus_last_error());
    }
    remus_primary_say(p, text);
    remus_primary_unlock(p);
}

/* 1: the resource was Protected in it. */
static int run_session(remus_primary *p, enum remus_plan plan,
                       const struct remus_hello_reply *reply)
{
    if (remus_primary_resync(p, plan, reply) == 0)
        remus_primary_attend(p);
    drop_socket(p);
    remus_primary_lock(p);
    int good = p->acked >= p->c.first;
    remus_primary_unlock(p);
    return good;
}

void remus_primary_engine_runs(remus_primary *p, int runs)
{
    remus_primary_lock(p);
    p->engine_runs = runs;
    for (unsigned int i = 0; !runs && i < p->volume_count; i++)
        pthread_cond_signal(&p->volumes[i].queue_changed);
    remus_primary_unlock(p);
}

void *remus_primary_engine_main(void *arg)
{
    remus_primary *p = arg;
    uint32_t pause = p->connect_ms;
    remus_primary_await_files(p);
    for (;;) {
        enum remus_plan plan = REMUS_PLAN_COPY;
        struct remus_hello_reply reply;
        uint32_t next = pause;
        if (connect_backup(p, &plan, &reply)) {
            note_refusal(p, plan);
            if (plan == REMUS_PLAN_WAIT &&
                remus_primary_measure(p, reply.capacity))
                next = RETURN_MS;
        } else if (run_session(p, plan, &reply))
            next = pause = RETURN_MS;
        if (remus_primary_sleep(p, next)) {
            remus_primary_engine_runs(p, 0);
            return NULL;
        }
        /* Doubled each time, from connect_ms to 8 times it; but it must be
         * back before the backup counts it as lost. */
        uint32_t most = 8 * p->connect_ms;
        if (most > p->loss_ms / 2)
            most = p->loss_ms / 2;
        pause = pause < p->connect_ms ? p->connect_ms
                : 2 * pause > most    ? most
                                      : 2 * pause;
    }
}
