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
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "primary_int.h"

typedef unsigned long long ull;

#define HELLO_TIMEOUT_MS 5000
#define EPOCHS_AHEAD 1000000u
#define HOPELESS_MS 1000u      /* a catch-up without room for so long */
#define SLOWEST_PER_MS 16384u  /* bytes of an epoch for a ms more patience */
#define RETURN_MS 50u          /* after a loss, before the first try */

static uint64_t now_ns(const remus_primary *p)
{
    return p->io->now_ns(p->io);
}

/* ---- the engine: greeting ---------------------------------------------- */

/* Sleep, but not longer than until the stop.  1: stop. */
static int engine_sleep(remus_primary *p, uint32_t ms)
{
    struct pollfd pf = {.fd = p->wake, .events = POLLIN};
    return poll(&pf, 1, (int)ms) > 0;
}

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
                            .volumes = (uint16_t)p->volume_count,
                            .next_epoch = p->open_epoch};
    pthread_mutex_lock(&p->lock);
    h.lineage = p->kept.lineage;
    /* One that began since the flag was set is not marked yet. */
    int marked = p->kept.flags & REMUS_PRIMARY_SHARED && !p->taking;
    pthread_mutex_unlock(&p->lock);
    if (!marked)
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
    uint64_t end = now_ns(p) + HELLO_TIMEOUT_MS * 1000000ull;
    while ((rc = remus_input_next(&p->input, &r, &header, &payload)) == 0) {
        struct pollfd pf[2] = {{.fd = fd, .events = POLLIN},
                               {.fd = p->wake, .events = POLLIN}};
        uint64_t now = now_ns(p);
        rc = now < end ? poll(pf, 2, (int)((end - now) / 1000000) + 1) : 0;
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
    pthread_mutex_lock(&p->lock);
    uint64_t next = p->open_epoch, limit = p->kept.limit;
    pthread_mutex_unlock(&p->lock);
    if (backup_last >= next)
        next = backup_last + 1;
    int store = next + EPOCHS_AHEAD / 2 > limit;
    int err = store ? remus_primary_state_store(p, next + EPOCHS_AHEAD) : 0;
    if (err)
        return err;
    pthread_mutex_lock(&p->lock);
    p->open_epoch = next;
    pthread_mutex_unlock(&p->lock);
    return 0;
}

/*
 * Barriers that the last connection took with it: the backup has those up to
 * `held`, and the others will never be there under their number (lock held).
 */
static void note_outage(remus_primary *p, uint64_t held)
{
    p->acked = held < p->barrier_epoch ? held : p->barrier_epoch;
    if (p->barrier_epoch <= p->acked ||
        remus_primary_epoch_lost(p, p->barrier_epoch))
        return;
    unsigned int i = p->outages % REMUS_OUTAGES;
    if (p->outages++ >= REMUS_OUTAGES)
        p->outage_floor = p->outage[i].to;
    p->outage[i].from = p->acked + 1;
    p->outage[i].to = p->barrier_epoch;
}

/* A commit that was given may have been lost with the link (lock held). */
static struct remus_slot *commit_again(remus_primary *p,
                                       struct remus_record *r)
{
    uint64_t epoch = p->commit_given < p->acked ? p->commit_given : p->acked;
    int ignored;
    return epoch > p->committed && !remus_primary_epoch_lost(p, epoch)
               ? remus_primary_reserve_commit(p, r, epoch, &ignored)
               : NULL;
}

/* What this connection begins with (lock held). */
static void begin_session(remus_primary *p, int fd, uint64_t session,
                          const struct remus_hello_reply *reply)
{
    p->node_barrier = 0;
    p->stable = p->applied = 0;
    p->fd = fd;
    p->session = session;
    p->next_number = reply->next_number;
    p->max_payload = reply->max_payload;
    p->credit = reply->credit;
    p->reserve = reply->reserve;
    p->capacity = reply->capacity;
    p->spent = p->progress_spent = 0;
    p->journaled = p->streaming = 0;
    p->resync_step = 0;
    p->epoch_records = p->epoch_bytes = 0;
    p->session_first = p->catch_epoch = p->open_epoch;
    p->caught_up = p->asked = 0;
    /* A close that began meanwhile wins. */
    p->stats.connected = !p->stopping;
    p->stats.link_changed_ns = p->last_rx_ns = p->progress_ns = p->idle_ns =
        now_ns(p);
}

