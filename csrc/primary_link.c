/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary's link: the sender thread sends; whoever waits for an ack
 * receives, and the receiver thread when nobody does; and what happens when
 * the link is lost.
 */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "primary_int.h"

typedef unsigned long long ull;

#define RATE_WINDOW_NS 20000000u
#define QUEUE_MIN (1u << 20)
#define LAST_WORDS_MS 100

static uint64_t now_ns(const remus_primary *p)
{
    return p->io->now_ns(p->io);
}

/* ---- loss -------------------------------------------------------------- */

void remus_primary_link_lost(remus_primary *p, const char *format, ...)
{
    char text[REMUS_REASON_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    pthread_mutex_lock(&p->lock);
    struct remus_waiter *w = NULL;
    if (p->fd >= 0 && p->stats.connected) {
        p->stats.connected = 0;
        p->stats.link_changed_ns = now_ns(p);
        p->streaming = 0;
        /* Before the end of a first copy there was nothing to lose. */
        int first = p->state == REMUS_STATE_CATCHING_UP &&
                    !remus_dirty_valid(&p->dirty);
        if (p->state != REMUS_STATE_FENCED)
            remus_primary_set_state(p,
                                    first ? REMUS_STATE_CONNECTING
                                          : REMUS_STATE_UNPROTECTED,
                                    text);
        memcpy(p->lost_reason, text, sizeof p->lost_reason);
        shutdown(p->fd, SHUT_RDWR);
        remus_primary_epochs_lost(p);
        if (!remus_primary_holds(p))
            w = remus_primary_take_waiters(p, UINT64_MAX);
        remus_primary_kick_parked(p);
        pthread_cond_broadcast(&p->changed);
        pthread_cond_signal(&p->engine_wake);
        pthread_cond_signal(&p->rx_resume);
    }
    pthread_mutex_unlock(&p->lock);
    remus_primary_answer(p, w, -EPROTO);
}

/* ---- receiving (rx_lock held) ------------------------------------------ */

static int on_progress(remus_primary *p, const struct remus_record *r)
{
    pthread_mutex_lock(&p->lock);
    /* A ping whose sender could not look (its lock was taken) carries what
     * it last knew, perhaps of an earlier session: it says "alive" and no
     * more. */
    if (r->type == REMUS_REC_PING && r->session != p->session) {
        pthread_mutex_unlock(&p->lock);
        return 0;
    }
    /* Before the first barrier it names epochs of earlier sessions. */
    uint64_t newest = p->barrier_epoch >= p->session_first
                          ? p->barrier_epoch
                          : p->session_first - 1;
    if (r->session != p->session || r->epoch > newest ||
        r->offset > newest || r->number > newest ||
        r->range > REMUS_NUMBER_MAX) {
        pthread_mutex_unlock(&p->lock);
        return remus_fail(-EBADMSG,
                          "ack of epoch %llu, stable %llu, applied %llu; the "
                          "newest barrier is %llu",
                          (ull)r->epoch, (ull)r->offset, (ull)r->number,
                          (ull)newest);
    }
    struct remus_waiter *w = NULL;
    if (r->epoch > p->acked && r->epoch >= p->session_first) {
        p->acked = r->epoch;
        remus_primary_epochs_acked(p);
        p->progress_ns = now_ns(p);
        p->progress_spent = p->spent;
        w = remus_primary_take_waiters(p, p->acked);
        remus_primary_note_heard(p, w);
    }
    if (r->offset > p->stable) {
        p->stable = r->offset;
        remus_dirty_stable(&p->dirty, p->stable);
    }
    if (r->number > p->applied)
        p->applied = r->number;
    if (r->range > p->credit) {
        p->credit = r->range;
        remus_primary_kick_parked(p);
    }
    remus_primary_check_caught_up(p);
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    remus_primary_answer(p, w, 0);
    return 0;
}

static int handle(remus_primary *p, const struct remus_record *r,
                  const unsigned char *payload)
{
    int err;
    switch (r->type) {
    case REMUS_REC_APPLIED:
        err = on_progress(p, r);
        return err ? err
                   : remus_primary_epochs_measured(p, payload, r->length);
    case REMUS_REC_ACK:
    case REMUS_REC_PING:
        return on_progress(p, r);
    case REMUS_REC_RESYNC:
        pthread_mutex_lock(&p->lock);
        p->resync_step = r->flags;
        pthread_cond_broadcast(&p->changed);
        pthread_mutex_unlock(&p->lock);
        return 0;
    case REMUS_REC_GIVE_WAY:
        remus_primary_asked(p, r->flags);
        return 0;
    case REMUS_REC_HASH_REPLY:
        if (r->length != sizeof p->hash_bits)
            return remus_fail(-EBADMSG, "an answer to hashes of %u bytes",
                              r->length);
        pthread_mutex_lock(&p->lock);
        memcpy(p->hash_bits, payload, sizeof p->hash_bits);
        p->hash_answered = (int64_t)r->number;
        pthread_cond_broadcast(&p->changed);
        pthread_mutex_unlock(&p->lock);
        return 0;
    case REMUS_REC_ERROR:
        return remus_fail(-EPROTO, "%.*s", (int)r->length,
                          (const char *)payload);
    case REMUS_REC_BYE:
        return remus_fail(-EPROTO, "the backup ended the connection");
    default:
        return remus_fail(-EBADMSG, "record type %u from a backup", r->type);
    }
}

/* Handle the whole records that are there: how many, or -errno after the link
 * was declared lost. */
static int take_in(remus_primary *p)
{
    struct remus_record r;
    const unsigned char *header, *payload;
    int n = 0, err;
    while ((err = remus_input_next(&p->input, &r, &header, &payload)) == 1 &&
           (err = handle(p, &r, payload)) == 0)
        n++;
    if (err < 0)
        remus_primary_link_lost(p, "backup lost: %s", remus_last_error());
    return err < 0 ? err : n;
}

/*
 * Wait at most `ms` for input or a kick, and take in what there is.  0, or
 * -errno after the link was declared lost.
 */
static int receive(remus_primary *p, int fd, int ms)
{
    /* It may have been closed, and another opened, before we had rx_lock. */
    pthread_mutex_lock(&p->lock);
    int gone = p->fd != fd;
    pthread_mutex_unlock(&p->lock);
    if (gone)
        return 0;
    /* What came together with the answer to the hello. */
    int rc = take_in(p);
    if (rc)
        return rc < 0 ? rc : 0;
    struct pollfd pf[2] = {{.fd = fd, .events = POLLIN},
                           {.fd = p->kick, .events = POLLIN}};
    int n = poll(pf, 2, ms);
    if (n < 0)
        return errno == EINTR ? 0 : -errno;
    if (n > 0 && pf[1].revents) {
        uint64_t count;
        ssize_t got = read(p->kick, &count, sizeof count);
        (void)got;
    }
    if (n <= 0 || !pf[0].revents)
        return 0;
    ssize_t got = remus_input_fill(&p->input, &p->conn);
    if (got < 0) {
        remus_primary_link_lost(p, "backup lost: %s", remus_last_error());
        return (int)got;
    }
    if (got > 0) {
        pthread_mutex_lock(&p->lock);
        p->last_rx_ns = now_ns(p);
        pthread_mutex_unlock(&p->lock);
    }
    rc = take_in(p);
    return rc < 0 ? rc : 0;
}

/* ---- who receives ------------------------------------------------------ */

/* Milliseconds left, at least 1, at most a minute; 0: none. */
static int ms_left(uint64_t now, uint64_t deadline)
{
    if (deadline == UINT64_MAX)
        return 60000;
    if (now >= deadline)
        return 0;
    uint64_t ms = (deadline - now) / 1000000u + 1;
    return ms > 60000 ? 60000 : (int)ms;
}

static void timed_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += ms % 1000 * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(cond, lock, &until);
}

