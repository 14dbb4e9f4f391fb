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
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/wake.h"
#include "primary/internal.h"

typedef unsigned long long ull;

#define RATE_WINDOW_NS 20000000u
#define QUEUE_MIN (1u << 20)
#define LAST_WORDS_MS 100

/* ---- receiving (rx_lock held) ------------------------------------------ */

/* What the backup says that it took as committed; UINT64_MAX: nothing. */
static uint64_t said_committed(const struct remus_record *r,
                               const unsigned char *payload)
{
    return r->length >= REMUS_PROGRESS_BYTES ? remus_get64(payload)
                                             : UINT64_MAX;
}

static int on_progress(remus_primary *p, const struct remus_record *r,
                       const unsigned char *payload)
{
    uint64_t committed = said_committed(r, payload);
    remus_primary_lock(p);
    /* A ping whose sender could not look (its lock was taken) carries what
     * it last knew, perhaps of an earlier session: it says "alive" and no
     * more. */
    if (r->type == REMUS_REC_PING && r->session != p->c.id) {
        remus_primary_unlock(p);
        return 0;
    }
    /* Before the first barrier it names epochs of earlier sessions. */
    uint64_t newest =
        p->barrier_epoch >= p->c.first ? p->barrier_epoch : p->c.first - 1;
    if (r->session != p->c.id || r->epoch > newest || r->offset > newest ||
        r->number > newest || r->range > REMUS_NUMBER_MAX ||
        (committed != UINT64_MAX && committed > newest)) {
        remus_primary_unlock(p);
        return remus_fail(-EBADMSG,
                          "ack of epoch %llu, stable %llu, applied %llu; the "
                          "newest barrier is %llu",
                          (ull)r->epoch, (ull)r->offset, (ull)r->number,
                          (ull)newest);
    }
    struct remus_waiter *w = NULL;
    if (r->epoch > p->acked && r->epoch >= p->c.first) {
        p->acked = r->epoch;
        remus_primary_flow_moves(p);
        remus_primary_epochs_acked(p);
        p->c.progress_ns = remus_primary_now(p);
        if (p->acked == p->barrier_epoch)
            remus_spin_took(&p->c.acks, p->c.progress_ns - p->c.asked_ns);
        p->c.progress_spent = p->c.spent;
        w = remus_primary_take_waiters(p, p->acked);
        remus_primary_note_heard(p, w);
    }
    if (r->offset > p->c.stable) {
        p->c.stable = r->offset;
        remus_dirty_stable(&p->dirty, p->c.stable);
    }
    if (r->number > p->c.applied)
        p->c.applied = r->number;
    /* Given on the backup, too: only what is committed is applied. */
    if (p->c.applied > p->c.committed)
        p->c.committed = p->c.applied;
    if (committed != UINT64_MAX && committed > p->c.accepted)
        p->c.accepted = committed;
    if (p->c.accepted > p->c.committed)
        p->c.committed = p->c.accepted;
    p->c.pinned = r->flags & REMUS_PROGRESS_PINNED;
    if (r->range > p->c.credit) {
        p->c.credit = r->range;
        remus_primary_wake_parked(p);
    }
    remus_primary_check_caught_up(p);
    pthread_cond_broadcast(&p->changed);
    int tell = remus_primary_complete(p) > p->c.told;
    remus_primary_unlock(p);
    /* The backup hears it before who waits does. */
    if (tell)
        remus_primary_tell(p);
    remus_primary_answer(p, w, 0);
    return 0;
}

