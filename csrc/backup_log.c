/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The backup receives: records, barriers and commits go into the journal. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup.h"
#include "error.h"

typedef unsigned long long ull;

#define KEPT_EPOCHS 64u    /* unused ones */
#define KEPT_EXTENTS 1024u /* room for so many stays with an unused epoch */

/* ---- epochs ---------------------------------------------------------- */

struct remus_epoch *remus_epoch_take(remus_backup *b, uint64_t number)
{
    struct remus_epoch *e = b->free_epochs;
    if (e) {
        b->free_epochs = e->next_free;
        b->free_count--;
    } else {
        e = calloc(1, sizeof *e);
    }
    if (!e)
        return NULL;
    struct remus_extents keep = e->extents;
    memset(e, 0, sizeof *e);
    e->extents = keep;
    remus_extents_clear(&e->extents);
    e->number = number;
    return e;
}

void remus_epoch_give(remus_backup *b, struct remus_epoch *e)
{
    /* What large epochs, or many at once, needed is not kept. */
    if (e->extents.cap > KEPT_EXTENTS || b->free_count >= KEPT_EPOCHS)
        remus_extents_free(&e->extents);
    if (b->free_count >= KEPT_EPOCHS) {
        free(e);
        return;
    }
    e->next_free = b->free_epochs;
    b->free_epochs = e;
    b->free_count++;
}

int remus_epoch_index(remus_backup *b, struct remus_epoch *e,
                      const struct remus_record *r, uint64_t pos)
{
    int zero = r->type == REMUS_REC_ZERO;
    int err = remus_extents_add(&e->extents, r->volume, r->offset,
                                zero ? r->range : r->length,
                                zero ? REMUS_EXTENT_ZERO : pos);
    if (err)
        return remus_fail(err, "resource %s: epoch %llu: out of memory",
                          b->resource, (ull)e->number);
    e->records++;
    e->run = remus_record_run(e->run, r->header_crc);
    return 0;
}

int remus_epoch_close(remus_backup *b, const struct remus_record *r,
                      const unsigned char *tag)
{
    if (b->epoch_count == b->epoch_cap) {
        size_t cap = b->epoch_cap ? 2 * b->epoch_cap : 64;
        struct remus_epoch **v = realloc(b->epochs, cap * sizeof(*v));
        if (!v)
            return remus_fail(-ENOMEM, "resource %s: epoch %llu: out of "
                                       "memory",
                              b->resource, (ull)r->epoch);
        b->epochs = v;
        b->epoch_cap = cap;
    }
    struct remus_epoch *e = b->open;
    b->open = NULL;
    e->barrier_number = r->number;
    e->cp.epoch = e->number;
    e->cp.flags = r->flags & (REMUS_CP_IOCTL | REMUS_CP_DISK_ONLY);
    e->cp.tag_len = r->length;
    if (r->length)
        memcpy(e->cp.tag, tag, r->length);
    b->epochs[b->epoch_count++] = e;
    b->prepared = e->number;
    b->last_barrier = r->number;
    b->stats.ioctl_driven = (e->cp.flags & REMUS_CP_IOCTL) != 0;
    return 0;
}

/* ---- records ---------------------------------------------------------- */

int remus_backup_check_shape(const struct remus_record *r)
{
    switch (r->type) {
    case REMUS_REC_BARRIER:
        if (r->length <= REMUS_TAG_MAX)
            return 0;
        return remus_fail(-EBADMSG, "a tag of %u bytes, limit %d", r->length,
                          REMUS_TAG_MAX);
    case REMUS_REC_ZERO:
        if (r->range && !r->length)
            return 0;
        return remus_fail(-EBADMSG, "%llu zeroes with a payload of %u bytes",
                          (ull)r->range, r->length);
    default:
        return r->length ? 0 : remus_fail(-EBADMSG, "a write of no bytes");
    }
}

int remus_backup_check_range(const remus_backup *b,
                             const struct remus_record *r)
{
    int err = remus_backup_check_shape(r);
    if (err || r->type == REMUS_REC_BARRIER)
        return err;
    uint64_t n = r->type == REMUS_REC_ZERO ? r->range : r->length;
    if (r->volume >= b->disk_count)
        return remus_fail(-EBADMSG, "no volume %u", r->volume);
    const struct remus_disk *d = &b->disks[r->volume];
    if (r->offset > d->size || n > d->size - r->offset)
        return remus_fail(-EBADMSG,
                          "volume %s: %llu bytes at %llu are outside of %llu",
                          d->name, (ull)n, (ull)r->offset, (ull)d->size);
    return 0;
}

/* Make room in the journal for a record of `length` (lock held). */
static int ensure_segment(remus_backup *b, uint32_t length, uint64_t epoch)
{
    if (!b->session_start && remus_journal_fits(&b->journal, length))
        return 0;
    const struct remus_segment seg = {
        .session = b->session,
        .first_number = b->next_number,
        .prev_number = b->session_start ? b->last_barrier : 0,
        .epoch = epoch,
        .flags = b->session_start ? REMUS_SEGMENT_SESSION_START : 0,
    };
    int err = remus_journal_begin_segment(&b->journal, &seg);
    if (!err)
        b->session_start = 0;
    return err;
}

