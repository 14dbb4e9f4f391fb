/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Out of the journal: apply, checkpoint, copy. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backup.h"
#include "error.h"

typedef unsigned long long ull;

static int check_copy(remus_backup *b);

static int disk_error(const struct remus_disk *d, const char *what, int err)
{
    return remus_fail(err, "volume %s: %s %s: %s", d->name, what, d->path,
                      remus_errno_text(err));
}

int remus_backup_store_super(remus_backup *b, struct remus_super *s)
{
    if (b->disk_bytes)
        s->bytes = b->disk_bytes;
    int err = remus_super_store(b->io, b->super_file, b->super_path,
                                b->resource, s);
    if (err)
        return remus_backup_failed(b, err);
    pthread_mutex_lock(&b->lock);
    b->super = *s;
    pthread_mutex_unlock(&b->lock);
    return 0;
}

int remus_backup_sync_disks(remus_backup *b)
{
    for (unsigned int i = 0; i < b->disk_count; i++) {
        struct remus_disk *d = &b->disks[i];
        int err = b->io->fdatasync(b->io, d->file);
        if (err)
            return remus_backup_failed(b, disk_error(d, "sync", err));
    }
    return 0;
}

/* ---- apply (apply_lock held) ------------------------------------------ */

/* lock held */
static void note_measured(remus_backup *b, const struct remus_epoch *e,
                          uint64_t extents, uint64_t covered)
{
    struct remus_measured *m =
        &b->measured[b->measured_end++ % REMUS_MEASURED_KEPT];
    m->epoch = b->stats.measured_epoch = e->number;
    m->extents = b->stats.epoch_extents = extents;
    m->coalesced = b->stats.epoch_coalesced = e->extents.added - covered;
}

/* The closed epoch at a place, NULL beyond `target`.  Closed epochs stay as
 * they are while apply_lock is held; the list may grow. */
static struct remus_epoch *closed(remus_backup *b, size_t i, uint64_t target)
{
    pthread_mutex_lock(&b->lock);
    struct remus_epoch *e = i < b->epoch_count ? b->epochs[i] : NULL;
    pthread_mutex_unlock(&b->lock);
    return e && e->number <= target ? e : NULL;
}

/*
 * Sweep the epochs up to `target`, each by itself, and note what they came
 * to.  Not under `lock`: records of the next epoch come in meanwhile.
 */
static void measure(remus_backup *b, uint64_t target)
{
    struct remus_epoch *e;
    for (size_t i = 0; (e = closed(b, i, target)); i++) {
        uint64_t covered = 0, extents = 0;
        pthread_mutex_lock(&b->view_lock);
        int err = remus_extents_measure(&e->extents, &covered, &extents);
        pthread_mutex_unlock(&b->view_lock);
        if (err || !extents)
            continue; /* out of memory: one number less in the statistics */
        pthread_mutex_lock(&b->lock);
        note_measured(b, e, extents, covered);
        pthread_mutex_unlock(&b->lock);
    }
}

/* Collect the extents of epochs up to `target` into b->merge. */
static int collect(remus_backup *b, uint64_t target)
{
    struct remus_epoch *e;
    int err = 0;
    measure(b, target);
    b->merged = 0;
    remus_extents_clear(&b->merge);
    for (size_t i = 0; !err && (e = closed(b, i, target)); i++)
        err = remus_extents_join(&b->merge, &e->extents);
    if (!err)
        err = remus_extents_sweep(&b->merge);
    if (err)
        return remus_fail(err, "apply: out of memory");
    return 0;
}

int remus_backup_collect_closed(remus_backup *b)
{
    int err = check_copy(b);
    pthread_mutex_lock(&b->lock);
    uint64_t newest = b->prepared;
    pthread_mutex_unlock(&b->lock);
    /* Applying makes it stale, and says so. */
    if (err || (b->merged && b->merged == newest))
        return err;
    err = collect(b, newest);
    if (!err)
        b->merged = newest;
    return err;
}

/*
 * Write v[i] and what follows it without a gap, as far as the buffer goes.
 * `skip` bytes of v[i] were written before.  Advances both.
 */
