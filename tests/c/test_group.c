/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Groups: devices whose answers the test holds back, a real replica beside
 * them, wrong callers.  test_group_cancel.c has the ends from outside,
 * test_group_costs.c what an epoch must not cost.
 */
#include <errno.h>

#include "group_dev.h"

/* ---- order --------------------------------------------------------------- */

static void test_order(void)
{
    remus_group *g;
    CHECK(remus_group_open("guest0", &g));
    EXPECT(remus_group_postsuspend(g, NULL, 0) == -EBADFD);
    EXPECT(strstr(remus_last_error(), "postsuspend in state new"));
    remus_group_close(g);
    g = group_of(2, 0);
    EXPECT(remus_group_add_device(g, "late", &dev_ops, &devs[0]) == -EBADFD);
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
    EXPECT(result(g, 2).failed_epoch == 2 && result(g, 1).failed_epoch == 0);
    /* d0 has acked what d2 has not: nothing can be committed now. */
    EXPECT(remus_group_commit(g) == -EBADFD);
    /* A retry asks only the one without an ack. */
    dev_set(&devs[2], &devs[2].pre, 0);
    CHECK(remus_group_preresume(g, 1000));
    EXPECT(dev_get(&devs[0], &devs[0].calls) == 1);
    EXPECT(dev_get(&devs[2], &devs[2].calls) == 2);
    dev_set(&devs[0], &devs[0].commit, -EIO);
    EXPECT(remus_group_commit(g) == -EIO);
    EXPECT(result(g, 0).failed_epoch == result(g, 0).epoch);
    EXPECT(devs[3].committed == 1 && devs[1].committed == 1);
    EXPECT(devs[2].committed == 2);
    remus_group_close(g);
}

/* ---- waiting ------------------------------------------------------------- */

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

/* ---- statistics -------------------------------------------------------- */

static void test_statistics(void)
{
    remus_group *g;
    CHECK(remus_group_open("guest0", &g));
    EXPECT(!remus_group_statistics(g, -1));
    for (int i = 0; i < 2; i++) {
        dev_init(&devs[i]);
        CHECK(remus_group_add_device(g, i ? "b" : "a", &dev_ops, &devs[i]));
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
        CHECK(remus_group_add_device(g, "other", &dev_ops, &devs[i]));
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
    pair_remove(&t);
}

int main(void)
{
    test_order();
    test_errors();
    for (int count = 1; count <= DEVICES; count *= 2) {
        test_all_at_once(count);
        test_timeout(count);
    }
    test_begin_and_finish();
    test_statistics();
    test_replica(0, 0);
    test_replica(0, 1);
    test_replica(3, 0);
    test_replica(3, 1);
    test_replica_lost(0);
    test_replica_lost(1);
    return 0;
}
