/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A simulated disk under the I/O table: files and directories in memory.
 *
 * Contents.  A file has two: `now`, what a reader sees, and `stable`, what
 * survives a power loss.  The writes that tell them apart are a list, oldest
 * first.  A sync moves a file's writes into `stable`.  A sync that fails
 * makes nothing durable and forgets that the data was dirty, as Linux does: a
 * second sync answers 0 for data that is gone with the power, whatever kind
 * of loss that is.
 *
 * Names.  A name is made and removed at once for readers, durably only by a
 * sync of its directory; a sync of the file does not help.  A directory
 * that nobody made with mkdir is simply there.  One that was made is a name
 * like any other: if a power loss takes it, all that is in it goes too.
 *
 * Operations: open, pread, pwrite, zero, fdatasync, writeback, drop_cache,
 * map, lock, mkdir, unlink, sync_dir.  Each counts, advances the clock by
 * 1 us, and can be stopped or failed; one that is changes nothing, but for
 * the sync above.  close, size, stamp, memory_dir, unmap, next_data,
 * boot_id, mount_id, now_ns and random do not count and never fail that way.
 *
 * A mapped file shows its `now` itself: stores are no operations.  A power
 * loss treats each sector that differs from `stable` as a write of its own.
 * A mapped file does not grow.
 *
 * What lies below /run is in memory: a power loss takes it, synced or not.
 *
 * A handle holds the number of the process's life in it: after a crash or a
 * kill it is -EBADF for ever.
 */
#include "io_sim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

static remus_sim *sim_of(remus_io *io)
{
    return (remus_sim *)io;
}

/* splitmix64 */
uint64_t remus_sim_draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* The newest name of what a handle stands for (lock held). */
static const char *name_of(const remus_sim *sim, const struct sim_handle *h)
{
    for (const struct sim_name *m = sim->names; h && m; m = m->next)
        if (m->now == h->node)
            return m->path;
    return "";
}

/* Count an operation on `path`; 0 or the error that it meets (lock held). */
static int step(remus_sim *sim, const char *op, const char *path)
{
    if (sim->ops >= sim->stop_at)
        return -EIO;
    sim->clock_ns += CLOCK_STEP;
    if (sim->ops++ != sim->fail_at)
        return 0;
    sim->fail_at = UINT64_MAX;
    sim->failed_op = op;
    snprintf(sim->failed_path, sizeof sim->failed_path, "%s", path);
    return -sim->fail_err;
}

/*
 * With interrupts on: how many of `len` bytes a read or write moves, as the
 * system calls may; or -EINTR.
 */
static ssize_t part(remus_sim *sim, size_t len)
{
    if (!sim->interrupts || !len)
        return (ssize_t)len;
    uint64_t draw = remus_sim_draw(&sim->chance);
    if (draw % 4 == 0)
        return -EINTR;
    return (ssize_t)(draw % 2 ? 1 + (draw >> 8) % len : len);
}

/* The open file behind a number, or NULL (lock held). */
static struct sim_handle *handle_of(remus_sim *sim, int file)
{
    if (file < 0 || file / HANDLES != sim->life)
        return NULL;
    struct sim_handle *h = &sim->handles[file % HANDLES];
    return h->node ? h : NULL;
}

/*
 * Begin an operation on an open file: lock, count, look it up.  0, or the
 * error; *h is set whatever it is.  end() unlocks.
 */
static int begin(remus_sim *sim, const char *op, int file,
                 struct sim_handle **h)
{
    pthread_mutex_lock(&sim->lock);
    *h = handle_of(sim, file);
    int rc = step(sim, op, name_of(sim, *h));
    return rc || *h ? rc : -EBADF;
}

static void end(remus_sim *sim)
{
    pthread_mutex_unlock(&sim->lock);
}

static int new_handle(remus_sim *sim, struct sim_node *n, int flags)
{
    for (int i = 0; i < HANDLES; i++) {
        struct sim_handle *h = &sim->handles[i];
        if (h->node)
            continue;
        h->node = remus_node_take(n);
        h->writable = (flags & O_ACCMODE) != O_RDONLY;
        h->locks = 0;
        return sim->life * HANDLES + i;
    }
    return -EMFILE;
}

/* What a later sync of its directory is about (lock held). */
static const char *named(remus_sim *sim, const char *path)
{
    snprintf(sim->named, sizeof sim->named, "%s", path);
    return path;
}

