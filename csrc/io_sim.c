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
 * the sync above.  close, size, stamp, unmap, next_data, boot_id, mount_id, now_ns
 * and random do not count and never fail that way.
 *
 * A mapped file shows its `now` itself: stores are no operations.  A power
 * loss treats each sector that differs from `stable` as a write of its own.
 * A mapped file does not grow.
 *
 * A handle holds the number of the process's life in it: after a crash or a
 * kill it is -EBADF for ever.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "remus_testing.h"

#define SECTOR 512u             /* the unit that is torn and reordered */
#define HANDLES 512             /* open files at once */
#define LIVES 0x3fffff          /* of processes, before numbers come again */
#define FILE_MAX ((uint64_t)1 << 30) /* bytes of a file */
#define CLOCK_START 1000000000u /* 1 s */
#define CLOCK_STEP 1000u        /* 1 us */

/* A write that is not durable yet. */
struct dirty {
    uint64_t offset;      /* bytes */
    size_t len;           /* bytes, > 0 */
    struct dirty *next;   /* the next younger one */
    unsigned char data[];
};

/* A file or a directory, whatever its name. */
struct node {
    unsigned char *now;    /* what readers see; zeroes from `size` on */
    unsigned char *stable; /* what survives; zeroes from `stable_size` on */
    size_t size;           /* bytes of `now` that count */
    size_t stable_size;    /* bytes of `stable` that count */
    size_t cap;            /* bytes of each buffer */
    size_t from, to;       /* `now` and `stable` are equal outside of this */
    struct dirty *dirty;   /* oldest first */
    struct dirty **tail;   /* where the next one goes */
    int forgotten;         /* a sync failed: dirty does not tell all */
    int is_dir;
    int mapped;            /* `now` may differ without an entry in dirty */
    int locked;
    unsigned int refs;     /* names (each of the two) and handles */
    struct node *twin;     /* while cloning: its copy */
};

/* A path that has, had, or after a power loss may have a node. */
struct name {
    char *path;
    struct node *now;      /* NULL: there is none now */
    struct node *stable;   /* NULL: none after a power loss */
    struct name *next;
};

struct handle {
    struct node *node;     /* NULL: not open */
    int writable;
    int locks;             /* holds the node's lock */
};

