/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A change of state is compared with the table of what can follow. */
#ifndef REMUS_STATES_H
#define REMUS_STATES_H

void remus_state_note(int role, int from, int to);
/* Has one of this process ever gone from a state to one that can't follow it?
 * 1, and the newest such pair. */
int remus_state_odd(int *from, int *to);

#endif
