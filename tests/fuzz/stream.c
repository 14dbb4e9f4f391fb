/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Mutations of a stream of records.  Bytes that are changed blindly end at
 * the first CRC.  So records are also moved, doubled, dropped and made anew,
 * and then mended: magic and sums nearly always, session, number, epoch and
 * range most of the time, so that wrong ones of these come through, too.
 */
#include <pthread.h>
#include <string.h>

#include "fuzz.h"
#include "link/input.h"

#define RECORDS 512

uint64_t fuzz_rnd(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

static uint64_t seeded(unsigned int seed)
{
    uint64_t s = seed * 0x9e3779b97f4a7c15u + 1;
    fuzz_rnd(&s);
    return s ? s : 1;
}

void fuzz_add(struct fuzz_stream *s, struct remus_record r,
              const void *payload)
{
    MUST(s->size + REMUS_REC_HEADER + r.length <= sizeof s->data);
    r.payload_crc = r.length ? remus_crc32c(0, payload, r.length) : 0;
    remus_record_encode(&r, s->data + s->size);
    if (r.length)
        memcpy(s->data + s->size + REMUS_REC_HEADER, payload, r.length);
    s->size += REMUS_REC_HEADER + r.length;
}

/* ---- records ----------------------------------------------------------------- */

static uint32_t length_at(const uint8_t *p)
{
    return remus_get32(p + 12);
}

/* Where records begin, behind the first byte; the last entry is the end.
 * A header that is cut short is part of the record before. */
static size_t split(const uint8_t *data, size_t size, size_t at[RECORDS + 1])
{
    size_t n = 0, pos = 1;
    while (n < RECORDS && pos + REMUS_REC_HEADER <= size) {
        at[n++] = pos;
        size_t room = size - pos - REMUS_REC_HEADER;
        uint32_t length = length_at(data + pos);
        pos += REMUS_REC_HEADER + (length < room ? length : room);
    }
    at[n] = size > 1 ? size : 1;
    return n;
}

/* ---- mending ----------------------------------------------------------------- */

struct progress {
    uint64_t number, epoch, records, session;
    uint32_t run;
};

static int mostly(uint64_t *s)
{
    return fuzz_rnd(s) % 12 != 0;
}

/* Of as many blocks as there are hashes, or of one more, or of all that the
 * disk has: what is counted by the range is not there then. */
static uint64_t hashed(uint64_t *s, const struct remus_record *r)
{
    uint64_t blocks = r->length / REMUS_HASH_BYTES;
    uint64_t rest = FUZZ_DISK - r->offset;
    switch (fuzz_rnd(s) % 8) {
    case 0:
        return r->range < rest ? r->range : rest;
    case 1:
        blocks++;
        break;
    case 2:
        return rest;
    default:
        break;
    }
    return blocks * REMUS_BLOCK < rest ? blocks * REMUS_BLOCK : rest;
}

/* Fields of a record that is not the first one. */
static void mend_fields(uint64_t *s, struct remus_record *r,
                        struct progress *at)
{
    if (mostly(s))
        r->session = at->session;
    if (mostly(s))
        r->volume = 0;
    if (r->type == REMUS_REC_WRITE && mostly(s))
        r->range = r->length;
    if (!remus_record_counted(r) && r->type != REMUS_REC_WRITE &&
        r->type != REMUS_REC_ZERO && r->type != REMUS_REC_HASH) {
        /* Epochs near to what there is mean something. */
        if (fuzz_rnd(s) % 2)
            r->epoch = at->epoch - fuzz_rnd(s) % 3;
        return;
    }
    if (r->type == REMUS_REC_HASH && mostly(s)) {
        r->offset = r->offset % FUZZ_DISK / REMUS_BLOCK * REMUS_BLOCK;
        r->range = hashed(s, r);
    } else if (r->type == REMUS_REC_BARRIER) {
        if (mostly(s))
            r->offset = at->records;
        if (mostly(s))
            r->range = at->run;
    } else if (mostly(s)) {
        r->offset %= FUZZ_DISK;
        r->range %= FUZZ_DISK - r->offset + 1;
    }
    if (remus_record_counted(r) && mostly(s))
        r->number = at->number;
    if (remus_record_counted(r) && mostly(s))
        r->epoch = at->epoch;
}

static void advance(struct progress *at, const struct remus_record *r)
{
    if (!remus_record_counted(r))
        return;
    at->number++;
    at->records++;
    at->run = remus_record_run(at->run, r->header_crc);
    if (r->type == REMUS_REC_BARRIER) {
        at->epoch++;
        at->records = 0;
        at->run = 0;
    }
}

static void raw_decode(const uint8_t *p, struct remus_record *r)
{
    *r = (struct remus_record){.type = p[4],
                               .flags = p[5],
                               .volume = remus_get16(p + 6),
                               .salt = remus_get32(p + 8),
                               .length = length_at(p),
                               .offset = remus_get64(p + 16),
                               .range = remus_get64(p + 24),
                               .epoch = remus_get64(p + 32),
                               .session = remus_get64(p + 40),
                               .number = remus_get64(p + 48)};
}

static void mend(uint8_t *data, size_t size, uint64_t *s)
{
    size_t at[RECORDS + 1], n = split(data, size, at);
    struct fuzz_at from = fuzz_expects(size ? data[0] : 0);
    struct progress p = {
        .number = from.number, .epoch = from.epoch, .session = FUZZ_SESSION};
    for (size_t i = 0; i < n; i++) {
        uint8_t *h = data + at[i];
        uint32_t room = (uint32_t)(at[i + 1] - at[i] - REMUS_REC_HEADER);
        struct remus_record r;
        raw_decode(h, &r);
        if (mostly(s) || r.length > room)
            r.length = room;
        if (mostly(s))
            r.salt = 0;
        if (i == 0 && mostly(s))
            r.session = FUZZ_SESSION;
        if (i)
            mend_fields(s, &r, &p);
        if (fuzz_rnd(s) % 64 == 0)
            continue; /* as it is */
        r.payload_crc =
            r.length ? remus_crc32c(0, h + REMUS_REC_HEADER, r.length) : 0;
        remus_record_encode(&r, h);
        advance(&p, &r);
    }
}

/* ---- mutations ---------------------------------------------------------------- */

/* Open a gap of `len` bytes at `at`; the new size, or the old one: no room. */
static size_t gap(uint8_t *data, size_t size, size_t max, size_t at,
                  size_t len)
{
    if (size + len > max)
        return size;
    memmove(data + at + len, data + at, size - at);
    return size + len;
}

static size_t cut(uint8_t *data, size_t size, size_t at, size_t len)
{
    memmove(data + at, data + at + len, size - at - len);
    return size - len;
}

static size_t insert_new(uint8_t *data, size_t size, size_t max, size_t at,
                         uint64_t *s)
{
    static const uint32_t lengths[] = {0, 0, 0, 8, 16, 24, 56, 64, 128, 512};
    uint32_t len = lengths[fuzz_rnd(s) % 10];
    size_t grown = gap(data, size, max, at, REMUS_REC_HEADER + len);
    if (grown == size)
        return size;
    struct remus_record r = {.type = fuzz_types[fuzz_rnd(s) % fuzz_type_count],
                             .flags = (uint8_t)(fuzz_rnd(s) % 9),
                             .offset = fuzz_rnd(s) % 16 * 4096,
                             .range = 1 + fuzz_rnd(s) % 16384,
                             .length = len};
    memset(data + at + REMUS_REC_HEADER, (int)fuzz_rnd(s), len);
    remus_record_encode(&r, data + at);
    return grown;
}

/* The payload of the record at `at` of `len` bytes changes, perhaps in
 * length. */
static size_t change_payload(uint8_t *data, size_t size, size_t max, size_t at,
                             size_t len, uint64_t *s)
{
    static uint8_t piece[4096];
    size_t from = at + REMUS_REC_HEADER, have = len - REMUS_REC_HEADER;
    size_t used = have < sizeof piece ? have : sizeof piece;
    memcpy(piece, data + from, used);
    size_t room = fuzz_rnd(s) % 2 ? used : sizeof piece;
    if (!room)
        room = 64;
    size_t made = LLVMFuzzerMutate(piece, used, room);
    if (made > used) {
        size_t grown = gap(data, size, max, from, made - used);
        if (grown == size)
            made = used;
        size = grown;
    } else {
        size = cut(data, size, from, used - made);
    }
    memcpy(data + from, piece, made);
    remus_put32(data + at + 12, (uint32_t)(have - used + made));
    return size;
}

static size_t change_records(uint8_t *data, size_t size, size_t max,
                             uint64_t *s)
{
    size_t at[RECORDS + 1], n = split(data, size, at);
    if (!n)
        return insert_new(data, size, max, size, s);
    size_t i = fuzz_rnd(s) % n, len = at[i + 1] - at[i];
    size_t to = at[fuzz_rnd(s) % (n + 1)], grown;
    static uint8_t copy[FUZZ_STREAM_MAX];
    switch (fuzz_rnd(s) % 8) {
    case 0:
        return cut(data, size, at[i], len);
    case 1: /* twice */
        memcpy(copy, data + at[i], len);
        grown = gap(data, size, max, to, len);
        if (grown != size)
            memcpy(data + to, copy, len);
        return grown;
    case 2:
        LLVMFuzzerMutate(data + at[i], REMUS_REC_HEADER, REMUS_REC_HEADER);
        return size;
    case 3:
        data[at[i] + 4] = fuzz_types[fuzz_rnd(s) % fuzz_type_count];
        data[at[i] + 5] = (uint8_t)(fuzz_rnd(s) % 9);
        return size;
    case 4:
    case 5:
        return insert_new(data, size, max, to, s);
    default:
        return change_payload(data, size, max, at[i], len, s);
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max,
                               unsigned int seed)
{
    uint64_t s = seeded(seed);
    if (max > FUZZ_STREAM_MAX)
        max = FUZZ_STREAM_MAX;
    if (size < 1 || size > max) {
        data[0] = (uint8_t)fuzz_rnd(&s);
        size = 1;
    }
    if (fuzz_rnd(&s) % 16 == 0)
        data[0] = (uint8_t)fuzz_rnd(&s);
    if (fuzz_rnd(&s) % 6 == 0)
        size = LLVMFuzzerMutate(data, size, max);
    for (uint64_t i = 1 + fuzz_rnd(&s) % 3; i; i--)
        size = change_records(data, size, max, &s);
    if (size && fuzz_rnd(&s) % 20)
        mend(data, size, &s);
    return size;
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size,
                                 const uint8_t *b, size_t b_size, uint8_t *out,
                                 size_t max, unsigned int seed)
{
    size_t at[RECORDS + 1], bt[RECORDS + 1];
    uint64_t s = seeded(seed);
    size_t n = split(a, a_size, at), m = split(b, b_size, bt);
    size_t head = at[fuzz_rnd(&s) % (n + 1)],
           from = bt[fuzz_rnd(&s) % (m + 1)];
    if (head > a_size || from > b_size)
        return 0;
    size_t tail = b_size - from;
    if (head > max)
        return 0;
    if (tail > max - head)
        tail = max - head;
    memcpy(out, a, head);
    memcpy(out + head, b + from, tail);
    mend(out, head + tail, &s);
    return head + tail;
}

/* ---- what arrived, and no more -------------------------------------------------- */

/*
 * Both sides read records in the middle of one large buffer, where reading
 * beyond a payload looks right.  Here each record is a block of its own
 * (linked with --wrap=remus_input_next), which lasts until the next one.
 */
int __wrap_remus_input_next(struct remus_input *in, struct remus_record *r,
                            const unsigned char **header,
                            const unsigned char **payload);
int __real_remus_input_next(struct remus_input *in, struct remus_record *r,
                            const unsigned char **header,
                            const unsigned char **payload);
int __wrap_remus_input_next(struct remus_input *in, struct remus_record *r,
                            const unsigned char **header,
                            const unsigned char **payload)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct {
        const struct remus_input *in;
        unsigned char *block;
    } last[8];
    static unsigned int turn;
    int rc = __real_remus_input_next(in, r, header, payload);
    if (rc != 1)
        return rc;
    size_t size = REMUS_REC_HEADER + r->length;
    unsigned char *block = malloc(size);
    MUST(block);
    memcpy(block, *header, size);
    *header = block;
    *payload = block + REMUS_REC_HEADER;
    pthread_mutex_lock(&lock);
    unsigned int i = 0;
    while (i < 8 && last[i].in != in)
        i++;
    if (i == 8)
        i = turn++ % 8;
    free(last[i].block);
    last[i].in = in;
    last[i].block = block;
    pthread_mutex_unlock(&lock);
    return rc;
}
