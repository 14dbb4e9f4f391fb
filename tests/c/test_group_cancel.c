/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Groups: waits that are ended from outside, by cancel or stop, while devices
 * answer, don't hear, or are about to answer; and a crowd of wrong callers.
 */
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>

#include "group_dev.h"

static void *open_later(void *arg)
{
    usleep(20000);
    dev_set(arg, &((struct dev *)arg)->open, 1);
    return NULL;
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
    EXPECT(remus_group_postsuspend(g, NULL, 0) == -EBADFD);
    EXPECT(strstr(remus_last_error(), "preresume comes first"));
    EXPECT(devs[1].epoch == 2);
    /* ... which changes nothing: it can still be waited for, ... */
    dev_set(&devs[0], &devs[0].open, 1);
    CHECK(remus_group_preresume(g, 20000));
    CHECK(remus_group_commit(g));
    dev_set(&devs[0], &devs[0].open, 0);
    CHECK(remus_group_postsuspend(g, NULL, 0));
    CHECK(remus_group_preresume_begin(g, -1));
    dev_await(&devs[0], 1);
    EXPECT(remus_group_cancel(g) == 0);
    EXPECT(remus_group_preresume_finish(g) == -ECANCELED);
    /* ... and stop waits for it, for its memory is somebody else's. */
    pthread_t thread;
    EXPECT(pthread_create(&thread, NULL, open_later, &devs[0]) == 0);
    remus_group_close(g);
    EXPECT(dev_get(&devs[0], &devs[0].inside) == 0);
    pthread_join(thread, NULL);
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

/* ---- cancel at the moment of an answer ----------------------------------- */

static void *cancel_main(void *arg)
{
    return (void *)(intptr_t)remus_group_cancel(arg);
}

static atomic_int stopped;

static void *stop_main(void *arg)
{
    remus_group_stop(arg);
    atomic_store(&stopped, 1);
    return NULL;
}

/*
 * Somebody who cancels is still with a device of his wait: that wait is not
 * over, so he can't meet the next one; and stop waits for him.
 */
static void test_cancel_is_for_one_wait(int begun)
{
    remus_group *g = group_of(3, 1);
    pthread_t waiter, canceller;
    for (int i = 0; i < 3; i++)
        dev_set(&devs[i], &devs[i].open, 0);
    devs[0].linger = 1;
    CHECK(remus_group_postsuspend(g, NULL, 0));
    if (begun)
        CHECK(remus_group_preresume_begin(g, 20000));
    else
        EXPECT(pthread_create(&waiter, NULL, preresume_main, g) == 0);
    for (int i = 0; i < 3; i++)
        dev_await(&devs[i], 1);
    EXPECT(pthread_create(&canceller, NULL, cancel_main, g) == 0);
    dev_await_field(&devs[0], &devs[0].lingering, 1);
    for (int i = 0; i < 3; i++)
        dev_set(&devs[i], &devs[i].open, 1);
    for (int i = 0; i < 3; i++)
        dev_await(&devs[i], 0);
    if (begun) {
        EXPECT(readable(g, 20) == 0);
        EXPECT(remus_group_preresume_finish(g) == -EAGAIN);
    }
    usleep(20000); /* longer than an early end would take */
    EXPECT(remus_group_postsuspend(g, NULL, 0) == -EINPROGRESS);
    dev_set(&devs[0], &devs[0].linger, 0);
    if (begun) {
        EXPECT(readable(g, 20000) == 1);
        EXPECT(remus_group_preresume_finish(g) != -EAGAIN);
    } else {
        join_result(waiter);
    }
    EXPECT(join_result(canceller) == 0);
    EXPECT(remus_group_cancel(g) == 1);
    remus_group_close(g);
}

static void test_stop_waits_for_a_canceller(void)
{
    remus_group *g = group_of(1, 0);
    pthread_t waiter, canceller, stopper;
    dev_set(&devs[0], &devs[0].open, 0);
    devs[0].linger = 1;
    atomic_store(&stopped, 0);
    CHECK(remus_group_postsuspend(g, NULL, 0));
    EXPECT(pthread_create(&waiter, NULL, preresume_main, g) == 0);
    dev_await(&devs[0], 1);
    EXPECT(pthread_create(&canceller, NULL, cancel_main, g) == 0);
    dev_await_field(&devs[0], &devs[0].lingering, 1);
    EXPECT(pthread_create(&stopper, NULL, stop_main, g) == 0);
    dev_await(&devs[0], 0);
    usleep(20000); /* longer than an early return would take */
    EXPECT(!atomic_load(&stopped));
    dev_set(&devs[0], &devs[0].linger, 0);
    pthread_join(stopper, NULL);
    EXPECT(dev_get(&devs[0], &devs[0].lingering) == 0);
    join_result(waiter);
    join_result(canceller);
    remus_group_close(g);
}

/* ---- two who finish one wait --------------------------------------------- */

#define ROUNDS 1000

static atomic_int go, came, finished;

static void finish(remus_group *g)
{
    int rc = remus_group_preresume_finish(g);
    if (rc != -EBADFD && rc != -EINPROGRESS)
        atomic_fetch_add(&finished, 1);
}

static void *finish_main(void *arg)
{
    for (int round = 1; round <= ROUNDS; round++) {
        while (atomic_load(&go) < round)
            sched_yield();
        finish(arg);
        atomic_store(&came, round);
    }
    return NULL;
}

/* At the deadline of a primary's wait, which takes the lock away and back. */
static void test_one_finish(void)
{
    struct pair t;
    pthread_t other;
    uint64_t epoch = 0;
    pair_open(&t, 64u << 10, 64u << 10, NULL);
    remus_group *g;
    CHECK(remus_group_open("guest0", &g));
    CHECK(remus_group_add_primary(g, "disks", t.p));
    CHECK(remus_group_start(g, 1));
    EXPECT(pthread_create(&other, NULL, finish_main, g) == 0);
    for (int round = 1; round <= ROUNDS; round++) {
        CHECK(remus_group_postsuspend(g, NULL, 0));
        CHECK(remus_group_preresume_begin(g, 0));
        atomic_store(&finished, 0);
        atomic_store(&go, round);
        finish(g);
        while (atomic_load(&came) < round)
            sched_yield();
        EXPECT(atomic_load(&finished) == 1);
        int rc = remus_group_preresume(g, 20000);
        EXPECT(!rc || rc == -EBADFD);
        epoch = remus_group_epochs(g)[0];
        if (round % 16 == 0)
            CHECK(remus_group_commit(g));
    }
    pthread_join(other, NULL);
    CHECK(remus_group_commit(g));
    remus_group_close(g);
    pair_prove_and_close(&t, epoch);
}

/* ---- a crowd that calls everything at any time ------------------------- */

static atomic_int crowd_stop;
static atomic_ulong crowd_done;

static void *crowd_main(void *arg)
{
    remus_group *g = arg;
    unsigned int seed = (unsigned int)(uintptr_t)&seed;
    while (!atomic_load(&crowd_stop)) {
        struct remus_device_result r[DEVICES] = {
            REMUS_INIT(remus_device_result)};
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

/* `t`: with its primary among the devices; else NULL. */
static void test_crowd(struct pair *t)
{
    remus_group *g;
    CHECK(remus_group_open("guest0", &g));
    for (int i = 0; i < 3; i++) {
        dev_init(&devs[i]);
        EXPECT(remus_group_add_device(g, "d", &dev_ops, &devs[i]) == i);
    }
    if (t)
        EXPECT(remus_group_add_primary(g, "disks", t->p) == 3);
    CHECK(remus_group_start(g, 1));
    pthread_t crowd[4];
    atomic_store(&crowd_stop, 0);
    atomic_store(&crowd_done, 0);
    for (int i = 0; i < 4; i++)
        EXPECT(pthread_create(&crowd[i], NULL, crowd_main, g) == 0);
    for (int i = 0; atomic_load(&crowd_done) < 200; i++) {
        char data[512];
        memset(data, i, sizeof data);
        if (t)
            CHECK(remus_primary_pwrite(t->p, 0, data, sizeof data,
                                       (uint64_t)(i % 128) * 512));
        usleep(1000);
    }
    remus_group_stop(g);
    atomic_store(&crowd_stop, 1);
    for (int i = 0; i < 4; i++)
        pthread_join(crowd[i], NULL);
    remus_group_close(g);
    if (t)
        pair_prove_and_close(t, pair_checkpoint(t));
}

int main(void)
{
    for (int count = 1; count <= DEVICES; count *= 2) {
        test_cancel(count);
        test_stop_under_a_caller(count);
    }
    test_deaf_device();
    test_cancel_is_for_one_wait(0);
    test_cancel_is_for_one_wait(1);
    test_stop_waits_for_a_canceller();
    test_one_finish();
    test_crowd(NULL);
    struct pair t;
    pair_open(&t, 64u << 10, 64u << 10, NULL);
    test_crowd(&t);
    return 0;
}