static int write_run(remus_backup *b, const struct remus_extents *x,
                     size_t *i, uint64_t *skip)
{
    const struct remus_extent *e = &x->v[*i];
    struct remus_disk *d = &b->disks[e->volume];
    uint64_t start = e->offset + *skip;
    if (e->pos == REMUS_EXTENT_ZERO) {
        ++*i;
        int err = b->io->zero(b->io, d->file, start, e->length);
        return err ? disk_error(d, "write zeroes to", err) : 0;
    }
    size_t used = 0;
    while (*i < x->n && used < REMUS_APPLY_BYTES) {
        e = &x->v[*i];
        if (&b->disks[e->volume] != d || e->pos == REMUS_EXTENT_ZERO ||
            e->offset + *skip != start + used)
            break;
        uint64_t left = e->length - *skip;
        size_t n = REMUS_APPLY_BYTES - used;
        if (left < n)
            n = (size_t)left;
        int err = remus_journal_read(&b->journal, e->pos + *skip,
                                     b->buffer + used, n);
        if (err)
            return err;
        used += n;
        *skip += n;
        if (*skip == e->length) {
            *skip = 0;
            ++*i;
        }
    }
    int err = remus_io_write(b->io, d->file, b->buffer, used, start);
    return err ? disk_error(d, "write to", err) : 0;
}

int remus_backup_write_epochs(remus_backup *b, uint64_t target)
{
    int err = collect(b, target);
    uint64_t covered = 0, skip = 0;
    for (size_t i = 0; !err && i < b->merge.n; i++)
        covered += b->merge.v[i].length;
    for (size_t i = 0; !err && i < b->merge.n;)
        err = write_run(b, &b->merge, &i, &skip);
    if (err)
        return remus_backup_failed(b, err);
    pthread_mutex_lock(&b->lock);
    size_t done = 0;
    uint64_t added = 0;
    while (done < b->epoch_count && b->epochs[done]->number <= target) {
        added += b->epochs[done]->extents.added;
        b->applied_cp = b->epochs[done]->cp;
        remus_epoch_give(b, b->epochs[done++]);
    }
    memmove(b->epochs, b->epochs + done,
            (b->epoch_count - done) * sizeof(*b->epochs));
    b->epoch_count -= done;
    b->applied = target;
    if (b->committed < target) {
        b->committed = target;
        b->committed_cp = b->applied_cp;
    }
    b->stats.bytes_applied += covered;
    b->stats.bytes_coalesced += added - covered;
    pthread_mutex_unlock(&b->lock);
    return 0;
}

static int apply_held(remus_backup *b)
{
    pthread_mutex_lock(&b->lock);
    uint64_t target = b->committed;
    int err = b->failed;
    int todo = target > b->applied && !b->fenced;
    if (err)
        remus_fail(err, "the backup has failed: %s", b->reason);
    pthread_mutex_unlock(&b->lock);
    if (err || !todo)
        return err;
    /* No byte of an epoch reaches a disk before it and its commit are
     * synced. */
    err = remus_journal_sync(&b->journal);
    if (err)
        return remus_backup_failed(b, err);
    return remus_backup_write_epochs(b, target);
}

int remus_backup_apply(remus_backup *b)
{
    pthread_mutex_lock(&b->apply_lock);
    int err = apply_held(b);
    pthread_mutex_unlock(&b->apply_lock);
    return err;
}

/* First segment that a recovery would have to scan (lock held). */
static uint64_t oldest_needed(const remus_backup *b)
{
    if (b->epoch_count)
        return b->epochs[0]->first_seq;
    if (b->open && b->open->first_seq)
        return b->open->first_seq;
    return b->journal.head.seq ? b->journal.head.seq : b->journal.next_seq;
}

