/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One seed, from its beginning to a failover. */
#ifndef REMUS_WORLD_RUN_H
#define REMUS_WORLD_RUN_H

#include "program.h"

void world_run(uint64_t seed, int trace, int by_kernel,
               const struct reduction *less);

#endif
