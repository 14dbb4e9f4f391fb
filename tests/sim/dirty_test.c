/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A dirty map by itself, on simulated files. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/record.h"
#include "primary/dirty.h"
#include "base/error.h"
#include "base/hash.h"
#include "remus_testing.h"

_Static_assert(REMUS_TEST_DIRTY_BLOCK == REMUS_BLOCK, "one block size");

struct remus_test_dirty {
    struct remus_dirty d;
    int image[REMUS_VOLUMES_MAX];
};

/* /images/N, which others can write to, too; its stamp. */
static int open_image(remus_io *io, unsigned int i, uint64_t *stamp)
{
    char path[64];
    uint64_t size = 0;
    uint32_t ms;
    snprintf(path, sizeof path, "/images/%u", i);
    int file = io->open(io, path, O_RDWR | O_CREAT);
    if (file < 0)
        return file;
    int err = io->size(io, file, &size);
    if (!err && !size)
        err = remus_io_write(io, file, "i", 1, 0);
    if (!err)
        err = io->stamp(io, file, stamp, &ms);
    return err ? err : file;
}

/* state_dir/id stands for what primary.state holds of the map. */
static int open_id(remus_io *io, const char *state_dir, uint64_t *id)
{
    char path[256];
    snprintf(path, sizeof path, "%s/id", state_dir);
    int file = io->open(io, path, O_RDWR | O_CREAT);
    *id = 0;
    ssize_t n = file < 0 ? file : remus_io_read_upto(io, file, id, 8, 0);
    if (n >= 0)
        return file;
    if (file >= 0)
        io->close(io, file);
    return (int)n;
}

static int store_id(remus_io *io, const char *state_dir, int file, uint64_t id)
{
    int err = remus_io_write(io, file, &id, 8, 0);
    if (!err)
        err = io->fdatasync(io, file);
    return err ? err : io->sync_dir(io, state_dir);
}

static int open_map(struct remus_dirty *d, remus_io *io, const char *state_dir,
                    struct remus_dirty_of *of)
{
    int file = open_id(io, state_dir, &of->id);
    int err = file < 0 ? file : remus_dirty_open(d, io, of);
    if (!err && d->f.id != of->id)
        err = store_id(io, state_dir, file, d->f.id);
    if (!err)
        err = remus_dirty_file_begin(&d->f);
    if (file >= 0)
        io->close(io, file);
    return err;
}

int remus_test_dirty_open(remus_sim *sim, const char *state_dir,
                          const uint64_t *sizes, unsigned int volumes,
                          unsigned int generation, remus_test_dirty **out)
{
    unsigned char id[REMUS_ID_BYTES];
    struct remus_dirty_of of = {.resource = "guest0",
                                .state_dir = state_dir,
                                .generation = id,
                                .volumes = volumes};
    memset(id, (int)generation, sizeof id);
    memcpy(of.size, sizes, volumes * sizeof *sizes);
    *out = calloc(1, sizeof **out);
    if (!*out)
        return remus_fail(-ENOMEM, "out of memory");
    (*out)->d.f.file = -1;
    int err = 0;
    for (unsigned int i = 0; !err && i < volumes; i++) {
        (*out)->image[i] = open_image(remus_sim_io(sim), i, &of.stamp[i]);
        err = (*out)->image[i] < 0 ? (*out)->image[i] : 0;
    }
    if (!err)
        err = open_map(&(*out)->d, remus_sim_io(sim), state_dir, &of);
    if (err) {
        remus_dirty_close(&(*out)->d, 0, NULL);
        free(*out);
        *out = NULL;
    }
    return err;
}

void remus_test_dirty_close(remus_test_dirty *t, int clean)
{
    if (!t)
        return;
    remus_io *io = t->d.f.io;
    unsigned int volumes = t->d.f.volumes;
    for (unsigned int i = 0; i < volumes && clean; i++)
        clean = io->fdatasync(io, t->image[i]) == 0;
    if (clean)
        clean = io->sync_dir(io, "/images") == 0;
    remus_dirty_close(&t->d, clean, t->image);
    for (unsigned int i = 0; i < volumes; i++)
        io->close(io, t->image[i]);
    free(t);
}

int remus_test_dirty_write(remus_test_dirty *t, unsigned int volume, int done)
{
    if (done) {
        remus_dirty_write_ended(&t->d.f, volume);
        return 0;
    }
    remus_dirty_write_begins(&t->d.f, volume);
    return remus_io_write(t->d.f.io, t->image[volume], "w", 1, 0);
}

void remus_test_dirty_settle(remus_test_dirty *t)
{
    for (unsigned int i = 0; i < t->d.f.volumes; i++)
        remus_dirty_settle(&t->d.f, i, t->image[i]);
}

int remus_test_dirty_valid(remus_test_dirty *t)
{
    return remus_dirty_valid(&t->d);
}

uint64_t remus_test_dirty_forgotten(remus_test_dirty *t)
{
    return remus_dirty_forgotten(&t->d);
}

void remus_test_dirty_renew(remus_test_dirty *t)
{
    remus_dirty_renew(&t->d);
}

void remus_test_dirty_doubt(remus_test_dirty *t)
{
    remus_dirty_doubt(&t->d);
}

void remus_test_dirty_base(remus_test_dirty *t, uint64_t epoch)
{
    remus_dirty_base(&t->d, epoch);
}

int remus_test_dirty_pin(remus_test_dirty *t)
{
    return (int)remus_dirty_pin(&t->d);
}

void remus_test_dirty_unpin(remus_test_dirty *t, int pin)
{
    remus_dirty_unpin(&t->d, (uint32_t)pin);
}

void remus_test_dirty_mark(remus_test_dirty *t, int pin, unsigned int volume,
                           uint64_t offset, uint64_t len)
{
    uint32_t set = pin < 0 ? atomic_load(&t->d.open) : (uint32_t)pin;
    remus_dirty_mark(&t->d, set, volume, offset, len);
}

void remus_test_dirty_roll(remus_test_dirty *t, uint64_t epoch)
{
    remus_dirty_roll(&t->d, epoch);
}

void remus_test_dirty_stable(remus_test_dirty *t, uint64_t epoch)
{
    remus_dirty_stable(&t->d, epoch);
}

void remus_test_dirty_forget(remus_test_dirty *t)
{
    remus_dirty_forget_all(&t->d);
}

uint64_t remus_test_dirty_collect(remus_test_dirty *t, uint64_t has,
                                  uint64_t epoch)
{
    return remus_dirty_collect(&t->d, has, epoch);
}

int remus_test_dirty_next(remus_test_dirty *t, uint64_t max,
                          unsigned int *volume, uint64_t *offset,
                          uint64_t *len)
{
    return remus_dirty_next(&t->d, max, volume, offset, len);
}

int remus_test_dirty_test(remus_test_dirty *t, unsigned int volume,
                          uint64_t block)
{
    return remus_dirty_test(&t->d, volume, block);
}

uint64_t remus_test_dirty_bytes(remus_test_dirty *t)
{
    return remus_dirty_bytes(&t->d);
}

int remus_test_hash(const void *data, size_t len, unsigned char *out)
{
    return remus_hash(data, len, out);
}
