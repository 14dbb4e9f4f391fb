/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a power loss leaves of the simulated disk. */
#include "io_sim.h"

#include <stdlib.h>
#include <string.h>

static int coin(uint64_t *state)
{
    return (int)(remus_sim_draw(state) >> 63);
}

/* The part of one write that lies in one sector. */
struct sim_piece {
    uint64_t sector;
    const struct sim_dirty *write;
    size_t age; /* place of the write in the list */
};

static int by_sector(const void *a, const void *b)
{
    const struct sim_piece *x = a, *y = b;
    if (x->sector != y->sector)
        return x->sector < y->sector ? -1 : 1;
    return x->age < y->age ? -1 : x->age > y->age;
}

static void settle_piece(struct sim_node *n, const struct sim_piece *p)
{
    const struct sim_dirty *d = p->write;
    uint64_t from = p->sector * SECTOR, to = from + SECTOR;
    if (from < d->offset)
        from = d->offset;
    if (to > d->offset + d->len)
        to = d->offset + d->len;
    remus_node_settle(n, from, d->data ? d->data + (from - d->offset) : NULL,
                      (size_t)(to - from));
}

static void shuffle(struct sim_piece *p, size_t n, uint64_t *seed)
{
    for (; n > 1; n--) {
        size_t i = (size_t)(remus_sim_draw(seed) % n);
        struct sim_piece last = p[n - 1];
        p[n - 1] = p[i];
        p[i] = last;
    }
}

static uint64_t sectors(const struct sim_dirty *d)
{
    return (d->offset + d->len - 1) / SECTOR - d->offset / SECTOR + 1;
}

/*
 * Each sector on its own: by chance it gets some of the writes that touch
 * it; in their order, or (mixed) in any.  Without memory all are lost.
 */
static void settle_some(struct sim_node *n, int mixed, uint64_t *seed)
{
    size_t count = 0, age = 0, used = 0;
    for (const struct sim_dirty *d = n->dirty; d; d = d->next)
        count += (size_t)sectors(d);
    struct sim_piece *all = count ? malloc(count * sizeof *all) : NULL;
    if (!all)
        return;
    for (const struct sim_dirty *d = n->dirty; d; d = d->next, age++)
        for (uint64_t i = 0; i < sectors(d); i++)
            all[used++] = (struct sim_piece){d->offset / SECTOR + i, d, age};
    qsort(all, count, sizeof *all, by_sector);
    for (size_t first = 0, next; first < count; first = next) {
        for (next = first + 1; next < count; next++)
            if (all[next].sector != all[first].sector)
                break;
        if (mixed)
            shuffle(all + first, next - first, seed);
        for (size_t i = first; i < next; i++)
            if (coin(seed))
                settle_piece(n, &all[i]);
    }
    free(all);
}

/* Some sectors of a mapping were written back by chance. */
static void settle_mapped(struct sim_node *n, uint64_t *seed)
{
    for (size_t at = 0; at < n->size; at += SECTOR) {
        size_t len = n->size - at < SECTOR ? n->size - at : SECTOR;
        if (memcmp(n->now + at, n->stable + at, len) && coin(seed))
            memcpy(n->stable + at, n->now + at, len);
    }
}

/* What a file is after the power was lost. */
static void lose_content(struct sim_node *n, int loss, uint64_t *seed)
{
    if (!n)
        return;
    if (n->mapped && loss != REMUS_SIM_KEEP && loss != REMUS_SIM_LOSE)
        settle_mapped(n, seed);
    if (loss == REMUS_SIM_KEEP)
        remus_node_settle_all(n);
    else if (loss != REMUS_SIM_LOSE)
        settle_some(n, loss == REMUS_SIM_REORDER, seed);
    remus_node_revert(n);
}

/* What a name is after the power was lost. */
static void lose_name(struct sim_name *m, int loss, uint64_t *seed)
{
    if (m->now == m->stable)
        return;
    if (loss == REMUS_SIM_KEEP || (loss != REMUS_SIM_LOSE && coin(seed)))
        remus_node_point(&m->stable, m->now);
    else
        remus_node_point(&m->now, m->stable);
}

/* Is any directory above `path` gone? */
static int orphan(remus_sim *sim, const char *path)
{
    for (size_t len = strlen(path); len--;) {
        const struct sim_name *m =
            path[len] == '/' ? remus_name_find(sim, path, len) : NULL;
        if (m && !m->now)
            return 1;
    }
    return 0;
}

void remus_sim_end_process(remus_sim *sim)
{
    for (int i = 0; i < HANDLES; i++)
        if (sim->handles[i].node)
            remus_sim_close(&sim->handles[i]);
    sim->life = sim->life == LIVES ? 0 : sim->life + 1;
    sim->stop_at = UINT64_MAX;
    sim->fail_at = UINT64_MAX;
}

void remus_sim_crash(remus_sim *sim, int loss, uint64_t seed)
{
    pthread_mutex_lock(&sim->lock);
    remus_sim_end_process(sim);
    sim->boot++;
    for (struct sim_name *m = sim->names; m; m = m->next) {
        lose_content(m->now, loss, &seed);
        if (m->stable != m->now)
            lose_content(m->stable, loss, &seed);
        lose_name(m, loss, &seed);
    }
    for (struct sim_name *m = sim->names; m; m = m->next)
        if (orphan(sim, m->path) || remus_name_in_memory(m->path)) {
            remus_node_point(&m->now, NULL);
            remus_node_point(&m->stable, NULL);
        }
    pthread_mutex_unlock(&sim->lock);
}

void remus_sim_kill(remus_sim *sim)
{
    pthread_mutex_lock(&sim->lock);
    remus_sim_end_process(sim);
    pthread_mutex_unlock(&sim->lock);
}
