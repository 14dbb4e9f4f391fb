/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The journal's reading side: what is valid after a crash. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "journal.h"
#include "segment.h"

void remus_segment_encode(const struct remus_segment *seg,
                          const char *resource, uint64_t segment_bytes,
                          unsigned char out[REMUS_SEGMENT_HEADER])
{
    memset(out, 0, REMUS_SEGMENT_HEADER);
    remus_put32(out, REMUS_JOURNAL_MAGIC);
    remus_put32(out + 4, REMUS_JOURNAL_VERSION);
    remus_put64(out + 8, seg->seq);
    remus_put32(out + 16, seg->salt);
    remus_put32(out + 20, seg->prev_salt);
    remus_put64(out + 24, seg->session);
    remus_put64(out + 32, seg->first_number);
    remus_put64(out + 40, seg->prev_number);
    remus_put64(out + 48, seg->epoch);
    remus_put32(out + 56, seg->flags);
    remus_put32(out + 60, (uint32_t)segment_bytes);
    remus_put32(out + 64, remus_crc32c(0, resource, strlen(resource)));
    remus_put32(out + 68, seg->volumes);
    remus_put32(out + 80, remus_crc32c(0, out, 80));
}

int remus_segment_decode(const unsigned char in[REMUS_SEGMENT_HEADER],
                         const char *resource, uint64_t segment_bytes,
                         struct remus_segment *seg)
{
    if (remus_get32(in) != REMUS_JOURNAL_MAGIC ||
        remus_get32(in + 4) != REMUS_JOURNAL_VERSION ||
        remus_get32(in + 80) != remus_crc32c(0, in, 80) ||
        remus_get32(in + 60) != (uint32_t)segment_bytes ||
        remus_get32(in + 64) != remus_crc32c(0, resource, strlen(resource)))
        return 0;
    seg->seq = remus_get64(in + 8);
    seg->salt = remus_get32(in + 16);
    seg->prev_salt = remus_get32(in + 20);
    seg->session = remus_get64(in + 24);
    seg->first_number = remus_get64(in + 32);
    seg->prev_number = remus_get64(in + 40);
    seg->epoch = remus_get64(in + 48);
    seg->flags = remus_get32(in + 56);
    seg->volumes = remus_get32(in + 68);
    return 1;
}

/*
 * Read one segment into `buf`.  1: it is the segment expected; 0: it is not;
 * <0 error.
 */
static int load(struct remus_journal *j, uint64_t seq, unsigned char *buf,
                struct remus_segment *seg)
{
    int file = j->files[seq % j->segments];
    ssize_t n = remus_io_read_upto(j->io, file, buf,
                                   (size_t)j->segment_bytes, 0);
    if (n < 0)
        return remus_fail((int)n, "journal %s: read segment %llu: %s", j->dir,
                          (unsigned long long)seq, remus_errno_text((int)n));
    /* Its zeros may have been lost before anything was promised; what is
     * missing is zero all the same. */
    memset(buf + n, 0, (size_t)j->segment_bytes - (size_t)n);
    return remus_segment_decode(buf, j->resource, j->segment_bytes, seg) &&
           seg->seq == seq;
}

/* Visit the records of a loaded segment; 0, or <0 error. */
static int scan(const struct remus_journal *j,
                const struct remus_segment *seg, const unsigned char *buf,
                const struct remus_journal_visitor *v)
{
    uint64_t at = REMUS_PAGE;
    while (at + REMUS_REC_HEADER <= j->segment_bytes) {
        struct remus_record r;
        if (remus_record_decode(buf + at, &r) || r.salt != seg->salt ||
            r.session != seg->session || r.length > j->max_payload)
            return 0;
        uint64_t payload = at + REMUS_REC_HEADER;
        if (r.length > j->segment_bytes - payload)
            return 0;
        if (r.length &&
            remus_crc32c(0, buf + payload, r.length) != r.payload_crc)
            return 0;
        int rc = v->record(v->ctx, &r, buf + payload,
                           seg->seq % j->segments * j->segment_bytes + payload);
        if (rc)
            return rc < 0 ? rc : 0;
        at = payload + r.length;
        if (r.type == REMUS_REC_BARRIER || r.type == REMUS_REC_COMMIT)
            at = (at + REMUS_PAGE - 1) / REMUS_PAGE * REMUS_PAGE;
    }
    return 0;
}

int remus_journal_recover(struct remus_journal *j, uint64_t tail,
                          const struct remus_journal_visitor *v)
{
    /* What the page cache holds may not be on the medium: sync it first,
     * then look at what the medium holds, then rely on it. */
    for (unsigned int i = 0; i < j->segments; i++) {
        int err = j->io->fdatasync(j->io, j->files[i]);
        if (err)
            return remus_fail(err, "journal %s: sync before recovery: %s",
                              j->dir, remus_errno_text(err));
        j->io->drop_cache(j->io, j->files[i]);
    }
    unsigned char *buf = malloc((size_t)j->segment_bytes);
    if (!buf)
        return remus_fail(-ENOMEM, "journal %s: out of memory", j->dir);
    int rc = 0;
    uint64_t seq = tail;
    uint32_t salt = 0;
    for (; seq < tail + j->segments; seq++) {
        struct remus_segment seg;
        rc = load(j, seq, buf, &seg);
        if (rc <= 0 || (seq > tail && seg.prev_salt != salt))
            break;
        rc = v->segment(v->ctx, &seg, seq == tail);
        if (rc)
            break;
        rc = scan(j, &seg, buf, v);
        if (rc)
            break;
        salt = seg.salt;
        j->salts[seq % j->segments] = salt;
    }
    free(buf);
    if (rc < 0)
        return rc;
    j->tail = tail;
    j->next_seq = seq;
    j->last_salt = salt;
    j->dirty_from = seq;
    return 0;
}
