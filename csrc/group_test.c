/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A device that does nothing, to measure what a group costs by itself. */
#include "group_int.h"
#include "remus_testing.h"

static int send_nothing(void *opaque, const void *tag, size_t len,
                        uint64_t *epoch)
{
    static _Atomic uint64_t epochs;
    (void)opaque;
    (void)tag;
    (void)len;
    *epoch = ++epochs;
    return 0;
}

static int wait_for_nothing(void *opaque, uint64_t epoch, int64_t timeout_ms)
{
    (void)opaque;
    (void)epoch;
    (void)timeout_ms;
    return 0;
}

static int commit_nothing(void *opaque, uint64_t epoch)
{
    (void)opaque;
    (void)epoch;
    return 0;
}

const struct remus_device_ops *remus_test_null_ops(void)
{
    static const struct remus_device_ops ops = {
        send_nothing, wait_for_nothing, commit_nothing, NULL};
    return &ops;
}

uint64_t remus_test_group_ns(remus_group *g, unsigned int epochs)
{
    uint64_t start = remus_group_now();
    for (unsigned int i = 0; i < epochs; i++)
        if (remus_group_postsuspend(g, NULL, 0) ||
            remus_group_preresume(g, 5000) || remus_group_commit(g))
            return 0;
    return remus_group_now() - start;
}
