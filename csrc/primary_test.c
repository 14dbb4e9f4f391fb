/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a primary makes durable about its role, without a thread or a link. */
#include <errno.h>
#include <string.h>

#include "error.h"
#include "primary_int.h"
#include "remus_testing.h"

static int open_role(remus_primary *p)
{
    static const uint64_t sizes[REMUS_VOLUMES_MAX] = {1u << 20};
    static const uint64_t stamps[REMUS_VOLUMES_MAX];
    int err = remus_primary_take_over(p);
    if (!err)
        err = remus_primary_state_load(p, &p->open_epoch);
    if (!err)
        err = remus_dirty_open(&p->dirty, p->io, p->state_dir, p->resource,
                               p->kept.lineage.id, sizes, stamps, 1, 0);
    return err;
}

static int act(remus_primary *p, int what)
{
    int err = 0;
    switch (what) {
    case REMUS_TEST_ROLE_FENCE:
        return remus_primary_state_flag(p, REMUS_PRIMARY_FENCED);
    case REMUS_TEST_ROLE_ALONE:
        /* As after a connection that was lost. */
        err = remus_primary_state_flag(p, REMUS_PRIMARY_SHARED);
        p->alone = 0;
        if (!err)
            remus_primary_take_generation(p);
        return err ? err : p->alone ? 0 : -EIO;
    default:
        return 0;
    }
}

int remus_test_role(remus_sim *sim, const char *state_dir, int what,
                    struct remus_test_role *out)
{
    remus_primary p = {.io = remus_sim_io(sim),
                       .resource = (char *)(uintptr_t) "guest0",
                       .state_dir = (char *)(uintptr_t)state_dir,
                       .dirty = {.file = -1}};
    pthread_mutex_init(&p.lock, NULL);
    pthread_mutex_init(&p.state_lock, NULL);
    pthread_cond_init(&p.changed, NULL);
    int err = open_role(&p);
    if (!err)
        err = act(&p, what);
    memcpy(out->generation, p.kept.lineage.id, REMUS_ID_BYTES);
    memcpy(out->parent, p.kept.lineage.ancestor[0].id, REMUS_ID_BYTES);
    out->ended = p.kept.lineage.ancestor[0].end;
    out->ancestors = p.kept.lineage.count;
    out->next_epoch = p.open_epoch;
    remus_dirty_close(&p.dirty, 0);
    pthread_mutex_destroy(&p.lock);
    pthread_mutex_destroy(&p.state_lock);
    pthread_cond_destroy(&p.changed);
    return err;
}
