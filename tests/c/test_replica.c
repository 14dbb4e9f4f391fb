/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Primary and backup in one process, over a Unix socket, with writers that
 * overlap on purpose while checkpoints are taken: both sides must agree, and
 * the sanitizers must have nothing to say.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "remus.h"

#define SIZE_A (4u << 20)
#define SIZE_B (1u << 20)
#define WRITERS 4
#define WRITES 400
#define MAX_LEN 20000u

#define CHECK(expr)                                                          \
    do {                                                                     \
        int rc_ = (int)(expr);                                               \
        if (rc_ < 0) {                                                       \
            fprintf(stderr, "%s:%d: %s = %d: %s\n", __FILE__, __LINE__,      \
                    #expr, rc_, remus_last_error());                         \
            exit(1);                                                         \
        }                                                                    \
    } while (0)
#define EXPECT(cond)                                                         \
    do {                                                                     \
        if (!(cond)) {                                                       \
            fprintf(stderr, "%s:%d: not true: %s (%s)\n", __FILE__,          \
                    __LINE__, #cond, remus_last_error());                    \
            exit(1);                                                         \
        }                                                                    \
    } while (0)

static char dir[64], path[8][128], address[128];

static void make_disk(const char *name, off_t size)
{
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd);
    CHECK(ftruncate(fd, size));
    close(fd);
}

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
    remus_primary *p = arg;
    while (!stop_checkpoints) {
        uint64_t epoch;
        CHECK(remus_primary_postsuspend(p, NULL, 0, &epoch));
        CHECK(remus_primary_preresume(p, epoch, 20000));
        CHECK(remus_primary_commit(p, epoch));
        usleep(2000);
    }
    return NULL;
}

static void same_files(const char *a, const char *b, size_t size)
{
    unsigned char *x = malloc(size), *y = malloc(size);
    int fa = open(a, O_RDONLY | O_CLOEXEC), fb = open(b, O_RDONLY | O_CLOEXEC);
    EXPECT(read(fa, x, size) == (ssize_t)size);
    EXPECT(read(fb, y, size) == (ssize_t)size);
    for (size_t i = 0; i < size; i++)
        if (x[i] != y[i]) {
            fprintf(stderr, "%s and %s differ at %zu: %02x %02x\n", a, b, i,
                    x[i], y[i]);
            exit(1);
        }
    close(fa);
    close(fb);
    free(x);
    free(y);
}

static void run_writers(remus_primary *p)
{
    pthread_t threads[WRITERS], checkpoints;
    struct writer w[WRITERS];
    stop_checkpoints = 0;
    pthread_create(&checkpoints, NULL, checkpoint_main, p);
    for (unsigned int i = 0; i < WRITERS; i++) {
        w[i] = (struct writer){p, 7 + i};
        pthread_create(&threads[i], NULL, writer_main, &w[i]);
    }
    for (int i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    stop_checkpoints = 1;
    pthread_join(checkpoints, NULL);
}

int main(void)
{
    strcpy(dir, "/tmp/remus-test-XXXXXX");
    EXPECT(mkdtemp(dir));
    static const char *const names[] = {"pa", "pb", "ba", "bb", "ps", "bs"};
    for (int i = 0; i < 6; i++)
        snprintf(path[i], sizeof path[i], "%s/%s", dir, names[i]);
    snprintf(address, sizeof address, "unix:%s/sock", dir);
    make_disk(path[0], SIZE_A);
    make_disk(path[1], SIZE_B);
    make_disk(path[2], SIZE_A);
    make_disk(path[3], SIZE_B);
    CHECK(mkdir(path[4], 0700));
    CHECK(mkdir(path[5], 0700));

    struct remus_volume pv[] = {{"a", path[0], SIZE_A}, {"b", path[1], 0}};
    struct remus_volume bv[] = {{"a", path[2], SIZE_A}, {"b", path[3], 0}};
    struct remus_backup_config bc = {.resource = "guest0",
                                     .state_dir = path[5],
                                     .volumes = bv,
                                     .volume_count = 2,
                                     .journal_bytes = 2u << 20,
                                     .segment_bytes = 256u << 10};
    remus_backup *b;
    CHECK(remus_backup_open(&bc, &b));
    CHECK(remus_backup_serve(b, address, 0, 0));
    struct remus_primary_config pc = {.resource = "guest0",
                                      .state_dir = path[4],
                                      .volumes = pv,
                                      .volume_count = 2,
                                      .address = address,
                                      .queue_bytes = 4u << 20};
    remus_primary *p;
    CHECK(remus_primary_open(&pc, &p));
    unsigned char first[4096];
    memset(first, 0x5a, sizeof first);
    CHECK(remus_primary_pwrite(p, 0, first, sizeof first, 12345));
    CHECK(remus_primary_wait_protected(p, 20000));

    run_writers(p);
    CHECK(remus_primary_pwrite(p, 1, "the end", 7, SIZE_B - 7));
    uint64_t epoch, promoted;
    EXPECT(remus_primary_postsuspend(p, "last", 4, &epoch) == 0);
    CHECK(remus_primary_preresume(p, epoch, 20000));
    CHECK(remus_primary_commit(p, epoch));
    uint64_t after;
    EXPECT(remus_primary_postsuspend(p, NULL, 0, &after) == 1);
    CHECK(remus_primary_preresume(p, after, 20000));
    EXPECT(remus_primary_commit(p, after + 1) == -EINVAL);

    struct remus_status s;
    CHECK(remus_primary_status(p, &s));
    EXPECT(s.state == REMUS_STATE_PROTECTED);
    EXPECT(remus_backup_promote(b, REMUS_PROMOTE_TAG, 0, "last", 4, 0,
                                &promoted) == -EBUSY);
    remus_primary_close(p);
    EXPECT(remus_backup_promote(b, REMUS_PROMOTE_EPOCH, after + 7, NULL, 0, 0,
                                &promoted) == -EINVAL);
    CHECK(remus_backup_promote(b, REMUS_PROMOTE_TAG, 0, "last", 4, 0,
                               &promoted));
    EXPECT(promoted == epoch);
    CHECK(remus_backup_status(b, &s));
    EXPECT(s.state == REMUS_STATE_PROMOTED);
    remus_backup_close(b);
    same_files(path[0], path[2], SIZE_A);
    same_files(path[1], path[3], SIZE_B);

    char command[128];
    snprintf(command, sizeof command, "rm -r %s", dir);
    EXPECT(system(command) == 0);
    printf("ok: %llu epochs, %llu records, %llu bytes coalesced\n",
           (unsigned long long)s.epochs, (unsigned long long)s.records,
           (unsigned long long)s.bytes_coalesced);
    return 0;
}
