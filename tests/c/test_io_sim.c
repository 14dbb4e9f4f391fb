/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The simulated disk keeps its word: what each kind of power loss may do, and
 * what it may not.  Everything that the crash tests prove rests on this.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "remus_testing.h"
#include "expect.h"

#define SECTOR 512u
#define SEEDS 64

static remus_sim *sim;
static remus_io *io;

static void fresh(void)
{
    remus_sim_free(sim);
    CHECK(remus_sim_new(&sim));
    io = remus_sim_io(sim);
}

static int open_file(const char *path)
{
    int file = io->open(io, path, O_RDWR | O_CREAT);
    CHECK(file);
    return file;
}

static void put(int file, int byte, size_t len, uint64_t offset)
{
    unsigned char *buf = malloc(len);
    EXPECT(buf);
    memset(buf, byte, len);
    EXPECT(io->pwrite(io, file, buf, len, offset) == (ssize_t)len);
    free(buf);
}

/* Is every byte of the range `byte`? */
static int all(const char *path, int byte, size_t len, uint64_t offset)
{
    unsigned char *buf = malloc(len);
    EXPECT(buf);
    CHECK(remus_sim_read(sim, path, buf, len, offset));
    int same = 1;
    for (size_t i = 0; i < len; i++)
        same &= buf[i] == byte;
    free(buf);
    return same;
}

/* A durable file of `size` zeroes, open. */
static int disk(const char *path, uint64_t size)
{
    CHECK(remus_sim_create(sim, path, size));
    int file = io->open(io, path, O_RDWR);
    CHECK(file);
    return file;
}

static void test_reads_and_sizes(void)
{
    fresh();
    int file = open_file("/f");
    unsigned char buf[8];
    EXPECT(io->pread(io, file, buf, 8, 0) == 0);
    put(file, 'a', 3, 5);
    uint64_t size;
    CHECK(io->size(io, file, &size));
    EXPECT(size == 8 && remus_sim_file_size(sim, "/f") == 8);
    EXPECT(io->pread(io, file, buf, 8, 0) == 8);
    EXPECT(!memcmp(buf, "\0\0\0\0\0aaa", 8));
    EXPECT(io->pread(io, file, buf, 8, 6) == 2);
    EXPECT(io->pwrite(io, file, buf, 0, 100) == 0);
    EXPECT(io->pwrite(io, file, buf, 1, UINT64_MAX) == -EFBIG);
    CHECK(io->zero(io, file, 6, 1000));
    CHECK(io->zero(io, file, 1000, 1));
    EXPECT(remus_sim_file_size(sim, "/f") == 8);
    EXPECT(all("/f", 'a', 1, 5) && all("/f", 0, 2, 6));
    EXPECT(remus_sim_read(sim, "/f", buf, 2, 7) == -EINVAL);
    EXPECT(remus_sim_read(sim, "/none", buf, 1, 0) == -ENOENT);
    EXPECT(remus_sim_file_size(sim, "/none") == -ENOENT);
    EXPECT(io->open(io, "/none", O_RDWR) == -ENOENT);
    EXPECT(io->open(io, "/f", O_RDWR | O_CREAT | O_EXCL) == -EEXIST);
    int reader = io->open(io, "/f", O_RDONLY);
    EXPECT(io->pwrite(io, reader, "x", 1, 0) == -EBADF);
    EXPECT(io->zero(io, reader, 0, 1) == -EBADF);
    CHECK(io->close(io, reader));
    EXPECT(io->close(io, reader) == -EBADF);
    EXPECT(remus_sim_create(sim, "/f", 1) == -EEXIST);
}

