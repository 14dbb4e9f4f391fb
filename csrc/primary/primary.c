/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A primary: open, close, status. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "link/config.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/sized.h"
#include "base/entry.h"
#include "base/wake.h"
#include "primary/internal.h"
#include "base/states.h"

typedef unsigned long long ull;

#define DEFAULT_QUEUE (64u << 20)
#define QUEUE_LEAST (4u << 20)
#define FIRST_LIMIT (16u << 20) /* of the queue, until a rate is known */
#define PREALLOCATED 128        /* requests and waiters */
#define DEFAULT_IDLE_MS 1000u
#define DEFAULT_GRACE_MS 60000u

/* ---- state and status ------------------------------------------------- */

/* lock held */
static int protected_or_closed(const remus_primary *p)
{
    if (remus_primary_state(p) == REMUS_STATE_PROTECTED)
        return 1;
    return remus_stopping(p) ? -EPROTO : 0;
}

int remus_primary_wait_protected(remus_primary *p, int64_t timeout_ms)
{
    int no = remus_enter(p, "primary_wait_protected");
    if (no)
        return no;
    struct remus_deadline end =
        remus_deadline_in(remus_primary_now(p), timeout_ms);
    remus_primary_lock(p);
    int rc, late = 0;
    while ((rc = protected_or_closed(p)) == 0 && !late)
        late = remus_primary_wait(p, &p->changed, end);
    if (!rc)
        rc = late;
    if (rc < 0)
        remus_fail(rc, "resource %s is %s: %s", p->resource,
                   remus_state_name(remus_primary_state(p)), p->reason);
    remus_primary_unlock(p);
    return rc < 0 ? rc : 0;
}

static void take_status(remus_primary *p, struct remus_status *s)
{
    remus_primary_lock(p);
    *s = p->stats;
    s->struct_size = sizeof *s;
    s->role = REMUS_ROLE_PRIMARY;
    s->state = remus_primary_state(p);
    s->volumes = p->volume_count;
    snprintf(s->resource, sizeof s->resource, "%s", p->resource);
    for (int i = 0; i < REMUS_ID_BYTES; i++)
        snprintf(s->generation + 2 * i, 3, "%02x", p->kept.lineage.id[i]);
    if (s->state != REMUS_STATE_PROTECTED ||
        !remus_primary_waits_for_commits(p, s->reason))
        memcpy(s->reason, p->reason, sizeof s->reason);
    remus_text_clean(s->reason); /* it may have been cut */
    s->connected = remus_link_up(p);
    if (s->connected)
        memcpy(s->security, p->conn.security, sizeof s->security);
    s->open_epoch = p->open_epoch;
    s->prepared_epoch = p->acked;
    s->committed_epoch = p->c.accepted;
    s->applied_epoch = p->c.applied;
    s->stable_epoch = p->c.stable;
    s->queue_bytes = remus_streaming(p) ? remus_sendq_bytes(&p->queue) : 0;
    s->queue_limit = p->queue_limit;
    s->writers = p->writers;
    s->holds = !remus_link_up(p) && remus_primary_holds(p);
    s->switches = p->switches;
    s->ready = remus_primary_may_barrier(p);
    s->sessions = p->node_users;
    s->open_bytes = p->c.bytes;
    s->asks_alone = remus_primary_asks_alone(p);
    s->parked_writes = p->parked_room;
    for (unsigned int i = 0; i < p->volume_count; i++)
        for (const struct remus_request *q = p->volumes[i].queue; q;
             q = q->next)
            s->parked_writes++;
    remus_primary_unlock(p);
    /* All of a large map takes milliseconds: nobody waits for that. */
    s->dirty_bytes =
        s->state == REMUS_STATE_PROTECTED ? 0 : remus_dirty_bytes(&p->dirty);
}

