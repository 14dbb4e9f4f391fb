/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Encoding and proving records; the format is in record.h. */
#include "format/record.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "format/fields.h"

/* Room that one barrier, its commit and its TOLD can take: three records,
 * each padded to a page, the first of them perhaps across a page's end. */
#define BARRIER_COST (4u * REMUS_PAGE)
#define BARRIER_FLAGS (REMUS_CP_IOCTL | REMUS_CP_DISK_ONLY)

/* ---- what may be in a header ---------------------------------------------- */

/* Flags that a type may have. */
static unsigned int known_flags(uint8_t type)
{
    switch (type) {
    case REMUS_REC_WRITE:
    case REMUS_REC_ZERO:
        return REMUS_REC_DIRECT | REMUS_REC_CATCH_UP;
    case REMUS_REC_BARRIER:
        return BARRIER_FLAGS;
    case REMUS_REC_COMMIT:
        return REMUS_COMMIT_OVER;
    case REMUS_REC_ACK:
    case REMUS_REC_APPLIED:
    case REMUS_REC_PING:
        return REMUS_PROGRESS_PINNED;
    case REMUS_REC_STEP_DOWN:
        return REMUS_ASK_KEEP | REMUS_ASK_SWITCH;
    case REMUS_REC_STEPPED_DOWN:
        return 1;
    default:
        return 0;
    }
}

static const char *reserved_name(uint8_t type)
{
    switch (type) {
    case REMUS_REC_MEMORY_PAGES:
        return "memory pages";
    case REMUS_REC_MEMORY_STATE:
        return "memory state";
    case REMUS_REC_GROW:
        return "growing a volume";
    case REMUS_REC_MAP:
        return "a map of blocks";
    default:
        return NULL;
    }
}

static int check_kind(const struct remus_record *r)
{
    const char *name = reserved_name(r->type);
    if (name)
        return remus_fail(-EBADMSG,
                          "record: type %u (%s) is not supported by this "
                          "release: install the same release on both sides",
                          r->type, name);
    if (r->type < REMUS_REC_HELLO || r->type >= REMUS_REC_TYPES)
        return remus_fail(-EBADMSG,
                          "record: unknown type %u: install the same release "
                          "on both sides",
                          r->type);
    if (r->type == REMUS_REC_RESYNC) {
        if (r->flags >= REMUS_RESYNC_BEGIN && r->flags <= REMUS_RESYNC_ADOPTED)
            return 0;
        return remus_fail(-EBADMSG,
                          "record: unknown step %u of a copy: install the "
                          "same release on both sides",
                          r->flags);
    }
    unsigned int odd = r->flags & ~known_flags(r->type);
    if (odd)
        return remus_fail(-EBADMSG,
                          "record: unknown flag 0x%02x of type %u: install "
                          "the same release on both sides",
                          odd, r->type);
    return 0;
}

/* ---- headers ---------------------------------------------------------------- */

void remus_record_encode(struct remus_record *r,
                         unsigned char out[REMUS_REC_HEADER])
{
    remus_put32(out, REMUS_REC_MAGIC);
    out[4] = r->type;
    out[5] = r->flags;
    remus_put16(out + 6, r->volume);
    remus_put32(out + 8, r->salt);
    remus_put32(out + 12, r->length);
    remus_put64(out + 16, r->offset);
    remus_put64(out + 24, r->range);
    remus_put64(out + 32, r->epoch);
    remus_put64(out + 40, r->session);
    remus_put64(out + 48, r->number);
    remus_put32(out + 56, r->payload_crc);
    r->header_crc = remus_crc32c(0, out, 60);
    remus_put32(out + 60, r->header_crc);
}

int remus_record_decode(const unsigned char in[REMUS_REC_HEADER],
                        struct remus_record *r)
{
    uint32_t magic = remus_get32(in);
    if (magic != REMUS_REC_MAGIC)
        return remus_fail(-EBADMSG, "record: magic 0x%08x, expected 0x%08x",
                          magic, REMUS_REC_MAGIC);
    r->header_crc = remus_get32(in + 60);
    uint32_t crc = remus_crc32c(0, in, 60);
    if (crc != r->header_crc)
        return remus_fail(-EBADMSG,
                          "record: header CRC 0x%08x, computed 0x%08x",
                          r->header_crc, crc);
    r->type = in[4];
    r->flags = in[5];
    r->volume = remus_get16(in + 6);
    r->salt = remus_get32(in + 8);
    r->length = remus_get32(in + 12);
    r->offset = remus_get64(in + 16);
    r->range = remus_get64(in + 24);
    r->epoch = remus_get64(in + 32);
    r->session = remus_get64(in + 40);
    r->number = remus_get64(in + 48);
    r->payload_crc = remus_get32(in + 56);
    int err = check_kind(r);
    if (err)
        return err;
    if (r->length > REMUS_REC_PAYLOAD_MAX)
        return remus_fail(-EBADMSG, "record: payload of %u bytes, limit %u",
                          r->length, REMUS_REC_PAYLOAD_MAX);
    if (r->length == 0 && r->payload_crc != 0)
        return remus_fail(-EBADMSG, "record: CRC of an empty payload");
    return 0;
}

