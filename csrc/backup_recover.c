/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A backup finds out at its start which checkpoints its journal holds. */
#include <errno.h>
#include <string.h>

#include "backup.h"
#include "error.h"

struct recovery {
    remus_backup *b;
    uint64_t seq;      /* segment being scanned */
    uint64_t expected; /* number of the next counted record */
    uint64_t session;
    int other; /* there are records that were written for other volumes */
};

static void drop_open(remus_backup *b)
{
    if (b->open)
        remus_epoch_give(b, b->open);
    b->open = NULL;
}

static int recover_segment(void *ctx, const struct remus_segment *seg,
                           int first)
{
    struct recovery *rec = ctx;
    remus_backup *b = rec->b;
    if (seg->flags & REMUS_SEGMENT_SESSION_START) {
        if (!first && b->last_barrier != seg->prev_number)
            return 1;
        /* What an earlier session left open was never acked. */
        drop_open(b);
    } else if (!first && (seg->first_number != rec->expected ||
                          seg->session != rec->session)) {
        return 1;
    }
    if (seg->volumes && seg->volumes != b->journal.volumes)
        rec->other = 1;
    rec->seq = seg->seq;
    rec->expected = seg->first_number;
    rec->session = seg->session;
    return 0;
}

/* Find the epoch of a counted record: 0; 1: the log ends here; -ENOMEM. */
static int recover_epoch(struct recovery *rec, const struct remus_record *r)
{
    remus_backup *b = rec->b;
    if (b->open)
        return b->open->number != r->epoch;
    if (b->epoch_count &&
        r->epoch <= b->epochs[b->epoch_count - 1]->number)
        return 1;
    b->open = remus_epoch_take(b, r->epoch);
    if (!b->open)
        return -ENOMEM;
    b->open->first_seq = rec->seq;
    return 0;
}

/* A barrier or commit counts: where it ends. */
static void recover_mark(struct recovery *rec, const struct remus_record *r,
                         uint64_t pos)
{
    uint64_t end = pos % rec->b->journal.segment_bytes + r->length;
    rec->b->mark = (struct remus_mark){
        .seq = rec->seq,
        .session = rec->session,
        .end = (end + REMUS_PAGE - 1) / REMUS_PAGE * REMUS_PAGE,
        .number = r->number};
}

static int recover_barrier(struct recovery *rec,
                           const struct remus_record *r,
                           const unsigned char *payload, uint64_t pos)
{
    remus_backup *b = rec->b;
    struct remus_epoch *e = b->open;
    /* An applied epoch may have begun in a segment that is gone. */
    int whole = r->epoch > b->super.applied;
    if (whole && (e->records != r->offset || e->run != (uint32_t)r->range))
        return 1;
    b->last_barrier = r->number;
    recover_mark(rec, r, pos);
    if (!whole) {
        drop_open(b);
        return 0;
    }
    int err = remus_epoch_close(b, r, payload);
    if (err)
        return err;
    e->acked = 1;
    b->acked = b->prepared;
    return 0;
}

static int recover_record(void *ctx, const struct remus_record *r,
                          const unsigned char *payload, uint64_t pos)
{
    struct recovery *rec = ctx;
    remus_backup *b = rec->b;
    if (r->type == REMUS_REC_COMMIT) {
        if (r->number + 1 != rec->expected || r->epoch > b->prepared)
            return 1;
        recover_mark(rec, r, pos);
        if (r->epoch > b->committed)
            remus_backup_note_commit(b, r->epoch);
        return 0;
    }
    if (!remus_record_counted(r) || r->number != rec->expected ||
        remus_backup_check_shape(r))
        return 1;
    if (remus_backup_check_range(b, r))
        rec->other = 1; /* it was in range when it was taken */
    int rc = recover_epoch(rec, r);
    if (rc)
        return rc;
    rec->expected++;
    if (r->epoch > b->last_epoch)
        b->last_epoch = r->epoch;
    if (r->type == REMUS_REC_BARRIER)
        return recover_barrier(rec, r, payload, pos);
    if (r->epoch <= b->super.applied)
        return 0;
    struct remus_record wire = *r;
    unsigned char header[REMUS_REC_HEADER];
    wire.salt = 0;
    remus_record_encode(&wire, header);
    return remus_epoch_index(b, b->open, &wire, pos);
}

/* After a promote was begun, only what it needs is left. */
static int recover_promoting(remus_backup *b)
{
    while (b->epoch_count &&
           b->epochs[b->epoch_count - 1]->number > b->super.target)
        remus_epoch_give(b, b->epochs[--b->epoch_count]);
    b->prepared = b->acked = b->super.target;
    if (b->super.target == b->super.applied)
        return 0;
    if (!b->epoch_count ||
        b->epochs[b->epoch_count - 1]->number != b->super.target)
        return remus_fail(-EBADMSG,
                          "the promote to checkpoint %llu was begun, but the "
                          "journal does not hold that checkpoint any more: "
                          "its files were changed from outside",
                          (unsigned long long)b->super.target);
    return 0;
}

int remus_backup_recover(remus_backup *b)
{
    const struct remus_super *s = &b->super;
    b->applied = b->committed = b->prepared = b->acked = s->applied;
    b->applied_cp = b->committed_cp = s->cp;
    b->last_epoch = s->last_epoch;
    b->last_barrier = s->number;
    b->next_number = s->next_number;
    b->session_start = 1;
    b->fenced = remus_super_promoted(s);
    if (!remus_super_follows(s->role) &&
        s->role != REMUS_SUPER_PROMOTING) {
        remus_journal_drop(&b->journal, s->tail);
        return 0;
    }
    struct recovery rec = {.b = b};
    const struct remus_journal_visitor v = {
        .segment = recover_segment, .record = recover_record, .ctx = &rec};
    int err = remus_journal_recover(&b->journal, s->tail, &v);
    if (err)
        return err;
    pthread_mutex_lock(&b->journal.sync_lock);
    pthread_mutex_lock(&b->lock);
    remus_backup_drop_open(b);
    pthread_mutex_unlock(&b->lock);
    pthread_mutex_unlock(&b->journal.sync_lock);
    /* Numbers of records that were lost are not used again either: the salt
     * tells them apart, and a gap does no harm. */
    if (rec.expected > b->next_number)
        b->next_number = rec.expected;
    /* Who only looks knows no sizes, and moves nothing to a disk. */
    if (rec.other && b->epoch_count && !b->look)
        return remus_fail(-EINVAL,
                          "the journal holds checkpoints that are not in the "
                          "disks yet, and was written for other volumes: "
                          "restore their names, order and sizes");
    if (s->role == REMUS_SUPER_PROMOTING)
        return recover_promoting(b);
    return 0;
}
