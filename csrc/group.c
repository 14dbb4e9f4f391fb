/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Groups: the devices of one guest through the phases of a checkpoint.
 *
 * States and what a phase makes of them:
 *   NEW       start -> READY
 *   READY     postsuspend -> CLOSED or FAILED
 *   CLOSED    preresume -> READY or UNKNOWN
 *   FAILED    postsuspend -> CLOSED or FAILED
 *   UNKNOWN   preresume -> READY or UNKNOWN; postsuspend as in READY
 *   STOPPED   nothing any more
 * commit runs in every state from READY to UNKNOWN once an epoch was safe on
 * all devices, and changes none.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "drbd.h"
#include "error.h"
#include "group_int.h"

#define STATE(s) (1u << REMUS_GROUP_##s)

static const char *const state_names[] = {
    "new", "ready", "closed", "failed", "unknown", "stopped"};
static const char *const phase_names[] = {"no phase", "postsuspend",
                                          "preresume", "commit"};

uint64_t remus_group_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- open, add, start ---------------------------------------------------- */

int remus_group_open(const char *name, remus_group **out)
{
    *out = NULL;
    if (!name || strlen(name) > REMUS_NAME_MAX)
        return remus_fail(-EINVAL, "group: a name of at most %d bytes is "
                                   "needed",
                          REMUS_NAME_MAX);
    remus_group *g = calloc(1, sizeof *g);
    struct remus_group_device *devices =
        calloc(REMUS_GROUP_MAX, sizeof *devices);
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!g || !devices || fd < 0) {
        int err = fd < 0 ? -errno : -ENOMEM;
        if (fd >= 0)
            close(fd);
        free(g);
        free(devices);
        return remus_fail(err, "group %s: %s", name, remus_errno_text(err));
    }
    snprintf(g->name, sizeof g->name, "%s", name);
    g->devices = devices;
    g->fd = fd;
    g->refs = 1;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->work, &attr);
    pthread_cond_init(&g->nudge, &attr);
    pthread_cond_init(&g->done, &attr);
    pthread_condattr_destroy(&attr);
    *out = g;
    return 0;
}

/* Where the next device goes, or NULL (lock held). */
static struct remus_group_device *slot(remus_group *g, const char *name,
                                       int *err)
{
    if (g->state != REMUS_GROUP_NEW)
        *err = remus_fail(-EBADFD, "group %s: started: no device can be added",
                          g->name);
    else if (g->count == REMUS_GROUP_MAX)
        *err = remus_fail(-ENOSPC, "group %s: more than %d devices", g->name,
                          REMUS_GROUP_MAX);
    else if (!name || !*name)
        *err = remus_fail(-EINVAL, "group %s: a device without a name",
                          g->name);
    else
        *err = 0;
    if (*err)
        return NULL;
    struct remus_group_device *d = &g->devices[g->count];
    d->group = g;
    snprintf(d->r.name, sizeof d->r.name, "%s", name);
    return d;
}

int remus_group_add_drbd(remus_group *g, const char *name, remus_drbd *dev)
{
    int err;
    pthread_mutex_lock(&g->lock);
    struct remus_group_device *d = slot(g, name, &err);
    if (d) {
        d->kind = REMUS_KIND_DRBD;
        d->drbd = dev;
        remus_drbd_hold(dev);
        err = (int)g->count++;
    }
    pthread_mutex_unlock(&g->lock);
    return err;
}

int remus_group_add_primary(remus_group *g, const char *name,
                            remus_primary *p)
{
    int err;
    pthread_mutex_lock(&g->lock);
    struct remus_group_device *d = slot(g, name, &err);
    if (d) {
        d->kind = REMUS_KIND_PRIMARY;
        d->primary = p;
        err = (int)g->count++;
    }
    pthread_mutex_unlock(&g->lock);
    return err;
}

int remus_group_add_device(remus_group *g, const char *name,
                           const struct remus_device_ops *ops, void *opaque)
{
    int err;
    pthread_mutex_lock(&g->lock);
    struct remus_group_device *d = slot(g, name, &err);
    if (d) {
        d->kind = REMUS_KIND_OWN;
        d->ops = *ops;
        d->opaque = opaque;
        err = (int)g->count++;
    }
    pthread_mutex_unlock(&g->lock);
    return err;
}

