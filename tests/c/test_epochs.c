/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Epoch statistics: buckets, ring, what becomes known later, files that are
 * no such files, a writer that is killed, and readers beside a writer that
 * never pauses.  tests/unit/test_epochs.py has quantiles and the file's bytes.
 */
#include <errno.h>
#include <pthread.h>
#include <linux/magic.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include "stats/epochs.h"
#include "pair.h"

static char dir[64], path[80];
static int linked; /* `path` is on a disk: a link while the writer lives */

/* A sample whose every field follows from its number. */
static struct remus_epoch_sample sample_of(uint64_t n)
{
    return (struct remus_epoch_sample){
        .epoch = n,
        .start_ns = n * 1000003,
        .barrier_ns = n % 977,
        .ack_ns = n * 7 % 100003,
        .bytes = n << 20,
        .extents = n % 3 ? n + 5 : 0,
        .coalesced = n % 3 ? n * 11 : 0,
        .result = n % 16 == 9 ? -ETIMEDOUT : 0,
        .flags = (uint32_t)n,
    };
}

static int same(const struct remus_epoch_sample *a, uint64_t n)
{
    struct remus_epoch_sample b = sample_of(n);
    b.commit_ns = a->commit_ns;
    return memcmp(a, &b, sizeof b) == 0 &&
           (a->commit_ns == 0 || a->commit_ns == n + 1);
}

static void add(remus_epochs *e, uint64_t n)
{
    struct remus_epoch_sample s = sample_of(n);
    remus_epochs_add(e, &s);
}

/* ---- one thread ---------------------------------------------------------- */

static void check_buckets(void)
{
    EXPECT(remus_epochs_bucket_low(0) == 0);
    EXPECT(remus_epochs_bucket_high(REMUS_EPOCHS_BUCKETS - 1) == UINT64_MAX);
    for (unsigned int i = 0; i < REMUS_EPOCHS_BUCKETS; i++) {
        uint64_t low = remus_epochs_bucket_low(i);
        uint64_t high = remus_epochs_bucket_high(i);
        EXPECT(remus_epochs_bucket_of(low) == i);
        EXPECT(remus_epochs_bucket_of(high) == i);
        EXPECT(i + 1 == REMUS_EPOCHS_BUCKETS ||
               remus_epochs_bucket_low(i + 1) == high + 1);
        EXPECT((high - low) <= low / 64);
    }
}

static void check_ring(void)
{
    static struct remus_epoch_sample out[REMUS_EPOCHS_RING];
    remus_epochs *e;
    uint64_t next, lost;
    CHECK(remus_epochs_create(NULL, "guest0", &e));
    EXPECT(remus_epochs_read(e, 0, out, 10, &next, &lost) == 0);
    EXPECT(next == 0 && lost == 0);
    const uint64_t all = 3 * REMUS_EPOCHS_RING + 17;
    for (uint64_t n = 1; n <= all; n++) {
        add(e, n);
        EXPECT(remus_epochs_read(e, n - 1, out, 10, &next, &lost) == 1);
        EXPECT(next == n && lost == 0 && same(out, n));
        if (n % 2)
            remus_epochs_committed(e, n, n + 1);
    }
    EXPECT(remus_epochs_read(e, 0, out, UINT32_MAX, &next, &lost) ==
           REMUS_EPOCHS_RING);
    EXPECT(next == all && lost == all - REMUS_EPOCHS_RING);
    for (uint64_t i = 0; i < REMUS_EPOCHS_RING; i++) {
        uint64_t n = all - REMUS_EPOCHS_RING + 1 + i;
        EXPECT(same(&out[i], n));
        EXPECT((out[i].commit_ns != 0) == (n % 2 == 1));
    }
    EXPECT(remus_epochs_read(e, all - 5, out, 2, &next, &lost) == 2);
    EXPECT(next == all - 3 && lost == 0 && same(out, all - 4));
    EXPECT(remus_epochs_read(e, UINT64_MAX, out, 2, &next, &lost) == 0);
    EXPECT(next == all && lost == 0);
    EXPECT(remus_epochs_read(e, all, NULL, 0, &next, &lost) == 0);
    remus_epochs_close(e);
}

static uint64_t count_of(remus_epochs *e, int series)
{
    struct remus_series_summary s = REMUS_INIT(remus_series_summary);
    CHECK(remus_epochs_summary(e, series, &s));
    return s.count;
}

