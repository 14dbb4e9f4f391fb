/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Devices for the tests of groups, whose answers the test holds back. */
#ifndef REMUS_TEST_GROUP_DEV_H
#define REMUS_TEST_GROUP_DEV_H

#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <time.h>

#include "pair.h"

/* A device that answers when the test lets it. */
struct dev {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int open;              /* lock: preresume may end */
    int inside;            /* lock: calls in preresume */
    int cancelled;         /* lock */
    int deaf;              /* lock: does not hear cancel */
    int linger;            /* lock: cancel does not return while it is set */
    int lingering;         /* lock: calls in cancel */
    int post, pre, commit; /* lock: what the phases return */
    uint64_t epoch;        /* lock: the newest */
    uint64_t committed;    /* lock */
    int calls;             /* lock: of preresume */
};

static inline int dev_post(void *opaque, const void *tag, size_t len,
                           uint64_t *epoch)
{
    struct dev *d = opaque;
    (void)tag;
    (void)len;
    pthread_mutex_lock(&d->lock);
    int rc = d->post;
    if (rc >= 0)
        *epoch = ++d->epoch;
    pthread_mutex_unlock(&d->lock);
    return rc;
}

static inline int dev_pre(void *opaque, uint64_t epoch, int64_t timeout_ms)
{
    struct dev *d = opaque;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&d->lock);
    EXPECT(epoch == d->epoch);
    d->inside++;
    d->calls++;
    pthread_cond_broadcast(&d->changed);
    int rc = 0;
    while (!d->open && !rc) {
        if (d->cancelled && !d->deaf)
            rc = -ECANCELED;
        else if (timeout_ms < 0)
            pthread_cond_wait(&d->changed, &d->lock);
        else if (pthread_cond_timedwait(&d->changed, &d->lock, &until))
            rc = -ETIMEDOUT;
    }
    if (!rc)
        rc = d->pre;
    d->inside--;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
    return rc;
}

static inline int dev_commit(void *opaque, uint64_t epoch)
{
    struct dev *d = opaque;
    pthread_mutex_lock(&d->lock);
    int rc = d->commit;
    if (!rc)
        d->committed = epoch;
    pthread_mutex_unlock(&d->lock);
    return rc;
}

static inline void dev_cancel(void *opaque)
{
    struct dev *d = opaque;
    pthread_mutex_lock(&d->lock);
    d->cancelled = 1;
    d->lingering++;
    pthread_cond_broadcast(&d->changed);
    while (d->linger)
        pthread_cond_wait(&d->changed, &d->lock);
    d->lingering--;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
}

static const struct remus_device_ops dev_ops = {
    sizeof dev_ops, dev_post, dev_pre, dev_commit, dev_cancel};

static inline void dev_init(struct dev *d)
{
    memset(d, 0, sizeof *d);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->changed, &attr);
    pthread_condattr_destroy(&attr);
    d->open = 1;
}

static inline void dev_set(struct dev *d, int *field, int value)
{
    pthread_mutex_lock(&d->lock);
    *field = value;
    if (field == &d->open)
        d->cancelled = 0;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
}

static inline int dev_get(struct dev *d, const int *field)
{
    pthread_mutex_lock(&d->lock);
    int value = *field;
    pthread_mutex_unlock(&d->lock);
    return value;
}

/* Until a field has a value. */
static inline void dev_await_field(struct dev *d, const int *field, int value)
{
    pthread_mutex_lock(&d->lock);
    while (*field != value)
        pthread_cond_wait(&d->changed, &d->lock);
    pthread_mutex_unlock(&d->lock);
}

/* Until somebody is in preresume. */
static inline void dev_await(struct dev *d, int inside)
{
    dev_await_field(d, &d->inside, inside);
}

#define DEVICES 8

static struct dev devs[DEVICES];

static inline remus_group *group_of(int count, int begins)
{
    remus_group *g;
    CHECK(remus_group_open("guest0", &g));
    for (int i = 0; i < count; i++) {
        char name[16];
        dev_init(&devs[i]);
        snprintf(name, sizeof name, "d%d", i);
        EXPECT(remus_group_add_device(g, name, &dev_ops, &devs[i]) == i);
    }
    CHECK(remus_group_start(g, begins));
    return g;
}

/* What device i answered. */
static inline struct remus_device_result result(remus_group *g, int i)
{
    struct remus_device_result all[DEVICES + 1] = {
        REMUS_INIT(remus_device_result)};
    EXPECT(remus_group_results(g, all, DEVICES + 1) > i);
    return all[i];
}

static inline void *preresume_main(void *arg)
{
    return (void *)(intptr_t)remus_group_preresume(arg, 20000);
}

static inline int join_result(pthread_t thread)
{
    void *rc;
    EXPECT(pthread_join(thread, &rc) == 0);
    return (int)(intptr_t)rc;
}

static inline int readable(remus_group *g, int ms)
{
    struct pollfd pf = {.fd = remus_group_fd(g), .events = POLLIN};
    return poll(&pf, 1, ms);
}

static inline void await_ack(remus_group *g, int i)
{
    while (!result(g, i).acked)
        usleep(100);
}

#endif