int remus_primary_status(remus_primary *p, struct remus_status *status)
{
    int no = remus_enter(p, "primary_status");
    if (!no)
        no = remus_sized_check(status, sizeof *status, "primary_status",
                               "status");
    if (no)
        return no;
    struct remus_status now;
    take_status(p, &now);
    remus_sized_give(status, &now, sizeof now);
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
    pthread_mutex_init(&p->lock, NULL);
    pthread_mutex_init(&p->state_lock, NULL);
    pthread_mutex_init(&p->rx_lock, NULL);
    remus_cond_init(&p->changed);
    remus_cond_init(&p->park_changed);
    remus_cond_init(&p->rx_resume);
    remus_cond_init(&p->engine_wake);
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
    p->spin_most = remus_spin_most();
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
    p->continues = c->continues != 0;
    p->writers = p->continues ? 1 : 0;
    p->idle_ms = c->idle_ms ? c->idle_ms : DEFAULT_IDLE_MS;
    p->grace_ms = c->grace_ms ? c->grace_ms : DEFAULT_GRACE_MS;
    p->queue_limit = queue < FIRST_LIMIT ? queue / 2 : FIRST_LIMIT;
    p->resource = strdup(c->resource);
    p->state_dir = strdup(c->state_dir);
    p->volumes = calloc(c->volume_count, sizeof *p->volumes);
    p->wake = remus_wake_open();
    p->rx_wake = remus_wake_open();
    p->ack_wait.fd = remus_wake_open();
    if (!p->resource || !p->state_dir || !p->volumes || p->wake < 0 ||
        p->rx_wake < 0 || p->ack_wait.fd < 0 || remus_events_open(&p->events))
        return remus_fail(-ENOMEM, "out of memory or file descriptors");
    preallocate(p);
    int err =
        remus_config_keys(c->resource, c->psk_file, c->psk_identity, &p->keys);
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

/* Also of disks that could not be opened, as -1. */
static void list_files(const remus_primary *p, int *files)
{
    for (unsigned int i = 0; i < p->volume_count; i++)
        files[i] = p->volumes[i].file;
}

/* The dirty map: in the order that format/dirty_file.h gives. */
static int open_map(remus_primary *p, const struct remus_primary_config *c)
{
    int files[REMUS_VOLUMES_MAX];
    struct remus_dirty_of of = {.resource = p->resource,
                                .state_dir = p->state_dir,
                                .run_dir = c->run_dir,
                                .generation = p->kept.lineage.id,
                                .id = p->kept.map,
                                .continues = c->continues != 0};
    list_files(p, files);
    int err = remus_dirty_look(&of, p->io, files, p->volume_count);
    if (err)
        return remus_fail(err, "inspect the disks: %s", remus_errno_text(err));
    err = remus_dirty_open(&p->dirty, p->io, &of);
    if (!err)
        err = remus_primary_state_map(p, p->dirty.f.id);
    return err ? err : remus_dirty_file_begin(&p->dirty.f);
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
        v->primary = p;
        v->queue_tail = &v->queue;
        pthread_mutex_init(&v->lock, NULL);
        remus_cond_init(&v->queue_changed);
        p->volume_count++;
        if (!v->name || !v->path)
            return remus_fail(-ENOMEM, "out of memory");
        v->file = remus_disk_open(p->io, &c->volumes[i], &v->size);
        if (v->file < 0)
            return v->file;
    }
    int err = remus_primary_take_over(p);
    if (!err)
        err = remus_primary_state_load(p, &p->open_epoch);
    return err ? err : open_map(p, c);
}

static int start(pthread_t *thread, void *(*routine)(void *), void *arg)
{
    int err = pthread_create(thread, NULL, routine, arg);
    return err ? remus_fail(-err, "start a thread: %s", remus_errno_text(err))
               : 0;
}

static int start_volumes(remus_primary *p)
{
    for (unsigned int i = 0; i < p->volume_count; i++) {
        struct remus_pvolume *v = &p->volumes[i];
        remus_primary_lock(p);
        p->volume_threads++;
        remus_primary_unlock(p);
        int err = start(&v->thread, remus_primary_volume_main, v);
        if (err) {
            remus_primary_lock(p);
            p->volume_threads--;
            remus_primary_unlock(p);
            return err;
        }
        v->runs = 1;
    }
    return 0;
}

