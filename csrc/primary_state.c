/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What survives the primary: state_dir/primary.state says which generation
 * it is, and below which number all epochs may have been used.  Numbers are reserved far ahead, so
 * that no epoch waits for a disk, and are never used twice.
 *
 * Two slots of 4096 bytes, slot (sequence mod 2) is written; the valid one
 * with the higher sequence counts.
 *
 *   offset size
 *    0     4    magic 0x504d4552 ("REMP")
 *    4     4    version, 2
 *    8     8    sequence
 *   16     8    limit: the first number that was not reserved
 *   24    16    generation: random id of this primary
 *   40     4    CRC32C of the resource's name
 *   44     4    CRC32C of bytes 0..43
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "primary_int.h"

#define MAGIC 0x504d4552u
#define VERSION 2u
#define NAME_AT 40u
#define CRC_AT 44u

struct state {
    uint64_t sequence;
    uint64_t limit;
    unsigned char generation[REMUS_ID_BYTES];
};

static uint32_t name_crc(const remus_primary *p)
{
    return remus_crc32c(0, p->resource, strlen(p->resource));
}

static int decode(const remus_primary *p, const unsigned char *in,
                  struct state *s)
{
    if (remus_get32(in) != MAGIC || remus_get32(in + 4) != VERSION ||
        remus_get32(in + NAME_AT) != name_crc(p) ||
        remus_get32(in + CRC_AT) != remus_crc32c(0, in, CRC_AT))
        return 0;
    s->sequence = remus_get64(in + 8);
    s->limit = remus_get64(in + 16);
    memcpy(s->generation, in + 24, REMUS_ID_BYTES);
    return 1;
}

static int open_state(const remus_primary *p, char *path, size_t cap)
{
    snprintf(path, cap, "%s/primary.state", p->state_dir);
    int file = p->io->open(p->io, path, O_RDWR | O_CREAT);
    if (file < 0)
        remus_fail(file, "resource %s: open %s: %s", p->resource, path,
                   remus_errno_text(file));
    return file;
}

static int load(const remus_primary *p, int file, const char *path,
                struct state *s)
{
    unsigned char buf[2 * REMUS_PAGE] = {0};
    struct state slot[2];
    /* What a killed process left in the page cache only could still vanish
     * with the power, and its numbers would be used again. */
    int err = p->io->fdatasync(p->io, file);
    if (err)
        return remus_fail(err, "resource %s: sync %s: %s", p->resource, path,
                          remus_errno_text(err));
    ssize_t n = remus_io_read_upto(p->io, file, buf, sizeof buf, 0);
    if (n < 0)
        return remus_fail((int)n, "resource %s: read %s: %s", p->resource,
                          path, remus_errno_text((int)n));
    *s = (struct state){0, 1, {0}};
    if (remus_get32(buf) == 0 && remus_get32(buf + REMUS_PAGE) == 0)
        return 0;
    int ok0 = decode(p, buf, &slot[0]);
    int ok1 = decode(p, buf + REMUS_PAGE, &slot[1]);
    if (!ok0 && !ok1)
        return remus_fail(-EBADMSG,
                          "resource %s: %s is not the state of this "
                          "resource: give another state directory",
                          p->resource, path);
    *s = ok0 && (!ok1 || slot[0].sequence > slot[1].sequence) ? slot[0]
                                                              : slot[1];
    return 0;
}

int remus_primary_state_load(remus_primary *p, uint64_t *next_epoch)
{
    char path[4096];
    struct state s;
    int file = open_state(p, path, sizeof path);
    if (file < 0)
        return file;
    int err = load(p, file, path, &s);
    p->io->close(p->io, file);
    if (err)
        return err;
    *next_epoch = s.limit;
    memcpy(p->generation, s.generation, REMUS_ID_BYTES);
    if (s.sequence)
        return 0;
    /* A new primary.  A backup will know it by this. */
    err = p->io->random(p->io, p->generation, REMUS_ID_BYTES);
    if (err)
        return remus_fail(err, "random numbers: %s", remus_errno_text(err));
    return remus_primary_state_store(p, s.limit);
}

int remus_primary_state_store(remus_primary *p, uint64_t limit)
{
    char path[4096];
    struct state s;
    unsigned char out[REMUS_PAGE] = {0};
    int file = open_state(p, path, sizeof path);
    if (file < 0)
        return file;
    int err = load(p, file, path, &s);
    if (!err) {
        s.sequence++;
        remus_put32(out, MAGIC);
        remus_put32(out + 4, VERSION);
        remus_put64(out + 8, s.sequence);
        remus_put64(out + 16, limit);
        memcpy(out + 24, p->generation, REMUS_ID_BYTES);
        remus_put32(out + NAME_AT, name_crc(p));
        remus_put32(out + CRC_AT, remus_crc32c(0, out, CRC_AT));
        err = remus_io_write(p->io, file, out, sizeof out,
                             s.sequence % 2 * REMUS_PAGE);
        if (!err)
            err = p->io->fdatasync(p->io, file);
        if (!err)
            err = p->io->sync_dir(p->io, p->state_dir);
        if (err)
            remus_fail(err, "resource %s: store %s: %s", p->resource, path,
                       remus_errno_text(err));
    }
    p->io->close(p->io, file);
    return err;
}
