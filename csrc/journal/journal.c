/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The journal's writing side; the format is in journal.h. */
#include "journal/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/error.h"
#include "base/random.h"

#define STAGE_BYTES (256u * 1024)
#define HINT_BYTES (1u << 20) /* hand to writeback in steps of this */

/* owner held */
static int fail_final(struct remus_journal *j, int err, const char *what)
{
    if (!j->failed)
        j->failed = err;
    return remus_fail(err, "journal %s: %s segment %llu: %s", j->dir, what,
                      (unsigned long long)j->head.seq, remus_errno_text(err));
}

/* A check did not hold: nothing is written any more.  (owner held) */
static int fail_check(struct remus_journal *j, int err)
{
    if (!j->failed)
        j->failed = err;
    return remus_fail_in(err, "journal %s: segment %llu", j->dir,
                         (unsigned long long)j->head.seq);
}

/* owner held */
static int check_failed(const struct remus_journal *j)
{
    if (!j->failed)
        return 0;
    return remus_fail(j->failed, "journal %s: failed before: %s", j->dir,
                      remus_errno_text(j->failed));
}

uint32_t remus_journal_max_payload(uint64_t segment_bytes)
{
    uint64_t quarter = segment_bytes / 4 / REMUS_PAGE * REMUS_PAGE;
    return quarter < REMUS_REC_PAYLOAD_MAX ? (uint32_t)quarter
                                           : REMUS_REC_PAYLOAD_MAX;
}

/* Write what is missing of a segment file as zeros: fdatasync of blocks that
 * were only allocated costs several times as much.  What is there stays: a
 * file can be short and hold records, if its zeros were lost in a failure. */
static int zero_fill(struct remus_journal *j, int file, uint64_t from)
{
    size_t chunk =
        j->stage_cap < j->segment_bytes ? j->stage_cap : j->segment_bytes;
    memset(j->stage, 0, chunk);
    for (uint64_t at = from; at < j->segment_bytes;) {
        uint64_t left = j->segment_bytes - at;
        size_t n = left < chunk ? (size_t)left : chunk;
        int err = remus_io_write(j->io, file, j->stage, n, at);
        if (err)
            return err;
        at += n;
    }
    return j->io->fdatasync(j->io, file);
}

/* *filled: it had to be made or made whole. */
static int open_segment_file(struct remus_journal *j, unsigned int i,
                             int fresh, unsigned char *filled)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/segment.%04u", j->dir, i);
    int file = j->io->open(j->io, path, O_RDWR | (fresh ? O_CREAT : 0));
    if (file == -ENOENT)
        return remus_fail(file,
                          "journal: %s is gone: restore it; only if it is "
                          "lost, and acked epochs with it, empty state and "
                          "journal directory and let the primary copy the "
                          "disks again",
                          path);
    if (file < 0)
        return remus_fail(file, "journal: open %s: %s%s", path,
                          remus_errno_text(file),
                          file == -EMFILE ? ": allow more (ulimit -n), or "
                                            "choose larger segments"
                                          : "");
    uint64_t size;
    int err = j->io->size(j->io, file, &size);
    if (!err && size > j->segment_bytes && fresh == REMUS_JOURNAL_REMAKE) {
        j->io->close(j->io, file);
        err = j->io->unlink(j->io, path);
        return err ? remus_fail(err, "journal: remove %s: %s", path,
                                remus_errno_text(err))
                   : open_segment_file(j, i, fresh, filled);
    }
    j->files[i] = file;
    if (!err && size > j->segment_bytes)
        return remus_fail(-EINVAL,
                          "journal: %s has %llu bytes, the configured "
                          "segment size is %llu: restore the old limits, or "
                          "give a new, empty journal directory",
                          path, (unsigned long long)size,
                          (unsigned long long)j->segment_bytes);
    if (!err && size < j->segment_bytes) {
        *filled = 1;
        err = zero_fill(j, file, size);
    }
    if (err == -ENOSPC || err == -EDQUOT || err == -EFBIG)
        return remus_fail(err,
                          "journal: fill %s: %s: the journal takes %llu bytes "
                          "in all: make room, or choose a smaller one",
                          path, remus_errno_text(err),
                          (unsigned long long)j->segments *
                              (unsigned long long)j->segment_bytes);
    if (err)
        return remus_fail(err, "journal: fill %s: %s", path,
                          remus_errno_text(err));
    return 0;
}

