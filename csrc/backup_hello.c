/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary says hello: is it ours, what does it find here, how much of the
 * journal may it spend; and the end of its session.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backup.h"
#include "error.h"

typedef unsigned long long ull;

static int check_volumes(const remus_backup *b, const struct remus_hello *h)
{
    if (h->volumes != b->disk_count)
        return remus_fail(-EINVAL, "the primary has %u volumes, the backup "
                                   "%u: use one resource file on both",
                          h->volumes, b->disk_count);
    for (unsigned int i = 0; i < b->disk_count; i++) {
        const struct remus_disk *d = &b->disks[i];
        if (strcmp(h->name[i], d->name))
            return remus_fail(-EINVAL,
                              "volume %u is %s on the primary, %s on the "
                              "backup: use one resource file on both",
                              i, h->name[i], d->name);
        if (h->size[i] != d->size)
            return remus_fail(-EINVAL,
                              "volume %s has %llu bytes on the primary, %llu "
                              "on the backup (%s): make them equal",
                              d->name, (ull)h->size[i], (ull)d->size,
                              d->path);
    }
    return 0;
}

/*
 * May this primary go on from what is here?  1: both sides went on from one
 * checkpoint, which is named, and nothing is taken; <0 refused.  (lock held)
 */
static int check_lineage(remus_backup *b, const struct remus_hello *h)
{
    const struct remus_lineage *ours = &b->super.lineage;
    uint64_t end;
    char mine[9], theirs[9];
    b->split = b->ahead = 0;
    /* Of a copy that was cut short nothing is worth keeping. */
    if (b->super.role < REMUS_SUPER_SYNCED)
        return 0;
    enum remus_relation is = remus_lineage_compare(ours, &h->lineage);
    if (is == REMUS_RELATION_STRANGERS)
        return remus_fail(-EPERM,
                          "this backup belongs to another primary "
                          "(generation %s..., this one is %s...): correct "
                          "the address; or, if what it holds is not needed, "
                          "stop it and empty its state and journal directory",
                          remus_id_text(ours->id, mine),
                          remus_id_text(h->lineage.id, theirs));
    if (is == REMUS_RELATION_SAME || b->discard_local)
        return 0;
    /* What a primary's disks hold beyond the common checkpoint was never
     * let pass while nobody took it, or the id would not be an ancestor. */
    if (is == REMUS_RELATION_BEHIND &&
        remus_lineage_has(&h->lineage, ours->id, &end) &&
        (b->super.role == REMUS_SUPER_FOREIGN || b->prepared <= end))
        return 0;
    /* These disks were failed over to from that primary's generation. */
    b->ahead = is == REMUS_RELATION_AHEAD &&
               b->super.role == REMUS_SUPER_FOREIGN;
    b->split = !b->ahead;
    return 1;
}

/* Did the primary, whose backup this was, go on as well?  That stays so until
 * somebody chose.  (lock held) */
static void note_split(remus_backup *b, const struct remus_hello *h)
{
    struct remus_lineage ours;
    remus_super_descend(&b->super, &ours);
    b->split |= remus_lineage_compare(&ours, &h->lineage) ==
                REMUS_RELATION_SPLIT;
}

/* lock held */
static int check_session(remus_backup *b, const struct remus_hello *h)
{
    if (b->fenced && b->super.role != REMUS_SUPER_PROMOTED)
        return remus_fail(-EROFS,
                          "this backup was promoted to checkpoint %llu and "
                          "takes no more writes of a primary",
                          (ull)b->super.target);
    if (b->failed)
        return remus_fail(b->failed, "the backup has failed: %s", b->reason);
    if (strcmp(h->resource, b->resource))
        return remus_fail(-EINVAL,
                          "the primary replicates resource %s, this is the "
                          "backup of %s: correct the address",
                          h->resource, b->resource);
    if (h->ack != b->ack || h->commit_by != b->commit_by)
        return remus_fail(-EINVAL,
                          "ack or commit_by differ between the sides: use "
                          "one resource file on both");
    /* Nothing will be written, and its disks are not open. */
    if (b->super.role == REMUS_SUPER_PROMOTED) {
        note_split(b, h);
        return 0;
    }
    int err = check_volumes(b, h);
    return err ? err : check_lineage(b, h);
}

/* Segments that only barriers and commits may use: room for as many of them
 * as may be without an ack, but no more than a quarter of the journal. */