/* Only a sync makes data durable, and only the data before it. */
static void test_lose_and_keep(void)
{
    fresh();
    int file = disk("/d", 4096);
    put(file, 'a', 1024, 0);
    CHECK(io->fdatasync(io, file));
    put(file, 'b', 512, 512);
    CHECK(io->zero(io, file, 0, 100));
    CHECK(io->writeback(io, file, 0, 4096));
    CHECK(io->drop_cache(io, file));
    put(file, 'c', 100, 5000); /* grows the file */
    EXPECT(remus_sim_file_size(sim, "/d") == 5100);

    remus_sim *other;
    CHECK(remus_sim_clone(sim, &other));
    remus_sim_crash(sim, REMUS_SIM_LOSE, 1);
    EXPECT(all("/d", 'a', 1024, 0) && all("/d", 0, 3072, 1024));
    EXPECT(remus_sim_file_size(sim, "/d") == 4096);

    remus_sim_free(sim);
    sim = other;
    io = remus_sim_io(sim);
    remus_sim_crash(sim, REMUS_SIM_KEEP, 1);
    EXPECT(all("/d", 0, 100, 0) && all("/d", 'a', 412, 100));
    EXPECT(all("/d", 'b', 512, 512) && all("/d", 0, 3976, 1024));
    EXPECT(all("/d", 'c', 100, 5000));
    remus_sim_crash(sim, REMUS_SIM_LOSE, 1); /* kept is kept */
    EXPECT(all("/d", 'c', 100, 5000));
}

/* A file that was shortened by a loss reads as zeroes when it grows again. */
static void test_lost_growth_leaves_nothing(void)
{
    fresh();
    int file = disk("/d", 512);
    put(file, 'x', 5000, 512);
    remus_sim_crash(sim, REMUS_SIM_LOSE, 1);
    EXPECT(remus_sim_file_size(sim, "/d") == 512);
    file = open_file("/d");
    put(file, 'y', 1, 9000);
    EXPECT(all("/d", 0, 8488, 512));
    CHECK(io->fdatasync(io, file));
    remus_sim_crash(sim, REMUS_SIM_LOSE, 1);
    EXPECT(all("/d", 0, 8488, 512) && all("/d", 'y', 1, 9000));
}

/*
 * Three writes over two sectors and a bit; what is a sector afterwards?
 * Bit n of seen[s]: sector s held 'a'+n in some run; bit 7: the old zeroes.
 */
static void scatter(int loss, unsigned int seen[4])
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        fresh();
        int file = disk("/d", 4 * SECTOR);
        put(file, 'a', 2 * SECTOR, 0);
        put(file, 'b', 3 * SECTOR, 0);
        put(file, 'c', SECTOR, SECTOR);
        remus_sim_crash(sim, loss, seed);
        for (unsigned int s = 0; s < 4; s++) {
            unsigned char got;
            CHECK(remus_sim_read(sim, "/d", &got, 1, s * SECTOR));
            EXPECT(all("/d", got, SECTOR, s * SECTOR)); /* never split */
            seen[s] |= got ? 1u << (got - 'a') : 1u << 7;
        }
    }
}

static void test_tear_and_reorder(void)
{
    unsigned int torn[4] = {0}, mixed[4] = {0};
    scatter(REMUS_SIM_TEAR, torn);
    scatter(REMUS_SIM_REORDER, mixed);
    /* Sector 0: a, b; 1: a, b, c; 2: b; 3: none.  All can be lost. */
    EXPECT(torn[0] == 0x83 && torn[1] == 0x87 && torn[2] == 0x82);
    EXPECT(mixed[0] == 0x83 && mixed[1] == 0x87 && mixed[2] == 0x82);
    EXPECT(torn[3] == 0x80 && mixed[3] == 0x80);
}

/* Of two kept writes, TEAR lets the younger one win; REORDER either. */
static void test_order(void)
{
    for (int loss = REMUS_SIM_TEAR; loss <= REMUS_SIM_REORDER; loss++) {
        int older = 0, both = 0;
        for (uint64_t seed = 0; seed < 4 * SEEDS; seed++) {
            fresh();
            int file = disk("/d", SECTOR);
            put(file, 'a', 20, 0);
            put(file, 'b', 10, 0);
            remus_sim_crash(sim, loss, seed);
            /* Bytes 10..19 tell whether the older one was kept. */
            int kept = all("/d", 'a', 10, 10);
            both += kept && all("/d", 'b', 10, 0);
            older += kept && all("/d", 'a', 10, 0);
        }
        EXPECT(both > SEEDS / 4 && older > SEEDS / 4);
        /* Half of the runs keep the older; of these the younger is lost in
         * 1/2 (TEAR), or lost or overtaken in 3/4 (REORDER). */
        EXPECT(loss == REMUS_SIM_TEAR ? older < 4 * SEEDS * 5 / 16
                                      : older > 4 * SEEDS * 5 / 16);
    }
}

