/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who is killed while its write waits for room.
 *
 * Such a write may wait for long (with a fence, for an operator), and the
 * kernel lets nobody die before it was answered.  So who waits is looked at,
 * at each signal that the kernel tells of and every half second (it tells of
 * one signal only, and of none where the write is asynchronous), and if it is
 * being killed the write is answered with EINTR.  Any other signal ends no
 * write: a disk has no such error.
 */
#include "node/fuse_int.h"

#include "base/clock.h"

#define LOOK_MS 500 /* between looks */
#define FIRST_MS 5  /* after a signal, when its write may not wait yet */
#define AT_ONCE 64u /* writes looked at with one call */

static void look(remus_export *e)
{
    struct remus_parked list[AT_ONCE];
    remus_primary *p = remus_node_primary(e);
    unsigned int n = p ? remus_primary_parked(p, e, list, AT_ONCE) : 0;
    int dies = 0;
    for (unsigned int i = 0; i < n; i++) {
        if (i == 0 || list[i].thread != list[i - 1].thread ||
            list[i].process != list[i - 1].process)
            dies = remus_waiter_dies(list[i].thread, list[i].process);
        if (dies)
            remus_primary_abandon(p, e, list[i].id);
    }
}

void remus_fuse_watch_wake(remus_export *e)
{
    pthread_mutex_lock(&e->lock);
    e->interrupted = 1;
    pthread_cond_signal(&e->watch_wake);
    pthread_mutex_unlock(&e->lock);
}

void *remus_fuse_watch_main(void *arg)
{
    remus_export *e = arg;
    int ms = LOOK_MS;
    pthread_mutex_lock(&e->lock);
    while (!e->stop) {
        uint64_t now = remus_clock_now();
        if (!e->interrupted)
            (void)remus_cond_wait(&e->watch_wake, &e->lock, now,
                                  remus_deadline_in(now, ms));
        ms = e->interrupted ? FIRST_MS : ms < LOOK_MS / 2 ? 2 * ms : LOOK_MS;
        e->interrupted = 0;
        if (!e->parked || e->stop)
            continue;
        pthread_mutex_unlock(&e->lock);
        look(e);
        pthread_mutex_lock(&e->lock);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}