static int open_held(remus_sim *sim, const char *path, int flags)
{
    int rc = step(sim, "open", named(sim, path));
    if (rc)
        return rc;
    struct sim_node *n = remus_name_node(sim, path);
    if (!n && (!(flags & O_CREAT) || remus_name_orphan(sim, path)))
        return -ENOENT;
    if (n && (flags & O_CREAT) && (flags & O_EXCL))
        return -EEXIST;
    if (n && n->is_dir)
        return -EISDIR;
    if (!n)
        rc = remus_name_add(sim, path, 0, &n);
    return rc ? rc : new_handle(sim, n, flags);
}

static int sim_open(remus_io *io, const char *path, int flags)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    int rc = open_held(sim, path, flags);
    end(sim);
    return rc;
}

void remus_sim_close(struct sim_handle *h)
{
    if (h->locks)
        h->node->locked = 0;
    remus_node_give(h->node);
    memset(h, 0, sizeof *h);
}

static int sim_close(remus_io *io, int file)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    struct sim_handle *h = handle_of(sim, file);
    if (h)
        remus_sim_close(h);
    end(sim);
    return h ? 0 : -EBADF;
}

static ssize_t sim_pread(remus_io *io, int file, void *buf, size_t len,
                         uint64_t offset)
{
    remus_sim *sim = sim_of(io);
    struct sim_handle *h;
    ssize_t rc = begin(sim, "pread", file, &h);
    if (!rc && offset < h->node->size) {
        size_t n = h->node->size - (size_t)offset;
        rc = part(sim, n < len ? n : len);
        if (rc > 0)
            memcpy(buf, h->node->now + offset, (size_t)rc);
    }
    end(sim);
    return rc;
}

static ssize_t sim_pwrite(remus_io *io, int file, const void *buf, size_t len,
                          uint64_t offset)
{
    remus_sim *sim = sim_of(io);
    struct sim_handle *h;
    ssize_t rc = begin(sim, "pwrite", file, &h);
    if (!rc && !h->writable)
        rc = -EBADF;
    ssize_t n = rc ? rc : part(sim, len);
    if (n > 0)
        rc = remus_node_write(h->node, buf, (size_t)n, offset);
    end(sim);
    return rc ? rc : n;
}

static int sim_zero(remus_io *io, int file, uint64_t offset, uint64_t len)
{
    remus_sim *sim = sim_of(io);
    struct sim_handle *h;
    int rc = begin(sim, "zero", file, &h);
    if (!rc && !h->writable)
        rc = -EBADF;
    if (!rc && offset < h->node->size) {
        uint64_t left = h->node->size - offset;
        rc = remus_node_write(h->node, NULL, (size_t)(len < left ? len : left),
                              offset);
    }
    end(sim);
    return rc;
}

static int sim_fdatasync(remus_io *io, int file)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    int stopped = sim->ops >= sim->stop_at;
    struct sim_handle *h = handle_of(sim, file);
    int rc = step(sim, "fdatasync", name_of(sim, h));
    if (!rc && !h) {
        rc = -EBADF;
    } else if (!rc) {
        remus_node_settle_all(h->node);
    } else if (h && !stopped && h->node->dirty) {
        /* It failed: what was dirty counts as clean and is nowhere. */
        remus_node_drop_dirty(h->node);
        h->node->forgotten = 1;
    }
    end(sim);
    return rc;
}

static int sim_writeback(remus_io *io, int file, uint64_t offset, uint64_t len)
{
    (void)offset;
    (void)len;
    remus_sim *sim = sim_of(io);
    struct sim_handle *h;
    int rc = begin(sim, "writeback", file, &h);
    end(sim);
    return rc;
}

static int sim_drop_cache(remus_io *io, int file)
{
    remus_sim *sim = sim_of(io);
    struct sim_handle *h;
    int rc = begin(sim, "drop_cache", file, &h);
    if (!rc && sim->drops_cache)
        remus_node_forget_clean(h->node);
    end(sim);
    return rc;
}

static int sim_size(remus_io *io, int file, uint64_t *size)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    struct sim_handle *h = handle_of(sim, file);
    if (h)
        *size = h->node->size;
    end(sim);
    return h ? 0 : -EBADF;
}

static int sim_stamp(remus_io *io, int file, uint64_t *stamp, uint32_t *ms)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    struct sim_handle *h = handle_of(sim, file);
    if (h)
        *stamp = h->node->writes + 1;
    *ms = 0;
    end(sim);
    return h ? 0 : -EBADF;
}

static int sim_lock(remus_io *io, int file)
{
    remus_sim *sim = sim_of(io);
    struct sim_handle *h;
    int rc = begin(sim, "lock", file, &h);
    if (!rc && h->node->locked && !h->locks)
        rc = -EWOULDBLOCK;
    if (!rc)
        h->node->locked = h->locks = 1;
    end(sim);
    return rc;
}

