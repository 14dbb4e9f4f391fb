/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary says hello: is it ours, what does it find here; and the end of
 * its session.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backup/answer.h"
#include "backup/backup.h"
#include "base/error.h"
#include "link/full.h"

typedef unsigned long long ull;

static int check_volumes(const remus_backup *b, const struct remus_hello *h)
{
    if (h->volumes != b->disk_count)
        return remus_fail(-EINVAL,
                          "the primary has %u volumes, the backup "
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
                              d->name, (ull)h->size[i], (ull)d->size, d->path);
    }
    return 0;
}

/* Does it not know of a session that was adopted here?  Then what it has is
 * older than our checkpoints, whatever its numbers are (lock held). */
static int rolled_back(const remus_backup *b, const struct remus_hello *h)
{
    const struct remus_super *s = &b->super;
    if (h->sessions > s->sessions ||
        (h->sessions == s->sessions && h->session == s->session))
        return 0;
    remus_fail(-EPERM,
               "the primary was rolled back: it does not have checkpoint "
               "%llu here: promote this backup; or start it with "
               "--discard-local, if the older disks are wanted",
               (ull)b->committed);
    return 1;
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
    b->met = REMUS_MET_OURS;
    b->discards = 0;
    /* Of a copy that was cut short nothing is worth keeping. */
    if (b->super.role < REMUS_SUPER_SYNCED)
        return 0;
    enum remus_relation is = remus_lineage_compare(ours, &h->lineage);
    if (b->discard_local) {
        b->discards = is == REMUS_RELATION_STRANGERS ||
                      is == REMUS_RELATION_AHEAD ||
                      is == REMUS_RELATION_SPLIT || rolled_back(b, h) ||
                      h->next_epoch <= b->prepared; /* it never gave that */
        return 0;
    }
    if (is == REMUS_RELATION_STRANGERS)
        return remus_fail(-EPERM,
                          "this backup belongs to another primary "
                          "(generation %s..., this one is %s...): correct "
                          "the address; or, if what it holds is not needed, "
                          "start it with --discard-local",
                          remus_id_text(ours->id, mine),
                          remus_id_text(h->lineage.id, theirs));
    if (is != REMUS_RELATION_AHEAD && is != REMUS_RELATION_SPLIT &&
        rolled_back(b, h))
        return -EPERM;
    if (is == REMUS_RELATION_SAME)
        return 0;
    /* What a primary's disks hold beyond the common checkpoint was never
     * let pass while nobody took it, or the id would not be an ancestor. */
    if (is == REMUS_RELATION_BEHIND &&
        remus_lineage_has(&h->lineage, ours->id, &end) &&
        (b->super.role == REMUS_SUPER_FOREIGN || b->prepared <= end))
        return 0;
    /* These disks were failed over to from that primary's generation. */
    b->met = is == REMUS_RELATION_AHEAD && b->super.role == REMUS_SUPER_FOREIGN
                 ? REMUS_MET_BEHIND
                 : REMUS_MET_SPLIT;
    return 1;
}

/* Did the primary, whose backup this was, go on as well?  That stays so until
 * somebody chose.  (lock held) */
static void note_split(remus_backup *b, const struct remus_hello *h)
{
    struct remus_lineage ours;
    remus_super_descend(&b->super, &ours);
    if (remus_lineage_compare(&ours, &h->lineage) == REMUS_RELATION_SPLIT)
        b->met = REMUS_MET_SPLIT;
}

