/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Failover: which checkpoint, whether it may be, and the way there. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backup.h"
#include "error.h"

typedef unsigned long long ull;

/* ---- which checkpoint ---------------------------------------------------- */

/* The checkpoints that can be had, in words (lock held). */
static const char *choices(const remus_backup *b, char *buf, size_t cap)
{
    int n = remus_backup_committed(b)
                ? snprintf(buf, cap, "%llu (committed)", (ull)b->committed)
                : snprintf(buf, cap, "none (committed)");
    size_t used = n > 0 ? (size_t)n : 0;
    for (size_t i = 0; i < b->epoch_count && used + 40 < cap; i++) {
        const struct remus_epoch *e = b->epochs[i];
        if (e->number <= b->committed)
            continue;
        n = snprintf(buf + used, cap - used, ", %llu", (ull)e->number);
        used += n > 0 ? (size_t)n : 0;
    }
    if (used + 40 >= cap)
        snprintf(buf + used, cap - used, ", ... up to %llu",
                 (ull)b->prepared);
    return buf;
}

static int same_tag(const struct remus_checkpoint *cp, const void *tag,
                    size_t len)
{
    return cp->tag_len == len && len && !memcmp(cp->tag, tag, len);
}

static int find_tag(const remus_backup *b, const void *tag, size_t len,
                    uint64_t *m)
{
    unsigned int found = remus_backup_committed(b) &&
                         same_tag(&b->committed_cp, tag, len);
    if (found)
        *m = b->committed;
    for (size_t i = 0; i < b->epoch_count; i++) {
        const struct remus_epoch *e = b->epochs[i];
        if (e->number <= b->committed || !same_tag(&e->cp, tag, len))
            continue;
        found++;
        *m = e->number;
    }
    char names[160];
    if (found == 1)
        return 0;
    return remus_fail(-EINVAL,
                      "promote: %u checkpoints carry the tag \"%.*s\"; "
                      "checkpoints are %s",
                      found, (int)len, (const char *)tag,
                      choices(b, names, sizeof names));
}

static int find_number(const remus_backup *b, uint64_t m)
{
    char names[160];
    if (m == b->committed && remus_backup_committed(b))
        return 0;
    for (size_t i = 0; i < b->epoch_count; i++)
        if (b->epochs[i]->number == m && m > b->committed)
            return 0;
    return remus_fail(-EINVAL,
                      "promote: there is no checkpoint %llu here; "
                      "checkpoints are %s",
                      (ull)m, choices(b, names, sizeof names));
}

static uint64_t default_checkpoint(const remus_backup *b)
{
    /* The primary gave way with it: nothing came after, nor will. */
    for (size_t i = 0; b->given && i < b->epoch_count; i++)
        if (b->epochs[i]->number == b->given_epoch &&
            b->given_epoch > b->committed)
            return b->given_epoch;
    /* Through ioctls nobody can commit: prepared is what there is.  What the
     * engine took after it has no memory. */
    for (size_t i = b->epoch_count; i-- > 0;) {
        const struct remus_epoch *e = b->epochs[i];
        if (!e->acked || e->number <= b->committed ||
            e->cp.flags & REMUS_CP_DISK_ONLY)
            continue;
        return e->cp.flags & REMUS_CP_IOCTL ? e->number : b->committed;
    }
    return b->committed;
}

/* Disks on top of which nothing was committed are none (lock held). */
static int check_committed(const remus_backup *b, uint64_t m)
{
    char names[160];
    if (m != b->committed || remus_backup_committed(b))
        return 0;
    return remus_fail(-EINVAL,
                      "promote: since the fail-back none is committed: name "
                      "one of those that are prepared; checkpoints are %s",
                      choices(b, names, sizeof names));
}

/* After a promote began there is one checkpoint (lock held). */
static int find_fixed(const remus_backup *b, int by, uint64_t epoch,
                      const void *tag, size_t len, uint64_t *m)
{
    *m = b->super.target;
    if (by == REMUS_PROMOTE_DEFAULT ||
        (by == REMUS_PROMOTE_EPOCH && epoch == *m) ||
        (by == REMUS_PROMOTE_TAG && same_tag(&b->super.cp, tag, len)))
        return 0;
    return remus_fail(-EINVAL, "promote: a promote to checkpoint %llu %s",
                      (ull)*m,
                      b->super.role == REMUS_SUPER_PROMOTED
                          ? "is complete; there is no other any more"
                          : "was begun: only that one can be finished");
}

/*
 * After a long time without a primary the newest checkpoint here may not be
 * what anybody wants: it must be named (lock held).
 */
static int check_fresh(const remus_backup *b, uint64_t m)
{
    char names[160];
    uint64_t alone = b->given ? 0 : b->alone_s;
    if (alone <= b->stale_s)
        return 0;
    return remus_fail(-ESTALE,
                      "promote: the newest word of a primary is %llu s old "
                      "(stale_after is %llu s): it may have gone on for long "
                      "without this backup; name the checkpoint if %llu is "
                      "what you want; checkpoints are %s",
                      (ull)alone, (ull)b->stale_s, (ull)m,
                      choices(b, names, sizeof names));
}

