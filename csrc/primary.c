/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A primary: open, close, status. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "config.h"
#include "error.h"
#include "primary_int.h"
#include "states.h"

typedef unsigned long long ull;

#define DEFAULT_QUEUE (64u << 20)
#define QUEUE_LEAST (4u << 20)
#define FIRST_LIMIT (16u << 20) /* of the queue, until a rate is known */
#define PREALLOCATED 128        /* requests and waiters */
#define DEFAULT_IDLE_MS 1000u
#define DEFAULT_GRACE_MS 60000u

/* ---- state and status ------------------------------------------------- */

void remus_primary_set_state(remus_primary *p, int state, const char *reason)
{
    remus_state_note(REMUS_ROLE_PRIMARY, p->state, state);
    p->state = state;
    snprintf(p->reason, sizeof p->reason, "%s", reason);
    pthread_cond_broadcast(&p->changed);
}

/* lock held */
static int protected_or_closed(const remus_primary *p)
{
    if (p->state == REMUS_STATE_PROTECTED)
        return 1;
    return p->stopping ? -EPROTO : 0;
}

int remus_primary_wait_protected(remus_primary *p, int64_t timeout_ms)
{
    uint64_t deadline = 0;
    if (timeout_ms >= 0)
        deadline = p->io->now_ns(p->io) + (uint64_t)timeout_ms * 1000000u;
    pthread_mutex_lock(&p->lock);
    int rc;
    while ((rc = protected_or_closed(p)) == 0) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        if (timeout_ms >= 0) {
            if (p->io->now_ns(p->io) >= deadline) {
                rc = -ETIMEDOUT;
                break;
            }
            until.tv_sec = (time_t)(deadline / 1000000000u);
            until.tv_nsec = (long)(deadline % 1000000000u);
        } else {
            until.tv_sec += 3600;
        }
        pthread_cond_timedwait(&p->changed, &p->lock, &until);
    }
    if (rc < 0)
        remus_fail(rc, "resource %s is %s: %s", p->resource,
                   remus_state_name(p->state), p->reason);
    pthread_mutex_unlock(&p->lock);
    return rc < 0 ? rc : 0;
}

int remus_primary_status(remus_primary *p, struct remus_status *s)
{
    pthread_mutex_lock(&p->lock);
    *s = p->stats;
    s->role = REMUS_ROLE_PRIMARY;
    s->state = p->state;
    s->volumes = p->volume_count;
    snprintf(s->resource, sizeof s->resource, "%s", p->resource);
    for (int i = 0; i < REMUS_ID_BYTES; i++)
        snprintf(s->generation + 2 * i, 3, "%02x", p->kept.lineage.id[i]);
    memcpy(s->reason, p->reason, sizeof s->reason);
    if (s->connected)
        memcpy(s->security, p->conn.security, sizeof s->security);
    s->open_epoch = p->open_epoch;
    s->prepared_epoch = p->acked;
    s->committed_epoch = p->committed;
    s->applied_epoch = p->applied;
    s->stable_epoch = p->stable;
    s->queue_bytes = p->streaming ? remus_sendq_bytes(&p->queue) : 0;
    s->queue_limit = p->queue_limit;
    s->writers = p->writers;
    s->holds = !p->stats.connected && remus_primary_holds(p);
    s->turns = p->turns;
    s->asks_alone = remus_primary_asks_alone(p);
    for (const struct remus_request *q = p->parked; q; q = q->next)
        s->parked_writes++;
    pthread_mutex_unlock(&p->lock);
    /* All of a large map takes milliseconds: nobody waits for that. */
    s->dirty_bytes = s->state == REMUS_STATE_PROTECTED
                         ? 0
                         : remus_dirty_bytes(&p->dirty);
    return 0;
}

/* ---- open and close ---------------------------------------------------- */

