/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a backup's state is, and what follows from it; see state.h. */
#include "backup/state.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "backup/backup.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/error.h"

#define REACH_MS 1000

/* ---- failures ------------------------------------------------------------ */

int remus_backup_failed(remus_backup *b, int err)
{
    pthread_mutex_lock(&b->lock);
    if (!b->failed) {
        b->failed = err;
        snprintf(b->reason, sizeof b->reason, "%s", remus_last_error());
        b->log_due = 1;
    }
    remus_backup_unlock(b);
    return err;
}

int remus_backup_check_well(remus_backup *b)
{
    pthread_mutex_lock(&b->lock);
    int err = b->failed;
    if (err)
        remus_fail(err, "the backup has failed: %s", b->reason);
    remus_backup_unlock(b);
    return err;
}

int remus_backup_check_usable(remus_backup *b)
{
    pthread_mutex_lock(&b->lock);
    int ours = b->authority.who == REMUS_DECIDES_OURS;
    int err = ours ? -EROFS : b->failed;
    if (err)
        remus_fail(err, "backup of %s: %s", b->resource,
                   ours ? "promoted" : b->reason);
    remus_backup_unlock(b);
    return err;
}

/* ---- what is here ---------------------------------------------------------- */

uint64_t remus_backup_stable(const remus_backup *b)
{
    return b->ack == REMUS_ACK_DURABLE ? b->acked : b->super.applied;
}

int remus_backup_committed(const remus_backup *b)
{
    return !remus_super_uncommitted(b->super.role) ||
           b->committed > b->super.base;
}

int remus_backup_consistent(const remus_backup *b)
{
    switch (b->super.role) {
    case REMUS_SUPER_SYNCED: /* the copy, and an epoch that completes it */
    case REMUS_SUPER_JOINED:
        return b->prepared > b->super.base;
    case REMUS_SUPER_BACKUP:
    case REMUS_SUPER_PROMOTING:
    case REMUS_SUPER_PROMOTED:
        return 1;
    default:
        return 0;
    }
}

int remus_backup_untouched(const remus_backup *b)
{
    if (b->super.role == REMUS_SUPER_FOREIGN)
        return 1;
    return b->super.role == REMUS_SUPER_JOINED &&
           b->committed <= b->super.base && b->applied <= b->super.base;
}

/* The primary's word was its last checkpoint: nothing came after it, nor
 * will.  (lock held) */
static int given(const remus_backup *b, const struct remus_epoch *e)
{
    return b->authority.who == REMUS_DECIDES_GIVEN &&
           e->number == b->given_epoch;
}

/* Without the primary's word, which a later process does not know.  (lock
 * held) */
static uint64_t lasting_default(const remus_backup *b)
{
    /* Through ioctls nobody can commit: what an ioctl 30 was told is safe, or
     * needed none, is what there is.  What the engine took after it has no
     * memory. */
    for (size_t i = b->epoch_count; i-- > 0;) {
        const struct remus_epoch *e = b->epochs[i];
        if (e->number <= b->committed)
            break;
        if (!e->acked || e->cp.flags & REMUS_CP_DISK_ONLY)
            continue;
        if (!(e->cp.flags & REMUS_CP_IOCTL))
            break;
        if (e->number == b->told)
            return e->number;
    }
    return b->committed;
}

uint64_t remus_backup_default(const remus_backup *b)
{
    for (size_t i = b->epoch_count; i-- > 0;)
        if (b->epochs[i]->number > b->committed && given(b, b->epochs[i]))
            return b->given_epoch;
    return lasting_default(b);
}

/* ---- the superblock ------------------------------------------------------- */

static int store(remus_backup *b, enum remus_slot_store what,
                 struct remus_super *s, int copies)
{
    if (b->disk_bytes)
        s->bytes = b->disk_bytes;
    int err = remus_super_store(b->io, b->super_file, b->super_path,
                                b->resource, what, s);
    if (err)
        return remus_backup_failed(b, err);
    pthread_mutex_lock(&b->lock);
    b->super = *s;
    if (copies)
        remus_backup_phase(b, REMUS_ON_COPY);
    remus_backup_unlock(b);
    return 0;
}

int remus_backup_store_super(remus_backup *b, enum remus_slot_store what,
                             struct remus_super *s)
{
    return store(b, what, s, 0);
}