/* `wanted` threads more (lock held). */
static int make_threads(remus_group *g, unsigned int wanted,
                        void *(*work)(void *))
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = 0;
    for (unsigned int i = 0; !err && i < wanted; i++) {
        struct remus_group_thread *t = &g->thread[g->threads];
        t->group = g;
        err = pthread_create(&t->id, NULL, work, t);
        if (!err) {
            g->threads++;
            remus_group_hold(g);
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return err ? remus_fail(-err, "group %s: start a thread: %s", g->name,
                            remus_errno_text(err))
               : 0;
}

int remus_group_start(remus_group *g, int begins)
{
    pthread_mutex_lock(&g->lock);
    unsigned int calls = 0, all = 0, nudged = 0;
    for (unsigned int i = 0; i < g->count; i++) {
        int waits = remus_group_waits(&g->devices[i]);
        all += waits != 0;
        calls += waits && g->devices[i].kind != REMUS_KIND_PRIMARY;
        nudged |= remus_group_nudged(&g->devices[i]) != 0;
    }
    /* The caller takes one itself: a primary if there is one. */
    if (!begins && calls && calls == all)
        calls--;
    int err = 0;
    if (g->state != REMUS_GROUP_NEW)
        err = remus_fail(-EBADFD, "group %s: start in state %s", g->name,
                         state_names[g->state]);
    else
        err = remus_group_make_stats(g);
    if (!err)
        err = make_threads(g, calls, remus_group_thread_main);
    if (!err)
        err = make_threads(g, nudged, remus_group_nudger_main);
    g->begins = begins;
    if (!err)
        g->state = REMUS_GROUP_READY;
    pthread_mutex_unlock(&g->lock);
    return err;
}

/* ---- what the phases share ----------------------------------------------- */

void remus_group_failed(struct remus_group_device *d, int phase, int error)
{
    d->r.phase = phase;
    d->r.error = error;
    if (phase != REMUS_PHASE_COMMIT && !d->failed)
        d->failed = error;
    d->r.failed_ns = remus_group_now();
    d->r.failed_epoch = phase == REMUS_PHASE_POSTSUSPEND ? 0
                        : phase == REMUS_PHASE_COMMIT    ? d->complete
                                                         : d->r.epoch;
    snprintf(d->r.text, sizeof d->r.text, "%s", remus_last_error());
}

int remus_group_own(const struct remus_group_device *d, int phase, int rc)
{
    return rc >= 0 ? rc
                   : remus_fail(rc, "device %s: %s: %s", d->r.name,
                                phase_names[phase], remus_errno_text(rc));
}

int remus_group_none(int phase)
{
    return remus_fail(-EBADFD, "%s without a group", phase_names[phase]);
}

int remus_group_may(remus_group *g, int phase, unsigned int states)
{
    if (g->state == REMUS_GROUP_STOPPED || g->quit)
        return remus_fail(-EBADFD, "group %s: %s: the group was stopped",
                          g->name, phase_names[phase]);
    if (g->running != REMUS_PHASE_NONE)
        return remus_fail(-EINPROGRESS,
                          "group %s: %s while %s is under way in another "
                          "call",
                          g->name, phase_names[phase],
                          phase_names[g->running]);
    if (!(states & 1u << g->state))
        return remus_fail(-EBADFD, "group %s: %s in state %s", g->name,
                          phase_names[phase], state_names[g->state]);
    return 0;
}

int remus_group_first_error(const remus_group *g, int phase)
{
    const struct remus_group_device *first = NULL;
    for (unsigned int i = 0; i < g->count; i++) {
        const struct remus_group_device *d = &g->devices[i];
        if (d->r.phase == phase && d->r.error &&
            (!first || d->r.failed_ns < first->r.failed_ns))
            first = d;
    }
    return first ? remus_fail(first->r.error, "group %s: %s", g->name,
                              first->r.text)
                 : 0;
}

void remus_group_hold(remus_group *g)
{
    g->refs++;
}

void remus_group_drop(remus_group *g)
{
    pthread_mutex_lock(&g->lock);
    int left = --g->refs;
    pthread_mutex_unlock(&g->lock);
    if (left)
        return;
    for (unsigned int i = 0; i < g->count; i++)
        remus_drbd_close(g->devices[i].drbd);
    remus_group_free_stats(g);
    close(g->fd);
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->work);
    pthread_cond_destroy(&g->nudge);
    pthread_cond_destroy(&g->done);
    free(g->devices);
    free(g);
}