static void check_later(void)
{
    remus_epochs *e;
    struct remus_epoch_sample s[2];
    uint64_t next, lost;
    CHECK(remus_epochs_create(NULL, "guest0", &e));
    for (uint64_t n = 3; n <= 2 * REMUS_EPOCHS_RING; n += 3)
        add(e, n); /* extents unknown; every sixteenth failed */
    uint64_t good = count_of(e, REMUS_SERIES_ACK);
    struct remus_epochs_info info = REMUS_INIT(remus_epochs_info);
    CHECK(remus_epochs_info(e, &info));
    EXPECT(info.failed && info.failed + good == info.added);
    EXPECT(info.writing && !info.closed && info.this_boot);
    EXPECT(info.pid == getpid() && strcmp(info.name, "guest0") == 0);
    EXPECT(count_of(e, REMUS_SERIES_EXTENTS) == 0);
    remus_epochs_measured(e, 33, 0, 7); /* nothing is known */
    remus_epochs_measured(e, 33, 40, 50);
    remus_epochs_measured(e, 33, 41, 51); /* known already */
    remus_epochs_measured(e, 34, 41, 51); /* no such epoch */
    remus_epochs_measured(e, 9, 41, 51);  /* failed: in no series */
    remus_epochs_committed(e, 33, 0);
    remus_epochs_committed(e, 33, 9);
    remus_epochs_committed(e, 9, 9);
    EXPECT(count_of(e, REMUS_SERIES_EXTENTS) == 1);
    EXPECT(count_of(e, REMUS_SERIES_COALESCED) == 1);
    EXPECT(count_of(e, REMUS_SERIES_COMMIT) == 1);
    EXPECT(remus_epochs_read(e, 10, s, 1, &next, &lost) == 1);
    EXPECT(s->epoch == 33 && s->extents == 40 && s->coalesced == 50);
    EXPECT(s->commit_ns == 1);
    EXPECT(remus_epochs_read(e, 2, s, 1, &next, &lost) == 1);
    EXPECT(s->epoch == 9 && s->result == -ETIMEDOUT && s->extents == 41);
    EXPECT(s->commit_ns == 9);
    remus_epochs_close(e);
}

static void check_sums(void)
{
    remus_epochs *e;
    struct remus_series_summary s = REMUS_INIT(remus_series_summary);
    struct remus_epochs_bucket b[3];
    CHECK(remus_epochs_create(NULL, "guest0", &e));
    EXPECT(remus_epochs_summary(e, REMUS_SERIES_COUNT, &s) == -EINVAL);
    EXPECT(remus_epochs_histogram(e, -1, b, 3) == -EINVAL);
    CHECK(remus_epochs_summary(e, REMUS_SERIES_BYTES, &s));
    EXPECT(!s.count && !s.min && !s.max && !s.mean && !s.p50 && !s.p999);
    /* The sum needs more than 64 bits, the pause does not fit into them. */
    for (uint64_t n = 1; n <= 5; n++) {
        struct remus_epoch_sample x = {.epoch = n,
                                       .barrier_ns = UINT64_MAX - n,
                                       .ack_ns = UINT64_MAX,
                                       .bytes = n % 2};
        remus_epochs_add(e, &x);
    }
    CHECK(remus_epochs_summary(e, REMUS_SERIES_BARRIER, &s));
    EXPECT(s.count == 5 && s.mean == UINT64_MAX - 3);
    EXPECT(s.total == UINT64_MAX);
    EXPECT(s.min == UINT64_MAX - 5 && s.max == UINT64_MAX - 1);
    CHECK(remus_epochs_summary(e, REMUS_SERIES_PAUSE, &s));
    EXPECT(s.min == UINT64_MAX && s.mean == UINT64_MAX);
    EXPECT(remus_epochs_histogram(e, REMUS_SERIES_BYTES, b, 1) == 2);
    EXPECT(b[0].low == 0 && b[0].high == 0 && b[0].count == 2);
    EXPECT(remus_epochs_histogram(e, REMUS_SERIES_BYTES, b, 3) == 2);
    EXPECT(b[1].low == 1 && b[1].high == 1 && b[1].count == 3);
    remus_epochs_close(e);
}

/* ---- files --------------------------------------------------------------- */

static unsigned char *whole_file(const char *name, int *fd)
{
    *fd = open(name, O_RDWR | O_CLOEXEC);
    CHECK(*fd);
    void *p = mmap(NULL, REMUS_EPOCHS_BYTES, PROT_READ | PROT_WRITE,
                   MAP_SHARED, *fd, 0);
    EXPECT(p != MAP_FAILED);
    return p;
}

