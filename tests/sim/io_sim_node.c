/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Files and directories of the simulated disk, and their names. */
#include "io_sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- nodes (all with the lock held) --------------------------------- */

struct sim_node *remus_node_new(int is_dir)
{
    struct sim_node *n = calloc(1, sizeof *n);
    if (!n)
        return NULL;
    n->tail = &n->dirty;
    n->is_dir = is_dir;
    return n;
}

void remus_node_drop_dirty(struct sim_node *n)
{
    while (n->dirty) {
        struct sim_dirty *d = n->dirty;
        n->dirty = d->next;
        if (d->data != d->bytes)
            free(d->data);
        free(d);
    }
    n->tail = &n->dirty;
}

struct sim_node *remus_node_take(struct sim_node *n)
{
    if (n)
        n->refs++;
    return n;
}

void remus_node_give(struct sim_node *n)
{
    if (!n || --n->refs)
        return;
    remus_node_drop_dirty(n);
    free(n->now);
    free(n->stable);
    free(n);
}

/* Let `*at` be `n`. */
void remus_node_point(struct sim_node **at, struct sim_node *n)
{
    remus_node_take(n);
    remus_node_give(*at);
    *at = n;
}

struct sim_dirty *remus_dirty_new(uint64_t offset, const void *data,
                                  size_t len)
{
    struct sim_dirty *d = malloc(sizeof *d + (data ? len : 0));
    if (!d)
        return NULL;
    *d = (struct sim_dirty){offset, len, NULL, data ? d->bytes : NULL};
    if (data)
        memcpy(d->bytes, data, len);
    return d;
}

void remus_node_add_dirty(struct sim_node *n, struct sim_dirty *d)
{
    *n->tail = d;
    n->tail = &d->next;
}

int remus_node_reserve(struct sim_node *n, size_t size)
{
    if (size <= n->cap)
        return 0;
    size_t cap = n->cap ? n->cap : 4096;
    while (cap < size)
        cap *= 2;
    unsigned char *now = calloc(1, cap), *stable = calloc(1, cap);
    if (!now || !stable) {
        free(now);
        free(stable);
        return -ENOMEM;
    }
    if (n->cap) {
        memcpy(now, n->now, n->cap);
        memcpy(stable, n->stable, n->cap);
    }
    free(n->now);
    free(n->stable);
    n->now = now;
    n->stable = stable;
    n->cap = cap;
    return 0;
}

/* `now` and `stable` may differ in this range. */
void remus_node_mark(struct sim_node *n, size_t from, size_t to)
{
    if (n->from == n->to) {
        n->from = from;
        n->to = to;
        return;
    }
    if (from < n->from)
        n->from = from;
    if (to > n->to)
        n->to = to;
}

/* Readers see what is stable, and nothing is dirty. */
void remus_node_revert(struct sim_node *n)
{
    remus_node_drop_dirty(n);
    if (n->to > n->from)
        memcpy(n->now + n->from, n->stable + n->from, n->to - n->from);
    n->from = n->to = 0;
    n->size = n->stable_size;
    n->forgotten = 0;
    n->mapped = 0;
}

/* Bytes that are zeroes from `size` on get those of a write there. */
static void put(unsigned char *bytes, size_t size, uint64_t offset,
                const void *data, size_t len)
{
    if (data)
        memcpy(bytes + offset, data, len);
    else if (offset < size)
        memset(bytes + offset, 0, len);
}

/* Bytes of a write (data NULL: zeroes) become durable. */
void remus_node_settle(struct sim_node *n, uint64_t offset, const void *data,
                       size_t len)
{
    put(n->stable, n->stable_size, offset, data, len);
    if (offset + len > n->stable_size)
        n->stable_size = (size_t)offset + len;
}

