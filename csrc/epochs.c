/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Epoch statistics; the layout and the rules of access are in epochs.h. */
#include "epochs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "record.h"

typedef unsigned long long ull;

/* A handle.  Constant from create or attach to close: no lock. */
struct remus_epochs {
    unsigned char *base; /* the mapping, REMUS_EPOCHS_BYTES */
    int fd;              /* holds (writer) or asks for the lock; -1: memory */
    int writer;          /* may write to the mapping */
};

/* Attempts at a consistent look at a series before it is taken as it is. */
#define LOOKS 64

static remus_word *words_at(const remus_epochs *e, uint64_t offset)
{
    return (remus_word *)(void *)(e->base + offset);
}

static remus_word *header_words(const remus_epochs *e)
{
    return words_at(e, REMUS_EPOCHS_WORDS_AT);
}

static remus_word *slot_words(const remus_epochs *e, uint64_t position)
{
    return words_at(e, REMUS_EPOCHS_RING_AT +
                           position % REMUS_EPOCHS_RING * REMUS_EPOCHS_SLOT);
}

static remus_word *series_words(const remus_epochs *e, int series)
{
    return words_at(e, REMUS_EPOCHS_SERIES_AT +
                           (uint64_t)series * REMUS_EPOCHS_SERIES);
}

/* The writer's own view of a word: nobody else changes it. */
static uint64_t own(const remus_word *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static uint64_t get(const remus_word *word)
{
    return atomic_load_explicit(word, memory_order_acquire);
}

static void put(remus_word *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_release);
}

