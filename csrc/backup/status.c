/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a backup shows of itself, also while it can't be looked at. */
#include <stdio.h>
#include <string.h>

#include "backup/backup.h"
#include "base/error.h"
#include "link/full.h"

/*
 * Is the journal full of what is closed and not committed?  What is committed
 * makes room by itself.  (lock held)
 */
static int waits_for_commits(const remus_backup *b)
{
    return !b->failed && remus_super_follows(b->super.role) &&
           b->authority.who != REMUS_DECIDES_OURS &&
           b->prepared > b->committed && b->applied == b->committed &&
           remus_backup_is_full(b);
}

/* lock held */
static void backup_reason(const remus_backup *b, struct remus_status *s)
{
    const char *why = b->reason;
    char text[REMUS_REASON_MAX];
    if (b->failed) {
        snprintf(s->reason, sizeof s->reason,
                 "%.180s: repair that and restart this backup: all that it "
                 "acked is still there",
                 why);
        return;
    }
    /* After a promote it does not matter how the last connection ended. */
    if (!*why || remus_super_promoted(&b->super)) {
        switch (s->state) {
        case REMUS_STATE_INCONSISTENT:
            why = "no complete copy of the disks: start the primary";
            if (!remus_backup_untouched(b))
                break;
            snprintf(text, sizeof text,
                     "was the primary: the disks are as it left them; start "
                     "the other side as the primary (promote it first, if it "
                     "was not), or this one again; only if the other side is "
                     "lost, promote checkpoint %llu, these disks as they are",
                     (unsigned long long)b->super.base);
            why = text;
            break;
        case REMUS_STATE_CATCHING_UP:
            why = b->now.phase == REMUS_AT_CATCHING
                      ? "the primary sends what changed meanwhile; "
                        "until it is committed the last checkpoint "
                        "stays"
                  : b->now.phase == REMUS_AT_COPYING
                      ? "the primary is copying its disks"
                      : "the copy is complete, but for the checkpoint that "
                        "ends it";
            break;
        case REMUS_STATE_SPLIT_BRAIN:
            why = "both sides went on from one checkpoint: decide which side "
                  "to discard, stop its guest, and start it as the backup "
                  "with --discard-local";
            break;
        case REMUS_STATE_STANDBY:
            why = s->connected ? "a primary is connected and has sent nothing "
                                 "yet; can be promoted"
                               : "no primary connected; can be promoted";
            break;
        case REMUS_STATE_PROTECTED:
            why = "following the primary";
            break;
        case REMUS_STATE_PROMOTING:
        case REMUS_STATE_PROMOTED:
            snprintf(text, sizeof text, "%s checkpoint %llu",
                     s->state == REMUS_STATE_PROMOTED
                         ? "was promoted to"
                         : "a promote was interrupted; finish it at",
                     (unsigned long long)b->super.target);
            why = text;
            break;
        default:
            break;
        }
    }
    snprintf(s->reason, sizeof s->reason, "%s", why);
}

/* Of `net`: what the connection shows.  (lock held) */
static void fill(remus_backup *b, const struct remus_status *net,
                 struct remus_status *s)
{
    *s = b->stats;
    s->struct_size = sizeof *s;
    s->role = REMUS_ROLE_BACKUP;
    s->connected = net->connected;
    s->link_changed_ns = net->link_changed_ns;
    s->refused = net->refused;
    memcpy(s->security, net->security, sizeof s->security);
    s->state = remus_backup_state(b, net->connected);
    s->volumes = b->disk_count;
    snprintf(s->resource, sizeof s->resource, "%s", b->resource);
    const unsigned char *id = remus_super_promoted(&b->super)
                                  ? b->super.promoted_generation
                                  : b->super.lineage.id;
    for (int i = 0; i < REMUS_ID_BYTES; i++)
        snprintf(s->generation + 2 * i, 3, "%02x", id[i]);
    s->prepared_epoch = b->prepared;
    s->committed_epoch = b->committed;
    s->applied_epoch = b->applied;
    s->stable_epoch = remus_backup_stable(b);
    s->open_epoch = b->open ? b->open->number : 0;
    if (remus_super_promoted(&b->super))
        s->promoted_epoch = b->super.target;
    s->journal_bytes =
        remus_journal_used(&b->journal) * b->journal.segment_bytes;
    s->journal_limit = b->journal.segments * b->journal.segment_bytes;
    backup_reason(b, s);
    if (waits_for_commits(b))
        remus_full_text(s->reason, &(struct remus_full){
                                       .role = REMUS_ROLE_BACKUP,
                                       .pinned = remus_backup_pin_holds(b),
                                       .pin = b->pin,
                                       .committed = b->committed,
                                       .newest = b->prepared});
    remus_text_clean(s->reason); /* it may have been cut */
}

static void keep(remus_backup *b, const struct remus_status *s)
{
    pthread_mutex_lock(&b->shown_lock);
    b->shown = *s;
    pthread_mutex_unlock(&b->shown_lock);
}

void remus_backup_show(remus_backup *b, const struct remus_status *net)
{
    struct remus_status s;
    if (pthread_mutex_trylock(&b->lock))
        return;
    fill(b, net, &s);
    remus_backup_unlock(b);
    keep(b, &s);
}

/* It can't be looked at now: what it was. */
static void as_before(remus_backup *b, const struct remus_status *net,
                      struct remus_status *s)
{
    char reason[REMUS_REASON_MAX];
    pthread_mutex_lock(&b->shown_lock);
    *s = b->shown;
    pthread_mutex_unlock(&b->shown_lock);
    snprintf(reason, sizeof reason, "%s", s->reason);
    s->connected = net->connected;
    s->link_changed_ns = net->link_changed_ns;
    s->refused = net->refused;
    snprintf(s->reason, sizeof s->reason,
             "the journal's disk does not answer; before that: %.120s",
             *reason ? reason : "nothing was wrong");
    remus_text_clean(s->reason);
}

void remus_backup_look_at(remus_backup *b, const struct remus_status *net,
                          struct remus_status *s)
{
    if (remus_backup_try_lock(b)) {
        as_before(b, net, s);
        return;
    }
    fill(b, net, s);
    remus_backup_unlock(b);
    keep(b, s);
}
