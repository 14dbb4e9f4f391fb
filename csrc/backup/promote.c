/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Failover: which checkpoint, whether it may be, and the way there. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backup/backup.h"
#include "base/check.h"
#include "base/error.h"
#include "base/entry.h"
#include "base/random.h"

typedef unsigned long long ull;

/* ---- which checkpoint ---------------------------------------------------- */

/* The checkpoints that can be had, in words (lock held). */
static const char *choices(const remus_backup *b, char *buf, size_t cap)
{
    int n;
    if (remus_backup_untouched(b))
        n = snprintf(buf, cap, "%llu (as the primary left them)",
                     (ull)b->super.base);
    else if (remus_backup_committed(b))
        n = snprintf(buf, cap, "%llu (committed)", (ull)b->committed);
    else
        n = snprintf(buf, cap, "none (committed)");
    size_t used = n > 0 ? (size_t)n : 0;
    for (size_t i = 0; i < b->epoch_count && used + 40 < cap; i++) {
        const struct remus_epoch *e = b->epochs[i];
        if (e->number <= b->committed)
            continue;
        n = snprintf(buf + used, cap - used, ", %llu", (ull)e->number);
        used += n > 0 ? (size_t)n : 0;
    }
    if (used + 40 >= cap)
        snprintf(buf + used, cap - used, ", ... up to %llu", (ull)b->prepared);
    return buf;
}

static int same_tag(const struct remus_checkpoint *cp, const void *tag,
                    size_t len)
{
    return cp->tag_len == len && len && !memcmp(cp->tag, tag, len);
}

/* What a failed write or sync left in the page cache can't be trusted; a new
 * process takes it from the journal again (lock held). */
static int check_failed(const remus_backup *b)
{
    return b->failed
               ? remus_fail(b->failed,
                            "promote: the backup has failed (%s): repair "
                            "that, restart it, and promote again",
                            b->reason)
               : 0;
}

/* How many checkpoints have the tag; *m is one of them (lock held). */
static unsigned int with_tag(const remus_backup *b, const void *tag,
                             size_t len, uint64_t *m)
{
    unsigned int found =
        remus_backup_committed(b) && same_tag(&b->committed_cp, tag, len);
    if (found)
        *m = b->committed;
    for (size_t i = 0; i < b->epoch_count; i++) {
        const struct remus_epoch *e = b->epochs[i];
        if (e->number <= b->committed || !same_tag(&e->cp, tag, len))
            continue;
        found++;
        *m = e->number;
    }
    return found;
}

/* lock held */
static int has_number(const remus_backup *b, uint64_t m)
{
    if ((m == b->committed && remus_backup_committed(b)) ||
        (m == b->super.base && remus_backup_untouched(b)))
        return 1;
    for (size_t i = 0; i < b->epoch_count; i++)
        if (b->epochs[i]->number == m && m > b->committed)
            return 1;
    return 0;
}

/* What a promote was told. */
struct named {
    int by;
    uint64_t epoch;
    const void *tag;
    size_t len;
};

/* How many checkpoints that names, and one of them (lock held). */
static unsigned int fitting(const remus_backup *b, const struct named *n,
                            uint64_t *m)
{
    if (remus_super_promoted(&b->super)) {
        *m = b->super.target;
        return (n->by == REMUS_PROMOTE_EPOCH && n->epoch == *m) ||
               (n->by == REMUS_PROMOTE_TAG &&
                same_tag(&b->super.cp, n->tag, n->len));
    }
    switch (n->by) {
    case REMUS_PROMOTE_EPOCH:
        *m = n->epoch;
        return has_number(b, n->epoch) != 0;
    case REMUS_PROMOTE_TAG:
        return with_tag(b, n->tag, n->len, m);
    default:
        *m = remus_backup_default(b);
        return 1;
    }
}

/* After a long time without a primary the newest checkpoint here may not be
 * what anybody wants (lock held). */
static int stale(const remus_backup *b)
{
    return b->stale_s != UINT64_MAX && remus_backup_age_s(b) > b->stale_s;
}

