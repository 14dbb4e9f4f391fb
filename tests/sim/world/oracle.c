/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The model of the guest's disks; see oracle.h. */
#include "oracle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sched.h"
#include "shared.h"

#define STATES 524288u
#define KEPT 65536u
#define WRITE_MAX 16384u
#define CUT 64u /* interrupted writes that are remembered */
#define NEVER UINT64_MAX

/* A checkpoint of a toolstack. */
struct taken {
    uint64_t n, from, to; /* its number; states */
    enum oracle_kind kind;
    int acked, committed, heard, asked;
    unsigned char tag[ORACLE_TAG];
    size_t tag_len;
};

/* A write, from the state that it leads to until that in which it was
 * answered. */
struct part {
    uint64_t state, answered, offset;
    size_t len;
    unsigned int volume;
    unsigned char old[WRITE_MAX], new[WRITE_MAX];
};

static struct part newest, cut[CUT]; /* a ring */
static size_t cut_count;
static unsigned int volumes;
static uint64_t sizes[ORACLE_VOLUMES], shared; /* shared: of volume 0 */
static unsigned char *now[ORACLE_VOLUMES], *found[ORACLE_VOLUMES];
static uint64_t sums[STATES], begun, answered;
static struct taken taken[KEPT]; /* by number */
static size_t taken_count;
static uint64_t newest_acked, base, base_state;
static uint64_t highest;   /* acked ever, on whatever branch */
static uint64_t forgotten; /* up to here, what was acked may be lost */
static uint64_t said;      /* to be committed */
static uint64_t sent;      /* output of it, to the world */
static char why[200];

/* What 16 bytes add to the sum; zeroes add nothing. */
static inline uint64_t mix(uint64_t place, const unsigned char *bytes)
{
    uint64_t a, b;
    memcpy(&a, bytes, 8);
    memcpy(&b, bytes + 8, 8);
    if (!(a | b))
        return 0;
    place *= 0x9e3779b97f4a7c15u;
    unsigned __int128 z =
        (unsigned __int128)(a ^ place ^ 0xbf58476d1ce4e5b9u) *
        (b ^ (place >> 7) ^ 0x94d049bb133111ebu);
    return ((uint64_t)z ^ (uint64_t)(z >> 64)) * 0xd6e8feb86659fd93u;
}

/* ... and all of these that hold bytes of [from, to) */
static uint64_t sum_in(unsigned int v, const unsigned char *disk,
                       uint64_t from, uint64_t to)
{
    uint64_t sum = 0, place = (uint64_t)(v + 1) << 40;
    for (uint64_t at = from / 16 * 16; at < to; at += 16)
        sum += mix(place | at, disk + at);
    return sum;
}

static uint64_t sum_of(unsigned char *const *disks)
{
    uint64_t sum = 0;
    for (unsigned int v = 0; v < volumes; v++)
        sum += sum_in(v, disks[v], v ? 0 : shared, sizes[v]);
    return sum;
}

void oracle_begin(unsigned int count, const uint64_t *bytes)
{
    volumes = count;
    for (unsigned int v = 0; v < count; v++) {
        sizes[v] = bytes[v];
        now[v] = calloc(1, bytes[v]);
        found[v] = calloc(1, bytes[v]);
        if (!now[v] || !found[v])
            world_fail("out of memory");
    }
}

static void next_state(uint64_t sum)
{
    if (begun + 1 == STATES)
        world_fail("more than %u writes", STATES);
    sums[++begun] = sum;
}

void oracle_without(uint64_t bytes)
{
    shared = bytes;
    shared_begin();
}

uint64_t oracle_tick(void)
{
    int idle = answered == begun;
    next_state(sums[begun]);
    if (idle)
        answered = begun;
    return begun;
}

void oracle_write(unsigned int v, uint64_t offset, const void *data,
                  size_t len)
{
    uint64_t sum = sums[begun] - sum_in(v, now[v], offset, offset + len);
    newest.offset = offset;
    newest.len = len;
    newest.volume = v;
    newest.answered = NEVER;
    memcpy(newest.old, now[v] + offset, len);
    if (data)
        memcpy(now[v] + offset, data, len);
    else
        memset(now[v] + offset, 0, len);
    memcpy(newest.new, now[v] + offset, len);
    sum += sum_in(v, now[v], offset, offset + len);
    next_state(sum);
    newest.state = begun;
}

