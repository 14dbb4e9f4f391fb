/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the operator does beyond starting and killing: run.c has the steps. */
#ifndef REMUS_WORLD_OPERATOR_H
#define REMUS_WORLD_OPERATOR_H

#include "program.h"

/* Start what is down on a host, as what it is. */
void restart(int host);
/* Everything is mended and runs: it must become Protected, and the guest's
 * writes must go on.  0, or 1 if it is in a named state that is right. */
int wait_protected(void);
/* Links and disks are as they were. */
void mend(void);

/* One failed file operation of a host may still come, or came. */
void fail_operation(int host, const struct step *s);
/* A host, but not its disks, lost what ack = "memory" promised. */
void lost_memory(int host);

/* The backup is promoted, and becomes the primary. */
void fail_over(const struct step *s);
void promote_by_force(const struct step *s);
void switch_roles(const struct step *s);
void compare_sides(const struct step *s);
void resume_waits(void);
/* The disks' server dies, the next one goes on, or dies as well. */
void lose_server(const struct step *s);
/* The operator looks at the status. */
void look_at_status(void);

#endif