/* lock held */
static int refuse_stale(const remus_backup *b, uint64_t m)
{
    char names[160];
    char since[48] = "an unknown time ago (a clock was set back)";
    uint64_t age = remus_backup_age_s(b);
    if (age != REMUS_LONG_AGO)
        snprintf(since, sizeof since, "%llu s ago", (ull)age);
    return remus_fail(-ESTALE,
                      "promote: checkpoint %llu was the newest state that "
                      "could be had %s (stale_after is %llu s): the primary "
                      "may have gone on for long without this backup; name "
                      "the checkpoint if %llu is what you want; checkpoints "
                      "are %s",
                      (ull)m, since, (ull)b->stale_s, (ull)m,
                      choices(b, names, sizeof names));
}

/* lock held */
static int refuse_name(const remus_backup *b, const struct named *n,
                       enum remus_target target, unsigned int found)
{
    char names[160];
    choices(b, names, sizeof names);
    switch (target) {
    case REMUS_TARGET_NO_NUMBER:
        return remus_fail(-EINVAL,
                          "promote: there is no checkpoint %llu here; "
                          "checkpoints are %s",
                          (ull)n->epoch, names);
    case REMUS_TARGET_NO_TAG:
        return remus_fail(-EINVAL,
                          "promote: %u checkpoints carry the tag \"%.*s\"; "
                          "checkpoints are %s",
                          found, (int)n->len, (const char *)n->tag, names);
    case REMUS_TARGET_NONE_YET:
        return remus_fail(-EINVAL,
                          "promote: since the copy, or the fail-back, none "
                          "is committed: name one of those that are "
                          "prepared; checkpoints are %s",
                          names);
    case REMUS_TARGET_AS_LEFT:
        return remus_fail(
            -EINVAL,
            "promote: this side was the primary, its disks are as the primary "
            "left them: start it as the primary (if it is fenced, the other "
            "side is the one to promote), or let the other side's primary "
            "bring it up to date first; only if the other side is lost, name "
            "checkpoint %llu, which is these disks as they are",
            (ull)b->super.base);
    default:
        return remus_fail(-EINVAL, "promote: unknown way %d to name it",
                          n->by);
    }
}

/* Why it can't be promoted to (lock held). */
static int refuse(const remus_backup *b, const struct named *n,
                  enum remus_target target, unsigned int found, uint64_t m)
{
    switch (target) {
    case REMUS_TARGET_FIXED:
        return remus_fail(-EINVAL, "promote: a promote to checkpoint %llu %s",
                          (ull)m,
                          b->super.role == REMUS_SUPER_PROMOTED
                              ? "is complete; no other one is possible"
                              : "was begun: only that one can be finished");
    case REMUS_TARGET_FAILED:
        return check_failed(b);
    case REMUS_TARGET_NOTHING:
        return remus_fail(-EINVAL,
                          "promote: the disks are Inconsistent, no copy was "
                          "ever completed by a checkpoint: there is none "
                          "to go to");
    case REMUS_TARGET_STALE:
        return refuse_stale(b, m);
    default:
        return refuse_name(b, n, target, found);
    }
}

/* The checkpoint that is named, if it can be promoted to: 0 or -errno (lock
 * held). */
static int find_target(const remus_backup *b, const struct named *n,
                       uint64_t *m)
{
    const struct remus_target_facts f = {
        .by = n->by,
        .fitting = fitting(b, n, m),
        .begun = remus_super_promoted(&b->super),
        .failed = b->failed,
        .taken = remus_backup_takes(b->super.role, b->now.phase,
                                    REMUS_CALLS_PROMOTE) == REMUS_TAKEN_YES,
        .consistent = remus_backup_consistent(b),
        .untouched = remus_backup_untouched(b),
        .none_committed =
            remus_backup_consistent(b) && !remus_backup_committed(b),
        .as_base = *m == b->super.base,
        .stepped_down = b->authority.who == REMUS_DECIDES_GIVEN,
        .stale = stale(b)};
    enum remus_target target = remus_target_step(&f);
    return target == REMUS_TARGET_GO ? 0 : refuse(b, n, target, f.fitting, *m);
}

/* Store (m, new generation): from here on there is no other way.
 * (apply_lock held) */