static int check_sequence(const remus_backup *b,
                          const struct remus_record *r)
{
    if (b->fenced)
        return remus_fail(-EROFS, "this backup is being promoted");
    /* The journal may be well, but what could not be applied could not be
     * failed over to: an ack would promise too much. */
    if (b->failed)
        return remus_fail(b->failed, "the backup has failed: %s", b->reason);
    if (b->copying || !b->expect_epoch)
        return remus_fail(-EBADMSG, "a counted record before the copy ended");
    if (r->session != b->session || r->number != b->next_number ||
        r->epoch != b->expect_epoch)
        return remus_fail(
            -EBADMSG,
            "record %llu of epoch %llu, session %llx; expected %llu of "
            "epoch %llu, session %llx",
            (ull)r->number, (ull)r->epoch, (ull)r->session,
            (ull)b->next_number, (ull)b->expect_epoch, (ull)b->session);
    if (r->length > b->journal.max_payload)
        return remus_fail(-EBADMSG, "payload of %u bytes, limit here %u",
                          r->length, b->journal.max_payload);
    return remus_backup_check_range(b, r);
}

static int check_barrier(const struct remus_epoch *e,
                         const struct remus_record *r)
{
    if (e->records == r->offset && e->run == (uint32_t)r->range)
        return 0;
    return remus_fail(-EBADMSG,
                      "barrier of epoch %llu: %llu records with CRC %08x "
                      "announced, %llu with %08x received",
                      (ull)r->epoch, (ull)r->offset, (uint32_t)r->range,
                      (ull)e->records, e->run);
}

/* A barrier or commit was appended (lock held). */
static void note_mark(remus_backup *b, uint64_t number)
{
    b->mark = (struct remus_mark){.seq = b->journal.head.seq,
                                  .session = b->journal.head.session,
                                  .end = b->journal.head_pos,
                                  .number = number};
}

/* lock held */
static int record_locked(remus_backup *b,
                         const unsigned char header[REMUS_REC_HEADER],
                         const struct remus_record *r,
                         const unsigned char *payload)
{
    int err = check_sequence(b, r);
    if (err)
        return err;
    int barrier = r->type == REMUS_REC_BARRIER;
    if (!b->open) {
        b->open = remus_epoch_take(b, r->epoch);
        if (!b->open)
            return remus_fail(-ENOMEM, "out of memory");
    }
    if (barrier && (err = check_barrier(b->open, r)))
        return err;
    err = ensure_segment(b, r->length, r->epoch);
    if (err)
        return err;
    unsigned char salted[REMUS_REC_HEADER];
    memcpy(salted, header, sizeof salted);
    uint64_t pos;
    err = remus_journal_append(&b->journal, salted, barrier, payload,
                               r->length, &pos);
    if (err)
        return err;
    b->next_number++;
    b->cost += remus_record_cost(r);
    b->last_epoch = r->epoch;
    if (!b->open->first_seq)
        b->open->first_seq = b->journal.head.seq;
    b->stats.records++;
    if (!barrier) {
        uint64_t n = r->type == REMUS_REC_WRITE ? r->length : r->range;
        if (r->flags & REMUS_REC_CATCH_UP)
            b->stats.resync_done += n;
        else if (r->type == REMUS_REC_WRITE)
            b->stats.bytes_written += r->length;
        else
            b->stats.bytes_zeroed += r->range;
        return remus_epoch_index(b, b->open, r, pos);
    }
    b->stats.epochs++;
    note_mark(b, r->number);
    b->expect_epoch = r->epoch + 1;
    return remus_epoch_close(b, r, payload);
}

int remus_backup_record(remus_backup *b,
                        const unsigned char header[REMUS_REC_HEADER],
                        const struct remus_record *r,
                        const unsigned char *payload)
{
    pthread_mutex_lock(&b->lock);
    int err = record_locked(b, header, r, payload);
    int final = b->journal.failed;
    pthread_mutex_unlock(&b->lock);
    if (!err)
        return 0;
    remus_fail_in(err, "backup of %s", b->resource);
    return final ? remus_backup_failed(b, err) : err;
}

int remus_backup_ack(remus_backup *b, uint64_t epoch)
{
    if (b->ack == REMUS_ACK_DURABLE) {
        int err = remus_journal_sync(&b->journal);
        if (err)
            return remus_backup_failed(b, err);
    }
    pthread_mutex_lock(&b->lock);
    int err = 0;
    /* A promote may have begun meanwhile, perhaps to an earlier epoch. */
    if (b->fenced) {
        err = remus_fail(-EROFS, "this backup is being promoted");
    } else {
        for (size_t i = b->epoch_count; i-- > 0;) {
            if (b->epochs[i]->acked)
                break;
            if (b->epochs[i]->number <= epoch)
                b->epochs[i]->acked = 1;
        }
        if (epoch > b->acked)
            b->acked = epoch;
        if (epoch >= b->catching)
            b->catching = 0;
    }
    pthread_mutex_unlock(&b->lock);
    return err;
}

