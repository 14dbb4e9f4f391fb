/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Encoding and proving records; the format is in record.h. */
#include "record.h"

#include <errno.h>
#include <string.h>

#include "error.h"

/* Room that one barrier and its commit can take: two records, each padded
 * to a page, the first of them perhaps across a page's end. */
#define BARRIER_COST (3u * REMUS_PAGE)

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
    if (r->type < REMUS_REC_HELLO || r->type >= REMUS_REC_TYPES)
        return remus_fail(-EBADMSG, "record: unknown type %u", r->type);
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
    return remus_record_counted(r) ? REMUS_REC_HEADER + r->length : 0;
}

size_t remus_hello_encode(const struct remus_hello *h, unsigned char *out)
{
    memset(out, 0, REMUS_HELLO_FIXED);
    remus_put32(out, h->version);
    out[4] = h->ack;
    out[5] = h->commit_by;
    remus_put16(out + 6, h->volumes);
    remus_put64(out + 8, h->next_epoch);
    memcpy(out + 16, h->lineage.id, REMUS_ID_BYTES);
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
    if (len < REMUS_HELLO_FIXED)
        return remus_fail(-EBADMSG, "hello of %zu bytes is too short", len);
    h->version = remus_get32(in);
    if (h->version != REMUS_WIRE_VERSION)
        return remus_fail(-EBADMSG,
                          "the primary speaks stream version %u, this "
                          "backup %u: install the same release on both",
                          h->version, REMUS_WIRE_VERSION);
    h->ack = in[4];
    h->commit_by = in[5];
    h->volumes = remus_get16(in + 6);
    h->next_epoch = remus_get64(in + 8);
    memcpy(h->lineage.id, in + 16, REMUS_ID_BYTES);
    memcpy(h->resource, in + 32, REMUS_NAME_MAX);
    h->lineage.count = remus_get16(in + 96);
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
    remus_put32(out, h->version);
    remus_put32(out + 4, h->max_payload);
    remus_put64(out + 8, h->last_epoch);
    remus_put64(out + 16, h->next_number);
    remus_put64(out + 24, h->credit);
    remus_put64(out + 32, h->reserve);
    memcpy(out + 40, h->generation, REMUS_ID_BYTES);
    remus_put64(out + 56, h->held);
    remus_put64(out + 64, h->committed);
    remus_put64(out + 72, h->capacity);
    remus_put32(out + 80, h->content);
    remus_put32(out + 84, 0);
    memcpy(out + 88, h->origin, REMUS_ID_BYTES);
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
    h->max_payload = remus_get32(in + 4);
    h->last_epoch = remus_get64(in + 8);
    h->next_number = remus_get64(in + 16);
    h->credit = remus_get64(in + 24);
    h->reserve = remus_get64(in + 32);
    memcpy(h->generation, in + 40, REMUS_ID_BYTES);
    h->held = remus_get64(in + 56);
    h->committed = remus_get64(in + 64);
    h->capacity = remus_get64(in + 72);
    h->content = remus_get32(in + 80);
    memcpy(h->origin, in + 88, REMUS_ID_BYTES);
    if (h->content > REMUS_CONTENT_SPLIT)
        return remus_fail(-EBADMSG, "hello reply: unknown content %u",
                          h->content);
    if (h->max_payload == 0 || h->max_payload > REMUS_REC_PAYLOAD_MAX)
        return remus_fail(-EBADMSG, "hello reply: payload limit %u",
                          h->max_payload);
    const uint64_t numbers[] = {h->last_epoch, h->next_number, h->credit,
                                h->reserve,    h->held,        h->committed,
                                h->capacity};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i] > REMUS_NUMBER_MAX)
            return remus_fail(-EBADMSG, "hello reply: a number of %llu",
                              (unsigned long long)numbers[i]);
    return 0;
}

void remus_measured_encode(const struct remus_measured *m,
                           unsigned char out[REMUS_MEASURED_BYTES])
{
    remus_put64(out, m->epoch);
    remus_put64(out + 8, m->extents);
    remus_put64(out + 16, m->coalesced);
}

void remus_measured_decode(const unsigned char in[REMUS_MEASURED_BYTES],
                           struct remus_measured *m)
{
    m->epoch = remus_get64(in);
    m->extents = remus_get64(in + 8);
    m->coalesced = remus_get64(in + 16);
}
