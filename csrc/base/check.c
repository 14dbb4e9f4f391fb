/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the code relies on does not hold; see check.h. */
#include "base/check.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"

int remus_check_failed(const char *what, const char *file, int line)
{
#ifdef REMUS_CHECKED
    fprintf(stderr, "remus-native: %s:%d: %s does not hold\n", file, line,
            what);
    abort();
#endif
    return remus_fail(-ENOTRECOVERABLE,
                      "internal error at %s:%d: %s does not hold: no "
                      "further write is made; report it, then restart",
                      file, line, what);
}
