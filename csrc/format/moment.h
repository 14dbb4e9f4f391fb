/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A moment that is stored and compared later, perhaps after a restart of the
 * machine: within a boot by CLOCK_BOOTTIME, which nobody sets and which goes
 * on in a suspend; across boots by the wall clock.  Whatever can't be told
 * (never stored, or a clock that was set back) counts as long ago.
 *
 * All zero: never.
 */
#ifndef REMUS_MOMENT_H
#define REMUS_MOMENT_H

#include <stdint.h>

#include "base/io.h"

struct remus_moment {
    unsigned char boot[REMUS_BOOT_ID];
    uint64_t boot_ns;
    uint64_t wall_s;
};

#define REMUS_LONG_AGO UINT64_MAX

/* Now, in the boot of this id; all zero: not known, only the wall clock
 * counts.  Opens nothing. */
void remus_moment_now(remus_io *io, const unsigned char boot[REMUS_BOOT_ID],
                      struct remus_moment *out);
int remus_moment_known(const struct remus_moment *m);
/* Seconds from `then` to `now`; REMUS_LONG_AGO if that can't be told. */
uint64_t remus_moment_age_s(const struct remus_moment *then,
                            const struct remus_moment *now);

#endif