/* What a failed write or sync left in the page cache can't be trusted; a new
 * process takes it from the journal again (lock held). */
static int check_failed(const remus_backup *b)
{
    return b->failed ? remus_fail(b->failed,
                                  "promote: the backup has failed (%s): mend "
                                  "that, restart it, and promote again",
                                  b->reason)
                     : 0;
}

static int find_target(remus_backup *b, int by, uint64_t epoch,
                       const void *tag, size_t len, uint64_t *m)
{
    int err;
    if (remus_super_promoted(&b->super))
        return find_fixed(b, by, epoch, tag, len, m);
    err = check_failed(b);
    if (err)
        return err;
    if (b->super.role == REMUS_SUPER_FOREIGN)
        return remus_fail(-EINVAL,
                          "promote: this side was the primary, its disks are "
                          "as that left them: start it as the primary (if "
                          "it is fenced, the other side is the one to "
                          "promote), or let the other side's primary bring "
                          "it up to date first");
    if (b->copying || !remus_backup_consistent(b))
        return remus_fail(-EINVAL,
                          "promote: the disks are Inconsistent, no copy was "
                          "ever completed and committed: there is no "
                          "checkpoint to go to");
    switch (by) {
    case REMUS_PROMOTE_DEFAULT:
        *m = default_checkpoint(b);
        err = check_committed(b, *m);
        return err ? err : check_fresh(b, *m);
    case REMUS_PROMOTE_EPOCH:
        *m = epoch;
        return find_number(b, epoch);
    case REMUS_PROMOTE_TAG:
        return find_tag(b, tag, len, m);
    default:
        return remus_fail(-EINVAL, "promote: unknown way %d to name it", by);
    }
}

/* Store (m, new generation): from here on there is no other way. */
static int promote_begin(remus_backup *b, uint64_t m)
{
    /* A prepared epoch in page cache only would be lost with the power. */
    int err = remus_journal_sync(&b->journal);
    if (err)
        return remus_backup_failed(b, err);
    pthread_mutex_lock(&b->lock);
    struct remus_super s = b->super;
    s.last_epoch = b->last_epoch;
    s.next_number = b->next_number;
    s.cp = b->committed_cp;
    for (size_t i = 0; i < b->epoch_count; i++)
        if (b->epochs[i]->number == m)
            s.cp = b->epochs[i]->cp;
    pthread_mutex_unlock(&b->lock);
    s.role = REMUS_SUPER_PROMOTING;
    s.target = m;
    err = b->io->random(b->io, s.promoted_generation, REMUS_ID_BYTES);
    if (err)
        return remus_fail(err, "random numbers: %s", remus_errno_text(err));
    return remus_backup_store_super(b, &s);
}

static int promote_finish(remus_backup *b)
{
    uint64_t m = b->super.target;
    int err = 0;
    if (m > b->applied)
        err = remus_backup_write_epochs(b, m);
    if (!err)
        err = remus_backup_sync_disks(b);
    if (err)
        return err;
    pthread_mutex_lock(&b->lock);
    struct remus_super s = b->super;
    s.role = REMUS_SUPER_PROMOTED;
    s.applied = m;
    s.tail = b->journal.next_seq;
    pthread_mutex_unlock(&b->lock);
    err = remus_backup_store_super(b, &s);
    if (err)
        return err;
    pthread_mutex_lock(&b->lock);
    remus_backup_drop_epochs(b, s.tail);
    b->prepared = b->acked = b->committed = b->applied = m;
    pthread_mutex_unlock(&b->lock);
    /* The volumes are free: their owner is the guest now. */
    for (unsigned int i = 0; i < b->disk_count; i++) {
        b->io->close(b->io, b->disks[i].file);
        b->disks[i].file = -1;
    }
    return 0;
}

static int promote_held(remus_backup *b, int by, uint64_t epoch,
                        const void *tag, size_t len, uint64_t *m)
{
    pthread_mutex_lock(&b->lock);
    int err = find_target(b, by, epoch, tag, len, m);
    int begun = remus_super_promoted(&b->super);
    if (!err)
        b->fenced = 1; /* no record, no ack, no commit from here on */
    int done = b->super.role == REMUS_SUPER_PROMOTED;
    if (!err && !done)
        err = check_failed(b);
    pthread_mutex_unlock(&b->lock);
    if (err || done)
        return err;
    if (!begun) {
        err = promote_begin(b, *m);
        pthread_mutex_lock(&b->lock);
        b->fenced = !err || b->failed;
        pthread_mutex_unlock(&b->lock);
        if (err)
            return err;
    }
    return promote_finish(b);
}

