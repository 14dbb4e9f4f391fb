/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A DRBD device whose kind is given instead of found out (tests). */
#ifndef REMUS_DRBD_H
#define REMUS_DRBD_H

#include "remus.h"

/* is_node: 1 a file of our node, 0 a kernel device, -1 find out. */
int remus_drbd_open_as(const char *path, int is_node, remus_drbd **out);

#endif
