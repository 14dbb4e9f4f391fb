/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The ioctls of a node.  libxl sends 20 on each disk of the guest in turn,
 * then 30 on each; all of them mean one barrier of the whole resource.  Which
 * 20s belong together is not a question of time: a barrier has a session and
 * a number, and a 20 joins the newest one if and only if it has both.
 *
 * A 20 that failed has its number, too: the toolstack that does not look at
 * its result (libxl) counts it, and its memory of that number must never meet
 * another disk.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "primary/internal.h"

_Static_assert(REMUS_SESSION_BYTES == REMUS_ID_BYTES, "ids have one size");

/* ---- ioctl 20 ------------------------------------------------------------- */

/* What a 20 has to send, once no lock is held. */
struct opening {
    struct remus_record commit, barrier;
    struct remus_slot *first, *second; /* theirs; NULL: nothing */
    char tag[24];
    size_t tag_len;
    unsigned char payload[REMUS_BARRIER_MAX]; /* of the barrier */
    uint64_t start_ns;
};

/*
 * The newest checkpoint of which this file knows that it is safe.  One whose
 * ack came too late for its ioctl 30, or that nobody asked for, is not: what
 * became of its memory nobody has said.  After an empty epoch libxl sends no
 * 30.  (lock held)
 */
static uint64_t complete(const remus_primary *p,
                         const struct remus_ioctl_file *f)
{
    return f->empty && f->joined > f->heard && f->joined <= p->acked
               ? f->joined
               : f->heard;
}

uint64_t remus_primary_complete(const remus_primary *p)
{
    return p->node_users && p->newest.empty && p->newest.epoch > p->heard &&
                   p->newest.epoch <= p->acked
               ? p->newest.epoch
               : p->heard;
}

void remus_primary_tell(remus_primary *p)
{
    struct remus_record r = {.type = REMUS_REC_TOLD};
    struct remus_slot *slot = NULL;
    remus_primary_lock(p);
    uint64_t epoch = remus_primary_complete(p);
    /* Without room it is told with the next progress, or by a commit. */
    if (epoch > p->c.told && remus_link_up(p) && remus_counting(p) &&
        remus_sendq_fits(&p->queue, REMUS_REC_HEADER, 1)) {
        slot = remus_sendq_reserve(&p->queue, REMUS_REC_HEADER);
        r.epoch = p->c.told = epoch;
        r.session = p->c.id;
    }
    remus_primary_unlock(p);
    if (slot)
        remus_primary_send_now(p, slot, &r, NULL);
}

/* Has the newest barrier this file's session and number?  (lock held) */
static int has_newest(const remus_primary *p, const struct remus_ioctl_file *f)
{
    return p->newest.epoch && p->newest.by.number == f->number &&
           !memcmp(p->newest.by.session, f->session, REMUS_SESSION_BYTES);
}

/* ... and was it opened for a 20 that failed together with this one?  (lock
 * held) */
static int is_late(const remus_primary *p, const struct remus_ioctl_file *f)
{
    return has_newest(p, f) && p->newest.epoch > f->since;
}

/*
 * ... and does its round go on?  Toolstacks send all 20s before the first 30;
 * after an empty epoch they send none, and then what was written since tells.
 * A file that was opened again, or is one 20 behind, can have the number of a
 * round that is over.  (lock held)
 */
static int is_newest(const remus_primary *p, const struct remus_ioctl_file *f)
{
    return has_newest(p, f) && !p->newest.waited &&
           !(p->newest.empty && p->c.records);
}

/* lock held */
static void join(remus_primary *p, struct remus_ioctl_file *f)
{
    if (!f->attached)
        remus_primary_ioctl_attach(p);
    f->attached = 1;
    f->failed = 0;
    f->joined = p->newest.epoch;
    f->empty = p->newest.empty;
}

/* Join the barrier of this file's number, or open it: 0 or -errno.  `late`:
 * for a 20 that failed.  (lock held) */
