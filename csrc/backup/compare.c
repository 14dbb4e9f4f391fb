/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which blocks differ from the primary's: its hashes against what disks and
 * journal hold together, that is, as if every closed epoch were applied.
 */
#include <errno.h>
#include <string.h>

#include "backup/backup.h"
#include "base/error.h"
#include "base/hash.h"

/* Put what lies in the journal of [start, end) of a volume over it; it is in
 * `buf` (apply_lock held; what is closed was swept). */
static int overlay(remus_backup *b, uint64_t newest, unsigned int volume,
                   uint64_t start, uint64_t end, unsigned char *buf)
{
    const struct remus_extents *x = &b->merge;
    int err = remus_backup_look(b, newest, volume, start, end);
    for (size_t i = 0; !err && i < x->swept; i++) {
        const struct remus_extent *e = remus_extents_at(x, i);
        unsigned char *to = buf + (e->offset - start);
        if (e->pos == REMUS_EXTENT_ZERO)
            memset(to, 0, (size_t)e->length);
        else
            err =
                remus_journal_read(&b->journal, e->pos, to, (size_t)e->length);
    }
    return err;
}

int remus_backup_see_disk(remus_backup *b, const struct remus_disk *d)
{
    int err = b->io->fdatasync(b->io, d->file);
    if (err)
        return remus_backup_failed(b, remus_fail(err, "volume %s: sync %s: %s",
                                                 d->name, d->path,
                                                 remus_errno_text(err)));
    (void)b->io->drop_cache(b->io, d->file); /* a hint */
    return 0;
}

int remus_backup_read_piece(remus_backup *b, const struct remus_disk *d,
                            unsigned char *buf, size_t len, uint64_t offset,
                            unsigned int first, unsigned char *bits)
{
    int err = remus_io_read(b->io, d->file, buf, len, offset);
    for (size_t i = 0; err == -EIO && i < len; i += REMUS_BLOCK) {
        size_t n = len - i < REMUS_BLOCK ? len - i : REMUS_BLOCK;
        unsigned int block = first + (unsigned int)(i / REMUS_BLOCK);
        if (remus_io_read(b->io, d->file, buf + i, n, offset + i)) {
            memset(buf + i, 0, n);
            bits[block / 8] |= (unsigned char)(1u << block % 8);
        }
    }
    return err && err != -EIO
               ? remus_fail(err, "volume %s: read %s: %s", d->name, d->path,
                            remus_errno_text(err))
               : 0;
}

void remus_backup_hash_piece(const unsigned char *buf, size_t len,
                             const unsigned char *hashes, unsigned int first,
                             unsigned char *bits)
{
    for (size_t i = 0; i < len; i += REMUS_BLOCK, first++) {
        unsigned char mine[REMUS_HASH_BYTES];
        size_t n = len - i < REMUS_BLOCK ? len - i : REMUS_BLOCK;
        /* What can't be compared counts as different. */
        if (remus_hash(buf + i, n, mine) ||
            memcmp(mine, hashes + first * REMUS_HASH_BYTES, sizeof mine))
            bits[first / 8] |= (unsigned char)(1u << first % 8);
    }
}

/* apply_lock held */
static int compare(remus_backup *b, uint64_t newest,
                   const struct remus_record *r, const unsigned char *hashes,
                   unsigned char *bits)
{
    struct remus_disk *d = &b->disks[r->volume];
    uint64_t end = r->offset + r->range;
    unsigned int block = 0;
    int err = 0;
    for (uint64_t at = r->offset; !err && at < end;) {
        size_t n = end - at < REMUS_APPLY_BYTES ? (size_t)(end - at)
                                                : REMUS_APPLY_BYTES;
        err = remus_backup_read_piece(b, d, b->buffer, n, at, block, bits);
        if (!err)
            err = overlay(b, newest, r->volume, at, at + n, b->buffer);
        if (!err)
            remus_backup_hash_piece(b->buffer, n, hashes, block, bits);
        at += n;
        block += REMUS_APPLY_BYTES / REMUS_BLOCK;
    }
    return err;
}

int remus_backup_check_hashes(const remus_backup *b,
                              const struct remus_record *r)
{
    uint64_t blocks = (r->range + REMUS_BLOCK - 1) / REMUS_BLOCK;
    if (r->volume >= b->disk_count || !r->range || r->offset % REMUS_BLOCK ||
        blocks > REMUS_HASH_BLOCKS || r->length != blocks * REMUS_HASH_BYTES ||
        r->offset > b->disks[r->volume].size ||
        r->range > b->disks[r->volume].size - r->offset)
        return remus_fail(-EBADMSG,
                          "hashes of %llu bytes at %llu of volume %u in %u "
                          "bytes",
                          (unsigned long long)r->range,
                          (unsigned long long)r->offset, r->volume, r->length);
    return 0;
}

int remus_backup_compare(remus_backup *b, const struct remus_record *r,
                         const unsigned char *hashes,
                         unsigned char bits[REMUS_HASH_BLOCKS / 8])
{
    uint64_t newest = 0;
    memset(bits, 0, REMUS_HASH_BLOCKS / 8);
    int err = remus_backup_check_hashes(b, r);
    if (err)
        return err;
    pthread_mutex_lock(&b->apply_lock);
    if (!r->offset)
        err = remus_backup_see_disk(b, &b->disks[r->volume]);
    if (!err)
        err = remus_backup_look_at_closed(b, &newest);
    if (!err)
        err = compare(b, newest, r, hashes, bits);
    pthread_mutex_unlock(&b->apply_lock);
    return err;
}