static void check_foreign(void)
{
    remus_epochs *e;
    int fd;
    unlink(path);
    EXPECT(remus_epochs_attach(path, &e) == -ENOENT);
    EXPECT(remus_epochs_attach(dir, &e) == -EBADMSG);
    CHECK(mkfifo(path, 0600));
    EXPECT(remus_epochs_attach(path, &e) == -EBADMSG);
    EXPECT(remus_epochs_create("/nowhere/at/all", "x", &e) == -ENOENT);
    EXPECT(remus_epochs_create(dir, "x", &e) == -EISDIR);
    EXPECT(remus_epochs_create(path, "", &e) == -EINVAL);
    CHECK(remus_epochs_create(path, "guest0", &e)); /* over the FIFO */
    struct stat st;
    CHECK(stat(path, &st));
    EXPECT((st.st_mode & 07777) == 0600);
    EXPECT(st.st_blocks * 512 >= (off_t)REMUS_EPOCHS_BYTES);
    CHECK(lstat(path, &st));
    EXPECT(S_ISLNK(st.st_mode) == linked);
    remus_epochs_close(e);
    CHECK(lstat(path, &st));
    EXPECT(S_ISREG(st.st_mode) && (st.st_mode & 07777) == 0600);

    unsigned char *p = whole_file(path, &fd);
    for (unsigned int i = 0; i < REMUS_EPOCHS_CRC_AT + 4; i++) {
        p[i] ^= 0x10;
        EXPECT(remus_epochs_attach(path, &e) == -EBADMSG);
        p[i] ^= 0x10;
    }
    CHECK(remus_epochs_attach(path, &e));
    add(e, 1); /* not ours to write: nothing happens */
    remus_epochs_committed(e, 1, 1);
    remus_epochs_measured(e, 1, 1, 1);
    EXPECT(count_of(e, REMUS_SERIES_ACK) == 0);
    remus_epochs_close(e);
    CHECK(ftruncate(fd, REMUS_EPOCHS_BYTES - 1));
    EXPECT(remus_epochs_attach(path, &e) == -EBADMSG);
    CHECK(ftruncate(fd, 0));
    EXPECT(remus_epochs_attach(path, &e) == -EBADMSG);
    munmap(p, REMUS_EPOCHS_BYTES);
    close(fd);
}

/* A writer that starts again takes the name, not the readers. */
static void check_replaced(void)
{
    remus_epochs *one, *two, *reader, *later;
    struct remus_epochs_info info = REMUS_INIT(remus_epochs_info);
    CHECK(remus_epochs_create(path, "one", &one));
    CHECK(remus_epochs_attach(path, &reader));
    add(one, 1);
    CHECK(remus_epochs_create(path, "two", &two));
    add(one, 2);
    CHECK(remus_epochs_info(reader, &info));
    EXPECT(info.writing && info.added == 2 && strcmp(info.name, "one") == 0);
    remus_epochs_close(one);
    CHECK(remus_epochs_info(reader, &info));
    EXPECT(!info.writing && info.closed && info.added == 2);
    CHECK(remus_epochs_attach(path, &later));
    CHECK(remus_epochs_info(later, &info));
    EXPECT(info.writing && info.added == 0 && strcmp(info.name, "two") == 0);
    remus_epochs_close(reader);
    remus_epochs_close(later);
    remus_epochs_close(two);
}

/* What a writer leaves that died half-way through a slot, or a series. */
static void check_half(void)
{
    static struct remus_epoch_sample out[REMUS_EPOCHS_RING];
    remus_epochs *e, *reader;
    uint64_t next, lost;
    int fd;
    CHECK(remus_epochs_create(path, "guest0", &e));
    for (uint64_t n = 1; n <= REMUS_EPOCHS_RING + 10; n++)
        add(e, n);
    remus_epochs_close(e);
    unsigned char *p = whole_file(path, &fd);
    uint64_t odd = 2 * (REMUS_EPOCHS_RING + 10) + 1;
    memcpy(p + REMUS_EPOCHS_RING_AT + 10 * REMUS_EPOCHS_SLOT, &odd, 8);
    for (int i = 0; i < REMUS_SERIES_COUNT; i++)
        p[REMUS_EPOCHS_SERIES_AT + (unsigned int)i * REMUS_EPOCHS_SERIES] |= 1;
    CHECK(remus_epochs_attach(path, &reader));
    EXPECT(remus_epochs_read(reader, 0, out, REMUS_EPOCHS_RING, &next,
                             &lost) == REMUS_EPOCHS_RING - 1);
    EXPECT(next == REMUS_EPOCHS_RING + 10 && lost == 11);
    EXPECT(same(out, 12));
    for (int i = 0; i < REMUS_SERIES_COUNT; i++)
        EXPECT((count_of(reader, i) != 0) == (i != REMUS_SERIES_COMMIT));
    remus_epochs_close(reader);
    munmap(p, REMUS_EPOCHS_BYTES);
    close(fd);
}

