/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The backup's threads and its connection.
 *   pending   accepts, shakes hands, and hands over who is proven (pending.c)
 *   pinger    sends a PING with progress every PING_MS; never touches a
 *             disk, so a stalled disk and a dead host can be told apart
 *   session   receives from the one primary that is connected; journals,
 *             acks
 *   applier   moves committed epochs to the disks, many at once
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/net.h"
#include "link/config.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/sized.h"
#include "base/fork.h"
#include "base/entry.h"
#include "base/wake.h"

#define PING_MS 500
#define ASK_MS 100   /* between looks at a primary that is asked */
#define ASKS 3       /* of one whose link comes and goes */
#define CURRENT_S 60 /* how far behind `current` is stored at most */
#define APPLY_MS 250 /* between applies, unless space is needed */

/* lock held */
static void timed_wait(struct remus_backup_net *net, pthread_cond_t *cond,
                       int ms)
{
    uint64_t now = net->b->io->now_ns(net->b->io);
    remus_cond_wait(cond, &net->lock, now, remus_deadline_in(now, ms));
}

/* ---- who has proven itself (pending.c's thread) -------------------------- */

static void refuse(struct remus_backup_net *net, struct remus_conn *conn,
                   const char *text)
{
    remus_tell_error(conn, text);
    remus_backup_refused(net, conn, REMUS_REFUSED_BUSY, text);
    remus_conn_close(conn);
}

static void admit(void *opaque, struct remus_conn *conn)
{
    struct remus_backup_net *net = opaque;
    char why[REMUS_REASON_MAX] = "";
    pthread_mutex_lock(&net->lock);
    if (net->fenced)
        snprintf(why, sizeof why,
                 "backup of %s: promoted or being promoted: it takes no more "
                 "writes from a primary",
                 net->b->resource);
    else if (net->conn >= 0)
        snprintf(why, sizeof why, "backup of %s: another primary is connected",
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

/* ---- pinger thread ------------------------------------------------------ */

static void facts(struct remus_backup_net *net, struct remus_status *s)
{
    pthread_mutex_lock(&net->lock);
    s->connected = net->connected;
    s->link_changed_ns = net->link_changed_ns;
    if (net->connected)
        memcpy(s->security, net->link.security, sizeof s->security);
    pthread_mutex_unlock(&net->lock);
    s->refused = remus_refusals_total(&net->refusals);
}

static void ping(struct remus_backup_net *net)
{
    struct remus_status s = {0};
    facts(net, &s);
    if (s.connected)
        remus_backup_send_ping(net);
    remus_backup_show(net->b, &s);
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
    remus_backup_unlock(net->b);
    int told = applied == net->told;
    net->told = applied;
    return told;
}

/* So that a later process knows how old the checkpoint is, also where nothing
 * was written for hours. */
static void store_current(remus_backup *b)
{
    uint64_t s = b->stale_s / 10;
    remus_backup_store_current(b, s < 1 ? 1 : s < CURRENT_S ? s : CURRENT_S);
}

static void apply_round(struct remus_backup_net *net, int now)
{
    remus_backup *b = net->b;
    pthread_mutex_lock(&b->lock);
    uint64_t before = b->applied;
    int failed = b->failed || b->authority.who == REMUS_DECIDES_OURS;
    remus_backup_unlock(b);
    if (!failed)
        store_current(b);
    if (failed || remus_backup_apply(b))
        return;
    remus_backup_send_measured(net);
    pthread_mutex_lock(&b->lock);
    int idle = b->applied == before;
    int half = 2 * remus_journal_used(&b->journal) > b->journal.segments;
    remus_backup_unlock(b);
    if (idle)
        remus_backup_foreign_rest(b, 0);
    if (!idle && !half && !now)
        return;
    if (remus_backup_checkpoint(b) == 0 && !told_already(net))
        remus_backup_send_progress(net, REMUS_REC_APPLIED);
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
        pthread_mutex_lock(&net->lock);
    }
    pthread_mutex_unlock(&net->lock);
    return NULL;
}

/* ---- start, fence, stop ------------------------------------------------ */

static void free_net(struct remus_backup_net *net)
{
    remus_pending_stop(net->pending);
    remus_conn_close(&net->link);
    if (net->listener >= 0) {
        remus_fd_close(net->listener);
        remus_unlisten(&net->address);
    }
    remus_wake_close(net->wake);
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
    remus_pending_stop(net->pending); /* from here on nobody is admitted */
    net->pending = NULL;
    pthread_mutex_lock(&net->lock);
    net->stopping = 1;
    if (net->conn >= 0)
        shutdown(net->conn, SHUT_RDWR);
    pthread_cond_broadcast(&net->changed);
    pthread_cond_broadcast(&net->apply);
    pthread_mutex_unlock(&net->lock);
    remus_wake(net->wake);
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
    net->spin_most = remus_spin_most();
    net->link_changed_ns = b->io->now_ns(b->io);
    net->listener = net->wake = net->conn = -1;
    net->link = REMUS_CONN_NONE;
    remus_refusals_init(&net->refusals);
    pthread_mutex_init(&net->lock, NULL);
    pthread_mutex_init(&net->send_lock, NULL);
    remus_cond_init(&net->changed);
    remus_cond_init(&net->apply);
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
        net->wake = remus_wake_open();
        err = net->wake < 0 ? net->wake : 0;
    }
    return err;
}