static int open_segment_files(struct remus_journal *j, int fresh)
{
    unsigned char *filled = calloc(j->segments, 1);
    if (!filled)
        return remus_fail(-ENOMEM, "journal %s: out of memory", j->dir);
    int err = 0;
    unsigned int i;
    for (i = 0; i < j->segments && !err; i++)
        err = open_segment_file(j, i, fresh, &filled[i]);
    /* What could not be made whole holds nothing, and the room it takes is
     * the room that others lack. */
    for (; err && fresh && i-- > 0;) {
        char path[4096];
        snprintf(path, sizeof path, "%s/segment.%04u", j->dir, i);
        if (filled[i])
            j->io->unlink(j->io, path);
    }
    free(filled);
    return err;
}

/* The directory's own name must survive, too. */
static int sync_parent(remus_io *io, const char *dir)
{
    char parent[4096];
    snprintf(parent, sizeof parent, "%s", dir);
    char *slash = strrchr(parent, '/');
    if (!slash)
        return io->sync_dir(io, ".");
    slash[slash == parent] = '\0';
    return io->sync_dir(io, parent);
}

int remus_journal_check_limits(uint64_t total_bytes, uint64_t segment_bytes)
{
    if (segment_bytes < REMUS_SEGMENT_MIN || segment_bytes % REMUS_PAGE ||
        segment_bytes > UINT32_MAX)
        return remus_fail(-EINVAL,
                          "journal: segments of %llu bytes; give a multiple "
                          "of 4096 from 64 KiB to 4 GiB less one page",
                          (unsigned long long)segment_bytes);
    uint64_t count = total_bytes / segment_bytes;
    if (count < REMUS_SEGMENTS_MIN || count > 65536)
        return remus_fail(-EINVAL,
                          "journal: %llu bytes are %llu segments of %llu; "
                          "give room for 4 to 65536",
                          (unsigned long long)total_bytes,
                          (unsigned long long)count,
                          (unsigned long long)segment_bytes);
    return 0;
}

int remus_journal_open(struct remus_journal *j, remus_io *io,
                       pthread_mutex_t *owner, const char *dir,
                       const struct remus_journal_name *name,
                       uint64_t total_bytes, int fresh)
{
    uint64_t segment_bytes = name->segment_bytes;
    memset(j, 0, sizeof *j);
    pthread_mutex_init(&j->sync_lock, NULL);
    j->io = io;
    j->owner = owner;
    j->name = *name;
    int err = remus_journal_check_limits(total_bytes, segment_bytes);
    if (err)
        return err;
    uint64_t count = total_bytes / segment_bytes;
    j->segment_bytes = segment_bytes;
    j->segments = (unsigned int)count;
    j->max_payload = remus_journal_max_payload(segment_bytes);
    j->stage_cap = STAGE_BYTES + 2 * REMUS_PAGE + REMUS_REC_HEADER;
    j->dir = strdup(dir);
    j->files = malloc(count * sizeof *j->files);
    j->salts = calloc(count, sizeof *j->salts);
    j->stage = aligned_alloc(REMUS_PAGE, (j->stage_cap + REMUS_PAGE - 1) /
                                             REMUS_PAGE * REMUS_PAGE);
    for (unsigned int i = 0; j->files && i < j->segments; i++)
        j->files[i] = -1;
    if (!j->dir || !j->files || !j->salts || !j->stage)
        return remus_fail(-ENOMEM, "journal %s: out of memory", dir);
    err = open_segment_files(j, fresh);
    if (err)
        return err;
    err = io->sync_dir(io, dir);
    if (!err)
        err = sync_parent(io, dir);
    if (err)
        return remus_fail(err, "journal: sync directory %s: %s", dir,
                          remus_errno_text(err));
    j->tail = j->next_seq = j->dirty_from = 1;
    return 0;
}

