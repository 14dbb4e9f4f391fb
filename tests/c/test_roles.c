/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Both sides are compared while threads write and checkpoints go on; then
 * the primary steps down under them, and the two go on in the other role.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "pair.h"
#include "primary/internal.h"

#define SIZE (1u << 20)
#define WRITERS 3

static atomic_int stop;

static void *writer_main(void *arg)
{
    remus_primary *p = arg;
    static atomic_uint seeds;
    unsigned int seed = atomic_fetch_add(&seeds, 1);
    unsigned char buf[9000];
    while (!atomic_load(&stop)) {
        unsigned int volume = (unsigned int)rand_r(&seed) % 2;
        size_t len = 1 + (size_t)rand_r(&seed) % sizeof buf;
        uint64_t at = (uint64_t)rand_r(&seed) % (SIZE - len);
        memset(buf, rand_r(&seed), len);
        int err = remus_primary_pwrite(p, volume, buf, len, at);
        if (err == -EROFS)
            return NULL; /* it stepped down */
        CHECK(err);
        usleep(200);
    }
    return NULL;
}

static void *checkpoint_main(void *arg)
{
    struct pair *t = arg;
    while (!atomic_load(&stop))
        pair_checkpoint(t);
    return NULL;
}

static void compare(void)
{
    struct pair t;
    struct remus_verify v = REMUS_INIT(remus_verify);
    pthread_t threads[WRITERS + 1];
    pair_open(&t, SIZE, SIZE, NULL);
    for (int i = 0; i < WRITERS; i++)
        pthread_create(&threads[i], NULL, writer_main, t.p);
    pthread_create(&threads[WRITERS], NULL, checkpoint_main, &t);
    for (int i = 0; i < 12; i++) {
        CHECK(remus_primary_verify(t.p, i % 2, 0, &v));
        EXPECT(v.complete && !v.blocks_different);
    }
    atomic_store(&stop, 1);
    for (int i = 0; i <= WRITERS; i++)
        pthread_join(threads[i], NULL);
    pair_prove_and_close(&t, pair_checkpoint(&t));
    atomic_store(&stop, 0);
}

/* The primary on the backup's state and disks, and the other way round. */
static void switch_roles(struct pair *t)
{
    struct remus_volume v[2][PAIR_VOLUMES];
    pair_volumes(t, 0, v[0]);
    pair_volumes(t, 1, v[1]);
    const struct remus_backup_config bc = {.struct_size = sizeof bc,
                                           .resource = "guest0",
                                           .state_dir = t->state[0],
                                           .volumes = v[0],
                                           .volume_count = PAIR_VOLUMES,
                                           .journal_bytes = 8u << 20,
                                           .segment_bytes = 256u << 10};
    const struct remus_primary_config pc = {.struct_size = sizeof pc,
                                            .resource = "guest0",
                                            .state_dir = t->state[1],
                                            .volumes = v[1],
                                            .volume_count = PAIR_VOLUMES,
                                            .address = t->address,
                                            .connect_ms = 20};
    remus_primary_close(t->p);
    remus_backup_close(t->b);
    CHECK(remus_backup_open(&bc, &t->b));
    CHECK(remus_backup_serve(t->b, t->address, 0, 0));
    CHECK(remus_primary_open(&pc, &t->p));
    CHECK(remus_primary_wait_protected(t->p, 20000));
}

static void step_down_and_switch(void)
{
    struct pair t;
    struct remus_status s = REMUS_INIT(remus_status);
    pthread_t threads[WRITERS];
    uint64_t promoted;
    pair_open(&t, SIZE, SIZE, NULL);
    for (int i = 0; i < WRITERS; i++)
        pthread_create(&threads[i], NULL, writer_main, t.p);
    usleep(50000);
    CHECK(remus_backup_promote(t.b, REMUS_PROMOTE_DEFAULT, 0, NULL, 0, 0,
                               &promoted));
    for (int i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    CHECK(remus_primary_status(t.p, &s));
    EXPECT(s.state == REMUS_STATE_FENCED);
    switch_roles(&t);
    uint64_t epoch = pair_checkpoint(&t);
    pair_prove_and_close(&t, epoch);
}

/* The backup has it all and the commit is on its way: what it asks then comes
 * too early for its own word only, and is no reason to say no. */
static void nothing_lacks_but_a_word(void)
{
    struct pair t;
    char why[REMUS_REASON_MAX] = "";
    pair_open(&t, SIZE, SIZE, NULL);
    pair_checkpoint(&t);
    remus_primary_close(t.p);
    pair_open_primary(&t, NULL);
    uint64_t epoch = pair_checkpoint(&t);
    CHECK(remus_primary_session_end(t.p));
    remus_primary_lock(t.p);
    struct remus_connection was = t.p->c;
    EXPECT(!remus_plan_direct(was.plan) && was.committed >= was.first);
    EXPECT(remus_primary_may_step_down(t.p, why, sizeof why));
    t.p->link.link = REMUS_LINK_CAUGHT_UP;
    t.p->c.accepted = was.first - 1;
    EXPECT(remus_primary_may_step_down(t.p, why, sizeof why));
    t.p->c.committed = was.first - 1;
    EXPECT(!remus_primary_may_step_down(t.p, why, sizeof why));
    EXPECT(strstr(why, "wait until it is Protected"));
    t.p->link.link = REMUS_LINK_STREAMING;
    t.p->c = was;
    remus_primary_unlock(t.p);
    pair_prove_and_close(&t, epoch);
}

int main(void)
{
    nothing_lacks_but_a_word();
    compare();
    step_down_and_switch();
    return 0;
}