static void preallocate(remus_primary *p)
{
    for (int i = 0; i < PREALLOCATED; i++) {
        struct remus_request *q = calloc(1, sizeof *q);
        struct remus_waiter *w = calloc(1, sizeof *w);
        if (q) {
            q->next = p->free_requests;
            p->free_requests = q;
        }
        if (w) {
            w->next = p->free_waiters;
            p->free_waiters = w;
        }
    }
}

static void init_locks(remus_primary *p)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&p->lock, NULL);
    pthread_mutex_init(&p->state_lock, NULL);
    pthread_mutex_init(&p->rx_lock, NULL);
    pthread_cond_init(&p->changed, &attr);
    pthread_cond_init(&p->park_changed, &attr);
    pthread_cond_init(&p->rx_resume, &attr);
    pthread_cond_init(&p->engine_wake, &attr);
    pthread_condattr_destroy(&attr);
}

static int init(remus_primary *p, const struct remus_primary_config *c)
{
    uint32_t queue = c->queue_bytes ? c->queue_bytes : DEFAULT_QUEUE;
    if (queue < QUEUE_LEAST || queue % REMUS_PAGE || queue > (1u << 30))
        return remus_fail(-EINVAL,
                          "send queue of %u bytes: give a multiple of 4096 "
                          "from %u to %u",
                          queue, QUEUE_LEAST, 1u << 30);
    if (c->loss_ms && c->loss_ms < 2 * REMUS_PING_MS)
        return remus_fail(-EINVAL,
                          "loss after %u ms of silence: pings come every %u "
                          "ms; give at least %u",
                          c->loss_ms, REMUS_PING_MS, 2 * REMUS_PING_MS);
    p->ack = c->ack;
    p->commit_by = c->commit_by;
    p->max_pause_ms = c->max_pause_ms ? c->max_pause_ms : 200;
    p->loss_ms = c->loss_ms ? c->loss_ms : 3000;
    p->stall_ms = c->stall_ms ? c->stall_ms : 10000;
    p->connect_ms = c->connect_ms ? c->connect_ms : 250;
    p->allow_inconsistent = c->allow_inconsistent;
    p->ask_alone = c->ask_alone;
    p->hold = c->on_loss == REMUS_ON_LOSS_HOLD;
    p->resync_rate = c->resync_rate;
    p->idle_ms = c->idle_ms ? c->idle_ms : DEFAULT_IDLE_MS;
    p->grace_ms = c->grace_ms ? c->grace_ms : DEFAULT_GRACE_MS;
    p->queue_limit = queue < FIRST_LIMIT ? queue / 2 : FIRST_LIMIT;
    p->resource = strdup(c->resource);
    p->state_dir = strdup(c->state_dir);
    p->volumes = calloc(c->volume_count, sizeof *p->volumes);
    p->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    p->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!p->resource || !p->state_dir || !p->volumes || p->wake < 0 ||
        p->kick < 0)
        return remus_fail(-ENOMEM, "out of memory or file descriptors");
    preallocate(p);
    int err = remus_config_keys(c->resource, c->psk_file, c->psk_identity,
                                &p->keys);
    if (!err)
        err = remus_config_tls(p->keys, c->tls_off);
    if (!err)
        err = remus_address_parse(c->address, p->keys != NULL, c->tls_off,
                                  &p->address);
    if (!err)
        err = remus_input_init(&p->input);
    if (!err)
        err = remus_sendq_init(&p->queue, queue);
    return err;
}

