/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A simulated disk under the I/O table.
 *
 * Each file has two contents: `now`, what a reader sees, and `stable`, what
 * survives a power loss; the writes in between are kept as a list.  A sync
 * moves a file's writes into `stable`.  A name is durable only once its
 * directory was synced.  A sync that fails makes nothing durable and forgets
 * that the data was dirty, as Linux does: a second sync answers 0 for data
 * that is gone.
 *
 * Operations that count and that stop and fail can hit: open, pread, pwrite,
 * zero, fdatasync, writeback, drop_cache, lock, mkdir, unlink, sync_dir.
 * close, size, now_ns and random do not count.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "remus_testing.h"

#define SECTOR 512u
#define HANDLES 512

/* A write that is not durable yet. */
struct dirty {
    uint64_t offset;
    size_t len;
    struct dirty *next;
    unsigned char data[];
};

struct sim_file {
    char *path;
    unsigned char *now;     /* what readers see */
    unsigned char *stable;  /* what survives */
    size_t size, stable_size;
    size_t cap;             /* of both buffers */
    struct dirty *dirty, **dirty_tail;
    int linked;             /* has a name now */
    int linked_stable;      /* has one after a power loss */
    int locked;
    struct sim_file *next;
};

struct remus_sim {
    remus_io io;            /* first: the table is the handle */
    pthread_mutex_t lock;   /* everything below */
    struct sim_file *files;
    struct sim_file *handles[HANDLES];
    int locks[HANDLES];     /* handle holds the file's lock */
    uint64_t ops;
    uint64_t stop_at;       /* ops from which all fail */
    uint64_t fail_at;       /* the op that fails once */
    int fail_err;
    uint64_t clock_ns;
    uint64_t random;
};

static remus_sim *sim_of(remus_io *io)
{
    return (remus_sim *)io;
}

/* splitmix64 */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Count an operation; 0 or the error that it meets (lock held). */
static int step(remus_sim *sim)
{
    sim->clock_ns += 1000;
    if (sim->ops >= sim->stop_at)
        return -EIO;
    uint64_t op = sim->ops++;
    if (op == sim->fail_at) {
        sim->fail_at = UINT64_MAX;
        return -sim->fail_err;
    }
    return 0;
}

static struct sim_file *find(remus_sim *sim, const char *path)
{
    for (struct sim_file *f = sim->files; f; f = f->next)
        if (f->linked && !strcmp(f->path, path))
            return f;
    return NULL;
}

static int reserve(struct sim_file *f, size_t size)
{
    if (size <= f->cap)
        return 0;
    size_t cap = f->cap ? f->cap : 4096;
    while (cap < size)
        cap *= 2;
    unsigned char *now = realloc(f->now, cap);
    if (!now)
        return -ENOMEM;
    f->now = now;
    unsigned char *stable = realloc(f->stable, cap);
    if (!stable)
        return -ENOMEM;
    f->stable = stable;
    memset(f->now + f->cap, 0, cap - f->cap);
    memset(f->stable + f->cap, 0, cap - f->cap);
    f->cap = cap;
    return 0;
}

static struct sim_file *create(remus_sim *sim, const char *path)
{
    struct sim_file *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->path = strdup(path);
    f->dirty_tail = &f->dirty;
    f->linked = 1;
    f->next = sim->files;
    sim->files = f;
    return f;
}

static void drop_dirty(struct sim_file *f)
{
    while (f->dirty) {
        struct dirty *d = f->dirty;
        f->dirty = d->next;
        free(d);
    }
    f->dirty_tail = &f->dirty;
}

/* ---- the table ------------------------------------------------------------- */

