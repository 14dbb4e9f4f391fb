/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/entry.h"

#include <errno.h>

#include "base/error.h"
#include "base/fork.h"

void remus_entry_init(struct remus_entry *entry)
{
    entry->born = remus_fork_generation();
}

int remus_enter(const void *handle, const char *call)
{
    if (!handle)
        return remus_fail(-EINVAL, "%s: no handle given (NULL)", call);
    const struct remus_entry *h = handle;
    if (h->born != remus_fork_generation())
        return remus_fail(-ECHILD,
                          "%s: this process is a fork of the one that opened "
                          "the handle, which goes on there: open one here",
                          call);
    return 0;
}

int remus_given(const void *argument, const char *call, const char *name)
{
    return argument
               ? 0
               : remus_fail(-EINVAL, "%s: %s: none given (NULL)", call, name);
}
