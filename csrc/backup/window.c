/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Closed epochs, looked at together (apply_lock held): what they come to, and
 * where the newest data of a place lies.
 *
 * That is done in windows of a volume, of so many extents or so few bytes:
 * all of them merged at once could take as much memory again as the epochs
 * themselves, and the journal's credit counts an extent once.
 */
#include "backup/backup.h"

#include "base/error.h"

typedef unsigned long long ull;

/* lock held */
static void note_measured(remus_backup *b, const struct remus_epoch *e,
                          uint64_t extents, uint64_t covered)
{
    struct remus_measured *m =
        &b->measured[b->measured_end++ % REMUS_MEASURED_KEPT];
    m->epoch = b->stats.measured_epoch = e->number;
    m->extents = b->stats.epoch_extents = extents;
    m->coalesced = b->stats.epoch_coalesced = e->extents.added - covered;
}

/* The closed epoch at a place, NULL beyond `target`.  Closed epochs stay as
 * they are while apply_lock is held; the list may grow. */
static struct remus_epoch *closed(remus_backup *b, size_t i, uint64_t target)
{
    pthread_mutex_lock(&b->lock);
    struct remus_epoch *e = i < b->epoch_count ? b->epochs[i] : NULL;
    remus_backup_unlock(b);
    return e && e->number <= target ? e : NULL;
}

/* Sweep one, so that it can be looked at by place.  Not under `lock`: records
 * of the next epoch come in meanwhile. */
static int sweep(remus_backup *b, struct remus_epoch *e)
{
    pthread_mutex_lock(&b->view_lock);
    int err = remus_extents_sweep(&e->extents);
    pthread_mutex_unlock(&b->view_lock);
    return err ? remus_fail(err, "epoch %llu: out of memory", (ull)e->number)
               : 0;
}

int remus_backup_measure(remus_backup *b, uint64_t target)
{
    struct remus_epoch *e;
    int err = 0;
    for (size_t i = 0; !err && (e = closed(b, i, target)); i++) {
        uint64_t covered = 0, extents = 0;
        err = sweep(b, e);
        if (!err) /* it is swept: nothing changes, nothing can fail */
            remus_extents_measure(&e->extents, &covered, &extents);
        if (err || !extents)
            continue;
        pthread_mutex_lock(&b->lock);
        note_measured(b, e, extents, covered);
        remus_backup_unlock(b);
    }
    return err;
}

#define WINDOW_EXTENTS 16384u
#define WINDOW_MIN (1u << 20)

uint64_t remus_backup_window(remus_backup *b, uint64_t target,
                             unsigned int volume, uint64_t start)
{
    uint64_t end = b->disks[volume].size;
    for (;;) {
        struct remus_epoch *e;
        size_t n = 0;
        for (size_t i = 0; (e = closed(b, i, target)); i++)
            n += remus_extents_within(&e->extents, volume, start, end);
        if (n <= WINDOW_EXTENTS || end - start <= WINDOW_MIN)
            return end;
        end = start + (end - start) / 2;
    }
}

int remus_backup_look(remus_backup *b, uint64_t target, unsigned int volume,
                      uint64_t start, uint64_t end)
{
    struct remus_epoch *e;
    int err = 0;
    remus_extents_clear(&b->merge);
    for (size_t i = 0; !err && (e = closed(b, i, target)); i++)
        err = remus_extents_slice(&b->merge, &e->extents, volume, start, end);
    if (!err)
        err = remus_extents_sweep(&b->merge);
    return err ? remus_fail(err, "out of memory") : 0;
}

int remus_backup_sweep_closed(remus_backup *b, uint64_t *newest)
{
    struct remus_epoch *e;
    int err = 0;
    pthread_mutex_lock(&b->lock);
    *newest = b->prepared;
    remus_backup_unlock(b);
    for (size_t i = 0; !err && (e = closed(b, i, *newest)); i++)
        err = sweep(b, e);
    return err;
}