static int start_pending(struct remus_backup_net *net)
{
    const struct remus_pending_config config = {.listener = net->listener,
                                                .address = &net->address,
                                                .keys = net->keys,
                                                .refusals = &net->refusals,
                                                .io = net->b->io,
                                                .admit = admit,
                                                .opaque = net};
    return remus_pending_start(&config, &net->pending);
}

int remus_backup_serve(remus_backup *b, const char *address, int tls_off,
                       uint32_t loss_ms)
{
    int no = remus_enter(b, "backup_serve");
    if (!no)
        no = remus_given(address, "backup_serve", "address");
    if (no)
        return no;
    if (b->net || b->read_only)
        return remus_fail(
            b->read_only ? -EROFS : -EALREADY, "backup of %s: %s", b->resource,
            b->read_only ? "was opened read-only" : "serves already");
    struct remus_backup_net *net = new_net(b, loss_ms);
    if (!net)
        return remus_fail(-ENOMEM, "backup of %s: out of memory", b->resource);
    int started = 0;
    int err = prepare(net, address, tls_off);
    pthread_mutex_lock(&b->lock);
    net->fenced = b->authority.who == REMUS_DECIDES_OURS &&
                  b->super.role != REMUS_SUPER_PROMOTED;
    remus_backup_unlock(b);
    if (!err &&
        (err = -pthread_create(&net->pinger, NULL, pinger_main, net)) == 0)
        started++;
    if (!err && (err = -pthread_create(&net->session, NULL,
                                       remus_backup_session_main, net)) == 0)
        started++;
    if (!err &&
        (err = -pthread_create(&net->applier, NULL, applier_main, net)) == 0)
        started++;
    if (!err)
        err = start_pending(net);
    struct remus_backup_net *none = NULL;
    if (!err && !atomic_compare_exchange_strong(&b->net, &none, net))
        err = remus_fail(-EALREADY, "serves already");
    if (err) {
        if (started)
            stop_threads(net, started);
        free_net(net);
        return remus_fail_in(err, "backup of %s", b->resource);
    }
    return 0;
}

int remus_backup_reload_keys(remus_backup *b)
{
    int no = remus_enter(b, "backup_reload_keys");
    if (no)
        return no;
    struct remus_backup_net *net = b->net;
    int err = net ? remus_tls_keys_reload(net->keys) : 0;
    return err ? remus_fail_in(err, "backup of %s", b->resource) : 0;
}

/* Did the other end close its socket? */
static int hung_up(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};
    return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
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

/*
 * A link that is down is not lost yet, nor is a primary that had no time to
 * come since this process began: it may be back in a moment.  (lock held)
 */
static void wait_for_loss(struct remus_backup_net *net)
{
    remus_io *io = net->b->io;
    while (!net->connected && !net->said_bye && !net->stopping &&
           io->now_ns(io) - net->link_changed_ns < net->loss_ms * 1000000ull)
        timed_wait(net, &net->changed, ASK_MS);
}

