/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One operation of the I/O table fails, or every one from some moment on, on
 * one side or the other, at every moment of a run with checkpoints in turn.
 * Whatever it was: the guest's writes go on or are told, a side that can't go
 * on is in a named state, every acked checkpoint is there after a restart
 * with the fault mended, and both sides become equal again.
 */
#include <errno.h>
#include <stdatomic.h>
#include <time.h>

#include "pair.h"

#define SIZE (192u << 10)
#define ROUNDS 6
#define MOST_S 7 /* for each of the four sweeps, if not told otherwise */

struct faulty {
    remus_io io; /* first: the table is the handle */
    atomic_int armed;
    atomic_long left; /* operations until the fault */
    int for_good;     /* not once only */
    int err;
    atomic_uint hits;
};

static remus_io *real;
static struct faulty faults[2]; /* primary's, backup's */

/* 0, or the error that this operation meets. */
static int meet(remus_io *io)
{
    struct faulty *f = (struct faulty *)io;
    if (!atomic_load(&f->armed))
        return 0;
    long left = atomic_fetch_sub(&f->left, 1);
    if (left > 0 || (left < 0 && !f->for_good))
        return 0;
    atomic_fetch_add(&f->hits, 1);
    return -f->err;
}

static int bad_open(remus_io *io, const char *path, int flags)
{
    int err = meet(io);
    return err ? err : real->open(real, path, flags);
}

static ssize_t bad_pread(remus_io *io, int file, void *buf, size_t len,
                         uint64_t offset)
{
    int err = meet(io);
    return err ? err : real->pread(real, file, buf, len, offset);
}

/* A write that fails has written its first half. */
static ssize_t bad_pwrite(remus_io *io, int file, const void *buf, size_t len,
                          uint64_t offset)
{
    int err = meet(io);
    ssize_t done = real->pwrite(real, file, buf, err ? len / 2 : len, offset);
    return err ? err : done;
}

static int bad_zero(remus_io *io, int file, uint64_t offset, uint64_t len)
{
    int err = meet(io);
    int done = real->zero(real, file, offset, err ? len / 2 + 1 : len);
    return err ? err : done;
}

static int bad_fdatasync(remus_io *io, int file)
{
    int err = meet(io);
    return err ? err : real->fdatasync(real, file);
}

static int bad_sync_dir(remus_io *io, const char *path)
{
    int err = meet(io);
    return err ? err : real->sync_dir(real, path);
}

static int bad_writeback(remus_io *io, int file, uint64_t offset, uint64_t len)
{
    int err = meet(io);
    return err ? err : real->writeback(real, file, offset, len);
}

static void make_tables(void)
{
    real = remus_io_system();
    for (int s = 0; s < 2; s++) {
        struct faulty *f = &faults[s];
        f->io = *real;
        f->io.open = bad_open;
        f->io.pread = bad_pread;
        f->io.pwrite = bad_pwrite;
        f->io.zero = bad_zero;
        f->io.fdatasync = bad_fdatasync;
        f->io.sync_dir = bad_sync_dir;
        f->io.writeback = bad_writeback;
    }
}

/* What the primary's disks held at the newest acked checkpoint. */
struct acked {
    uint64_t epoch;
    unsigned char *disk[PAIR_VOLUMES];
};

static void remember(const struct pair *t, struct acked *a, uint64_t epoch)
{
    a->epoch = epoch;
    for (int i = 0; i < PAIR_VOLUMES; i++) {
        int fd = open(t->disk[0][i], O_RDONLY | O_CLOEXEC);
        EXPECT(read(fd, a->disk[i], SIZE) == SIZE);
        close(fd);
    }
}

/* Until it is in the backup's disks, or will not be. */
static void applied(struct pair *t, uint64_t epoch)
{
    struct remus_status s = REMUS_INIT(remus_status);
    for (int i = 0; i < 1000; i++) {
        CHECK(remus_backup_status(t->b, &s));
        if (s.applied_epoch >= epoch || s.state != REMUS_STATE_PROTECTED)
            return;
        usleep(1000);
    }
}

/* Writes and checkpoints, as far as they go. */
static void run(struct pair *t, struct acked *a)
{
    unsigned char buf[9000];
    for (unsigned int i = 0; i < ROUNDS; i++) {
        for (unsigned int k = 0; k < 5; k++) {
            unsigned int v = k % PAIR_VOLUMES;
            memset(buf, (int)(i * 16 + k + 1), sizeof buf);
            /* An error is told to the guest; the range is what it is. */
            (void)remus_primary_pwrite(t->p, v, buf, sizeof buf,
                                       (i * 37u + k * 11u) * 1000u % 150000u);
            (void)remus_primary_discard(t->p, v, i * 20000u, 7000);
        }
        (void)remus_primary_flush(t->p, 0);
        uint64_t epoch;
        if (remus_primary_postsuspend(t->p, NULL, 0, &epoch) < 0)
            continue;
        struct acked now = {.disk = {malloc(SIZE), malloc(SIZE)}};
        EXPECT(now.disk[0] && now.disk[1]);
        remember(t, &now, epoch);
        int rc = remus_primary_preresume(t->p, epoch, 20000);
        EXPECT(rc == 0 || rc == -EPROTO);
        if (!rc) {
            struct acked was = *a;
            *a = now;
            now = was;
            (void)remus_primary_commit(t->p, epoch);
            if (i % 3 == 2)
                applied(t, epoch);
        }
        free(now.disk[0]);
        free(now.disk[1]);
    }
}

