/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/events.h"

#include "base/wake.h"
#include "remus.h"

int remus_events_open(struct remus_events *e)
{
    atomic_init(&e->untold, 0);
    int fd = remus_wake_open();
    e->fd = fd < 0 ? -1 : fd;
    return fd < 0 ? fd : 0;
}

/* The bits before the descriptor, and the other way round when they are
 * taken: so a bit that is there and not told always has it readable. */
void remus_events_add(struct remus_events *e, unsigned int bits)
{
    if (!bits)
        return;
    atomic_fetch_or(&e->untold, bits);
    remus_wake(e->fd);
}

int remus_events_show(struct remus_events *e, int state, int up)
{
    unsigned int bits =
        (state != e->state ? (unsigned int)REMUS_CHANGED_STATE : 0) |
        (up != e->up ? (unsigned int)REMUS_CHANGED_LINK : 0);
    e->state = state;
    e->up = up;
    remus_events_add(e, bits);
    return bits != 0;
}

unsigned int remus_events_take(struct remus_events *e)
{
    if (e->fd >= 0)
        remus_wake_clear(e->fd);
    return atomic_exchange(&e->untold, 0);
}

void remus_events_close(struct remus_events *e)
{
    remus_wake_close(e->fd);
    e->fd = -1;
}