/* ---- another process ----------------------------------------------------- */

static _Noreturn void write_for_ever(int ready)
{
    remus_epochs *e;
    CHECK(remus_epochs_create(path, "writer", &e));
    EXPECT(write(ready, "x", 1) == 1);
    for (uint64_t n = 1;; n++) {
        add(e, n);
        remus_epochs_committed(e, n, n + 1);
    }
}

/* Read on from *at; checks each sample; how many were whole. */
static uint64_t follow(remus_epochs *e, uint64_t *at, uint64_t *lost)
{
    struct remus_epoch_sample out[64];
    uint64_t next, missed;
    int n = remus_epochs_read(e, *at, out, 64, &next, &missed);
    CHECK(n);
    EXPECT(next == *at + (uint64_t)n + missed);
    for (int i = 0; i < n; i++) {
        EXPECT(out[i].epoch > *at && out[i].epoch <= next);
        EXPECT(same(&out[i], out[i].epoch));
        EXPECT(!i || out[i].epoch > out[i - 1].epoch);
    }
    *at = next;
    *lost += missed;
    return (uint64_t)n;
}

static void check_series(remus_epochs *e, int series)
{
    struct remus_series_summary s = REMUS_INIT(remus_series_summary);
    CHECK(remus_epochs_summary(e, series, &s));
    if (!s.count)
        return;
    EXPECT(s.min <= s.p50 && s.p50 <= s.p90 && s.p90 <= s.p99);
    EXPECT(s.p99 <= s.p999 && s.p999 <= s.max);
    EXPECT(s.min <= s.mean && s.mean <= s.max);
}

static void check_killed(void)
{
    for (int round = 0; round < 20; round++) {
        int ready[2], status;
        char c;
        unlink(path);
        CHECK(pipe(ready));
        pid_t child = fork();
        CHECK(child);
        if (!child) {
            prctl(PR_SET_PDEATHSIG, SIGKILL); /* if a check here fails */
            write_for_ever(ready[1]);
        }
        EXPECT(read(ready[0], &c, 1) == 1);
        remus_epochs *e;
        struct remus_epochs_info info = REMUS_INIT(remus_epochs_info);
        uint64_t at = 0, lost = 0, whole = 0;
        CHECK(remus_epochs_attach(path, &e));
        CHECK(remus_epochs_info(e, &info));
        EXPECT(info.writing && info.pid == child);
        while (whole < 500 || at < 3 * REMUS_EPOCHS_RING) {
            whole += follow(e, &at, &lost);
            check_series(e, (int)(at % REMUS_SERIES_COUNT));
        }
        CHECK(kill(child, SIGKILL));
        EXPECT(waitpid(child, &status, 0) == child);
        /* Wherever it was: readers, old and new, find the rest. */
        CHECK(remus_epochs_info(e, &info));
        EXPECT(!info.writing && !info.closed);
        remus_epochs *late;
        if (linked) {
            EXPECT(remus_epochs_attach(path, &late) == -ENOENT);
            EXPECT(strstr(remus_last_error(), "died without closing"));
        } else {
            CHECK(remus_epochs_attach(path, &late));
            remus_epochs_close(e);
            e = late;
        }
        at = lost = whole = 0;
        while (at < info.added)
            whole += follow(e, &at, &lost);
        EXPECT(at == info.added && whole + lost == info.added);
        EXPECT(whole == REMUS_EPOCHS_RING || whole == REMUS_EPOCHS_RING - 1);
        for (int i = 0; i < REMUS_SERIES_COUNT; i++)
            check_series(e, i);
        uint64_t acks = count_of(e, REMUS_SERIES_ACK);
        EXPECT(acks + info.failed - info.added <= 1);
        remus_epochs_close(e);
        close(ready[0]);
        close(ready[1]);
    }
}

/* ---- threads ------------------------------------------------------------- */

static atomic_int stop;
#define READERS 3
#ifdef __SANITIZE_THREAD__
#define EPOCHS 50000u
#else
#define EPOCHS 400000u
#endif

static void *reader_main(void *arg)
{
    remus_epochs *e = arg;
    uint64_t at = 0, lost = 0, whole = 0;
    struct remus_epochs_bucket b[8];
    for (int last = 0; !last;) {
        last = atomic_load(&stop);
        uint64_t before = at;
        while (whole += follow(e, &at, &lost), at != before)
            before = at;
        check_series(e, (int)(whole % REMUS_SERIES_COUNT));
        CHECK(remus_epochs_histogram(e, REMUS_SERIES_ACK, b, 8));
    }
    EXPECT(at == EPOCHS && whole + lost == EPOCHS);
    EXPECT(whole >= REMUS_EPOCHS_RING);
    return NULL;
}