/* The states are named, and say how to go on. */
static void look(struct pair *t)
{
    struct remus_status b = REMUS_INIT(remus_status), p = b;
    CHECK(remus_backup_status(t->b, &b));
    EXPECT(b.state == REMUS_STATE_FAILED || b.state == REMUS_STATE_PROTECTED ||
           b.state == REMUS_STATE_STANDBY ||
           b.state == REMUS_STATE_CATCHING_UP);
    if (b.state != REMUS_STATE_FAILED)
        return;
    EXPECT(strstr(b.reason, "repair that and restart this backup"));
    for (int i = 0; i < 10000; i++) {
        CHECK(remus_primary_status(t->p, &p));
        if (p.state == REMUS_STATE_UNPROTECTED)
            break;
        usleep(1000);
    }
    EXPECT(p.state == REMUS_STATE_UNPROTECTED);
    EXPECT(strlen(p.reason) > 20);
}

/* A new process of the backup: what was acked is there, or a later one. */
static void restart_backup(struct pair *t, const struct acked *a)
{
    struct remus_checkpoint cp[64] = {REMUS_INIT(remus_checkpoint)};
    remus_backup_close(t->b);
    pair_open_backup(t, NULL);
    int n = remus_backup_checkpoints(t->b, cp, 64);
    EXPECT(n > 0 && n <= 64);
    EXPECT(cp[n - 1].epoch >= a->epoch);
}

/* Fail over to it at once: byte for byte what the disks held. */
static void fail_over(struct pair *t, const struct acked *a)
{
    uint64_t got;
    remus_primary_close(t->p);
    restart_backup(t, a);
    CHECK(remus_backup_promote(t->b, REMUS_PROMOTE_EPOCH, a->epoch, NULL, 0, 1,
                               &got));
    remus_backup_close(t->b);
    for (int i = 0; i < PAIR_VOLUMES; i++) {
        int fd = open(t->disk[0][i], O_WRONLY | O_CLOEXEC);
        EXPECT(write(fd, a->disk[i], SIZE) == SIZE);
        close(fd);
        pair_same(t->disk[0][i], t->disk[1][i], SIZE);
    }
    pair_remove(t);
}

/* 0: the run ended before the fault. */
static unsigned int fail_at(int side, long k, int for_good, int err)
{
    struct pair t;
    struct faulty *f = &faults[side];
    struct acked a = {.disk = {malloc(SIZE), malloc(SIZE)}};
    EXPECT(a.disk[0] && a.disk[1]);
    pair_open(&t, SIZE, SIZE, &faults[0].io);
    remus_backup_close(t.b);
    pair_open_backup(&t, &faults[1].io);
    remember(&t, &a, pair_next_checkpoint(&t));
    f->for_good = for_good;
    f->err = err;
    atomic_store(&f->hits, 0);
    atomic_store(&f->left, k);
    atomic_store(&f->armed, 1);
    run(&t, &a);
    look(&t);
    unsigned int hits = atomic_load(&f->hits);
    /* Mended: from here on nothing fails. */
    atomic_store(&f->armed, 0);
    if (side == 1 && k % 2) {
        fail_over(&t, &a);
    } else {
        restart_backup(&t, &a);
        pair_prove_and_close(&t, pair_next_checkpoint(&t));
    }
    free(a.disk[0]);
    free(a.disk[1]);
    return hits;
}

/*
 * Moments spread evenly over a run, in an order such that whenever time is
 * up they were: a step of 1 / golden ratio.  Where it begins is printed.
 */
static void sweep(int side, int for_good, int err, int seconds, long start)
{
    time_t end = time(NULL) + seconds;
    unsigned int met = 0, tried = 0;
    const long total = side ? 110 : 75; /* operations of a run, about */
    for (; time(NULL) < end && tried < total; tried++)
        met += fail_at(side, (start + (long)tried * 89 * total / 144) % total,
                       for_good, err) > 0;
    printf("%s, %s, errno %d: the fault was met in %u of %u runs\n",
           side ? "backup" : "primary", for_good ? "for good" : "once", err,
           met, tried);
    EXPECT(met > tried / 3);
}

/* With a number: so many seconds for each sweep; with another: the start. */
int main(int argc, char **argv)
{
    int seconds = argc > 1 ? atoi(argv[1]) : MOST_S;
    long start = argc > 2 ? atol(argv[2]) : (long)(time(NULL) % 1000);
    printf("to see it again: test_io_errors %d %ld\n", seconds, start);
    fflush(stdout);
    make_tables();
    for (int side = 0; side < 2; side++) {
        sweep(side, 0, EIO, seconds, start);
        sweep(side, 1, side ? ENOSPC : EIO, seconds, start);
    }
    return 0;
}
