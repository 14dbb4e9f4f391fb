/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Hashes of blocks in the middle of a stream: the primary's, taken while no
 * write to them was under way and sent where all writes before stand before
 * them, against what disks, closed epochs and the open one hold together at
 * this point.  The session thread does it, so acks wait for it: a question is
 * small.
 *
 * An apply may be under way.  It writes what closed epochs hold, and nothing
 * else; so first what they hold here is listed, then the disk is read, then
 * what is listed is put over it: whatever the apply has written by then, and
 * whether the epochs are still there, this is what both hold together.
 * view_lock keeps the segments until they are read.
 *
 * Who only looks at a standby's disk sees the applied state in the same way:
 * he waits for no apply, nor does an apply wait for him.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "backup/backup.h"
#include "base/error.h"

/* A part of the range that the journal holds, in the order of writing. */
struct piece {
    uint64_t at; /* in the range */
    uint64_t len;
    uint64_t pos; /* journal, or REMUS_EXTENT_ZERO */
};

struct pieces {
    struct piece *v;
    size_t n, cap;
};

static int add(struct pieces *p, const struct piece *one)
{
    if (p->n == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 64;
        struct piece *v = realloc(p->v, cap * sizeof *v);
        if (!v)
            return remus_fail(-ENOMEM, "out of memory");
        p->v = v;
        p->cap = cap;
    }
    p->v[p->n++] = *one;
    return 0;
}

static int collect(struct pieces *p, const struct remus_extents *x,
                   const struct remus_record *r)
{
    uint64_t end = r->offset + r->range;
    int err = 0;
    for (size_t i = 0; !err && i < remus_extents_count(x); i++) {
        const struct remus_extent *e = remus_extents_at(x, i);
        if (e->volume != r->volume || e->offset >= end ||
            e->offset + e->length <= r->offset)
            continue;
        uint64_t from = e->offset > r->offset ? e->offset : r->offset;
        uint64_t to =
            e->offset + e->length < end ? e->offset + e->length : end;
        const struct piece one = {from - r->offset, to - from,
                                  e->pos == REMUS_EXTENT_ZERO
                                      ? e->pos
                                      : e->pos + (from - e->offset)};
        err = add(p, &one);
    }
    return err;
}

/*
 * What of a piece is only staged so far is copied; returns how many bytes are
 * before that.  Those are in the file, and stay there.  (lock held)
 */
static uint64_t copy_staged(const struct remus_journal *j,
                            const struct piece *one, unsigned char *buf)
{
    if (!j->head.seq ||
        one->pos / j->segment_bytes != j->head.seq % j->segments)
        return one->len;
    uint64_t at = one->pos % j->segment_bytes;
    if (at + one->len <= j->stage_base)
        return one->len;
    uint64_t skip = at < j->stage_base ? j->stage_base - at : 0;
    memcpy(buf + one->at + skip, j->stage + (at + skip - j->stage_base),
           (size_t)(one->len - skip));
    return skip;
}

static int overlay(remus_backup *b, const struct piece *one,
                   unsigned char *buf)
{
    if (one->pos == REMUS_EXTENT_ZERO) {
        memset(buf + one->at, 0, (size_t)one->len);
        return 0;
    }
    pthread_mutex_lock(&b->lock);
    uint64_t filed = copy_staged(&b->journal, one, buf);
    remus_backup_unlock(b);
    return filed ? remus_journal_read(&b->journal, one->pos, buf + one->at,
                                      (size_t)filed)
                 : 0;
}

/* view_lock held */
static int view(remus_backup *b, const struct remus_record *r,
                struct pieces *p, unsigned char *buf, unsigned char *bits)
{
    int err = 0;
    pthread_mutex_lock(&b->lock);
    for (size_t i = 0; !err && i < b->epoch_count; i++)
        err = collect(p, &b->epochs[i]->extents, r);
    if (!err && b->open)
        err = collect(p, &b->open->extents, r);
    remus_backup_unlock(b);
    if (!err)
        err = remus_backup_read_piece(b, &b->disks[r->volume], buf,
                                      (size_t)r->range, r->offset, 0, bits);
    for (size_t i = 0; !err && i < p->n; i++)
        err = overlay(b, &p->v[i], buf);
    return err;
}