static int promote_begin(remus_backup *b, uint64_t m)
{
    /* A prepared epoch in page cache only would be lost with the power. */
    int err = remus_journal_sync(&b->journal);
    if (err)
        return remus_backup_failed(b, err);
    pthread_mutex_lock(&b->lock);
    struct remus_super s = b->super;
    s.last_epoch = b->last_epoch;
    s.next_number = b->at.number;
    s.cp = b->committed_cp;
    for (size_t i = 0; i < b->epoch_count; i++)
        if (b->epochs[i]->number == m)
            s.cp = b->epochs[i]->cp;
    if (m == s.base && remus_backup_untouched(b))
        remus_super_as_left(&s);
    remus_backup_unlock(b);
    err = remus_super_change(&s, REMUS_ROLE_PROMOTE);
    if (err)
        return err;
    s.target = m;
    err = remus_random(b->io, s.promoted_generation, REMUS_ID_BYTES,
                       "generation");
    return err ? err : remus_backup_store_super(b, REMUS_STORE_DECISION, &s);
}

/* apply_lock held */
static int promote_finish(remus_backup *b)
{
    uint64_t m = b->super.target;
    int err = 0;
    pthread_mutex_lock(&b->lock);
    b->pin = 0; /* nothing is committed here any more */
    remus_backup_unlock(b);
    if (m > b->applied)
        err = remus_backup_write_epochs(b, m);
    if (!err)
        err = remus_backup_sync_disks(b);
    if (err)
        return err;
    pthread_mutex_lock(&b->lock);
    struct remus_super s = b->super;
    err = remus_super_change(&s, REMUS_ROLE_FINISH);
    s.applied = m;
    s.tail = b->journal.next_seq;
    s.tail_salt = 0;
    remus_backup_unlock(b);
    if (!err)
        err = remus_backup_store_super(b, REMUS_STORE_DECISION, &s);
    if (err)
        return err;
    pthread_mutex_lock(&b->lock);
    remus_backup_drop_epochs(b);
    b->prepared = b->acked = b->committed = b->applied = m;
    remus_backup_unlock(b);
    remus_backup_marks_leave(b);
    /* The volumes are free: their owner is the guest now. */
    pthread_mutex_lock(&b->view_lock);
    for (unsigned int i = 0; i < b->disk_count; i++) {
        b->io->close(b->io, b->disks[i].file);
        b->disks[i].file = -1;
    }
    pthread_mutex_unlock(&b->view_lock);
    return 0;
}

int remus_backup_target(remus_backup *b, enum remus_promote_by by,
                        uint64_t epoch, const void *tag, size_t tag_len,
                        uint64_t *target)
{
    int no = remus_enter(b, "backup_target");
    if (!no)
        no = remus_given(target, "backup_target", "target");
    if (!no && tag_len)
        no = remus_given(tag, "backup_target", "tag");
    if (no)
        return no;
    const struct named n = {by, epoch, tag, tag_len};
    if (remus_backup_try_lock(b))
        return -EAGAIN;
    int err = find_target(b, &n, target);
    remus_backup_unlock(b);
    return err ? remus_fail_in(err, "backup of %s", b->resource) : 0;
}

/* A switch ends with the newest checkpoint, which a pin keeps from being
 * committed: after an interruption the pinned one would be the default. */
static int begin_switch(remus_backup *b)
{
    int err = 0;
    pthread_mutex_lock(&b->lock);
    if (b->pin && b->authority.who != REMUS_DECIDES_OURS)
        err = remus_fail(-EBUSY,
                         "switch: checkpoint %llu is pinned by whoever holds "
                         "its memory on this host, and nothing newer is "
                         "committed until that lets go: release the pin first",
                         (ull)b->pin);
    else
        b->switching++;
    remus_backup_unlock(b);
    return err ? remus_fail_in(err, "backup of %s", b->resource) : 0;
}