static const struct {
    uint8_t step;     /* of RESYNC; 0: nothing is sent */
    const char *text;
} plans[] = {
    [REMUS_PLAN_COPY] = {REMUS_RESYNC_BEGIN,
                         "copying the disks to the backup"},
    [REMUS_PLAN_MEND] = {REMUS_RESYNC_BEGIN,
                         "copying what differs to the backup, whose disks "
                         "hold a copy that was cut short"},
    [REMUS_PLAN_CATCH_UP] = {REMUS_RESYNC_CATCH_UP,
                             "sending what changed meanwhile"},
    [REMUS_PLAN_REWRITE] = {REMUS_RESYNC_PARTIAL,
                            "writing what changed meanwhile straight to the "
                            "backup's disks: Inconsistent until it is done"},
    [REMUS_PLAN_COMPARE] = {0, "comparing the disks of both sides: the dirty "
                               "map does not tell what the backup lacks"},
};

/* Is the backup talking to the generation that we are?  (lock held) */
static int greeted_right(const remus_primary *p)
{
    return !p->taking &&
           !memcmp(p->greeted, p->kept.lineage.id, REMUS_ID_BYTES);
}

struct remus_slot *remus_primary_begin_plan(
    remus_primary *p, const struct remus_hello_reply *reply,
    enum remus_plan plan, struct remus_record *r)
{
    int whole = plan == REMUS_PLAN_COPY || plan == REMUS_PLAN_MEND;
    uint64_t end;
    /* Whose checkpoints are not ours has none of our barriers. */
    int other = reply->content == REMUS_CONTENT_FOREIGN ||
                !remus_lineage_has(&p->kept.lineage, reply->generation, &end);
    if (plan != REMUS_PLAN_COMPARE && !greeted_right(p))
        return NULL;
    *r = (struct remus_record){.type = REMUS_REC_RESYNC,
                               .flags = plans[plan].step,
                               .epoch = p->open_epoch,
                               .session = p->session};
    note_outage(p, whole || other ? p->acked : reply->held);
    p->committed = whole ? 0 : reply->committed;
    p->stats.resync_done = 0;
    if (plan == REMUS_PLAN_CATCH_UP || plan == REMUS_PLAN_REWRITE) {
        r->range = remus_dirty_collect(&p->dirty, reply->held, p->open_epoch);
    } else {
        remus_dirty_set_valid(&p->dirty, 0);
        for (unsigned int i = 0; i < p->volume_count; i++)
            r->range += p->volumes[i].size;
    }
    p->stats.resync_total = r->range;
    remus_primary_set_state(p, REMUS_STATE_CATCHING_UP, plans[plan].text);
    p->direct = plan != REMUS_PLAN_CATCH_UP;
    if (plan == REMUS_PLAN_COMPARE)
        return NULL;
    /* From here on every write is queued. */
    p->journaled = !p->direct;
    p->streaming = p->stats.connected;
    p->alone = p->alone_granted = p->alone_refused = p->alone_failed = 0;
    return remus_sendq_reserve(&p->queue, REMUS_REC_HEADER);
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
    pthread_mutex_lock(&p->lock);
    remus_sendq_reset(&p->queue);
    int right = greeted_right(p);
    struct remus_slot *slot = NULL, *again = NULL;
    struct remus_waiter *safe = NULL, *gone = NULL;
    if (right) {
        begin_session(p, fd, session, reply);
        slot = remus_primary_begin_plan(p, reply, plan, &r);
        /* Of every barrier it is known by now whether it arrived. */
        safe = remus_primary_take_waiters(p, p->acked);
        remus_primary_note_heard(p, safe);
        gone = remus_primary_take_waiters(p, UINT64_MAX);
        p->resumed = 0;
        if (plan == REMUS_PLAN_CATCH_UP)
            again = commit_again(p, &commit);
    }
    remus_primary_kick_parked(p);
    pthread_cond_signal(&p->rx_resume);
    pthread_mutex_unlock(&p->lock);
    pthread_mutex_unlock(&p->queue.send_lock);
    remus_primary_answer(p, safe, 0);
    remus_primary_answer(p, gone, -EPROTO);
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
    pthread_mutex_lock(&p->lock);
    int over = !p->session_open && !remus_primary_in_grace(p);
    r.epoch = over || p->commit_given > reply->held ? reply->held
                                                    : p->commit_given;
    if (remus_primary_epoch_lost(p, r.epoch))
        r.epoch = 0;
    pthread_mutex_unlock(&p->lock);
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
    pthread_mutex_lock(&p->lock);
    int fenced = p->fenced;
    pthread_mutex_unlock(&p->lock);
    if (fenced)
        return -EROFS; /* for good: there is nothing to send any more */
    int err = p->io->random(p->io, &session, sizeof session);
    if (err)
        return remus_fail(err, "random numbers: %s", remus_errno_text(err));
    err = remus_conn_connect(&p->conn, &p->address, p->keys,
                             HELLO_TIMEOUT_MS, p->wake);
    if (err)
        return err;
    int fd = p->conn.fd;
    /* From the hello on a backup may know this generation. */
    err = remus_primary_state_flag(p, REMUS_PRIMARY_SHARED);
    if (!err)
        err = greet(p, fd, session, reply);
    if (!err && reply->content >= REMUS_CONTENT_PROMOTED &&
        reply->content != REMUS_CONTENT_FOREIGN) {
        remus_primary_failed_away(p, reply);
        err = -EROFS;
    }
    if (!err)
        *plan = remus_primary_plan(p, reply, 0); /* WAIT: and the last error */
    if (!err && *plan == REMUS_PLAN_WAIT) {
        commit_and_leave(p, session, reply);
        err = -ENOSPC;
    }
    if (!err)
        err = raise_epoch(p, reply->last_epoch);
    if (!err)
        err = start_stream(p, fd, session, reply, *plan);
    if (err)
        remus_conn_close(&p->conn);
    return err;
}

