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
#include <unistd.h>

#include "group/drbd.h"
#include "base/error.h"
#include "base/sized.h"
#include "base/entry.h"
#include "base/wake.h"
#include "group/internal.h"

#define STATE(s) (1u << REMUS_GROUP_##s)

/* ---- open, add, start ---------------------------------------------------- */

int remus_group_open(const char *name, remus_group **out)
{
    int no = remus_given(out, "group_open", "out");
    if (no)
        return no;
    *out = NULL;
    no = remus_given(name, "group_open", "name");
    if (no)
        return no;
    if (strlen(name) > REMUS_NAME_MAX)
        return remus_fail(-EINVAL,
                          "group: a name of at most %d bytes is "
                          "needed",
                          REMUS_NAME_MAX);
    remus_group *g = calloc(1, sizeof *g);
    struct remus_group_device *devices =
        calloc(REMUS_GROUP_MAX, sizeof *devices);
    int fd = remus_wake_open();
    if (!g || !devices || fd < 0) {
        int err = fd < 0 ? fd : -ENOMEM;
        remus_wake_close(fd);
        free(g);
        free(devices);
        return remus_fail(err, "group %s: %s", name, remus_errno_text(err));
    }
    snprintf(g->name, sizeof g->name, "%s", name);
    remus_entry_init(&g->entry);
    g->devices = devices;
    g->fd = fd;
    g->refs = 1;
    pthread_mutex_init(&g->lock, NULL);
    remus_cond_init(&g->work);
    remus_cond_init(&g->wake);
    remus_cond_init(&g->done);
    *out = g;
    return 0;
}

/* May one more be added?  0 or -errno (lock held). */
static int may_add(const remus_group *g, const char *name)
{
    if (g->state != REMUS_GROUP_NEW)
        return remus_fail(-EBADFD, "group %s: started: no device can be added",
                          g->name);
    if (g->count == REMUS_GROUP_MAX)
        return remus_fail(-ENOSPC, "group %s: more than %d devices", g->name,
                          REMUS_GROUP_MAX);
    if (!*name)
        return remus_fail(-EINVAL, "group %s: a device without a name",
                          g->name);
    return 0;
}

/* One device more, as `as` says: its index, or -errno. */
static int add(remus_group *g, const char *name,
               const struct remus_group_device *as)
{
    pthread_mutex_lock(&g->lock);
    int rc = may_add(g, name);
    if (!rc) {
        struct remus_group_device *d = &g->devices[g->count];
        *d = *as;
        d->group = g;
        snprintf(d->r.name, sizeof d->r.name, "%s", name);
        if (d->drbd)
            remus_drbd_hold(d->drbd);
        rc = (int)g->count++;
    }
    pthread_mutex_unlock(&g->lock);
    return rc;
}

/* What every way of adding asks first. */
static int enter_to_add(const remus_group *g, const char *call,
                        const char *name)
{
    int no = remus_enter(g, call);
    return no ? no : remus_given(name, call, "name");
}

int remus_group_add_drbd(remus_group *g, const char *name, remus_drbd *dev)
{
    int no = enter_to_add(g, "group_add_drbd", name);
    if (!no)
        no = remus_enter(dev, "group_add_drbd");
    return no ? no
              : add(g, name,
                    &(struct remus_group_device){.kind = REMUS_KIND_DRBD,
                                                 .drbd = dev});
}

int remus_group_add_primary(remus_group *g, const char *name, remus_primary *p)
{
    int no = enter_to_add(g, "group_add_primary", name);
    if (!no)
        no = remus_enter(p, "group_add_primary");
    return no ? no
              : add(g, name,
                    &(struct remus_group_device){.kind = REMUS_KIND_PRIMARY,
                                                 .primary = p});
}

