/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Writers, checkpoints and applies go on while both sides are compared: no
 * difference is found but those that are there.
 * Blocks of the backup's disk can't be read: a comparison names them, and
 * replication goes on; a repair writes them, which mends such a disk.  The
 * primary's own disk can't be read: the comparison ends, and nothing else.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "pair.h"

#define SIZE (1u << 20)
#define BLOCK 16384u

static remus_io table;
static remus_io *real;
static atomic_int bad_file = -1; /* whose ... */
static _Atomic uint64_t bad_at;  /* ... block here can't be read, */
static atomic_int written;       /* until it is written */

static int hits(int file, size_t len, uint64_t offset)
{
    return file == bad_file && !written && offset < bad_at + BLOCK &&
           offset + len > bad_at;
}

static ssize_t failing_pread(remus_io *io, int file, void *buf, size_t len,
                             uint64_t offset)
{
    (void)io;
    return hits(file, len, offset) ? -EIO
                                   : real->pread(real, file, buf, len, offset);
}

static ssize_t mending_pwrite(remus_io *io, int file, const void *buf,
                              size_t len, uint64_t offset)
{
    (void)io;
    if (hits(file, len, offset))
        written = 1;
    return real->pwrite(real, file, buf, len, offset);
}

/* The number of the open file on this disk. */
static int file_of(const char *path)
{
    struct stat want, st;
    CHECK(stat(path, &want));
    for (int fd = 3; fd < 256; fd++)
        if (!fstat(fd, &st) && st.st_ino == want.st_ino &&
            st.st_dev == want.st_dev)
            return fd;
    return -1;
}

/* A checkpoint that is in the backup's disks; its number. */
static uint64_t applied(struct pair *t)
{
    struct remus_status st = REMUS_INIT(remus_status);
    uint64_t epoch = pair_checkpoint(t);
    CHECK(remus_backup_status(t->b, &st));
    for (int i = 0; st.applied_epoch < epoch; i++) {
        EXPECT(i < 20000);
        poll(NULL, 0, 1);
        CHECK(remus_backup_status(t->b, &st));
    }
    return epoch;
}

static void backup_block(void)
{
    struct pair t;
    struct remus_verify found = REMUS_INIT(remus_verify);
    struct remus_status st = REMUS_INIT(remus_status);
    unsigned char buf[BLOCK];
    pair_open(&t, SIZE, SIZE, &table);
    remus_backup_close(t.b);
    pair_open_backup(&t, &table);
    CHECK(remus_primary_wait_protected(t.p, 20000));
    memset(buf, 'x', sizeof buf);
    for (uint64_t at = 0; at < SIZE; at += sizeof buf)
        CHECK(remus_primary_pwrite(t.p, 0, buf, sizeof buf, at));
    uint64_t epoch = applied(&t);
    bad_at = 5 * BLOCK;
    bad_file = file_of(t.disk[1][0]);
    EXPECT(bad_file >= 0);
    CHECK(remus_primary_verify(t.p, 0, 0, &found));
    EXPECT(found.complete && found.blocks_different == 1);
    EXPECT(found.different[0].volume == 0 &&
           found.different[0].offset == 5 * BLOCK);
    CHECK(remus_primary_verify(t.p, 1, 0, &found));
    EXPECT(found.bytes_repaired == BLOCK);
    epoch = applied(&t);
    EXPECT(written);
    CHECK(remus_primary_verify(t.p, 0, 0, &found));
    EXPECT(found.blocks_different == 0);
    CHECK(remus_primary_status(t.p, &st));
    EXPECT(st.state == REMUS_STATE_PROTECTED);
    bad_file = -1;
    pair_prove_and_close(&t, epoch);
}

static void primary_block(void)
{
    struct pair t;
    struct remus_verify found = REMUS_INIT(remus_verify);
    struct remus_status st = REMUS_INIT(remus_status);
    pair_open(&t, SIZE, SIZE, &table);
    bad_at = 7 * BLOCK;
    written = 0;
    bad_file = file_of(t.disk[0][1]);
    EXPECT(bad_file >= 0);
    EXPECT(remus_primary_verify(t.p, 1, 0, &found) == -EIO);
    EXPECT(strstr(remus_last_error(), "volume b"));
    EXPECT(!found.complete && !found.running);
    CHECK(remus_primary_status(t.p, &st));
    EXPECT(st.state == REMUS_STATE_PROTECTED);
    bad_file = -1;
    CHECK(remus_primary_verify(t.p, 1, 0, &found));
    EXPECT(found.complete && found.blocks_different == 0);
    pair_prove_and_close(&t, pair_checkpoint(&t));
}

struct load {
    struct pair *t;
    unsigned int seed;
    atomic_int *stop;
};

static void *write_main(void *arg)
{
    struct load *l = arg;
    unsigned char buf[20000];
    unsigned int rng = l->seed;
    while (!*l->stop) {
        size_t n = 1 + (size_t)rand_r(&rng) % sizeof buf;
        uint64_t at = (uint64_t)rand_r(&rng) % (SIZE - sizeof buf);
        unsigned int volume = (unsigned int)rand_r(&rng) % 2;
        memset(buf, rand_r(&rng), n);
        CHECK(rand_r(&rng) % 8
                  ? remus_primary_pwrite(l->t->p, volume, buf, n, at)
                  : remus_primary_discard(l->t->p, volume, at, n));
    }
    return NULL;
}

static void *checkpoint_main(void *arg)
{
    struct load *l = arg;
    while (!*l->stop)
        pair_checkpoint(l->t);
    return NULL;
}

static void under_load(void)
{
    struct pair t;
    struct remus_verify found = REMUS_INIT(remus_verify);
    atomic_int stop = 0;
    pthread_t thread[3];
    pair_open(&t, SIZE, SIZE, NULL);
    struct load load[3] = {{&t, 1, &stop}, {&t, 2, &stop}, {&t, 3, &stop}};
    for (int i = 0; i < 3; i++)
        CHECK(-pthread_create(&thread[i], NULL,
                              i < 2 ? write_main : checkpoint_main, &load[i]));
    for (int i = 0; i < 8; i++) {
        CHECK(remus_primary_verify(t.p, 0, 0, &found));
        EXPECT(found.complete);
        EXPECT(found.blocks_different == 0);
    }
    stop = 1;
    for (int i = 0; i < 3; i++)
        pthread_join(thread[i], NULL);
    pair_prove_and_close(&t, pair_checkpoint(&t));
}

int main(void)
{
    real = remus_io_system();
    table = *real;
    table.pread = failing_pread;
    table.pwrite = mending_pwrite;
    under_load();
    backup_block();
    primary_block();
    return 0;
}
