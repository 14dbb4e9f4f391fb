/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest's disks; see reach.h. */
#include "reach.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <string.h>

#include "device.h"
#include "node/fuse_int.h"
#include "oracle.h"
#include "sched.h"
#include "shared.h"

static int host_of(const struct side *s)
{
    return (int)(s - side);
}

/* ---- requests ------------------------------------------------------------------ */

static int open_node(int host, unsigned int volume, int flags, uint64_t *fh)
{
    struct fuse_open_in in = {.flags = (uint32_t)flags};
    struct asked a = {.opcode = FUSE_OPEN,
                      .node = REMUS_INO_VOLUME + volume,
                      .body = &in,
                      .body_len = sizeof in,
                      .out = fh,
                      .cap = sizeof *fh};
    return device_ask(host, &a);
}

static void release_node(int host, unsigned int volume, int flags, uint64_t fh)
{
    struct fuse_release_in in = {.fh = fh, .flags = (uint32_t)flags};
    struct asked a = {.opcode = FUSE_RELEASE,
                      .node = REMUS_INO_VOLUME + volume,
                      .body = &in,
                      .body_len = sizeof in};
    device_ask(host, &a);
}

int reach_open(struct side *s, struct reach *r)
{
    r->s = s;
    if (!program.node)
        return remus_primary_writer_opens(s->primary);
    for (unsigned int v = 0; v < program.volumes; v++) {
        int err = open_node(host_of(s), v, O_RDWR, &r->fh[v]);
        if (!err)
            continue;
        while (v-- > 0)
            release_node(host_of(s), v, O_RDWR, r->fh[v]);
        return err;
    }
    return 0;
}

void reach_close(struct reach *r)
{
    if (!program.node)
        remus_primary_writer_closes(r->s->primary);
    for (unsigned int v = 0; program.node && v < program.volumes; v++)
        release_node(host_of(r->s), v, O_RDWR, r->fh[v]);
}

int reach_write(struct reach *r, unsigned int volume, const void *data,
                size_t len, uint64_t offset)
{
    if (!program.node)
        return remus_primary_pwrite(r->s->primary, volume, data, len, offset);
    uint64_t written = 0;
    struct fuse_write_in in = {
        .fh = r->fh[volume], .offset = offset, .size = (uint32_t)len};
    struct asked a = {.opcode = FUSE_WRITE,
                      .node = REMUS_INO_VOLUME + volume,
                      .body = &in,
                      .body_len = sizeof in,
                      .data = data,
                      .data_len = len,
                      .out = &written,
                      .cap = sizeof written};
    int err = device_ask(host_of(r->s), &a);
    if (!err && written != len)
        world_fail("contract 10: %llu bytes of a write of %zu",
                   (unsigned long long)written, len);
    return err;
}

int reach_zero(struct reach *r, unsigned int volume, uint64_t offset,
               uint64_t len, int discard)
{
    if (!program.node)
        return discard
                   ? remus_primary_discard(r->s->primary, volume, offset, len)
                   : remus_primary_write_zeroes(r->s->primary, volume, offset,
                                                len);
    struct fuse_fallocate_in in = {
        .fh = r->fh[volume],
        .offset = offset,
        .length = len,
        .mode = FALLOC_FL_KEEP_SIZE |
                (discard ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE)};
    struct asked a = {.opcode = FUSE_FALLOCATE,
                      .node = REMUS_INO_VOLUME + volume,
                      .body = &in,
                      .body_len = sizeof in};
    return device_ask(host_of(r->s), &a);
}

static int read_node(int host, unsigned int volume, uint64_t fh, void *buf,
                     size_t len, uint64_t offset)
{
    struct fuse_read_in in = {
        .fh = fh, .offset = offset, .size = (uint32_t)len};
    struct asked a = {.opcode = FUSE_READ,
                      .node = REMUS_INO_VOLUME + volume,
                      .body = &in,
                      .body_len = sizeof in,
                      .out = buf,
                      .cap = len};
    int err = device_ask(host, &a);
    return !err && a.len != len ? -EIO : err;
}

/* ---- a reader ------------------------------------------------------------------- */

/* Bytes that one thread writes: all of a write that was answered is there. */
static void read_some(struct side *s, const uint64_t *fh)
{
    unsigned char buf[4096];
    unsigned int v = (unsigned int)world_below(program.volumes);
    uint64_t offset = world_below(4) ? world_below(8192)
                                     : world_below(program.sizes[v] - 4096);
    if (program.writers && v == 0 && offset < SHARED_BYTES)
        offset += SHARED_BYTES;
    struct oracle_moment before = oracle_moment();
    if (read_node(host_of(s), v, fh[v], buf, sizeof buf, offset) ||
        s->branch != the_branch)
        return;
    const char *why = oracle_read(&before, v, offset, buf, sizeof buf);
    if (why)
        world_fail("contract 10: a read of volume %u at %llu: %s", v,
                   (unsigned long long)offset, why);
}

/* Those that several write: no value comes back that another one followed. */
static void read_shared(struct side *s, uint64_t fh)
{
    unsigned char buf[SHARED_BYTES];
    if (read_node(host_of(s), 0, fh, buf, sizeof buf, 0) ||
        s->branch != the_branch)
        return;
    const char *why = shared_read(buf);
    if (why)
        world_fail("contract 10: %s", why);
}

void *reader_main(void *arg)
{
    struct side *s = arg;
    uint64_t fh[ORACLE_VOLUMES];
    int host = host_of(s);
    shared_reader_begins();
    for (unsigned int v = 0; v < program.volumes; v++)
        if (open_node(host, v, O_RDONLY, &fh[v]))
            world_fail("contract 10: no open for reading");
    while (!s->stop) {
        if (program.writers && (s->watched || world_chance(2)))
            read_shared(s, fh[0]);
        else
            read_some(s, fh);
        if (!s->watched && !world_chance(4))
            pause_for(world_below(program.writer_pause_ms * (uint64_t)MS + 1));
    }
    for (unsigned int v = 0; v < program.volumes; v++)
        release_node(host, v, O_RDONLY, fh[v]);
    s->riders--;
    return NULL;
}

/* ---- the files that are open ------------------------------------------------------ */

void check_files(int host)
{
    struct remus_status st;
    if (!program.node || !side_up(host) || !device_lives(host))
        return;
    int before = device_writers(host);
    /* One may be closed and another opened while the primary is asked. */
    uint64_t moved = device_moved(host);
    unsigned int life = side[host].life;
    if (primary_status(host, &st) || !side[host].nodes || before < 0 ||
        moved != device_moved(host) || life != side[host].life)
        return;
    if (st.writers != (unsigned int)before)
        world_fail("contract 10: %d files are open for writing, and the "
                   "primary counts %u",
                   before, st.writers);
}