int remus_group_add_device(remus_group *g, const char *name,
                           const struct remus_device_ops *ops, void *opaque)
{
    int no = enter_to_add(g, "group_add_device", name);
    struct remus_device_ops ours;
    if (!no)
        no = remus_sized_take(&ours, sizeof ours, ops, "group_add_device",
                              "ops");
    return no ? no
              : add(g, name,
                    &(struct remus_group_device){.kind = REMUS_KIND_OWN,
                                                 .ops = ours,
                                                 .opaque = opaque});
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
    int no = remus_enter(g, "group_start");
    if (no)
        return no;
    pthread_mutex_lock(&g->lock);
    unsigned int calls = 0, all = 0, wakers = 0;
    for (unsigned int i = 0; i < g->count; i++) {
        int waits = remus_group_waits(&g->devices[i]);
        all += waits != 0;
        calls += waits && g->devices[i].kind != REMUS_KIND_PRIMARY;
        wakers |= remus_group_has_waker(&g->devices[i]) != 0;
    }
    /* The caller takes one itself: a primary if there is one. */
    if (!begins && calls && calls == all)
        calls--;
    int err = 0;
    if (g->state != REMUS_GROUP_NEW)
        err = remus_fail(-EBADFD, "group %s: start in state %s", g->name,
                         remus_group_state_name(g));
    else
        err = remus_group_make_stats(g);
    if (!err)
        err = make_threads(g, calls, remus_group_thread_main);
    if (!err)
        err = make_threads(g, wakers, remus_group_waker_main);
    g->begins = begins;
    if (!err)
        g->state = REMUS_GROUP_READY;
    pthread_mutex_unlock(&g->lock);
    return err;
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

static int send_drbd(struct remus_group_device *d, const void *tag, size_t len,
                     uint64_t *epoch)
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
        return remus_group_own(d, REMUS_PHASE_POSTSUSPEND,
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
            err = remus_fail(
                -EBADFD,
                "group %s: device %s: postsuspend: its previous barrier can "
                "still be waited for: preresume comes first",
                g->name, d->r.name);
    }
    return err;
}

int remus_group_postsuspend(remus_group *g, const void *tag, size_t tag_len)
{
    int no = remus_enter(g, "group_postsuspend");
    if (!no && tag_len)
        no = remus_given(tag, "group_postsuspend", "tag");
    if (no)
        return no;
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
    uint64_t now = g->start_ns = remus_clock_now();
    for (unsigned int i = 0; i < g->count; i++) {
        struct remus_group_device *d = &g->devices[i];
        d->start_ns = now;
        d->failed = 0;
        pthread_mutex_unlock(&g->lock);
        int answer = send_barrier(d, tag, tag_len, &g->epochs[i]);
        now = remus_clock_now();
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

static int send_commit(struct remus_group_device *d, uint64_t epoch, int newer)
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
                            g->name, d->r.name, (unsigned long long)d->acked);
    }
    if (!rc && !any && g->count)
        rc = remus_fail(-EBADFD,
                        "group %s: commit before any preresume succeeded",
                        g->name);
    return rc;
}

int remus_group_commit(remus_group *g)
{
    int no = remus_enter(g, "group_commit");
    if (no)
        return no;
    pthread_mutex_lock(&g->lock);
    int rc = may_commit(g);
    if (rc) {
        pthread_mutex_unlock(&g->lock);
        return rc;
    }
    g->running = REMUS_PHASE_COMMIT;
    uint64_t start = remus_clock_now(), before = start;
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
        uint64_t now = remus_clock_now();
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
    int no = remus_enter(g, "group_results");
    if (!no && cap)
        no = remus_sized_check(out, sizeof *out, "group_results", "out");
    if (no)
        return no;
    pthread_mutex_lock(&g->lock);
    for (unsigned int i = 0; i < g->count && i < cap; i++)
        remus_sized_put(out, i, &g->devices[i].r, sizeof *out);
    pthread_mutex_unlock(&g->lock);
    return (int)g->count;
}

const uint64_t *remus_group_epochs(remus_group *g)
{
    if (remus_enter(g, "group_epochs"))
        return NULL;
    return g->epochs;
}

int remus_group_fd(remus_group *g)
{
    int no = remus_enter(g, "group_fd");
    if (no)
        return no;
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
    if (remus_enter(g, "group_stop"))
        return;
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
    pthread_cond_signal(&g->wake);
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
    if (!g || remus_enter(g, "group_close"))
        return;
    remus_group_stop(g);
    remus_group_drop(g);
}