struct remus_sim {
    remus_io io;           /* first: the table is the handle; constant */
    pthread_mutex_t lock;  /* guards everything below */
    struct name *names;
    struct handle handles[HANDLES];
    int life;              /* crashes and kills so far, at most LIVES */
    uint64_t ops;          /* operations carried out */
    uint64_t stop_at;      /* `ops` at which all begin to fail */
    uint64_t fail_at;      /* the operation that fails once */
    int fail_err;          /* with this errno, > 0 */
    const char *failed_op; /* what that one was; "": none yet */
    int drops_cache;       /* drop_cache takes effect */
    uint32_t boot;         /* crashes so far */
    uint64_t clock_ns;
    uint64_t random;       /* state of the generator */
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

static int coin(uint64_t *state)
{
    return (int)(next_random(state) >> 63);
}

/* ---- nodes (all with the lock held) --------------------------------- */

static struct node *node_new(int is_dir)
{
    struct node *n = calloc(1, sizeof *n);
    if (!n)
        return NULL;
    n->tail = &n->dirty;
    n->is_dir = is_dir;
    return n;
}

static void drop_dirty(struct node *n)
{
    while (n->dirty) {
        struct dirty *d = n->dirty;
        n->dirty = d->next;
        free(d);
    }
    n->tail = &n->dirty;
}

static struct node *take(struct node *n)
{
    if (n)
        n->refs++;
    return n;
}

static void give(struct node *n)
{
    if (!n || --n->refs)
        return;
    drop_dirty(n);
    free(n->now);
    free(n->stable);
    free(n);
}

/* Let `*at` be `n`. */
static void point(struct node **at, struct node *n)
{
    take(n);
    give(*at);
    *at = n;
}

static int reserve(struct node *n, size_t size)
{
    if (size <= n->cap)
        return 0;
    size_t cap = n->cap ? n->cap : 4096;
    while (cap < size)
        cap *= 2;
    unsigned char *now = realloc(n->now, cap);
    if (!now)
        return -ENOMEM;
    n->now = now;
    unsigned char *stable = realloc(n->stable, cap);
    if (!stable)
        return -ENOMEM;
    n->stable = stable;
    memset(n->now + n->cap, 0, cap - n->cap);
    memset(n->stable + n->cap, 0, cap - n->cap);
    n->cap = cap;
    return 0;
}

/* `now` and `stable` may differ in this range. */
static void mark(struct node *n, size_t from, size_t to)
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
static void revert(struct node *n)
{
    drop_dirty(n);
    if (n->to > n->from)
        memcpy(n->now + n->from, n->stable + n->from, n->to - n->from);
    n->from = n->to = 0;
    n->size = n->stable_size;
    n->forgotten = 0;
    n->mapped = 0;
}

/* Bytes of a write become durable. */
static void settle(struct node *n, uint64_t offset, const void *data,
                   size_t len)
{
    memcpy(n->stable + offset, data, len);
    if (offset + len > n->stable_size)
        n->stable_size = (size_t)offset + len;
}

/* Every write of the list becomes durable. */
static void settle_all(struct node *n)
{
    for (const struct dirty *d = n->dirty; d; d = d->next)
        settle(n, d->offset, d->data, d->len);
    if (n->mapped && !n->forgotten)
        memcpy(n->stable, n->now, n->size);
    drop_dirty(n);
    if (!n->forgotten && !n->mapped)
        n->from = n->to = 0;
}

/* A write of `len` bytes, or of zeroes (data NULL). */
static int write_node(struct node *n, const void *data, size_t len,
                      uint64_t offset)
{
    if (offset > FILE_MAX || len > FILE_MAX - offset)
        return -EFBIG;
    if (!len)
        return 0;
    size_t end = (size_t)offset + len;
    if (n->mapped && end > n->size)
        return -EFBIG;
    struct dirty *d = malloc(sizeof *d + len);
    if (!d || reserve(n, end)) {
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
    memcpy(n->now + offset, d->data, len);
    if (end > n->size)
        n->size = end;
    mark(n, (size_t)offset, end);
    *n->tail = d;
    n->tail = &d->next;
    return 0;
}

/* Forget the clean pages: readers see the medium and what is dirty. */
static void forget_clean(struct node *n)
{
    if (!n->forgotten)
        return;
    memcpy(n->now + n->from, n->stable + n->from, n->to - n->from);
    n->size = n->stable_size;
    for (const struct dirty *d = n->dirty; d; d = d->next) {
        memcpy(n->now + d->offset, d->data, d->len);
        if (d->offset + d->len > n->size)
            n->size = (size_t)d->offset + d->len;
    }
}

/* ---- names (all with the lock held) --------------------------------- */

static struct name *find_name(remus_sim *sim, const char *path, size_t len)
{
    for (struct name *m = sim->names; m; m = m->next)
        if (!strncmp(m->path, path, len) && !m->path[len])
            return m;
    return NULL;
}

static struct node *find(remus_sim *sim, const char *path)
{
    struct name *m = find_name(sim, path, strlen(path));
    return m ? m->now : NULL;
}

/* Bytes of the path's parent; 0: it has none that could be missing. */
static size_t parent_len(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) : 0;
}

/* Was the directory of `path` made, and is it not there? */
static int parent_missing(remus_sim *sim, const char *path)
{
    size_t len = parent_len(path);
    struct name *m = len ? find_name(sim, path, len) : NULL;
    return m && !m->now;
}

/* Give `path`, which has none, a new node. */
static int add_node(remus_sim *sim, const char *path, int is_dir,
                    struct node **out)
{
    struct name *m = find_name(sim, path, strlen(path));
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
    *out = node_new(is_dir);
    if (!*out)
        return -ENOMEM;
    point(&m->now, *out);
    return 0;
}

/* Is `path` directly in `dir`? */
static int is_in(const char *path, const char *dir)
{
    size_t n = strlen(dir);
    return parent_len(path) == n && !strncmp(path, dir, n);
}

static void free_names(remus_sim *sim)
{
    while (sim->names) {
        struct name *m = sim->names;
        sim->names = m->next;
        give(m->now);
        give(m->stable);
        free(m->path);
        free(m);
    }
}

/* ---- the table ------------------------------------------------------ */

/* Count an operation; 0 or the error that it meets (lock held). */
static int step(remus_sim *sim, const char *op)
{
    if (sim->ops >= sim->stop_at)
        return -EIO;
    sim->clock_ns += CLOCK_STEP;
    if (sim->ops++ != sim->fail_at)
        return 0;
    sim->fail_at = UINT64_MAX;
    sim->failed_op = op;
    return -sim->fail_err;
}

/* The open file behind a number, or NULL (lock held). */
static struct handle *handle_of(remus_sim *sim, int file)
{
    if (file < 0 || file / HANDLES != sim->life)
        return NULL;
    struct handle *h = &sim->handles[file % HANDLES];
    return h->node ? h : NULL;
}

/*
 * Begin an operation on an open file: lock, count, look it up.  0, or the
 * error; *h is set whatever it is.  end() unlocks.
 */
static int begin(remus_sim *sim, const char *op, int file, struct handle **h)
{
    pthread_mutex_lock(&sim->lock);
    int rc = step(sim, op);
    *h = handle_of(sim, file);
    return rc || *h ? rc : -EBADF;
}

static void end(remus_sim *sim)
{
    pthread_mutex_unlock(&sim->lock);
}

static int new_handle(remus_sim *sim, struct node *n, int flags)
{
    for (int i = 0; i < HANDLES; i++) {
        struct handle *h = &sim->handles[i];
        if (h->node)
            continue;
        h->node = take(n);
        h->writable = (flags & O_ACCMODE) != O_RDONLY;
        h->locks = 0;
        return sim->life * HANDLES + i;
    }
    return -EMFILE;
}

static int open_held(remus_sim *sim, const char *path, int flags)
{
    int rc = step(sim, "open");
    if (rc)
        return rc;
    struct node *n = find(sim, path);
    if (!n && (!(flags & O_CREAT) || parent_missing(sim, path)))
        return -ENOENT;
    if (n && (flags & O_CREAT) && (flags & O_EXCL))
        return -EEXIST;
    if (n && n->is_dir)
        return -EISDIR;
    if (!n)
        rc = add_node(sim, path, 0, &n);
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

static void close_handle(struct handle *h)
{
    if (h->locks)
        h->node->locked = 0;
    give(h->node);
    memset(h, 0, sizeof *h);
}

static int sim_close(remus_io *io, int file)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    struct handle *h = handle_of(sim, file);
    if (h)
        close_handle(h);
    end(sim);
    return h ? 0 : -EBADF;
}

static ssize_t sim_pread(remus_io *io, int file, void *buf, size_t len,
                         uint64_t offset)
{
    remus_sim *sim = sim_of(io);
    struct handle *h;
    ssize_t rc = begin(sim, "pread", file, &h);
    if (!rc && offset < h->node->size) {
        size_t n = h->node->size - (size_t)offset;
        if (n > len)
            n = len;
        memcpy(buf, h->node->now + offset, n);
        rc = (ssize_t)n;
    }
    end(sim);
    return rc;
}

static ssize_t sim_pwrite(remus_io *io, int file, const void *buf, size_t len,
                          uint64_t offset)
{
    remus_sim *sim = sim_of(io);
    struct handle *h;
    ssize_t rc = begin(sim, "pwrite", file, &h);
    if (!rc)
        rc = h->writable ? write_node(h->node, buf, len, offset) : -EBADF;
    end(sim);
    return rc ? rc : (ssize_t)len;
}

static int sim_zero(remus_io *io, int file, uint64_t offset, uint64_t len)
{
    remus_sim *sim = sim_of(io);
    struct handle *h;
    int rc = begin(sim, "zero", file, &h);
    if (!rc && !h->writable)
        rc = -EBADF;
    if (!rc && offset < h->node->size) {
        uint64_t left = h->node->size - offset;
        rc = write_node(h->node, NULL, (size_t)(len < left ? len : left),
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
    int rc = step(sim, "fdatasync");
    struct handle *h = handle_of(sim, file);
    if (!rc && !h) {
        rc = -EBADF;
    } else if (!rc) {
        settle_all(h->node);
    } else if (h && !stopped && h->node->dirty) {
        /* It failed: what was dirty counts as clean and is nowhere. */
        drop_dirty(h->node);
        h->node->forgotten = 1;
    }
    end(sim);
    return rc;
}

static int sim_writeback(remus_io *io, int file, uint64_t offset,
                         uint64_t len)
{
    (void)offset;
    (void)len;
    remus_sim *sim = sim_of(io);
    struct handle *h;
    int rc = begin(sim, "writeback", file, &h);
    end(sim);
    return rc;
}

static int sim_drop_cache(remus_io *io, int file)
{
    remus_sim *sim = sim_of(io);
    struct handle *h;
    int rc = begin(sim, "drop_cache", file, &h);
    if (!rc && sim->drops_cache)
        forget_clean(h->node);
    end(sim);
    return rc;
}

static int sim_size(remus_io *io, int file, uint64_t *size)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    struct handle *h = handle_of(sim, file);
    if (h)
        *size = h->node->size;
    end(sim);
    return h ? 0 : -EBADF;
}

static int sim_stamp(remus_io *io, int file, uint64_t *stamp)
{
    (void)io;
    (void)file;
    *stamp = 0;
    return 0;
}

static int sim_lock(remus_io *io, int file)
{
    remus_sim *sim = sim_of(io);
    struct handle *h;
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
    int rc = step(sim, "mkdir");
    struct node *n;
    if (!rc && parent_missing(sim, path))
        rc = -ENOENT;
    if (!rc && !find(sim, path))
        rc = add_node(sim, path, 1, &n);
    end(sim);
    return rc;
}

static int sim_unlink(remus_io *io, const char *path)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    int rc = step(sim, "unlink");
    struct name *m = find_name(sim, path, strlen(path));
    if (!rc && (!m || !m->now))
        rc = -ENOENT;
    if (!rc && m->now->is_dir)
        rc = -EISDIR;
    if (!rc)
        point(&m->now, NULL);
    end(sim);
    return rc;
}

static int sim_sync_dir(remus_io *io, const char *path)
{
    remus_sim *sim = sim_of(io);
    pthread_mutex_lock(&sim->lock);
    int rc = step(sim, "sync_dir");
    const struct name *dir = find_name(sim, path, strlen(path));
    if (!rc && dir && !dir->now)
        rc = -ENOENT;
    for (struct name *m = sim->names; !rc && m; m = m->next)
        if (is_in(m->path, path))
            point(&m->stable, m->now);
    end(sim);
    return rc;
}

static int sim_map(remus_io *io, int file, size_t len, void **at)
{
    remus_sim *sim = sim_of(io);
    struct handle *h;
    int rc = begin(sim, "map", file, &h);
    if (!rc && (!h->writable || len > h->node->size))
        rc = -EACCES;
    if (!rc) {
        h->node->mapped = 1;
        mark(h->node, 0, h->node->size);
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
    memset(id, 0, REMUS_BOOT_ID);
    memcpy(id, &sim->boot, sizeof sim->boot);
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
    return sim_now_ns(io) / 1000000000u;
}

/* The same in each run, but never twice in one: a crash does not reset it. */
static int sim_random(remus_io *io, void *buf, size_t len)
{
    remus_sim *sim = sim_of(io);
    unsigned char *p = buf;
    pthread_mutex_lock(&sim->lock);
    while (len--)
        *p++ = (unsigned char)next_random(&sim->random);
    end(sim);
    return 0;
}

static const remus_io table = {
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
    .mkdir = sim_mkdir,
    .unlink = sim_unlink,
    .sync_dir = sim_sync_dir,
    .map = sim_map,
    .unmap = sim_unmap,
    .next_data = sim_next_data,
    .boot_id = sim_boot_id,
    .mount_id = sim_mount_id,
    .now_ns = sim_now_ns,
    .real_s = sim_real_s,
    .random = sim_random,
};

/* ---- power loss ----------------------------------------------------- */

/* The part of one write that lies in one sector. */
struct piece {
    uint64_t sector;
    const struct dirty *write;
    size_t age; /* place of the write in the list */
};

static int by_sector(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    if (x->sector != y->sector)
        return x->sector < y->sector ? -1 : 1;
    return x->age < y->age ? -1 : x->age > y->age;
}

static void settle_piece(struct node *n, const struct piece *p)
{
    const struct dirty *d = p->write;
    uint64_t from = p->sector * SECTOR, to = from + SECTOR;
    if (from < d->offset)
        from = d->offset;
    if (to > d->offset + d->len)
        to = d->offset + d->len;
    settle(n, from, d->data + (from - d->offset), (size_t)(to - from));
}

static void shuffle(struct piece *p, size_t n, uint64_t *seed)
{
    for (; n > 1; n--) {
        size_t i = (size_t)(next_random(seed) % n);
        struct piece last = p[n - 1];
        p[n - 1] = p[i];
        p[i] = last;
    }
}

static uint64_t sectors(const struct dirty *d)
{
    return (d->offset + d->len - 1) / SECTOR - d->offset / SECTOR + 1;
}

/*
 * Each sector on its own: by chance it gets some of the writes that touch
 * it; in their order, or (mixed) in any.  Without memory all are lost.
 */
static void settle_some(struct node *n, int mixed, uint64_t *seed)
{
    size_t count = 0, age = 0, used = 0;
    for (const struct dirty *d = n->dirty; d; d = d->next)
        count += (size_t)sectors(d);
    struct piece *all = count ? malloc(count * sizeof *all) : NULL;
    if (!all)
        return;
    for (const struct dirty *d = n->dirty; d; d = d->next, age++)
        for (uint64_t i = 0; i < sectors(d); i++)
            all[used++] = (struct piece){d->offset / SECTOR + i, d, age};
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
static void settle_mapped(struct node *n, uint64_t *seed)
{
    for (size_t at = 0; at < n->size; at += SECTOR) {
        size_t len = n->size - at < SECTOR ? n->size - at : SECTOR;
        if (memcmp(n->now + at, n->stable + at, len) && coin(seed))
            memcpy(n->stable + at, n->now + at, len);
    }
}

/* What a file is after the power was lost. */
static void lose_content(struct node *n, int loss, uint64_t *seed)
{
    if (!n)
        return;
    if (n->mapped && loss != REMUS_SIM_KEEP && loss != REMUS_SIM_LOSE)
        settle_mapped(n, seed);
    if (loss == REMUS_SIM_KEEP)
        settle_all(n);
    else if (loss != REMUS_SIM_LOSE)
        settle_some(n, loss == REMUS_SIM_REORDER, seed);
    revert(n);
}

/* What a name is after the power was lost. */
static void lose_name(struct name *m, int loss, uint64_t *seed)
{
    if (m->now == m->stable)
        return;
    if (loss == REMUS_SIM_KEEP || (loss != REMUS_SIM_LOSE && coin(seed)))
        point(&m->stable, m->now);
    else
        point(&m->now, m->stable);
}

/* Is any directory above `path` gone? */
static int orphan(remus_sim *sim, const char *path)
{
    for (size_t len = strlen(path); len--;) {
        const struct name *m =
            path[len] == '/' ? find_name(sim, path, len) : NULL;
        if (m && !m->now)
            return 1;
    }
    return 0;
}

static void end_of_process(remus_sim *sim)
{
    for (int i = 0; i < HANDLES; i++)
        if (sim->handles[i].node)
            close_handle(&sim->handles[i]);
    sim->life = sim->life == LIVES ? 0 : sim->life + 1;
    sim->stop_at = UINT64_MAX;
    sim->fail_at = UINT64_MAX;
}

void remus_sim_crash(remus_sim *sim, int loss, uint64_t seed)
{
    pthread_mutex_lock(&sim->lock);
    end_of_process(sim);
    sim->boot++;
    for (struct name *m = sim->names; m; m = m->next) {
        lose_content(m->now, loss, &seed);
        if (m->stable != m->now)
            lose_content(m->stable, loss, &seed);
        lose_name(m, loss, &seed);
    }
    for (struct name *m = sim->names; m; m = m->next)
        if (orphan(sim, m->path)) {
            point(&m->now, NULL);
            point(&m->stable, NULL);
        }
    end(sim);
}

void remus_sim_kill(remus_sim *sim)
{
    pthread_mutex_lock(&sim->lock);
    end_of_process(sim);
    end(sim);
}

/* ---- from outside --------------------------------------------------- */

int remus_sim_new(remus_sim **out)
{
    remus_sim *sim = calloc(1, sizeof *sim);
    *out = sim;
    if (!sim)
        return remus_fail(-ENOMEM, "simulated disk: out of memory");
    sim->io = table;
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
    end_of_process(sim);
    free_names(sim);
    pthread_mutex_destroy(&sim->lock);
    free(sim);
}

static int copy_content(const struct node *n, struct node *copy)
{
    size_t size = n->size > n->stable_size ? n->size : n->stable_size;
    if (n->to > size)
        size = n->to;
    int err = reserve(copy, size);
    if (err || !size)
        return err;
    memcpy(copy->now, n->now, size);
    memcpy(copy->stable, n->stable, size);
    for (const struct dirty *d = n->dirty; d; d = d->next) {
        struct dirty *twin = malloc(sizeof *twin + d->len);
        if (!twin)
            return -ENOMEM;
        memcpy(twin, d, sizeof *twin + d->len);
        twin->next = NULL;
        *copy->tail = twin;
        copy->tail = &twin->next;
    }
    copy->size = n->size;
    copy->stable_size = n->stable_size;
    copy->from = n->from;
    copy->to = n->to;
    copy->forgotten = n->forgotten;
    copy->mapped = n->mapped;
    return 0;
}

/* Let `*at` be the copy of `n`, which is made at first sight. */
static int point_to_twin(struct node **at, struct node *n)
{
    if (!n)
        return 0;
    int err = 0;
    if (!n->twin) {
        n->twin = node_new(n->is_dir);
        if (!n->twin)
            return -ENOMEM;
        err = copy_content(n, n->twin);
    }
    point(at, n->twin);
    return err;
}

/* Copy the names and what they name (lock of `sim` held). */
static int copy_names(remus_sim *sim, remus_sim *copy)
{
    struct name **tail = &copy->names;
    for (const struct name *m = sim->names; m; m = m->next) {
        if (m->now)
            m->now->twin = NULL;
        if (m->stable)
            m->stable->twin = NULL;
    }
    for (const struct name *m = sim->names; m; m = m->next) {
        struct name *twin = calloc(1, sizeof *twin);
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
    err = copy_names(sim, copy);
    end(sim);
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
    end(sim);
    return ops;
}

void remus_sim_stop_after(remus_sim *sim, uint64_t ops)
{
    pthread_mutex_lock(&sim->lock);
    sim->stop_at = ops > UINT64_MAX - sim->ops ? UINT64_MAX : sim->ops + ops;
    end(sim);
}

void remus_sim_fail_after(remus_sim *sim, uint64_t ops, int err)
{
    pthread_mutex_lock(&sim->lock);
    sim->fail_at = ops > UINT64_MAX - sim->ops ? UINT64_MAX : sim->ops + ops;
    sim->fail_err = err;
    sim->failed_op = "";
    end(sim);
}

const char *remus_sim_failed_op(remus_sim *sim)
{
    pthread_mutex_lock(&sim->lock);
    const char *op = sim->failed_op;
    end(sim);
    return op;
}

void remus_sim_drops_cache(remus_sim *sim, int on)
{
    pthread_mutex_lock(&sim->lock);
    sim->drops_cache = on;
    end(sim);
}

int remus_sim_create(remus_sim *sim, const char *path, uint64_t size)
{
    struct node *n;
    pthread_mutex_lock(&sim->lock);
    int err = size > FILE_MAX ? -EFBIG : find(sim, path) ? -EEXIST : 0;
    if (!err)
        err = add_node(sim, path, 0, &n);
    if (!err)
        err = reserve(n, (size_t)size);
    if (!err) {
        n->size = n->stable_size = (size_t)size;
        struct name *m = find_name(sim, path, strlen(path));
        point(&m->stable, n);
    }
    end(sim);
    return err ? remus_fail(err, "create %s of %llu bytes: %s", path,
                            (unsigned long long)size, remus_errno_text(err))
               : 0;
}

/* The file, if the range lies in it (lock held). */
static int look(remus_sim *sim, const char *path, size_t len, uint64_t offset,
                struct node **n)
{
    *n = find(sim, path);
    if (!*n || (*n)->is_dir)
        return remus_fail(-ENOENT, "no file %s", path);
    if (offset > (*n)->size || len > (*n)->size - offset)
        return remus_fail(-EINVAL, "%s has %zu bytes", path, (*n)->size);
    return 0;
}

int remus_sim_read(remus_sim *sim, const char *path, void *buf, size_t len,
                   uint64_t offset)
{
    struct node *n;
    pthread_mutex_lock(&sim->lock);
    int err = look(sim, path, len, offset, &n);
    if (!err && len)
        memcpy(buf, n->now + offset, len);
    end(sim);
    return err;
}

/* No older write may ever come out on top of a poke. */
static void patch_dirty(struct node *n, const unsigned char *buf, size_t len,
                        uint64_t offset)
{
    for (struct dirty *d = n->dirty; d; d = d->next) {
        uint64_t from = offset > d->offset ? offset : d->offset;
        uint64_t to = offset + len, d_end = d->offset + d->len;
        if (to > d_end)
            to = d_end;
        if (from < to)
            memcpy(d->data + (from - d->offset), buf + (from - offset),
                   (size_t)(to - from));
    }
}

int remus_sim_poke(remus_sim *sim, const char *path, const void *buf,
                   size_t len, uint64_t offset)
{
    struct node *n;
    pthread_mutex_lock(&sim->lock);
    int err = look(sim, path, len, offset, &n);
    if (!err && len) {
        memcpy(n->now + offset, buf, len);
        settle(n, offset, buf, len);
        patch_dirty(n, buf, len, offset);
    }
    end(sim);
    return err;
}

int64_t remus_sim_file_size(remus_sim *sim, const char *path)
{
    pthread_mutex_lock(&sim->lock);
    const struct node *n = find(sim, path);
    int64_t size = n && !n->is_dir ? (int64_t)n->size : -ENOENT;
    end(sim);
    return size;
}
