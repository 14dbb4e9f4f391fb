/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Groups: statistics of their epochs.  An epoch is added once, when its fate
 * is known: at the preresume that succeeds, or when the next postsuspend (or
 * stop) shows that none will.
 */
#include <errno.h>

#include "error.h"
#include "group_int.h"

int remus_group_record(remus_group *g, const char *path)
{
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
    for (unsigned int i = 0; !err && i < g->count; i++)
        err = remus_epochs_create(NULL, g->devices[i].r.name,
                                  &g->devices[i].stats);
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

static void add_device(struct remus_group_device *d, uint64_t now)
{
    if (d->r.epoch <= d->counted_epoch)
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

void remus_group_add_sample(remus_group *g)
{
    if (!g->open_sample)
        return;
    g->open_sample = 0;
    uint64_t now = remus_group_now();
    uint64_t end = g->start_ns + g->barrier_ns, acked = 0;
    int first = 0;
    uint64_t first_ns = UINT64_MAX;
    for (unsigned int i = 0; i < g->count; i++) {
        struct remus_group_device *d = &g->devices[i];
        add_device(d, now);
        if (d->r.ack_ns > acked)
            acked = d->r.ack_ns;
        if (d->failed && d->r.failed_ns < first_ns) {
            first = d->failed;
            first_ns = d->r.failed_ns;
        }
    }
    struct remus_epoch_sample s = {
        .epoch = g->number,
        .start_ns = g->start_ns,
        .barrier_ns = g->barrier_ns,
        .ack_ns = since(first || !acked ? now : acked, end),
        .result = first};
    remus_epochs_add(g->stats, &s);
}

remus_epochs *remus_group_statistics(remus_group *g, int device)
{
    pthread_mutex_lock(&g->lock);
    remus_epochs *e = NULL;
    if (g->state == REMUS_GROUP_NEW)
        remus_fail(-EBADFD, "group %s: statistics before start", g->name);
    else if (device >= (int)g->count)
        remus_fail(-EINVAL, "group %s: no device %d", g->name, device);
    else
        e = device < 0 ? g->stats : g->devices[device].stats;
    pthread_mutex_unlock(&g->lock);
    return e;
}