/* lock held */
static int check_session(remus_backup *b, const struct remus_hello *h)
{
    if (b->authority.who == REMUS_DECIDES_OURS &&
        b->super.role != REMUS_SUPER_PROMOTED)
        return remus_fail(-EROFS,
                          "this backup was promoted to checkpoint %llu and "
                          "accepts no more writes from a primary",
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

/* May what is read of the disks be compared?  Not as long as the page cache
 * may hold what a failed sync did not bring to them. */
static int believes_disks(const remus_backup *b)
{
    static const unsigned char unknown[REMUS_BOOT_ID];
    const unsigned char *then = b->super.unsynced_boot;
    unsigned char boot[REMUS_BOOT_ID];
    return !(b->super.flags & REMUS_SUPER_UNSYNCED) ||
           (b->io->boot_id(b->io, boot) == 0 &&
            memcmp(boot, then, sizeof boot) &&
            memcmp(unknown, then, sizeof unknown));
}

/* lock held */
static uint32_t content(const remus_backup *b)
{
    if (b->super.role == REMUS_SUPER_EMPTY)
        return REMUS_CONTENT_NONE;
    if (b->super.role == REMUS_SUPER_COPYING)
        return believes_disks(b) ? REMUS_CONTENT_PARTIAL : REMUS_CONTENT_NONE;
    if (b->super.role == REMUS_SUPER_FOREIGN)
        return REMUS_CONTENT_FOREIGN;
    return remus_backup_consistent(b) ? REMUS_CONTENT_CONSISTENT
                                      : REMUS_CONTENT_COMPLETE;
}

/* Of this primary nothing is taken, and it hears why (lock held). */
static int answer_no(const remus_backup *b, const struct remus_hello *h,
                     struct remus_hello_reply *reply)
{
    struct remus_lineage ours = b->super.lineage;
    if (b->super.role == REMUS_SUPER_PROMOTED)
        remus_super_descend(&b->super, &ours);
    int err = remus_answer_no(&ours, b->prepared, &h->lineage, reply);
    /* What these disks have more is another primary's: they follow it. */
    if (!err && b->super.role != REMUS_SUPER_PROMOTED &&
        b->met == REMUS_MET_SPLIT)
        reply->content = REMUS_CONTENT_SPLIT;
    return err;
}

/* The epoch whose barrier an ioctl took, if it is acked or was found at a
 * start; 0: it is not here (lock held). */
static uint64_t who_has(const remus_backup *b, const struct remus_ioctl_id *by)
{
    for (size_t i = 0; i < b->epoch_count; i++)
        if (b->epochs[i]->acked && remus_ioctl_id_same(&b->epochs[i]->by, by))
            return b->epochs[i]->number;
    return remus_ioctl_id_same(&b->applied_by, by) ? b->applied : 0;
}

/* lock held */
static void begin(remus_backup *b, const struct remus_hello *h,
                  uint64_t session, struct remus_hello_reply *reply)
{
    b->now = (struct remus_backup_session){
        .id = session, .lineage = h->lineage, .serial = h->sessions + 1};
    remus_backup_phase(b, REMUS_ON_HELLO);
    b->now.full =
        remus_super_follows(b->super.role) && remus_backup_is_full(b);
    reply->flags = b->now.full ? REMUS_REPLY_FULL : 0;
    if (remus_backup_pin_holds(b))
        reply->flags |= REMUS_REPLY_PINNED;
    reply->last_epoch = b->last_epoch;
    reply->next_number = b->at.number;
    reply->credit = remus_backup_credit(b);
    reply->reserve = remus_backup_reserve_left(b);
    /* What is to be lost is of no generation that the primary's map tells
     * anything about, nor is what is in doubt.  (Of a checkpoint that it never
     * took it must hear.) */
    if (!b->discards && !(b->doubt && h->next_epoch > b->prepared))
        memcpy(reply->generation, b->super.lineage.id, REMUS_ID_BYTES);
    b->now.granted = reply->credit;
    b->now.granted_reserve = reply->reserve;
    reply->content = content(b);
    reply->held = b->prepared;
    reply->committed = b->committed;
    reply->capacity = remus_backup_capacity(b);
    remus_backup_marks_reply(b, h, reply);
    reply->has = who_has(b, &h->asks);
}

/* A session needs a segment of its own: let what is committed make room
 * first.  (no lock held) */
static int make_room(remus_backup *b)
{
    pthread_mutex_lock(&b->lock);
    int todo = !b->failed && remus_backup_may(b, REMUS_CALLS_APPLY) &&
               remus_backup_is_full(b) &&
               (b->committed > b->super.applied || !b->epoch_count);
    remus_backup_unlock(b);
    int err = todo ? remus_backup_apply(b) : 0;
    return todo && !err ? remus_backup_checkpoint(b) : err;
}

int remus_backup_session_begin(remus_backup *b, const struct remus_hello *h,
                               uint64_t session,
                               struct remus_hello_reply *reply)
{
    *reply = (struct remus_hello_reply){.version = REMUS_WIRE_VERSION};
    int err = make_room(b);
    if (err)
        return remus_fail_in(err, "backup of %s", b->resource);
    pthread_mutex_lock(&b->lock);
    err = check_session(b, h);
    if (err >= 0) {
        reply->max_payload = b->journal.max_payload;
        if (err || b->super.role == REMUS_SUPER_PROMOTED)
            err = answer_no(b, h, reply);
        else
            begin(b, h, session, reply);
    }
    remus_backup_unlock(b);
    return err < 0 ? remus_fail_in(err, "backup of %s", b->resource) : 0;
}

/* Of a checkpoint nothing is stored before what makes it the one. */
void remus_backup_store_current(remus_backup *b, uint64_t older_s)
{
    pthread_mutex_lock(&b->apply_lock);
    pthread_mutex_lock(&b->lock);
    struct remus_super s = b->super;
    int todo = !b->failed && remus_backup_may(b, REMUS_CALLS_CHECKPOINT);
    remus_backup_renew(b, &s);
    uint64_t age = remus_moment_age_s(&b->super.current, &s.current);
    remus_backup_unlock(b);
    /* One that can't be told is stored: it is what is known. */
    if (todo && age > older_s && remus_moment_known(&s.current)) {
        int err = remus_journal_sync(&b->journal);
        if (err)
            remus_backup_failed(b, err);
        else
            remus_backup_store_super(b, REMUS_STORE_PROGRESS, &s);
    }
    pthread_mutex_unlock(&b->apply_lock);
}

void remus_backup_start(remus_backup *b)
{
    /* An epoch without its barrier was never promised. */
    if (b->open)
        remus_epoch_give(b, b->open);
    b->open = NULL;
    uint64_t number = b->at.number;
    if (b->journal.mark.seq)
        b->at = b->journal.mark.at;
    /* Numbers of what was never closed are not used again. */
    b->at.number = number;
    b->at.open = 0;
    /* Its segments must not be kept by prepared epochs before them, or a
     * link, or a process, that comes and goes would fill the journal. */
    remus_journal_end_session(&b->journal);
}

void remus_backup_session_end(remus_backup *b)
{
    remus_backup_store_current(b, 0);
    int err = remus_journal_settle(&b->journal);
    remus_backup_start(b);
    remus_backup_phase(b, REMUS_ON_END);
    b->now.expect_epoch = 0;
    remus_backup_unlock(b);
    pthread_mutex_unlock(&b->journal.sync_lock);
    if (err)
        remus_backup_failed(b, err);
}

static int check_catch_up(remus_backup *b, uint64_t epoch)
{
    pthread_mutex_lock(&b->lock);
    int err = 0;
    if (b->authority.who == REMUS_DECIDES_OURS)
        err = remus_fail(-EROFS, "this backup is being promoted");
    else if (epoch <= b->last_epoch || epoch > REMUS_NUMBER_MAX)
        err = remus_fail(-EBADMSG,
                         "a catch-up with epoch %llu; epochs up to %llu are "
                         "used",
                         (ull)epoch, (ull)b->last_epoch);
    else if (b->now.full) {
        char text[REMUS_REASON_MAX];
        remus_full_text(text, &(struct remus_full){.role = REMUS_ROLE_BACKUP,
                                                   .committed = b->committed,
                                                   .newest = b->prepared});
        err = remus_fail(-ENOSPC, "%s", text);
    }
    remus_backup_unlock(b);
    return err;
}

int remus_backup_catch_up(remus_backup *b, uint64_t epoch, uint64_t bytes)
{
    int err = check_catch_up(b, epoch);
    if (!err)
        err = remus_backup_accept(b, epoch);
    if (err)
        return err;
    pthread_mutex_lock(&b->lock);
    b->stats.resync_total = bytes;
    b->stats.resync_done = 0;
    remus_backup_unlock(b);
    return 0;
}
