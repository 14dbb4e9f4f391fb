/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An apply stalls in the middle: who looks at the backup's disks gets the
 * state to which it goes, at once and whole, of each volume.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "pair.h"

#define SIZE (1u << 20)
#define BLOCK 4096u

static remus_io table;
static remus_io *real;
static atomic_int disk = -1; /* the first volume's file */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int stalled, stuck; /* lock */

static int watching_open(remus_io *io, const char *path, int flags)
{
    (void)io;
    int file = real->open(real, path, flags);
    if (strstr(path, "/backup.a") && (flags & O_ACCMODE) == O_RDWR)
        atomic_store(&disk, file);
    return file;
}

/* The second half of a large write never comes, as long as it stalls. */
static ssize_t stalling_pwrite(remus_io *io, int file, const void *buf,
                               size_t len, uint64_t offset)
{
    (void)io;
    pthread_mutex_lock(&lock);
    int stall = stalled && file == atomic_load(&disk);
    pthread_mutex_unlock(&lock);
    if (!stall)
        return real->pwrite(real, file, buf, len, offset);
    EXPECT(real->pwrite(real, file, buf, len / 2, offset) ==
           (ssize_t)(len / 2));
    pthread_mutex_lock(&lock);
    stuck = 1;
    pthread_cond_broadcast(&changed);
    while (stalled)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    ssize_t n = real->pwrite(real, file, (const char *)buf + len / 2,
                             len - len / 2, offset + len / 2);
    return n < 0 ? n : n + (ssize_t)(len / 2);
}

static void stall(int on)
{
    pthread_mutex_lock(&lock);
    stalled = on;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void fill(struct pair *t, int c)
{
    static unsigned char buf[16 * BLOCK];
    memset(buf, c, sizeof buf);
    for (unsigned int i = 0; i < PAIR_VOLUMES; i++)
        CHECK(remus_primary_pwrite(t->p, i, buf, sizeof buf, BLOCK));
}

struct look {
    struct pair *t;
    atomic_int done;
};

static void *look(void *arg)
{
    struct look *l = arg;
    static unsigned char buf[18 * BLOCK];
    for (unsigned int i = 0; i < PAIR_VOLUMES; i++) {
        CHECK(remus_backup_read(l->t->b, i, buf, sizeof buf, 0));
        for (unsigned int at = 0; at < sizeof buf; at++)
            EXPECT(buf[at] == (at >= BLOCK && at < 17 * BLOCK ? '2' : 0));
    }
    atomic_store(&l->done, 1);
    return NULL;
}

int main(void)
{
    struct pair t;
    real = remus_io_system();
    table = *real;
    table.open = watching_open;
    table.pwrite = stalling_pwrite;
    pair_make(&t, SIZE, SIZE);
    pair_open_backup(&t, &table);
    pair_open_primary(&t, NULL);
    fill(&t, '1');
    pair_checkpoint(&t);
    struct remus_status s = REMUS_INIT(remus_status);
    do {
        usleep(1000);
        CHECK(remus_backup_status(t.b, &s));
    } while (s.applied_epoch < s.committed_epoch);
    stall(1);
    fill(&t, '2');
    uint64_t epoch = pair_checkpoint(&t);
    pthread_mutex_lock(&lock);
    while (!stuck)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    pthread_t thread;
    struct look l = {.t = &t};
    EXPECT(pthread_create(&thread, NULL, look, &l) == 0);
    for (int ms = 10000; !atomic_load(&l.done) && ms; ms--)
        usleep(1000);
    int in_time = atomic_load(&l.done);
    stall(0);
    pthread_join(thread, NULL);
    EXPECT(in_time);
    pair_prove_and_close(&t, epoch);
    return 0;
}
