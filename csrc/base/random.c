/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/random.h"

#include "base/error.h"

int remus_random(remus_io *io, void *buf, size_t len, const char *what)
{
    int err = io->random(io, buf, len);
    return err ? remus_fail(err, "%s: random numbers: %s", what,
                            remus_errno_text(err))
               : 0;
}
