/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Epoch statistics: adding and reading.  The layout and the rules of access
 * are in epochs.h; epochs_file.c makes, opens and closes them. */
#include "stats/epochs.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/sized.h"
#include "base/entry.h"

/* Attempts at a consistent look at a series before it is taken as it is. */
#define LOOKS 64

/* ---- the writer ---------------------------------------------------------- */

static uint64_t saturating(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static void count(remus_epochs *e, int series, uint64_t value)
{
    remus_word *w = remus_epochs_series_at(e, series);
    remus_word *bucket = &w[REMUS_HW_BUCKETS + remus_epochs_bucket_of(value)];
    uint64_t sequence = remus_own(&w[REMUS_HW_SEQUENCE]);
    remus_put_early(&w[REMUS_HW_SEQUENCE], sequence + 1);
    uint64_t low = remus_own(&w[REMUS_HW_SUM_LOW]) + value;
    if (low < value)
        remus_put(&w[REMUS_HW_SUM_HIGH], remus_own(&w[REMUS_HW_SUM_HIGH]) + 1);
    remus_put(&w[REMUS_HW_SUM_LOW], low);
    if (value < remus_own(&w[REMUS_HW_MIN]))
        remus_put(&w[REMUS_HW_MIN], value);
    if (value > remus_own(&w[REMUS_HW_MAX]))
        remus_put(&w[REMUS_HW_MAX], value);
    remus_put(&w[REMUS_HW_COUNT], remus_own(&w[REMUS_HW_COUNT]) + 1);
    remus_put(bucket, remus_own(bucket) + 1);
    remus_put(&w[REMUS_HW_SEQUENCE], sequence + 2);
}

static void count_measured(remus_epochs *e, uint64_t extents,
                           uint64_t coalesced)
{
    count(e, REMUS_SERIES_EXTENTS, extents);
    count(e, REMUS_SERIES_COALESCED, coalesced);
}

void remus_epochs_add(remus_epochs *e, const struct remus_epoch_sample *s)
{
    if (remus_enter(e, "epochs_add") || remus_given(s, "epochs_add", "s"))
        return;
    if (!e->writer)
        return;
    remus_word *words = remus_epochs_words(e);
    uint64_t position = remus_own(&words[REMUS_EW_ADDED]);
    remus_word *w = remus_epochs_slot(e, position);
    remus_put_early(&w[REMUS_SW_SEQUENCE], 2 * position + 1);
    remus_put(&w[REMUS_SW_EPOCH], s->epoch);
    remus_put(&w[REMUS_SW_START], s->start_ns);
    remus_put(&w[REMUS_SW_BARRIER], s->barrier_ns);
    remus_put(&w[REMUS_SW_ACK], s->ack_ns);
    remus_put(&w[REMUS_SW_COMMIT], s->commit_ns);
    remus_put(&w[REMUS_SW_BYTES], s->bytes);
    remus_put(&w[REMUS_SW_EXTENTS], s->extents);
    remus_put(&w[REMUS_SW_COALESCED], s->coalesced);
    remus_put(&w[REMUS_SW_RESULT],
              (uint64_t)s->flags << 32 | (uint32_t)s->result);
    remus_put(&w[REMUS_SW_SEQUENCE], 2 * position + 2);
    if (s->result) {
        remus_put(&words[REMUS_EW_FAILED],
                  remus_own(&words[REMUS_EW_FAILED]) + 1);
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
    remus_put(&words[REMUS_EW_ADDED], position + 1);
}

/*
 * The sample of `epoch`, newest first; NULL if it is not there any more.
 * *position: where.
 */
static remus_word *find(remus_epochs *e, uint64_t epoch, uint64_t *position)
{
    uint64_t end = remus_own(&remus_epochs_words(e)[REMUS_EW_ADDED]);
    uint64_t kept = end < REMUS_EPOCHS_RING ? end : REMUS_EPOCHS_RING;
    for (uint64_t i = 1; i <= kept; i++) {
        remus_word *w = remus_epochs_slot(e, end - i);
        uint64_t there = remus_own(&w[REMUS_SW_EPOCH]);
        *position = end - i;
        if (there == epoch)
            return w;
        if (there < epoch)
            break; /* they never fall */
    }
    return NULL;
}

static int failed(const remus_word *w)
{
    return (uint32_t)remus_own(&w[REMUS_SW_RESULT]) != 0;
}

void remus_epochs_committed(remus_epochs *e, uint64_t epoch,
                            uint64_t commit_ns)
{
    if (remus_enter(e, "epochs_committed"))
        return;
    uint64_t position;
    remus_word *w = e->writer ? find(e, epoch, &position) : NULL;
    if (!w || remus_own(&w[REMUS_SW_COMMIT]))
        return;
    uint64_t time = commit_ns ? commit_ns : 1;
    remus_put(&w[REMUS_SW_COMMIT], time);
    if (!failed(w))
        count(e, REMUS_SERIES_COMMIT, time);
}

void remus_epochs_measured(remus_epochs *e, uint64_t epoch, uint64_t extents,
                           uint64_t coalesced)
{
    if (remus_enter(e, "epochs_measured"))
        return;
    uint64_t position;
    remus_word *w = e->writer && extents ? find(e, epoch, &position) : NULL;
    if (!w || remus_own(&w[REMUS_SW_EXTENTS]))
        return;
    /* In this order: who sees the extents sees what belongs to them. */
    remus_put(&w[REMUS_SW_COALESCED], coalesced);
    remus_put(&w[REMUS_SW_EXTENTS], extents);
    if (!failed(w))
        count_measured(e, extents, coalesced);
}

/* ---- readers ------------------------------------------------------------- */

/* 1 if the sample of `position` is there and whole. */
static int read_slot(const remus_epochs *e, uint64_t position,
                     struct remus_epoch_sample *s)
{
    const remus_word *w = remus_epochs_slot(e, position);
    uint64_t sequence = 2 * position + 2;
    if (remus_get(&w[REMUS_SW_SEQUENCE]) != sequence)
        return 0;
    s->epoch = remus_get(&w[REMUS_SW_EPOCH]);
    s->start_ns = remus_get(&w[REMUS_SW_START]);
    s->barrier_ns = remus_get(&w[REMUS_SW_BARRIER]);
    s->ack_ns = remus_get(&w[REMUS_SW_ACK]);
    s->commit_ns = remus_get(&w[REMUS_SW_COMMIT]);
    s->bytes = remus_get(&w[REMUS_SW_BYTES]);
    s->extents = remus_get(&w[REMUS_SW_EXTENTS]);
    s->coalesced = s->extents ? remus_get(&w[REMUS_SW_COALESCED]) : 0;
    uint64_t result = remus_get(&w[REMUS_SW_RESULT]);
    s->result = (int32_t)(uint32_t)result;
    s->flags = (uint32_t)(result >> 32);
    return remus_own(&w[REMUS_SW_SEQUENCE]) == sequence;
}

int remus_epochs_find(remus_epochs *e, uint64_t epoch,
                      struct remus_epoch_sample *out)
{
    uint64_t position;
    return find(e, epoch, &position) && read_slot(e, position, out);
}

int remus_epochs_read(remus_epochs *e, uint64_t after,
                      struct remus_epoch_sample *out, unsigned int cap,
                      uint64_t *next, uint64_t *lost)
{
    int no = remus_enter(e, "epochs_read");
    if (!no && cap)
        no = remus_given(out, "epochs_read", "out");
    if (!no)
        no = remus_given(next, "epochs_read", "next");
    if (!no)
        no = remus_given(lost, "epochs_read", "lost");
    if (no)
        return no;
    uint64_t end = remus_get(&remus_epochs_words(e)[REMUS_EW_ADDED]);
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
    l->min = remus_get(&w[REMUS_HW_MIN]);
    l->max = remus_get(&w[REMUS_HW_MAX]);
    l->sum_low = remus_get(&w[REMUS_HW_SUM_LOW]);
    l->sum_high = remus_get(&w[REMUS_HW_SUM_HIGH]);
    l->count = 0;
    for (unsigned int i = 0; i < REMUS_EPOCHS_BUCKETS; i++) {
        l->buckets[i] = remus_get(&w[REMUS_HW_BUCKETS + i]);
        l->count += l->buckets[i];
    }
}

static int look(const remus_epochs *e, int series, struct look *l)
{
    if (series < 0 || series >= REMUS_SERIES_COUNT)
        return remus_fail(-EINVAL,
                          "epoch statistics: no series %d, there are %d",
                          series, (int)REMUS_SERIES_COUNT);
    const remus_word *w = remus_epochs_series_at(e, series);
    for (int i = 0; i < LOOKS; i++) {
        uint64_t sequence = remus_get(&w[REMUS_HW_SEQUENCE]);
        look_once(w, l);
        if (sequence % 2 == 0 && remus_own(&w[REMUS_HW_SEQUENCE]) == sequence)
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
    uint64_t rank =
        l->count / 1000 * permille + (l->count % 1000 * permille + 999) / 1000;
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

int remus_epochs_summary(remus_epochs *e, enum remus_epochs_series series,
                         struct remus_series_summary *out)
{
    int no = remus_enter(e, "epochs_summary");
    if (!no)
        no = remus_sized_check(out, sizeof *out, "epochs_summary", "out");
    if (no)
        return no;
    struct look l;
    int err = look(e, series, &l);
    if (err)
        return err;
    struct remus_series_summary s = REMUS_INIT(remus_series_summary);
    /* The writer may have died at its very first value. */
    if (l.count && l.min <= l.max) {
        s.count = l.count;
        s.total = l.sum_high ? UINT64_MAX : l.sum_low;
        s.min = l.min;
        s.max = l.max;
        s.mean =
            clamped(divided(l.sum_high, l.sum_low, l.count), l.min, l.max);
        s.p50 = quantile(&l, 500);
        s.p90 = quantile(&l, 900);
        s.p99 = quantile(&l, 990);
        s.p999 = quantile(&l, 999);
    }
    remus_sized_give(out, &s, sizeof s);
    return 0;
}

int remus_epochs_histogram(remus_epochs *e, enum remus_epochs_series series,
                           struct remus_epochs_bucket *out, unsigned int cap)
{
    int no = remus_enter(e, "epochs_histogram");
    if (!no && cap)
        no = remus_given(out, "epochs_histogram", "out");
    if (no)
        return no;
    struct look l;
    int err = look(e, series, &l);
    if (err)
        return err;
    unsigned int n = 0;
    for (unsigned int i = 0; i < REMUS_EPOCHS_BUCKETS; i++) {
        if (!l.buckets[i])
            continue;
        if (n < cap)
            out[n] = (struct remus_epochs_bucket){remus_epochs_bucket_low(i),
                                                  remus_epochs_bucket_high(i),
                                                  l.buckets[i]};
        n++;
    }
    return (int)n;
}