int remus_backup_verify(remus_backup *b, const struct remus_record *r,
                        const unsigned char *hashes,
                        unsigned char bits[REMUS_HASH_BLOCKS / 8])
{
    struct pieces p = {0};
    memset(bits, 0, REMUS_HASH_BLOCKS / 8);
    int err = remus_backup_check_hashes(b, r);
    if (!err && r->range > REMUS_APPLY_BYTES)
        err = remus_fail(-EBADMSG, "%llu bytes in one question",
                         (unsigned long long)r->range);
    if (err)
        return err;
    unsigned char *buf = aligned_alloc(REMUS_PAGE, REMUS_APPLY_BYTES);
    if (!buf)
        return remus_fail(-ENOMEM, "out of memory");
    pthread_mutex_lock(&b->view_lock);
    if (b->disks[r->volume].file < 0)
        err = remus_fail(-EROFS, "this backup was promoted");
    /* Not synced: acks wait for us.  What is dirty is not dropped. */
    if (!err && !r->offset)
        (void)b->io->drop_cache(b->io, b->disks[r->volume].file);
    if (!err)
        err = view(b, r, &p, buf, bits);
    pthread_mutex_unlock(&b->view_lock);
    if (!err)
        remus_backup_hash_piece(buf, (size_t)r->range, hashes, 0, bits);
    free(buf);
    free(p.v);
    return err;
}

/* ---- looking, while an apply may be under way ------------------------------- */

/* What the journal holds of the epochs that are being written to the disks
 * right now.  *writes: which apply that was. */
static int being_written(remus_backup *b, const struct remus_record *r,
                         struct pieces *p, unsigned char *over,
                         uint64_t *writes)
{
    int err = 0;
    p->n = 0;
    pthread_mutex_lock(&b->view_lock);
    pthread_mutex_lock(&b->lock);
    *writes = b->writes;
    for (size_t i = 0;
         !err && i < b->epoch_count && b->epochs[i]->number <= b->writing; i++)
        err = collect(p, &b->epochs[i]->extents, r);
    remus_backup_unlock(b);
    for (size_t i = 0; !err && i < p->n; i++)
        err = overlay(b, &p->v[i], over);
    pthread_mutex_unlock(&b->view_lock);
    return err;
}

static int read_disk(remus_backup *b, unsigned int volume, void *buf,
                     size_t len, uint64_t offset)
{
    /* One of our own: theirs may be closed at any time. */
    int file = b->io->open(b->io, b->disks[volume].path, O_RDONLY);
    if (file < 0)
        return file;
    int err = remus_io_read(b->io, file, buf, len, offset);
    b->io->close(b->io, file);
    return err;
}

/*
 * An apply writes what these epochs hold, and nothing else.  So the disk with
 * that put over it is the state to which the apply goes, however far it has
 * come, or is over.  Only if another one began meanwhile this is not so.
 */
int remus_backup_read(remus_backup *b, unsigned int volume, void *buf,
                      size_t len, uint64_t offset)
{
    const struct remus_record r = {
        .volume = (uint16_t)volume, .offset = offset, .range = len};
    struct pieces p = {0};
    uint64_t writes, now;
    unsigned char *over = malloc(len);
    int err = over ? 0 : remus_fail(-ENOMEM, "out of memory");
    do {
        if (!err)
            err = being_written(b, &r, &p, over, &writes);
        if (!err)
            err = read_disk(b, volume, buf, len, offset);
        pthread_mutex_lock(&b->lock);
        now = b->writes;
        remus_backup_unlock(b);
    } while (!err && now != writes);
    for (size_t i = 0; !err && i < p.n; i++)
        memcpy((unsigned char *)buf + p.v[i].at, over + p.v[i].at,
               (size_t)p.v[i].len);
    free(over);
    free(p.v);
    return err;
}
