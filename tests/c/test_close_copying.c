/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary is closed while it copies, and the copy meets a range that a
 * write still holds: the close ends, as soon as that write does.
 */
#include <pthread.h>

#include "pair.h"
#include "primary/internal.h"

#define SIZE (256u << 10)
#define LIMIT_S 30

static remus_io table;
static remus_io *real;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int reached, open_now; /* lock */

/* The copy has looked whether it is still wanted, and stands here. */
static int gated_next_data(remus_io *io, int file, uint64_t from,
                           uint64_t *start, uint64_t *end)
{
    (void)io;
    pthread_mutex_lock(&lock);
    reached = 1;
    pthread_cond_broadcast(&changed);
    while (!open_now)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return real->next_data(real, file, from, start, end);
}

static void *closer(void *p)
{
    remus_primary_close(p);
    return NULL;
}

/* Its own threads had the time to end, those that may. */
static void wait_stopped(remus_primary *p)
{
    for (int ms = 0, quiet = 0; quiet < 200; ms++) {
        EXPECT(ms < LIMIT_S * 1000);
        remus_primary_lock(p);
        quiet += remus_stopping(p);
        if (remus_stopping(p) && !p->volume_threads)
            quiet = 200;
        remus_primary_unlock(p);
        usleep(1000);
    }
}

/* Does the copy wait for the range? */
static void wait_queued(remus_primary *p)
{
    struct remus_pvolume *v = &p->volumes[0];
    for (int ms = 0, waits = 0; !waits; ms++) {
        EXPECT(ms < LIMIT_S * 1000);
        pthread_mutex_lock(&v->lock);
        waits = v->waiting;
        pthread_mutex_unlock(&v->lock);
        usleep(1000);
    }
}

int main(void)
{
    struct pair t;
    pthread_t thread;
    struct remus_range held = {0, SIZE, NULL};
    real = remus_io_system();
    table = *real;
    table.next_data = gated_next_data;
    alarm(LIMIT_S); /* a close that hangs */
    pair_make(&t, SIZE, SIZE);
    int fd = open(t.disk[0][0], O_WRONLY | O_CLOEXEC);
    CHECK(fd);
    EXPECT(pwrite(fd, "data", 4, 0) == 4);
    close(fd);
    pair_open_backup(&t, NULL);
    pair_start_primary(&t, &table);
    pthread_mutex_lock(&lock);
    while (!reached)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);

    EXPECT(remus_primary_range_take(&t.p->volumes[0], &held, 0));
    EXPECT(!pthread_create(&thread, NULL, closer, t.p));
    wait_stopped(t.p);
    pthread_mutex_lock(&lock);
    open_now = 1;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    wait_queued(t.p);
    remus_primary_range_give(t.p, &t.p->volumes[0], &held);
    pthread_join(thread, NULL);

    remus_backup_close(t.b);
    pair_remove(&t);
    return 0;
}
