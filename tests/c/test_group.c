/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Groups: devices whose answers the test holds back, a real replica beside
 * them, wrong callers, cancel and stop while everybody waits.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "pair.h"

/* A device that answers when the test lets it. */
struct dev {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int open;       /* lock: preresume may end */
    int inside;     /* lock: calls in preresume */
    int cancelled;  /* lock */
    int deaf;       /* lock: does not hear cancel */
    int post, pre, commit; /* lock: what the phases return */
    uint64_t epoch; /* lock: the newest */
    uint64_t committed; /* lock */
    int calls;      /* lock: of preresume */
};

static int dev_post(void *opaque, const void *tag, size_t len, uint64_t *epoch)
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

static int dev_pre(void *opaque, uint64_t epoch, int64_t timeout_ms)
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

static int dev_commit(void *opaque, uint64_t epoch)
{
    struct dev *d = opaque;
    pthread_mutex_lock(&d->lock);
    int rc = d->commit;
    if (!rc)
        d->committed = epoch;
    pthread_mutex_unlock(&d->lock);
    return rc;
}

static void dev_cancel(void *opaque)
{
    struct dev *d = opaque;
    pthread_mutex_lock(&d->lock);
    d->cancelled = 1;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
}

static const struct remus_device_ops ops = {dev_post, dev_pre, dev_commit,
                                            dev_cancel};

static void dev_init(struct dev *d)
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

static void dev_set(struct dev *d, int *field, int value)
{
    pthread_mutex_lock(&d->lock);
    *field = value;
    if (field == &d->open)
        d->cancelled = 0;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
}

static int dev_get(struct dev *d, const int *field)
{
    pthread_mutex_lock(&d->lock);
    int value = *field;
    pthread_mutex_unlock(&d->lock);
    return value;
}

/* Until somebody is in preresume. */
static void dev_await(struct dev *d, int inside)
{
    pthread_mutex_lock(&d->lock);
    while (d->inside != inside)
        pthread_cond_wait(&d->changed, &d->lock);
    pthread_mutex_unlock(&d->lock);
}

#define DEVICES 8

static struct dev devs[DEVICES];

static remus_group *group_of(int count, int begins)
{
    remus_group *g;
    CHECK(remus_group_open("guest0", &g));
    for (int i = 0; i < count; i++) {
        char name[16];
        dev_init(&devs[i]);
        snprintf(name, sizeof name, "d%d", i);
        EXPECT(remus_group_add_device(g, name, &ops, &devs[i]) == i);
    }
    CHECK(remus_group_start(g, begins));
    return g;
}

/* What device i answered. */
static struct remus_device_result result(remus_group *g, int i)
{
    struct remus_device_result all[DEVICES + 1];
    EXPECT(remus_group_results(g, all, DEVICES + 1) > i);
    return all[i];
}

/* ---- order --------------------------------------------------------------- */

static void test_order(void)
{
    remus_group *g;
    CHECK(remus_group_open("guest0", &g));
    EXPECT(remus_group_postsuspend(g, NULL, 0) == -EBADFD);
    EXPECT(strstr(remus_last_error(), "postsuspend in state new"));
    remus_group_close(g);
    g = group_of(2, 0);
    EXPECT(remus_group_add_device(g, "late", &ops, &devs[0]) == -EBADFD);
    EXPECT(remus_group_start(g, 0) == -EBADFD);
    EXPECT(remus_group_preresume(g, 1000) == -EBADFD);
    EXPECT(remus_group_commit(g) == -EBADFD);
    EXPECT(remus_group_preresume_begin(g, 0) == -EBADFD);
    EXPECT(remus_group_preresume_finish(g) == -EBADFD);
    EXPECT(remus_group_cancel(g) == 1);
    CHECK(remus_group_postsuspend(g, "x", 1));
    EXPECT(remus_group_epochs(g)[0] == 1 && remus_group_epochs(g)[1] == 1);
    EXPECT(remus_group_postsuspend(g, NULL, 0) == -EBADFD);
    EXPECT(remus_group_commit(g) == -EBADFD);
    CHECK(remus_group_preresume(g, 1000));
    EXPECT(remus_group_preresume(g, 1000) == -EBADFD);
    /* The next may begin before the commit of this one. */
    CHECK(remus_group_postsuspend(g, NULL, 0));
    CHECK(remus_group_commit(g));
    EXPECT(devs[0].committed == 1 && devs[1].committed == 1);
    CHECK(remus_group_preresume(g, 1000));
    CHECK(remus_group_commit(g));
    EXPECT(devs[0].committed == 2);
    char tag[REMUS_TAG_MAX + 1] = {0};
    EXPECT(remus_group_postsuspend(g, tag, sizeof tag) == -EINVAL);
    remus_group_stop(g);
    remus_group_stop(g);
    EXPECT(remus_group_postsuspend(g, NULL, 0) == -EBADFD);
    EXPECT(strstr(remus_last_error(), "stopped"));
    remus_group_close(g);
    remus_group_close(NULL);
}

