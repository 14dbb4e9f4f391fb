/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The primary's own disk fails: the guest is told, both sides agree on what
 * the disk holds now, or replication ends in a named state.
 */
#include <errno.h>
#include <stdatomic.h>

#include "pair.h"

#define SIZE (256u << 10)

static remus_io table;
static remus_io *real;
static atomic_int fail_writes, fail_reads, fail_syncs; /* how many more */

/* A write that fails has written its first half. */
static ssize_t failing_pwrite(remus_io *io, int file, const void *buf,
                              size_t len, uint64_t offset)
{
    (void)io;
    if (atomic_load(&fail_writes) > 0) {
        atomic_fetch_sub(&fail_writes, 1);
        real->pwrite(real, file, buf, len / 2, offset);
        return -EIO;
    }
    return real->pwrite(real, file, buf, len, offset);
}

static ssize_t failing_pread(remus_io *io, int file, void *buf, size_t len,
                             uint64_t offset)
{
    (void)io;
    if (atomic_load(&fail_reads) > 0) {
        atomic_fetch_sub(&fail_reads, 1);
        return -EIO;
    }
    return real->pread(real, file, buf, len, offset);
}

static int failing_zero(remus_io *io, int file, uint64_t offset, uint64_t len)
{
    (void)io;
    if (atomic_load(&fail_writes) > 0) {
        atomic_fetch_sub(&fail_writes, 1);
        real->zero(real, file, offset, len / 2);
        return -EIO;
    }
    return real->zero(real, file, offset, len);
}

/* A sync that fails has lost what was written at the beginning. */
static int failing_fdatasync(remus_io *io, int file)
{
    static const char lost[10000];
    uint64_t size;
    (void)io;
    CHECK(real->size(real, file, &size));
    if (size == SIZE && atomic_load(&fail_syncs) > 0) {
        atomic_fetch_sub(&fail_syncs, 1);
        real->pwrite(real, file, lost, sizeof lost, 0);
        return -EIO;
    }
    return real->fdatasync(real, file);
}

static void fill(struct pair *t)
{
    unsigned char *buf = malloc(65536);
    EXPECT(buf);
    for (unsigned int i = 0; i < 4; i++) {
        memset(buf, (int)('A' + i), 65536);
        CHECK(remus_primary_pwrite(t->p, 0, buf, 65536, i * 65536u));
    }
    free(buf);
}

static void agree_after_a_torn_write(void)
{
    struct pair t;
    unsigned char buf[10000];
    pair_open(&t, SIZE, SIZE, &table);
    fill(&t);
    memset(buf, 'x', sizeof buf);
    atomic_store(&fail_writes, 1);
    EXPECT(remus_primary_pwrite(t.p, 0, buf, sizeof buf, 1000) == -EIO);
    EXPECT(strstr(remus_last_error(), "volume a"));
    atomic_store(&fail_writes, 1);
    EXPECT(remus_primary_discard(t.p, 0, 70000, 9000) == -EIO);
    struct remus_status s = REMUS_INIT(remus_status);
    CHECK(remus_primary_status(t.p, &s));
    EXPECT(s.state == REMUS_STATE_PROTECTED);
    CHECK(remus_primary_pread(t.p, 0, buf, 10, 1000));
    EXPECT(!memcmp(buf, "xxxxxxxxxx", 10));
    pair_prove_and_close(&t, pair_checkpoint(&t));
}

static void end_where_the_range_can_not_be_read(void)
{
    struct pair t;
    unsigned char buf[4096] = {1};
    pair_open(&t, SIZE, SIZE, &table);
    fill(&t);
    uint64_t safe = pair_checkpoint(&t);
    atomic_store(&fail_writes, 1);
    atomic_store(&fail_reads, 1);
    EXPECT(remus_primary_pwrite(t.p, 0, buf, sizeof buf, 0) == -EIO);
    struct remus_status s = REMUS_INIT(remus_status);
    CHECK(remus_primary_status(t.p, &s));
    EXPECT(s.state == REMUS_STATE_UNPROTECTED);
    EXPECT(strstr(s.reason, "can't be read back"));
    uint64_t epoch;
    EXPECT(remus_primary_postsuspend(t.p, NULL, 0, &epoch) == -EPROTO);
    /* The guest goes on, and the backup has its last checkpoint. */
    CHECK(remus_primary_pwrite(t.p, 0, "AAAA", 4, 0));
    memset(buf, 'A', sizeof buf);
    CHECK(remus_primary_pwrite(t.p, 0, buf, sizeof buf, 0));
    pair_prove_and_close(&t, safe);
}

/* The disk holds something else by now: so shall the backup. */
static void agree_after_a_failed_sync(int at_close)
{
    struct pair t;
    struct remus_status s = REMUS_INIT(remus_status);
    unsigned char buf[10000], zeros[10000] = {0};
    pair_open(&t, SIZE, SIZE, &table);
    fill(&t);
    pair_checkpoint(&t);
    pair_checkpoint(&t);
    usleep(300000); /* the map forgets what is stable */
    atomic_store(&fail_syncs, 1);
    if (at_close) {
        remus_primary_close(t.p);
        pair_open_primary(&t, &table);
    } else {
        EXPECT(remus_primary_flush(t.p, 0) == -EIO);
        CHECK(remus_primary_status(t.p, &s));
        EXPECT(s.state != REMUS_STATE_PROTECTED);
        EXPECT(strstr(s.reason, "volume a: sync"));
    }
    uint64_t epoch = pair_next_checkpoint(&t);
    CHECK(remus_primary_pread(t.p, 0, buf, sizeof buf, 0));
    EXPECT(!memcmp(buf, zeros, sizeof buf));
    pair_prove_and_close(&t, epoch);
}

int main(void)
{
    real = remus_io_system();
    table = *real;
    table.pwrite = failing_pwrite;
    table.pread = failing_pread;
    table.zero = failing_zero;
    table.fdatasync = failing_fdatasync;
    agree_after_a_torn_write();
    end_where_the_range_can_not_be_read();
    agree_after_a_failed_sync(0);
    agree_after_a_failed_sync(1);
    return 0;
}