static int sim_open(remus_io *io, const char *path, int flags)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    int rc = step(sim);
    struct sim_file *f = rc ? NULL : find(sim, path);
    if (!rc && !f && (flags & O_CREAT)) {
        f = create(sim, path);
        rc = f ? 0 : -ENOMEM;
    } else if (!rc && !f) {
        rc = -ENOENT;
    } else if (!rc && (flags & O_EXCL) && (flags & O_CREAT)) {
        rc = -EEXIST;
    }
    if (!rc) {
        rc = -EMFILE;
        for (int i = 0; i < HANDLES; i++)
            if (!sim->handles[i]) {
                sim->handles[i] = f;
                sim->locks[i] = 0;
                rc = i;
                break;
            }
    }
    pthread_mutex_unlock(&sim->lock);
    return rc;
}

static struct sim_file *handle(remus_sim *sim, int file)
{
    return file >= 0 && file < HANDLES ? sim->handles[file] : NULL;
}

static int sim_close(remus_io *io, int file)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    struct sim_file *f = handle(sim, file);
    if (f && sim->locks[file])
        f->locked = 0;
    if (f)
        sim->handles[file] = NULL;
    pthread_mutex_unlock(&sim->lock);
    return f ? 0 : -EBADF;
}

static ssize_t sim_pread(remus_io *io, int file, void *buf, size_t len,
                         uint64_t offset)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    ssize_t rc = step(sim);
    struct sim_file *f = handle(sim, file);
    if (!rc && !f)
        rc = -EBADF;
    if (!rc && offset < f->size) {
        size_t n = f->size - (size_t)offset;
        if (n > len)
            n = len;
        memcpy(buf, f->now + offset, n);
        rc = (ssize_t)n;
    }
    pthread_mutex_unlock(&sim->lock);
    return rc;
}

/* A write of `len` bytes, or of zeroes (data NULL) (lock held). */
static int do_write(struct sim_file *f, const void *data, size_t len,
                    uint64_t offset)
{
    size_t end = (size_t)offset + len;
    struct dirty *d = malloc(sizeof *d + len);
    if (!d || reserve(f, end)) {
        free(d);
        return -ENOMEM;
    }
    d->offset = offset;
    d->len = len;
    d->next = NULL;
    if (data)
        memcpy(d->data, data, len);
    else
        memset(d->data, 0, len);
    memcpy(f->now + offset, d->data, len);
    if (end > f->size)
        f->size = end;
    *f->dirty_tail = d;
    f->dirty_tail = &d->next;
    return 0;
}

static ssize_t sim_pwrite(remus_io *io, int file, const void *buf, size_t len,
                          uint64_t offset)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    ssize_t rc = step(sim);
    struct sim_file *f = handle(sim, file);
    if (!rc && !f)
        rc = -EBADF;
    if (!rc)
        rc = do_write(f, buf, len, offset);
    pthread_mutex_unlock(&sim->lock);
    return rc ? rc : (ssize_t)len;
}

static int sim_zero(remus_io *io, int file, uint64_t offset, uint64_t len)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    int rc = step(sim);
    struct sim_file *f = handle(sim, file);
    if (!rc && !f)
        rc = -EBADF;
    if (!rc && offset < f->size) {
        uint64_t left = f->size - offset;
        rc = do_write(f, NULL, (size_t)(len < left ? len : left), offset);
    }
    pthread_mutex_unlock(&sim->lock);
    return rc;
}

/* One write becomes durable (lock held). */
static void settle(struct sim_file *f, uint64_t offset, const void *data,
                   size_t len)
{
    memcpy(f->stable + offset, data, len);
    if (offset + len > f->stable_size)
        f->stable_size = (size_t)offset + len;
}

static int sim_fdatasync(remus_io *io, int file)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    int stopped = sim->ops >= sim->stop_at;
    int rc = step(sim);
    struct sim_file *f = handle(sim, file);
    if (!rc && !f)
        rc = -EBADF;
    if (!rc)
        for (struct dirty *d = f->dirty; d; d = d->next)
            settle(f, d->offset, d->data, d->len);
    if (f && !stopped)
        drop_dirty(f);
    pthread_mutex_unlock(&sim->lock);
    return rc;
}

