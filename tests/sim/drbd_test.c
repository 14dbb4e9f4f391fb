/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A device of the kind that the test says, not the one that it is. */
#include "group/drbd.h"
#include "remus_testing.h"

int remus_test_drbd_open_as(const char *path, int is_node, const char *proc,
                            int ready_ms, remus_drbd **out)
{
    return remus_drbd_open_as(path, is_node, proc, ready_ms, out);
}