/* The newest write is over. */
static void write_ends(void)
{
    answered = begun;
    newest.answered = begun;
    for (size_t i = 0; i < CUT; i++)
        if (cut[i].state == newest.state)
            cut[i].answered = begun;
}

void oracle_answered(void)
{
    write_ends();
}

void oracle_interrupted(void)
{
    if (newest.state && newest.answered == NEVER)
        cut[cut_count++ % CUT] = newest;
}

void oracle_found(unsigned int v, const void *data)
{
    memcpy(now[v], data, sizes[v]);
}

void oracle_found_all(void)
{
    next_state(sum_of(now));
    write_ends();
}

uint64_t oracle_answered_state(void)
{
    return answered;
}

uint64_t oracle_begun_state(void)
{
    return begun;
}

void oracle_checkpoint(uint64_t n, uint64_t from, uint64_t to,
                       enum oracle_kind kind)
{
    if (n <= highest || (taken_count && taken[taken_count - 1].n >= n))
        world_fail("checkpoint %llu has a number that was used before",
                   (unsigned long long)n);
    if (taken_count == KEPT)
        world_fail("more than %u checkpoints", KEPT);
    taken[taken_count++] =
        (struct taken){.n = n, .from = from, .to = to, .kind = kind};
}

uint64_t oracle_newest_taken(void)
{
    return taken_count ? taken[taken_count - 1].n : base;
}

/* The newest that is not newer than n; NULL: none. */
static struct taken *up_to(uint64_t n)
{
    struct taken *t = NULL;
    for (size_t i = 0; i < taken_count && taken[i].n <= n; i++)
        t = &taken[i];
    return t;
}

void oracle_tagged(uint64_t n, const void *tag, size_t len)
{
    struct taken *t = up_to(n);
    if (!t || t->n != n)
        return;
    memcpy(t->tag, tag, len);
    t->tag_len = len;
}

const char *oracle_check_tag(uint64_t n, const void *tag, size_t len)
{
    const struct taken *t = up_to(n);
    if (!t || t->n != n || t->kind != ORACLE_CALL)
        return len && t && t->n == n ? "nobody gave it a tag" : NULL;
    return len == t->tag_len && !memcmp(tag, t->tag, len)
               ? NULL
               : "it is not the one that was given";
}

void oracle_acked(uint64_t n)
{
    struct taken *t = up_to(n);
    if (n > highest)
        highest = n;
    if (n <= forgotten)
        return; /* it was on its way when that was lost */
    if (t && t->n == n)
        t->acked = 1;
    if (n > newest_acked)
        newest_acked = n;
}

void oracle_nothing_acked(void)
{
    newest_acked = said = sent = 0;
    forgotten = oracle_newest_taken();
    for (size_t i = 0; i < taken_count; i++)
        taken[i].acked = 0;
}

uint64_t oracle_newest_acked(void)
{
    return newest_acked;
}

int oracle_is_acked(uint64_t n)
{
    struct taken *t = up_to(n);
    return t && t->n == n && t->acked;
}

/* ---- who may commit ---------------------------------------------------------- */

void oracle_committed(uint64_t n)
{
    for (size_t i = 0; i < taken_count && taken[i].n <= n; i++)
        taken[i].committed = 1;
}

void oracle_heard(uint64_t n)
{
    struct taken *t = up_to(n);
    if (t && t->n == n)
        t->heard = 1;
}

void oracle_asks(uint64_t n, int begins)
{
    struct taken *t = up_to(n);
    if (t && t->n == n)
        t->asked += begins ? 1 : -1;
}

void oracle_session_over(void)
{
    oracle_committed(UINT64_MAX);
}