int remus_backup_store_copy(remus_backup *b, struct remus_super *s)
{
    return store(b, REMUS_STORE_DECISION, s, 1);
}

/* ---- who decides, how far the connection is ---------------------------------- */

void remus_backup_claim(remus_backup *b, enum remus_claim_event event)
{
    remus_claim_step(&b->authority, event);
}

void remus_backup_phase(remus_backup *b, enum remus_phase_event event)
{
    enum remus_backup_phase next = remus_phase_step(b->now.phase, event);
    if (REMUS_CHECK(next < REMUS_AT_PHASES) == 0)
        b->now.phase = next;
}

/* ---- what is taken ----------------------------------------------------------- */

int remus_backup_may(const remus_backup *b, enum remus_request_kind call)
{
    return b->authority.who != REMUS_DECIDES_OURS &&
           remus_backup_takes(b->super.role, b->now.phase, call) ==
               REMUS_TAKEN_YES;
}

int remus_backup_check_takes(const remus_backup *b,
                             const struct remus_record *r)
{
    enum remus_request_kind kind = remus_request_kind_of(r);
    if (b->authority.who == REMUS_DECIDES_OURS)
        return remus_fail(-EROFS, "this backup is being promoted");
    enum remus_taken taken =
        remus_backup_takes(b->super.role, b->now.phase, kind);
    if (taken == REMUS_TAKEN_NO)
        return remus_backup_refuses(b->super.role, b->now.phase, kind, r);
    return taken == REMUS_TAKEN_VOID;
}

/* ---- how old it is ------------------------------------------------------------ */

void remus_backup_heard(remus_backup *b)
{
    if (b->now.phase == REMUS_AT_STREAMING)
        remus_moment_now(b->io, b->boot, &b->current);
}

void remus_backup_caught_up(remus_backup *b, uint64_t epoch)
{
    if (b->now.phase != REMUS_AT_CATCHING || epoch < b->now.first_epoch)
        return;
    remus_backup_phase(b, REMUS_ON_CAUGHT_UP);
    remus_backup_heard(b);
}

/* (lock held) */
static const struct remus_moment *current_of(const remus_backup *b, uint64_t m)
{
    static const struct remus_moment unknown;
    /* It was the newest until the next one was closed. */
    for (size_t i = 0; i < b->epoch_count; i++)
        if (b->epochs[i]->number > m)
            return remus_moment_known(&b->epochs[i]->closed)
                       ? &b->epochs[i]->closed
                   : m >= b->super.current_epoch ? &b->super.current
                                                 : &unknown;
    return &b->current;
}

const struct remus_moment *remus_backup_current(const remus_backup *b)
{
    return current_of(b, remus_backup_default(b));
}

void remus_backup_renew(const remus_backup *b, struct remus_super *s)
{
    uint64_t m = lasting_default(b);
    s->current = *current_of(b, m);
    s->current_epoch = m;
}

uint64_t remus_backup_age_s(const remus_backup *b)
{
    struct remus_moment now;
    remus_moment_now(b->io, b->boot, &now);
    return remus_moment_age_s(remus_backup_current(b), &now);
}

/* ---- the public state ----------------------------------------------------------- */

int remus_backup_public_state(const struct remus_backup_facts *f)
{
    if (f->failed)
        return REMUS_STATE_FAILED;
    if (f->role == REMUS_SUPER_PROMOTING)
        return REMUS_STATE_PROMOTING;
    if (f->met == REMUS_MET_SPLIT)
        return REMUS_STATE_SPLIT_BRAIN;
    if (f->role == REMUS_SUPER_PROMOTED)
        return REMUS_STATE_PROMOTED;
    if (f->phase == REMUS_AT_COPYING || f->phase == REMUS_AT_CATCHING)
        return REMUS_STATE_CATCHING_UP;
    int streams = f->phase == REMUS_AT_STREAMING;
    /* A copy that is complete needs an epoch to become a checkpoint. */
    if (!f->consistent)
        return streams ? REMUS_STATE_CATCHING_UP : REMUS_STATE_INCONSISTENT;
    /* Connected, but nothing is sent yet: it may never be. */
    return f->connected && streams ? REMUS_STATE_PROTECTED
                                   : REMUS_STATE_STANDBY;
}