/* ---- postsuspend --------------------------------------------------------- */

/* The number in a tag, for ioctl 20; 0 none; UINT64_MAX not one. */
static uint64_t number_of(const char *tag, size_t len)
{
    uint64_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (tag[i] < '0' || tag[i] > '9' || n > INT64_MAX / 10)
            return UINT64_MAX;
        n = n * 10 + (uint64_t)(tag[i] - '0');
    }
    return (len && !n) || n > INT64_MAX ? UINT64_MAX : n;
}

static int send_drbd(struct remus_group_device *d, const void *tag,
                     size_t len, uint64_t *epoch)
{
    uint64_t number = number_of(tag, len);
    if (number == UINT64_MAX)
        return remus_fail(-EINVAL,
                          "device %s: through the ioctl a tag is a number "
                          "from 1 to 2^63-1",
                          d->r.name);
    int rc = remus_drbd_postsuspend(d->drbd, number);
    if (rc >= 0)
        *epoch = remus_drbd_barriers(d->drbd, NULL);
    return rc;
}

static int send_barrier(struct remus_group_device *d, const void *tag,
                        size_t len, uint64_t *epoch)
{
    *epoch = 0;
    switch (d->kind) {
    case REMUS_KIND_DRBD:
        return send_drbd(d, tag, len, epoch);
    case REMUS_KIND_PRIMARY:
        return remus_primary_postsuspend(d->primary, tag, len, epoch);
    default:
        if (!d->ops.postsuspend)
            return 0;
        return remus_group_own(
            d, REMUS_PHASE_POSTSUSPEND,
            d->ops.postsuspend(d->opaque, tag, len, epoch));
    }
}

/* A device's answer to the barrier (lock held). */
static void sent(struct remus_group_device *d, int rc, uint64_t epoch,
                 uint64_t now)
{
    if (rc < 0) {
        remus_group_failed(d, REMUS_PHASE_POSTSUSPEND, rc);
        return;
    }
    d->r.phase = REMUS_PHASE_POSTSUSPEND;
    d->r.error = 0;
    d->r.empty = rc;
    d->r.epoch = epoch;
    d->r.sent_ns = now;
    d->r.ack_ns = 0;
    d->r.acked = 0;
    d->pending = remus_group_waits(d);
    if (!d->pending)
        d->acked = epoch;
}

/*
 * Refuse a barrier as long as the one before may be waited for: by then it
 * is preresume's turn, and nothing must have been sent to any device.  In
 * FAILED it can't be waited for any more (lock held).
 */
static int may_send(remus_group *g)
{
    int err = remus_group_may(g, REMUS_PHASE_POSTSUSPEND,
                              STATE(READY) | STATE(FAILED) | STATE(UNKNOWN));
    for (unsigned int i = 0; !err && i < g->count; i++) {
        struct remus_group_device *d = &g->devices[i];
        if (d->kind == REMUS_KIND_DRBD && g->state == REMUS_GROUP_FAILED)
            remus_drbd_abandon(d->drbd);
        if (d->wait != REMUS_WAIT_IDLE ||
            (d->kind == REMUS_KIND_DRBD && remus_drbd_owes(d->drbd)))
            err = remus_fail(-EBADFD,
                             "group %s: device %s: postsuspend: its barrier "
                             "before can still be waited for: preresume "
                             "comes first",
                             g->name, d->r.name);
    }
    return err;
}

