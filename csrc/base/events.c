/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/events.h"

#include <stdio.h>

#include "base/check.h"
#include "base/states.h"
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

#ifdef REMUS_CHECKED
static void check_follows(int role, int from, int to)
{
    /* A backup is never Connecting: it has shown nothing so far. */
    if (from == to ||
        (role == REMUS_ROLE_BACKUP && from == REMUS_STATE_CONNECTING))
        return;
    remus_state_note(role, from, to);
    if (remus_state_follows((enum remus_role)role, (enum remus_state)from,
                            (enum remus_state)to))
        return;
    char text[96];
    snprintf(text, sizeof text, "%s follows %s on a %s",
             remus_state_name((enum remus_state)to),
             remus_state_name((enum remus_state)from),
             role == REMUS_ROLE_BACKUP ? "backup" : "primary");
    (void)remus_check_failed(text, __FILE__, __LINE__);
}
#endif

int remus_events_show(struct remus_events *e, int role, int state, int up)
{
#ifdef REMUS_CHECKED
    check_follows(role, e->state, state);
#else
    (void)role;
#endif
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
