/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The journal's writing side; the format is in journal.h. */
#include "journal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "segment.h"

#define STAGE_BYTES (256u * 1024)
#define HINT_BYTES (1u << 20) /* hand to writeback in steps of this */

static int fail_final(struct remus_journal *j, int err, const char *what)
{
    if (!j->failed)
        j->failed = err;
    return remus_fail(err,
                      "journal %s: %s segment %llu: %s",
                      j->dir, what, (unsigned long long)j->head.seq,
                      remus_errno_text(err));
}

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
    size_t chunk = j->stage_cap < j->segment_bytes ? j->stage_cap
                                                   : j->segment_bytes;
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

static int open_segment_file(struct remus_journal *j, unsigned int i,
                             int fresh)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/segment.%04u", j->dir, i);
    int file = j->io->open(j->io, path, O_RDWR | (fresh ? O_CREAT : 0));
    if (file == -ENOENT)
        return remus_fail(file,
                          "journal: %s is gone: restore it; only if it is "
                          "lost, and acked epochs with it, empty state and "
                          "journal directory and let the primary copy the "
                          "disks anew",
                          path);
    if (file < 0)
        return remus_fail(file, "journal: open %s: %s%s", path,
                          remus_errno_text(file),
                          file == -EMFILE ? ": allow more (ulimit -n), or "
                                            "choose larger segments"
                                          : "");
    j->files[i] = file;
    uint64_t size;
    int err = j->io->size(j->io, file, &size);
    if (!err && size > j->segment_bytes)
        return remus_fail(-EINVAL,
                          "journal: %s has %llu bytes, the configured "
                          "segment size is %llu: restore the old limits, or "
                          "give a new, empty journal directory",
                          path, (unsigned long long)size,
                          (unsigned long long)j->segment_bytes);
    if (!err && size < j->segment_bytes)
        err = zero_fill(j, file, size);
    if (err)
        return remus_fail(err, "journal: fill %s: %s", path,
                          remus_errno_text(err));
    return 0;
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