static int handle(remus_primary *p, const struct remus_record *r,
                  const unsigned char *payload)
{
    int err;
    switch (r->type) {
    case REMUS_REC_APPLIED:
        err = on_progress(p, r, payload);
        if (err || r->length < REMUS_PROGRESS_BYTES)
            return err;
        return remus_primary_epochs_measured(p, payload + REMUS_PROGRESS_BYTES,
                                             r->length - REMUS_PROGRESS_BYTES);
    case REMUS_REC_ACK:
    case REMUS_REC_PING:
        return on_progress(p, r, payload);
    case REMUS_REC_RESYNC:
        remus_primary_lock(p);
        p->c.resync_step = r->flags;
        pthread_cond_broadcast(&p->changed);
        remus_primary_unlock(p);
        return 0;
    case REMUS_REC_STEP_DOWN:
        remus_primary_asked(p, r->flags);
        return 0;
    case REMUS_REC_HASH_REPLY:
        if (r->length != sizeof p->c.hash_bits)
            return remus_fail(-EBADMSG, "an answer to hashes of %u bytes",
                              r->length);
        remus_primary_lock(p);
        memcpy(p->c.hash_bits, payload, sizeof p->c.hash_bits);
        p->c.hash_answered = (int64_t)r->number;
        pthread_cond_broadcast(&p->changed);
        remus_primary_unlock(p);
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

/* Wait at most `ms` for input or a wake-up.  As remus_input_fill(). */
static ssize_t sleep_on(remus_primary *p, int fd, int ms)
{
    struct pollfd pf[2] = {{.fd = fd, .events = POLLIN},
                           {.fd = p->rx_wake, .events = POLLIN}};
    int n = poll(pf, 2, ms);
    if (n > 0 && pf[1].revents)
        remus_wake_clear(p->rx_wake);
    return n > 0 && pf[0].revents ? remus_input_fill(&p->input, &p->conn) : 0;
}

/*
 * Wait for input or a wake-up, and take in what there is: awake until
 * `awake`, then at most `ms` asleep.  0, or -errno after the link was
 * declared lost.
 */
static int receive(remus_primary *p, int fd, uint64_t awake, int ms)
{
    /* It may have been closed, and another opened, before we had rx_lock. */
    remus_primary_lock(p);
    int gone = p->fd != fd;
    remus_primary_unlock(p);
    if (gone)
        return 0;
    /* What came together with the answer to the hello. */
    int rc = take_in(p);
    if (rc)
        return rc < 0 ? rc : 0;
    ssize_t got = remus_input_look_out(&p->input, &p->conn, p->io, awake);
    if (!got && ms)
        got = sleep_on(p, fd, ms);
    if (got < 0) {
        remus_primary_link_lost(p, "backup lost: %s", remus_last_error());
        return (int)got;
    }
    if (got > 0) {
        remus_primary_lock(p);
        p->c.rx_ns = remus_primary_now(p);
        remus_primary_unlock(p);
    }
    rc = take_in(p);
    return rc < 0 ? rc : 0;
}

/* ---- who receives ------------------------------------------------------ */

/* Milliseconds left, at most a minute; 0: none. */
static int ms_left(uint64_t now, struct remus_deadline end)
{
    int64_t ms = remus_deadline_ms(end, now);
    return ms < 0 || ms > 60000 ? 60000 : (int)ms;
}

/* Is somebody waiting who does not receive?  (lock held) */
static int others_wait(const remus_primary *p)
{
    return p->waiters || p->parked_room;
}

/* Until when the ack that is due is looked for without sleep; 0: not at all.
 * (lock held) */
static uint64_t awake_until(const remus_primary *p)
{
    if (p->acked >= p->barrier_epoch)
        return 0;
    uint64_t end = remus_spin_end(&p->c.acks, p->c.asked_ns, p->spin_most);
    return end > remus_primary_now(p) ? end : 0;
}

/*
 * Be the receiver until ready() or the deadline, but for as long as it need
 * not sleep.  Entered and left with lock held; rx_caller is not set.
 */
static int receive_until(remus_primary *p,
                         int (*ready)(remus_primary *p, uint64_t arg),
                         uint64_t arg, struct remus_deadline end)
{
    int move = p->rx_polling;
    p->rx_caller = 1;
    remus_primary_unlock(p);
    if (move)
        remus_wake(p->rx_wake);
    pthread_mutex_lock(&p->rx_lock);
    remus_primary_lock(p);
    int rc;
    while ((rc = ready(p, arg)) == 0 && p->fd >= 0 && remus_link_up(p)) {
        uint64_t awake = awake_until(p);
        int ms = ms_left(remus_primary_now(p), end);
        if (!ms && !awake)
            break;
        int fd = p->fd;
        remus_primary_unlock(p);
        receive(p, fd, awake, ms);
        remus_primary_lock(p);
    }
    remus_primary_unlock(p);
    pthread_mutex_unlock(&p->rx_lock);
    remus_primary_lock(p);
    p->rx_caller = 0;
    p->rx_left_ns = remus_primary_now(p);
    /* Hand the role on: to another caller, or to the thread if somebody
     * waits who can't take it.  Else it stays away for a while. */
    pthread_cond_broadcast(&p->changed);
    if (others_wait(p)) {
        p->rx_wanted = 1;
        pthread_cond_signal(&p->rx_resume);
    }
    return rc;
}

/* lock held */
static int newest_acked(remus_primary *p, uint64_t ignored)
{
    (void)ignored;
    return p->acked >= p->barrier_epoch;
}

void remus_primary_look_out(remus_primary *p)
{
    remus_primary_lock(p);
    int near = remus_spin_end(&p->c.acks, 0, p->spin_most) != 0;
    if (near && p->rx_polling && !others_wait(p))
        /* Who waits for the next one is to find the thread away. */
        p->rx_left_ns = remus_primary_now(p);
    else if (near && !p->rx_polling && !p->rx_caller && p->fd >= 0 &&
             remus_link_up(p) && awake_until(p))
        receive_until(p, newest_acked, 0, (struct remus_deadline){0});
    remus_primary_unlock(p);
}

int remus_primary_wait_for(remus_primary *p,
                           int (*ready)(remus_primary *p, uint64_t arg),
                           uint64_t arg, int64_t timeout_ms)
{
    struct remus_deadline end =
        remus_deadline_in(remus_primary_now(p), timeout_ms);
    remus_primary_lock(p);
    int rc;
    while ((rc = ready(p, arg)) == 0) {
        int ms = ms_left(remus_primary_now(p), end);
        if (!ms) {
            rc = -ETIMEDOUT;
            break;
        }
        if (p->rx_caller || p->fd < 0 || !remus_link_up(p)) {
            remus_primary_timed_wait(p, &p->changed, ms);
            continue;
        }
        rc = receive_until(p, ready, arg, end);
        if (rc)
            break;
    }
    remus_primary_unlock(p);
    return rc;
}

void *remus_primary_receiver_main(void *arg)
{
    remus_primary *p = arg;
    remus_primary_lock(p);
    while (!remus_stopping(p)) {
        int ms = remus_primary_expire_waiters(p, REMUS_LINGER_MS);
        uint64_t away = (remus_primary_now(p) - p->rx_left_ns) / 1000000u;
        if (p->fd < 0 || !remus_link_up(p) || p->rx_caller ||
            (!p->rx_wanted && away < REMUS_LINGER_MS)) {
            remus_primary_timed_wait(p, &p->rx_resume, ms);
            continue;
        }
        p->rx_wanted = 0;
        p->rx_polling = 1;
        int fd = p->fd;
        remus_primary_unlock(p);
        pthread_mutex_lock(&p->rx_lock);
        receive(p, fd, 0, ms);
        pthread_mutex_unlock(&p->rx_lock);
        remus_primary_lock(p);
        p->rx_polling = 0;
        if (others_wait(p))
            p->rx_wanted = 1;
    }
    remus_primary_unlock(p);
    return NULL;
}

/* ---- the sender -------------------------------------------------------- */

/* What the link takes, measured while there was always more to send. */
struct rate {
    uint64_t since_ns;
    uint64_t from;  /* bytes sent at that time */
    uint64_t per_s; /* 0: not known yet */
};

static void measure(remus_primary *p, struct rate *r, int busy)
{
    uint64_t now = remus_primary_now(p);
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
    remus_primary_lock(p);
    p->queue_limit = limit;
    remus_primary_unlock(p);
}

/* Send once.  0: nothing left; 1: the socket is full; *fd: where. */
static int send_some(remus_primary *p, int *fd)
{
    pthread_mutex_lock(&p->queue.send_lock);
    remus_primary_lock(p);
    *fd = remus_link_up(p) ? p->fd : -1;
    remus_primary_unlock(p);
    int rc = *fd < 0 ? 0 : remus_sendq_pump(&p->queue, &p->conn);
    pthread_mutex_unlock(&p->queue.send_lock);
    return rc;
}

static int link_is(remus_primary *p, int fd)
{
    remus_primary_lock(p);
    int is = p->fd == fd && remus_link_up(p);
    remus_primary_unlock(p);
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
               receive(p, fd, 0, 1) == 0)
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
            remus_primary_lock(p);
            remus_primary_wake_parked(p);
            remus_primary_unlock(p);
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