/* Where the writer is next: each of these samples is being overwritten. */
static void *edge_main(void *arg)
{
    struct remus_epoch_sample out[4];
    uint64_t next, missed, whole = 0;
    while (!atomic_load(&stop)) {
        int n = remus_epochs_read(arg, 0, out, 4, &next, &missed);
        for (int i = 0; i < n; i++)
            EXPECT(same(&out[i], out[i].epoch));
        whole += (uint64_t)n;
    }
    EXPECT(whole);
    return NULL;
}

static void check_threads(void)
{
    remus_epochs *e, *r;
    pthread_t threads[READERS], edge;
    atomic_store(&stop, 0);
    CHECK(remus_epochs_create(path, "guest0", &e));
    CHECK(remus_epochs_attach(path, &r));
    for (int i = 0; i < READERS; i++)
        EXPECT(!pthread_create(&threads[i], NULL, reader_main, i ? e : r));
    EXPECT(!pthread_create(&edge, NULL, edge_main, r));
    for (uint64_t n = 1; n <= EPOCHS; n++) {
        add(e, n);
        remus_epochs_committed(e, n - n % 3, n - n % 3 + 1);
    }
    atomic_store(&stop, 1);
    pthread_join(edge, NULL);
    for (int i = 0; i < READERS; i++)
        pthread_join(threads[i], NULL);
    uint64_t good = 0, known = 0;
    for (uint64_t n = 1; n <= EPOCHS; n++) {
        struct remus_epoch_sample s = sample_of(n);
        good += !s.result;
        known += !s.result && s.extents;
    }
    EXPECT(count_of(e, REMUS_SERIES_PAUSE) == good);
    EXPECT(count_of(r, REMUS_SERIES_COALESCED) == known);
    remus_epochs_close(e);
    remus_epochs_close(r);
}

#define PACED 2000u
static uint64_t sums[PACED + 1]; /* of `bytes`, of so many good epochs */

static void *sums_main(void *arg)
{
    struct remus_series_summary s = REMUS_INIT(remus_series_summary);
    uint64_t looks = 0;
    for (; !atomic_load(&stop); looks++) {
        CHECK(remus_epochs_summary(arg, REMUS_SERIES_BYTES, &s));
        EXPECT(s.total == sums[s.count]);
    }
    EXPECT(looks > PACED / 4);
    return NULL;
}

/* A series is seen at one moment, beside a writer that pauses as one does. */
static void check_moments(void)
{
    remus_epochs *e;
    pthread_t reader;
    uint64_t good = 0;
    for (uint64_t n = 1; n <= PACED; n++) {
        struct remus_epoch_sample s = sample_of(n);
        if (s.result)
            continue;
        sums[good + 1] = sums[good] + s.bytes;
        good++;
    }
    CHECK(remus_epochs_create(NULL, "guest0", &e));
    atomic_store(&stop, 0);
    EXPECT(!pthread_create(&reader, NULL, sums_main, e));
    for (uint64_t n = 1; n <= PACED; n++) {
        add(e, n);
        usleep(500); /* faster than any toolstack */
    }
    atomic_store(&stop, 1);
    pthread_join(reader, NULL);
    EXPECT(count_of(e, REMUS_SERIES_BYTES) == good);
    remus_epochs_close(e);
}

static void check_files(const char *where, int is_disk)
{
    snprintf(dir, sizeof dir, "%s/remus-epochs-XXXXXX", where);
    EXPECT(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/epochs", dir);
    linked = is_disk;
    check_foreign();
    check_replaced();
    check_half();
    check_killed();
    check_threads();
    /* No temporary file is left. */
    CHECK(unlink(path));
    CHECK(rmdir(dir));
}

/* The directories to test in: one in memory, one that is not. */
static int is_memory(const char *where)
{
    struct statfs fs;
    return statfs(where, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
}

int main(void)
{
    static const char *const disks[] = {"/tmp", "/var/tmp", "."};
    check_buckets();
    check_ring();
    check_later();
    check_sums();
    check_moments();
    if (is_memory("/dev/shm"))
        check_files("/dev/shm", 0);
    for (size_t i = 0; i < sizeof disks / sizeof *disks; i++)
        if (!is_memory(disks[i])) {
            check_files(disks[i], 1);
            return 0;
        }
    return 0;
}