static void test_same_seed_same_world(void)
{
    unsigned char first[8 * SECTOR], again[8 * SECTOR];
    for (int loss = REMUS_SIM_TEAR; loss <= REMUS_SIM_REORDER; loss++) {
        fresh();
        int file = disk("/d", sizeof first);
        for (int i = 0; i < 40; i++)
            put(file, i + 1, 300, (uint64_t)(i * 97));
        remus_sim *other;
        CHECK(remus_sim_clone(sim, &other));
        remus_sim_crash(sim, loss, 42);
        remus_sim_crash(other, loss, 42);
        CHECK(remus_sim_read(sim, "/d", first, sizeof first, 0));
        CHECK(remus_sim_read(other, "/d", again, sizeof again, 0));
        EXPECT(!memcmp(first, again, sizeof first));
        remus_sim_free(other);
    }
}

/* A name is as durable as the last sync of its directory. */
static void test_names(void)
{
    fresh();
    int file = open_file("/dir/f");
    put(file, 'a', 10, 0);
    CHECK(io->fdatasync(io, file)); /* the data, not the name */
    remus_sim_crash(sim, REMUS_SIM_LOSE, 1);
    EXPECT(remus_sim_file_size(sim, "/dir/f") == -ENOENT);

    file = open_file("/dir/f");
    put(file, 'a', 10, 0);
    CHECK(io->fdatasync(io, file));
    CHECK(io->sync_dir(io, "/other"));
    CHECK(io->sync_dir(io, "/di"));
    remus_sim_crash(sim, REMUS_SIM_LOSE, 1);
    EXPECT(remus_sim_file_size(sim, "/dir/f") == -ENOENT);

    file = open_file("/dir/f");
    put(file, 'a', 10, 0);
    CHECK(io->sync_dir(io, "/dir")); /* the name, not the data */
    remus_sim_crash(sim, REMUS_SIM_LOSE, 1);
    EXPECT(remus_sim_file_size(sim, "/dir/f") == 0);

    file = open_file("/dir/f");
    put(file, 'b', 10, 0);
    CHECK(io->fdatasync(io, file));
    CHECK(io->unlink(io, "/dir/f"));
    EXPECT(io->unlink(io, "/dir/f") == -ENOENT);
    EXPECT(io->open(io, "/dir/f", O_RDWR) == -ENOENT);
    put(file, 'c', 10, 0); /* an open file lives on without a name */
    remus_sim_crash(sim, REMUS_SIM_LOSE, 1);
    EXPECT(all("/dir/f", 'b', 10, 0)); /* it came back */
    CHECK(io->unlink(io, "/dir/f"));
    remus_sim_crash(sim, REMUS_SIM_KEEP, 1);
    EXPECT(remus_sim_file_size(sim, "/dir/f") == -ENOENT);
}

/* A file that replaced another: old, new or, never, a mixture. */
static void test_replaced_file(void)
{
    int old_ones = 0, new_ones = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        fresh();
        disk("/dir/f", 100);
        CHECK(io->unlink(io, "/dir/f"));
        int file = open_file("/dir/f");
        put(file, 'n', 200, 0);
        CHECK(io->fdatasync(io, file));
        remus_sim_crash(sim, REMUS_SIM_TEAR, seed);
        int64_t size = remus_sim_file_size(sim, "/dir/f");
        EXPECT(size == 100 || size == 200);
        EXPECT(all("/dir/f", size == 100 ? 0 : 'n', (size_t)size, 0));
        old_ones += size == 100;
        new_ones += size == 200;
    }
    EXPECT(old_ones && new_ones);
}

