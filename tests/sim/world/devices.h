/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A toolstack that takes a guest's disks, its memory and its NIC through the
 * checkpoints as one group.  Memory and NIC are models: a memory takes its
 * time, or fails, and is complete on the backup once its preresume went well;
 * a NIC lets the output of a checkpoint go once that is committed, says the
 * backup.  From then on no failover may take it back.
 */
#ifndef REMUS_WORLD_DEVICES_H
#define REMUS_WORLD_DEVICES_H

#include "sides.h"

/* Until the side's guest shall stop, or this session is over. */
void devices_toolstack(struct side *s);

#endif