/* How long nobody was connected, as find_target() needs it. */
static void look_back(remus_backup *b)
{
    uint64_t alone = remus_backup_net_alone_s(b);
    uint64_t now = remus_backup_now_s(b);
    pthread_mutex_lock(&b->lock);
    if (alone == UINT64_MAX) {
        uint64_t heard = b->super.heard;
        /* A clock that was set back by much tells nothing: that is old. */
        alone = !heard ? 0 : now > heard ? now - heard : heard - now;
    }
    b->alone_s = alone;
    pthread_mutex_unlock(&b->lock);
}

int remus_backup_target(remus_backup *b, int by, uint64_t epoch,
                        const void *tag, size_t tag_len, uint64_t *target)
{
    look_back(b);
    pthread_mutex_lock(&b->lock);
    int err = find_target(b, by, epoch, tag, tag_len, target);
    pthread_mutex_unlock(&b->lock);
    return err ? remus_fail_in(err, "backup of %s", b->resource) : 0;
}

int remus_backup_ask(remus_backup *b, int flags)
{
    pthread_mutex_lock(&b->lock);
    int given = b->given || remus_super_promoted(&b->super);
    pthread_mutex_unlock(&b->lock);
    if (given)
        return 1;
    uint64_t epoch;
    int rc = remus_backup_net_ask(b, flags, &epoch);
    if (rc < 0)
        return remus_fail_in(rc, "backup of %s", b->resource);
    pthread_mutex_lock(&b->lock);
    if (rc) {
        b->given = 1;
        b->given_epoch = epoch;
    }
    pthread_mutex_unlock(&b->lock);
    return rc;
}

int remus_backup_promote(remus_backup *b, int by, uint64_t epoch,
                         const void *tag, size_t tag_len, int force,
                         uint64_t *promoted)
{
    uint64_t m = 0;
    int err = 0, asked = force;
    if (b->look)
        return remus_fail(-EROFS, "backup of %s: was opened to look at only",
                          b->resource);
    look_back(b);
    do { /* again if one connects after the look and before the fence */
        /* What can't be promoted to must not cost a connection that works,
         * or stop a primary.  (Of one that has ended the last epoch may
         * still be on the way through.) */
        if (!remus_backup_net_live(b))
            continue;
        pthread_mutex_lock(&b->lock);
        err = find_target(b, by, epoch, tag, tag_len, &m);
        /* Who gives way commits a last one. */
        if (err && by == REMUS_PROMOTE_DEFAULT && !force &&
            remus_backup_consistent(b) && !remus_backup_committed(b))
            err = 0;
        pthread_mutex_unlock(&b->lock);
        if (err)
            return remus_fail_in(err, "backup of %s", b->resource);
        int flags = by == REMUS_PROMOTE_DEFAULT ? 0 : REMUS_ASK_KEEP;
        err = force ? 0 : remus_backup_ask(b, flags);
        if (err < 0)
            return err;
        asked = 1;
    } while (remus_backup_net_fence(b, asked));
    pthread_mutex_lock(&b->apply_lock);
    err = promote_held(b, by, epoch, tag, tag_len, &m);
    pthread_mutex_unlock(&b->apply_lock);
    remus_backup_net_reopen(b);
    if (err)
        return remus_fail_in(err, "backup of %s", b->resource);
    *promoted = m;
    return 0;
}

int remus_backup_commit(remus_backup *b, uint64_t epoch)
{
    int err = remus_backup_commit_record(b, epoch, 0);
    if (!err) {
        err = remus_journal_sync(&b->journal);
        if (err)
            return remus_backup_failed(b, err);
    }
    return err;
}

static void list_one(struct remus_checkpoint *out, unsigned int cap,
                     unsigned int *n, const struct remus_checkpoint *cp,
                     uint32_t flags)
{
    if (cap && *n >= cap) {
        memmove(out, out + 1, (cap - 1) * sizeof *out);
        out[cap - 1] = *cp;
        out[cap - 1].flags |= flags;
    } else if (cap) {
        out[*n] = *cp;
        out[*n].flags |= flags;
    }
    ++*n;
}

int remus_backup_checkpoints(remus_backup *b, struct remus_checkpoint *out,
                             unsigned int cap)
{
    unsigned int n = 0;
    pthread_mutex_lock(&b->lock);
    if (remus_super_promoted(&b->super)) {
        list_one(out, cap, &n, &b->super.cp, REMUS_CP_COMMITTED);
    } else if (!b->copying && remus_backup_consistent(b)) {
        if (remus_backup_committed(b))
            list_one(out, cap, &n, &b->committed_cp, REMUS_CP_COMMITTED);
        for (size_t i = 0; i < b->epoch_count; i++)
            if (b->epochs[i]->number > b->committed)
                list_one(out, cap, &n, &b->epochs[i]->cp, 0);
    }
    pthread_mutex_unlock(&b->lock);
    return (int)n;
}