/* ---- errors -------------------------------------------------------------- */

static void test_errors(void)
{
    remus_group *g = group_of(4, 0);
    dev_set(&devs[1], &devs[1].post, -EPROTO);
    dev_set(&devs[3], &devs[3].post, -EIO);
    EXPECT(remus_group_postsuspend(g, NULL, 0) == -EPROTO);
    EXPECT(result(g, 0).error == 0 && result(g, 1).error == -EPROTO);
    EXPECT(result(g, 2).error == 0 && result(g, 3).error == -EIO);
    EXPECT(strstr(result(g, 3).text, "device d3: postsuspend: Input/output"));
    EXPECT(remus_group_epochs(g)[1] == 0 && remus_group_epochs(g)[2] == 1);
    EXPECT(remus_group_preresume(g, 1000) == -EBADFD);
    dev_set(&devs[1], &devs[1].post, 0);
    dev_set(&devs[3], &devs[3].post, 1);
    CHECK(remus_group_postsuspend(g, NULL, 0));
    EXPECT(result(g, 3).empty == 1 && result(g, 2).empty == 0);
    dev_set(&devs[2], &devs[2].pre, -EPROTO);
    EXPECT(remus_group_preresume(g, 1000) == -EPROTO);
    EXPECT(result(g, 0).acked && result(g, 0).ack_ns >= result(g, 0).sent_ns);
    EXPECT(!result(g, 2).acked && result(g, 2).failed_ns);
    /* d0 has acked what d2 has not: nothing can be committed now. */
    EXPECT(remus_group_commit(g) == -EBADFD);
    /* A retry asks only the one without an ack. */
    dev_set(&devs[2], &devs[2].pre, 0);
    CHECK(remus_group_preresume(g, 1000));
    EXPECT(dev_get(&devs[0], &devs[0].calls) == 1);
    EXPECT(dev_get(&devs[2], &devs[2].calls) == 2);
    dev_set(&devs[0], &devs[0].commit, -EIO);
    EXPECT(remus_group_commit(g) == -EIO);
    EXPECT(devs[3].committed == 1 && devs[1].committed == 1);
    EXPECT(devs[2].committed == 2);
    remus_group_close(g);
}

/* ---- waiting ------------------------------------------------------------- */

static void *preresume_main(void *arg)
{
    return (void *)(intptr_t)remus_group_preresume(arg, 20000);
}

static int join_result(pthread_t thread)
{
    void *rc;
    EXPECT(pthread_join(thread, &rc) == 0);
    return (int)(intptr_t)rc;
}

/* All are waited for at once, whatever their number. */
static void test_all_at_once(int count)
{
    remus_group *g = group_of(count, 0);
    for (int round = 0; round < 3; round++) {
        pthread_t thread;
        for (int i = 0; i < count; i++)
            dev_set(&devs[i], &devs[i].open, 0);
        CHECK(remus_group_postsuspend(g, NULL, 0));
        EXPECT(pthread_create(&thread, NULL, preresume_main, g) == 0);
        for (int i = 0; i < count; i++)
            dev_await(&devs[i], 1);
        /* Another thread has no business here now. */
        EXPECT(remus_group_preresume(g, 1000) == -EINPROGRESS);
        EXPECT(remus_group_postsuspend(g, NULL, 0) == -EINPROGRESS);
        EXPECT(remus_group_commit(g) == -EINPROGRESS);
        EXPECT(strstr(remus_last_error(), "commit while preresume"));
        for (int i = count; i-- > 0;)
            dev_set(&devs[i], &devs[i].open, 1);
        EXPECT(join_result(thread) == 0);
        CHECK(remus_group_commit(g));
    }
    remus_group_close(g);
}

static int readable(remus_group *g, int ms)
{
    struct pollfd pf = {.fd = remus_group_fd(g), .events = POLLIN};
    return poll(&pf, 1, ms);
}