static int ask_primary(remus_backup *b, int flags)
{
    uint64_t epoch;
    int rc = remus_backup_net_ask(b, flags, &epoch);
    if (rc < 0)
        remus_fail_in(rc, "backup of %s", b->resource);
    pthread_mutex_lock(&b->lock);
    if (rc > 0 && b->authority.who == REMUS_DECIDES_PRIMARY) {
        remus_backup_claim(b, REMUS_CLAIM_STEPPED_DOWN);
        b->given_epoch = epoch;
    }
    if (rc <= 0 && flags & REMUS_ASK_SWITCH)
        b->switching--;
    remus_backup_unlock(b);
    return rc;
}

int remus_backup_ask(remus_backup *b, int flags)
{
    int no = remus_enter(b, "backup_ask");
    if (no)
        return no;
    /* The primary would take a record with others for a damaged one. */
    if (flags & ~(REMUS_ASK_KEEP | REMUS_ASK_SWITCH))
        return remus_fail(-EINVAL, "backup of %s: ask: unknown flags in 0x%x",
                          b->resource, (unsigned int)flags);
    if (flags & REMUS_ASK_SWITCH && (no = begin_switch(b)))
        return no;
    pthread_mutex_lock(&b->lock);
    int decided = b->authority.who != REMUS_DECIDES_PRIMARY;
    remus_backup_unlock(b);
    return decided ? 1 : ask_primary(b, flags);
}

/* ---- one call ------------------------------------------------------------ */

/* A call on its way: what steps.h says of it, what it was told, and what was
 * found so far. */
struct call {
    struct remus_promote step;
    struct named named;
    int force;
    uint64_t m;
    int err; /* the last that went wrong, with a text */
};

static void step(struct call *c, enum remus_promote_event event,
                 const struct remus_promote_facts *f)
{
    static const struct remus_promote_facts none = {.go = 0};
    if (REMUS_CHECK(remus_promote_step(&c->step, event, f ? f : &none)) == 0)
        return;
    c->err = -ENOTRECOVERABLE;
    c->step.at = REMUS_CALL_REFUSED;
}

/* Of a connection that has ended the last epoch may still be on the way
 * through: nothing is asked of what is here then. */
static void look(remus_backup *b, struct call *c)
{
    struct remus_promote_facts f = {.connected = remus_backup_net_live(b),
                                    .forced = c->force};
    if (f.connected) {
        pthread_mutex_lock(&b->lock);
        c->err = find_target(b, &c->named, &c->m);
        f.go = !c->err;
        f.may_come = c->named.by == REMUS_PROMOTE_DEFAULT &&
                     remus_backup_consistent(b) && !remus_backup_committed(b);
        remus_backup_unlock(b);
    }
    step(c, REMUS_CALL_LOOKED, &f);
}

static void ask(remus_backup *b, struct call *c)
{
    int keep = c->named.by != REMUS_PROMOTE_DEFAULT;
    int rc = remus_backup_ask(b, keep ? REMUS_ASK_KEEP : 0);
    c->err = rc < 0 ? rc : 0;
    step(c, rc < 0 ? REMUS_CALL_STAYS : REMUS_CALL_MAY, NULL);
}

/* From here on there is one checkpoint (apply_lock held). */
static void decide(remus_backup *b, struct call *c)
{
    pthread_mutex_lock(&b->lock);
    c->err = find_target(b, &c->named, &c->m);
    struct remus_promote_facts f = {.go = !c->err,
                                    .begun = remus_super_promoted(&b->super),
                                    .done =
                                        b->super.role == REMUS_SUPER_PROMOTED,
                                    .failed = b->failed};
    if (f.go) /* no record, no ack, no commit from here on */
        remus_backup_claim(b, REMUS_CLAIM_PROMOTE);
    if (f.go && !f.done)
        c->err = check_failed(b);
    remus_backup_unlock(b);
    step(c, REMUS_CALL_LOOKED, &f);
}

/* apply_lock held */
static void store(remus_backup *b, struct call *c)
{
    c->err = promote_begin(b, c->m);
    if (c->err) {
        pthread_mutex_lock(&b->lock);
        remus_backup_claim(b, b->failed ? REMUS_CLAIM_FAILED
                                        : REMUS_CLAIM_NOT_STORED);
        remus_backup_unlock(b);
    }
    step(c, c->err ? REMUS_CALL_BAD : REMUS_CALL_OK, NULL);
}