/* ---- commits ---------------------------------------------------------- */

/* Is `epoch` closed here?  (lock held, epoch > committed) */
static int is_prepared(const remus_backup *b, uint64_t epoch)
{
    for (size_t i = 0; i < b->epoch_count; i++)
        if (b->epochs[i]->number == epoch)
            return 1;
    return 0;
}

void remus_backup_note_commit(remus_backup *b, uint64_t epoch)
{
    b->committed = epoch;
    for (size_t i = 0; i < b->epoch_count; i++)
        if (b->epochs[i]->number == epoch)
            b->committed_cp = b->epochs[i]->cp;
}

/*
 * Before a session's first record a commit goes right behind what is kept of
 * the one before: in a journal full of prepared epochs, where it is the only
 * way on, there may be no segment for it.  (lock held)
 */
static int at_mark(const remus_backup *b)
{
    const struct remus_journal *j = &b->journal;
    return b->session_start && j->head.seq && j->head.seq == b->mark.seq &&
           j->head_pos == b->mark.end && remus_journal_fits(j, 0);
}

static int commit_locked(remus_backup *b, uint64_t epoch)
{
    if (b->fenced)
        return remus_fail(-EROFS, "this backup was promoted to %llu",
                          (ull)b->super.target);
    if (epoch <= b->committed)
        return 0;
    if (!is_prepared(b, epoch))
        return remus_fail(-EINVAL,
                          "commit of checkpoint %llu: not prepared here; "
                          "committed is %llu, newest prepared %llu",
                          (ull)epoch, (ull)b->committed, (ull)b->prepared);
    uint64_t number = b->next_number - 1;
    int err = 0;
    if (at_mark(b))
        number = b->mark.number;
    else
        err = ensure_segment(b, 0, b->open ? b->open->number : epoch + 1);
    if (err)
        return err;
    struct remus_record r = {.type = REMUS_REC_COMMIT,
                             .epoch = epoch,
                             .session = b->journal.head.session,
                             .number = number};
    unsigned char header[REMUS_REC_HEADER];
    uint64_t pos;
    remus_record_encode(&r, header);
    err = remus_journal_append(&b->journal, header, 1, NULL, 0, &pos);
    if (err)
        return err;
    note_mark(b, number);
    remus_backup_note_commit(b, epoch);
    return 0;
}

/*
 * With commit_by = "backup" the primary's word counts only for checkpoints
 * that its engine took by itself: no memory goes with them.  (lock held)
 */
static int primary_may_commit(const remus_backup *b, uint64_t epoch)
{
    if (b->commit_by != REMUS_COMMIT_BY_BACKUP)
        return 1;
    for (size_t i = 0; i < b->epoch_count; i++) {
        const struct remus_epoch *e = b->epochs[i];
        if (e->number > b->committed && e->number <= epoch &&
            !(e->cp.flags & REMUS_CP_DISK_ONLY))
            return 0;
    }
    return 1;
}

int remus_backup_commit_record(remus_backup *b, uint64_t epoch,
                               int from_primary)
{
    int err = 0;
    if (b->look)
        return remus_fail(-EROFS, "backup of %s: was opened to look at only",
                          b->resource);
    pthread_mutex_lock(&b->lock);
    if (!from_primary || primary_may_commit(b, epoch))
        err = commit_locked(b, epoch);
    int final = b->journal.failed;
    pthread_mutex_unlock(&b->lock);
    if (!err)
        return 0;
    remus_fail_in(err, "backup of %s", b->resource);
    return final ? remus_backup_failed(b, err) : err;
}

unsigned int remus_backup_untold(remus_backup *b, struct remus_measured *out,
                                 unsigned int cap)
{
    unsigned int n = 0;
    pthread_mutex_lock(&b->lock);
    if (b->measured_end - b->measured_told > REMUS_MEASURED_KEPT)
        b->measured_told = b->measured_end - REMUS_MEASURED_KEPT;
    while (n < cap && b->measured_told < b->measured_end)
        out[n++] = b->measured[b->measured_told++ % REMUS_MEASURED_KEPT];
    pthread_mutex_unlock(&b->lock);
    return n;
}

/* lock held */
static void progress(const remus_backup *b, struct remus_record *r)
{
    r->epoch = b->acked;
    r->offset = remus_backup_stable(b);
    r->range = remus_backup_credit(b);
    r->number = b->super.applied;
    r->session = b->session;
}

void remus_backup_progress(remus_backup *b, struct remus_record *r)
{
    pthread_mutex_lock(&b->lock);
    progress(b, r);
    pthread_mutex_unlock(&b->lock);
}

int remus_backup_try_progress(remus_backup *b, struct remus_record *r)
{
    if (pthread_mutex_trylock(&b->lock))
        return 0;
    progress(b, r);
    pthread_mutex_unlock(&b->lock);
    return 1;
}