/* With a directory goes all that is in it. */
static void test_directories(void)
{
    fresh();
    CHECK(io->mkdir(io, "/state/journal"));
    CHECK(io->mkdir(io, "/state/journal"));
    EXPECT(io->open(io, "/state/journal", O_RDWR) == -EISDIR);
    EXPECT(io->unlink(io, "/state/journal") == -EISDIR);
    open_file("/state/journal/f");
    CHECK(io->sync_dir(io, "/state/journal"));
    remus_sim *other;
    CHECK(remus_sim_clone(sim, &other));
    remus_sim_crash(sim, REMUS_SIM_LOSE, 1);
    EXPECT(remus_sim_file_size(sim, "/state/journal/f") == -ENOENT);
    EXPECT(io->open(io, "/state/journal/f", O_RDWR | O_CREAT) == -ENOENT);
    EXPECT(io->sync_dir(io, "/state/journal") == -ENOENT);
    EXPECT(io->mkdir(io, "/state/journal/sub") == -ENOENT);
    CHECK(io->mkdir(io, "/state/journal"));
    EXPECT(remus_sim_file_size(sim, "/state/journal/f") == -ENOENT);
    remus_sim_free(sim);
    sim = other;
    io = remus_sim_io(sim);
    CHECK(io->sync_dir(io, "/state"));
    remus_sim_crash(sim, REMUS_SIM_LOSE, 1);
    EXPECT(remus_sim_file_size(sim, "/state/journal/f") == 0);
}

/* After a failed sync the data is clean, visible and lost. */
static void test_failed_sync(void)
{
    for (int loss = REMUS_SIM_LOSE; loss <= REMUS_SIM_REORDER; loss++) {
        fresh();
        int file = disk("/d", 4096);
        put(file, 'a', 100, 0);
        EXPECT(!strcmp(remus_sim_failed_op(sim), ""));
        remus_sim_fail_after(sim, 0, EIO);
        EXPECT(io->fdatasync(io, file) == -EIO);
        EXPECT(!strcmp(remus_sim_failed_op(sim), "fdatasync"));
        CHECK(io->fdatasync(io, file)); /* says 0 */
        put(file, 'b', 100, 1000);
        CHECK(io->fdatasync(io, file));
        remus_sim *other;
        CHECK(remus_sim_clone(sim, &other));
        remus_sim_kill(sim);
        EXPECT(all("/d", 'a', 100, 0));
        remus_sim_crash(sim, loss, 3);
        EXPECT(all("/d", 0, 100, 0) && all("/d", 'b', 100, 1000));
        remus_sim_free(sim);
        sim = other;
        io = remus_sim_io(sim);

        /* Where drop_cache works it shows the medium. */
        file = open_file("/d");
        put(file, 'c', 10, 50);
        CHECK(io->drop_cache(io, file));
        EXPECT(all("/d", 'a', 50, 0));
        remus_sim_drops_cache(sim, 1);
        CHECK(io->drop_cache(io, file));
        EXPECT(all("/d", 0, 50, 0) && all("/d", 'c', 10, 50));
        EXPECT(all("/d", 0, 40, 60) && all("/d", 'b', 100, 1000));
        remus_sim_crash(sim, REMUS_SIM_KEEP, 3);
        EXPECT(all("/d", 0, 50, 0) && all("/d", 'c', 10, 50));
    }
}

/* Data written again after a failed sync is as good as new. */
static void test_written_again_after_a_failed_sync(void)
{
    fresh();
    int file = disk("/d", 4096);
    put(file, 'a', 200, 0);
    remus_sim_fail_after(sim, 0, EIO);
    EXPECT(io->fdatasync(io, file) == -EIO);
    put(file, 'a', 100, 0);
    CHECK(io->fdatasync(io, file));
    remus_sim_crash(sim, REMUS_SIM_LOSE, 3);
    EXPECT(all("/d", 'a', 100, 0) && all("/d", 0, 100, 100));
}