int remus_backup_state(const remus_backup *b, int connected)
{
    const struct remus_backup_facts f = {.role = b->super.role,
                                         .phase = b->now.phase,
                                         .met = b->met,
                                         .failed = b->failed,
                                         .connected = connected,
                                         .consistent =
                                             remus_backup_consistent(b)};
    return remus_backup_public_state(&f);
}

/* Whatever was assigned: the lock is about to be free.  (lock held) */
static void tell(remus_backup *b)
{
    int connected = atomic_load(&b->connected);
    int state = remus_backup_state(b, connected);
    if (!b->opened)
        return; /* it is what it is once it has recovered */
    if (!remus_events_show(&b->events, REMUS_ROLE_BACKUP, state, connected) &&
        !b->log_due)
        return;
    b->log_due = 0;
    /* After a promote it does not matter how the last connection ended. */
    remus_log_add(&b->log, b->io->now_ns(b->io), (enum remus_state)state,
                  connected, remus_super_promoted(&b->super) ? "" : b->reason);
}

/* ---- what must hold --------------------------------------------------------------- */

static int broken(const char *what)
{
    return remus_fail(-ENOTRECOVERABLE,
                      "backup: an invariant does not hold: %s", what);
}

/* lock held */
static int check_phase(const remus_backup *b)
{
    const struct remus_backup_session *s = &b->now;
    int streams =
        s->phase == REMUS_AT_CATCHING || s->phase == REMUS_AT_STREAMING;
    int ours = b->authority.who == REMUS_DECIDES_OURS;
    if (b->super.role >= REMUS_SUPER_ROLES)
        return broken("a known role");
    if (remus_super_promoted(&b->super) && !ours)
        return broken("after a promote began nobody else decides");
    /* SYNCED for as long as END is being answered. */
    if (s->phase == REMUS_AT_COPYING && !ours &&
        b->super.role != REMUS_SUPER_COPYING &&
        b->super.role != REMUS_SUPER_SYNCED)
        return broken("what copies is Inconsistent");
    if (streams && !ours && !remus_super_follows(b->super.role))
        return broken("what streams follows");
    if (streams != (s->expect_epoch != 0))
        return broken("an epoch is awaited in a stream, and only there");
    if (streams && s->expect_epoch < s->first_epoch)
        return broken("a stream goes on from its first epoch");
    if (b->open && (!streams || b->open->number != s->expect_epoch))
        return broken("the open epoch is the one that is awaited");
    return 0;
}

/* lock held */
static int check_numbers(const remus_backup *b)
{
    /* In a copy the old numbers are on their way out. */
    if (b->now.phase == REMUS_AT_COPYING)
        return 0;
    if (b->super.applied > b->applied || b->applied > b->committed ||
        b->committed > b->prepared || b->acked > b->prepared ||
        b->prepared > b->last_epoch)
        return broken("stored <= applied <= committed <= prepared <= last, "
                      "and acked <= prepared");
    if (b->pin && b->committed > b->pin)
        return broken("nothing newer than a pin is committed");
    for (size_t i = 0; i < b->epoch_count; i++) {
        uint64_t before = i ? b->epochs[i - 1]->number : b->applied;
        if (b->epochs[i]->number <= before)
            return broken("closed epochs are in order, and not applied");
        if (i == 4 && b->epoch_count > 8)
            i = b->epoch_count - 4; /* all of a long list takes too long */
    }
    return 0;
}

int remus_backup_invariants(const remus_backup *b)
{
    int err = check_phase(b);
    return err ? err : check_numbers(b);
}

/* Not a timed lock: its clock would be the system's. */
int remus_backup_try_lock(remus_backup *b)
{
    for (int ms = 0; pthread_mutex_trylock(&b->lock); ms++) {
        if (ms == REACH_MS)
            return remus_fail(-EAGAIN,
                              "backup of %s: its journal's disk has not "
                              "answered for %d ms: ask again",
                              b->resource, REACH_MS);
        nanosleep(&(struct timespec){0, REMUS_NS_PER_MS}, NULL);
    }
    return 0;
}

void remus_backup_unlock(remus_backup *b)
{
#ifdef REMUS_CHECKED
    if (b->opened && !b->read_only && remus_backup_invariants(b))
        remus_check_failed(remus_last_error(), __FILE__, __LINE__);
#endif
    tell(b);
    pthread_mutex_unlock(&b->lock);
}