/* An operation that changes nothing. */
static int hint(remus_io *io, int file)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    int rc = step(sim);
    if (!rc && !handle(sim, file))
        rc = -EBADF;
    pthread_mutex_unlock(&sim->lock);
    return rc;
}

static int sim_writeback(remus_io *io, int file, uint64_t offset,
                         uint64_t len)
{
    (void)offset;
    (void)len;
    return hint(io, file);
}

static int sim_size(remus_io *io, int file, uint64_t *size)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    struct sim_file *f = handle(sim, file);
    if (f)
        *size = f->size;
    pthread_mutex_unlock(&sim->lock);
    return f ? 0 : -EBADF;
}

static int sim_lock(remus_io *io, int file)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    int rc = step(sim);
    struct sim_file *f = handle(sim, file);
    if (!rc && !f)
        rc = -EBADF;
    if (!rc && f->locked && !sim->locks[file])
        rc = -EWOULDBLOCK;
    if (!rc)
        f->locked = sim->locks[file] = 1;
    pthread_mutex_unlock(&sim->lock);
    return rc;
}

static int sim_mkdir(remus_io *io, const char *path)
{
    /* Directories are where files are; all that counts is the operation. */
    (void)path;
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    int rc = step(sim);
    pthread_mutex_unlock(&sim->lock);
    return rc;
}

static int sim_unlink(remus_io *io, const char *path)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    int rc = step(sim);
    struct sim_file *f = rc ? NULL : find(sim, path);
    if (!rc && !f)
        rc = -ENOENT;
    if (!rc)
        f->linked = 0;
    pthread_mutex_unlock(&sim->lock);
    return rc;
}

/* Is `path` directly in `dir`? */
static int is_in(const char *path, const char *dir)
{
    size_t n = strlen(dir);
    return !strncmp(path, dir, n) && path[n] == '/' &&
           !strchr(path + n + 1, '/');
}

static int sim_sync_dir(remus_io *io, const char *path)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    int rc = step(sim);
    for (struct sim_file *f = sim->files; !rc && f; f = f->next)
        if (is_in(f->path, path))
            f->linked_stable = f->linked;
    pthread_mutex_unlock(&sim->lock);
    return rc;
}

static uint64_t sim_now_ns(remus_io *io)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    uint64_t now = sim->clock_ns;
    pthread_mutex_unlock(&sim->lock);
    return now;
}

static int sim_random(remus_io *io, void *buf, size_t len)
{
    remus_sim *sim = sim_of(io);
    unsigned char *p = buf;
    pthread_mutex_lock(&sim->lock);
    while (len--)
        *p++ = (unsigned char)next_random(&sim->random);
    pthread_mutex_unlock(&sim->lock);
    return 0;
}

/* ---- power loss ---------------------------------------------------------------- */

static void tear(struct sim_file *f, uint64_t *seed)
{
    for (struct dirty *d = f->dirty; d; d = d->next) {
        uint64_t at = d->offset, end = d->offset + d->len;
        while (at < end) {
            uint64_t stop = at / SECTOR * SECTOR + SECTOR;
            if (stop > end)
                stop = end;
            if (next_random(seed) & 1)
                settle(f, at, d->data + (at - d->offset),
                       (size_t)(stop - at));
            at = stop;
        }
    }
}

/* Each write is kept or lost; the kept ones land in a random order. */
static void reorder(struct sim_file *f, uint64_t *seed)
{
    size_t n = 0;
    for (struct dirty *d = f->dirty; d; d = d->next)
        n++;
    struct dirty **all = malloc((n + 1) * sizeof(*all));
    if (!all)
        return;
    n = 0;
    for (struct dirty *d = f->dirty; d; d = d->next)
        if (next_random(seed) & 1)
            all[n++] = d;
    while (n) {
        size_t i = (size_t)(next_random(seed) % n);
        settle(f, all[i]->offset, all[i]->data, all[i]->len);
        all[i] = all[--n];
    }
    free(all);
}

