/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The journal's reading side: what counts at a start; the rules are in
 * journal.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "journal/journal.h"

typedef unsigned long long ull;

/* What a reading carries from segment to segment. */
struct reading {
    struct remus_journal *j;
    const struct remus_journal_visitor *v;
    unsigned char *buf;      /* one segment */
    struct remus_segment at; /* the one in it; seq 0: none yet */
    uint64_t end;            /* where the log ends in it, so far */
    struct remus_progress progress;
};

#define DAMAGED                                                               \
    "what was acked may be lost: restore the journal's files as they were; "  \
    "only if they are lost, empty state and journal directory and let the "   \
    "primary copy the disks again"

static int io_error(const struct remus_journal *j, const char *what,
                    uint64_t seq, int err)
{
    return remus_fail(err, "journal %s: %s segment.%04llu: %s", j->dir, what,
                      (ull)(seq % j->segments), remus_errno_text(err));
}

/* The header in a file.  1: it is valid; 0: it is not; -errno. */
static int read_header(const struct remus_journal *j, unsigned int file,
                       struct remus_segment *seg)
{
    unsigned char p[REMUS_SEGMENT_HEADER] = {0};
    ssize_t n = remus_io_read_upto(j->io, j->files[file], p, sizeof p, 0);
    if (n < 0)
        return io_error(j, "read", file, (int)n);
    int rc = remus_segment_decode(p, &j->name, seg);
    return rc < 0 ? remus_fail_in(rc, "journal %s: segment.%04u", j->dir, file)
                  : rc;
}

/* The header of segment `seq`, if it is in its file. */
static int read_expected(const struct remus_journal *j, uint64_t seq,
                         struct remus_segment *seg)
{
    int rc = read_header(j, (unsigned int)(seq % j->segments), seg);
    return rc > 0 ? seg->seq == seq : rc;
}

/* Fill the buffer with a segment. */
static int load(struct reading *rd, uint64_t seq)
{
    struct remus_journal *j = rd->j;
    size_t size = (size_t)j->segment_bytes;
    ssize_t n = remus_io_read_upto(j->io, j->files[seq % j->segments], rd->buf,
                                   size, 0);
    if (n < 0)
        return io_error(j, "read", seq, (int)n);
    /* Its zeros may have been lost before anything was promised; what is
     * missing is zero all the same. */
    memset(rd->buf + n, 0, size - (size_t)n);
    return 0;
}

/* ---- records of one segment ---------------------------------------------- */

/* Is a record's header at `h`, and does it end before `limit`? */
static int is_record(const struct reading *rd, uint64_t h, uint64_t limit,
                     struct remus_record *r)
{
    if (h + REMUS_REC_HEADER > limit || remus_record_decode(rd->buf + h, r) ||
        r->salt != rd->at.salt || r->session != rd->at.session ||
        r->length > rd->j->max_payload ||
        r->length > limit - h - REMUS_REC_HEADER)
        return 0;
    return !r->length || remus_crc32c(0, rd->buf + h + REMUS_REC_HEADER,
                                      r->length) == r->payload_crc;
}

/* The header of the record behind `end`; 0: there is none. */
static uint64_t next_record(const struct reading *rd, uint64_t end,
                            uint64_t limit, struct remus_record *r)
{
    if (is_record(rd, end, limit, r) &&
        remus_record_place(end, r->length) == end)
        return end;
    uint64_t large = remus_record_place(end, REMUS_REC_LARGE);
    return is_record(rd, large, limit, r) && r->length >= REMUS_REC_LARGE
               ? large
               : 0;
}

/* Visit the records of the segment up to `limit`; 0, or <0 error. */
static int scan(struct reading *rd, uint64_t limit)
{
    struct remus_journal *j = rd->j;
    struct remus_record r;
    uint64_t h;
    uint64_t base = rd->at.seq % j->segments * j->segment_bytes;
    rd->end = REMUS_PAGE;
    while ((h = next_record(rd, rd->end, limit, &r))) {
        uint64_t payload = h + REMUS_REC_HEADER;
        int rc = rd->v->record(rd->v->ctx, &r, rd->buf + payload,
                               base + payload, &rd->progress);
        if (rc)
            return rc < 0 ? rc : 0;
        rd->end = payload + r.length;
        if (!remus_record_marks(&r))
            continue;
        rd->end = (rd->end + REMUS_PAGE - 1) / REMUS_PAGE * REMUS_PAGE;
        j->mark = (struct remus_mark){rd->at.seq, rd->end, rd->progress};
    }
    return 0;
}

/* ---- segment by segment ---------------------------------------------------- */

static int same_epoch(const struct remus_progress *a,
                      const struct remus_progress *b)
{
    return a->epoch == b->epoch && a->records == b->records &&
           a->run == b->run && a->open == b->open;
}

/* The end that a start names is there, a mark, with nothing behind it. */
static int check_start(const struct reading *rd,
                       const struct remus_segment *next)
{
    const struct remus_mark *m = &rd->j->mark;
    if (m->seq == rd->at.seq && m->end == next->prev_end &&
        rd->end == next->prev_end && same_epoch(&m->at, &next->at) &&
        m->at.number <= next->at.number)
        return 0;
    return remus_fail(-EBADMSG,
                      "journal %s is damaged: segment.%04llu was begun behind "
                      "byte %llu of segment.%04llu, which can be read only up "
                      "to byte %llu; " DAMAGED,
                      rd->j->dir, (ull)(next->seq % rd->j->segments),
                      (ull)next->prev_end, (ull)(rd->at.seq % rd->j->segments),
                      (ull)rd->end);
}