const char *oracle_default(uint64_t n)
{
    const struct taken *t = up_to(n);
    if (!t || t->n != n || t->committed || t->heard || t->asked ||
        t->kind == ORACLE_EMPTY)
        return NULL;
    return t->kind == ORACLE_CALL ? "nobody has committed it"
                                  : "no ioctl 30 was told that it is safe";
}

void oracle_said_committed(uint64_t n)
{
    if (n > said)
        said = n;
}

void oracle_sent(uint64_t n)
{
    if (n > sent)
        sent = n;
}

uint64_t oracle_newest_sent(void)
{
    return sent;
}

void oracle_nothing_said(void)
{
    said = sent = 0;
}

uint64_t oracle_newest_said(void)
{
    return said;
}

/* ---- what the disks may hold ----------------------------------------------------- */

void oracle_branch(uint64_t n)
{
    forgotten = 0;
    taken_count = 0;
    newest_acked = said = sent = 0;
    base = n;
    base_state = begun;
    shared_branch();
}

const char *oracle_check_last(unsigned char *const *disks)
{
    return sum_of(disks) == sums[begun] ? NULL
                                        : "it is not what the guest has left";
}

/* Do these disks hold any part of it, and else what was there before? */
static int holds_part(const struct part *p, unsigned char *const *disks,
                      uint64_t sum)
{
    static unsigned char before[ORACLE_BYTES];
    const unsigned char *disk = disks[p->volume];
    uint64_t end = p->offset + p->len;
    for (size_t i = 0; i < p->len; i++)
        if (disk[p->offset + i] != p->old[i] &&
            disk[p->offset + i] != p->new[i])
            return 0;
    memcpy(before, disk, sizes[p->volume]);
    memcpy(before + p->offset, p->old, p->len);
    return sum - sum_in(p->volume, disk, p->offset, end) +
               sum_in(p->volume, before, p->offset, end) ==
           sums[p->state - 1];
}

struct oracle_moment oracle_moment(void)
{
    return (struct oracle_moment){begun, answered};
}

const char *oracle_read(const struct oracle_moment *before, unsigned int v,
                        uint64_t offset, const unsigned char *data, size_t len)
{
    int writes = newest.state && newest.answered == NEVER;
    if (before->begun != begun || before->answered != answered)
        return NULL;
    for (size_t i = 0; i < len; i++) {
        uint64_t at = offset + i;
        if (data[i] == now[v][at])
            continue;
        if (!writes || v != newest.volume || at < newest.offset ||
            at - newest.offset >= newest.len ||
            data[i] != newest.old[at - newest.offset]) {
            snprintf(why, sizeof why,
                     "byte %llu is neither what was written last nor what is "
                     "being written",
                     (unsigned long long)at);
            return why;
        }
    }
    return NULL;
}

const char *oracle_check(uint64_t n, unsigned char *const *disks)
{
    uint64_t sum = sum_of(disks), from = 0, to = begun;
    struct taken *t = up_to(n);
    if (t && t->n == n) {
        from = t->from;
        to = t->to;
    } else if (n == base) {
        from = to = base_state;
    } else {
        /* One that the engine took by itself: after the one before that is
         * known, and before the next. */
        from = t ? t->from : base_state;
        t = t ? t + 1 : taken;
        if (t < taken + taken_count)
            to = t->to;
    }
    const char *torn = shared ? shared_check(n, from, to, disks[0]) : NULL;
    if (torn)
        return torn;
    for (uint64_t s = from; s <= to; s++)
        if (sums[s] == sum)
            return NULL;
    for (size_t i = 0; i < CUT; i++)
        if (cut[i].state && cut[i].state <= to && cut[i].answered > from &&
            holds_part(&cut[i], disks, sum))
            return NULL;
    for (uint64_t s = 0; s <= begun; s++)
        if (sums[s] == sum) {
            snprintf(why, sizeof why,
                     "it holds state %llu, and was taken between %llu and "
                     "%llu",
                     (unsigned long long)s, (unsigned long long)from,
                     (unsigned long long)to);
            return why;
        }
    snprintf(why, sizeof why,
             "it holds no state that the guest's disks ever had (taken "
             "between %llu and %llu)",
             (unsigned long long)from, (unsigned long long)to);
    return why;
}