static void lose(struct sim_file *f, int loss, uint64_t *seed)
{
    if (loss == REMUS_SIM_KEEP)
        for (struct dirty *d = f->dirty; d; d = d->next)
            settle(f, d->offset, d->data, d->len);
    else if (loss == REMUS_SIM_TEAR)
        tear(f, seed);
    else if (loss == REMUS_SIM_REORDER)
        reorder(f, seed);
    drop_dirty(f);
    if (f->linked != f->linked_stable &&
        (loss == REMUS_SIM_LOSE ||
         (loss != REMUS_SIM_KEEP && (next_random(seed) & 1))))
        f->linked = f->linked_stable;
    f->linked_stable = f->linked;
    f->size = f->stable_size;
    if (f->cap) {
        memset(f->stable + f->stable_size, 0, f->cap - f->stable_size);
        memcpy(f->now, f->stable, f->cap);
    }
}

static void end_of_process(remus_sim *sim)
{
    memset(sim->handles, 0, sizeof sim->handles);
    memset(sim->locks, 0, sizeof sim->locks);
    for (struct sim_file *f = sim->files; f; f = f->next)
        f->locked = 0;
    sim->stop_at = UINT64_MAX;
    sim->fail_at = UINT64_MAX;
}

void remus_sim_crash(remus_sim *sim, int loss, uint64_t seed)
{
    pthread_mutex_lock(&sim->lock);
    for (struct sim_file *f = sim->files; f; f = f->next)
        lose(f, loss, &seed);
    end_of_process(sim);
    pthread_mutex_unlock(&sim->lock);
}

void remus_sim_kill(remus_sim *sim)
{
    pthread_mutex_lock(&sim->lock);
    end_of_process(sim);
    pthread_mutex_unlock(&sim->lock);
}

/* ---- from outside ---------------------------------------------------------------- */

static const remus_io table = {
    .open = sim_open,
    .close = sim_close,
    .pread = sim_pread,
    .pwrite = sim_pwrite,
    .zero = sim_zero,
    .fdatasync = sim_fdatasync,
    .writeback = sim_writeback,
    .drop_cache = hint,
    .size = sim_size,
    .lock = sim_lock,
    .mkdir = sim_mkdir,
    .unlink = sim_unlink,
    .sync_dir = sim_sync_dir,
    .now_ns = sim_now_ns,
    .random = sim_random,
};

int remus_sim_new(remus_sim **out)
{
    remus_sim *sim = calloc(1, sizeof *sim);
    *out = sim;
    if (!sim)
        return remus_fail(-ENOMEM, "out of memory");
    sim->io = table;
    pthread_mutex_init(&sim->lock, NULL);
    sim->stop_at = sim->fail_at = UINT64_MAX;
    sim->clock_ns = 1000000000u;
    return 0;
}

static void free_file(struct sim_file *f)
{
    drop_dirty(f);
    free(f->path);
    free(f->now);
    free(f->stable);
    free(f);
}

void remus_sim_free(remus_sim *sim)
{
    if (!sim)
        return;
    while (sim->files) {
        struct sim_file *f = sim->files;
        sim->files = f->next;
        free_file(f);
    }
    pthread_mutex_destroy(&sim->lock);
    free(sim);
}