static int sim_mkdir(remus_io *io, const char *path)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    int rc = step(sim, "mkdir", named(sim, path));
    struct sim_node *n;
    if (!rc && remus_name_orphan(sim, path))
        rc = -ENOENT;
    if (!rc && !remus_name_node(sim, path))
        rc = remus_name_add(sim, path, 1, &n);
    end(sim);
    return rc;
}

static int sim_unlink(remus_io *io, const char *path)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    int rc = step(sim, "unlink", named(sim, path));
    struct sim_name *m = remus_name_find(sim, path, strlen(path));
    if (!rc && (!m || !m->now))
        rc = -ENOENT;
    if (!rc && m->now->is_dir)
        rc = -EISDIR;
    if (!rc)
        remus_node_point(&m->now, NULL);
    end(sim);
    return rc;
}

static int sim_sync_dir(remus_io *io, const char *path)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    int rc = step(sim, "sync_dir", sim->named);
    const struct sim_name *dir = remus_name_find(sim, path, strlen(path));
    if (!rc && dir && !dir->now)
        rc = -ENOENT;
    for (struct sim_name *m = sim->names; !rc && m; m = m->next)
        if (remus_name_is_in(m->path, path))
            remus_node_point(&m->stable, m->now);
    end(sim);
    return rc;
}

static int sim_memory_dir(remus_io *io, const char *path, int ours)
{
    (void)io;
    (void)ours;
    return remus_name_in_memory(path);
}

static int sim_map(remus_io *io, int file, size_t len, void **at)
{
    remus_sim *sim = sim_of(io);
    struct sim_handle *h;
    int rc = begin(sim, "map", file, &h);
    if (!rc && (!h->writable || len > h->node->size))
        rc = -EACCES;
    if (!rc) {
        h->node->mapped = 1;
        remus_node_mark(h->node, 0, h->node->size);
        *at = h->node->now;
    }
    end(sim);
    return rc;
}

static int sim_unmap(remus_io *io, void *at, size_t len)
{
    (void)io;
    (void)at;
    (void)len;
    return 0;
}

static int sim_next_data(remus_io *io, int file, uint64_t offset,
                         uint64_t *start, uint64_t *end_of)
{
    uint64_t size = 0;
    int err = sim_size(io, file, &size);
    *start = offset;
    *end_of = size;
    return err ? err : offset < size;
}

/* A crash changes it, a kill does not. */
static int sim_boot_id(remus_io *io, unsigned char id[REMUS_BOOT_ID])
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    uint32_t boot = sim->boot + 1; /* zeros are none */
    memset(id, 0, REMUS_BOOT_ID);
    memcpy(id, &boot, sizeof boot);
    end(sim);
    return 0;
}

static int sim_mount_id(remus_io *io, int file, uint64_t *id)
{
    (void)io;
    (void)file;
    *id = 0;
    return 0;
}

static uint64_t sim_now_ns(remus_io *io)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    uint64_t now = sim->clock_ns;
    end(sim);
    return now;
}

static uint64_t sim_real_s(remus_io *io)
{
    return 1700000000u + sim_now_ns(io) / 1000000000u;
}

/* The same in each run, but never twice in one: a crash does not reset it. */
static int sim_random(remus_io *io, void *buf, size_t len)
{
    remus_sim *sim = sim_of(io);
    unsigned char *p = buf;
    pthread_mutex_lock(&sim->lock);
    while (len--)
        *p++ = (unsigned char)remus_sim_draw(&sim->random);
    end(sim);
    return 0;
}

const remus_io remus_sim_table = {
    .open = sim_open,
    .close = sim_close,
    .pread = sim_pread,
    .pwrite = sim_pwrite,
    .zero = sim_zero,
    .fdatasync = sim_fdatasync,
    .writeback = sim_writeback,
    .drop_cache = sim_drop_cache,
    .size = sim_size,
    .stamp = sim_stamp,
    .lock = sim_lock,
    .claim = sim_lock,
    .mkdir = sim_mkdir,
    .unlink = sim_unlink,
    .sync_dir = sim_sync_dir,
    .memory_dir = sim_memory_dir,
    .map = sim_map,
    .unmap = sim_unmap,
    .next_data = sim_next_data,
    .boot_id = sim_boot_id,
    .mount_id = sim_mount_id,
    .now_ns = sim_now_ns,
    .boot_ns = sim_now_ns,
    .real_s = sim_real_s,
    .random = sim_random,
};