void remus_journal_abandon(struct remus_journal *j)
{
    free(j->files);
    free(j->salts);
    free(j->stage);
    free(j->dir);
    if (j->io)
        pthread_mutex_destroy(&j->sync_lock);
    memset(j, 0, sizeof *j);
}

void remus_journal_close(struct remus_journal *j)
{
    for (unsigned int i = 0; j->files && i < j->segments; i++)
        if (j->files[i] >= 0)
            j->io->close(j->io, j->files[i]);
    remus_journal_abandon(j);
}

/* owner held */
static int head_file(const struct remus_journal *j)
{
    return j->files[j->head.seq % j->segments];
}

/*
 * The one place that writes into a segment: from its header on, each byte
 * once, in order.  So no header is ever written over but by a new segment's,
 * and nothing that was there before a start, or before the mark.
 * (owner held)
 */
static int write_head(struct remus_journal *j, const void *p, size_t n,
                      uint64_t at)
{
    int err = REMUS_CHECK(at == j->written && at + n <= j->segment_bytes);
    if (!err)
        err = REMUS_CHECK(j->head.seq > j->mark.seq ||
                          (j->head.seq == j->mark.seq && at >= j->mark.end));
    if (err)
        return fail_check(j, err);
    err = remus_io_write(j->io, head_file(j), p, n, at);
    if (err)
        return fail_final(j, err, "write");
    j->written = at + n;
    j->writes++;
    return 0;
}

/* Write [stage_base, up_to) of the head, whole pages, and keep the rest.
 * (owner held) */
static int write_stage(struct remus_journal *j, uint64_t up_to)
{
    size_t n = (size_t)(up_to - j->stage_base);
    if (!n)
        return 0;
    int err = write_head(j, j->stage, n, j->stage_base);
    if (err)
        return err;
    size_t rest = j->head_pos > up_to ? (size_t)(j->head_pos - up_to) : 0;
    memmove(j->stage, j->stage + n, rest);
    j->stage_base = up_to;
    return 0;
}

/* Let the device work while more arrives: the barrier's sync is shorter.
 * (owner held) */
static void hint(struct remus_journal *j)
{
    if (j->stage_base - j->hinted < HINT_BYTES)
        return;
    j->io->writeback(j->io, head_file(j), j->hinted,
                     j->stage_base - j->hinted);
    j->hinted = j->stage_base;
}

static uint64_t page_down(uint64_t v)
{
    return v / REMUS_PAGE * REMUS_PAGE;
}

static uint64_t page_up(uint64_t v)
{
    return page_down(v + REMUS_PAGE - 1);
}

/* Zeros up to the page's end, then write everything.  (owner held) */
static int write_all(struct remus_journal *j)
{
    uint64_t end = page_up(j->head_pos);
    memset(j->stage + (j->head_pos - j->stage_base), 0,
           (size_t)(end - j->head_pos));
    return write_stage(j, end);
}

/* May a segment begin here?  What a start names must be synced.
 * (owner held) */
static int check_begin(struct remus_journal *j,
                       const struct remus_progress *at)
{
    const struct remus_mark *m = &j->mark;
    if (remus_journal_unused(j) == 0)
        return remus_fail(-ENOSPC,
                          "journal %s: all %u segments hold epochs that are "
                          "not applied yet",
                          j->dir, j->segments);
    int err = REMUS_CHECK(!m->seq || j->next_seq - m->seq < j->segments);
    if (!err && !j->head.seq && m->seq)
        err =
            REMUS_CHECK(j->next_seq == m->seq + 1 && j->synced >= j->marked &&
                        at->number >= m->at.number);
    return err ? fail_check(j, err) : 0;
}