/* apply_lock held */
static void apply(remus_backup *b, struct call *c)
{
    c->err = promote_finish(b);
    step(c, c->err ? REMUS_CALL_BAD : REMUS_CALL_OK, NULL);
}

/* Until nobody is connected, nor will be: DECIDES, or REFUSED. */
static void clear_the_way(remus_backup *b, struct call *c)
{
    while (c->step.at < REMUS_CALL_DECIDES) {
        if (c->step.at == REMUS_CALL_LOOKS)
            look(b, c);
        else if (c->step.at == REMUS_CALL_ASKS)
            ask(b, c);
        else
            step(c,
                 remus_backup_net_fence(b, c->step.may_cut) ? REMUS_CALL_CAME
                                                            : REMUS_CALL_CUT,
                 NULL);
    }
}

static void go_there(remus_backup *b, struct call *c)
{
    pthread_mutex_lock(&b->apply_lock);
    while (c->step.at < REMUS_CALL_DONE) {
        if (c->step.at == REMUS_CALL_DECIDES)
            decide(b, c);
        else if (c->step.at == REMUS_CALL_STORES)
            store(b, c);
        else
            apply(b, c);
    }
    pthread_mutex_unlock(&b->apply_lock);
    remus_backup_net_reopen(b);
}

int remus_backup_promote(remus_backup *b, enum remus_promote_by by,
                         uint64_t epoch, const void *tag, size_t tag_len,
                         int force, uint64_t *promoted)
{
    int no = remus_enter(b, "backup_promote");
    if (!no)
        no = remus_given(promoted, "backup_promote", "promoted");
    if (!no && tag_len)
        no = remus_given(tag, "backup_promote", "tag");
    if (no)
        return no;
    if (b->read_only)
        return remus_fail(-EROFS, "backup of %s: was opened read-only",
                          b->resource);
    struct call c = {.named = {by, epoch, tag, tag_len},
                     .force = force != 0,
                     .step = {.may_cut = force != 0}};
    clear_the_way(b, &c);
    if (c.step.at == REMUS_CALL_DECIDES)
        go_there(b, &c);
    if (c.step.at != REMUS_CALL_DONE)
        return remus_fail_in(c.err, "backup of %s", b->resource);
    *promoted = c.m;
    return 0;
}

int remus_backup_commit(remus_backup *b, uint64_t epoch)
{
    int no = remus_enter(b, "backup_commit");
    if (no)
        return no;
    int err = remus_backup_commit_record(b, epoch, REMUS_WORD_BACKUP);
    if (!err) {
        err = remus_journal_sync(&b->journal);
        if (err)
            return remus_backup_failed(b, err);
    }
    return err;
}

int remus_backup_pin(remus_backup *b, uint64_t epoch)
{
    int err = remus_enter(b, "backup_pin");
    if (err)
        return err;
    pthread_mutex_lock(&b->lock);
    if (epoch && (b->read_only || !remus_backup_may(b, REMUS_CALLS_PIN)))
        err = remus_fail(-EROFS, "pin: nothing more is committed here");
    else if (epoch && b->switching)
        err = remus_fail(-EBUSY,
                         "pin of checkpoint %llu: both sides switch roles, "
                         "which ends with the newest",
                         (ull)epoch);
    else if (epoch && epoch < b->committed)
        err = remus_fail(-EINVAL,
                         "pin of checkpoint %llu: %llu is committed already",
                         (ull)epoch, (ull)b->committed);
    else if (epoch && epoch < b->deciding)
        err = remus_fail(-EINVAL,
                         "pin of checkpoint %llu: a newer one is being "
                         "committed, or a copy to the disks begins",
                         (ull)epoch);
    else if (epoch && !has_number(b, epoch))
        err = remus_fail_in(refuse_name(b, &(struct named){.epoch = epoch},
                                        REMUS_TARGET_NO_NUMBER, 0),
                            "pin");
    else
        b->pin = epoch;
    remus_backup_unlock(b);
    return err ? remus_fail_in(err, "backup of %s", b->resource) : 0;
}
