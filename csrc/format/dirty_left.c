/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A dirty map without a primary: what one that ended here left, and what a
 * promote leaves; see dirty_file.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/dirty_header.h"

#define SOON_MS 100u /* a promote waits no longer for the images' times */

uint64_t remus_dirty_id_of(const unsigned char generation[REMUS_ID_BYTES])
{
    return remus_get64(generation) | 1;
}

/* Only names and layout: no file is open. */
static int begin(struct remus_dirty_file *f, remus_io *io,
                 const struct remus_dirty_of *of)
{
    memset(f, 0, sizeof *f);
    f->io = io;
    f->file = -1;
    remus_dirty_lay_out(f, of);
    return remus_dirty_find_names(f, io, of);
}

/* ---- reading ------------------------------------------------------------- */

int remus_dirty_left_read(struct remus_dirty_left *l, remus_io *io,
                          const struct remus_dirty_of *of)
{
    struct remus_dirty_file f;
    unsigned char h[REMUS_PAGE];
    unsigned int sets = REMUS_DIRTY_SETS;
    memset(l, 0, sizeof *l);
    int err = begin(&f, io, of);
    int file = err ? err : remus_dirty_find_map(&f, of, 0);
    if (file >= 0)
        err = remus_io_read(io, file, h, sizeof h, 0);
    if (!err && file < 0) {
        sets = 1;
        file = remus_dirty_find_copy(&f, of, h);
    }
    uint64_t *bits = NULL;
    if (!err && file >= 0) {
        bits = calloc(f.words, sizeof *bits);
        err = bits ? remus_dirty_read_sets(&f, file, sets, bits) : -ENOMEM;
    }
    if (file >= 0)
        io->close(io, file);
    if (!err && bits) {
        l->bits = bits;
        l->forgotten = remus_get64(h + AT_STABLE);
        l->volumes = f.volumes;
        memcpy(l->first, f.first, sizeof l->first);
    } else {
        free(bits);
    }
    remus_dirty_free_names(&f);
    return err == -ENOMEM ? remus_fail(err, "dirty map: out of memory") : 0;
}

int remus_dirty_left_has(const struct remus_dirty_left *l, unsigned int volume,
                         uint64_t block)
{
    uint64_t bit = l->first[volume] + block;
    return (int)(l->bits[bit / 64] >> (bit % 64) & 1);
}

void remus_dirty_left_free(struct remus_dirty_left *l)
{
    free(l->bits);
    memset(l, 0, sizeof *l);
}

/* ---- leaving ------------------------------------------------------------- */

void remus_dirty_left_remove(remus_io *io, const struct remus_dirty_of *of)
{
    struct remus_dirty_file f;
    if (begin(&f, io, of) == 0) {
        io->unlink(io, f.path);
        if (io->unlink(io, f.copy) == 0)
            io->sync_dir(io, f.state_dir);
    }
    remus_dirty_free_names(&f);
}

int remus_dirty_leave_empty(remus_io *io, const struct remus_dirty_of *of,
                            const int *files, uint64_t epoch)
{
    struct remus_dirty_file f;
    unsigned char h[REMUS_PAGE];
    uint64_t stamps[REMUS_VOLUMES_MAX];
    int err = begin(&f, io, of);
    if (!err)
        err =
            remus_dirty_final_stamps(io, files, of->volumes, SOON_MS, stamps);
    if (!err) {
        remus_dirty_make_header(&f, of, 1, remus_dirty_id_of(of->generation),
                                h);
        remus_put32(h + AT_VALID, 1);
        remus_put64(h + AT_STABLE, epoch);
        for (unsigned int i = 0; i < of->volumes; i++)
            remus_put64(h + AT_STAMPS + 8 * i, stamps[i]);
        err = remus_dirty_write_copy(&f, h);
    }
    remus_dirty_free_names(&f);
    return err;
}