static int join_or_open(remus_primary *p, struct remus_ioctl_file *f, int late,
                        struct opening *o)
{
    int err = 0, ignored, empty;
    if (!(late ? is_late(p, f) : is_newest(p, f))) {
        /* This interface has no commit: asking for the next checkpoint says
         * that the one before is complete. */
        uint64_t before = complete(p, f);
        o->first = remus_primary_reserve_commit(
            p, &o->commit, REMUS_COMMITTER_NEXT, before, &ignored);
        if (o->first && before > p->commit_given)
            p->commit_given = before;
        struct remus_ioctl_id by = {.number = f->number};
        memcpy(by.session, f->session, REMUS_SESSION_BYTES);
        uint32_t len =
            remus_barrier_encode(&by, o->tag, o->tag_len, o->payload);
        o->second = remus_primary_close_epoch(p, &o->barrier, REMUS_CP_IOCTL,
                                              len, &empty, &err);
        if (!o->second)
            return err;
        remus_primary_epoch_closed(p, o->barrier.epoch, o->start_ns);
        p->newest = (struct remus_ioctl_barrier){.epoch = o->barrier.epoch,
                                                 .by = by,
                                                 .empty = empty,
                                                 .waited = late};
    }
    join(p, f);
    return 0;
}

static void send_opening(remus_primary *p, struct opening *o)
{
    if (o->first)
        remus_sendq_publish_quietly(&p->queue, o->first, &o->commit, NULL);
    if (o->second) {
        remus_primary_send_now(p, o->second, &o->barrier, o->payload);
        remus_primary_epoch_sent(p, o->barrier.epoch);
    } else if (o->first) {
        remus_sendq_wake(&p->queue);
    }
}

/* Give the request its number.  0: it has had its answer. */
static int give_number(struct remus_ioctl_file *f, uint64_t unique,
                       uint64_t newest)
{
    if (unique && f->unique == unique)
        return !f->answered;
    /* The process may end between any two of these, and the request come
     * again: whose number it is is said before there is one. */
    f->unique = 0;
    atomic_signal_fence(memory_order_seq_cst);
    f->before = f->number;
    f->since = newest;
    f->answered = 0;
    f->failed = REMUS_20_FAILED; /* until it has a barrier */
    atomic_signal_fence(memory_order_seq_cst);
    f->unique = unique;
    atomic_signal_fence(memory_order_seq_cst);
    f->number = f->before + 1;
    return 1;
}

static int answer(struct remus_ioctl_file *f, int result)
{
    f->result = result;
    atomic_signal_fence(memory_order_seq_cst);
    f->answered = 1;
    return result;
}

int remus_ioctl_send_nowhere(struct remus_ioctl_file *f, uint64_t unique)
{
    return give_number(f, unique, 0) ? answer(f, -EPROTO) : f->result;
}

int remus_primary_ioctl_send(remus_primary *p, struct remus_ioctl_file *f,
                             uint64_t unique, uint64_t tag)
{
    struct opening o = {.start_ns = remus_primary_now(p)};
    if (tag)
        o.tag_len = (size_t)snprintf(o.tag, sizeof o.tag, "%llu",
                                     (unsigned long long)tag);
    remus_primary_lock(p);
    int result = f->result;
    if (give_number(f, unique, p->newest.epoch)) {
        int err = remus_primary_check_protected(p);
        if (!err)
            err = join_or_open(p, f, 0, &o);
        result = answer(f, err ? err : f->empty);
    }
    remus_primary_unlock(p);
    send_opening(p, &o);
    return result;
}

/* ---- ioctl 30 ------------------------------------------------------------- */

/* After a 20 that failed: 0: wait; -errno.  (lock held) */
static int after_failed_20(const remus_primary *p)
{
    if (!remus_primary_holds(p))
        return -EPROTO;
    /* Who did not wait while the backup was away: what became of the guest
     * meanwhile nobody knows. */
    return remus_primary_may_barrier(p) ? -EINTR : 0;
}