void remus_record_salt(unsigned char header[REMUS_REC_HEADER], uint32_t salt)
{
    remus_put32(header + 8, salt);
    remus_put32(header + 60, remus_crc32c(0, header, 60));
}

int remus_record_counted(const struct remus_record *r)
{
    if (r->type == REMUS_REC_BARRIER)
        return 1;
    return (r->type == REMUS_REC_WRITE || r->type == REMUS_REC_ZERO) &&
           !(r->flags & REMUS_REC_DIRECT);
}

uint32_t remus_record_run(uint32_t run, uint32_t wire_header_crc)
{
    unsigned char le[4];
    remus_put32(le, wire_header_crc);
    return remus_crc32c(run, le, sizeof le);
}

uint64_t remus_record_cost(const struct remus_record *r)
{
    if (r->type == REMUS_REC_BARRIER)
        return BARRIER_COST;
    if (!remus_record_counted(r))
        return 0;
    uint64_t gap = r->length >= REMUS_REC_LARGE ? REMUS_PAGE : 0;
    return REMUS_REC_HEADER + r->length + gap + REMUS_INDEX_COST;
}

uint64_t remus_record_place(uint64_t at, uint32_t length)
{
    if (length < REMUS_REC_LARGE)
        return at;
    uint64_t payload = at + REMUS_REC_HEADER + REMUS_PAGE - 1;
    return payload - payload % REMUS_PAGE - REMUS_REC_HEADER;
}

int remus_record_marks(const struct remus_record *r)
{
    return r->type == REMUS_REC_BARRIER || r->type == REMUS_REC_COMMIT ||
           r->type == REMUS_REC_TOLD;
}

/* ---- payloads --------------------------------------------------------------- */

void remus_ioctl_id_encode(const struct remus_ioctl_id *by,
                           unsigned char out[REMUS_IOCTL_ID_BYTES])
{
    memcpy(out, by->session, REMUS_ID_BYTES);
    remus_put64(out + REMUS_ID_BYTES, by->number);
}

void remus_ioctl_id_decode(const unsigned char in[REMUS_IOCTL_ID_BYTES],
                           struct remus_ioctl_id *by)
{
    memcpy(by->session, in, REMUS_ID_BYTES);
    by->number = remus_get64(in + REMUS_ID_BYTES);
}

int remus_ioctl_id_same(const struct remus_ioctl_id *a,
                        const struct remus_ioctl_id *b)
{
    return a->number && a->number == b->number &&
           !memcmp(a->session, b->session, REMUS_ID_BYTES);
}

uint32_t remus_barrier_encode(const struct remus_ioctl_id *by, const void *tag,
                              size_t tag_len,
                              unsigned char out[REMUS_BARRIER_MAX])
{
    static const struct remus_ioctl_id none = {.number = 0};
    remus_ioctl_id_encode(by ? by : &none, out);
    if (tag_len)
        memcpy(out + REMUS_IOCTL_ID_BYTES, tag, tag_len);
    return (uint32_t)(REMUS_IOCTL_ID_BYTES + tag_len);
}

#define HELLO(at, member, number)                                             \
    REMUS_FIELD(at, struct remus_hello, member, number)
#define REPLY(at, member, number)                                             \
    REMUS_FIELD(at, struct remus_hello_reply, member, number)
#define MEASURED(at, member) REMUS_FIELD(at, struct remus_measured, member, 1)
#define COUNT(table) (sizeof(table) / sizeof *(table))

/* Without the resource's name and the number of ancestors. */
static const struct remus_field hello_fields[] = {
    HELLO(0, version, 1),       HELLO(4, ack, 1),
    HELLO(5, commit_by, 1),     HELLO(6, volumes, 1),
    HELLO(8, next_epoch, 1),    HELLO(16, lineage.id, 0),
    HELLO(100, flags, 1),       HELLO(104, asks.session, 0),
    HELLO(120, asks.number, 1), HELLO(128, sessions, 1),
    HELLO(136, session, 1),
};

static const struct remus_field reply_fields[] = {
    REPLY(0, version, 1),     REPLY(4, max_payload, 1),
    REPLY(8, last_epoch, 1),  REPLY(16, next_number, 1),
    REPLY(24, credit, 1),     REPLY(32, reserve, 1),
    REPLY(40, generation, 0), REPLY(56, held, 1),
    REPLY(64, committed, 1),  REPLY(72, capacity, 1),
    REPLY(80, content, 1),    REPLY(84, flags, 1),
    REPLY(88, origin, 0),     REPLY(104, has, 1),
};

static const struct remus_field measured_fields[] = {
    MEASURED(0, epoch),
    MEASURED(8, extents),
    MEASURED(16, coalesced),
};