void remus_primary_timed_wait(remus_primary *p, pthread_cond_t *cond, int ms)
{
    timed_wait(cond, &p->lock, ms);
}

/* Is somebody waiting who does not receive?  (lock held) */
static int others_wait(const remus_primary *p)
{
    return p->waiters || p->parked_room;
}

/*
 * Be the receiver until ready() or the deadline.  Entered and left with
 * lock held and rx_caller ours.
 */
static int receive_until(remus_primary *p,
                         int (*ready)(remus_primary *p, uint64_t arg),
                         uint64_t arg, uint64_t deadline)
{
    int move = p->rx_polling;
    pthread_mutex_unlock(&p->lock);
    if (move) {
        uint64_t one = 1;
        ssize_t n = write(p->kick, &one, sizeof one);
        (void)n;
    }
    pthread_mutex_lock(&p->rx_lock);
    pthread_mutex_lock(&p->lock);
    int rc;
    while ((rc = ready(p, arg)) == 0 && p->fd >= 0 && p->stats.connected) {
        int ms = ms_left(now_ns(p), deadline);
        if (!ms)
            break;
        int fd = p->fd;
        pthread_mutex_unlock(&p->lock);
        receive(p, fd, ms);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    pthread_mutex_unlock(&p->rx_lock);
    pthread_mutex_lock(&p->lock);
    return rc;
}

int remus_primary_wait_for(remus_primary *p,
                           int (*ready)(remus_primary *p, uint64_t arg),
                           uint64_t arg, int64_t timeout_ms)
{
    uint64_t deadline = timeout_ms < 0 ? UINT64_MAX
                                       : now_ns(p) + (uint64_t)timeout_ms *
                                                         1000000u;
    pthread_mutex_lock(&p->lock);
    int rc;
    while ((rc = ready(p, arg)) == 0) {
        int ms = ms_left(now_ns(p), deadline);
        if (!ms) {
            rc = -ETIMEDOUT;
            break;
        }
        if (p->rx_caller || p->fd < 0 || !p->stats.connected) {
            timed_wait(&p->changed, &p->lock, ms);
            continue;
        }
        p->rx_caller = 1;
        rc = receive_until(p, ready, arg, deadline);
        p->rx_caller = 0;
        p->rx_left_ns = now_ns(p);
        /* Hand the role on: to another caller, or to the thread if somebody
         * waits who can't take it.  Else it stays away for a while. */
        pthread_cond_broadcast(&p->changed);
        if (others_wait(p)) {
            p->rx_wanted = 1;
            pthread_cond_signal(&p->rx_resume);
        }
        if (rc)
            break;
    }
    pthread_mutex_unlock(&p->lock);
    return rc;
}

void *remus_primary_receiver_main(void *arg)
{
    remus_primary *p = arg;
    pthread_mutex_lock(&p->lock);
    while (!p->stopping) {
        int ms = remus_primary_expire_waiters(p, REMUS_LINGER_MS);
        uint64_t away = (now_ns(p) - p->rx_left_ns) / 1000000u;
        if (p->fd < 0 || !p->stats.connected || p->rx_caller ||
            (!p->rx_wanted && away < REMUS_LINGER_MS)) {
            timed_wait(&p->rx_resume, &p->lock, ms);
            continue;
        }
        p->rx_wanted = 0;
        p->rx_polling = 1;
        int fd = p->fd;
        pthread_mutex_unlock(&p->lock);
        pthread_mutex_lock(&p->rx_lock);
        receive(p, fd, ms);
        pthread_mutex_unlock(&p->rx_lock);
        pthread_mutex_lock(&p->lock);
        p->rx_polling = 0;
        if (others_wait(p))
            p->rx_wanted = 1;
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* ---- the sender -------------------------------------------------------- */

/* What the link takes, measured while there was always more to send. */
struct rate {
    uint64_t since_ns;
    uint64_t from;   /* bytes sent at that time */
    uint64_t per_s;  /* 0: not known yet */
};

static void measure(remus_primary *p, struct rate *r, int busy)
{
    uint64_t now = now_ns(p);
    uint64_t sent = atomic_load(&p->queue.sent);
    if (!busy || !r->since_ns || sent < r->from) {
        r->since_ns = busy ? now : 0;
        r->from = sent;
        return;
    }
    uint64_t ns = now - r->since_ns;
    if (ns < RATE_WINDOW_NS)
        return;
    uint64_t rate = (sent - r->from) * 1000u / (ns / 1000000u);
    r->per_s = r->per_s ? (r->per_s + rate) / 2 : rate;
    r->since_ns = now;
    r->from = sent;
    uint64_t limit = r->per_s / 1000u * p->max_pause_ms;
    uint64_t top = p->queue.size - REMUS_QUEUE_CONTROL;
    limit = limit < QUEUE_MIN ? QUEUE_MIN : limit > top ? top : limit;
    pthread_mutex_lock(&p->lock);
    p->queue_limit = limit;
    pthread_mutex_unlock(&p->lock);
}

/* Send once.  0: nothing left; 1: the socket is full; *fd: where. */
static int send_some(remus_primary *p, int *fd)
{
    pthread_mutex_lock(&p->queue.send_lock);
    pthread_mutex_lock(&p->lock);
    *fd = p->stats.connected ? p->fd : -1;
    pthread_mutex_unlock(&p->lock);
    int rc = *fd < 0 ? 0 : remus_sendq_pump(&p->queue, &p->conn);
    pthread_mutex_unlock(&p->queue.send_lock);
    return rc;
}

static int link_is(remus_primary *p, int fd)
{
    pthread_mutex_lock(&p->lock);
    int is = p->fd == fd && p->stats.connected;
    pthread_mutex_unlock(&p->lock);
    return is;
}

/*
 * A backup that ends the connection says why before it does: that comes
 * first, if it has arrived.  Whoever receives now hears it, and declares the
 * loss; else we do.
 */
static void hear_last_words(remus_primary *p, int fd)
{
    struct pollfd pf = {.fd = fd, .events = POLLIN};
    for (int ms = 0; ms < LAST_WORDS_MS && link_is(p, fd); ms++) {
        if (pthread_mutex_trylock(&p->rx_lock)) {
            nanosleep(&(struct timespec){0, 1000000}, NULL);
            continue;
        }
        while (link_is(p, fd) && poll(&pf, 1, 0) > 0 &&
               receive(p, fd, 0) == 0)
            ;
        pthread_mutex_unlock(&p->rx_lock);
        return;
    }
}

void *remus_primary_sender_main(void *arg)
{
    remus_primary *p = arg;
    struct rate rate = {0};
    /* A linger is shorter than the kernel's usual slack of 50 us. */
    prctl(PR_SET_TIMERSLACK, 1000ul, 0ul, 0ul, 0ul);
    for (;;) {
        int fd;
        int rc = send_some(p, &fd);
        if (rc < 0) {
            hear_last_words(p, fd);
            remus_primary_link_lost(p, "backup lost: send: %s",
                                    remus_errno_text(rc));
        }
        measure(p, &rate, rc == 1);
        if (atomic_load(&p->room_wanted)) {
            pthread_mutex_lock(&p->lock);
            remus_primary_kick_parked(p);
            pthread_mutex_unlock(&p->lock);
        }
        if (rc == 1) {
            struct pollfd pf[2] = {{.fd = fd, .events = POLLOUT},
                                   {.fd = p->wake, .events = POLLIN}};
            if (poll(pf, 2, 1000) > 0 && pf[1].revents)
                return NULL;
            continue;
        }
        if (fd < 0) {
            /* Nobody to send to: what is queued waits for the engine. */
            struct pollfd pf = {.fd = p->wake, .events = POLLIN};
            if (poll(&pf, 1, 50) > 0)
                return NULL;
            continue;
        }
        if (!remus_sendq_linger(&p->queue) && remus_sendq_wait(&p->queue))
            return NULL;
    }
}
