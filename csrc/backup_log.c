/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The backup receives: records, barriers and commits go into the journal. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup.h"
#include "error.h"

typedef unsigned long long ull;

/* ---- epochs ---------------------------------------------------------- */

struct remus_epoch *remus_epoch_take(remus_backup *b, uint64_t number)
{
    struct remus_epoch *e = b->free_epochs;
    if (e)
        b->free_epochs = e->next_free;
    else
        e = calloc(1, sizeof *e);
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
    e->next_free = b->free_epochs;
    b->free_epochs = e;
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

/* ---- sessions -------------------------------------------------------- */

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
    b->split = 0;
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
    if (b->super.role == REMUS_SUPER_FOREIGN && b->discard_local)
        return 0;
    if (is == REMUS_RELATION_SAME)
        return 0;
    /* What a primary's disks hold beyond the common checkpoint was never
     * let pass while nobody took it, or the id would not be an ancestor. */
    if (is == REMUS_RELATION_BEHIND &&
        remus_lineage_has(&h->lineage, ours->id, &end) &&
        (b->super.role == REMUS_SUPER_FOREIGN || b->prepared <= end))
        return 0;
    b->split = 1;
    return 1;
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
    if (b->super.role == REMUS_SUPER_PROMOTED)
        return 0;
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
static uint64_t credit(const remus_backup *b)
{
    uint64_t worth = remus_journal_segment_worth(&b->journal);
    uint64_t all = b->cost + remus_journal_unused(&b->journal) * worth;
    uint64_t kept = reserve(b) * worth + commits_to_come(b);
    return all > kept ? all - kept : 0;
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
    memcpy(reply->generation, l.id, REMUS_ID_BYTES);
    if (b->split) {
        uint64_t end;
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
    reply->credit = credit(b);
    reply->reserve = reserve(b) * remus_journal_segment_worth(&b->journal);
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

void remus_backup_session_end(remus_backup *b)
{
    remus_backup_note_heard(b, 0);
    pthread_mutex_lock(&b->journal.sync_lock);
    pthread_mutex_lock(&b->lock);
    /* An epoch without its barrier was never promised. */
    if (b->open)
        remus_epoch_give(b, b->open);
    b->open = NULL;
    b->session_start = 1;
    b->expect_epoch = 0;
    b->copying = 0;
    b->catching = 0;
    /* Its segments must not be kept by prepared epochs before them, or a
     * link that comes and goes would fill the journal. */
    if (b->epoch_count && b->last_mark)
        remus_journal_rewind(&b->journal, b->last_mark);
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

/* ---- records ---------------------------------------------------------- */

int remus_backup_check_range(const remus_backup *b,
                             const struct remus_record *r)
{
    if (r->type == REMUS_REC_BARRIER) {
        if (r->length <= REMUS_TAG_MAX)
            return 0;
        return remus_fail(-EBADMSG, "a tag of %u bytes, limit %d", r->length,
                          REMUS_TAG_MAX);
    }
    uint64_t n = r->type == REMUS_REC_ZERO ? r->range : r->length;
    if (r->volume >= b->disk_count)
        return remus_fail(-EBADMSG, "no volume %u", r->volume);
    const struct remus_disk *d = &b->disks[r->volume];
    if (n == 0 || r->offset > d->size || n > d->size - r->offset ||
        (r->type == REMUS_REC_ZERO && r->length))
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
    b->last_mark = b->journal.head.seq;
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
    int err = ensure_segment(b, 0, b->open ? b->open->number : epoch + 1);
    if (err)
        return err;
    struct remus_record r = {.type = REMUS_REC_COMMIT,
                             .epoch = epoch,
                             .session = b->journal.head.session,
                             .number = b->next_number - 1};
    unsigned char header[REMUS_REC_HEADER];
    uint64_t pos;
    remus_record_encode(&r, header);
    err = remus_journal_append(&b->journal, header, 1, NULL, 0, &pos);
    if (err)
        return err;
    b->last_mark = b->journal.head.seq;
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
    r->range = credit(b);
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
