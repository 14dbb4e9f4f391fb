/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A device that does nothing, to measure what a group costs by itself. */
#include "remus.h"

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

const struct remus_device_ops null_ops = {
    sizeof null_ops, send_nothing, wait_for_nothing, commit_nothing, NULL};
