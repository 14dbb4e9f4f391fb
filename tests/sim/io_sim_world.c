/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Worlds of the simulated disk, made, copied and looked at by a test. */
#include "io_sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

int remus_sim_new(remus_sim **out)
{
    remus_sim *sim = calloc(1, sizeof *sim);
    *out = sim;
    if (!sim)
        return remus_fail(-ENOMEM, "simulated disk: out of memory");
    sim->io = remus_sim_table;
    pthread_mutex_init(&sim->lock, NULL);
    sim->stop_at = sim->fail_at = UINT64_MAX;
    sim->failed_op = "";
    sim->clock_ns = CLOCK_START;
    return 0;
}

void remus_sim_free(remus_sim *sim)
{
    if (!sim)
        return;
    remus_sim_end_process(sim);
    remus_names_free(sim);
    pthread_mutex_destroy(&sim->lock);
    free(sim);
}

static int copy_content(const struct sim_node *n, struct sim_node *copy)
{
    size_t size = n->size > n->stable_size ? n->size : n->stable_size;
    if (n->to > size)
        size = n->to;
    int err = remus_node_reserve(copy, size);
    if (err || !size)
        return err;
    memcpy(copy->now, n->now, size);
    memcpy(copy->stable, n->stable, size);
    for (const struct sim_dirty *d = n->dirty; d; d = d->next) {
        struct sim_dirty *twin = remus_dirty_new(d->offset, d->data, d->len);
        if (!twin)
            return -ENOMEM;
        remus_node_add_dirty(copy, twin);
    }
    copy->size = n->size;
    copy->stable_size = n->stable_size;
    copy->from = n->from;
    copy->to = n->to;
    copy->forgotten = n->forgotten;
    copy->mapped = n->mapped;
    copy->writes = n->writes;
    return 0;
}

/* Let `*at` be the copy of `n`, which is made at first sight. */
static int point_to_twin(struct sim_node **at, struct sim_node *n)
{
    if (!n)
        return 0;
    int err = 0;
    if (!n->twin) {
        n->twin = remus_node_new(n->is_dir);
        if (!n->twin)
            return -ENOMEM;
        err = copy_content(n, n->twin);
    }
    remus_node_point(at, n->twin);
    return err;
}

/* Copy the names and what they name (lock of `sim` held). */
static int copy_names(remus_sim *sim, remus_sim *copy)
{
    struct sim_name **tail = &copy->names;
    for (const struct sim_name *m = sim->names; m; m = m->next) {
        if (m->now)
            m->now->twin = NULL;
        if (m->stable)
            m->stable->twin = NULL;
    }
    for (const struct sim_name *m = sim->names; m; m = m->next) {
        struct sim_name *twin = calloc(1, sizeof *twin);
        if (!twin)
            return -ENOMEM;
        *tail = twin;
        tail = &twin->next;
        twin->path = strdup(m->path);
        int err = twin->path ? 0 : -ENOMEM;
        if (!err)
            err = point_to_twin(&twin->now, m->now);
        if (!err)
            err = point_to_twin(&twin->stable, m->stable);
        if (err)
            return err;
    }
    return 0;
}

int remus_sim_clone(remus_sim *sim, remus_sim **out)
{
    int err = remus_sim_new(out);
    if (err)
        return err;
    remus_sim *copy = *out;
    pthread_mutex_lock(&sim->lock);
    copy->life = sim->life == LIVES ? 0 : sim->life + 1;
    copy->boot = sim->boot;
    copy->ops = sim->ops;
    copy->clock_ns = sim->clock_ns;
    copy->random = sim->random;
    copy->drops_cache = sim->drops_cache;
    copy->interrupts = sim->interrupts;
    copy->chance = sim->chance;
    err = copy_names(sim, copy);
    pthread_mutex_unlock(&sim->lock);
    if (!err)
        return 0;
    remus_sim_free(copy);
    *out = NULL;
    return remus_fail(err, "clone of a simulated disk: out of memory");
}

remus_io *remus_sim_io(remus_sim *sim)
{
    return &sim->io;
}

uint64_t remus_sim_ops(remus_sim *sim)
{
    pthread_mutex_lock(&sim->lock);
    uint64_t ops = sim->ops;
    pthread_mutex_unlock(&sim->lock);
    return ops;
}

void remus_sim_stop_after(remus_sim *sim, uint64_t ops)
{
    pthread_mutex_lock(&sim->lock);
    sim->stop_at = ops > UINT64_MAX - sim->ops ? UINT64_MAX : sim->ops + ops;
    pthread_mutex_unlock(&sim->lock);
}

