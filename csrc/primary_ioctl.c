/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The ioctls of a node.  libxl sends 20 on each disk of the guest in turn,
 * then 30 on each; all of them mean one barrier of the whole resource.
 */
#include <errno.h>
#include <stdio.h>

#include "error.h"
#include "primary_int.h"

/*
 * The newest checkpoint that the toolstack knows to be safe.  One whose ack
 * came too late for its ioctl 30, or that nobody asked for, is not: what
 * became of its memory nobody has said.  After an empty epoch libxl sends no
 * 30.  (lock held)
 */
static uint64_t complete(const remus_primary *p)
{
    return p->node_empty && p->node_barrier > p->node_heard &&
                   p->node_barrier <= p->acked
               ? p->node_barrier
               : p->node_heard;
}

int remus_primary_ioctl_send(remus_primary *p, unsigned int volume,
                             uint64_t tag)
{
    struct remus_pvolume *v = &p->volumes[volume];
    char text[24];
    int len = tag ? snprintf(text, sizeof text, "%llu",
                             (unsigned long long)tag)
                  : 0;
    struct remus_record commit, barrier;
    struct remus_slot *first = NULL, *second = NULL;
    int empty = 0;
    uint64_t start = p->io->now_ns(p->io);
    pthread_mutex_lock(&p->lock);
    int err = remus_primary_check_protected(p);
    int join = !err && p->node_barrier && v->joined != p->node_barrier;
    if (join) {
        v->joined = p->node_barrier;
        empty = p->node_empty;
    } else if (!err) {
        /* This interface has no commit: asking for the next checkpoint says
         * that the one before is complete. */
        int ignored;
        first = remus_primary_reserve_commit(p, &commit, complete(p),
                                             &ignored);
        second = remus_primary_close_epoch(p, &barrier, REMUS_CP_IOCTL,
                                           (size_t)len, &empty, &err);
        if (second) {
            remus_primary_epoch_closed(p, barrier.epoch, start);
            remus_primary_session_opens(p);
            p->node_barrier = v->joined = barrier.epoch;
            p->node_empty = empty;
        }
    }
    pthread_mutex_unlock(&p->lock);
    if (first)
        remus_sendq_publish_quietly(&p->queue, first, &commit, NULL);
    if (second) {
        remus_primary_send_now(p, second, &barrier, text);
        remus_primary_epoch_sent(p, barrier.epoch);
    } else if (first) {
        remus_sendq_wake(&p->queue);
    }
    return err ? err : empty;
}

int remus_primary_ioctl_commit(remus_primary *p, unsigned int volume)
{
    (void)volume;
    struct remus_record r;
    int err = 0;
    uint64_t start = p->io->now_ns(p->io);
    pthread_mutex_lock(&p->lock);
    struct remus_slot *slot =
        remus_primary_reserve_commit(p, &r, p->acked, &err);
    pthread_mutex_unlock(&p->lock);
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
