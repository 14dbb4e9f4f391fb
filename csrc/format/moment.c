/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How long ago something was; see moment.h. */
#include "format/moment.h"

#include <string.h>

static const unsigned char no_boot[REMUS_BOOT_ID];

void remus_moment_now(remus_io *io, const unsigned char boot[REMUS_BOOT_ID],
                      struct remus_moment *out)
{
    memcpy(out->boot, boot, REMUS_BOOT_ID);
    out->boot_ns = io->boot_ns(io);
    out->wall_s = io->real_s(io);
}

int remus_moment_known(const struct remus_moment *m)
{
    return m->wall_s || memcmp(m->boot, no_boot, sizeof no_boot);
}

uint64_t remus_moment_age_s(const struct remus_moment *then,
                            const struct remus_moment *now)
{
    int same_boot = memcmp(now->boot, no_boot, sizeof no_boot) &&
                    !memcmp(then->boot, now->boot, sizeof no_boot);
    uint64_t from = same_boot ? then->boot_ns / 1000000000u : then->wall_s;
    uint64_t to = same_boot ? now->boot_ns / 1000000000u : now->wall_s;
    if (!remus_moment_known(then) || to < from)
        return REMUS_LONG_AGO;
    return to - from;
}