void remus_sim_fail_after(remus_sim *sim, uint64_t ops, int err)
{
    pthread_mutex_lock(&sim->lock);
    sim->fail_at = ops > UINT64_MAX - sim->ops ? UINT64_MAX : sim->ops + ops;
    sim->fail_err = err;
    sim->failed_op = "";
    sim->failed_path[0] = '\0';
    pthread_mutex_unlock(&sim->lock);
}

const char *remus_sim_failed_op(remus_sim *sim)
{
    pthread_mutex_lock(&sim->lock);
    const char *op = sim->failed_op;
    pthread_mutex_unlock(&sim->lock);
    return op;
}

const char *remus_sim_failed_path(remus_sim *sim)
{
    return sim->failed_path;
}

void remus_sim_drops_cache(remus_sim *sim, int on)
{
    pthread_mutex_lock(&sim->lock);
    sim->drops_cache = on;
    pthread_mutex_unlock(&sim->lock);
}

void remus_sim_interrupts(remus_sim *sim, int on)
{
    pthread_mutex_lock(&sim->lock);
    sim->interrupts = on;
    pthread_mutex_unlock(&sim->lock);
}

int remus_sim_create(remus_sim *sim, const char *path, uint64_t size)
{
    struct sim_node *n;
    pthread_mutex_lock(&sim->lock);
    int err = size > FILE_MAX              ? -EFBIG
              : remus_name_node(sim, path) ? -EEXIST
                                           : 0;
    if (!err)
        err = remus_name_add(sim, path, 0, &n);
    if (!err)
        err = remus_node_reserve(n, (size_t)size);
    if (!err) {
        n->size = n->stable_size = (size_t)size;
        struct sim_name *m = remus_name_find(sim, path, strlen(path));
        remus_node_point(&m->stable, n);
    }
    pthread_mutex_unlock(&sim->lock);
    return err ? remus_fail(err, "create %s of %llu bytes: %s", path,
                            (unsigned long long)size, remus_errno_text(err))
               : 0;
}

/* The file, if the range lies in it (lock held). */
static int look(remus_sim *sim, const char *path, size_t len, uint64_t offset,
                struct sim_node **n)
{
    *n = remus_name_node(sim, path);
    if (!*n || (*n)->is_dir)
        return remus_fail(-ENOENT, "no file %s", path);
    if (offset > (*n)->size || len > (*n)->size - offset)
        return remus_fail(-EINVAL, "%s has %zu bytes", path, (*n)->size);
    return 0;
}

int remus_sim_read(remus_sim *sim, const char *path, void *buf, size_t len,
                   uint64_t offset)
{
    struct sim_node *n;
    pthread_mutex_lock(&sim->lock);
    int err = look(sim, path, len, offset, &n);
    if (!err && len)
        memcpy(buf, n->now + offset, len);
    pthread_mutex_unlock(&sim->lock);
    return err;
}

int remus_sim_write(remus_sim *sim, const char *path, const void *buf,
                    size_t len, uint64_t offset)
{
    struct sim_node *n;
    pthread_mutex_lock(&sim->lock);
    int err = look(sim, path, len, offset, &n);
    if (!err)
        err = remus_node_write(n, buf, len, offset);
    pthread_mutex_unlock(&sim->lock);
    return err;
}

/* No older write may ever come out on top of a poke. */
static int patch_dirty(struct sim_node *n, const unsigned char *buf,
                       size_t len, uint64_t offset)
{
    for (struct sim_dirty *d = n->dirty; d; d = d->next) {
        uint64_t from = offset > d->offset ? offset : d->offset;
        uint64_t to = offset + len, d_end = d->offset + d->len;
        if (to > d_end)
            to = d_end;
        if (from >= to)
            continue;
        if (!d->data)
            d->data = calloc(1, d->len);
        if (!d->data)
            return -ENOMEM;
        memcpy(d->data + (from - d->offset), buf + (from - offset),
               (size_t)(to - from));
    }
    return 0;
}

int remus_sim_poke(remus_sim *sim, const char *path, const void *buf,
                   size_t len, uint64_t offset)
{
    struct sim_node *n;
    pthread_mutex_lock(&sim->lock);
    int err = look(sim, path, len, offset, &n);
    if (!err && len)
        err = patch_dirty(n, buf, len, offset);
    if (!err && len) {
        n->writes++;
        memcpy(n->now + offset, buf, len);
        remus_node_settle(n, offset, buf, len);
    }
    pthread_mutex_unlock(&sim->lock);
    return err;
}

int64_t remus_sim_file_size(remus_sim *sim, const char *path)
{
    pthread_mutex_lock(&sim->lock);
    const struct sim_node *n = remus_name_node(sim, path);
    int64_t size = n && !n->is_dir ? (int64_t)n->size : -ENOENT;
    pthread_mutex_unlock(&sim->lock);
    return size;
}
