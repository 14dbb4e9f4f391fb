/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a primary makes durable about its role, without a thread or a link. */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "primary/internal.h"
#include "remus_testing.h"

static int open_role(remus_primary *p)
{
    int err = remus_primary_take_over(p);
    if (!err)
        err = remus_primary_state_load(p, &p->open_epoch);
    struct remus_dirty_of of = {.resource = p->resource,
                                .state_dir = p->state_dir,
                                .generation = p->kept.lineage.id,
                                .id = p->kept.map,
                                .volumes = 1,
                                .size = {1u << 20}};
    if (!err)
        err = remus_dirty_open(&p->dirty, p->io, &of);
    if (!err)
        err = remus_primary_state_map(p, p->dirty.f.id);
    return err ? err : remus_dirty_file_begin(&p->dirty.f);
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
        remus_primary_shared(p);
        if (!err)
            remus_primary_take_generation(p);
        return err                                           ? err
               : p->alone.generation == REMUS_GENERATION_OWN ? 0
                                                             : -EIO;
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
                       .dirty = {.f = {.file = -1}}};
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
    remus_dirty_close(&p.dirty, 0, NULL);
    pthread_mutex_destroy(&p.lock);
    pthread_mutex_destroy(&p.state_lock);
    pthread_cond_destroy(&p.changed);
    return err;
}
