/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The backup receives: records, barriers and commits go into the journal. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/backup.h"
#include "base/check.h"
#include "base/error.h"

typedef unsigned long long ull;

#define KEPT_EPOCHS 64u /* unused ones */

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

/* lock held */
void remus_epoch_give(remus_backup *b, struct remus_epoch *e)
{
    /* What large epochs, or many at once, needed is not kept. */
    remus_extents_clear(&e->extents);
    if (b->free_count >= KEPT_EPOCHS)
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

/* lock held */
int remus_epoch_close(remus_backup *b, const struct remus_record *r,
                      const unsigned char *payload)
{
    if (b->epoch_count == b->epoch_cap) {
        size_t cap = b->epoch_cap ? 2 * b->epoch_cap : 64;
        struct remus_epoch **v = realloc(b->epochs, cap * sizeof(*v));
        if (!v)
            return remus_fail(-ENOMEM,
                              "resource %s: epoch %llu: out of "
                              "memory",
                              b->resource, (ull)r->epoch);
        b->epochs = v;
        b->epoch_cap = cap;
    }
    struct remus_epoch *e = b->open;
    b->open = NULL;
    e->barrier_number = r->number;
    e->closed = b->current;
    e->cp.epoch = e->number;
    e->cp.flags = r->flags & (REMUS_CP_IOCTL | REMUS_CP_DISK_ONLY);
    e->cp.tag_len = r->length - REMUS_IOCTL_ID_BYTES;
    memcpy(e->cp.tag, payload + REMUS_IOCTL_ID_BYTES, e->cp.tag_len);
    remus_ioctl_id_decode(payload, &e->by);
    b->epochs[b->epoch_count++] = e;
    b->prepared = e->number;
    b->stats.ioctl_driven = (e->cp.flags & REMUS_CP_IOCTL) != 0;
    return 0;
}

/* ---- records ---------------------------------------------------------- */

int remus_backup_check_shape(const struct remus_record *r)
{
    switch (r->type) {
    case REMUS_REC_BARRIER:
        if (r->length >= REMUS_IOCTL_ID_BYTES &&
            r->length <= REMUS_BARRIER_MAX)
            return 0;
        return remus_fail(-EBADMSG,
                          "a barrier with %u bytes of payload: expected %u "
                          "and a tag of at most %d",
                          r->length, REMUS_IOCTL_ID_BYTES, REMUS_TAG_MAX);
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
static int ensure_segment(remus_backup *b, uint32_t length)
{
    if (remus_journal_fits(&b->journal, length))
        return 0;
    /* A log's first segment stands in the superblock before. */
    int err = REMUS_CHECK(!remus_journal_empty(&b->journal));
    return err ? err
               : remus_journal_begin_segment(&b->journal, b->now.id,
                                             b->super.serial, &b->at);
}

/* Who gave credit enforces it: what it does not cover would be taken from
 * barriers and commits that were promised room (lock held). */
static int check_credit(const remus_backup *b, const struct remus_record *r)
{
    uint64_t may = b->now.granted, cost = remus_record_cost(r);
    if (r->type == REMUS_REC_BARRIER)
        may += b->now.granted_reserve;
    if (cost <= may && b->now.cost <= may - cost)
        return 0;
    return remus_fail(-ENOSPC,
                      "record %llu of epoch %llu costs %llu of the journal, "
                      "%llu of the %llu that were given are spent: the "
                      "primary spends more than its credit",
                      (ull)r->number, (ull)r->epoch, (ull)cost,
                      (ull)b->now.cost, (ull)may);
}

/* lock held */
static int check_sequence(const remus_backup *b, const struct remus_record *r)
{
    int err = remus_backup_check_takes(b, r);
    if (err)
        return err;
    /* The journal may be well, but what could not be applied could not be
     * failed over to: an ack would promise too much. */
    if (b->failed)
        return remus_fail(b->failed, "the backup has failed: %s", b->reason);
    if (r->session != b->now.id || r->number != b->at.number ||
        r->epoch != b->now.expect_epoch)
        return remus_fail(
            -EBADMSG,
            "record %llu of epoch %llu, session %llx; expected %llu of "
            "epoch %llu, session %llx",
            (ull)r->number, (ull)r->epoch, (ull)r->session, (ull)b->at.number,
            (ull)b->now.expect_epoch, (ull)b->now.id);
    if (r->length > b->journal.max_payload)
        return remus_fail(-EBADMSG, "payload of %u bytes, limit here %u",
                          r->length, b->journal.max_payload);
    err = remus_backup_check_range(b, r);
    return err ? err : check_credit(b, r);
}

static int check_barrier(const struct remus_epoch *e,
                         const struct remus_record *r)
{
    if (e->records == r->offset && e->run == r->range)
        return 0;
    return remus_fail(-EBADMSG,
                      "barrier of epoch %llu: %llu records with CRC %08llx "
                      "announced, %llu with %08x received",
                      (ull)r->epoch, (ull)r->offset, (ull)r->range,
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
    struct remus_progress at = b->at;
    err = ensure_segment(b, r->length);
    if (!err)
        err = REMUS_CHECK(remus_progress_take(&at, r) == 0);
    if (err)
        return err;
    unsigned char salted[REMUS_REC_HEADER];
    memcpy(salted, header, sizeof salted);
    uint64_t pos;
    err = remus_journal_append(&b->journal, salted, r, payload, &at, &pos);
    if (err)
        return err;
    b->at = at;
    b->now.cost += remus_record_cost(r);
    b->last_epoch = r->epoch;
    if (!b->open->first_seq)
        b->open->first_seq = b->journal.head.seq;
    b->stats.records++;
    if (!barrier) {
        uint64_t n = r->type == REMUS_REC_WRITE ? r->length : r->range;
        b->stats.open_bytes += n;
        if (r->flags & REMUS_REC_CATCH_UP)
            b->stats.resync_done += n;
        else if (r->type == REMUS_REC_WRITE)
            b->stats.bytes_written += r->length;
        else
            b->stats.bytes_zeroed += r->range;
        return remus_epoch_index(b, b->open, r, pos);
    }
    b->stats.epochs++;
    b->stats.open_bytes = 0;
    remus_backup_heard(b);
    b->now.expect_epoch = r->epoch + 1;
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
    remus_backup_unlock(b);
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
    if (b->authority.who == REMUS_DECIDES_OURS) {
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
        remus_backup_caught_up(b, epoch);
    }
    remus_backup_unlock(b);
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

/* lock held */
static enum remus_commit_answer answer_of(const remus_backup *b,
                                          uint64_t epoch, enum remus_word word)
{
    struct remus_commit_case c = {.by_backup =
                                      b->commit_by == REMUS_COMMIT_BY_BACKUP,
                                  .word = word,
                                  .epoch = epoch,
                                  .pin = b->pin};
    for (size_t i = 0; i < b->epoch_count && !c.memory; i++) {
        const struct remus_epoch *e = b->epochs[i];
        c.memory = e->number > b->committed && e->number <= epoch &&
                   !(e->cp.flags & REMUS_CP_DISK_ONLY);
    }
    return remus_backup_may_commit(&c);
}

/* Is there anything to do?  0 yes, 1 no, <0 it can't be (lock held). */
static int check_commit(const remus_backup *b, uint64_t epoch,
                        enum remus_word word)
{
    if (!remus_backup_may(b, REMUS_CALLS_COMMIT))
        return remus_fail(
            -EROFS,
            "commit of checkpoint %llu: this side is %s: nothing "
            "more is committed here",
            (ull)epoch, remus_role_name(b->super.role));
    if (epoch <= b->committed)
        return 1;
    if (!is_prepared(b, epoch))
        return remus_fail(-EINVAL,
                          "commit of checkpoint %llu: not prepared here; "
                          "committed is %llu, newest prepared %llu",
                          (ull)epoch, (ull)b->committed, (ull)b->prepared);
    switch (answer_of(b, epoch, word)) {
    case REMUS_COMMIT_YES:
        return 0;
    case REMUS_COMMIT_PINNED:
        /* A primary hears how far it is committed: no reason to part. */
        if (word != REMUS_WORD_BACKUP)
            return 1;
        return remus_fail(-EBUSY,
                          "commit of checkpoint %llu: checkpoint %llu is "
                          "pinned by whoever holds its memory: nothing newer "
                          "is committed until the pin is released",
                          (ull)epoch, (ull)b->pin);
    case REMUS_COMMIT_NOT_ITS_WORD:
        break;
    }
    return 1;
}

/* lock held */
static int check_told(const remus_backup *b, uint64_t epoch)
{
    if (b->authority.who == REMUS_DECIDES_OURS)
        return remus_fail(-EROFS, "this backup is being promoted");
    if (epoch <= b->told)
        return 1;
    if (epoch > b->applied && !is_prepared(b, epoch))
        return remus_fail(-EINVAL,
                          "word of an ioctl 30 for checkpoint %llu: not "
                          "prepared here; newest prepared is %llu",
                          (ull)epoch, (ull)b->prepared);
    return 0;
}

/* COMMIT or TOLD of an epoch. */
struct word {
    uint8_t type;
    enum remus_word whose;
    uint64_t epoch;
};

/* lock held */
static int check_word(const remus_backup *b, const struct word *w)
{
    return w->type == REMUS_REC_TOLD ? check_told(b, w->epoch)
                                     : check_commit(b, w->epoch, w->whose);
}

/* lock held */
static void note_word(remus_backup *b, const struct word *w)
{
    if (w->type == REMUS_REC_TOLD)
        b->told = w->epoch;
    else
        remus_backup_note_commit(b, w->epoch);
}

/* Into the segment that is written to (lock held). */
static int append_word(remus_backup *b, const struct word *w)
{
    int err = ensure_segment(b, 0);
    if (err)
        return err;
    struct remus_record r = {.type = w->type,
                             .epoch = w->epoch,
                             .session = b->journal.head.session,
                             .number = b->at.number - 1};
    unsigned char header[REMUS_REC_HEADER];
    uint64_t pos;
    remus_record_encode(&r, header);
    err = remus_journal_append(&b->journal, header, &r, NULL, &b->at, &pos);
    if (!err)
        note_word(b, w);
    return err;
}

/*
 * Between a start and the first counted record nothing may be written to a
 * segment: the superblock keeps it.  What it is about is synced: a start is
 * behind that.  (apply_lock held)
 */
static int store_word(remus_backup *b, const struct word *w)
{
    pthread_mutex_lock(&b->lock);
    struct remus_super s = b->super;
    /* What failed to be synced was acked to nobody, and never will be. */
    int err = b->journal.failed
                  ? remus_fail(b->journal.failed, "the journal has failed")
                  : REMUS_CHECK(b->journal.head.seq ||
                                b->journal.synced >= b->journal.marked);
    if (w->type == REMUS_REC_TOLD)
        s.told = w->epoch;
    else
        s.committed = b->deciding = w->epoch;
    s.last_epoch = b->last_epoch;
    s.next_number = b->at.number;
    remus_backup_unlock(b);
    if (!err)
        err = remus_backup_store_super(b, REMUS_STORE_DECISION, &s);
    pthread_mutex_lock(&b->lock);
    b->deciding = 0;
    if (!err)
        note_word(b, w);
    remus_backup_unlock(b);
    return err;
}

/* 0 done, or nothing to do; 2: it is for the superblock; <0 (lock held). */
static int say_locked(remus_backup *b, const struct word *w)
{
    int rc = check_word(b, w);
    if (rc)
        return rc < 0 ? rc : 0;
    /* No barrier of this session has paid for it. */
    int late = w->type == REMUS_REC_TOLD && w->epoch < b->now.first_epoch;
    return b->journal.head.seq && !late ? append_word(b, w) : 2;
}

static int say(remus_backup *b, const struct word *w)
{
    pthread_mutex_lock(&b->lock);
    int rc = say_locked(b, w);
    remus_backup_unlock(b);
    if (rc != 2)
        return rc;
    pthread_mutex_lock(&b->apply_lock);
    pthread_mutex_lock(&b->lock);
    rc = say_locked(b, w);
    remus_backup_unlock(b);
    if (rc == 2)
        rc = store_word(b, w);
    pthread_mutex_unlock(&b->apply_lock);
    return rc;
}

static int say_and_tell(remus_backup *b, const struct word *w)
{
    int err = say(b, w);
    if (!err)
        return 0;
    pthread_mutex_lock(&b->lock);
    int final = b->journal.failed;
    remus_backup_unlock(b);
    remus_fail_in(err, "backup of %s", b->resource);
    return final ? remus_backup_failed(b, err) : err;
}

int remus_backup_commit_record(remus_backup *b, uint64_t epoch,
                               enum remus_word word)
{
    const struct word w = {REMUS_REC_COMMIT, word, epoch};
    return b->read_only
               ? remus_fail(-EROFS, "backup of %s: was opened read-only",
                            b->resource)
               : say_and_tell(b, &w);
}

int remus_backup_told_record(remus_backup *b, uint64_t epoch)
{
    const struct word w = {REMUS_REC_TOLD, REMUS_WORD_PRIMARY, epoch};
    return say_and_tell(b, &w);
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
    remus_backup_unlock(b);
    return n;
}

/* lock held; what it says of credit counts */
static void progress(remus_backup *b, struct remus_news *out)
{
    struct remus_record *r = &out->r;
    out->committed = b->committed;
    r->flags = remus_backup_pin_holds(b) ? REMUS_PROGRESS_PINNED : 0;
    r->epoch = b->acked;
    r->offset = remus_backup_stable(b);
    r->range = remus_backup_credit(b);
    if (r->range > b->now.granted)
        b->now.granted = r->range;
    r->number = b->super.applied;
    r->session = b->now.id;
}

void remus_backup_progress(remus_backup *b, struct remus_news *out)
{
    pthread_mutex_lock(&b->lock);
    progress(b, out);
    remus_backup_unlock(b);
}

int remus_backup_try_progress(remus_backup *b, struct remus_news *out)
{
    if (pthread_mutex_trylock(&b->lock))
        return 0;
    progress(b, out);
    remus_backup_unlock(b);
    return 1;
}