/* What the new header says of the segment before.  (owner held) */
static struct remus_segment follow(const struct remus_journal *j,
                                   const struct remus_progress *at)
{
    struct remus_segment s = {.seq = j->next_seq,
                              .kind = REMUS_SEGMENT_START,
                              .at = *at,
                              .volumes = j->volumes};
    if (j->head.seq) {
        s.kind = REMUS_SEGMENT_CONTINUE;
        s.prev_salt = j->head.salt;
        s.prev_end = j->head_pos;
    } else if (j->mark.seq) {
        s.prev_salt = j->salts[j->mark.seq % j->segments];
        s.prev_end = j->mark.end;
        s.at = j->mark.at;
        s.at.number = at->number;
    }
    return s;
}

/* owner held */
static int new_salt(struct remus_journal *j, uint32_t *salt)
{
    int err = 0;
    *salt = 0;
    while (!err && !*salt)
        err = remus_random(j->io, salt, sizeof *salt, "journal");
    if (err && !j->failed)
        j->failed = err;
    return err;
}

int remus_journal_begin_segment(struct remus_journal *j, uint64_t session,
                                uint64_t serial,
                                const struct remus_progress *at)
{
    struct remus_segment s = follow(j, at);
    int err = check_failed(j);
    if (!err)
        err = check_begin(j, at);
    if (!err)
        err = new_salt(j, &s.salt);
    if (!err && j->head.seq)
        err = write_all(j);
    if (err)
        return err;
    s.session = session;
    s.serial = serial;
    j->head = s;
    j->next_seq++;
    j->salts[s.seq % j->segments] = s.salt;
    memset(j->stage, 0, REMUS_PAGE);
    remus_segment_encode(&s, &j->name, j->stage);
    j->stage_base = j->hinted = j->written = 0;
    j->head_pos = REMUS_PAGE;
    return write_all(j);
}

int remus_journal_empty(const struct remus_journal *j)
{
    return !j->head.seq && !j->mark.seq;
}

/* owner held */
int remus_journal_fits(const struct remus_journal *j, uint32_t length)
{
    if (!j->head.seq)
        return 0;
    return remus_record_place(j->head_pos, length) + REMUS_REC_HEADER +
               length <=
           j->segment_bytes;
}

/* Copy bytes to the head's end; large ones go from where they are.
 * (owner held) */
static int put(struct remus_journal *j, const unsigned char *p, size_t n)
{
    size_t staged = (size_t)(j->head_pos - j->stage_base);
    if (staged + n > STAGE_BYTES) {
        /* Fill the last page, write the stage, then whole pages straight
         * from the caller's buffer; pages are never written in parts. */
        size_t fill = (size_t)(page_up(j->head_pos) - j->head_pos);
        if (fill > n)
            fill = n;
        memcpy(j->stage + staged, p, fill);
        j->head_pos += fill;
        p += fill;
        n -= fill;
        int err = write_stage(j, page_down(j->head_pos));
        if (err)
            return err;
        size_t whole = (size_t)page_down(n);
        if (whole) {
            err = write_head(j, p, whole, j->head_pos);
            if (err)
                return err;
            j->head_pos += whole;
            j->stage_base = j->head_pos;
            p += whole;
            n -= whole;
        }
        hint(j);
        staged = (size_t)(j->head_pos - j->stage_base);
    }
    memcpy(j->stage + staged, p, n);
    j->head_pos += n;
    return 0;
}

int remus_journal_append(struct remus_journal *j,
                         unsigned char header[REMUS_REC_HEADER],
                         const struct remus_record *r,
                         const unsigned char *payload,
                         const struct remus_progress *at, uint64_t *pos)
{
    static const unsigned char zeros[REMUS_PAGE];
    int err = check_failed(j);
    if (!err && (err = REMUS_CHECK(remus_journal_fits(j, r->length))))
        fail_check(j, err);
    if (err)
        return err;
    uint64_t gap = remus_record_place(j->head_pos, r->length) - j->head_pos;
    remus_record_salt(header, j->head.salt);
    err = put(j, zeros, (size_t)gap);
    if (!err)
        err = put(j, header, REMUS_REC_HEADER);
    *pos = j->head.seq % j->segments * j->segment_bytes + j->head_pos;
    if (!err && r->length)
        err = put(j, payload, r->length);
    if (err || !remus_record_marks(r))
        return err;
    err = write_all(j);
    if (err)
        return err;
    j->head_pos = j->stage_base;
    j->mark = (struct remus_mark){j->head.seq, j->head_pos, *at};
    j->marked = j->writes;
    return 0;
}