static int open_disks(remus_primary *p, const struct remus_primary_config *c)
{
    p->lock_file = remus_state_lock(p->io, p->resource, p->state_dir);
    if (p->lock_file < 0)
        return p->lock_file;
    for (unsigned int i = 0; i < c->volume_count; i++) {
        struct remus_pvolume *v = &p->volumes[i];
        v->file = -1;
        v->name = strdup(c->volumes[i].name);
        v->path = strdup(c->volumes[i].path);
        pthread_mutex_init(&v->lock, NULL);
        p->volume_count++;
        if (!v->name || !v->path)
            return remus_fail(-ENOMEM, "out of memory");
        v->file = remus_disk_open(p->io, &c->volumes[i], &v->size);
        if (v->file < 0)
            return v->file;
    }
    uint64_t sizes[REMUS_VOLUMES_MAX], stamps[REMUS_VOLUMES_MAX];
    uint64_t where = 0, mount;
    int err = 0;
    for (unsigned int i = 0; i < p->volume_count; i++) {
        sizes[i] = p->volumes[i].size;
        stamps[i] = mount = 0;
        if (!err)
            err = p->io->stamp(p->io, p->volumes[i].file, &stamps[i]);
        if (!err)
            err = p->io->mount_id(p->io, p->volumes[i].file, &mount);
        where = remus_dirty_where(where, mount);
    }
    if (err)
        return remus_fail(err, "look at the disks: %s",
                          remus_errno_text(err));
    err = remus_primary_take_over(p);
    if (!err)
        err = remus_primary_state_load(p, &p->open_epoch);
    if (!err)
        err = remus_dirty_open(&p->dirty, p->io, p->state_dir, p->resource,
                               p->kept.lineage.id, sizes, stamps,
                               p->volume_count, where);
    return err;
}

static int start_threads(remus_primary *p)
{
    struct {
        pthread_t *thread;
        void *(*main)(void *);
    } const all[] = {{&p->sender, remus_primary_sender_main},
                     {&p->receiver, remus_primary_receiver_main},
                     {&p->resumer, remus_primary_resumer_main},
                     {&p->engine, remus_primary_engine_main},
                     {&p->watch, remus_primary_watch_main}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        int err = pthread_create(all[i].thread, NULL, all[i].main, p);
        if (err)
            return remus_fail(-err, "start a thread: %s",
                              remus_errno_text(err));
        p->threads++;
    }
    return 0;
}

int remus_primary_open_io(const struct remus_primary_config *config,
                          remus_io *io, remus_primary **out)
{
    *out = NULL;
    int err = remus_config_check(config->resource, config->state_dir,
                                 config->volumes, config->volume_count,
                                 config->ack, config->commit_by);
    if (err)
        return err;
    remus_primary *p = calloc(1, sizeof *p);
    if (!p)
        return remus_fail(-ENOMEM, "resource %s: out of memory",
                          config->resource);
    p->io = io;
    p->lock_file = p->fd = p->wake = p->kick = p->dirty.file = -1;
    p->session_first = 1;
    p->conn = REMUS_CONN_NONE;
    p->parked_tail = &p->parked;
    p->state = REMUS_STATE_CONNECTING;
    p->stats.link_changed_ns = io->now_ns(io);
    snprintf(p->reason, sizeof p->reason, "no connection to the backup yet");
    init_locks(p);
    err = init(p, config);
    if (!err)
        err = open_disks(p, config);
    /* Who has the state directory is the one writer of a file in it. */
    if (!err)
        err = remus_epochs_create(config->epochs_file, config->resource,
                                  &p->epochs);
    if (!err)
        err = start_threads(p);
    if (err) {
        remus_fail_in(err, "primary of %s", config->resource);
        remus_primary_close(p);
        return err;
    }
    *out = p;
    return 0;
}

int remus_primary_open(const struct remus_primary_config *config,
                       remus_primary **out)
{
    return remus_primary_open_io(config, remus_io_system(), out);
}