static uint64_t reserve(const remus_backup *b)
{
    const struct remus_record barrier = {.type = REMUS_REC_BARRIER};
    uint64_t worth = remus_journal_segment_worth(&b->journal);
    uint64_t want =
        (REMUS_RESERVED_BARRIERS * remus_record_cost(&barrier) + worth - 1) /
        worth;
    uint64_t most = b->journal.segments / 4;
    return want < most ? want : most;
}

int remus_backup_short_of_room(const remus_backup *b)
{
    return remus_journal_unused(&b->journal) <= reserve(b);
}

/* Room that commits still need: each epoch may get one of its own. */
static uint64_t commits_to_come(const remus_backup *b)
{
    size_t low = 0, high = b->epoch_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (b->epochs[middle]->number > b->committed)
            high = middle;
        else
            low = middle + 1;
    }
    return (b->epoch_count - low) * REMUS_COMMIT_COST;
}

/*
 * What the primary may spend.  Beyond it, barriers may use the reserve (in
 * the hello reply), so for both together:
 *
 *     credit + reserve = cost so far + room of unused segments
 *                        - room for the commits to come
 *
 * A barrier pays for itself and for its commit: by it the right side does not
 * grow, so what is held back for commits is never given out again, and every
 * prepared epoch can be committed, one by one, in a journal full of them.
 */
uint64_t remus_backup_credit(const remus_backup *b)
{
    uint64_t worth = remus_journal_segment_worth(&b->journal);
    uint64_t all = b->cost + remus_journal_unused(&b->journal) * worth;
    uint64_t kept = reserve(b) * worth + commits_to_come(b);
    return all > kept ? all - kept : 0;
}

/* What is left of the reserve when a session begins: barriers of earlier
 * ones may have used it, and the room of commits is never in it. */
static uint64_t reserve_left(const remus_backup *b)
{
    uint64_t worth = remus_journal_segment_worth(&b->journal);
    uint64_t all = remus_journal_unused(&b->journal) * worth;
    uint64_t commits = commits_to_come(b), want = reserve(b) * worth;
    uint64_t left = all > commits ? all - commits : 0;
    return left < want ? left : want;
}

/* Credit that an epoch can have once all that is committed is applied; what
 * is only prepared keeps its segments (lock held). */
static uint64_t capacity(const remus_backup *b)
{
    uint64_t kept = 0;
    for (size_t i = 0; !kept && i < b->epoch_count; i++)
        if (b->epochs[i]->number > b->committed)
            kept = b->journal.next_seq - b->epochs[i]->first_seq;
    kept += reserve(b) + 1; /* and what is written to now */
    return kept < b->journal.segments
               ? (b->journal.segments - kept) *
                     remus_journal_segment_worth(&b->journal)
               : 0;
}

static uint32_t content(const remus_backup *b)
{
    if (b->super.role == REMUS_SUPER_EMPTY)
        return REMUS_CONTENT_NONE;
    if (b->super.role == REMUS_SUPER_COPYING)
        return REMUS_CONTENT_PARTIAL;
    if (b->super.role == REMUS_SUPER_FOREIGN)
        return REMUS_CONTENT_FOREIGN;
    return remus_backup_consistent(b) ? REMUS_CONTENT_CONSISTENT
                                      : REMUS_CONTENT_COMPLETE;
}

/* Why nothing is taken: the answer tells what a primary must know to find
 * out what that means for it (lock held). */
static void answer_no(const remus_backup *b, struct remus_hello_reply *reply)
{
    struct remus_lineage l = b->super.lineage;
    uint64_t end;
    memcpy(reply->generation, l.id, REMUS_ID_BYTES);
    if (b->ahead) {
        reply->content = REMUS_CONTENT_PROMOTED;
        memcpy(reply->origin, b->session_lineage.id, REMUS_ID_BYTES);
        remus_lineage_has(&l, b->session_lineage.id, &end);
        reply->held = end;
        return;
    }
    if (b->super.role != REMUS_SUPER_PROMOTED) {
        reply->content = REMUS_CONTENT_SPLIT;
        for (uint32_t i = 0; i < l.count; i++)
            if (remus_lineage_has(&b->session_lineage, l.ancestor[i].id,
                                  &end)) {
                memcpy(reply->origin, l.ancestor[i].id, REMUS_ID_BYTES);
                break;
            }
        return;
    }
    reply->content = REMUS_CONTENT_PROMOTED;
    remus_lineage_at(&b->super.lineage, b->super.target, &l);
    memcpy(reply->generation, b->super.promoted_generation, REMUS_ID_BYTES);
    memcpy(reply->origin, l.id, REMUS_ID_BYTES);
    reply->held = b->super.target;
}

