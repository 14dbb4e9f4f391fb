/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The header of a journal segment; the layout is in segment.h. */
#include "format/segment.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/le.h"

#define CRC_AT 124u

int remus_progress_take(struct remus_progress *at,
                        const struct remus_record *r)
{
    struct remus_progress next = *at;
    if (r->number != at->number ||
        (at->open ? r->epoch != at->epoch : r->epoch <= at->epoch))
        return 1;
    if (!at->open) {
        next.epoch = r->epoch;
        next.records = next.run = 0;
    }
    next.number++;
    next.open = r->type != REMUS_REC_BARRIER;
    if (next.open) {
        struct remus_record wire = *r;
        unsigned char header[REMUS_REC_HEADER];
        wire.salt = 0;
        remus_record_encode(&wire, header);
        next.records++;
        next.run = remus_record_run(next.run, wire.header_crc);
    } else if (r->offset != next.records || r->range != next.run) {
        return 1;
    }
    *at = next;
    return 0;
}

static uint32_t name_crc(const struct remus_journal_name *name)
{
    return remus_crc32c(0, name->resource, strlen(name->resource));
}

void remus_segment_encode(const struct remus_segment *seg,
                          const struct remus_journal_name *name,
                          unsigned char out[REMUS_SEGMENT_HEADER])
{
    memset(out, 0, REMUS_SEGMENT_HEADER);
    remus_put32(out, REMUS_JOURNAL_MAGIC);
    remus_put32(out + 4, REMUS_JOURNAL_VERSION);
    remus_put64(out + 8, seg->seq);
    remus_put32(out + 16, seg->salt);
    remus_put32(out + 20, seg->prev_salt);
    remus_put64(out + 24, seg->prev_end);
    remus_put32(out + 32, seg->kind);
    remus_put32(out + 36, seg->at.open ? REMUS_SEGMENT_OPEN : 0);
    remus_put64(out + 40, seg->session);
    remus_put64(out + 48, seg->at.number);
    remus_put64(out + 56, seg->at.epoch);
    remus_put64(out + 64, seg->at.records);
    remus_put32(out + 72, seg->at.run);
    remus_put32(out + 76, (uint32_t)name->segment_bytes);
    remus_put64(out + 80, seg->serial);
    memcpy(out + 88, name->id, REMUS_ID_BYTES);
    remus_put32(out + 104, name_crc(name));
    remus_put32(out + 108, seg->volumes);
    remus_put32(out + CRC_AT, remus_crc32c(0, out, CRC_AT));
}

static int check_known(uint32_t version, uint32_t kind, uint32_t flags)
{
    if (version != REMUS_JOURNAL_VERSION)
        return remus_fail(-EPROTONOSUPPORT,
                          "format version %u, this release reads %u: start "
                          "the release that wrote it, or empty state and "
                          "journal directory and let the primary copy the "
                          "disks again",
                          version, REMUS_JOURNAL_VERSION);
    if (kind != REMUS_SEGMENT_START && kind != REMUS_SEGMENT_CONTINUE)
        return remus_fail(-EPROTONOSUPPORT,
                          "unknown kind %u: start the release that wrote it",
                          kind);
    if (flags & ~REMUS_SEGMENT_OPEN)
        return remus_fail(-EPROTONOSUPPORT,
                          "unknown flags 0x%x: start the release that wrote "
                          "it",
                          flags);
    return 1;
}

int remus_segment_decode(const unsigned char in[REMUS_SEGMENT_HEADER],
                         const struct remus_journal_name *name,
                         struct remus_segment *seg)
{
    if (remus_get32(in) != REMUS_JOURNAL_MAGIC ||
        remus_get32(in + CRC_AT) != remus_crc32c(0, in, CRC_AT) ||
        memcmp(in + 88, name->id, REMUS_ID_BYTES) ||
        remus_get32(in + 104) != name_crc(name))
        return 0;
    uint32_t flags = remus_get32(in + 36);
    seg->kind = remus_get32(in + 32);
    int rc = check_known(remus_get32(in + 4), seg->kind, flags);
    if (rc < 0)
        return rc;
    seg->seq = remus_get64(in + 8);
    seg->salt = remus_get32(in + 16);
    seg->prev_salt = remus_get32(in + 20);
    seg->prev_end = remus_get64(in + 24);
    seg->session = remus_get64(in + 40);
    seg->at.number = remus_get64(in + 48);
    seg->at.epoch = remus_get64(in + 56);
    seg->at.records = remus_get64(in + 64);
    seg->at.run = remus_get32(in + 72);
    seg->at.open = (flags & REMUS_SEGMENT_OPEN) != 0;
    seg->serial = remus_get64(in + 80);
    seg->volumes = remus_get32(in + 108);
    return remus_get32(in + 76) == (uint32_t)name->segment_bytes &&
           seg->salt && seg->prev_end <= name->segment_bytes;
}