/* Every write of the list becomes durable. */
void remus_node_settle_all(struct sim_node *n)
{
    for (const struct sim_dirty *d = n->dirty; d; d = d->next)
        remus_node_settle(n, d->offset, d->data, d->len);
    if (n->mapped && !n->forgotten)
        memcpy(n->stable, n->now, n->size);
    remus_node_drop_dirty(n);
    if (!n->forgotten && !n->mapped)
        n->from = n->to = 0;
}

static int all_zeroes(const unsigned char *data, size_t len)
{
    return !data[0] && !memcmp(data, data + 1, len - 1);
}

/* A write of `len` bytes, or of zeroes (data NULL). */
int remus_node_write(struct sim_node *n, const void *data, size_t len,
                     uint64_t offset)
{
    if (offset > FILE_MAX || len > FILE_MAX - offset)
        return -EFBIG;
    if (!len)
        return 0;
    size_t end = (size_t)offset + len;
    if (n->mapped && end > n->size)
        return -EFBIG;
    if (data && all_zeroes(data, len))
        data = NULL;
    struct sim_dirty *d = remus_dirty_new(offset, data, len);
    if (!d || remus_node_reserve(n, end)) {
        free(d);
        return -ENOMEM;
    }
    n->writes++;
    put(n->now, n->size, offset, data, len);
    if (end > n->size)
        n->size = end;
    remus_node_mark(n, (size_t)offset, end);
    remus_node_add_dirty(n, d);
    return 0;
}

/* Forget the clean pages: readers see the medium and what is dirty. */
void remus_node_forget_clean(struct sim_node *n)
{
    if (!n->forgotten)
        return;
    memcpy(n->now + n->from, n->stable + n->from, n->to - n->from);
    n->size = n->stable_size;
    for (const struct sim_dirty *d = n->dirty; d; d = d->next) {
        put(n->now, n->size, d->offset, d->data, d->len);
        if (d->offset + d->len > n->size)
            n->size = (size_t)d->offset + d->len;
    }
}

/* ---- names (all with the lock held) --------------------------------- */

struct sim_name *remus_name_find(remus_sim *sim, const char *path, size_t len)
{
    for (struct sim_name *m = sim->names; m; m = m->next)
        if (!strncmp(m->path, path, len) && !m->path[len])
            return m;
    return NULL;
}

struct sim_node *remus_name_node(remus_sim *sim, const char *path)
{
    struct sim_name *m = remus_name_find(sim, path, strlen(path));
    return m ? m->now : NULL;
}

/* Bytes of the path's parent; 0: it has none that could be missing. */
static size_t parent_len(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) : 0;
}

/* Was the directory of `path` made, and is it not there? */
int remus_name_orphan(remus_sim *sim, const char *path)
{
    size_t len = parent_len(path);
    struct sim_name *m = len ? remus_name_find(sim, path, len) : NULL;
    return m && !m->now;
}

/* Give `path`, which has none, a new node. */
int remus_name_add(remus_sim *sim, const char *path, int is_dir,
                   struct sim_node **out)
{
    struct sim_name *m = remus_name_find(sim, path, strlen(path));
    if (!m) {
        m = calloc(1, sizeof *m);
        if (m)
            m->path = strdup(path);
        if (!m || !m->path) {
            free(m);
            return -ENOMEM;
        }
        m->next = sim->names;
        sim->names = m;
    }
    *out = remus_node_new(is_dir);
    if (!*out)
        return -ENOMEM;
    remus_node_point(&m->now, *out);
    return 0;
}

/* Is `path` directly in `dir`? */
int remus_name_is_in(const char *path, const char *dir)
{
    size_t n = strlen(dir);
    return parent_len(path) == n && !strncmp(path, dir, n);
}

void remus_names_free(remus_sim *sim)
{
    while (sim->names) {
        struct sim_name *m = sim->names;
        sim->names = m->next;
        remus_node_give(m->now);
        remus_node_give(m->stable);
        free(m->path);
        free(m);
    }
}

int remus_name_in_memory(const char *path)
{
    return !strcmp(path, "/run") || !strncmp(path, "/run/", 5);
}