static void test_stop(void)
{
    fresh();
    int file = disk("/d", 4096);
    put(file, 'a', 10, 0);
    uint64_t ops = remus_sim_ops(sim);
    remus_sim_stop_after(sim, 1);
    put(file, 'b', 10, 10);
    EXPECT(io->pwrite(io, file, "c", 1, 20) == -EIO);
    unsigned char c;
    EXPECT(io->pread(io, file, &c, 1, 0) == -EIO);
    EXPECT(io->fdatasync(io, file) == -EIO);
    EXPECT(io->zero(io, file, 0, 5) == -EIO);
    EXPECT(io->open(io, "/new", O_RDWR | O_CREAT) == -EIO);
    EXPECT(io->mkdir(io, "/dir") == -EIO);
    EXPECT(io->unlink(io, "/d") == -EIO);
    EXPECT(io->sync_dir(io, "/") == -EIO);
    EXPECT(io->lock(io, file) == -EIO);
    EXPECT(io->writeback(io, file, 0, 1) == -EIO);
    EXPECT(io->drop_cache(io, file) == -EIO);
    EXPECT(remus_sim_ops(sim) == ops + 1);
    EXPECT(all("/d", 'a', 10, 0) && all("/d", 'b', 10, 10));
    EXPECT(all("/d", 0, 1, 20));
    EXPECT(remus_sim_file_size(sim, "/new") == -ENOENT);
    CHECK(io->close(io, file)); /* frees the handle all the same */
    EXPECT(io->close(io, file) == -EBADF);
    remus_sim_kill(sim);
    EXPECT(all("/d", 'a', 10, 0) && all("/d", 'b', 10, 10));
    CHECK(io->open(io, "/d", O_RDWR)); /* and the world goes on */
    remus_sim_crash(sim, REMUS_SIM_KEEP, 0);
    EXPECT(all("/d", 'b', 10, 10)); /* the stopped sync did nothing */
}

static void test_fail_once(void)
{
    fresh();
    int file = disk("/d", 4096);
    remus_sim_fail_after(sim, 2, ENOSPC);
    put(file, 'a', 10, 0);
    put(file, 'a', 10, 10);
    EXPECT(io->pwrite(io, file, "b", 1, 0) == -ENOSPC);
    EXPECT(!strcmp(remus_sim_failed_op(sim), "pwrite"));
    EXPECT(all("/d", 'a', 20, 0));
    put(file, 'c', 1, 0);
    EXPECT(all("/d", 'c', 1, 0));
    remus_sim_fail_after(sim, 0, EIO);
    remus_sim_kill(sim); /* the fault was the process's */
    file = open_file("/d");
    put(file, 'd', 1, 0);
}

/* Handles and locks belong to one life of the process. */
static void test_handles_and_locks(void)
{
    fresh();
    int file = disk("/d", 4096);
    int again = open_file("/d");
    CHECK(io->lock(io, file));
    CHECK(io->lock(io, file));
    EXPECT(io->lock(io, again) == -EWOULDBLOCK);
    CHECK(io->close(io, file));
    CHECK(io->lock(io, again));
    for (int life = 0; life < 2; life++) {
        if (life)
            remus_sim_kill(sim);
        else
            remus_sim_crash(sim, REMUS_SIM_LOSE, 1);
        int now = open_file("/d");
        CHECK(io->lock(io, now));
        EXPECT(now != again);
        uint64_t size;
        EXPECT(io->pwrite(io, again, "x", 1, 0) == -EBADF);
        EXPECT(io->fdatasync(io, again) == -EBADF);
        EXPECT(io->size(io, again, &size) == -EBADF);
        EXPECT(io->close(io, again) == -EBADF);
        EXPECT(io->pwrite(io, -1, "x", 1, 0) == -EBADF);
        again = now;
    }
}