int remus_group_postsuspend(remus_group *g, const void *tag, size_t tag_len)
{
    if (!g)
        return remus_group_none(REMUS_PHASE_POSTSUSPEND);
    if (tag_len > REMUS_TAG_MAX)
        return remus_fail(-EINVAL, "group %s: a tag of %zu bytes; at most %d",
                          g->name, tag_len, REMUS_TAG_MAX);
    pthread_mutex_lock(&g->lock);
    int rc = may_send(g);
    if (rc) {
        pthread_mutex_unlock(&g->lock);
        return rc;
    }
    g->running = REMUS_PHASE_POSTSUSPEND;
    remus_group_add_sample(g);
    g->number++;
    g->open_sample = 1;
    uint64_t now = g->start_ns = remus_group_now();
    for (unsigned int i = 0; i < g->count; i++) {
        struct remus_group_device *d = &g->devices[i];
        d->start_ns = now;
        d->failed = 0;
        pthread_mutex_unlock(&g->lock);
        int answer = send_barrier(d, tag, tag_len, &g->epochs[i]);
        now = remus_group_now();
        if (answer < 0)
            g->epochs[i] = 0;
        pthread_mutex_lock(&g->lock);
        sent(d, answer, g->epochs[i], now);
    }
    g->barrier_ns = now - g->start_ns;
    rc = remus_group_first_error(g, REMUS_PHASE_POSTSUSPEND);
    g->state = rc ? REMUS_GROUP_FAILED : REMUS_GROUP_CLOSED;
    g->running = REMUS_PHASE_NONE;
    pthread_cond_broadcast(&g->done);
    pthread_mutex_unlock(&g->lock);
    return rc;
}

/* ---- commit -------------------------------------------------------------- */

/* Has it a commit at all? */
static int commits(const struct remus_group_device *d)
{
    switch (d->kind) {
    case REMUS_KIND_DRBD:
        return remus_drbd_is_node(d->drbd);
    case REMUS_KIND_PRIMARY:
        return 1;
    default:
        return d->ops.commit != NULL;
    }
}

static int send_commit(struct remus_group_device *d, uint64_t epoch,
                       int newer)
{
    switch (d->kind) {
    case REMUS_KIND_DRBD:
        /* Ioctl 20 for the next epoch has committed this one. */
        return newer ? 0 : remus_drbd_commit(d->drbd);
    case REMUS_KIND_PRIMARY:
        return remus_primary_commit(d->primary, epoch);
    default:
        return remus_group_own(d, REMUS_PHASE_COMMIT,
                               d->ops.commit(d->opaque, epoch));
    }
}

/* lock held */
static int may_commit(remus_group *g)
{
    int rc = remus_group_may(g, REMUS_PHASE_COMMIT,
                             STATE(READY) | STATE(CLOSED) | STATE(FAILED) |
                                 STATE(UNKNOWN));
    int any = 0;
    for (unsigned int i = 0; !rc && i < g->count; i++) {
        const struct remus_group_device *d = &g->devices[i];
        any |= d->complete != 0;
        if (d->kind != REMUS_KIND_PRIMARY && commits(d) &&
            d->acked != d->complete)
            rc = remus_fail(-EBADFD,
                            "group %s: commit: device %s has acked epoch "
                            "%llu, which is not safe on every device, and "
                            "it has no commit of an older one: retry "
                            "preresume, or complete another checkpoint",
                            g->name, d->r.name,
                            (unsigned long long)d->acked);
    }
    if (!rc && !any && g->count)
        rc = remus_fail(-EBADFD,
                        "group %s: commit before any preresume succeeded",
                        g->name);
    return rc;
}