/* The engine brings requests: after those that carry them out. */
static int start_threads(remus_primary *p)
{
    struct {
        pthread_t *thread;
        void *(*main)(void *);
    } const all[] = {{&p->sender, remus_primary_sender_main},
                     {&p->receiver, remus_primary_receiver_main},
                     {&p->resumer, remus_primary_resumer_main},
                     {&p->engine, remus_primary_engine_main},
                     {&p->watch, remus_primary_watch_main},
                     {&p->upkeep, remus_primary_upkeep_main}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        int is_engine = all[i].thread == &p->engine;
        int err = is_engine ? start_volumes(p) : 0;
        if (err)
            return err;
        if (is_engine)
            remus_primary_engine_runs(p, 1);
        err = start(all[i].thread, all[i].main, p);
        if (err && is_engine)
            remus_primary_engine_runs(p, 0);
        if (err)
            return err;
        p->threads++;
    }
    return 0;
}

/* A guest that has the disks open does not lose them for statistics. */
static int make_epochs(remus_primary *p, const struct remus_primary_config *c)
{
    int err = remus_epochs_create(c->epochs_file, c->resource, &p->epochs);
    if (!err || !c->continues)
        return err;
    char text[REMUS_REASON_MAX];
    snprintf(text, sizeof text, "no statistics for others: %.200s",
             remus_last_error());
    remus_primary_lock(p);
    remus_primary_say(p, text);
    remus_primary_unlock(p);
    return remus_epochs_create(NULL, c->resource, &p->epochs);
}

int remus_primary_open_io(const struct remus_primary_config *config,
                          remus_io *io, remus_primary **out)
{
    *out = NULL;
    int err = remus_config_check(config->resource, config->state_dir,
                                 config->volumes, config->volume_count,
                                 config->ack, config->commit_by);
    if (!err && config->on_loss != REMUS_ON_LOSS_CONTINUE &&
        config->on_loss != REMUS_ON_LOSS_HOLD)
        err = remus_fail(-EINVAL,
                         "resource %s: on_loss %d is neither continue nor "
                         "hold",
                         config->resource, (int)config->on_loss);
    if (err)
        return err;
    remus_primary *p = calloc(1, sizeof *p);
    if (!p)
        return remus_fail(-ENOMEM, "resource %s: out of memory",
                          config->resource);
    remus_entry_init(&p->entry);
    p->io = io;
    p->lock_file = p->fd = p->wake = p->rx_wake = p->dirty.f.file = -1;
    p->events.fd = p->ack_wait.fd = -1;
    p->c.first = 1;
    p->conn = REMUS_CONN_NONE;
    p->parked_tail = &p->parked;
    p->stats.link_changed_ns = io->now_ns(io);
    init_locks(p);
    remus_primary_say(p, "no connection to the backup yet");
    err = init(p, config);
    if (!err)
        err = open_disks(p, config);
    if (!err)
        remus_primary_asking_begins(p);
    /* Who has the state directory is the one writer of a file in it. */
    if (!err)
        err = make_epochs(p, config);
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
    int no = remus_given(out, "primary_open", "out");
    if (no)
        return no;
    *out = NULL;
    struct remus_primary_config ours;
    struct remus_volume volumes[REMUS_VOLUMES_MAX];
    no =
        remus_sized_take(&ours, sizeof ours, config, "primary_open", "config");
    if (!no)
        no = remus_config_volumes(&ours.volumes, ours.volume_count, volumes,
                                  "primary_open");
    if (no)
        return no;
    return remus_primary_open_io(&ours, remus_io_system(), out);
}

