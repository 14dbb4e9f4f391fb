/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary's statistics.  An epoch waits in a small ring until both the
 * call that closed it has returned and its ack, or the loss, has come; then
 * it goes into p->epochs, in the order of epochs.  p->lock is what makes the
 * many threads that come by here the one writer.
 */
#include <errno.h>

#include "stats/epochs.h"
#include "base/error.h"
#include "base/entry.h"
#include "primary/internal.h"

static struct remus_timed *timed_at(remus_primary *p, uint64_t position)
{
    return &p->timed[position % REMUS_TIMED_MAX];
}

static uint64_t between(uint64_t from, uint64_t to)
{
    return to > from ? to - from : 0;
}

/* Add those that are complete, oldest first (lock held). */
static void add_complete(remus_primary *p)
{
    while (p->timed_start < p->timed_end) {
        const struct remus_timed *t = timed_at(p, p->timed_start);
        if (!t->sent_ns || !t->acked_ns)
            return;
        const struct remus_epoch_sample s = {
            .epoch = t->epoch,
            .start_ns = t->start_ns,
            .barrier_ns = between(t->start_ns, t->sent_ns),
            .ack_ns = between(t->sent_ns, t->acked_ns),
            .bytes = t->bytes,
            .result = t->result,
        };
        remus_epochs_add(p->epochs, &s);
        p->timed_start++;
    }
}

void remus_primary_epoch_closed(remus_primary *p, uint64_t epoch,
                                uint64_t start_ns)
{
    /* Only if a thread hangs between its barrier and its return. */
    if (p->timed_end - p->timed_start == REMUS_TIMED_MAX)
        return;
    *timed_at(p, p->timed_end++) = (struct remus_timed){
        .epoch = epoch, .bytes = p->closed_bytes, .start_ns = start_ns};
}

void remus_primary_epoch_sent(remus_primary *p, uint64_t epoch)
{
    uint64_t now = p->io->now_ns(p->io);
    remus_primary_lock(p);
    for (uint64_t i = p->timed_end; i-- > p->timed_start;) {
        struct remus_timed *t = timed_at(p, i);
        if (t->epoch == epoch) {
            t->sent_ns = now;
            break;
        }
    }
    add_complete(p);
    remus_primary_unlock(p);
}

/* The fate of all up to `epoch` is known (lock held). */
static void settle(remus_primary *p, uint64_t epoch, int result)
{
    uint64_t now = 0;
    for (uint64_t i = p->timed_start; i < p->timed_end; i++) {
        struct remus_timed *t = timed_at(p, i);
        if (t->epoch > epoch)
            break;
        if (t->acked_ns)
            continue;
        if (!now)
            now = p->io->now_ns(p->io);
        t->acked_ns = now;
        t->result = result;
    }
    add_complete(p);
}

void remus_primary_epochs_acked(remus_primary *p)
{
    settle(p, p->acked, 0);
}

void remus_primary_epochs_lost(remus_primary *p)
{
    settle(p, UINT64_MAX, -EPROTO);
}

void remus_primary_epoch_committed(remus_primary *p, uint64_t epoch,
                                   uint64_t start_ns)
{
    uint64_t now = p->io->now_ns(p->io);
    remus_primary_lock(p);
    remus_epochs_committed(p->epochs, epoch, between(start_ns, now));
    remus_primary_unlock(p);
}

int remus_primary_epochs_measured(remus_primary *p,
                                  const unsigned char *payload,
                                  uint32_t length)
{
    if (length % REMUS_MEASURED_BYTES)
        return remus_fail(-EBADMSG,
                          "news of applied epochs in %u bytes, expected a "
                          "multiple of %u",
                          length, REMUS_MEASURED_BYTES);
    remus_primary_lock(p);
    for (uint32_t at = 0; at < length; at += REMUS_MEASURED_BYTES) {
        struct remus_measured m;
        remus_measured_decode(payload + at, &m);
        remus_epochs_measured(p->epochs, m.epoch, m.extents, m.coalesced);
        p->stats.bytes_coalesced += m.coalesced;
        if (m.epoch < p->stats.measured_epoch)
            continue;
        p->stats.measured_epoch = m.epoch;
        p->stats.epoch_extents = m.extents;
        p->stats.epoch_coalesced = m.coalesced;
    }
    remus_primary_unlock(p);
    return 0;
}

remus_epochs *remus_primary_epochs(remus_primary *p)
{
    if (remus_enter(p, "primary_epochs"))
        return NULL;
    return p->epochs;
}

int remus_primary_epoch(remus_primary *p, uint64_t epoch,
                        struct remus_epoch_sample *out)
{
    int no = remus_enter(p, "primary_epoch");
    if (!no)
        no = remus_given(out, "primary_epoch", "out");
    if (no)
        return no;
    remus_primary_lock(p);
    int found = remus_epochs_find(p->epochs, epoch, out);
    remus_primary_unlock(p);
    return found;
}