static void test_begin_and_finish(void)
{
    remus_group *g = group_of(3, 1);
    for (int round = 0; round < 50; round++) {
        dev_set(&devs[1], &devs[1].open, 0);
        CHECK(remus_group_postsuspend(g, NULL, 0));
        CHECK(remus_group_preresume_begin(g, 20000));
        dev_await(&devs[1], 1);
        EXPECT(remus_group_preresume_finish(g) == -EAGAIN);
        EXPECT(remus_group_preresume_begin(g, 1) == -EINPROGRESS);
        EXPECT(readable(g, 0) == 0);
        dev_set(&devs[1], &devs[1].open, 1);
        EXPECT(readable(g, 20000) == 1);
        CHECK(remus_group_preresume_finish(g));
        EXPECT(readable(g, 0) == 0);
        CHECK(remus_group_commit(g));
    }
    remus_group_close(g);
    /* Nothing to wait for is over at once. */
    CHECK(remus_group_open("empty", &g));
    CHECK(remus_group_start(g, 1));
    CHECK(remus_group_postsuspend(g, NULL, 0));
    CHECK(remus_group_preresume_begin(g, -1));
    EXPECT(readable(g, 0) == 1);
    CHECK(remus_group_preresume_finish(g));
    CHECK(remus_group_commit(g));
    remus_group_close(g);
}

static void *open_later(void *arg)
{
    usleep(20000);
    dev_set(arg, &((struct dev *)arg)->open, 1);
    return NULL;
}

static void await_ack(remus_group *g, int i)
{
    while (!result(g, i).acked)
        usleep(100);
}

/* A device that stays in its call is waited for further. */
static void test_deaf_device(void)
{
    remus_group *g = group_of(2, 1);
    dev_set(&devs[0], &devs[0].deaf, 1);
    dev_set(&devs[0], &devs[0].open, 0);
    CHECK(remus_group_postsuspend(g, NULL, 0));
    CHECK(remus_group_preresume_begin(g, -1));
    dev_await(&devs[0], 1);
    await_ack(g, 1);
    EXPECT(remus_group_cancel(g) == 0);
    EXPECT(readable(g, 0) == 1);
    EXPECT(remus_group_preresume_finish(g) == -ECANCELED);
    EXPECT(result(g, 1).acked && result(g, 0).error == -ECANCELED);
    EXPECT(strstr(result(g, 0).text, "cancelled"));
    /* It is still in there; a second preresume waits for that same call. */
    EXPECT(remus_group_preresume(g, 50) == -ETIMEDOUT);
    EXPECT(strstr(result(g, 0).text, "no ack after 50 ms"));
    dev_set(&devs[0], &devs[0].open, 1);
    CHECK(remus_group_preresume(g, 20000));
    EXPECT(dev_get(&devs[0], &devs[0].calls) == 1);
    CHECK(remus_group_commit(g));
    /* A new barrier is refused while an old wait is in there, ... */
    dev_set(&devs[0], &devs[0].open, 0);
    CHECK(remus_group_postsuspend(g, NULL, 0));
    CHECK(remus_group_preresume_begin(g, -1));
    dev_await(&devs[0], 1);
    EXPECT(remus_group_cancel(g) == 0);
    EXPECT(remus_group_preresume_finish(g) == -ECANCELED);
    EXPECT(remus_group_postsuspend(g, NULL, 0) == -EBUSY);
    EXPECT(strstr(remus_last_error(), "still under way"));
    /* ... and stop waits for it, for its memory is somebody else's. */
    pthread_t thread;
    EXPECT(pthread_create(&thread, NULL, open_later, &devs[0]) == 0);
    remus_group_close(g);
    EXPECT(dev_get(&devs[0], &devs[0].inside) == 0);
    pthread_join(thread, NULL);
}

static void test_timeout(int count)
{
    remus_group *g = group_of(count, 0);
    dev_set(&devs[0], &devs[0].open, 0);
    CHECK(remus_group_postsuspend(g, NULL, 0));
    EXPECT(remus_group_preresume(g, 30) == -ETIMEDOUT);
    for (int i = 1; i < count; i++)
        EXPECT(result(g, i).acked);
    dev_set(&devs[0], &devs[0].open, 1);
    CHECK(remus_group_preresume(g, 20000));
    CHECK(remus_group_commit(g));
    remus_group_close(g);
}