/* ---- the engine: watching ----------------------------------------------- */

static void send_ping(remus_primary *p)
{
    struct remus_record r = {.type = REMUS_REC_PING};
    pthread_mutex_lock(&p->lock);
    struct remus_slot *slot = NULL;
    if (p->stats.connected && remus_sendq_fits(&p->queue, REMUS_REC_HEADER, 1))
        slot = remus_sendq_reserve(&p->queue, REMUS_REC_HEADER);
    r.session = p->session;
    pthread_mutex_unlock(&p->lock);
    if (slot)
        remus_sendq_publish(&p->queue, slot, &r, NULL);
}

static void check_silence(remus_primary *p, uint64_t now)
{
    pthread_mutex_lock(&p->lock);
    int up = p->stats.connected;
    /* Something may have come in since `now` was read. */
    uint64_t silent_ms =
        now > p->last_rx_ns ? (now - p->last_rx_ns) / 1000000u : 0;
    uint64_t stalled_ms = remus_primary_oldest_wait(p, now) / 1000000u;
    /* Nothing but a ping is waiting to be sent: room is not what lacks. */
    uint64_t queued = remus_sendq_bytes(&p->queue);
    int credit = p->journaled && queued < REMUS_PAGE;
    uint64_t epoch = p->open_epoch;
    /* In a catch-up no checkpoint of anybody's can make room. */
    int hopeless = p->state == REMUS_STATE_CATCHING_UP &&
                   p->applied >= p->committed && stalled_ms > HOPELESS_MS;
    uint64_t waiting = p->barrier_epoch >= p->session_first
                           ? p->barrier_epoch
                           : 0;
    uint64_t late_ms = 0;
    if (waiting > p->acked && queued < REMUS_PAGE && now > p->progress_ns)
        late_ms = (now - p->progress_ns) / 1000000u;
    /* A large epoch may take its time to become durable. */
    uint64_t patience =
        p->loss_ms + (p->spent - p->progress_spent) / SLOWEST_PER_MS;
    if (up && credit && hopeless) {
        p->wont_fit = p->capacity;
        p->wont_fit_ns = now;
    }
    pthread_mutex_unlock(&p->lock);
    if (!up)
        return;
    if (silent_ms > p->loss_ms)
        remus_primary_link_lost(
            p, "backup lost: nothing from it for %llu ms (limit %u)",
            (ull)silent_ms, p->loss_ms);
    else if (late_ms > patience)
        remus_primary_link_lost(
            p,
            "backup stalled: it answers pings, but epoch %llu got no ack for "
            "%llu ms (limit %llu): look at its journal's disk",
            (ull)waiting, (ull)late_ms, (ull)patience);
    else if (credit && hopeless)
        remus_primary_link_lost(
            p,
            "the catch-up and what was written meanwhile do not fit into the "
            "backup's journal: enlarge the journal, or set "
            "allow_inconsistent = true");
    else if (stalled_ms > p->stall_ms && credit)
        remus_primary_link_lost(
            p,
            "epoch %llu does not fit into the backup's journal, and no "
            "checkpoint made room for %llu ms: take checkpoints, or give "
            "the journal more room",
            (ull)epoch, (ull)stalled_ms);
    else if (stalled_ms > p->stall_ms)
        remus_primary_link_lost(p,
                                "backup or link too slow: it answers pings, "
                                "but a write waited %llu ms for the queue "
                                "(limit %u)",
                                (ull)stalled_ms, p->stall_ms);
}

