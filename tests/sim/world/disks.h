/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The simulated disks of a host (../io_sim.h), with the world's time. */
#ifndef REMUS_WORLD_DISKS_H
#define REMUS_WORLD_DISKS_H

#include "remus_testing.h"

/* The files of a host; its table has the world's clock and points. */
remus_sim *world_disks_new(int host);

/* How a host's file operations go from now on: at most so slow (0: at once). */
void world_disks_slow(int host, uint64_t ns);
/* ... and many of them are done in parts. */
void world_disks_drip(int host, uint64_t ns);
/* The file system of its state directory stands still for so long. */
void world_disks_freeze(int host, uint64_t ns);

#endif
