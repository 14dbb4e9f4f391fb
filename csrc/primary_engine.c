/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary's engine thread: connects, copies the disks, takes the first
 * checkpoint; and the thread that watches the link.
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "primary_int.h"

typedef unsigned long long ull;

#define COPY_BYTES (1u << 20)
#define HELLO_TIMEOUT_MS 5000
#define EPOCHS_AHEAD 1000000u

static uint64_t now_ns(const remus_primary *p)
{
    return p->io->now_ns(p->io);
}

/* ---- the engine: greeting --------------------------------------------------------- */

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
    memcpy(h.generation, p->generation, REMUS_ID_BYTES);
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
    while ((rc = remus_input_next(&p->input, &r, &header, &payload)) == 0) {
        struct pollfd pf[2] = {{.fd = fd, .events = POLLIN},
                               {.fd = p->wake, .events = POLLIN}};
        rc = poll(pf, 2, HELLO_TIMEOUT_MS);
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
    if (err && err != -EPIPE)
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
    uint64_t next = p->open_epoch;
    if (backup_last >= next)
        next = backup_last + 1;
    int err = 0;
    if (next + EPOCHS_AHEAD / 2 > p->epoch_limit) {
        err = remus_primary_state_store(p, next + EPOCHS_AHEAD);
        if (!err)
            p->epoch_limit = next + EPOCHS_AHEAD;
    }
    p->open_epoch = next;
    return err;
}

/* From here on every write is queued. */
static void start_stream(remus_primary *p, int fd, uint64_t session,
                         const struct remus_hello_reply *reply)
{
    struct remus_record r = {.type = REMUS_REC_RESYNC,
                             .flags = REMUS_RESYNC_BEGIN,
                             .session = session};
    /* A writer of an earlier connection may still be copying. */
    while (atomic_load(&p->queue.publishing))
        sched_yield();
    pthread_mutex_lock(&p->queue.send_lock);
    pthread_mutex_lock(&p->lock);
    remus_sendq_reset(&p->queue);
    for (unsigned int i = 0; i < p->volume_count; i++) {
        r.range += p->volumes[i].size;
        p->volumes[i].joined = 0;
    }
    p->node_barrier = p->first_epoch = p->barrier_epoch = 0;
    p->acked = p->stable = p->applied = p->committed = 0;
    p->fd = fd;
    p->session = session;
    p->next_number = reply->next_number;
    p->max_payload = reply->max_payload;
    p->credit = reply->credit;
    p->reserve = reply->reserve;
    p->spent = 0;
    p->journaled = 0;
    p->resync_step = 0;
    p->epoch_records = 0;
    /* A close that began meanwhile wins. */
    p->stats.connected = p->streaming = !p->stopping;
    p->stats.link_changed_ns = p->last_rx_ns = now_ns(p);
    p->stats.resync_total = r.range;
    p->stats.resync_done = 0;
    remus_primary_set_state(p, REMUS_STATE_CATCHING_UP,
                            "copying the disks to the backup");
    struct remus_slot *slot =
        remus_sendq_reserve(&p->queue, REMUS_REC_HEADER);
    pthread_cond_signal(&p->rx_resume);
    pthread_mutex_unlock(&p->lock);
    pthread_mutex_unlock(&p->queue.send_lock);
    remus_sendq_publish(&p->queue, slot, &r, NULL);
}

static int connect_backup(remus_primary *p)
{
    struct remus_hello_reply reply;
    uint64_t session;
    int err = p->io->random(p->io, &session, sizeof session);
    if (err)
        return remus_fail(err, "random numbers: %s", remus_errno_text(err));
    err = remus_conn_connect(&p->conn, &p->address, p->keys,
                             HELLO_TIMEOUT_MS, p->wake);
    if (err)
        return err;
    int fd = p->conn.fd;
    err = greet(p, fd, session, &reply);
    if (!err)
        err = raise_epoch(p, reply.last_epoch);
    if (err) {
        remus_conn_close(&p->conn);
        return err;
    }
    start_stream(p, fd, session, &reply);
    return 0;
}

/* ---- the engine: first copy ---------------------------------------------------------- */

/* lock held */
static int step_reached(remus_primary *p, uint64_t step)
{
    if (!p->stats.connected || p->stopping)
        return -EPROTO;
    return p->resync_step == (int)step;
}

static int send_step(remus_primary *p, enum remus_resync_step step)
{
    struct remus_record r = {.type = REMUS_REC_RESYNC, .flags = (uint8_t)step};
    pthread_mutex_lock(&p->lock);
    struct remus_slot *slot = NULL;
    if (p->stats.connected &&
        remus_sendq_fits(&p->queue, REMUS_REC_HEADER, 1)) {
        slot = remus_sendq_reserve(&p->queue, REMUS_REC_HEADER);
        r.session = p->session;
        if (step == REMUS_RESYNC_END) {
            r.epoch = p->open_epoch;
            p->journaled = 1;
        }
    }
    pthread_mutex_unlock(&p->lock);
    if (!slot)
        return -EPROTO;
    remus_sendq_publish(&p->queue, slot, &r, NULL);
    return 0;
}

/* One of our records, and the backup's answer to it. */
static int exchange_step(remus_primary *p, enum remus_resync_step ask,
                         enum remus_resync_step answer_step)
{
    int err = send_step(p, ask);
    if (!err)
        err = remus_primary_wait_for(p, step_reached, answer_step, -1);
    return err < 0 ? err : 0;
}

