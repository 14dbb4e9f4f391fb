/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Primary and backup in one process, over a Unix socket, with writers that
 * overlap on purpose while checkpoints are taken: both sides must agree, and
 * the sanitizers must have nothing to say.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "pair.h"

#define SIZE_A (4u << 20)
#define SIZE_B (1u << 20)
#define WRITERS 4
#define WRITES 400
#define MAX_LEN 20000u

struct writer {
    remus_primary *p;
    unsigned int seed;
};

static void *writer_main(void *arg)
{
    struct writer *w = arg;
    unsigned char *buf = malloc(MAX_LEN);
    for (int i = 0; i < WRITES; i++) {
        unsigned int volume = (unsigned int)rand_r(&w->seed) % 2;
        uint64_t size = volume ? SIZE_B : SIZE_A;
        size_t len = 1 + (size_t)rand_r(&w->seed) % MAX_LEN;
        /* A narrow window, so that writers meet. */
        uint64_t offset = (uint64_t)rand_r(&w->seed) % 65536;
        if (rand_r(&w->seed) % 4 == 0)
            offset = (uint64_t)rand_r(&w->seed) % (size - len);
        if (rand_r(&w->seed) % 8 == 0) {
            CHECK(remus_primary_discard(w->p, volume, offset, len));
            continue;
        }
        memset(buf, rand_r(&w->seed), len);
        CHECK(remus_primary_pwrite(w->p, volume, buf, len, offset));
    }
    free(buf);
    return NULL;
}

static atomic_int stop_checkpoints;

static void *checkpoint_main(void *arg)
{
    while (!atomic_load(&stop_checkpoints)) {
        pair_checkpoint(arg);
        usleep(2000);
    }
    return NULL;
}

static void run_writers(struct pair *t)
{
    pthread_t threads[WRITERS], checkpoints;
    struct writer w[WRITERS];
    pthread_create(&checkpoints, NULL, checkpoint_main, t);
    for (unsigned int i = 0; i < WRITERS; i++) {
        w[i] = (struct writer){t->p, 7 + i};
        pthread_create(&threads[i], NULL, writer_main, &w[i]);
    }
    for (int i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    atomic_store(&stop_checkpoints, 1);
    pthread_join(checkpoints, NULL);
}

/* What the backup found out when it applied `epoch`, once it has told. */
static struct remus_epoch_sample told(remus_primary *p, uint64_t epoch)
{
    struct remus_epoch_sample s = {0};
    for (int i = 0; i < 20000; i++) {
        EXPECT(remus_primary_epoch(p, epoch, &s) == 1);
        if (s.extents)
            break;
        usleep(1000);
    }
    return s;
}

static void check_statistics(struct pair *t)
{
    static unsigned char block[4096];
    struct remus_epoch_sample s;
    struct remus_status status = REMUS_INIT(remus_status);
    uint64_t epoch;
    EXPECT(remus_primary_epoch(t->p, UINT64_MAX, &s) == 0);
    pair_checkpoint(t); /* what the writers left */
    CHECK(remus_primary_pwrite(t->p, 0, block, 4096, 8192));
    CHECK(remus_primary_pwrite(t->p, 0, block, 1024, 9000)); /* over it */
    CHECK(remus_primary_pwrite(t->p, 0, block, 512, 12288)); /* goes on */
    CHECK(remus_primary_discard(t->p, 1, 65536, 2048));
    EXPECT(remus_primary_postsuspend(t->p, NULL, 0, &epoch) == 0);
    EXPECT(remus_primary_epoch(t->p, epoch + 1, &s) == 0);
    CHECK(remus_primary_preresume(t->p, epoch, 20000));
    EXPECT(remus_primary_epoch(t->p, epoch, &s) == 1);
    EXPECT(s.bytes == 4096 + 1024 + 512 + 2048 && s.result == 0);
    EXPECT(s.start_ns && s.barrier_ns && !s.commit_ns && !s.extents);
    CHECK(remus_primary_commit(t->p, epoch));
    s = told(t->p, epoch);
    EXPECT(s.commit_ns && s.extents == 2 && s.coalesced == 1024);
    CHECK(remus_primary_status(t->p, &status));
    EXPECT(status.measured_epoch == epoch);
    EXPECT(status.epoch_extents == 2 && status.epoch_coalesced == 1024);
    CHECK(remus_backup_status(t->b, &status));
    EXPECT(status.measured_epoch == epoch && status.epoch_extents == 2);
    struct remus_epochs_info info = REMUS_INIT(remus_epochs_info);
    CHECK(remus_epochs_info(remus_primary_epochs(t->p), &info));
    EXPECT(info.added > 1 && !info.failed && !strcmp(info.name, "guest0"));
}

int main(void)
{
    struct pair t;
    pair_open(&t, SIZE_A, SIZE_B, NULL);
    run_writers(&t);
    check_statistics(&t);
    CHECK(remus_primary_pwrite(t.p, 1, "the end", 7, SIZE_B - 7));
    uint64_t epoch, after;
    EXPECT(remus_primary_postsuspend(t.p, "last", 4, &epoch) == 0);
    CHECK(remus_primary_preresume(t.p, epoch, 20000));
    CHECK(remus_primary_commit(t.p, epoch));
    EXPECT(remus_primary_postsuspend(t.p, NULL, 0, &after) == 1);
    CHECK(remus_primary_preresume(t.p, after, 20000));
    EXPECT(remus_primary_commit(t.p, after + 1) == -EINVAL);

    struct remus_status s = REMUS_INIT(remus_status);
    CHECK(remus_primary_status(t.p, &s));
    EXPECT(s.state == REMUS_STATE_PROTECTED);
    uint64_t promoted;
    EXPECT(remus_backup_promote(t.b, REMUS_PROMOTE_TAG, 0, "last", 4, 0,
                                &promoted) == -EBUSY);
    pair_prove_and_close(&t, epoch);
    return 0;
}