/* Does the log go on with this segment?  1; 0: it ends before it. */
static int goes_on(const struct reading *rd, const struct remus_segment *next)
{
    if (next->prev_salt != rd->at.salt)
        return 0;
    return next->kind == REMUS_SEGMENT_START ||
           (next->prev_end == rd->end &&
            next->at.number == rd->progress.number &&
            same_epoch(&next->at, &rd->progress));
}

/* Read a segment that counts.  `next` is the header of the one behind it, if
 * `more`. */
static int read_one(struct reading *rd, const struct remus_segment *seg,
                    const struct remus_segment *next, int more)
{
    struct remus_journal *j = rd->j;
    int start = more && next->prev_salt == seg->salt &&
                next->kind == REMUS_SEGMENT_START;
    rd->at = *seg;
    rd->progress = seg->at;
    if (seg->kind == REMUS_SEGMENT_START)
        rd->progress.open = 0; /* what was open there never was closed */
    j->salts[seg->seq % j->segments] = seg->salt;
    int rc = rd->v->segment(rd->v->ctx, seg);
    if (!rc)
        rc = load(rd, seg->seq);
    if (!rc)
        rc = scan(rd, start ? next->prev_end : j->segment_bytes);
    return rc || !start ? rc : check_start(rd, next);
}

static int read_log(struct reading *rd, uint64_t tail, uint32_t salt)
{
    struct remus_journal *j = rd->j;
    struct remus_segment seg, next;
    int rc = read_expected(j, tail, &seg);
    if (rc < 0)
        return rc;
    if (!rc || seg.salt != salt)
        return remus_fail(-EBADMSG,
                          "journal %s is damaged: the header of segment.%04llu"
                          ", where it begins, can't be read; " DAMAGED,
                          j->dir, (ull)(tail % j->segments));
    for (int more = 1; more > 0; seg = next) {
        more = seg.seq + 1 < tail + j->segments
                   ? read_expected(j, seg.seq + 1, &next)
                   : 0;
        rc = more < 0 ? more : read_one(rd, &seg, &next, more);
        if (rc)
            return rc;
        more = more && goes_on(rd, &next);
    }
    return 0;
}

/* ---- all headers ------------------------------------------------------------- */

/* Headers that say that the superblock, or what was read, is not all. */
static int check_headers(const struct reading *rd, uint64_t tail,
                         uint64_t serial)
{
    const struct remus_journal *j = rd->j;
    for (unsigned int i = 0; i < j->segments; i++) {
        struct remus_segment s;
        int rc = read_header(j, i, &s);
        if (rc < 0)
            return rc;
        if (!rc)
            continue;
        if (s.serial > serial)
            return remus_fail(-EBADMSG,
                              "backup.state (serial %llu) is older than the "
                              "journal %s (segment.%04u: %llu): its newer "
                              "copy is damaged, or an old file was put back: "
                              "restore it; only if it is lost, empty state "
                              "and journal directory and let the primary copy "
                              "the disks again",
                              (ull)serial, j->dir, i, (ull)s.serial);
        if (rd->at.seq && s.kind == REMUS_SEGMENT_START && s.prev_salt &&
            s.seq > rd->at.seq && s.seq < tail + j->segments)
            return remus_fail(
                -EBADMSG,
                "journal %s is damaged: segment.%04u was begun "
                "behind an end that was synced, and "
                "segment.%04llu is the last that can be read; " DAMAGED,
                j->dir, i, (ull)(rd->at.seq % j->segments));
    }
    return 0;
}

static int sync_files(struct remus_journal *j)
{
    for (unsigned int i = 0; i < j->segments; i++) {
        int err = j->io->fdatasync(j->io, j->files[i]);
        if (err)
            return io_error(j, "before recovery: sync", i, err);
        j->io->drop_cache(j->io, j->files[i]);
    }
    return 0;
}

int remus_journal_recover(struct remus_journal *j, uint64_t tail,
                          uint32_t salt, uint64_t serial,
                          const struct remus_journal_visitor *v)
{
    /* What the page cache holds may not be on the medium: sync it first,
     * then look at what the medium holds, then rely on it. */
    struct reading rd = {.j = j, .v = v};
    int err = sync_files(j);
    if (!err)
        err = check_headers(&rd, tail, serial);
    if (!err && salt) {
        rd.buf = malloc((size_t)j->segment_bytes);
        err = rd.buf
                  ? read_log(&rd, tail, salt)
                  : remus_fail(-ENOMEM, "journal %s: out of memory", j->dir);
        free(rd.buf);
        if (!err)
            err = check_headers(&rd, tail, serial);
    }
    if (err)
        return err;
    /* A log without a mark is none: what comes next begins a new one, and
     * not in the file that the superblock still names. */
    int none = salt && !j->mark.seq;
    j->next_seq = j->mark.seq ? j->mark.seq + 1 : none ? tail + 1 : tail;
    j->tail = none ? j->next_seq : tail;
    j->dirty_from = j->next_seq;
    return 0;
}