/* Cancel a caller who is in the device himself, or waits for threads. */
static void test_cancel(int count)
{
    remus_group *g = group_of(count, 0);
    for (int round = 0; round < 20; round++) {
        pthread_t thread;
        for (int i = 0; i < count; i++)
            dev_set(&devs[i], &devs[i].open, 0);
        CHECK(remus_group_postsuspend(g, NULL, 0));
        EXPECT(pthread_create(&thread, NULL, preresume_main, g) == 0);
        for (int i = 0; i < count; i++)
            dev_await(&devs[i], 1);
        EXPECT(remus_group_cancel(g) == 0);
        EXPECT(join_result(thread) == -ECANCELED);
        for (int i = 0; i < count; i++)
            dev_set(&devs[i], &devs[i].open, 1);
        CHECK(remus_group_preresume(g, 20000));
        CHECK(remus_group_commit(g));
    }
    remus_group_close(g);
}

static void test_stop_under_a_caller(int count)
{
    remus_group *g = group_of(count, 0);
    pthread_t thread;
    for (int i = 0; i < count; i++)
        dev_set(&devs[i], &devs[i].open, 0);
    CHECK(remus_group_postsuspend(g, NULL, 0));
    EXPECT(pthread_create(&thread, NULL, preresume_main, g) == 0);
    for (int i = 0; i < count; i++)
        dev_await(&devs[i], 1);
    remus_group_stop(g);
    for (int i = 0; i < count; i++)
        EXPECT(dev_get(&devs[i], &devs[i].inside) == 0);
    EXPECT(join_result(thread) == -ECANCELED);
    remus_group_close(g);
}

/* ---- a crowd that calls everything at any time ------------------------- */

static atomic_int crowd_stop;
static atomic_ulong crowd_done;

static void *crowd_main(void *arg)
{
    remus_group *g = arg;
    unsigned int seed = (unsigned int)(uintptr_t)&seed;
    while (!atomic_load(&crowd_stop)) {
        struct remus_device_result r[DEVICES];
        int rc = 0;
        switch (rand_r(&seed) % 6) {
        case 0:
            rc = remus_group_postsuspend(g, NULL, 0);
            break;
        case 1:
            rc = remus_group_preresume(g, 1000);
            break;
        case 2:
            rc = remus_group_commit(g);
            if (!rc)
                atomic_fetch_add(&crowd_done, 1);
            break;
        case 3:
            rc = remus_group_preresume_begin(g, 1000);
            break;
        case 4:
            rc = remus_group_preresume_finish(g);
            break;
        default:
            remus_group_results(g, r, DEVICES);
            if (rand_r(&seed) % 64 == 0)
                remus_group_cancel(g);
            break;
        }
        EXPECT(!rc || rc == -EBADFD || rc == -EINPROGRESS || rc == -EAGAIN ||
               rc == -ECANCELED || rc == -EBUSY);
    }
    return NULL;
}

static void test_crowd(void)
{
    remus_group *g = group_of(4, 1);
    pthread_t crowd[4];
    for (int i = 0; i < 4; i++)
        EXPECT(pthread_create(&crowd[i], NULL, crowd_main, g) == 0);
    while (atomic_load(&crowd_done) < 200)
        usleep(1000);
    remus_group_stop(g);
    atomic_store(&crowd_stop, 1);
    for (int i = 0; i < 4; i++)
        pthread_join(crowd[i], NULL);
    remus_group_close(g);
}

/* ---- statistics -------------------------------------------------------- */

static void test_statistics(void)
{
    remus_group *g;
    CHECK(remus_group_open("guest0", &g));
    EXPECT(!remus_group_statistics(g, -1));
    for (int i = 0; i < 2; i++) {
        dev_init(&devs[i]);
        CHECK(remus_group_add_device(g, i ? "b" : "a", &ops, &devs[i]));
    }
    CHECK(remus_group_start(g, 0));
    CHECK(remus_group_postsuspend(g, NULL, 0));
    CHECK(remus_group_preresume(g, 1000));
    CHECK(remus_group_commit(g));
    /* Tried twice, counted once; its commit is the next one's. */
    dev_set(&devs[1], &devs[1].pre, -EIO);
    CHECK(remus_group_postsuspend(g, NULL, 0));
    EXPECT(remus_group_preresume(g, 1000) == -EIO);
    dev_set(&devs[1], &devs[1].pre, 0);
    CHECK(remus_group_preresume(g, 1000));
    /* Never safe. */
    dev_set(&devs[1], &devs[1].pre, -EPROTO);
    CHECK(remus_group_postsuspend(g, NULL, 0));
    EXPECT(remus_group_preresume(g, 1000) == -EPROTO);
    dev_set(&devs[1], &devs[1].post, -EPROTO);
    EXPECT(remus_group_postsuspend(g, NULL, 0) == -EPROTO);
    remus_group_stop(g);
    struct remus_epoch_sample s[8];
    uint64_t next, lost;
    remus_epochs *e = remus_group_statistics(g, -1);
    EXPECT(remus_epochs_read(e, 0, s, 8, &next, &lost) == 4);
    EXPECT(s[0].epoch == 1 && s[0].result == 0 && s[0].commit_ns);
    EXPECT(s[1].epoch == 2 && s[1].result == 0 && !s[1].commit_ns);
    EXPECT(s[2].epoch == 3 && s[2].result == -EPROTO);
    EXPECT(s[3].epoch == 4 && s[3].result == -EPROTO);
    EXPECT(s[0].start_ns < s[1].start_ns && s[0].barrier_ns && s[0].ack_ns);
    e = remus_group_statistics(g, 1);
    EXPECT(remus_epochs_read(e, 0, s, 8, &next, &lost) == 3);
    EXPECT(s[1].result == 0 && s[2].result == -EPROTO);
    EXPECT(!remus_group_statistics(g, 2));
    remus_group_close(g);
}

