/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Groups: statistics of their epochs.  An epoch is added once, when its fate
 * is known: at the preresume that succeeds, or when the next postsuspend (or
 * stop) shows that none will.
 */
#include <errno.h>

#include "base/error.h"
#include "base/entry.h"
#include "group/internal.h"

int remus_group_record(remus_group *g, const char *path)
{
    int no = remus_enter(g, "group_record");
    if (!no)
        no = remus_given(path, "group_record", "path");
    if (no)
        return no;
    pthread_mutex_lock(&g->lock);
    int err = 0;
    if (g->state != REMUS_GROUP_NEW || g->stats)
        err = remus_fail(-EBADFD,
                         "group %s: statistics are chosen once, before start",
                         g->name);
    else
        err = remus_epochs_create(path, g->name, &g->stats);
    pthread_mutex_unlock(&g->lock);
    return err;
}

int remus_group_make_stats(remus_group *g)
{
    int err = 0;
    if (!g->stats)
        err = remus_epochs_create(NULL, g->name, &g->stats);
    for (unsigned int i = 0; !err && i < g->count; i++) {
        struct remus_group_device *d = &g->devices[i];
        /* A primary keeps its own, in which commits are, too. */
        if (d->kind != REMUS_KIND_PRIMARY)
            err = remus_epochs_create(NULL, d->r.name, &d->stats);
    }
    return err;
}

void remus_group_free_stats(remus_group *g)
{
    for (unsigned int i = 0; i < g->count; i++)
        remus_epochs_close(g->devices[i].stats);
    remus_epochs_close(g->stats);
}

static uint64_t since(uint64_t later, uint64_t earlier)
{
    return later > earlier ? later - earlier : 0;
}

/* lock held */
static void add_device(struct remus_group_device *d, uint64_t now)
{
    if (!d->stats || d->r.epoch <= d->counted_epoch)
        return;
    d->counted_epoch = d->r.epoch;
    struct remus_epoch_sample s = {
        .epoch = d->r.epoch,
        .start_ns = d->start_ns,
        .barrier_ns = since(d->r.sent_ns, d->start_ns),
        .ack_ns = since(d->r.ack_ns ? d->r.ack_ns : now, d->r.sent_ns),
        .result = d->failed};
    remus_epochs_add(d->stats, &s);
}

/* What the primaries know of an epoch; 0 if one does not yet.  (lock held) */
static int look_up(remus_group *g, uint64_t number, uint64_t *bytes,
                   uint64_t *extents, uint64_t *coalesced)
{
    int known = 0;
    *bytes = *extents = *coalesced = 0;
    for (unsigned int i = 0; i < g->count; i++) {
        struct remus_group_device *d = &g->devices[i];
        struct remus_epoch_sample s;
        uint64_t epoch = d->past[number % REMUS_GROUP_PAST];
        if (d->kind != REMUS_KIND_PRIMARY || !epoch)
            continue;
        if (!remus_primary_epoch(d->primary, epoch, &s))
            return 0;
        *bytes += s.bytes;
        if (!s.extents)
            return 0;
        *extents += s.extents;
        *coalesced += s.coalesced;
        known = 1;
    }
    return known;
}

/* Extents come from the backup, some epochs later.  (lock held) */
static void add_measured(remus_group *g)
{
    uint64_t bytes, extents, coalesced;
    if (g->measured + REMUS_GROUP_PAST <= g->number)
        g->measured = g->number - REMUS_GROUP_PAST + 1;
    for (; g->measured < g->number; g->measured++) {
        if (!look_up(g, g->measured, &bytes, &extents, &coalesced))
            return;
        remus_epochs_measured(g->stats, g->measured, extents, coalesced);
    }
}

void remus_group_add_sample(remus_group *g)
{
    if (!g->open_sample)
        return;
    g->open_sample = 0;
    uint64_t now = remus_clock_now();
    uint64_t end = g->start_ns + g->barrier_ns, acked = 0;
    int first = 0;
    uint64_t first_ns = UINT64_MAX;
    for (unsigned int i = 0; i < g->count; i++) {
        struct remus_group_device *d = &g->devices[i];
        add_device(d, now);
        d->past[g->number % REMUS_GROUP_PAST] = d->failed ? 0 : d->r.epoch;
        if (d->r.ack_ns > acked)
            acked = d->r.ack_ns;
        if (d->failed && d->r.failed_ns < first_ns) {
            first = d->failed;
            first_ns = d->r.failed_ns;
        }
    }
    uint64_t bytes, extents, coalesced;
    look_up(g, g->number, &bytes, &extents, &coalesced);
    struct remus_epoch_sample s = {
        .epoch = g->number,
        .bytes = bytes,
        .start_ns = g->start_ns,
        .barrier_ns = g->barrier_ns,
        .ack_ns = since(first || !acked ? now : acked, end),
        .result = first};
    remus_epochs_add(g->stats, &s);
    add_measured(g);
}

remus_epochs *remus_group_statistics(remus_group *g, int device)
{
    if (remus_enter(g, "group_statistics"))
        return NULL;
    pthread_mutex_lock(&g->lock);
    remus_epochs *e = NULL;
    if (g->state == REMUS_GROUP_NEW)
        remus_fail(-EBADFD, "group %s: statistics before start", g->name);
    else if (device >= (int)g->count)
        remus_fail(-EINVAL, "group %s: no device %d", g->name, device);
    else if (device >= 0 && g->devices[device].kind == REMUS_KIND_PRIMARY)
        e = remus_primary_epochs(g->devices[device].primary);
    else
        e = device < 0 ? g->stats : g->devices[device].stats;
    pthread_mutex_unlock(&g->lock);
    return e;
}
