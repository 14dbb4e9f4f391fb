/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who may write.  A primary that gives way to its backup, or learns that the
 * backup was promoted, is fenced: durably, so that no later process of this
 * generation writes either.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "primary_int.h"

typedef unsigned long long ull;

int remus_primary_writer_opens(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
    int err = p->fenced ? remus_fail(-EROFS, "resource %s is %s: %s",
                                     p->resource,
                                     remus_state_name(p->state), p->reason)
                        : 0;
    if (!err)
        p->writers++;
    pthread_mutex_unlock(&p->lock);
    return err;
}

void remus_primary_writer_closes(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
    p->writers--;
    pthread_mutex_unlock(&p->lock);
}

/* lock held */
static void set_fenced(remus_primary *p, int fenced)
{
    p->fenced = fenced;
    atomic_store(&p->no_writes, fenced);
    remus_primary_kick_parked(p);
}

/* ---- giving way ---------------------------------------------------------- */

static void reply_to_ask(remus_primary *p, int yes, uint64_t epoch,
                         const char *why)
{
    struct remus_record r = {.type = REMUS_REC_GAVE_WAY,
                             .flags = (uint8_t)(yes ? 1 : 0),
                             .length = (uint32_t)strlen(why),
                             .epoch = epoch};
    uint32_t bytes = REMUS_REC_HEADER + r.length;
    pthread_mutex_lock(&p->lock);
    struct remus_slot *slot = NULL;
    if (p->stats.connected && remus_sendq_fits(&p->queue, bytes, 1)) {
        slot = remus_sendq_reserve(&p->queue, bytes);
        r.session = p->session;
    }
    pthread_mutex_unlock(&p->lock);
    if (slot)
        remus_sendq_publish(&p->queue, slot, &r, why);
}

/* May we give way now?  Else why not.  (lock held) */
static int may_give_way(const remus_primary *p, char *why, size_t cap)
{
    if (p->writers)
        snprintf(why, cap,
                 "the primary is alive and %u files of its volumes are open "
                 "for writing: stop the guest there first",
                 p->writers);
    else if (p->session_open)
        snprintf(why, cap, "the primary is alive and a toolstack takes "
                           "checkpoints of it: stop the guest there first");
    else if (p->state != REMUS_STATE_PROTECTED)
        snprintf(why, cap, "the primary is alive and %s: wait until it is "
                           "Protected",
                 remus_state_name(p->state));
    else
        return 1;
    return 0;
}

/*
 * The last checkpoint of all: everything that was ever answered.  A second
 * one after it, which is empty: by its ack the commit of the first is as safe
 * as the ack says.
 */
static int last_checkpoint(remus_primary *p, int keep, uint64_t *epoch)
{
    int err = 0;
    for (int i = 0; !keep && err >= 0 && i < 2; i++)
        err = remus_primary_own_checkpoint(p, epoch);
    if (err >= 0)
        err = remus_primary_state_flag(p, REMUS_PRIMARY_FENCED);
    return err < 0 ? err : 0;
}

/* Whoever asks is told no at once, also in the middle of a copy. */
void remus_primary_asked(remus_primary *p, int flags)
{
    char why[REMUS_REASON_MAX];
    pthread_mutex_lock(&p->lock);
    int yes = p->gave_way || may_give_way(p, why, sizeof why);
    if (yes) {
        p->asked = 1 | flags << 1;
        pthread_cond_signal(&p->engine_wake);
    }
    pthread_mutex_unlock(&p->lock);
    if (!yes)
        reply_to_ask(p, 0, 0, why);
}

/* lock held */
static void gave_way(remus_primary *p, uint64_t epoch)
{
    char text[REMUS_REASON_MAX], at[48] = "";
    if (epoch)
        snprintf(at, sizeof at, ", with checkpoint %llu", (ull)epoch);
    snprintf(text, sizeof text,
             "gave way to the backup, which asked%s: it is the one that "
             "writes from here on; if it did not become that, promote it",
             at);
    p->gave_way = 1;
    p->gave_epoch = epoch;
    remus_primary_set_state(p, REMUS_STATE_FENCED, text);
    remus_primary_kick_parked(p);
}

