/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Did somebody else write to the disks while no backup had them open?  The
 * superblock holds a stamp of each, taken at a clean end or at rest.  It is
 * taken away, durably, before anything is written to a disk, or with the word
 * of a primary on what they hold.  So where one is found, and is not that of
 * its disk now, somebody wrote to it, or it is not the same disk: in doubt it
 * is compared with the primary's.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backup/backup.h"
#include "base/error.h"
#include "format/dirty_header.h"

#define REST_NS 1000000000u /* at least, before a stamp is taken */
#define SOON_MS 100u        /* an end waits no longer for the images' times */

static int has_stamps(const struct remus_super *s)
{
    for (unsigned int i = 0; i < REMUS_VOLUMES_MAX; i++)
        if (s->stamp[i])
            return 1;
    return 0;
}

void remus_backup_no_stamps(struct remus_super *s)
{
    memset(s->stamp, 0, sizeof s->stamp);
}

/* The stamp of a disk as it is now; 0: there is none.  Of a block device what
 * waits in the page cache is written out first. */
static uint64_t stamp_of(const remus_backup *b, unsigned int i)
{
    uint64_t stamp = 0;
    uint32_t ms = 0;
    int file = b->disks[i].file;
    int err = b->io->stamp(b->io, file, &stamp, &ms);
    if (!err && ms == REMUS_STAMP_COUNTS &&
        (err = b->io->fdatasync(b->io, file)) == 0)
        err = b->io->stamp(b->io, file, &stamp, &ms);
    return err ? 0 : stamp;
}

/* The counts of a block device begin anew with the machine. */
static int tells(const remus_backup *b, unsigned int i)
{
    uint64_t stamp;
    uint32_t ms = 0;
    return b->io->stamp(b->io, b->disks[i].file, &stamp, &ms) == 0 &&
           (ms != REMUS_STAMP_COUNTS ||
            !memcmp(b->boot, b->super.stamp_boot, REMUS_BOOT_ID));
}

/* Was this disk written to, or is it another one? */
static int looks_other(const remus_backup *b, unsigned int i)
{
    uint64_t now, then = b->super.stamp[i];
    return then && tells(b, i) && (now = stamp_of(b, i)) && now != then;
}

void remus_backup_foreign_look(remus_backup *b)
{
    unsigned int i = 0;
    if (b->read_only || !remus_super_follows(b->super.role))
        return;
    while (i < b->disk_count && !looks_other(b, i))
        i++;
    if (i == b->disk_count)
        return;
    pthread_mutex_lock(&b->lock);
    b->doubt = i + 1;
    snprintf(b->reason, sizeof b->reason,
             "volume %s: %.120s was written to by somebody else while no "
             "backup had it open: the primary is asked to compare",
             b->disks[i].name, b->disks[i].path);
    b->log_due = 1;
    remus_backup_unlock(b);
}

int remus_backup_foreign_writes(remus_backup *b)
{
    struct remus_super s = b->super;
    pthread_mutex_lock(&b->lock);
    unsigned int doubt = b->doubt;
    remus_backup_unlock(b);
    /* What is in doubt stays so, whoever is killed next. */
    if (doubt || !has_stamps(&s))
        return 0;
    remus_backup_no_stamps(&s);
    return remus_backup_store_super(b, REMUS_STORE_PROGRESS, &s);
}

/* Is what the disks hold what the superblock says, and all of it?  (lock
 * held) */
static int at_rest(const remus_backup *b)
{
    return b->opened && !b->failed && !b->doubt &&
           b->authority.who != REMUS_DECIDES_OURS &&
           remus_super_follows(b->super.role) &&
           b->now.phase != REMUS_AT_COPYING &&
           b->applied == b->super.applied && b->applied == b->committed &&
           !has_stamps(&b->super);
}

/* apply_lock held */
static int store_stamps(remus_backup *b, uint32_t soon_ms)
{
    int files[REMUS_VOLUMES_MAX];
    struct remus_super s = b->super;
    for (unsigned int i = 0; i < b->disk_count; i++) {
        files[i] = b->disks[i].file;
        (void)stamp_of(b, i); /* writes out what waits */
    }
    if (remus_dirty_final_stamps(b->io, files, b->disk_count, soon_ms,
                                 s.stamp))
        return 0; /* not at rest, or it can't be told */
    memcpy(s.stamp_boot, b->boot, sizeof s.stamp_boot);
    return has_stamps(&s)
               ? remus_backup_store_super(b, REMUS_STORE_PROGRESS, &s)
               : 0;
}

void remus_backup_foreign_rest(remus_backup *b, int ends)
{
    pthread_mutex_lock(&b->apply_lock);
    uint64_t now = b->io->now_ns(b->io);
    pthread_mutex_lock(&b->lock);
    int rests = at_rest(b);
    if (b->writes != b->rest_writes || !b->rest_ns) {
        b->rest_writes = b->writes;
        b->rest_ns = now;
    }
    int long_since = now - b->rest_ns >= REST_NS;
    remus_backup_unlock(b);
    if (rests && (ends || long_since))
        (void)store_stamps(b, ends ? UINT32_MAX : SOON_MS);
    pthread_mutex_unlock(&b->apply_lock);
}
