/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which blocks differ from the primary's: its hashes against what disks and
 * journal hold together, that is, as if every closed epoch were applied.
 */
#include <errno.h>
#include <string.h>

#include "backup.h"
#include "dirty.h"
#include "error.h"
#include "hash.h"

/* Put what lies in the journal over [start, end) of a volume, which is in
 * `buf` (apply_lock held; b->merge is collected). */
static int overlay(remus_backup *b, unsigned int volume, uint64_t start,
                   uint64_t end, unsigned char *buf)
{
    const struct remus_extents *x = &b->merge;
    size_t low = 0, high = x->n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const struct remus_extent *e = &x->v[mid];
        if (e->volume < volume ||
            (e->volume == volume && e->offset + e->length <= start))
            low = mid + 1;
        else
            high = mid;
    }
    for (; low < x->n; low++) {
        const struct remus_extent *e = &x->v[low];
        if (e->volume != volume || e->offset >= end)
            break;
        uint64_t from = e->offset > start ? e->offset : start;
        uint64_t to = e->offset + e->length < end ? e->offset + e->length
                                                  : end;
        int err = 0;
        if (e->pos == REMUS_EXTENT_ZERO)
            memset(buf + (from - start), 0, (size_t)(to - from));
        else
            err = remus_journal_read(&b->journal,
                                     e->pos + (from - e->offset),
                                     buf + (from - start),
                                     (size_t)(to - from));
        if (err)
            return err;
    }
    return 0;
}

/* apply_lock held */
static int compare(remus_backup *b, const struct remus_record *r,
                   const unsigned char *hashes, unsigned char *bits)
{
    struct remus_disk *d = &b->disks[r->volume];
    uint64_t end = r->offset + r->range;
    unsigned int block = 0;
    for (uint64_t at = r->offset; at < end;) {
        size_t n = end - at < REMUS_APPLY_BYTES ? (size_t)(end - at)
                                                : REMUS_APPLY_BYTES;
        int err = remus_io_read(b->io, d->file, b->buffer, n, at);
        if (err)
            return remus_fail(err, "volume %s: read %s: %s", d->name, d->path,
                              remus_errno_text(err));
        err = overlay(b, r->volume, at, at + n, b->buffer);
        if (err)
            return err;
        for (size_t i = 0; i < n; i += REMUS_DIRTY_BLOCK, block++) {
            unsigned char mine[REMUS_HASH_BYTES];
            size_t len = n - i < REMUS_DIRTY_BLOCK ? n - i
                                                   : REMUS_DIRTY_BLOCK;
            remus_hash(b->buffer + i, len, mine);
            if (memcmp(mine, hashes + block * REMUS_HASH_BYTES, sizeof mine))
                bits[block / 8] |= (unsigned char)(1u << block % 8);
        }
        at += n;
    }
    return 0;
}

int remus_backup_check_hashes(const remus_backup *b,
                              const struct remus_record *r)
{
    uint64_t blocks = (r->range + REMUS_DIRTY_BLOCK - 1) / REMUS_DIRTY_BLOCK;
    if (r->volume >= b->disk_count || !r->range ||
        r->offset % REMUS_DIRTY_BLOCK || blocks > REMUS_HASH_BLOCKS ||
        r->length != blocks * REMUS_HASH_BYTES ||
        r->offset > b->disks[r->volume].size ||
        r->range > b->disks[r->volume].size - r->offset)
        return remus_fail(-EBADMSG,
                          "hashes of %llu bytes at %llu of volume %u in %u "
                          "bytes",
                          (unsigned long long)r->range,
                          (unsigned long long)r->offset, r->volume,
                          r->length);
    return 0;
}

int remus_backup_compare(remus_backup *b, const struct remus_record *r,
                         const unsigned char *hashes,
                         unsigned char bits[REMUS_HASH_BLOCKS / 8])
{
    memset(bits, 0, REMUS_HASH_BLOCKS / 8);
    int err = remus_backup_check_hashes(b, r);
    if (err)
        return err;
    pthread_mutex_lock(&b->apply_lock);
    err = remus_backup_collect_closed(b);
    if (!err)
        err = compare(b, r, hashes, bits);
    pthread_mutex_unlock(&b->apply_lock);
    return err;
}