/* ---- with a real replica ----------------------------------------------- */

static void test_replica(int others, int begins)
{
    struct pair t;
    pair_open(&t, 1u << 20, 64u << 10, NULL);
    remus_group *g;
    CHECK(remus_group_open("guest0", &g));
    for (int i = 0; i < others; i++) {
        dev_init(&devs[i]);
        CHECK(remus_group_add_device(g, "other", &ops, &devs[i]));
    }
    EXPECT(remus_group_add_primary(g, "disks", t.p) == others);
    CHECK(remus_group_start(g, begins));
    uint64_t epoch = 0;
    for (int i = 0; i < 100; i++) {
        char data[512];
        memset(data, i, sizeof data);
        CHECK(remus_primary_pwrite(t.p, 0, data, sizeof data,
                                   (uint64_t)i * 512));
        CHECK(remus_group_postsuspend(g, "tag", 3));
        EXPECT(remus_group_epochs(g)[others] > epoch);
        epoch = remus_group_epochs(g)[others];
        if (begins) {
            CHECK(remus_group_preresume_begin(g, 20000));
            EXPECT(readable(g, 20000) == 1);
            CHECK(remus_group_preresume_finish(g));
        } else {
            CHECK(remus_group_preresume(g, 20000));
        }
        EXPECT(result(g, others).acked && !result(g, others).empty);
        CHECK(remus_group_commit(g));
    }
    remus_group_close(g);
    pair_prove_and_close(&t, epoch);
}

/* An error with its words, never a success. */
static void test_replica_lost(int begins)
{
    struct pair t;
    pair_open(&t, 64u << 10, 64u << 10, NULL);
    remus_group *g;
    CHECK(remus_group_open("guest0", &g));
    CHECK(remus_group_add_primary(g, "disks", t.p));
    CHECK(remus_group_start(g, begins));
    CHECK(remus_group_postsuspend(g, NULL, 0));
    CHECK(remus_group_preresume(g, 20000));
    remus_backup_close(t.b);
    int rc = remus_group_postsuspend(g, NULL, 0);
    if (!rc) {
        rc = begins ? remus_group_preresume_begin(g, 20000)
                    : remus_group_preresume(g, 20000);
        if (begins) {
            CHECK(rc);
            EXPECT(readable(g, 20000) == 1);
            rc = remus_group_preresume_finish(g);
        }
    }
    EXPECT(rc == -EPROTO);
    EXPECT(result(g, 0).error == -EPROTO && !result(g, 0).acked);
    EXPECT(strstr(result(g, 0).text, "backup"));
    EXPECT(remus_group_postsuspend(g, NULL, 0) == -EPROTO);
    remus_group_close(g);
    remus_primary_close(t.p);
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", t.dir);
    EXPECT(system(command) == 0);
}

int main(void)
{
    test_order();
    test_errors();
    for (int count = 1; count <= DEVICES; count *= 2) {
        test_all_at_once(count);
        test_timeout(count);
        test_cancel(count);
        test_stop_under_a_caller(count);
    }
    test_begin_and_finish();
    test_deaf_device();
    test_crowd();
    test_statistics();
    test_replica(0, 0);
    test_replica(0, 1);
    test_replica(3, 0);
    test_replica(3, 1);
    test_replica_lost(0);
    test_replica_lost(1);
    return 0;
}
