/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The journal gets another size, at a start.  It is opened as it was made,
 * and read.  Once nothing in it is needed any more, that is, all that is
 * committed is in the disks and nothing is prepared, the superblock says that
 * the log is empty, then that its files are made anew (`reshape`), then they
 * are, then it says that they were.  Killed between, the next start goes on:
 * from whatever is there, to the size that is wanted then.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/backup.h"
#include "base/error.h"

struct remus_limits remus_backup_limits(const struct remus_super *s)
{
    return (struct remus_limits){s->segments * s->segment_bytes,
                                 s->segment_bytes};
}

/* Is the log empty, for good?  What is committed is moved out first. */
static int make_empty(remus_backup *b)
{
    int err = 0;
    if (remus_super_follows(b->super.role)) {
        err = remus_backup_apply(b);
        if (!err)
            err = remus_backup_checkpoint(b);
    }
    if (err)
        return err;
    pthread_mutex_lock(&b->lock);
    int empty = !b->epoch_count && !b->super.tail_salt &&
                b->super.role != REMUS_SUPER_PROMOTING;
    remus_backup_unlock(b);
    return empty;
}

static int store(remus_backup *b, struct remus_limits to, uint32_t files)
{
    struct remus_super s = b->super;
    s.segment_bytes = to.segment;
    s.segments = to.total / to.segment;
    s.reshape = files;
    pthread_mutex_lock(&b->apply_lock);
    int err = remus_backup_store_super(b, REMUS_STORE_DECISION, &s);
    pthread_mutex_unlock(&b->apply_lock);
    return err;
}

/* Nothing of the log is left to visit. */
static int no_segment(void *ctx, const struct remus_segment *seg)
{
    (void)ctx;
    (void)seg;
    return 0;
}

static int no_record(void *ctx, const struct remus_record *r,
                     const unsigned char *payload, uint64_t pos,
                     struct remus_progress *at)
{
    (void)ctx;
    (void)r;
    (void)payload;
    (void)pos;
    (void)at;
    return 1;
}

/* Open it as it is to be. */
static int reopen(remus_backup *b, struct remus_limits to)
{
    const struct remus_journal_visitor none = {.segment = no_segment,
                                               .record = no_record};
    struct remus_journal_name name = b->journal.name;
    uint32_t volumes = b->journal.volumes;
    char *dir = strdup(b->journal.dir);
    if (!dir)
        return remus_fail(-ENOMEM, "out of memory");
    name.segment_bytes = (uint32_t)to.segment;
    remus_journal_close(&b->journal);
    int err = remus_journal_open(&b->journal, b->io, &b->lock, dir, &name,
                                 to.total, REMUS_JOURNAL_REMAKE);
    free(dir);
    if (err)
        return err;
    b->journal.volumes = volumes;
    return remus_journal_recover(&b->journal, b->super.tail, 0,
                                 b->super.serial, &none);
}

/* The files are there: those beyond them go. */
static int finish(remus_backup *b)
{
    char path[4096];
    const struct remus_limits to = {b->journal.segments *
                                        b->journal.segment_bytes,
                                    b->journal.segment_bytes};
    for (uint32_t i = b->journal.segments; i < b->super.reshape; i++) {
        snprintf(path, sizeof path, "%s/segment.%04u", b->journal.dir, i);
        int err = b->io->unlink(b->io, path);
        if (err && err != -ENOENT)
            return remus_fail(err, "journal: remove %s: %s", path,
                              remus_errno_text(err));
    }
    int err = b->io->sync_dir(b->io, b->journal.dir);
    return err ? remus_fail(err, "journal: sync directory %s: %s",
                            b->journal.dir, remus_errno_text(err))
               : store(b, to, 0);
}

int remus_backup_resize(remus_backup *b, struct remus_limits to)
{
    if (b->read_only || b->super.role == REMUS_SUPER_PROMOTED)
        return 0;
    if (b->super.reshape)
        return finish(b);
    if (to.total / to.segment == b->journal.segments &&
        to.segment == b->journal.segment_bytes)
        return 0;
    int rc = make_empty(b);
    if (rc < 0)
        return rc;
    if (!rc) {
        pthread_mutex_lock(&b->lock);
        if (!b->doubt) /* which is worse */
            snprintf(
                b->reason, sizeof b->reason,
                "the journal keeps its size for now, since checkpoints are "
                "prepared in it: once they are committed, restart this "
                "backup");
        b->log_due = 1;
        remus_backup_unlock(b);
        return 0;
    }
    uint64_t count = to.total / to.segment;
    uint32_t files =
        b->journal.segments > count ? b->journal.segments : (uint32_t)count;
    rc = store(b, to, files);
    if (!rc)
        rc = reopen(b, to);
    return rc ? rc : finish(b);
}
