/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The dirty map under many writers while epochs close and are forgotten: a
 * block whose newest epoch is not stable is always marked.
 */
#include <fcntl.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "primary/dirty.h"
#include "pair.h"

#define BLOCKS 4096u
#define WRITERS 4
#define WRITES 20000

static struct remus_dirty map;
static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER;
static uint64_t epoch = 1;      /* owner: the open one */
static uint64_t newest[BLOCKS]; /* owner: a block's newest epoch */
static atomic_int writing = WRITERS;
static atomic_int enough; /* sets were forgotten meanwhile */

static void *writer_main(void *arg)
{
    unsigned int seed = *(unsigned int *)arg;
    for (int i = 0; i < WRITES || !atomic_load(&enough); i++) {
        unsigned int block = (unsigned int)rand_r(&seed) % BLOCKS;
        uint64_t at = (uint64_t)block * REMUS_BLOCK;
        uint32_t set = remus_dirty_pin(&map);
        remus_dirty_mark(&map, set, 0, at, 1);
        pthread_mutex_lock(&owner);
        if (atomic_load(&map.open) != set)
            remus_dirty_mark(&map, atomic_load(&map.open), 0, at, 1);
        newest[block] = epoch;
        pthread_mutex_unlock(&owner);
        remus_dirty_unpin(&map, set);
    }
    atomic_fetch_sub(&writing, 1);
    return NULL;
}

static void check(void)
{
    pthread_mutex_lock(&owner);
    for (unsigned int i = 0; i < BLOCKS; i++)
        EXPECT(newest[i] <= map.stable || remus_dirty_test(&map, 0, i));
    pthread_mutex_unlock(&owner);
}

/* What barriers, acks and the watching thread do. */
static unsigned int close_and_forget(void)
{
    unsigned int forgotten = 0;
    pthread_mutex_lock(&owner);
    remus_dirty_roll(&map, epoch++);
    if (epoch > 3)
        remus_dirty_stable(&map, epoch - 3);
    int set;
    while ((set = remus_dirty_forget_begin(&map)) >= 0) {
        pthread_mutex_unlock(&owner);
        remus_dirty_forget(&map, set);
        pthread_mutex_lock(&owner);
        remus_dirty_forget_end(&map, set);
        forgotten++;
    }
    pthread_mutex_unlock(&owner);
    return forgotten;
}

int main(void)
{
    char dir[] = "/tmp/remus-test-XXXXXX";
    EXPECT(mkdtemp(dir));
    const unsigned char id[REMUS_ID_BYTES] = {1};
    const uint64_t size = (uint64_t)BLOCKS * REMUS_BLOCK;
    char path[64];
    snprintf(path, sizeof path, "%s/image", dir);
    const int image = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    EXPECT(image >= 0 && ftruncate(image, (off_t)size) == 0);
    struct remus_dirty_of of = {
        .resource = "guest0", .state_dir = dir, .generation = id};
    CHECK(remus_dirty_look(&of, remus_io_system(), &image, 1));
    CHECK(remus_dirty_open(&map, remus_io_system(), &of));
    of.id = map.f.id;
    EXPECT(!remus_dirty_valid(&map));
    remus_dirty_base(&map, 0);
    pthread_t threads[WRITERS];
    unsigned int seeds[WRITERS], forgotten = 0;
    for (unsigned int i = 0; i < WRITERS; i++) {
        seeds[i] = 11 + i;
        pthread_create(&threads[i], NULL, writer_main, &seeds[i]);
    }
    while (atomic_load(&writing)) {
        forgotten += close_and_forget();
        check();
        atomic_store(&enough, forgotten > 20);
    }
    for (int i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 4; i++)
        forgotten += close_and_forget();
    EXPECT(forgotten > 20);
    check();
    remus_dirty_stable(&map, epoch);
    close_and_forget();
    EXPECT(remus_dirty_bytes(&map) == 0);

    /* Killed and opened again: it is what it was. */
    remus_dirty_mark(&map, atomic_load(&map.open), 0, 99, 1);
    remus_dirty_settle(&map.f, 0, image);
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    remus_dirty_settle(&map.f, 0, image); /* nobody has written to it */
    remus_dirty_close(&map, 0, NULL);
    CHECK(remus_dirty_open(&map, remus_io_system(), &of));
    EXPECT(remus_dirty_valid(&map));
    EXPECT(remus_dirty_bytes(&map) == REMUS_BLOCK);
    EXPECT(remus_dirty_test(&map, 0, 0));
    remus_dirty_close(&map, 1, &image);
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", dir);
    EXPECT(system(command) == 0);
    return 0;
}