static int copy_volume(remus_primary *p, unsigned int volume,
                       unsigned char *buf)
{
    uint64_t size = p->volumes[volume].size;
    for (uint64_t at = 0; at < size;) {
        uint64_t left = size - at;
        size_t n = left < COPY_BYTES ? (size_t)left : COPY_BYTES;
        int err = remus_primary_copy_range(p, volume, at, n, buf);
        if (err)
            return err;
        pthread_mutex_lock(&p->lock);
        int go = p->stats.connected && !p->stopping;
        pthread_mutex_unlock(&p->lock);
        if (!go)
            return -EPROTO;
        at += n;
    }
    return 0;
}

static int copy_all(remus_primary *p)
{
    unsigned char *buf = aligned_alloc(REMUS_PAGE, COPY_BYTES);
    if (!buf)
        return remus_fail(-ENOMEM, "out of memory");
    int err = 0;
    for (unsigned int i = 0; !err && i < p->volume_count; i++)
        err = copy_volume(p, i, buf);
    free(buf);
    return err;
}

/* lock held */
static int epoch_applied(remus_primary *p, uint64_t epoch)
{
    if (!p->stats.connected || p->stopping)
        return -EPROTO;
    return p->applied >= epoch;
}

static int epoch_acked(remus_primary *p, uint64_t epoch)
{
    if (!p->stats.connected || p->stopping)
        return -EPROTO;
    return p->acked >= epoch;
}

/* The checkpoint that ends Inconsistent, taken by the engine itself. */
static int first_checkpoint(remus_primary *p)
{
    uint64_t epoch;
    int rc = remus_primary_barrier(p, NULL, 0, REMUS_CP_DISK_ONLY, 0, &epoch);
    if (rc < 0)
        return rc;
    rc = remus_primary_wait_for(p, epoch_acked, epoch, -1);
    if (rc < 0)
        return rc;
    struct remus_record r;
    int err = 0;
    pthread_mutex_lock(&p->lock);
    struct remus_slot *slot =
        remus_primary_reserve_commit(p, &r, epoch, &err);
    pthread_mutex_unlock(&p->lock);
    if (!slot)
        return -EPROTO;
    remus_primary_send_now(p, slot, &r, NULL);
    rc = remus_primary_wait_for(p, epoch_applied, epoch, -1);
    return rc < 0 ? rc : 0;
}

static int catch_up(remus_primary *p)
{
    int err = copy_all(p);
    /* Most of the data is synced while writes still go straight to the
     * disks; the second sync, at END, has little left to do. */
    if (!err)
        err = exchange_step(p, REMUS_RESYNC_FLUSH, REMUS_RESYNC_FLUSHED);
    if (!err)
        err = exchange_step(p, REMUS_RESYNC_END, REMUS_RESYNC_DONE);
    if (!err)
        err = first_checkpoint(p);
    if (err && err != -EPROTO)
        remus_primary_link_lost(p, "first copy: %s", remus_last_error());
    pthread_mutex_lock(&p->lock);
    if (!err && p->stats.connected)
        remus_primary_set_state(p, REMUS_STATE_PROTECTED,
                                "every checkpoint is safe on the backup");
    pthread_mutex_unlock(&p->lock);
    return err;
}

/* ---- the engine: watching -------------------------------------------------------------- */

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
    int credit = p->journaled && remus_sendq_bytes(&p->queue) < REMUS_PAGE;
    uint64_t epoch = p->open_epoch;
    pthread_mutex_unlock(&p->lock);
    if (!up)
        return;
    if (silent_ms > p->loss_ms)
        remus_primary_link_lost(
            p, "backup lost: nothing from it for %llu ms (limit %u)",
            (ull)silent_ms, p->loss_ms);
    else if (stalled_ms > p->stall_ms && credit)
        remus_primary_link_lost(
            p,
            "epoch %llu does not fit into the backup's journal, and no "
            "checkpoint made room for %llu ms: take checkpoints, or give "
            "the journal more room",
            (ull)epoch, (ull)stalled_ms);
    else if (stalled_ms > p->stall_ms)
        remus_primary_link_lost(p,
                                "backup too slow: a write waited %llu ms for "
                                "the queue (limit %u)",
                                (ull)stalled_ms, p->stall_ms);
}

/* Numbers are reserved far ahead of their use. */
static void extend_epochs(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
    uint64_t next = p->open_epoch, limit = p->epoch_limit;
    pthread_mutex_unlock(&p->lock);
    if (next + EPOCHS_AHEAD / 2 <= limit)
        return;
    if (remus_primary_state_store(p, next + EPOCHS_AHEAD)) {
        remus_primary_link_lost(p, "%s", remus_last_error());
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->epoch_limit = next + EPOCHS_AHEAD;
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

static void wait_for_end(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
    while (p->stats.connected && !p->stopping)
        pthread_cond_wait(&p->changed, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

void *remus_primary_engine_main(void *arg)
{
    remus_primary *p = arg;
    uint32_t pause = p->connect_ms;
    for (;;) {
        int err = connect_backup(p);
        if (!err) {
            catch_up(p);
            wait_for_end(p);
            drop_socket(p);
        }
        pthread_mutex_lock(&p->lock);
        int state = p->state;
        if (err && state == REMUS_STATE_CONNECTING)
            snprintf(p->reason, sizeof p->reason, "waiting for the backup: "
                                                  "%.200s",
                     remus_last_error());
        pthread_mutex_unlock(&p->lock);
        if (state != REMUS_STATE_CONNECTING || engine_sleep(p, pause))
            return NULL;
        pause = pause * 2 > 8 * p->connect_ms ? 8 * p->connect_ms : pause * 2;
    }
}