static int checkpoint_held(remus_backup *b)
{
    pthread_mutex_lock(&b->lock);
    struct remus_super s = b->super;
    int err = b->failed;
    s.applied = b->applied;
    s.cp = b->applied_cp;
    s.last_epoch = b->last_epoch;
    s.tail = oldest_needed(b);
    s.number = b->last_barrier;
    s.next_number = b->next_number;
    if (b->expect_epoch)
        s.heard = remus_backup_now_s(b);
    if (remus_super_uncommitted(s.role) && s.applied > s.base)
        s.role = REMUS_SUPER_BACKUP;
    int todo = (s.applied != b->super.applied || s.tail != b->super.tail ||
                s.role != b->super.role) &&
               !b->fenced &&
               remus_super_follows(s.role);
    if (err)
        remus_fail(err, "the backup has failed: %s", b->reason);
    pthread_mutex_unlock(&b->lock);
    if (err || !todo)
        return err;
    err = remus_backup_sync_disks(b);
    if (!err)
        err = remus_backup_store_super(b, &s);
    if (err)
        return err;
    pthread_mutex_lock(&b->view_lock);
    pthread_mutex_lock(&b->lock);
    remus_journal_free(&b->journal, s.tail);
    pthread_mutex_unlock(&b->lock);
    pthread_mutex_unlock(&b->view_lock);
    return 0;
}

int remus_backup_checkpoint(remus_backup *b)
{
    pthread_mutex_lock(&b->apply_lock);
    int err = checkpoint_held(b);
    pthread_mutex_unlock(&b->apply_lock);
    return err;
}

/* ---- the first copy ----------------------------------------------------- */

static int check_copy(remus_backup *b)
{
    pthread_mutex_lock(&b->lock);
    int err = b->fenced ? -EROFS : b->failed;
    if (err)
        remus_fail(err, "backup of %s: %s", b->resource,
                   b->fenced ? "promoted" : b->reason);
    pthread_mutex_unlock(&b->lock);
    return err;
}

void remus_backup_drop_epochs(remus_backup *b, uint64_t next_seq)
{
    if (b->open)
        remus_epoch_give(b, b->open);
    b->open = NULL;
    while (b->epoch_count)
        remus_epoch_give(b, b->epochs[--b->epoch_count]);
    remus_journal_drop(&b->journal, next_seq);
    b->merged = 0;
    b->mark.seq = 0;
    b->session_start = 1;
}

/* Everything that was closed goes into the disks, which from here on are
 * Inconsistent until a later commit. */
static int keep_closed(remus_backup *b, struct remus_super *s)
{
    pthread_mutex_lock(&b->lock);
    uint64_t newest = b->epoch_count ? b->epochs[b->epoch_count - 1]->number
                                     : b->applied;
    pthread_mutex_unlock(&b->lock);
    int err = 0;
    if (newest > b->applied)
        err = remus_journal_sync(&b->journal);
    if (err)
        return remus_backup_failed(b, err);
    err = remus_backup_store_super(b, s);
    if (!err && newest > b->applied)
        err = remus_backup_write_epochs(b, newest);
    return err;
}

int remus_backup_adopt(remus_backup *b)
{
    pthread_mutex_lock(&b->apply_lock);
    int err = check_copy(b);
    pthread_mutex_lock(&b->lock);
    struct remus_super s = b->super;
    s.lineage = b->session_lineage;
    if (s.role == REMUS_SUPER_FOREIGN)
        s.role = REMUS_SUPER_JOINED; /* consistent with a later epoch */
    int todo = s.role != b->super.role ||
               memcmp(&s.lineage, &b->super.lineage, sizeof s.lineage);
    s.heard = remus_backup_now_s(b);
    s.last_epoch = b->last_epoch;
    s.next_number = b->next_number;
    pthread_mutex_unlock(&b->lock);
    /* What was compared with the primary's blocks may be in the page cache
     * only, where the primary that ended here left it. */
    if (!err && s.role != b->super.role)
        err = remus_backup_sync_disks(b);
    if (!err && todo)
        err = remus_backup_store_super(b, &s);
    pthread_mutex_unlock(&b->apply_lock);
    return err;
}

int remus_backup_copy_begin(remus_backup *b, int keep)
{
    pthread_mutex_lock(&b->apply_lock);
    int err = check_copy(b);
    if (!err) {
        pthread_mutex_lock(&b->lock);
        struct remus_super s = b->super;
        s.role = REMUS_SUPER_COPYING;
        s.lineage = b->session_lineage;
        s.heard = remus_backup_now_s(b);
        s.last_epoch = b->last_epoch;
        s.tail = b->journal.next_seq;
        s.next_number = b->next_number;
        pthread_mutex_unlock(&b->lock);
        /* Inconsistent first, then the first byte. */
        err = keep ? keep_closed(b, &s) : remus_backup_store_super(b, &s);
        if (!err) {
            pthread_mutex_lock(&b->lock);
            remus_backup_drop_epochs(b, s.tail);
            b->copying = 1;
            pthread_mutex_unlock(&b->lock);
        }
    }
    pthread_mutex_unlock(&b->apply_lock);
    return err;
}