size_t remus_hello_encode(const struct remus_hello *h, unsigned char *out)
{
    memset(out, 0, REMUS_HELLO_FIXED);
    remus_fields_put(hello_fields, COUNT(hello_fields), h, out);
    memcpy(out + 32, h->resource, sizeof h->resource);
    remus_put16(out + 96, (uint16_t)h->lineage.count);
    unsigned char *p = out + REMUS_HELLO_FIXED;
    for (unsigned int i = 0; i < h->volumes; i++, p += REMUS_HELLO_VOLUME) {
        memcpy(p, h->name[i], sizeof h->name[i]);
        remus_put64(p + 64, h->size[i]);
    }
    for (uint32_t i = 0; i < h->lineage.count;
         i++, p += REMUS_HELLO_ANCESTOR) {
        memcpy(p, h->lineage.ancestor[i].id, REMUS_ID_BYTES);
        remus_put64(p + 16, h->lineage.ancestor[i].end);
    }
    return (size_t)(p - out);
}

int remus_hello_decode(const unsigned char *in, size_t len,
                       struct remus_hello *h)
{
    memset(h, 0, sizeof *h);
    if (len < 4)
        return remus_fail(-EBADMSG, "hello of %zu bytes is too short", len);
    h->version = remus_get32(in);
    if (h->version != REMUS_WIRE_VERSION)
        return remus_fail(-EBADMSG,
                          "the primary speaks stream version %u, this "
                          "backup %u: install the same release on both",
                          h->version, REMUS_WIRE_VERSION);
    if (len < REMUS_HELLO_FIXED)
        return remus_fail(-EBADMSG, "hello of %zu bytes is too short", len);
    remus_fields_get(hello_fields, COUNT(hello_fields), in, h);
    memcpy(h->resource, in + 32, REMUS_NAME_MAX);
    h->lineage.count = remus_get16(in + 96);
    if (h->flags)
        return remus_fail(-EBADMSG,
                          "hello: unknown flag 0x%x: install the same release "
                          "on both sides",
                          h->flags);
    if (h->volumes == 0 || h->volumes > REMUS_VOLUMES_MAX ||
        h->lineage.count > REMUS_ANCESTORS_MAX ||
        len != REMUS_HELLO_FIXED + h->volumes * (size_t)REMUS_HELLO_VOLUME +
                   h->lineage.count * (size_t)REMUS_HELLO_ANCESTOR)
        return remus_fail(-EBADMSG,
                          "hello of %zu bytes with %u volumes and %u "
                          "ancestors",
                          len, h->volumes, h->lineage.count);
    const unsigned char *p = in + REMUS_HELLO_FIXED;
    for (unsigned int i = 0; i < h->volumes; i++, p += REMUS_HELLO_VOLUME) {
        memcpy(h->name[i], p, REMUS_NAME_MAX);
        h->size[i] = remus_get64(p + 64);
    }
    for (uint32_t i = 0; i < h->lineage.count;
         i++, p += REMUS_HELLO_ANCESTOR) {
        memcpy(h->lineage.ancestor[i].id, p, REMUS_ID_BYTES);
        h->lineage.ancestor[i].end = remus_get64(p + 16);
    }
    return 0;
}

void remus_hello_reply_encode(const struct remus_hello_reply *h,
                              unsigned char out[REMUS_HELLO_REPLY_BYTES])
{
    remus_fields_put(reply_fields, COUNT(reply_fields), h, out);
}

int remus_hello_reply_decode(const unsigned char *in, size_t len,
                             struct remus_hello_reply *h)
{
    h->version = len >= 4 ? remus_get32(in) : 0;
    if (len != REMUS_HELLO_REPLY_BYTES && h->version == REMUS_WIRE_VERSION)
        return remus_fail(-EBADMSG, "hello reply of %zu bytes", len);
    if (h->version != REMUS_WIRE_VERSION)
        return remus_fail(-EBADMSG,
                          "the backup speaks stream version %u, this "
                          "primary %u: install the same release on both",
                          h->version, REMUS_WIRE_VERSION);
    remus_fields_get(reply_fields, COUNT(reply_fields), in, h);
    if (h->flags & ~REMUS_REPLY_FLAGS)
        return remus_fail(-EBADMSG,
                          "hello reply: unknown flag 0x%x: install the same "
                          "release on both sides",
                          h->flags & ~REMUS_REPLY_FLAGS);
    if (h->content > REMUS_CONTENT_MARKED)
        return remus_fail(-EBADMSG, "hello reply: unknown content %u",
                          h->content);
    if (h->max_payload == 0 || h->max_payload > REMUS_REC_PAYLOAD_MAX)
        return remus_fail(-EBADMSG, "hello reply: payload limit %u",
                          h->max_payload);
    const uint64_t numbers[] = {h->last_epoch, h->next_number, h->credit,
                                h->reserve,    h->held,        h->committed,
                                h->capacity,   h->has};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i] > REMUS_NUMBER_MAX)
            return remus_fail(-EBADMSG, "hello reply: a number of %llu",
                              (unsigned long long)numbers[i]);
    return 0;
}

void remus_measured_encode(const struct remus_measured *m,
                           unsigned char out[REMUS_MEASURED_BYTES])
{
    remus_fields_put(measured_fields, COUNT(measured_fields), m, out);
}

void remus_measured_decode(const unsigned char in[REMUS_MEASURED_BYTES],
                           struct remus_measured *m)
{
    remus_fields_get(measured_fields, COUNT(measured_fields), in, m);
}
