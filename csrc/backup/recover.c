/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A backup finds out at its start which checkpoints its journal holds. */
#include <errno.h>
#include <string.h>

#include "backup/backup.h"
#include "base/error.h"

struct recovery {
    remus_backup *b;
    uint64_t seq;      /* segment being read */
    uint64_t number;   /* beyond every counted record that was seen */
    uint64_t headless; /* the epoch in the middle of which the log begins, as
                          long as its session goes on; 0: in none */
    int other; /* there are records that were written for other volumes */
};

static void drop_open(remus_backup *b)
{
    if (b->open)
        remus_epoch_give(b, b->open);
    b->open = NULL;
}

static int recover_segment(void *ctx, const struct remus_segment *seg)
{
    struct recovery *rec = ctx;
    remus_backup *b = rec->b;
    /* What an earlier session left open was never acked. */
    if (seg->kind == REMUS_SEGMENT_START) {
        drop_open(b);
        rec->headless = 0;
    } else if (seg->at.open && seg->at.epoch > b->super.applied && !b->open) {
        rec->headless = seg->at.epoch;
    }
    if (seg->volumes && seg->volumes != b->journal.volumes)
        rec->other = 1;
    rec->seq = seg->seq;
    if (seg->at.number > rec->number)
        rec->number = seg->at.number;
    return 0;
}

/*
 * All before the tail is in the disks, and so is what a commit in the middle
 * of an epoch names.  If that is where the session ended, the segment in which
 * the epoch began was let go; but then it has no barrier.
 */
static int recover_headless(const struct remus_record *r)
{
    if (r->type != REMUS_REC_BARRIER)
        return 0;
    return remus_fail(-EBADMSG,
                      "the journal begins in the middle of epoch %llu, "
                      "which is not in the disks: its files were changed "
                      "from outside",
                      (unsigned long long)r->epoch);
}

/* The epoch of a counted record that is not applied yet. */
static int recover_epoch(struct recovery *rec, const struct remus_record *r)
{
    remus_backup *b = rec->b;
    if (b->open)
        return 0;
    b->open = remus_epoch_take(b, r->epoch);
    if (!b->open)
        return remus_fail(-ENOMEM, "out of memory");
    b->open->first_seq = rec->seq;
    return 0;
}

static int recover_barrier(remus_backup *b, const struct remus_record *r,
                           const unsigned char *payload)
{
    struct remus_epoch *e = b->open;
    int err = remus_epoch_close(b, r, payload);
    if (err)
        return err;
    e->acked = 1;
    b->acked = b->prepared;
    return 0;
}

/* COMMIT, TOLD: 1 if it is about what is not here. */
static int recover_word(remus_backup *b, const struct remus_record *r,
                        const struct remus_progress *at)
{
    if (r->number + 1 != at->number || r->epoch > b->prepared)
        return 1;
    if (r->type == REMUS_REC_TOLD && r->epoch > b->told)
        b->told = r->epoch;
    if (r->type == REMUS_REC_COMMIT && r->epoch > b->committed)
        remus_backup_note_commit(b, r->epoch);
    return 0;
}

static int recover_record(void *ctx, const struct remus_record *r,
                          const unsigned char *payload, uint64_t pos,
                          struct remus_progress *at)
{
    struct recovery *rec = ctx;
    remus_backup *b = rec->b;
    if (r->type == REMUS_REC_COMMIT || r->type == REMUS_REC_TOLD)
        return recover_word(b, r, at);
    if (!remus_record_counted(r) || remus_backup_check_shape(r) ||
        remus_progress_take(at, r))
        return 1;
    if (remus_backup_check_range(b, r))
        rec->other = 1; /* it was in range when it was taken */
    rec->number = at->number;
    if (r->epoch > b->last_epoch)
        b->last_epoch = r->epoch;
    if (r->epoch <= b->super.applied)
        return 0;
    if (r->epoch == rec->headless)
        return recover_headless(r);
    int err = recover_epoch(rec, r);
    if (err)
        return err;
    if (r->type == REMUS_REC_BARRIER)
        return recover_barrier(b, r, payload);
    struct remus_record wire = *r;
    unsigned char header[REMUS_REC_HEADER];
    wire.salt = 0;
    remus_record_encode(&wire, header);
    return remus_epoch_index(b, b->open, &wire, pos);
}

/* What was said between a start and the first record after it. */
static int recover_words(remus_backup *b)
{
    const struct remus_super *s = &b->super;
    if (s->told > b->told)
        b->told = s->told;
    if (s->committed <= b->committed)
        return 0;
    for (size_t i = 0; i < b->epoch_count; i++)
        if (b->epochs[i]->number == s->committed) {
            remus_backup_note_commit(b, s->committed);
            return 0;
        }
    return remus_fail(
        -EBADMSG,
        "checkpoint %llu was committed, but the journal no longer holds it: "
        "it is damaged, or its files were changed "
        "from outside",
        (unsigned long long)s->committed);
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
                          "journal no longer holds that checkpoint: "
                          "its files were changed from outside",
                          (unsigned long long)b->super.target);
    return 0;
}

static void recover_from_super(remus_backup *b)
{
    const struct remus_super *s = &b->super;
    b->applied = b->committed = b->prepared = b->acked = s->applied;
    b->applied_cp = b->committed_cp = s->cp;
    b->applied_by = s->cp_by;
    b->last_epoch = s->last_epoch;
    b->at = (struct remus_progress){.number = s->next_number};
    if (remus_super_promoted(s))
        remus_backup_claim(b, REMUS_CLAIM_FOUND);
}

int remus_backup_recover(remus_backup *b)
{
    const struct remus_super *s = &b->super;
    recover_from_super(b);
    int reads =
        remus_super_follows(s->role) || s->role == REMUS_SUPER_PROMOTING;
    if (s->role == REMUS_SUPER_PROMOTED)
        return 0;
    struct recovery rec = {.b = b, .number = s->next_number};
    const struct remus_journal_visitor v = {
        .segment = recover_segment, .record = recover_record, .ctx = &rec};
    int err = remus_journal_recover(&b->journal, s->tail,
                                    reads ? s->tail_salt : 0, s->serial, &v);
    if (!err && reads)
        err = recover_words(b);
    if (err)
        return err;
    /* Numbers of records that were lost are not used again either: a gap
     * does no harm. */
    b->at.number = rec.number;
    pthread_mutex_lock(&b->journal.sync_lock);
    pthread_mutex_lock(&b->lock);
    remus_backup_start(b);
    remus_backup_unlock(b);
    pthread_mutex_unlock(&b->journal.sync_lock);
    /* A read-only open knows no sizes, and moves nothing to a disk. */
    if (rec.other && b->epoch_count && !b->read_only)
        return remus_fail(-EINVAL,
                          "the journal holds checkpoints that are not in the "
                          "disks yet, and was written for other volumes: "
                          "restore their names, order and sizes");
    if (s->role == REMUS_SUPER_PROMOTING)
        return recover_promoting(b);
    return 0;
}