int remus_primary_ioctl_wait(remus_primary *p, struct remus_ioctl_file *f,
                             int64_t timeout_ms, uint64_t id,
                             int (*lives)(void *opaque), remus_done_fn done,
                             void *opaque)
{
    struct remus_waiter w = {
        .deadline_ns = remus_deadline_in(remus_primary_now(p), timeout_ms).ns,
        .owner = f,
        .file = f,
        .id = id,
        .lives = lives,
        .done = done,
        .opaque = opaque};
    int rc = 0;
    remus_primary_lock(p);
    remus_primary_settle(p, f);
    int asked = f->failed == REMUS_20_ASKED && !remus_stopping(p);
    /* Another disk's 30 may have taken the barrier meanwhile. */
    if (f->failed == REMUS_20_FAILED && is_late(p, f) &&
        remus_primary_holds(p))
        join(p, f);
    if (f->joined && f->joined == p->newest.epoch)
        p->newest.waited = 1;
    w.later = f->failed != 0;
    w.epoch = w.later ? 0 : f->joined;
    if (w.later)
        rc = asked ? 0 : after_failed_20(p);
    else if (w.epoch && remus_primary_epoch_lost(p, w.epoch))
        rc = -EPROTO;
    else if (w.epoch > p->acked && !remus_link_up(p) &&
             !remus_primary_holds(p))
        rc = -EPROTO;
    if (!rc && (w.later || w.epoch > p->acked))
        rc = remus_primary_park_waiter(p, &w);
    else if (!rc)
        remus_primary_note_heard(p, &w);
    int tell = remus_primary_complete(p) > p->c.told;
    remus_primary_unlock(p);
    if (tell)
        remus_primary_tell(p);
    return rc;
}

int remus_primary_ioctl_due(const remus_primary *p)
{
    for (const struct remus_waiter *w = p->waiters; w; w = w->next)
        if (w->later)
            return remus_primary_may_barrier(p);
    return 0;
}

/* The one that waits longest for the barrier of its 20.  (lock held) */
static struct remus_waiter **oldest_later(remus_primary *p)
{
    struct remus_waiter **found = NULL;
    for (struct remus_waiter **at = &p->waiters; *at; at = &(*at)->next)
        if ((*at)->later)
            found = at;
    return found;
}

/*
 * Waiters are answered by the process that sent the 20 being alive: its guest
 * is still suspended, so the checkpoint can still be taken.  The first of the
 * disks opens the barrier with the number that the failed 20 had, the others
 * find it as the newest one and join.
 */
void remus_primary_ioctl_take(remus_primary *p)
{
    struct remus_waiter **at, *gone = NULL;
    struct opening o;
    int err = 0;
    do {
        o = (struct opening){.start_ns = remus_primary_now(p)};
        remus_primary_lock(p);
        while (!err && !o.second && (at = oldest_later(p))) {
            struct remus_waiter *w = *at;
            if (!w->lives(w->opaque)) {
                *at = w->next;
                w->next = gone;
                gone = w;
                continue;
            }
            err = remus_primary_may_barrier(p)
                      ? join_or_open(p, w->file, 1, &o)
                      : -EPROTO;
            if (!err) {
                w->epoch = w->file->joined;
                w->later = 0;
            }
        }
        remus_primary_unlock(p);
        send_opening(p, &o);
    } while (o.second);
    remus_primary_lock(p);
    /* A barrier that was joined may have its ack already. */
    struct remus_waiter *safe = remus_primary_take_waiters(p, p->acked);
    remus_primary_note_heard(p, safe);
    int tell = remus_primary_complete(p) > p->c.told;
    remus_primary_unlock(p);
    if (tell)
        remus_primary_tell(p);
    remus_primary_answer(p, safe, 0);
    remus_primary_answer(p, gone, -EINTR);
}

/* ---- ioctl 40, volumes ----------------------------------------------------- */

int remus_primary_ioctl_commit(remus_primary *p)
{
    struct remus_record r;
    int err = 0;
    uint64_t start = p->io->now_ns(p->io);
    remus_primary_lock(p);
    struct remus_slot *slot = remus_primary_reserve_commit(
        p, &r, REMUS_COMMITTER_IOCTL, p->acked, &err);
    remus_primary_unlock(p);
    if (slot) {
        remus_primary_send_now(p, slot, &r, NULL);
        remus_primary_epoch_committed(p, r.epoch, start);
    }
    return err ? -EPROTO : 0;
}

unsigned int remus_primary_volume_count(remus_primary *p)
{
    return p->volume_count;
}

const char *remus_primary_volume_name(remus_primary *p, unsigned int volume)
{
    return volume < p->volume_count ? p->volumes[volume].name : NULL;
}

void remus_primary_names(const remus_primary *p, const char **resource,
                         const char **state_dir)
{
    *resource = p->resource;
    *state_dir = p->state_dir;
}
