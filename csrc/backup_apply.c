/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Out of the journal: apply, checkpoint, copy, promote. */
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

/* Make the superblock durable, then believe it (apply_lock held). */
static int store_super(remus_backup *b, struct remus_super *s)
{
    int err = remus_super_store(b->io, b->super_file, b->super_path,
                                b->resource, s);
    if (err)
        return remus_backup_failed(b, err);
    pthread_mutex_lock(&b->lock);
    b->super = *s;
    pthread_mutex_unlock(&b->lock);
    return 0;
}

static int sync_disks(remus_backup *b)
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

/*
 * Sweep the epochs up to `target`, each by itself, and note what they came
 * to.  Not under `lock`: records of the next epoch come in meanwhile.
 */
static void measure(remus_backup *b, uint64_t target)
{
    for (size_t i = 0;; i++) {
        uint64_t covered = 0, extents = 0;
        pthread_mutex_lock(&b->lock);
        struct remus_epoch *e = i < b->epoch_count ? b->epochs[i] : NULL;
        pthread_mutex_unlock(&b->lock);
        if (!e || e->number > target)
            return;
        /* Out of memory: one number less in the statistics. */
        if (remus_extents_measure(&e->extents, &covered, &extents) ||
            !extents)
            continue;
        pthread_mutex_lock(&b->lock);
        note_measured(b, e, extents, covered);
        pthread_mutex_unlock(&b->lock);
    }
}

