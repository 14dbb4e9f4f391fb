/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Out of the journal: apply, checkpoint, copy. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backup/backup.h"
#include "base/error.h"

typedef unsigned long long ull;

static int disk_error(const struct remus_disk *d, const char *what, int err)
{
    return remus_fail(err, "volume %s: %s %s: %s", d->name, what, d->path,
                      remus_errno_text(err));
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

/*
 * Write extent i and what follows it without a gap, as far as the buffer
 * goes.  `skip` bytes of it were written before.  Advances both.
 * (apply_lock held)
 */
static int write_run(remus_backup *b, const struct remus_extents *x, size_t *i,
                     uint64_t *skip)
{
    const struct remus_extent *e = remus_extents_at(x, *i);
    struct remus_disk *d = &b->disks[e->volume];
    uint64_t start = e->offset + *skip;
    if (e->pos == REMUS_EXTENT_ZERO) {
        ++*i;
        int err = b->io->zero(b->io, d->file, start, e->length);
        return err ? disk_error(d, "write zeroes to", err) : 0;
    }
    size_t used = 0;
    while (*i < x->swept && used < REMUS_APPLY_BYTES) {
        e = remus_extents_at(x, *i);
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

/* The newest data of one window into its disk.  (apply_lock held) */
static int write_window(remus_backup *b, uint64_t *covered)
{
    const struct remus_extents *x = &b->merge;
    uint64_t skip = 0;
    int err = 0;
    for (size_t i = 0; i < x->swept; i++)
        *covered += remus_extents_at(x, i)->length;
    for (size_t i = 0; !err && i < x->swept;)
        err = write_run(b, x, &i, &skip);
    return err;
}

/* apply_lock held */
static int write_volume(remus_backup *b, uint64_t target, unsigned int volume,
                        uint64_t *covered)
{
    int err = 0;
    for (uint64_t at = 0, end; !err && at < b->disks[volume].size; at = end) {
        end = remus_backup_window(b, target, volume, at);
        err = remus_backup_look(b, target, volume, at, end);
        if (!err)
            err = write_window(b, covered);
    }
    return err;
}

int remus_backup_write_epochs(remus_backup *b, uint64_t target)
{
    pthread_mutex_lock(&b->lock);
    b->writing = target;
    b->writes++;
    remus_backup_unlock(b);
    int err = remus_backup_foreign_writes(b);
    if (!err)
        err = remus_backup_measure(b, target);
    uint64_t covered = 0;
    for (unsigned int i = 0; !err && i < b->disk_count; i++)
        err = write_volume(b, target, i, &covered);
    if (err)
        return remus_backup_failed(b, err);
    pthread_mutex_lock(&b->lock);
    b->writing = 0;
    size_t done = 0;
    uint64_t added = 0;
    while (done < b->epoch_count && b->epochs[done]->number <= target) {
        added += b->epochs[done]->extents.added;
        b->applied_cp = b->epochs[done]->cp;
        b->applied_by = b->epochs[done]->by;
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
    remus_backup_unlock(b);
    return 0;
}

/* apply_lock held */
static int apply_held(remus_backup *b)
{
    pthread_mutex_lock(&b->lock);
    uint64_t target = b->committed;
    int err = b->failed;
    int todo = target > b->applied && remus_backup_may(b, REMUS_CALLS_APPLY);
    if (err)
        remus_fail(err, "the backup has failed: %s", b->reason);
    remus_backup_unlock(b);
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

int remus_backup_look_at_closed(remus_backup *b, uint64_t *newest)
{
    int err = remus_backup_check_usable(b);
    return err ? err : remus_backup_sweep_closed(b, newest);
}

/* First segment that a recovery would have to read; 0: none (lock held). */
static uint64_t oldest_needed(const remus_backup *b)
{
    const struct remus_journal *j = &b->journal;
    uint64_t need = 0;
    if (b->epoch_count)
        need = b->epochs[0]->first_seq;
    else if (b->open && b->open->first_seq)
        need = b->open->first_seq;
    else if (b->now.expect_epoch)
        need = j->head.seq ? j->head.seq : j->mark.seq;
    /* A start names the mark. */
    return need && j->mark.seq && j->mark.seq < need ? j->mark.seq : need;
}

/* What is to be stored now.  1: it is news; <0 it may not be (lock held). */
static int next_super(const remus_backup *b, struct remus_super *s)
{
    *s = b->super;
    s->applied = b->applied;
    s->cp = b->applied_cp;
    s->cp_by = b->applied_by;
    s->last_epoch = b->last_epoch;
    s->next_number = b->at.number;
    if (s->committed < b->applied)
        s->committed = b->applied;
    uint64_t need = oldest_needed(b);
    s->tail = need ? need : b->journal.next_seq;
    s->tail_salt = need ? b->journal.salts[need % b->journal.segments] : 0;
    if (!remus_backup_may(b, REMUS_CALLS_CHECKPOINT))
        return 0;
    remus_backup_renew(b, s);
    int err =
        s->applied > s->base ? remus_super_change(s, REMUS_ROLE_APPLY) : 0;
    if (err)
        return err;
    return s->applied != b->super.applied || s->tail != b->super.tail ||
           s->tail_salt != b->super.tail_salt || s->role != b->super.role;
}

/* apply_lock held */
static int checkpoint_held(remus_backup *b)
{
    struct remus_super s;
    pthread_mutex_lock(&b->lock);
    int err = b->failed;
    int todo = next_super(b, &s);
    enum remus_slot_store what =
        s.role == b->super.role ? REMUS_STORE_PROGRESS : REMUS_STORE_DECISION;
    if (err)
        remus_fail(err, "the backup has failed: %s", b->reason);
    remus_backup_unlock(b);
    if (err || todo <= 0)
        return err ? err : todo;
    err = remus_backup_sync_disks(b);
    /* The header of the tail must be there before it is named. */
    if (!err && (err = remus_journal_sync(&b->journal)))
        remus_backup_failed(b, err);
    if (!err)
        err = remus_backup_store_super(b, what, &s);
    if (err)
        return err;
    pthread_mutex_lock(&b->view_lock);
    pthread_mutex_lock(&b->lock);
    if (s.tail_salt)
        remus_journal_free(&b->journal, s.tail);
    else
        remus_journal_drop(&b->journal);
    remus_backup_unlock(b);
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

void remus_backup_drop_epochs(remus_backup *b)
{
    if (b->open)
        remus_epoch_give(b, b->open);
    b->open = NULL;
    while (b->epoch_count)
        remus_epoch_give(b, b->epochs[--b->epoch_count]);
    remus_journal_drop(&b->journal);
    b->at.open = 0;
}

/* ---- a log begins (apply_lock held) ------------------------------------- */

int remus_backup_first_segment(remus_backup *b, struct remus_super *s)
{
    pthread_mutex_lock(&b->lock);
    int err = remus_journal_begin_segment(&b->journal, b->now.id,
                                          b->super.serial, &b->at);
    s->tail = b->journal.head.seq;
    s->tail_salt = b->journal.head.salt;
    s->next_number = b->at.number;
    remus_backup_unlock(b);
    if (!err)
        err = remus_journal_sync(&b->journal);
    return err ? remus_backup_failed(b, err) : 0;
}

int remus_backup_open_log(remus_backup *b)
{
    pthread_mutex_lock(&b->lock);
    int empty = remus_journal_empty(&b->journal);
    struct remus_super s = b->super;
    s.last_epoch = b->last_epoch;
    remus_backup_unlock(b);
    int err = empty ? remus_backup_first_segment(b, &s) : 0;
    if (!err && empty)
        err = remus_backup_store_super(b, REMUS_STORE_DECISION, &s);
    return err;
}

/*
 * A disk failed in a copy, and no journal holds what it lost: remember that
 * what is read of it, as long as this machine runs, may be in the page cache
 * only.  (apply_lock held)
 */
static void note_unsynced(remus_backup *b)
{
    char text[REMUS_REASON_MAX];
    snprintf(text, sizeof text, "%s", remus_last_error());
    struct remus_super s = b->super;
    s.flags |= REMUS_SUPER_UNSYNCED;
    if (b->io->boot_id(b->io, s.unsynced_boot))
        memset(s.unsynced_boot, 0, sizeof s.unsynced_boot);
    if (s.role == REMUS_SUPER_COPYING)
        remus_backup_store_super(b, REMUS_STORE_DECISION, &s);
    remus_fail(0, "%s", text);
}

/* Everything that was closed goes into the disks, which from here on are
 * Inconsistent until a later commit.  (apply_lock held) */
static int keep_closed(remus_backup *b, struct remus_super *s)
{
    pthread_mutex_lock(&b->lock);
    uint64_t newest =
        b->epoch_count ? b->epochs[b->epoch_count - 1]->number : b->applied;
    remus_backup_unlock(b);
    int err = 0;
    if (newest > b->applied)
        err = remus_journal_sync(&b->journal);
    if (err)
        return remus_backup_failed(b, err);
    err = remus_backup_store_copy(b, s);
    if (!err && newest > b->applied &&
        (err = remus_backup_write_epochs(b, newest)))
        note_unsynced(b);
    return err;
}

/* Whose epochs come from here on, which bring with them what the disks lack
 * (lock held). */
static void take_session(const remus_backup *b, struct remus_super *s)
{
    remus_backup_no_stamps(s);
    s->lineage = b->now.lineage;
    s->sessions = b->now.serial;
    s->session = b->now.id;
}

/* What was to be discarded is: another primary needs another word. */
static void discarded(remus_backup *b)
{
    pthread_mutex_lock(&b->lock);
    b->discard_local = b->discards = 0;
    b->doubt = 0;
    remus_backup_unlock(b);
}

/* apply_lock held */
static int adopt_held(remus_backup *b)
{
    int err = remus_backup_check_usable(b);
    pthread_mutex_lock(&b->lock);
    struct remus_super s = b->super;
    if (!err)
        err = remus_super_change(&s, REMUS_ROLE_ADOPT);
    /* Whatever will be committed on top of these disks is newer. */
    if (s.role != b->super.role)
        remus_moment_now(b->io, b->boot, &s.current);
    take_session(b, &s);
    s.last_epoch = b->last_epoch;
    s.next_number = b->at.number;
    remus_backup_unlock(b);
    /* What was compared with the primary's blocks may be in the page cache
     * only, where the primary that ended here left it. */
    if (!err && s.role != b->super.role)
        err = remus_backup_sync_disks(b);
    if (!err) {
        remus_backup_marks_remove(b);
        err = remus_backup_store_super(b, REMUS_STORE_DECISION, &s);
    }
    if (!err)
        discarded(b);
    if (!err && s.role == REMUS_SUPER_JOINED) {
        pthread_mutex_lock(&b->lock);
        b->current = s.current;
        remus_backup_unlock(b);
    }
    return err;
}

int remus_backup_accept(remus_backup *b, uint64_t epoch)
{
    pthread_mutex_lock(&b->apply_lock);
    int err = adopt_held(b);
    if (!err)
        err = remus_backup_open_log(b);
    if (!err) {
        pthread_mutex_lock(&b->lock);
        b->now.expect_epoch = b->now.first_epoch = epoch;
        remus_backup_phase(b, REMUS_ON_CATCH_UP);
        remus_backup_unlock(b);
    }
    pthread_mutex_unlock(&b->apply_lock);
    return err;
}

/* Whose disks a memory waits for may not be given up; else nothing is pinned
 * until they are. */
static int check_no_pin(remus_backup *b)
{
    pthread_mutex_lock(&b->lock);
    uint64_t pin = b->pin;
    if (!pin)
        b->deciding = UINT64_MAX;
    remus_backup_unlock(b);
    return pin ? remus_fail(-EBUSY,
                            "a copy straight to the disks would give up "
                            "checkpoint %llu, which is pinned by whoever "
                            "holds its memory",
                            (unsigned long long)pin)
               : 0;
}

static void decided(remus_backup *b)
{
    pthread_mutex_lock(&b->lock);
    b->deciding = 0;
    remus_backup_unlock(b);
}

int remus_backup_copy_begin(remus_backup *b, int keep)
{
    pthread_mutex_lock(&b->apply_lock);
    int err = remus_backup_check_usable(b);
    if (!err)
        err = check_no_pin(b);
    if (!err) {
        pthread_mutex_lock(&b->lock);
        struct remus_super s = b->super;
        err = remus_super_change(&s, REMUS_ROLE_COPY);
        take_session(b, &s);
        s.last_epoch = b->last_epoch;
        s.tail = b->journal.next_seq;
        s.tail_salt = 0;
        s.next_number = b->at.number;
        remus_backup_unlock(b);
        remus_backup_marks_remove(b);
        /* Inconsistent first, then the first byte. */
        if (!err)
            err = keep ? keep_closed(b, &s) : remus_backup_store_copy(b, &s);
        if (!err) {
            discarded(b);
            pthread_mutex_lock(&b->lock);
            remus_backup_drop_epochs(b);
            remus_backup_unlock(b);
        }
        decided(b);
    }
    pthread_mutex_unlock(&b->apply_lock);
    return err;
}

/* apply_lock held */
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
    pthread_mutex_lock(&b->apply_lock);
    err = remus_backup_check_usable(b);
    if (!err) {
        err = copy_out(b, r, payload);
        if (err) {
            remus_backup_failed(b, err);
            note_unsynced(b);
        }
    }
    pthread_mutex_unlock(&b->apply_lock);
    pthread_mutex_lock(&b->lock);
    b->stats.resync_done += r->type == REMUS_REC_ZERO ? r->range : r->length;
    remus_backup_unlock(b);
    return err;
}

int remus_backup_copy_flush(remus_backup *b)
{
    pthread_mutex_lock(&b->apply_lock);
    int err = remus_backup_check_usable(b);
    if (!err && (err = remus_backup_sync_disks(b)))
        note_unsynced(b);
    pthread_mutex_unlock(&b->apply_lock);
    return err;
}

int remus_backup_copy_end(remus_backup *b, uint64_t first_epoch)
{
    pthread_mutex_lock(&b->apply_lock);
    int err = remus_backup_check_usable(b);
    pthread_mutex_lock(&b->lock);
    uint64_t last = b->last_epoch;
    remus_backup_unlock(b);
    if (!err && (first_epoch <= last || first_epoch > REMUS_NUMBER_MAX))
        err = remus_fail(-EBADMSG,
                         "end of a copy with first epoch %llu; epochs up to "
                         "%llu are used",
                         (ull)first_epoch, (ull)last);
    if (!err && (err = remus_backup_sync_disks(b)))
        note_unsynced(b);
    struct remus_super s = b->super;
    if (!err)
        err = remus_super_change(&s, REMUS_ROLE_COPIED);
    /* Whatever is committed on top of it is newer. */
    remus_moment_now(b->io, b->boot, &s.current);
    s.current_epoch = first_epoch - 1;
    s.flags &= ~REMUS_SUPER_UNSYNCED;
    s.applied = s.base = s.committed = s.last_epoch = first_epoch - 1;
    s.cp = (struct remus_checkpoint){.epoch = s.applied};
    s.cp_by = (struct remus_ioctl_id){.number = 0};
    if (!err)
        err = remus_backup_first_segment(b, &s);
    if (!err)
        err = remus_backup_store_super(b, REMUS_STORE_DECISION, &s);
    if (!err) {
        pthread_mutex_lock(&b->lock);
        remus_backup_phase(b, REMUS_ON_COPIED);
        b->current = s.current;
        b->applied = b->committed = b->prepared = b->acked = b->last_epoch =
            first_epoch - 1;
        b->applied_cp = b->committed_cp = s.cp;
        b->applied_by = s.cp_by;
        b->now.expect_epoch = b->now.first_epoch = first_epoch;
        remus_backup_unlock(b);
    }
    pthread_mutex_unlock(&b->apply_lock);
    return err;
}