static int copy_out(remus_backup *b, const struct remus_record *r,
                    const unsigned char *payload)
{
    struct remus_disk *d = &b->disks[r->volume];
    int err;
    if (r->type == REMUS_REC_ZERO) {
        err = b->io->zero(b->io, d->file, r->offset, r->range);
        return err ? disk_error(d, "write zeroes to", err) : 0;
    }
    err = remus_io_write(b->io, d->file, payload, r->length, r->offset);
    if (err)
        return disk_error(d, "write to", err);
    if (r->length >= REMUS_REC_PAYLOAD_MAX / 4)
        b->io->writeback(b->io, d->file, r->offset, r->length);
    return 0;
}

int remus_backup_copy_data(remus_backup *b, const struct remus_record *r,
                           const unsigned char *payload)
{
    int err = remus_backup_check_range(b, r);
    if (err)
        return err;
    if (!b->copying)
        return remus_fail(-EBADMSG, "direct data outside of a copy");
    pthread_mutex_lock(&b->apply_lock);
    err = check_copy(b);
    if (!err) {
        err = copy_out(b, r, payload);
        if (err)
            remus_backup_failed(b, err);
    }
    pthread_mutex_unlock(&b->apply_lock);
    pthread_mutex_lock(&b->lock);
    b->stats.resync_done += r->type == REMUS_REC_ZERO ? r->range : r->length;
    pthread_mutex_unlock(&b->lock);
    return err;
}

int remus_backup_read(remus_backup *b, unsigned int volume, void *buf,
                      size_t len, uint64_t offset)
{
    pthread_mutex_lock(&b->apply_lock);
    const struct remus_disk *d = &b->disks[volume];
    int err = d->file < 0 ? -EAGAIN
                          : remus_io_read(b->io, d->file, buf, len, offset);
    pthread_mutex_unlock(&b->apply_lock);
    return err;
}

int remus_backup_copy_flush(remus_backup *b)
{
    pthread_mutex_lock(&b->apply_lock);
    int err = check_copy(b);
    if (!err)
        err = remus_backup_sync_disks(b);
    pthread_mutex_unlock(&b->apply_lock);
    return err;
}

int remus_backup_copy_end(remus_backup *b, uint64_t first_epoch)
{
    pthread_mutex_lock(&b->apply_lock);
    int err = check_copy(b);
    if (!err && (!b->copying || first_epoch <= b->last_epoch ||
                 first_epoch > REMUS_NUMBER_MAX))
        err = remus_fail(-EBADMSG,
                         "end of a copy with first epoch %llu; epochs up to "
                         "%llu are used",
                         (ull)first_epoch, (ull)b->last_epoch);
    if (!err)
        err = remus_backup_sync_disks(b);
    struct remus_super s;
    if (!err) {
        pthread_mutex_lock(&b->lock);
        s = b->super;
        s.role = REMUS_SUPER_SYNCED;
        s.applied = s.base = s.last_epoch = first_epoch - 1;
        s.cp = (struct remus_checkpoint){.epoch = s.applied};
        s.tail = b->journal.next_seq;
        s.number = b->last_barrier;
        s.next_number = b->next_number;
        pthread_mutex_unlock(&b->lock);
        err = remus_backup_store_super(b, &s);
    }
    if (!err) {
        pthread_mutex_lock(&b->lock);
        b->copying = 0;
        b->applied = b->committed = b->prepared = b->acked =
            b->last_epoch = first_epoch - 1;
        b->applied_cp = b->committed_cp = s.cp;
        b->expect_epoch = first_epoch;
        pthread_mutex_unlock(&b->lock);
    }
    pthread_mutex_unlock(&b->apply_lock);
    return err;
}