/* lock held */
static void begin(remus_backup *b, uint64_t session,
                  struct remus_hello_reply *reply)
{
    if (b->open) {
        remus_epoch_give(b, b->open);
        b->open = NULL;
    }
    b->session = session;
    b->session_start = 1;
    b->cost = 0;
    b->expect_epoch = 0;
    reply->last_epoch = b->last_epoch;
    reply->next_number = b->next_number;
    reply->credit = remus_backup_credit(b);
    reply->reserve = reserve_left(b);
    memcpy(reply->generation, b->super.lineage.id, REMUS_ID_BYTES);
    reply->content = content(b);
    reply->held = b->prepared;
    reply->committed = b->committed;
    reply->capacity = capacity(b);
}

int remus_backup_session_begin(remus_backup *b, const struct remus_hello *h,
                               uint64_t session,
                               struct remus_hello_reply *reply)
{
    *reply = (struct remus_hello_reply){.version = REMUS_WIRE_VERSION};
    pthread_mutex_lock(&b->lock);
    int err = check_session(b, h);
    if (err >= 0) {
        b->session_lineage = h->lineage;
        reply->max_payload = b->journal.max_payload;
        if (err || b->super.role == REMUS_SUPER_PROMOTED)
            answer_no(b, reply);
        else
            begin(b, session, reply);
    }
    pthread_mutex_unlock(&b->lock);
    return err < 0 ? remus_fail_in(err, "backup of %s", b->resource) : 0;
}

void remus_backup_note_heard(remus_backup *b, uint64_t older_s)
{
    pthread_mutex_lock(&b->apply_lock);
    pthread_mutex_lock(&b->lock);
    struct remus_super s = b->super;
    int todo = !b->failed && !b->fenced && b->expect_epoch &&
               remus_super_follows(s.role);
    s.heard = remus_backup_now_s(b);
    pthread_mutex_unlock(&b->lock);
    if (todo && s.heard > b->super.heard + older_s)
        remus_backup_store_super(b, &s);
    pthread_mutex_unlock(&b->apply_lock);
}

void remus_backup_drop_open(remus_backup *b)
{
    /* An epoch without its barrier was never promised. */
    if (b->open)
        remus_epoch_give(b, b->open);
    b->open = NULL;
    /* Its segments must not be kept by prepared epochs before them, or a
     * link, or a process, that comes and goes would fill the journal. */
    if (b->epoch_count && b->mark.seq)
        remus_journal_rewind(&b->journal, &b->mark);
}

void remus_backup_session_end(remus_backup *b)
{
    remus_backup_note_heard(b, 0);
    pthread_mutex_lock(&b->journal.sync_lock);
    pthread_mutex_lock(&b->lock);
    remus_backup_drop_open(b);
    b->session_start = 1;
    b->expect_epoch = 0;
    b->copying = 0;
    b->catching = 0;
    pthread_mutex_unlock(&b->lock);
    pthread_mutex_unlock(&b->journal.sync_lock);
}

static int check_catch_up(remus_backup *b, uint64_t epoch)
{
    pthread_mutex_lock(&b->lock);
    int err = 0;
    if (b->fenced)
        err = remus_fail(-EROFS, "this backup is being promoted");
    else if (b->copying || b->expect_epoch || epoch <= b->last_epoch ||
             epoch > REMUS_NUMBER_MAX ||
             (!remus_super_follows(b->super.role) &&
              b->super.role != REMUS_SUPER_FOREIGN))
        err = remus_fail(-EBADMSG,
                         "a catch-up with epoch %llu; epochs up to %llu are "
                         "used, and it needs disks that were copied once",
                         (ull)epoch, (ull)b->last_epoch);
    pthread_mutex_unlock(&b->lock);
    return err;
}

int remus_backup_catch_up(remus_backup *b, uint64_t epoch, uint64_t bytes)
{
    int err = check_catch_up(b, epoch);
    if (!err)
        err = remus_backup_adopt(b);
    if (err)
        return err;
    pthread_mutex_lock(&b->lock);
    b->expect_epoch = b->catching = epoch;
    b->stats.resync_total = bytes;
    b->stats.resync_done = 0;
    pthread_mutex_unlock(&b->lock);
    return 0;
}
