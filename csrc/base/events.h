/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What has changed, for who sleeps in poll(2): bits that are told once, and a
 * descriptor that is readable as long as one was not told.  No lock, and no
 * memory beyond the bits, however often something changes.
 */
#ifndef REMUS_EVENTS_H
#define REMUS_EVENTS_H

#include <stdatomic.h>

struct remus_events {
    int fd; /* constant: eventfd; -1: nobody can look */
    _Atomic unsigned int untold;
    int state, up; /* its owner's lock: what was shown last */
};

/* 0 or -errno with a text; `fd` is -1 then. */
int remus_events_open(struct remus_events *e);

/* Any thread; never blocks. */
void remus_events_add(struct remus_events *e, unsigned int bits);

/*
 * The public state of a side of this role, and whether the other side is
 * connected: add what differs from the last time (owner's lock held); never
 * blocks.  1: something did.  Builds for tests abort if the state is none
 * that can follow the last one (states.h).
 */
int remus_events_show(struct remus_events *e, int role, int state, int up);

/*
 * The bits since the last call.  What is added meanwhile is in the answer or
 * makes the descriptor readable again (both can be, never neither).  Any
 * thread; never blocks.
 */
unsigned int remus_events_take(struct remus_events *e);

void remus_events_close(struct remus_events *e);

#endif