/*
 * Wait for its answer.  1: there is one; 0: it is silent, so it is lost;
 * -EAGAIN: the link went, and may come back.  (lock held)
 */
static int wait_for_answer(struct remus_backup_net *net)
{
    remus_io *io = net->b->io;
    uint64_t start = io->now_ns(io), limit = net->loss_ms * 1000000ull;
    while (net->connected && !net->answer) {
        timed_wait(net, &net->changed, ASK_MS);
        uint64_t now = io->now_ns(io);
        uint64_t heard = atomic_load(&net->last_rx_ns);
        if (now > heard && now - heard > limit)
            return 0;
        if (now - start > 2 * limit)
            return remus_fail(-EBUSY,
                              "promote: the primary is alive, but has not "
                              "said whether it will step down: stop it there "
                              "first, or force this");
    }
    return net->answer ? 1 : -EAGAIN;
}

/* Ask once.  As wait_for_answer(); 0 also: nobody is there. */
static int ask_once(struct remus_backup_net *net, int flags)
{
    struct remus_record ask = {.type = REMUS_REC_STEP_DOWN,
                               .flags = (uint8_t)flags};
    pthread_mutex_lock(&net->lock);
    wait_for_loss(net);
    net->answer = 0;
    int rc = net->connected ? -EAGAIN : 0;
    pthread_mutex_unlock(&net->lock);
    if (rc && remus_backup_send(net, &ask, NULL) == 0) {
        pthread_mutex_lock(&net->lock);
        rc = wait_for_answer(net);
        pthread_mutex_unlock(&net->lock);
    }
    return rc;
}

int remus_backup_net_ask(remus_backup *b, int flags, uint64_t *epoch)
{
    struct remus_backup_net *net = b->net;
    *epoch = 0;
    if (!net)
        return 0;
    int rc = -EAGAIN;
    for (int i = 0; rc == -EAGAIN && i < ASKS; i++)
        rc = ask_once(net, flags);
    if (rc == -EAGAIN)
        return remus_fail(-EBUSY, "promote: the primary is alive, but its "
                                  "link comes and goes: stop it there first, "
                                  "or force this");
    if (rc <= 0)
        return rc;
    pthread_mutex_lock(&net->lock);
    rc = net->answer > 0
             ? 1
             : remus_fail(-EBUSY, "promote: %s, or force this", net->why_not);
    if (rc > 0)
        *epoch = net->answer_epoch;
    pthread_mutex_unlock(&net->lock);
    return rc;
}

int remus_backup_net_fence(remus_backup *b, int cut)
{
    struct remus_backup_net *net = b->net;
    if (!net)
        return 0;
    pthread_mutex_lock(&net->lock);
    /* A dead primary's last bytes may still be on the way through. */
    while (net->connected && hung_up(net->conn))
        pthread_cond_wait(&net->changed, &net->lock);
    if (net->connected && !cut) {
        pthread_mutex_unlock(&net->lock);
        return -EAGAIN;
    }
    net->fenced = 1;
    while (net->conn >= 0) {
        shutdown(net->conn, SHUT_RDWR);
        pthread_cond_wait(&net->changed, &net->lock);
    }
    pthread_mutex_unlock(&net->lock);
    return 0;
}

void remus_backup_net_reopen(remus_backup *b)
{
    struct remus_backup_net *net = b->net;
    if (!net)
        return;
    pthread_mutex_lock(&b->lock);
    /* One that was promoted tells so, in its answer to a hello. */
    int fenced = b->authority.who == REMUS_DECIDES_OURS &&
                 b->super.role != REMUS_SUPER_PROMOTED;
    remus_backup_unlock(b);
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
    if (net)
        facts(net, s);
}

int remus_backup_refusals(remus_backup *b, struct remus_refusal *out,
                          unsigned int cap)
{
    int no = remus_enter(b, "backup_refusals");
    if (!no && cap)
        no = remus_sized_check(out, sizeof *out, "backup_refusals", "out");
    if (no)
        return no;
    struct remus_backup_net *net = b->net;
    return net ? remus_refusals_read(&net->refusals, out, cap) : 0;
}
