/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Hashes of blocks in the middle of a stream: the primary's, taken while no
 * write to them was under way and sent where all writes before stand before
 * them, against what disks, closed epochs and the open one hold together at
 * this point.  The session thread does it, so acks wait for it: a question is
 * small, and one that would have to wait for an apply is given back.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup.h"
#include "dirty.h"
#include "error.h"
#include "hash.h"

/* A part of the range that the journal holds, in the order of writing. */
struct piece {
    uint64_t at;  /* in the range */
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
    for (size_t i = 0; !err && i < x->n; i++) {
        const struct remus_extent *e = &x->v[i];
        if (e->volume != r->volume || e->offset >= end ||
            e->offset + e->length <= r->offset)
            continue;
        uint64_t from = e->offset > r->offset ? e->offset : r->offset;
        uint64_t to = e->offset + e->length < end ? e->offset + e->length
                                                  : end;
        const struct piece one = {
            from - r->offset, to - from,
            e->pos == REMUS_EXTENT_ZERO ? e->pos
                                        : e->pos + (from - e->offset)};
        err = add(p, &one);
    }
    return err;
}

/* What of a piece is only staged so far is copied (lock held); the rest is
 * in the file and is read later. */
static void overlay_staged(remus_backup *b, const struct piece *one,
                           unsigned char *buf)
{
    const struct remus_journal *j = &b->journal;
    if (one->pos == REMUS_EXTENT_ZERO || !j->head.seq ||
        one->pos / j->segment_bytes != j->head.seq % j->segments)
        return;
    uint64_t at = one->pos % j->segment_bytes;
    if (at + one->len <= j->stage_base)
        return;
    uint64_t skip = at < j->stage_base ? j->stage_base - at : 0;
    memcpy(buf + one->at + skip, j->stage + (at + skip - j->stage_base),
           (size_t)(one->len - skip));
}

/* apply_lock held: nothing moves from the journal to the disks meanwhile. */
static int view(remus_backup *b, const struct remus_record *r,
                struct pieces *p, unsigned char *buf)
{
    struct remus_disk *d = &b->disks[r->volume];
    int err = remus_io_read(b->io, d->file, buf, (size_t)r->range, r->offset);
    if (err)
        return remus_fail(err, "volume %s: read %s: %s", d->name, d->path,
                          remus_errno_text(err));
    pthread_mutex_lock(&b->lock);
    for (size_t i = 0; !err && i < b->epoch_count; i++)
        err = collect(p, &b->epochs[i]->extents, r);
    if (!err && b->open)
        err = collect(p, &b->open->extents, r);
    pthread_mutex_unlock(&b->lock);
    for (size_t i = 0; !err && i < p->n; i++) {
        const struct piece *one = &p->v[i];
        if (one->pos == REMUS_EXTENT_ZERO) {
            memset(buf + one->at, 0, (size_t)one->len);
            continue;
        }
        /* Bytes that are staged are not in the file (nobody but this thread
         * stages any): reading gives what was there before, and the copy
         * then puts them right. */
        err = remus_journal_read(&b->journal, one->pos, buf + one->at,
                                 (size_t)one->len);
        pthread_mutex_lock(&b->lock);
        if (!err)
            overlay_staged(b, one, buf);
        pthread_mutex_unlock(&b->lock);
    }
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
    if (pthread_mutex_trylock(&b->apply_lock))
        return -EAGAIN;
    err = view(b, r, &p, b->buffer);
    for (uint32_t i = 0; !err && (uint64_t)i * REMUS_DIRTY_BLOCK < r->range;
         i++) {
        unsigned char mine[REMUS_HASH_BYTES];
        uint64_t at = (uint64_t)i * REMUS_DIRTY_BLOCK;
        uint64_t n = r->range - at < REMUS_DIRTY_BLOCK ? r->range - at
                                                       : REMUS_DIRTY_BLOCK;
        remus_hash(b->buffer + at, (size_t)n, mine);
        if (memcmp(mine, hashes + i * REMUS_HASH_BYTES, sizeof mine))
            bits[i / 8] |= (unsigned char)(1u << i % 8);
    }
    pthread_mutex_unlock(&b->apply_lock);
    free(p.v);
    return err;
}
