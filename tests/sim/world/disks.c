/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Every file operation is a point of the world; see disks.h. */
#include "disks.h"

#include <errno.h>
#include <string.h>

#include "io_sim.h"
#include "sched.h"

static remus_sim *disks[WORLD_HOSTS];
static uint64_t slow[WORLD_HOSTS];
static int drips[WORLD_HOSTS];
static uint64_t frozen_until[WORLD_HOSTS];
static int in_state[WORLD_HOSTS][HANDLES]; /* is this open file one of it? */

static int host_of(remus_io *io)
{
    return io == &disks[0]->io ? 0 : 1;
}

static int is_state(const char *path)
{
    return !strncmp(path, "/state", 6);
}

/* Before an operation, which is then done as one. */
static void enter(remus_io *io, const char *what, int state)
{
    int host = host_of(io);
    if (state && frozen_until[host] > world_now())
        world_wait(what, NULL, NULL, frozen_until[host]);
    if (slow[host] && world_chance(drips[host] ? 2 : 8))
        world_wait(what, NULL, NULL,
                   world_now() + 1 + world_below(slow[host]));
    else
        world_point(what);
    world_hold();
}

#define OPERATION(name, state, parameters, ...)                               \
    static int world_##name parameters                                        \
    {                                                                         \
        enter(io, #name, state);                                              \
        int result = remus_sim_table.name(__VA_ARGS__);                       \
        world_release();                                                      \
        return result;                                                        \
    }

#define OF_FILE in_state[host_of(io)][file % HANDLES]

OPERATION(zero, OF_FILE,
          (remus_io * io, int file, uint64_t offset, uint64_t len), io, file,
          offset, len)
OPERATION(writeback, OF_FILE,
          (remus_io * io, int file, uint64_t offset, uint64_t len), io, file,
          offset, len)
OPERATION(fdatasync, OF_FILE, (remus_io * io, int file), io, file)
OPERATION(drop_cache, OF_FILE, (remus_io * io, int file), io, file)
OPERATION(lock, OF_FILE, (remus_io * io, int file), io, file)
OPERATION(mkdir, is_state(path), (remus_io * io, const char *path), io, path)
OPERATION(unlink, is_state(path), (remus_io * io, const char *path), io, path)
OPERATION(sync_dir, is_state(path), (remus_io * io, const char *path), io,
          path)

static int world_open(remus_io *io, const char *path, int flags)
{
    enter(io, "open", is_state(path));
    int file = remus_sim_table.open(io, path, flags);
    if (file >= 0)
        OF_FILE = is_state(path);
    world_release();
    return file;
}

static int world_close_file(remus_io *io, int file)
{
    enter(io, "close", 0);
    int result = remus_sim_table.close(io, file);
    world_release();
    return result;
}

static ssize_t world_pread(remus_io *io, int file, void *buf, size_t len,
                           uint64_t offset)
{
    enter(io, "pread", OF_FILE);
    ssize_t n = remus_sim_table.pread(io, file, buf, len, offset);
    world_release();
    return n;
}

static ssize_t world_pwrite(remus_io *io, int file, const void *buf,
                            size_t len, uint64_t offset)
{
    enter(io, "pwrite", OF_FILE);
    /* A large one is not one step: others may see the half of it. */
    if (len > 512 && world_chance(drips[host_of(io)] ? 2 : 4))
        len = 512 * (1 + world_below(len / 512));
    ssize_t n = remus_sim_table.pwrite(io, file, buf, len, offset);
    world_release();
    return n;
}

static uint64_t world_now_ns(remus_io *io)
{
    (void)io;
    world_point("now");
    return world_now();
}

static uint64_t world_real_s(remus_io *io)
{
    (void)io;
    return world_wall() / 1000000000u;
}

static int world_random_bytes(remus_io *io, void *buf, size_t len)
{
    (void)io;
    unsigned char *out = buf;
    for (size_t i = 0; i < len; i++)
        out[i] = (unsigned char)world_below(256);
    return 0;
}

remus_sim *world_disks_new(int host)
{
    if (remus_sim_new(&disks[host]))
        world_fail("out of memory");
    remus_io *io = &disks[host]->io;
    io->open = world_open;
    io->close = world_close_file;
    io->pread = world_pread;
    io->pwrite = world_pwrite;
    io->zero = world_zero;
    io->fdatasync = world_fdatasync;
    io->writeback = world_writeback;
    io->drop_cache = world_drop_cache;
    io->lock = world_lock;
    io->claim = world_lock;
    io->mkdir = world_mkdir;
    io->unlink = world_unlink;
    io->sync_dir = world_sync_dir;
    io->now_ns = world_now_ns;
    io->boot_ns = world_now_ns;
    io->real_s = world_real_s;
    io->random = world_random_bytes;
    return disks[host];
}

void world_disks_slow(int host, uint64_t ns)
{
    slow[host] = ns;
    drips[host] = 0;
}

void world_disks_drip(int host, uint64_t ns)
{
    slow[host] = ns;
    drips[host] = 1;
}

void world_disks_freeze(int host, uint64_t ns)
{
    frozen_until[host] = ns ? world_now() + ns : 0;
}
