/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What runs beside a side: on a primary's host a guest that writes, a toolstack
 * that takes checkpoints (by calls or by the ioctls of the volumes' files) and
 * whoever fences the backup; on a backup's, who commits there.
 */
#ifndef REMUS_WORLD_GUEST_H
#define REMUS_WORLD_GUEST_H

#include "sides.h"

void guest_start(int host);
void committer_start(int host);

/* What toolstacks share.  A promote came between: this checkpoint is of a
 * branch that is lost. */
int guest_cut_off(const struct side *s, unsigned int branch);
/* With ack = "memory" a word that was on its way when the backup lost its
 * power promises nothing. */
void guest_is_safe(uint64_t n);
/* No two are the same. */
size_t guest_make_tag(char *tag);
/* As before postsuspend.  1: nothing of shared.h's is on its way. */
int guest_suspend(struct side *s);
/* Checkpoint n was taken (0: none); the guest goes on. */
void guest_resume(struct side *s, uint64_t n, int stood_still);

/* They shall end: 1 if they have, before half a minute is over. */
int guest_stop(int host);

#endif