/* Locked files of the original are free in the copy, and nothing is shared. */
static void test_clone(void)
{
    fresh();
    int file = disk("/d", 4096);
    CHECK(io->lock(io, file));
    put(file, 'a', 100, 0);
    remus_sim *copy;
    CHECK(remus_sim_clone(sim, &copy));
    EXPECT(remus_sim_ops(copy) == remus_sim_ops(sim));
    remus_io *there = remus_sim_io(copy);
    EXPECT(there->pwrite(there, file, "x", 1, 0) == -EBADF);
    int twin = there->open(there, "/d", O_RDWR);
    CHECK(twin);
    CHECK(there->lock(there, twin));
    EXPECT(there->pwrite(there, twin, "x", 1, 0) == 1);
    EXPECT(all("/d", 'a', 100, 0));
    remus_sim_crash(copy, REMUS_SIM_LOSE, 1); /* its dirty data came along */
    unsigned char c = 1;
    CHECK(remus_sim_read(copy, "/d", &c, 1, 0));
    EXPECT(c == 0 && all("/d", 'a', 100, 0));
    remus_sim_free(copy);
}

/* What somebody else wrote stays, whatever was not synced. */
static void test_poke(void)
{
    for (int loss = REMUS_SIM_LOSE; loss <= REMUS_SIM_REORDER; loss++) {
        for (uint64_t seed = 0; seed < 8; seed++) {
            fresh();
            int file = disk("/d", 4096);
            put(file, 'a', 1000, 100);
            CHECK(remus_sim_poke(sim, "/d", "guest", 5, 498));
            CHECK(remus_sim_poke(sim, "/d", "guest", 5, 98));
            remus_sim_crash(sim, loss, seed);
            char got[5];
            CHECK(remus_sim_read(sim, "/d", got, 5, 498));
            EXPECT(!memcmp(got, "guest", 5));
            CHECK(remus_sim_read(sim, "/d", got, 5, 98));
            EXPECT(!memcmp(got, "guest", 5));
            EXPECT(remus_sim_poke(sim, "/d", "x", 1, 4096) == -EINVAL);
        }
    }
}

static void test_clock_and_random(void)
{
    fresh();
    EXPECT(io->now_ns(io) == 1000000000u);
    int file = disk("/d", 4096);
    put(file, 'a', 1, 0);
    EXPECT(io->now_ns(io) == 1000002000u && remus_sim_ops(sim) == 2);
    unsigned char a[16], b[16], c[16];
    CHECK(io->random(io, a, sizeof a));
    remus_sim_crash(sim, REMUS_SIM_LOSE, 1);
    CHECK(io->random(io, b, sizeof b));
    EXPECT(memcmp(a, b, sizeof a));
    fresh();
    CHECK(io->random(io, c, sizeof c));
    EXPECT(!memcmp(a, c, sizeof a));
}

static void *writer(void *arg)
{
    int file = *(int *)arg;
    for (int i = 0; i < 500; i++) {
        put(file, i & 0x7f, 700, (uint64_t)(i % 5) * 600);
        CHECK(io->fdatasync(io, file));
        uint64_t size;
        CHECK(io->size(io, file, &size));
    }
    return NULL;
}

static void test_threads(void)
{
    fresh();
    int file = disk("/d", 4096);
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        EXPECT(!pthread_create(&t[i], NULL, writer, &file));
    for (int i = 0; i < 4; i++)
        EXPECT(!pthread_join(t[i], NULL));
    EXPECT(remus_sim_ops(sim) == 1 + 4 * 500 * 2);
}

int main(void)
{
    test_reads_and_sizes();
    test_lose_and_keep();
    test_lost_growth_leaves_nothing();
    test_tear_and_reorder();
    test_order();
    test_same_seed_same_world();
    test_names();
    test_replaced_file();
    test_directories();
    test_failed_sync();
    test_written_again_after_a_failed_sync();
    test_stop();
    test_fail_once();
    test_handles_and_locks();
    test_clone();
    test_poke();
    test_clock_and_random();
    test_threads();
    remus_sim_free(sim);
    return 0;
}