/* Let what is queued arrive, and say that we end on purpose. */
static void say_goodbye(remus_primary *p)
{
    struct remus_record r = {.type = REMUS_REC_BYE};
    pthread_mutex_lock(&p->lock);
    struct remus_slot *slot = NULL;
    if (p->stats.connected &&
        remus_sendq_fits(&p->queue, REMUS_REC_HEADER, 1)) {
        p->streaming = 0;
        slot = remus_sendq_reserve(&p->queue, REMUS_REC_HEADER);
        r.session = p->session;
    }
    pthread_mutex_unlock(&p->lock);
    if (!slot)
        return;
    remus_sendq_publish(&p->queue, slot, &r, NULL);
    uint64_t end = p->io->now_ns(p->io) + p->loss_ms * 1000000ull;
    for (;;) {
        pthread_mutex_lock(&p->lock);
        int waiting = p->stats.connected && remus_sendq_bytes(&p->queue);
        pthread_mutex_unlock(&p->lock);
        if (!waiting || p->io->now_ns(p->io) >= end)
            return;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
}

static void stop_threads(remus_primary *p)
{
    remus_primary_link_lost(p, "closed");
    pthread_mutex_lock(&p->lock);
    p->stopping = 1;
    p->streaming = 0;
    p->park_kick = 1;
    struct remus_waiter *held = remus_primary_let_go(p);
    if (p->fd >= 0)
        shutdown(p->fd, SHUT_RDWR);
    pthread_cond_broadcast(&p->changed);
    pthread_cond_broadcast(&p->park_changed);
    pthread_cond_broadcast(&p->rx_resume);
    pthread_cond_broadcast(&p->engine_wake);
    pthread_mutex_unlock(&p->lock);
    remus_primary_answer(p, held, -EPROTO);
    uint64_t one = 1;
    ssize_t n = write(p->wake, &one, sizeof one);
    n = write(p->kick, &one, sizeof one);
    (void)n; /* an eventfd takes 2^64-2 of them */
    remus_sendq_stop(&p->queue);
    pthread_t all[] = {p->sender, p->receiver, p->resumer, p->engine,
                       p->watch};
    for (int i = 0; i < p->threads; i++)
        pthread_join(all[i], NULL);
}

static void free_primary(remus_primary *p)
{
    for (unsigned int i = 0; i < p->volume_count; i++) {
        free(p->volumes[i].name);
        free(p->volumes[i].path);
        pthread_mutex_destroy(&p->volumes[i].lock);
    }
    while (p->free_requests) {
        struct remus_request *q = p->free_requests;
        p->free_requests = q->next;
        free(q);
    }
    while (p->free_waiters) {
        struct remus_waiter *w = p->free_waiters;
        p->free_waiters = w->next;
        free(w);
    }
    if (p->queue.slots || p->queue.ring)
        remus_sendq_free(&p->queue);
    remus_epochs_close(p->epochs);
    remus_input_free(&p->input);
    remus_tls_keys_free(p->keys);
    if (p->wake >= 0)
        close(p->wake);
    if (p->kick >= 0)
        close(p->kick);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->state_lock);
    pthread_mutex_destroy(&p->rx_lock);
    pthread_cond_destroy(&p->changed);
    pthread_cond_destroy(&p->park_changed);
    pthread_cond_destroy(&p->rx_resume);
    pthread_cond_destroy(&p->engine_wake);
    free(p->volumes);
    free(p->resource);
    free(p->state_dir);
    free(p);
}

void remus_primary_close(remus_primary *p)
{
    if (!p)
        return;
    char *text = strdup(remus_last_error());
    if (p->threads) {
        say_goodbye(p);
        stop_threads(p);
        /* Numbers that were reserved and not used need no gap. */
        remus_primary_state_store(p, p->open_epoch);
    }
    int synced = p->threads > 0;
    for (unsigned int i = 0; i < p->volume_count; i++) {
        if (p->volumes[i].file < 0)
            continue;
        if (p->threads &&
            (p->io->fdatasync(p->io, p->volumes[i].file) ||
             p->io->stamp(p->io, p->volumes[i].file, &p->dirty.stamp[i])))
            synced = 0;
        p->io->close(p->io, p->volumes[i].file);
    }
    if (p->threads)
        remus_dirty_forget_all(&p->dirty);
    /* What the disks lost no mark tells. */
    if (p->dirty.map && p->threads && !synced)
        remus_dirty_set_valid(&p->dirty, 0);
    remus_dirty_close(&p->dirty, synced);
    remus_conn_close(&p->conn);
    if (p->lock_file >= 0)
        p->io->close(p->io, p->lock_file);
    free_primary(p);
    remus_fail(0, "%s", text ? text : "");
    free(text);
}
