/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Two threads wait for acks on one handle: one of them receives, and is not
 * done with the ack that the other one waits for.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "pair.h"
#include "primary/internal.h"

#define ROUNDS 20

static struct pair t;

/* What a thread waits for, and whether it looked (both: primary.lock). */
struct wait {
    uint64_t epoch;
    int enough, looked;
    atomic_int over;
};

static int ready(remus_primary *p, uint64_t arg)
{
    struct wait *w = (struct wait *)(uintptr_t)arg;
    w->looked = 1;
    return w->enough || (w->epoch && p->acked >= w->epoch);
}

static void *wait_main(void *arg)
{
    struct wait *w = arg;
    EXPECT(remus_primary_wait_for(t.p, ready, (uint64_t)(uintptr_t)w, 60000) ==
           1);
    atomic_store(&w->over, 1);
    return NULL;
}

/* Until it waits: it gives the lock up only there, or to receive. */
static pthread_t start(struct wait *w)
{
    pthread_t thread;
    EXPECT(!pthread_create(&thread, NULL, wait_main, w));
    for (int looked = 0; !looked;) {
        remus_primary_lock(t.p);
        looked = w->looked;
        remus_primary_unlock(t.p);
    }
    return thread;
}

static void one_round(void)
{
    struct wait receives = {0}, other = {0};
    remus_primary_lock(t.p);
    other.epoch = t.p->open_epoch;
    remus_primary_unlock(t.p);
    pthread_t first = start(&receives), second = start(&other);
    uint64_t epoch;
    CHECK(remus_primary_postsuspend(t.p, NULL, 0, &epoch));
    EXPECT(epoch == other.epoch);
    for (int i = 0; i < 10000 && !atomic_load(&other.over); i++)
        usleep(1000);
    EXPECT(atomic_load(&other.over));
    EXPECT(!atomic_load(&receives.over));
    remus_primary_lock(t.p);
    receives.enough = 1;
    remus_primary_unlock(t.p);
    remus_primary_wait_wake(t.p);
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    CHECK(remus_primary_commit(t.p, other.epoch));
}

int main(void)
{
    pair_open(&t, 1u << 20, 65536, NULL);
    for (int i = 0; i < ROUNDS; i++)
        one_round();
    pair_prove_and_close(&t, pair_checkpoint(&t));
    return 0;
}
