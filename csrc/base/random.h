/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Random numbers, from the I/O table: ids, salts, sessions. */
#ifndef REMUS_RANDOM_H
#define REMUS_RANDOM_H

#include <stddef.h>

#include "base/io.h"

/* 0, or -errno with a text that begins with `what` ("journal /x"). */
int remus_random(remus_io *io, void *buf, size_t len, const char *what);

#endif
