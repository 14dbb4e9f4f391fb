/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What runs beside a side: on a primary's host a guest that writes, a toolstack
 * that takes checkpoints (by calls or by the ioctls of the volumes' files) and
 * whoever fences the backup; on a backup's, who commits there.
 */
#ifndef REMUS_WORLD_GUEST_H
#define REMUS_WORLD_GUEST_H

void guest_start(int host);
void committer_start(int host);
/* They shall end: 1 if they have, before half a minute is over. */
int guest_stop(int host);

#endif
