/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a group costs by itself, with the benchmark's device that does nothing.
 */
#include "../../benchmarks/null_device.c"
#include "group/internal.h"
#include "remus_testing.h"

const struct remus_device_ops *remus_test_null_ops(void)
{
    return &null_ops;
}

uint64_t remus_test_group_ns(remus_group *g, unsigned int epochs)
{
    uint64_t start = remus_clock_now();
    for (unsigned int i = 0; i < epochs; i++)
        if (remus_group_postsuspend(g, NULL, 0) ||
            remus_group_preresume(g, 5000) || remus_group_commit(g))
            return 0;
    return remus_clock_now() - start;
}