int remus_group_commit(remus_group *g)
{
    if (!g)
        return remus_group_none(REMUS_PHASE_COMMIT);
    pthread_mutex_lock(&g->lock);
    int rc = may_commit(g);
    if (rc) {
        pthread_mutex_unlock(&g->lock);
        return rc;
    }
    g->running = REMUS_PHASE_COMMIT;
    uint64_t start = remus_group_now(), before = start;
    for (unsigned int i = 0; i < g->count; i++) {
        struct remus_group_device *d = &g->devices[i];
        if (!commits(d) || !d->complete)
            continue;
        uint64_t epoch = d->complete;
        int newer = d->r.epoch > epoch && d->pending;
        pthread_mutex_unlock(&g->lock);
        int answer = send_commit(d, epoch, newer);
        pthread_mutex_lock(&g->lock);
        d->r.phase = REMUS_PHASE_COMMIT;
        d->r.error = 0;
        uint64_t now = remus_group_now();
        if (answer < 0)
            remus_group_failed(d, REMUS_PHASE_COMMIT, answer);
        else if (d->stats)
            remus_epochs_committed(d->stats, epoch, now - before);
        before = now;
    }
    rc = remus_group_first_error(g, REMUS_PHASE_COMMIT);
    if (!rc)
        remus_epochs_committed(g->stats, g->complete, before - start);
    g->running = REMUS_PHASE_NONE;
    pthread_cond_broadcast(&g->done);
    pthread_mutex_unlock(&g->lock);
    return rc;
}

/* ---- results, stop, close ------------------------------------------------ */

int remus_group_results(remus_group *g, struct remus_device_result *out,
                        unsigned int cap)
{
    pthread_mutex_lock(&g->lock);
    for (unsigned int i = 0; i < g->count && i < cap; i++)
        out[i] = g->devices[i].r;
    pthread_mutex_unlock(&g->lock);
    return (int)g->count;
}

const uint64_t *remus_group_epochs(remus_group *g)
{
    return g->epochs;
}

int remus_group_fd(remus_group *g)
{
    return g->fd;
}

/* Is a device in use that must not be used after stop?  (lock held) */
static int in_use(const remus_group *g)
{
    if (g->running == REMUS_PHASE_POSTSUSPEND ||
        g->running == REMUS_PHASE_COMMIT || g->concluding || g->cancelling)
        return 1;
    for (unsigned int i = 0; i < g->count; i++) {
        const struct remus_group_device *d = &g->devices[i];
        if (d->kind != REMUS_KIND_DRBD &&
            (d->wait == REMUS_WAIT_INSIDE || d->wait == REMUS_WAIT_PARKED))
            return 1;
    }
    return 0;
}

/* Close the DRBD devices' files now, but for those with somebody inside. */
static void let_go(remus_group *g)
{
    pthread_mutex_lock(&g->lock);
    for (unsigned int i = 0; i < g->count; i++) {
        struct remus_group_device *d = &g->devices[i];
        if (d->wait == REMUS_WAIT_IDLE) {
            remus_drbd_close(d->drbd);
            d->drbd = NULL;
        }
    }
    pthread_mutex_unlock(&g->lock);
}

void remus_group_stop(remus_group *g)
{
    pthread_mutex_lock(&g->lock);
    remus_group_hold(g);
    int first = !g->quit;
    g->quit = 1;
    pthread_cond_broadcast(&g->work);
    pthread_mutex_unlock(&g->lock);
    if (first)
        remus_group_cancel(g);
    pthread_mutex_lock(&g->lock);
    while (in_use(g))
        remus_group_watch(g);
    g->quit = 2;
    pthread_cond_signal(&g->nudge);
    int busy[REMUS_GROUP_MAX + 1];
    for (unsigned int i = 0; i < g->threads; i++)
        busy[i] = g->thread[i].busy;
    unsigned int threads = first ? g->threads : 0;
    g->state = REMUS_GROUP_STOPPED;
    if (first)
        remus_group_add_sample(g);
    pthread_mutex_unlock(&g->lock);
    for (unsigned int i = 0; i < threads; i++) {
        /* One that is still inside the kernel's driver has its own hold of
         * the group and of the device. */
        if (busy[i])
            pthread_detach(g->thread[i].id);
        else
            pthread_join(g->thread[i].id, NULL);
    }
    if (first)
        let_go(g);
    remus_group_drop(g);
}

void remus_group_close(remus_group *g)
{
    if (!g)
        return;
    remus_group_stop(g);
    remus_group_drop(g);
}