/* Collect the extents of epochs up to `target` into b->merge. */
static int collect(remus_backup *b, uint64_t target)
{
    int err = 0;
    measure(b, target);
    b->merged = 0;
    remus_extents_clear(&b->merge);
    pthread_mutex_lock(&b->lock);
    for (size_t i = 0; !err && i < b->epoch_count; i++) {
        if (b->epochs[i]->number > target)
            break;
        err = remus_extents_join(&b->merge, &b->epochs[i]->extents);
    }
    pthread_mutex_unlock(&b->lock);
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

/* Move the newest data of all epochs up to `target` into the disks.  They
 * and their commit (or the promote) are durable already. */
static int write_epochs(remus_backup *b, uint64_t target)
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
    return write_epochs(b, target);
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
    if (s.role == REMUS_SUPER_SYNCED && s.applied > s.base)
        s.role = REMUS_SUPER_BACKUP;
    int todo = (s.applied != b->super.applied || s.tail != b->super.tail ||
                s.role != b->super.role) &&
               !b->fenced &&
               (s.role == REMUS_SUPER_SYNCED || s.role == REMUS_SUPER_BACKUP);
    if (err)
        remus_fail(err, "the backup has failed: %s", b->reason);
    pthread_mutex_unlock(&b->lock);
    if (err || !todo)
        return err;
    err = sync_disks(b);
    if (!err)
        err = store_super(b, &s);
    if (err)
        return err;
    pthread_mutex_lock(&b->lock);
    remus_journal_free(&b->journal, s.tail);
    pthread_mutex_unlock(&b->lock);
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

/* Forget every epoch: the disks are about to change (lock held). */
static void drop_epochs(remus_backup *b, uint64_t next_seq)
{
    if (b->open)
        remus_epoch_give(b, b->open);
    b->open = NULL;
    while (b->epoch_count)
        remus_epoch_give(b, b->epochs[--b->epoch_count]);
    remus_journal_drop(&b->journal, next_seq);
    b->merged = 0;
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
    err = store_super(b, s);
    if (!err && newest > b->applied)
        err = write_epochs(b, newest);
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
        memcpy(s.generation, b->session_generation, REMUS_ID_BYTES);
        s.last_epoch = b->last_epoch;
        s.tail = b->journal.next_seq;
        s.next_number = b->next_number;
        pthread_mutex_unlock(&b->lock);
        /* Inconsistent first, then the first byte. */
        err = keep ? keep_closed(b, &s) : store_super(b, &s);
        if (!err) {
            pthread_mutex_lock(&b->lock);
            drop_epochs(b, s.tail);
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

int remus_backup_copy_flush(remus_backup *b)
{
    pthread_mutex_lock(&b->apply_lock);
    int err = check_copy(b);
    if (!err)
        err = sync_disks(b);
    pthread_mutex_unlock(&b->apply_lock);
    return err;
}

int remus_backup_copy_end(remus_backup *b, uint64_t first_epoch)
{
    pthread_mutex_lock(&b->apply_lock);
    int err = check_copy(b);
    if (!err && (!b->copying || first_epoch <= b->last_epoch))
        err = remus_fail(-EBADMSG,
                         "end of a copy with first epoch %llu; epochs up to "
                         "%llu are used",
                         (ull)first_epoch, (ull)b->last_epoch);
    if (!err)
        err = sync_disks(b);
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
        err = store_super(b, &s);
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

/* ---- promote ------------------------------------------------------------ */

/* The checkpoints that can be had, in words (lock held). */
static const char *choices(const remus_backup *b, char *buf, size_t cap)
{
    int n = snprintf(buf, cap, "%llu (committed)", (ull)b->committed);
    size_t used = n > 0 ? (size_t)n : 0;
    for (size_t i = 0; i < b->epoch_count && used + 40 < cap; i++) {
        const struct remus_epoch *e = b->epochs[i];
        if (e->number <= b->committed)
            continue;
        n = snprintf(buf + used, cap - used, ", %llu", (ull)e->number);
        used += n > 0 ? (size_t)n : 0;
    }
    if (used + 40 >= cap)
        snprintf(buf + used, cap - used, ", ... up to %llu",
                 (ull)b->prepared);
    return buf;
}

static int same_tag(const struct remus_checkpoint *cp, const void *tag,
                    size_t len)
{
    return cp->tag_len == len && len && !memcmp(cp->tag, tag, len);
}

static int find_tag(const remus_backup *b, const void *tag, size_t len,
                    uint64_t *m)
{
    unsigned int found = same_tag(&b->committed_cp, tag, len) ? 1 : 0;
    if (found)
        *m = b->committed;
    for (size_t i = 0; i < b->epoch_count; i++) {
        const struct remus_epoch *e = b->epochs[i];
        if (e->number <= b->committed || !same_tag(&e->cp, tag, len))
            continue;
        found++;
        *m = e->number;
    }
    char names[160];
    if (found == 1)
        return 0;
    return remus_fail(-EINVAL,
                      "promote: %u checkpoints carry the tag \"%.*s\"; "
                      "checkpoints are %s",
                      found, (int)len, (const char *)tag,
                      choices(b, names, sizeof names));
}

static int find_number(const remus_backup *b, uint64_t m)
{
    char names[160];
    if (m == b->committed)
        return 0;
    for (size_t i = 0; i < b->epoch_count; i++)
        if (b->epochs[i]->number == m && m > b->committed)
            return 0;
    return remus_fail(-EINVAL,
                      "promote: there is no checkpoint %llu here; "
                      "checkpoints are %s",
                      (ull)m, choices(b, names, sizeof names));
}

static uint64_t default_checkpoint(const remus_backup *b)
{
    /* Through ioctls nobody can commit: prepared is what there is. */
    for (size_t i = b->epoch_count; i-- > 0;) {
        const struct remus_epoch *e = b->epochs[i];
        if (!e->acked || e->number <= b->committed)
            continue;
        return e->cp.flags & REMUS_CP_IOCTL ? e->number : b->committed;
    }
    return b->committed;
}

/* After a promote began there is one checkpoint (lock held). */
static int find_fixed(const remus_backup *b, int by, uint64_t epoch,
                      const void *tag, size_t len, uint64_t *m)
{
    *m = b->super.target;
    if (by == REMUS_PROMOTE_DEFAULT ||
        (by == REMUS_PROMOTE_EPOCH && epoch == *m) ||
        (by == REMUS_PROMOTE_TAG && same_tag(&b->super.cp, tag, len)))
        return 0;
    return remus_fail(-EINVAL, "promote: a promote to checkpoint %llu %s",
                      (ull)*m,
                      b->super.role == REMUS_SUPER_PROMOTED
                          ? "is complete; there is no other any more"
                          : "was begun: only that one can be finished");
}

static int find_target(remus_backup *b, int by, uint64_t epoch,
                       const void *tag, size_t len, uint64_t *m)
{
    if (b->super.role >= REMUS_SUPER_PROMOTING)
        return find_fixed(b, by, epoch, tag, len, m);
    if (b->failed)
        return remus_fail(b->failed, "promote: the backup has failed: %s",
                          b->reason);
    if (b->copying || !remus_backup_consistent(b))
        return remus_fail(-EINVAL,
                          "promote: the disks are Inconsistent, no copy was "
                          "ever completed and committed: there is no "
                          "checkpoint to go to");
    switch (by) {
    case REMUS_PROMOTE_DEFAULT:
        *m = default_checkpoint(b);
        return 0;
    case REMUS_PROMOTE_EPOCH:
        *m = epoch;
        return find_number(b, epoch);
    case REMUS_PROMOTE_TAG:
        return find_tag(b, tag, len, m);
    default:
        return remus_fail(-EINVAL, "promote: unknown way %d to name it", by);
    }
}

/* Store (m, new generation): from here on there is no other way. */
static int promote_begin(remus_backup *b, uint64_t m)
{
    /* A prepared epoch in page cache only would be lost with the power. */
    int err = remus_journal_sync(&b->journal);
    if (err)
        return remus_backup_failed(b, err);
    pthread_mutex_lock(&b->lock);
    struct remus_super s = b->super;
    s.last_epoch = b->last_epoch;
    s.next_number = b->next_number;
    s.cp = b->committed_cp;
    for (size_t i = 0; i < b->epoch_count; i++)
        if (b->epochs[i]->number == m)
            s.cp = b->epochs[i]->cp;
    pthread_mutex_unlock(&b->lock);
    s.role = REMUS_SUPER_PROMOTING;
    s.target = m;
    err = b->io->random(b->io, s.promoted_generation, REMUS_ID_BYTES);
    if (err)
        return remus_fail(err, "random numbers: %s", remus_errno_text(err));
    return store_super(b, &s);
}

static int promote_finish(remus_backup *b)
{
    uint64_t m = b->super.target;
    int err = 0;
    if (m > b->applied)
        err = write_epochs(b, m);
    if (!err)
        err = sync_disks(b);
    if (err)
        return err;
    pthread_mutex_lock(&b->lock);
    struct remus_super s = b->super;
    s.role = REMUS_SUPER_PROMOTED;
    s.applied = m;
    s.tail = b->journal.next_seq;
    pthread_mutex_unlock(&b->lock);
    err = store_super(b, &s);
    if (err)
        return err;
    pthread_mutex_lock(&b->lock);
    drop_epochs(b, s.tail);
    b->prepared = b->acked = b->committed = b->applied = m;
    pthread_mutex_unlock(&b->lock);
    /* The volumes are free: their owner is the guest now. */
    for (unsigned int i = 0; i < b->disk_count; i++) {
        b->io->close(b->io, b->disks[i].file);
        b->disks[i].file = -1;
    }
    return 0;
}

/* What a failed write or sync left in the page cache can't be trusted; a new
 * process takes it from the journal again. */
static int check_failed(remus_backup *b)
{
    pthread_mutex_lock(&b->lock);
    int err = b->failed;
    if (err)
        remus_fail(err,
                   "promote: the backup has failed (%s): mend that, restart "
                   "it, and promote again",
                   b->reason);
    pthread_mutex_unlock(&b->lock);
    return err;
}

static int promote_held(remus_backup *b, int by, uint64_t epoch,
                        const void *tag, size_t len, uint64_t *m)
{
    pthread_mutex_lock(&b->lock);
    int err = find_target(b, by, epoch, tag, len, m);
    int begun = b->super.role >= REMUS_SUPER_PROMOTING;
    if (!err)
        b->fenced = 1; /* no record, no ack, no commit from here on */
    pthread_mutex_unlock(&b->lock);
    if (err || b->super.role == REMUS_SUPER_PROMOTED)
        return err;
    err = check_failed(b);
    if (err)
        return err;
    if (!begun) {
        err = promote_begin(b, *m);
        if (err)
            return err;
    }
    return promote_finish(b);
}

int remus_backup_promote(remus_backup *b, int by, uint64_t epoch,
                         const void *tag, size_t tag_len, int force,
                         uint64_t *promoted)
{
    uint64_t m = 0;
    int err = 0;
    /* What can't be promoted to must not cost a connection that works.  (Of
     * one that has ended the last epoch may still be on the way through.) */
    if (force && remus_backup_net_live(b)) {
        pthread_mutex_lock(&b->lock);
        err = find_target(b, by, epoch, tag, tag_len, &m);
        pthread_mutex_unlock(&b->lock);
    }
    if (!err)
        err = remus_backup_net_fence(b, force);
    if (err)
        return remus_fail_in(err, "backup of %s", b->resource);
    pthread_mutex_lock(&b->apply_lock);
    err = promote_held(b, by, epoch, tag, tag_len, &m);
    pthread_mutex_unlock(&b->apply_lock);
    if (err) {
        remus_fail_in(err, "backup of %s", b->resource);
        remus_backup_net_reopen(b);
        return err;
    }
    *promoted = m;
    return 0;
}

int remus_backup_commit(remus_backup *b, uint64_t epoch)
{
    int err = remus_backup_commit_record(b, epoch, 0);
    if (!err) {
        err = remus_journal_sync(&b->journal);
        if (err)
            return remus_backup_failed(b, err);
    }
    return err;
}

static void list_one(struct remus_checkpoint *out, unsigned int cap,
                     unsigned int *n, const struct remus_checkpoint *cp,
                     uint32_t flags)
{
    if (cap && *n >= cap) {
        memmove(out, out + 1, (cap - 1) * sizeof *out);
        out[cap - 1] = *cp;
        out[cap - 1].flags |= flags;
    } else if (cap) {
        out[*n] = *cp;
        out[*n].flags |= flags;
    }
    ++*n;
}

int remus_backup_checkpoints(remus_backup *b, struct remus_checkpoint *out,
                             unsigned int cap)
{
    unsigned int n = 0;
    pthread_mutex_lock(&b->lock);
    if (b->super.role >= REMUS_SUPER_PROMOTING) {
        list_one(out, cap, &n, &b->super.cp, REMUS_CP_COMMITTED);
    } else if (!b->copying && remus_backup_consistent(b)) {
        list_one(out, cap, &n, &b->committed_cp, REMUS_CP_COMMITTED);
        for (size_t i = 0; i < b->epoch_count; i++)
            if (b->epochs[i]->number > b->committed)
                list_one(out, cap, &n, &b->epochs[i]->cp, 0);
    }
    pthread_mutex_unlock(&b->lock);
    return (int)n;
}
