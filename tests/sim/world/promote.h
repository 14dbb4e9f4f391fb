/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How roles change; the steps themselves are in operator.h. */
#ifndef REMUS_WORLD_PROMOTE_H
#define REMUS_WORLD_PROMOTE_H

/* Has the primary of this branch stepped down, or may it have? */
int stepped_down(void);
/* Has the side that is the backup now gone on by itself, as a primary? */
int both_went_on(void);
/* The wall clock has jumped. */
void note_jump(void);
/* The primary stepped down: the backup is the one to start. */
void promote_instead(void);

#endif