static struct sim_file *clone_file(const struct sim_file *f)
{
    struct sim_file *copy = calloc(1, sizeof *copy);
    if (!copy)
        return NULL;
    copy->path = strdup(f->path);
    copy->dirty_tail = &copy->dirty;
    if (!copy->path || (f->cap && reserve(copy, f->cap))) {
        free_file(copy);
        return NULL;
    }
    if (f->cap) {
        memcpy(copy->now, f->now, f->cap);
        memcpy(copy->stable, f->stable, f->cap);
    }
    copy->size = f->size;
    copy->stable_size = f->stable_size;
    copy->linked = f->linked;
    copy->linked_stable = f->linked_stable;
    for (const struct dirty *d = f->dirty; d; d = d->next) {
        struct dirty *twin = malloc(sizeof *twin + d->len);
        if (!twin) {
            free_file(copy);
            return NULL;
        }
        memcpy(twin, d, sizeof *twin + d->len);
        twin->next = NULL;
        *copy->dirty_tail = twin;
        copy->dirty_tail = &twin->next;
    }
    return copy;
}

int remus_sim_clone(remus_sim *sim, remus_sim **out)
{
    int err = remus_sim_new(out);
    if (err)
        return err;
    pthread_mutex_lock(&sim->lock);
    (*out)->ops = sim->ops;
    (*out)->clock_ns = sim->clock_ns;
    (*out)->random = sim->random;
    for (const struct sim_file *f = sim->files; f; f = f->next) {
        struct sim_file *copy = clone_file(f);
        if (!copy) {
            err = remus_fail(-ENOMEM, "clone of %s: out of memory", f->path);
            break;
        }
        copy->next = (*out)->files;
        (*out)->files = copy;
    }
    pthread_mutex_unlock(&sim->lock);
    if (err) {
        remus_sim_free(*out);
        *out = NULL;
    }
    return err;
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
    sim->stop_at = ops == UINT64_MAX ? ops : sim->ops + ops;
    pthread_mutex_unlock(&sim->lock);
}

void remus_sim_fail_after(remus_sim *sim, uint64_t ops, int err)
{
    pthread_mutex_lock(&sim->lock);
    sim->fail_at = sim->ops + ops;
    sim->fail_err = err;
    pthread_mutex_unlock(&sim->lock);
}

int remus_sim_create(remus_sim *sim, const char *path, uint64_t size)
{
    pthread_mutex_lock(&sim->lock);
    struct sim_file *f = create(sim, path);
    int err = f ? reserve(f, (size_t)size) : -ENOMEM;
    if (!err) {
        f->size = f->stable_size = (size_t)size;
        f->linked_stable = 1;
    }
    pthread_mutex_unlock(&sim->lock);
    return err ? remus_fail(err, "create %s: out of memory", path) : 0;
}

/* The file and a check of the range (lock held). */
static int look(remus_sim *sim, const char *path, size_t len, uint64_t offset,
                struct sim_file **f)
{
    *f = find(sim, path);
    if (!*f)
        return remus_fail(-ENOENT, "no file %s", path);
    if (offset > (*f)->size || len > (*f)->size - offset)
        return remus_fail(-EINVAL, "%s has %zu bytes", path, (*f)->size);
    return 0;
}

int remus_sim_read(remus_sim *sim, const char *path, void *buf, size_t len,
                   uint64_t offset)
{
    struct sim_file *f;
    pthread_mutex_lock(&sim->lock);
    int err = look(sim, path, len, offset, &f);
    if (!err)
        memcpy(buf, f->now + offset, len);
    pthread_mutex_unlock(&sim->lock);
    return err;
}

int remus_sim_poke(remus_sim *sim, const char *path, const void *buf,
                   size_t len, uint64_t offset)
{
    struct sim_file *f;
    pthread_mutex_lock(&sim->lock);
    int err = look(sim, path, len, offset, &f);
    if (!err) {
        memcpy(f->now + offset, buf, len);
        memcpy(f->stable + offset, buf, len);
    }
    pthread_mutex_unlock(&sim->lock);
    return err;
}

int64_t remus_sim_file_size(remus_sim *sim, const char *path)
{
    pthread_mutex_lock(&sim->lock);
    const struct sim_file *f = find(sim, path);
    int64_t size = f ? (int64_t)f->size : -ENOENT;
    pthread_mutex_unlock(&sim->lock);
    return size;
}