int remus_journal_open(struct remus_journal *j, remus_io *io,
                       pthread_mutex_t *owner, const char *dir,
                       const char *resource, uint64_t total_bytes,
                       uint64_t segment_bytes, int fresh)
{
    memset(j, 0, sizeof *j);
    pthread_mutex_init(&j->sync_lock, NULL);
    j->io = io;
    j->owner = owner;
    j->resource = resource;
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
    j->segment_bytes = segment_bytes;
    j->segments = (unsigned int)count;
    j->max_payload = remus_journal_max_payload(segment_bytes);
    j->stage_cap = STAGE_BYTES + 2 * REMUS_PAGE + REMUS_REC_HEADER;
    j->dir = strdup(dir);
    j->files = malloc(count * sizeof *j->files);
    j->salts = calloc(count, sizeof *j->salts);
    j->stage = aligned_alloc(REMUS_PAGE,
                             (j->stage_cap + REMUS_PAGE - 1) / REMUS_PAGE *
                                 REMUS_PAGE);
    for (unsigned int i = 0; j->files && i < j->segments; i++)
        j->files[i] = -1;
    if (!j->dir || !j->files || !j->salts || !j->stage)
        return remus_fail(-ENOMEM, "journal %s: out of memory", dir);
    int err = 0;
    for (unsigned int i = 0; i < j->segments; i++) {
        err = open_segment_file(j, i, fresh);
        if (err)
            return err;
    }
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

static int head_file(const struct remus_journal *j)
{
    return j->files[j->head.seq % j->segments];
}

/* Write [stage_base, up_to) of the head, whole pages, and keep the rest. */
static int write_stage(struct remus_journal *j, uint64_t up_to)
{
    size_t n = (size_t)(up_to - j->stage_base);
    if (!n)
        return 0;
    int err = remus_io_write(j->io, head_file(j), j->stage, n, j->stage_base);
    if (err)
        return fail_final(j, err, "write");
    size_t rest =
        j->head_pos > up_to ? (size_t)(j->head_pos - up_to) : 0;
    memmove(j->stage, j->stage + n, rest);
    j->stage_base = up_to;
    return 0;
}

/* Let the device work while more arrives: the barrier's sync is shorter. */
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

/* Zeros up to the page's end, then write everything. */
static int write_all(struct remus_journal *j)
{
    uint64_t end = page_up(j->head_pos);
    memset(j->stage + (j->head_pos - j->stage_base), 0,
           (size_t)(end - j->head_pos));
    return write_stage(j, end);
}

int remus_journal_begin_segment(struct remus_journal *j,
                                const struct remus_segment *seg)
{
    int err = check_failed(j);
    if (err)
        return err;
    if (remus_journal_unused(j) == 0)
        return remus_fail(-ENOSPC,
                          "journal %s: all %u segments hold epochs that are "
                          "not applied yet",
                          j->dir, j->segments);
    uint32_t salt;
    err = j->io->random(j->io, &salt, sizeof salt);
    if (err)
        return fail_final(j, err, "make a salt for");
    if (j->head.seq) {
        err = write_all(j);
        if (err)
            return err;
    }
    j->head = *seg;
    j->head.seq = j->next_seq++;
    j->head.salt = salt;
    j->head.prev_salt = j->last_salt;
    j->head.volumes = j->volumes;
    j->last_salt = salt;
    j->salts[j->head.seq % j->segments] = salt;
    memset(j->stage, 0, REMUS_PAGE);
    remus_segment_encode(&j->head, j->resource, j->segment_bytes, j->stage);
    j->stage_base = 0;
    j->hinted = 0;
    j->head_pos = REMUS_PAGE;
    return 0;
}

int remus_journal_fits(const struct remus_journal *j, uint32_t length)
{
    if (!j->head.seq)
        return 0;
    return j->head_pos + REMUS_REC_HEADER + length <= j->segment_bytes;
}

/* Copy bytes to the head's end; large ones go from where they are. */
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
            err = remus_io_write(j->io, head_file(j), p, whole, j->head_pos);
            if (err)
                return fail_final(j, err, "write");
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
                         unsigned char header[REMUS_REC_HEADER], int pad,
                         const unsigned char *payload, uint32_t length,
                         uint64_t *pos)
{
    int err = check_failed(j);
    if (err)
        return err;
    remus_record_salt(header, j->head.salt);
    err = put(j, header, REMUS_REC_HEADER);
    if (err)
        return err;
    *pos = j->head.seq % j->segments * j->segment_bytes + j->head_pos;
    if (length) {
        err = put(j, payload, length);
        if (err)
            return err;
    }
    if (pad) {
        err = write_all(j);
        j->head_pos = j->stage_base;
    }
    return err;
}

int remus_journal_sync(struct remus_journal *j)
{
    pthread_mutex_lock(&j->sync_lock);
    pthread_mutex_lock(j->owner);
    int err = check_failed(j);
    uint64_t from = j->dirty_from, to = j->head.seq;
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
        pthread_mutex_unlock(j->owner);
    }
    pthread_mutex_unlock(&j->sync_lock);
    return err;
}

void remus_journal_free(struct remus_journal *j, uint64_t tail)
{
    if (tail > j->tail)
        j->tail = tail;
}

void remus_journal_drop(struct remus_journal *j, uint64_t next_seq)
{
    j->tail = j->next_seq = next_seq;
    j->last_salt = 0;
    memset(&j->head, 0, sizeof j->head);
    j->head_pos = 0;
    j->stage_base = 0;
    j->dirty_from = j->next_seq;
}

void remus_journal_rewind(struct remus_journal *j,
                          const struct remus_mark *mark)
{
    if (mark->seq < j->tail || mark->seq >= j->next_seq)
        return;
    j->next_seq = mark->seq + 1;
    j->last_salt = j->salts[mark->seq % j->segments];
    j->head = (struct remus_segment){.seq = mark->seq,
                                     .salt = j->last_salt,
                                     .session = mark->session};
    j->head_pos = j->stage_base = j->hinted = mark->end;
    if (j->dirty_from > mark->seq)
        j->dirty_from = mark->seq;
}

unsigned int remus_journal_used(const struct remus_journal *j)
{
    return (unsigned int)(j->next_seq - j->tail);
}

unsigned int remus_journal_unused(const struct remus_journal *j)
{
    return j->segments - remus_journal_used(j);
}

uint64_t remus_journal_segment_worth(const struct remus_journal *j)
{
    /* Its header page, and a record that does not fit any more. */
    return j->segment_bytes - REMUS_PAGE - REMUS_REC_HEADER - j->max_payload;
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