/* Numbers are reserved far ahead of their use. */
static void extend_epochs(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
    uint64_t next = p->open_epoch, limit = p->kept.limit;
    pthread_mutex_unlock(&p->lock);
    if (next + EPOCHS_AHEAD / 2 <= limit)
        return;
    if (remus_primary_state_store(p, next + EPOCHS_AHEAD))
        remus_primary_link_lost(p, "%s", remus_last_error());
}

/* Sets of the dirty map that can be forgotten are zeroed here, off the path
 * of writes and acks. */
static void forget_stable(remus_primary *p)
{
    int set;
    pthread_mutex_lock(&p->lock);
    while ((set = remus_dirty_forget_begin(&p->dirty)) >= 0) {
        pthread_mutex_unlock(&p->lock);
        remus_dirty_forget(&p->dirty, set);
        pthread_mutex_lock(&p->lock);
        remus_dirty_forget_end(&p->dirty, set);
    }
    pthread_mutex_unlock(&p->lock);
}

/* A separate thread watches, because the engine may wait in a copy. */
void *remus_primary_watch_main(void *arg)
{
    remus_primary *p = arg;
    uint64_t before = now_ns(p), pinged = 0;
    while (!engine_sleep(p, 100)) {
        uint64_t now = now_ns(p);
        if (now - pinged > REMUS_PING_MS * 1000000ull) {
            send_ping(p);
            extend_epochs(p);
            pinged = now;
        }
        forget_stable(p);
        /* If we were stopped ourselves, let what waits be received. */
        if (now - before < 1000000000u)
            check_silence(p, now);
        before = now;
    }
    return NULL;
}

/* Close the socket once nobody can be using it. */
static void drop_socket(remus_primary *p)
{
    pthread_mutex_lock(&p->rx_lock);
    pthread_mutex_lock(&p->queue.send_lock);
    pthread_mutex_lock(&p->lock);
    p->fd = -1;
    pthread_mutex_unlock(&p->lock);
    remus_conn_close(&p->conn);
    pthread_mutex_unlock(&p->queue.send_lock);
    pthread_mutex_unlock(&p->rx_lock);
}

void remus_primary_engine_wait(remus_primary *p, uint32_t ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&p->engine_wake, &p->lock, &until);
}

/* Why there is no connection (the last error); beside it, after a loss, how
 * the last one ended. */
static void note_refusal(remus_primary *p, enum remus_plan plan)
{
    char text[REMUS_REASON_MAX];
    pthread_mutex_lock(&p->lock);
    int state = p->state;
    if (state == REMUS_STATE_SPLIT_BRAIN || state == REMUS_STATE_FENCED ||
        p->alone_failed) {
        /* That is what there is to say, until it is over. */
        pthread_mutex_unlock(&p->lock);
        return;
    }
    if (plan == REMUS_PLAN_WAIT) {
        state = REMUS_STATE_UNPROTECTED;
        snprintf(text, sizeof text, "%.250s", remus_last_error());
    } else if (state == REMUS_STATE_CONNECTING) {
        snprintf(text, sizeof text, "waiting for the backup: %.200s",
                 remus_last_error());
    } else {
        snprintf(text, sizeof text, "%.110s; not back: %.120s",
                 p->lost_reason, remus_last_error());
    }
    if (!p->stopping)
        remus_primary_set_state(p, state, text);
    pthread_mutex_unlock(&p->lock);
}

/* 1: the resource was Protected in it. */
static int run_session(remus_primary *p, enum remus_plan plan,
                       const struct remus_hello_reply *reply)
{
    if (remus_primary_resync(p, plan, reply) == 0)
        remus_primary_attend(p);
    drop_socket(p);
    pthread_mutex_lock(&p->lock);
    int good = p->caught_up && p->acked >= p->catch_epoch;
    pthread_mutex_unlock(&p->lock);
    return good;
}

void *remus_primary_engine_main(void *arg)
{
    remus_primary *p = arg;
    uint32_t pause = p->connect_ms;
    for (;;) {
        enum remus_plan plan = REMUS_PLAN_COPY;
        struct remus_hello_reply reply;
        uint32_t next = pause;
        if (connect_backup(p, &plan, &reply))
            note_refusal(p, plan);
        else if (run_session(p, plan, &reply))
            next = pause = RETURN_MS;
        if (engine_sleep(p, next))
            return NULL;
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
