/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a primary stores, or looks at, now and then, and which may wait for a
 * disk: a thread of its own does it, which nobody waits for before the end.
 */
#include <poll.h>

#include "base/entry.h"
#include "base/error.h"
#include "primary/internal.h"

#define LOOK_MS 100

/* Numbers are reserved far ahead of their use. */
static void extend_epochs(remus_primary *p)
{
    remus_primary_lock(p);
    uint64_t next = p->open_epoch, limit = p->kept.limit;
    remus_primary_unlock(p);
    if (next + REMUS_EPOCHS_AHEAD / 2 <= limit)
        return;
    if (remus_primary_state_store(p, next + REMUS_EPOCHS_AHEAD))
        remus_primary_link_lost(p, "%s", remus_last_error());
}

void *remus_primary_upkeep_main(void *arg)
{
    remus_primary *p = arg;
    struct pollfd stop = {.fd = p->wake, .events = POLLIN};
    while (poll(&stop, 1, LOOK_MS) <= 0) {
        extend_epochs(p);
        for (unsigned int i = 0; i < p->volume_count; i++)
            remus_dirty_settle(&p->dirty.f, i, p->volumes[i].file);
    }
    return NULL;
}

int remus_primary_reload_keys(remus_primary *p)
{
    int no = remus_enter(p, "primary_reload_keys");
    if (no)
        return no;
    int err = remus_tls_keys_reload(p->keys);
    return err ? remus_fail_in(err, "resource %s", p->resource) : 0;
}