/* Let what is queued arrive, and say that we end on purpose. */
static void say_goodbye(remus_primary *p)
{
    struct remus_record r = {.type = REMUS_REC_BYE};
    remus_primary_lock(p);
    struct remus_slot *slot = NULL;
    if (remus_link_up(p) && remus_sendq_fits(&p->queue, REMUS_REC_HEADER, 1)) {
        remus_primary_ends(p, REMUS_LIFE_LEAVING);
        slot = remus_sendq_reserve(&p->queue, REMUS_REC_HEADER);
        r.session = p->c.id;
    }
    remus_primary_unlock(p);
    if (!slot)
        return;
    remus_sendq_publish(&p->queue, slot, &r, NULL);
    struct remus_deadline end =
        remus_deadline_in(p->io->now_ns(p->io), p->loss_ms);
    for (;;) {
        remus_primary_lock(p);
        int waiting = remus_link_up(p) && remus_sendq_bytes(&p->queue);
        remus_primary_unlock(p);
        if (!waiting || remus_deadline_over(end, remus_primary_now(p)))
            return;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
}

static void stop_threads(remus_primary *p)
{
    remus_primary_lock(p);
    remus_primary_ends(p, REMUS_LIFE_STOPPED);
    struct remus_waiter *lost = remus_primary_lose(p, "closed");
    p->park_wake = 1;
    struct remus_waiter *held = remus_primary_let_go(p);
    if (p->fd >= 0)
        shutdown(p->fd, SHUT_RDWR);
    pthread_cond_broadcast(&p->changed);
    pthread_cond_broadcast(&p->park_changed);
    for (unsigned int i = 0; i < p->volume_count; i++)
        pthread_cond_signal(&p->volumes[i].queue_changed);
    pthread_cond_broadcast(&p->rx_resume);
    pthread_cond_broadcast(&p->engine_wake);
    remus_primary_unlock(p);
    remus_primary_answer(p, lost, -EPROTO);
    remus_primary_answer(p, held, -EPROTO);
    remus_wake(p->wake);
    remus_wake(p->rx_wake);
    remus_sendq_stop(&p->queue);
    pthread_t all[] = {p->sender, p->receiver, p->resumer,
                       p->engine, p->watch,    p->upkeep};
    for (int i = 0; i < p->threads; i++)
        pthread_join(all[i], NULL);
    for (unsigned int i = 0; i < p->volume_count; i++)
        if (p->volumes[i].runs)
            pthread_join(p->volumes[i].thread, NULL);
}

static void free_primary(remus_primary *p)
{
    for (unsigned int i = 0; i < p->volume_count; i++) {
        free(p->volumes[i].name);
        free(p->volumes[i].path);
        pthread_mutex_destroy(&p->volumes[i].lock);
        pthread_cond_destroy(&p->volumes[i].queue_changed);
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
    remus_resolver_free(&p->resolver);
    remus_tls_keys_free(p->keys);
    remus_wake_close(p->wake);
    remus_wake_close(p->rx_wake);
    remus_wake_close(p->ack_wait.fd);
    remus_events_close(&p->events);
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

/* Disks and map: synced, so that a next start can rely on both. */
static void close_disks(remus_primary *p)
{
    int files[REMUS_VOLUMES_MAX], synced = p->threads > 0;
    list_files(p, files);
    for (unsigned int i = 0; synced && i < p->volume_count; i++)
        synced = p->io->fdatasync(p->io, files[i]) == 0;
    if (p->threads)
        remus_dirty_forget_all(&p->dirty);
    /* What the disks lost no mark tells. */
    if (p->threads && !synced)
        remus_dirty_doubt(&p->dirty);
    remus_dirty_close(&p->dirty, synced, files);
    for (unsigned int i = 0; i < p->volume_count; i++)
        if (files[i] >= 0)
            p->io->close(p->io, files[i]);
}

void remus_primary_close(remus_primary *p)
{
    if (!p || remus_enter(p, "primary_close"))
        return;
    char *text = strdup(remus_last_error());
    if (p->threads) {
        say_goodbye(p);
        stop_threads(p);
        /* Numbers that were reserved and not used need no gap. */
        remus_primary_state_store(p, p->open_epoch);
    }
    close_disks(p);
    remus_conn_close(&p->conn);
    if (p->lock_file >= 0)
        p->io->close(p->io, p->lock_file);
    free_primary(p);
    remus_fail(0, "%s", text ? text : "");
    free(text);
}