static void put_early(remus_word *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

/* ---- create, attach, close ------------------------------------------------- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The id of this start of the kernel; zeroes if it can't be had. */
static void boot_id(unsigned char id[16])
{
    char text[64];
    memset(id, 0, 16);
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t n = read(fd, text, sizeof text);
    close(fd);
    unsigned int digits = 0;
    for (ssize_t i = 0; i < n && digits < 32; i++) {
        int digit = hex_digit(text[i]);
        if (digit < 0)
            continue;
        id[digits / 2] = (unsigned char)(id[digits / 2] << 4 | digit);
        digits++;
    }
}

/* What a new mapping, all zeroes, holds before its first sample. */
static void prepare(remus_epochs *e, const char *name)
{
    unsigned char *p = e->base;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    for (int series = 0; series < REMUS_SERIES_COUNT; series++)
        put_early(&series_words(e, series)[REMUS_HW_MIN], UINT64_MAX);
    remus_put32(p, REMUS_EPOCHS_MAGIC);
    remus_put32(p + 4, REMUS_EPOCHS_VERSION);
    remus_put64(p + 8, REMUS_EPOCHS_BYTES);
    remus_put32(p + 16, REMUS_EPOCHS_RING);
    remus_put32(p + 20, REMUS_EPOCHS_SLOT);
    remus_put32(p + 24, REMUS_SERIES_COUNT);
    remus_put32(p + 28, REMUS_EPOCHS_BUCKETS);
    remus_put32(p + 32, REMUS_EPOCHS_RING_AT);
    remus_put32(p + 36, REMUS_EPOCHS_SERIES_AT);
    remus_put32(p + 40, REMUS_EPOCHS_SERIES);
    remus_put32(p + 44, REMUS_EPOCHS_SUB_BITS);
    remus_put64(p + 48, (uint64_t)now.tv_sec * 1000000000u +
                            (uint64_t)now.tv_nsec);
    remus_put64(p + 56, (uint64_t)getpid());
    boot_id(p + 64);
    memcpy(p + 80, name, strlen(name));
    remus_put32(p + REMUS_EPOCHS_CRC_AT,
                remus_crc32c(0, p, REMUS_EPOCHS_CRC_AT));
}

static int map(remus_epochs *e, int writable)
{
    int prot = PROT_READ | (writable ? PROT_WRITE : 0);
    /* Shared also without a file: a private one would be copied page by
     * page, in the middle of epochs, after a fork of the caller's. */
    int flags = MAP_SHARED | (e->fd < 0 ? MAP_ANONYMOUS : 0);
    if (writable)
        flags |= MAP_POPULATE;
    void *base = mmap(NULL, REMUS_EPOCHS_BYTES, prot, flags, e->fd, 0);
    if (base == MAP_FAILED)
        return -errno;
    e->base = base;
    return 0;
}

/* A new file under a name of its own, complete and locked. */
static int make_file(remus_epochs *e, char *path, const char *name)
{
    e->fd = mkostemp(path, O_CLOEXEC);
    if (e->fd < 0)
        return -errno;
    int err = -posix_fallocate(e->fd, 0, REMUS_EPOCHS_BYTES);
    if (!err && flock(e->fd, LOCK_EX | LOCK_NB))
        err = -errno;
    if (!err)
        err = map(e, 1);
    if (!err)
        prepare(e, name);
    return err;
}

static int create_file(remus_epochs *e, const char *path, const char *name)
{
    size_t len = strlen(path);
    char *temporary = malloc(len + sizeof ".XXXXXX");
    if (!temporary)
        return -ENOMEM;
    memcpy(temporary, path, len);
    memcpy(temporary + len, ".XXXXXX", sizeof ".XXXXXX");
    int err = make_file(e, temporary, name);
    /* Over an older one, never into it: its readers must not meet a file
     * that shrinks, or the words of two writers. */
    if (!err && rename(temporary, path))
        err = -errno;
    if (err && e->fd >= 0)
        unlink(temporary);
    free(temporary);
    return err;
}

static void release(remus_epochs *e)
{
    if (e->base)
        munmap(e->base, REMUS_EPOCHS_BYTES);
    if (e->fd >= 0)
        close(e->fd);
    free(e);
}

int remus_epochs_create(const char *path, const char *name,
                        remus_epochs **out)
{
    const char *what = path ? path : "in memory";
    if (!name || !*name || strlen(name) > REMUS_NAME_MAX)
        return remus_fail(-EINVAL,
                          "epoch statistics %s: the name \"%s\" is not of 1 "
                          "to %d bytes",
                          what, name ? name : "", REMUS_NAME_MAX);
    remus_epochs *e = calloc(1, sizeof *e);
    if (!e)
        return remus_fail(-ENOMEM, "epoch statistics %s: no memory", what);
    e->fd = -1;
    e->writer = 1;
    int err = path ? create_file(e, path, name) : map(e, 1);
    if (err) {
        remus_fail(err, "create the epoch statistics %s: %s", what,
                   remus_errno_text(err));
        release(e);
        return err;
    }
    if (!path)
        prepare(e, name);
    *out = e;
    return 0;
}

/* Does this header describe what this code reads? */
static int check_header(const unsigned char *p, const char *path)
{
    if (remus_get32(p) != REMUS_EPOCHS_MAGIC)
        return remus_fail(-EBADMSG, "%s holds no epoch statistics", path);
    if (remus_get32(p + 4) != REMUS_EPOCHS_VERSION)
        return remus_fail(-EBADMSG,
                          "%s: epoch statistics of version %u, this library "
                          "reads version %u: use one version on this host",
                          path, remus_get32(p + 4), REMUS_EPOCHS_VERSION);
    if (remus_get32(p + REMUS_EPOCHS_CRC_AT) !=
            remus_crc32c(0, p, REMUS_EPOCHS_CRC_AT) ||
        remus_get64(p + 8) != REMUS_EPOCHS_BYTES ||
        remus_get32(p + 16) != REMUS_EPOCHS_RING ||
        remus_get32(p + 20) != REMUS_EPOCHS_SLOT ||
        remus_get32(p + 24) != REMUS_SERIES_COUNT ||
        remus_get32(p + 28) != REMUS_EPOCHS_BUCKETS ||
        remus_get32(p + 32) != REMUS_EPOCHS_RING_AT ||
        remus_get32(p + 36) != REMUS_EPOCHS_SERIES_AT ||
        remus_get32(p + 40) != REMUS_EPOCHS_SERIES ||
        remus_get32(p + 44) != REMUS_EPOCHS_SUB_BITS ||
        p[80 + REMUS_NAME_MAX] != 0)
        return remus_fail(-EBADMSG,
                          "%s: the header of the epoch statistics is "
                          "damaged; the writer makes a new file when it "
                          "starts again",
                          path);
    return 0;
}

static int attach_fd(remus_epochs *e, const char *path)
{
    struct stat st;
    if (fstat(e->fd, &st))
        return remus_fail(-errno, "%s: %s", path, remus_errno_text(errno));
    if (!S_ISREG(st.st_mode))
        return remus_fail(-EBADMSG, "%s is no regular file", path);
    /* What lies beyond the end of the file can't be touched. */
    if (st.st_size != (off_t)REMUS_EPOCHS_BYTES)
        return remus_fail(-EBADMSG,
                          "%s holds no epoch statistics: %lld bytes, "
                          "expected %llu",
                          path, (long long)st.st_size,
                          (ull)REMUS_EPOCHS_BYTES);
    int err = map(e, 0);
    if (err)
        return remus_fail(err, "map %s: %s", path, remus_errno_text(err));
    return check_header(e->base, path);
}

int remus_epochs_attach(const char *path, remus_epochs **out)
{
    remus_epochs *e = calloc(1, sizeof *e);
    if (!e)
        return remus_fail(-ENOMEM, "epoch statistics %s: no memory", path);
    /* O_NONBLOCK: a FIFO in its place must not hold us up. */
    e->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    int err = e->fd < 0 ? -errno : 0;
    if (err)
        remus_fail(err, "open the epoch statistics %s: %s", path,
                   remus_errno_text(err));
    else
        err = attach_fd(e, path);
    if (err) {
        release(e);
        return err;
    }
    *out = e;
    return 0;
}

void remus_epochs_close(remus_epochs *e)
{
    if (!e)
        return;
    if (e->writer)
        put(&header_words(e)[REMUS_EW_CLOSED], 1);
    release(e);
}

int remus_epochs_info(remus_epochs *e, struct remus_epochs_info *out)
{
    remus_word *words = header_words(e);
    unsigned char id[16];
    boot_id(id);
    memset(out, 0, sizeof *out);
    memcpy(out->name, e->base + 80, sizeof out->name);
    out->added = get(&words[REMUS_EW_ADDED]);
    out->failed = get(&words[REMUS_EW_FAILED]);
    out->created_ns = remus_get64(e->base + 48);
    out->pid = (int64_t)remus_get64(e->base + 56);
    out->this_boot = memcmp(e->base + 64, id, sizeof id) == 0;
    out->writing = e->writer;
    if (!e->writer) {
        /* Only the writer ever holds it for longer than this. */
        out->writing = flock(e->fd, LOCK_SH | LOCK_NB) != 0;
        if (!out->writing)
            flock(e->fd, LOCK_UN);
    }
    /* After the lock: who closed in between is found closed. */
    out->closed = get(&words[REMUS_EW_CLOSED]) != 0;
    out->writing = out->writing && !out->closed;
    return 0;
}

/* ---- the writer ------------------------------------------------------------ */

static uint64_t saturating(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static void count(remus_epochs *e, int series, uint64_t value)
{
    remus_word *w = series_words(e, series);
    remus_word *bucket =
        &w[REMUS_HW_BUCKETS + remus_epochs_bucket_of(value)];
    uint64_t sequence = own(&w[REMUS_HW_SEQUENCE]);
    put_early(&w[REMUS_HW_SEQUENCE], sequence + 1);
    uint64_t low = own(&w[REMUS_HW_SUM_LOW]) + value;
    if (low < value)
        put(&w[REMUS_HW_SUM_HIGH], own(&w[REMUS_HW_SUM_HIGH]) + 1);
    put(&w[REMUS_HW_SUM_LOW], low);
    if (value < own(&w[REMUS_HW_MIN]))
        put(&w[REMUS_HW_MIN], value);
    if (value > own(&w[REMUS_HW_MAX]))
        put(&w[REMUS_HW_MAX], value);
    put(&w[REMUS_HW_COUNT], own(&w[REMUS_HW_COUNT]) + 1);
    put(bucket, own(bucket) + 1);
    put(&w[REMUS_HW_SEQUENCE], sequence + 2);
}

static void count_measured(remus_epochs *e, uint64_t extents,
                           uint64_t coalesced)
{
    count(e, REMUS_SERIES_EXTENTS, extents);
    count(e, REMUS_SERIES_COALESCED, coalesced);
}

void remus_epochs_add(remus_epochs *e, const struct remus_epoch_sample *s)
{
    if (!e->writer)
        return;
    remus_word *words = header_words(e);
    uint64_t position = own(&words[REMUS_EW_ADDED]);
    remus_word *w = slot_words(e, position);
    put_early(&w[REMUS_SW_SEQUENCE], 2 * position + 1);
    put(&w[REMUS_SW_EPOCH], s->epoch);
    put(&w[REMUS_SW_START], s->start_ns);
    put(&w[REMUS_SW_BARRIER], s->barrier_ns);
    put(&w[REMUS_SW_ACK], s->ack_ns);
    put(&w[REMUS_SW_COMMIT], s->commit_ns);
    put(&w[REMUS_SW_BYTES], s->bytes);
    put(&w[REMUS_SW_EXTENTS], s->extents);
    put(&w[REMUS_SW_COALESCED], s->coalesced);
    put(&w[REMUS_SW_RESULT],
        (uint64_t)s->flags << 32 | (uint32_t)s->result);
    put(&w[REMUS_SW_SEQUENCE], 2 * position + 2);
    if (s->result) {
        put(&words[REMUS_EW_FAILED], own(&words[REMUS_EW_FAILED]) + 1);
    } else {
        count(e, REMUS_SERIES_BARRIER, s->barrier_ns);
        count(e, REMUS_SERIES_ACK, s->ack_ns);
        count(e, REMUS_SERIES_PAUSE, saturating(s->barrier_ns, s->ack_ns));
        count(e, REMUS_SERIES_BYTES, s->bytes);
        if (s->commit_ns)
            count(e, REMUS_SERIES_COMMIT, s->commit_ns);
        if (s->extents)
            count_measured(e, s->extents, s->coalesced);
    }
    put(&words[REMUS_EW_ADDED], position + 1);
}

/* The sample of `epoch`, newest first; NULL if it is not there any more. */
static remus_word *find(remus_epochs *e, uint64_t epoch)
{
    uint64_t end = own(&header_words(e)[REMUS_EW_ADDED]);
    uint64_t kept = end < REMUS_EPOCHS_RING ? end : REMUS_EPOCHS_RING;
    for (uint64_t i = 1; i <= kept; i++) {
        remus_word *w = slot_words(e, end - i);
        uint64_t there = own(&w[REMUS_SW_EPOCH]);
        if (there == epoch)
            return w;
        if (there < epoch)
            break; /* they rise */
    }
    return NULL;
}

static int failed(const remus_word *w)
{
    return (uint32_t)own(&w[REMUS_SW_RESULT]) != 0;
}

void remus_epochs_committed(remus_epochs *e, uint64_t epoch,
                            uint64_t commit_ns)
{
    remus_word *w = e->writer ? find(e, epoch) : NULL;
    if (!w || own(&w[REMUS_SW_COMMIT]))
        return;
    uint64_t time = commit_ns ? commit_ns : 1;
    put(&w[REMUS_SW_COMMIT], time);
    if (!failed(w))
        count(e, REMUS_SERIES_COMMIT, time);
}

void remus_epochs_measured(remus_epochs *e, uint64_t epoch, uint64_t extents,
                           uint64_t coalesced)
{
    remus_word *w = e->writer && extents ? find(e, epoch) : NULL;
    if (!w || own(&w[REMUS_SW_EXTENTS]))
        return;
    /* In this order: who sees the extents sees what belongs to them. */
    put(&w[REMUS_SW_COALESCED], coalesced);
    put(&w[REMUS_SW_EXTENTS], extents);
    if (!failed(w))
        count_measured(e, extents, coalesced);
}

/* ---- readers ---------------------------------------------------------------- */

/* 1 if the sample of `position` is there and whole. */
static int read_slot(const remus_epochs *e, uint64_t position,
                     struct remus_epoch_sample *s)
{
    const remus_word *w = slot_words(e, position);
    uint64_t sequence = 2 * position + 2;
    if (get(&w[REMUS_SW_SEQUENCE]) != sequence)
        return 0;
    s->epoch = get(&w[REMUS_SW_EPOCH]);
    s->start_ns = get(&w[REMUS_SW_START]);
    s->barrier_ns = get(&w[REMUS_SW_BARRIER]);
    s->ack_ns = get(&w[REMUS_SW_ACK]);
    s->commit_ns = get(&w[REMUS_SW_COMMIT]);
    s->bytes = get(&w[REMUS_SW_BYTES]);
    s->extents = get(&w[REMUS_SW_EXTENTS]);
    s->coalesced = s->extents ? get(&w[REMUS_SW_COALESCED]) : 0;
    uint64_t result = get(&w[REMUS_SW_RESULT]);
    s->result = (int32_t)(uint32_t)result;
    s->flags = (uint32_t)(result >> 32);
    return own(&w[REMUS_SW_SEQUENCE]) == sequence;
}

int remus_epochs_read(remus_epochs *e, uint64_t after,
                      struct remus_epoch_sample *out, unsigned int cap,
                      uint64_t *next, uint64_t *lost)
{
    uint64_t end = get(&header_words(e)[REMUS_EW_ADDED]);
    uint64_t skipped = 0;
    unsigned int n = 0;
    /* The result is an int. */
    unsigned int room = cap < REMUS_EPOCHS_RING ? cap : REMUS_EPOCHS_RING;
    uint64_t position = after < end ? after : end;
    if (end - position > REMUS_EPOCHS_RING) {
        skipped = end - position - REMUS_EPOCHS_RING;
        position = end - REMUS_EPOCHS_RING;
    }
    while (position < end && n < room) {
        if (read_slot(e, position, &out[n]))
            n++;
        else
            skipped++;
        position++;
    }
    *next = position;
    *lost = skipped;
    return (int)n;
}

/* One series at one moment. */
struct look {
    uint64_t count, min, max, sum_low, sum_high;
    uint64_t buckets[REMUS_EPOCHS_BUCKETS];
};

static void look_once(const remus_word *w, struct look *l)
{
    l->min = get(&w[REMUS_HW_MIN]);
    l->max = get(&w[REMUS_HW_MAX]);
    l->sum_low = get(&w[REMUS_HW_SUM_LOW]);
    l->sum_high = get(&w[REMUS_HW_SUM_HIGH]);
    l->count = 0;
    for (unsigned int i = 0; i < REMUS_EPOCHS_BUCKETS; i++) {
        l->buckets[i] = get(&w[REMUS_HW_BUCKETS + i]);
        l->count += l->buckets[i];
    }
}

static int look(const remus_epochs *e, int series, struct look *l)
{
    if (series < 0 || series >= REMUS_SERIES_COUNT)
        return remus_fail(-EINVAL,
                          "epoch statistics: no series %d, there are %d",
                          series, (int)REMUS_SERIES_COUNT);
    const remus_word *w = series_words(e, series);
    for (int i = 0; i < LOOKS; i++) {
        uint64_t sequence = get(&w[REMUS_HW_SEQUENCE]);
        look_once(w, l);
        if (sequence % 2 == 0 && own(&w[REMUS_HW_SEQUENCE]) == sequence)
            break;
    }
    return 0;
}

static uint64_t clamped(uint64_t value, uint64_t min, uint64_t max)
{
    if (value > max)
        value = max;
    return value < min ? min : value;
}

/* The smallest bound that `permille` of all values do not exceed. */
static uint64_t quantile(const struct look *l, uint64_t permille)
{
    uint64_t rank = l->count / 1000 * permille +
                    (l->count % 1000 * permille + 999) / 1000;
    uint64_t seen = 0;
    for (unsigned int i = 0; i < REMUS_EPOCHS_BUCKETS; i++) {
        seen += l->buckets[i];
        if (seen >= rank)
            return clamped(remus_epochs_bucket_high(i), l->min, l->max);
    }
    return l->max;
}

/* (high, low) / by, which fits: a mean is no larger than the largest. */
static uint64_t divided(uint64_t high, uint64_t low, uint64_t by)
{
    uint64_t rest = high % by, result = 0;
    for (int bit = 63; bit >= 0; bit--) {
        uint64_t carry = rest >> 63;
        rest = rest << 1 | (low >> bit & 1);
        if (carry || rest >= by) {
            rest -= by;
            result |= 1ull << bit;
        }
    }
    return result;
}

int remus_epochs_summary(remus_epochs *e, int series,
                         struct remus_series_summary *out)
{
    struct look l;
    int err = look(e, series, &l);
    if (err)
        return err;
    memset(out, 0, sizeof *out);
    /* The writer may have died at its very first value. */
    if (!l.count || l.min > l.max)
        return 0;
    out->count = l.count;
    out->min = l.min;
    out->max = l.max;
    out->mean =
        clamped(divided(l.sum_high, l.sum_low, l.count), l.min, l.max);
    out->p50 = quantile(&l, 500);
    out->p90 = quantile(&l, 900);
    out->p99 = quantile(&l, 990);
    out->p999 = quantile(&l, 999);
    return 0;
}

int remus_epochs_histogram(remus_epochs *e, int series,
                           struct remus_epochs_bucket *out, unsigned int cap)
{
    struct look l;
    int err = look(e, series, &l);
    if (err)
        return err;
    unsigned int n = 0;
    for (unsigned int i = 0; i < REMUS_EPOCHS_BUCKETS; i++) {
        if (!l.buckets[i])
            continue;
        if (n < cap)
            out[n] = (struct remus_epochs_bucket){
                remus_epochs_bucket_low(i), remus_epochs_bucket_high(i),
                l.buckets[i]};
        n++;
    }
    return (int)n;
}