void remus_primary_answer_ask(remus_primary *p, int flags)
{
    char why[REMUS_REASON_MAX] = "";
    uint64_t epoch = 0;
    int turn = (flags & REMUS_ASK_TURN) != 0, err = 0;
    pthread_mutex_lock(&p->lock);
    int before = p->gave_way; /* our answer may have been lost, or late */
    int yes = before || may_give_way(p, why, sizeof why);
    if (yes && !before)
        set_fenced(p, 1); /* no write passes from here on */
    /* The memory of a session that just ended may still be failed over to,
     * and its last checkpoint is the disk that goes with it. */
    int keep = flags & REMUS_ASK_KEEP ||
               (!turn && remus_primary_in_grace(p));
    pthread_mutex_unlock(&p->lock);
    if (yes && !before)
        err = last_checkpoint(p, keep, &epoch);
    pthread_mutex_lock(&p->lock);
    if (err) {
        set_fenced(p, 0);
        snprintf(why, sizeof why, "the primary's last checkpoint failed: "
                                  "%.180s",
                 remus_last_error());
    } else if (yes && !before) {
        gave_way(p, epoch);
    }
    if (yes && !err) {
        p->turns |= turn;
        epoch = p->gave_epoch;
    }
    pthread_mutex_unlock(&p->lock);
    reply_to_ask(p, yes && !err, epoch, why);
}

/* ---- being failed away from --------------------------------------------- */

/* The backup went on from our own generation: all that we have more than it
 * came after the checkpoint it was promoted to, and was never promised. */
static void fence(remus_primary *p, uint64_t epoch)
{
    char text[REMUS_REASON_MAX];
    snprintf(text, sizeof text,
             "the backup was promoted to checkpoint %llu: nothing written "
             "here is kept any more; stop the guest here, and start this "
             "side as the backup of the other one",
             (ull)epoch);
    pthread_mutex_lock(&p->lock);
    set_fenced(p, 1);
    remus_primary_set_state(p, REMUS_STATE_FENCED, text);
    struct remus_waiter *w = remus_primary_let_go(p);
    pthread_mutex_unlock(&p->lock);
    remus_primary_answer(p, w, -EPROTO);
    /* If it can't be stored, the backup's answer is the same next time. */
    (void)remus_primary_state_flag(p, REMUS_PRIMARY_FENCED);
}

void remus_primary_failed_away(remus_primary *p,
                               const struct remus_hello_reply *reply)
{
    uint64_t end;
    char id[9], text[REMUS_REASON_MAX];
    pthread_mutex_lock(&p->lock);
    int gone = p->gave_way || p->kept.flags & REMUS_PRIMARY_FENCED;
    int taking = p->taking;
    int same = !memcmp(reply->origin, p->kept.lineage.id, REMUS_ID_BYTES);
    int related = remus_lineage_has(&p->kept.lineage, reply->origin, &end);
    pthread_mutex_unlock(&p->lock);
    if (gone || taking)
        return;
    if (same && reply->content == REMUS_CONTENT_PROMOTED) {
        fence(p, reply->held);
        return;
    }
    remus_id_text(reply->generation, id);
    if (!related && reply->content == REMUS_CONTENT_PROMOTED) {
        remus_fail(-EROFS,
                   "the backup was promoted, as the backup of another "
                   "primary (its generation is %s...): correct the address",
                   id);
        return;
    }
    snprintf(text, sizeof text,
             "both sides went on from one checkpoint (the other one is "
             "generation %s...): decide which one to lose, stop its guest, "
             "and start it as the backup with --discard-local",
             id);
    remus_fail(-EROFS, "%s", text);
    pthread_mutex_lock(&p->lock);
    if (!p->stopping && p->state != REMUS_STATE_SPLIT_BRAIN)
        remus_primary_set_state(p, REMUS_STATE_SPLIT_BRAIN, text);
    struct remus_waiter *w = remus_primary_let_go(p);
    pthread_mutex_unlock(&p->lock);
    remus_primary_answer(p, w, -EPROTO);
}