/* sync_lock held */
static int sync_held(struct remus_journal *j)
{
    pthread_mutex_lock(j->owner);
    int err = check_failed(j);
    uint64_t from = j->dirty_from, to = j->head.seq, writes = j->writes;
    pthread_mutex_unlock(j->owner);
    for (uint64_t seq = from; !err && to && seq <= to; seq++) {
        err = j->io->fdatasync(j->io, j->files[seq % j->segments]);
        if (err) {
            /* Final: the kernel may have dropped the dirty pages, and a
             * second sync would answer 0 for data that is gone. */
            pthread_mutex_lock(j->owner);
            err = fail_final(j, err, "fdatasync");
            pthread_mutex_unlock(j->owner);
        }
    }
    if (!err && to) {
        pthread_mutex_lock(j->owner);
        if (j->dirty_from < to)
            j->dirty_from = to;
        j->synced = writes;
        pthread_mutex_unlock(j->owner);
    }
    return err;
}

int remus_journal_sync(struct remus_journal *j)
{
    pthread_mutex_lock(&j->sync_lock);
    int err = sync_held(j);
    pthread_mutex_unlock(&j->sync_lock);
    return err;
}

int remus_journal_settle(struct remus_journal *j)
{
    pthread_mutex_lock(&j->sync_lock);
    for (;;) {
        pthread_mutex_lock(j->owner);
        if (j->failed || j->synced >= j->marked)
            return check_failed(j);
        pthread_mutex_unlock(j->owner);
        sync_held(j);
    }
}

void remus_journal_free(struct remus_journal *j, uint64_t tail)
{
    /* A start names the mark's segment. */
    if (tail > j->tail && (!j->mark.seq || tail <= j->mark.seq))
        j->tail = tail;
}

/* owner held */
static void forget_head(struct remus_journal *j)
{
    memset(&j->head, 0, sizeof j->head);
    j->head_pos = j->stage_base = j->written = 0;
    j->dirty_from = j->next_seq;
}

uint64_t remus_journal_drop(struct remus_journal *j)
{
    memset(&j->mark, 0, sizeof j->mark);
    j->marked = 0;
    j->tail = j->next_seq;
    forget_head(j);
    return j->next_seq;
}

/* owner held */
void remus_journal_end_session(struct remus_journal *j)
{
    /* The superblock names the tail until a new log begins in another file;
     * without a mark nothing in it counts. */
    if (!j->mark.seq && j->head.seq)
        j->tail = j->next_seq = j->tail + 1;
    else if (j->mark.seq)
        j->next_seq = j->mark.seq + 1;
    forget_head(j);
}

unsigned int remus_journal_used(const struct remus_journal *j)
{
    return (unsigned int)(j->next_seq - j->tail);
}

/* owner held */
unsigned int remus_journal_unused(const struct remus_journal *j)
{
    return j->segments - remus_journal_used(j);
}

uint64_t remus_journal_segment_worth(const struct remus_journal *j)
{
    /* Its header page, and a record that does not fit any more. */
    uint64_t gap = j->max_payload >= REMUS_REC_LARGE ? REMUS_PAGE : 0;
    return j->segment_bytes - REMUS_PAGE - REMUS_REC_HEADER - gap -
           j->max_payload;
}

int remus_journal_read(struct remus_journal *j, uint64_t pos, void *buf,
                       size_t len)
{
    uint64_t index = pos / j->segment_bytes;
    int err = remus_io_read(j->io, j->files[index], buf, len,
                            pos % j->segment_bytes);
    if (err)
        return remus_fail(err, "journal %s: read segment.%04llu: %s", j->dir,
                          (unsigned long long)index, remus_errno_text(err));
    return 0;
}
