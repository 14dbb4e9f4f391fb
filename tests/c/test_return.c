/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The backup goes and comes back again and again under writers; one whose
 * disk stalls while its pings go on is told apart from a dead one; and one
 * whose disk is slow slows writes down, not checkpoints.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "pair.h"

#define SIZE (1u << 20)
#define WRITERS 3
#define ROUNDS 15

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
        if (rand_r(&seed) % 8 == 0) {
            CHECK(remus_primary_discard(p, volume, at, len));
            continue;
        }
        memset(buf, rand_r(&seed), len);
        CHECK(remus_primary_pwrite(p, volume, buf, len, at));
        usleep(100);
    }
    return NULL;
}

static void go_and_return(void)
{
    struct pair t;
    pthread_t threads[WRITERS];
    pair_open(&t, SIZE, SIZE, NULL);
    for (int i = 0; i < WRITERS; i++)
        pthread_create(&threads[i], NULL, writer_main, t.p);
    for (int i = 0; i < ROUNDS; i++) {
        remus_backup_close(t.b);
        usleep((useconds_t)(i % 4) * 10000);
        pair_open_backup(&t, NULL);
        if (i % 3)
            pair_next_checkpoint(&t);
        else
            usleep((useconds_t)i * 2000); /* at some moment of it */
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    pair_prove_and_close(&t, pair_next_checkpoint(&t));
}

/* ---- a stalled disk ------------------------------------------------------ */

static remus_io *real;
static remus_io table;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t opened = PTHREAD_COND_INITIALIZER;
static int stalled; /* gate */

static int stalling_fdatasync(remus_io *io, int file)
{
    (void)io;
    pthread_mutex_lock(&gate);
    while (stalled)
        pthread_cond_wait(&opened, &gate);
    pthread_mutex_unlock(&gate);
    return real->fdatasync(real, file);
}

static void stall(int on)
{
    pthread_mutex_lock(&gate);
    stalled = on;
    pthread_cond_broadcast(&opened);
    pthread_mutex_unlock(&gate);
}

static void a_stalled_disk_is_named(void)
{
    struct pair t;
    struct remus_status s = REMUS_INIT(remus_status);
    real = remus_io_system();
    table = *real;
    table.fdatasync = stalling_fdatasync;
    pair_open(&t, SIZE, SIZE, NULL);
    remus_backup_close(t.b);
    pair_open_backup(&t, &table);
    pair_next_checkpoint(&t);
    stall(1);
    uint64_t epoch;
    CHECK(remus_primary_pwrite(t.p, 0, "not durable yet", 15, 0));
    CHECK(remus_primary_postsuspend(t.p, NULL, 0, &epoch));
    EXPECT(remus_primary_preresume(t.p, epoch, 20000) == -EPROTO);
    EXPECT(strstr(remus_last_error(), "answers pings, but epoch"));
    CHECK(remus_primary_status(t.p, &s));
    EXPECT(s.state == REMUS_STATE_UNPROTECTED);
    CHECK(remus_primary_pwrite(t.p, 0, "the guest goes on", 17, 0));
    stall(0);
    pair_prove_and_close(&t, pair_next_checkpoint(&t));
}

/* ---- a slow disk ---------------------------------------------------------- */

#define SLOW_MS 15
#define CHECKPOINTS 60

static int slow_fdatasync(remus_io *io, int file)
{
    (void)io;
    usleep(SLOW_MS * 1000);
    return real->fdatasync(real, file);
}

/* 16 MiB a second, and what comes in small pieces is slower. */
static ssize_t slow_pwrite(remus_io *io, int file, const void *buf, size_t len,
                           uint64_t offset)
{
    (void)io;
    usleep((useconds_t)(len / 16u + 500));
    return real->pwrite(real, file, buf, len, offset);
}

static void a_slow_disk_slows_writes(void)
{
    struct pair t;
    struct remus_status s = REMUS_INIT(remus_status);
    pthread_t threads[WRITERS];
    table = *real;
    table.fdatasync = slow_fdatasync;
    table.pwrite = slow_pwrite;
    pair_open(&t, SIZE, SIZE, NULL);
    remus_backup_close(t.b);
    pair_open_backup(&t, &table);
    pair_next_checkpoint(&t);
    atomic_store(&stop, 0);
    for (int i = 0; i < WRITERS; i++)
        pthread_create(&threads[i], NULL, writer_main, t.p);
    uint64_t most = 0, limit = 0;
    for (int i = 0; i < CHECKPOINTS; i++) {
        usleep(20000);
        pair_checkpoint(&t);
        CHECK(remus_primary_status(t.p, &s));
        EXPECT(s.state == REMUS_STATE_PROTECTED);
        EXPECT(s.queue_bytes <= 4u << 20);
        CHECK(remus_backup_status(t.b, &s));
        EXPECT(s.state == REMUS_STATE_PROTECTED);
        limit = s.journal_limit;
        most = s.journal_bytes > most ? s.journal_bytes : most;
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    CHECK(remus_primary_status(t.p, &s));
    EXPECT(s.stalls > 0);                /* they had to wait */
    EXPECT(s.bytes_written > 2 * limit); /* not everything did fit */
    EXPECT(most > limit / 2 && most <= limit);
    pair_prove_and_close(&t, pair_next_checkpoint(&t));
}

int main(void)
{
    go_and_return();
    a_stalled_disk_is_named();
    a_slow_disk_slows_writes();
    return 0;
}
