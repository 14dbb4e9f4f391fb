/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The file of a dirty map, in memory, and its copy; see dirty_file.h. */
#include "format/dirty_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "format/dirty_header.h"
#include "base/error.h"

#define FILL_BYTES (1u << 20)
#define LOOKS 5 /* at the images of a clean end */

/* ---- making one ---------------------------------------------------------- */

/* Every byte of the file is written: no store meets a full memory. */
static int fill(struct remus_dirty_file *f)
{
    unsigned char *zeros = calloc(1, FILL_BYTES);
    int err = zeros ? 0 : -ENOMEM;
    for (uint64_t at = 0; !err && at < f->map_bytes;) {
        uint64_t left = f->map_bytes - at;
        size_t n = left < FILL_BYTES ? (size_t)left : FILL_BYTES;
        err = remus_io_write(f->io, f->file, zeros, n, at);
        at += n;
    }
    free(zeros);
    return err;
}

/* An empty file in place of one that is not believed. */
static int make_map(struct remus_dirty_file *f)
{
    int err = f->io->unlink(f->io, f->path);
    if (err && err != -ENOENT)
        return err;
    f->file = f->io->open(f->io, f->path, O_RDWR | O_CREAT | O_EXCL);
    if (f->file < 0)
        return f->file;
    err = f->io->lock(f->io, f->file);
    return err ? err : fill(f);
}

static int map_it(struct remus_dirty_file *f)
{
    void *at = NULL;
    int err = f->io->map(f->io, f->file, f->map_bytes, &at);
    if (err)
        return remus_fail(err,
                          "dirty map %s: map %llu bytes and lock them in "
                          "memory: %s: raise the limit on locked memory "
                          "(ulimit -l, LimitMEMLOCK= of a unit)",
                          f->path, (unsigned long long)f->map_bytes,
                          remus_errno_text(err));
    f->map = at;
    return 0;
}

/* A new map, with what a copy says if there is one that can be believed. */
static int begin_map(struct remus_dirty_file *f,
                     const struct remus_dirty_of *of)
{
    unsigned char header[REMUS_PAGE];
    int err = f->io->random(f->io, &f->id, sizeof f->id);
    f->id |= 1; /* never none */
    if (!err)
        err = make_map(f);
    if (err)
        return remus_fail(err, "dirty map %s (%llu bytes): %s", f->path,
                          (unsigned long long)f->map_bytes,
                          remus_errno_text(err));
    err = map_it(f);
    if (err)
        return err;
    int copy = remus_dirty_find_copy(f, of, header);
    remus_dirty_make_header(f, of, REMUS_DIRTY_SETS, f->id, f->map);
    if (copy >= 0) {
        uint64_t *bits = (uint64_t *)(void *)(f->map + REMUS_PAGE);
        err = remus_dirty_read_sets(f, copy, 1, bits);
        f->io->close(f->io, copy);
        if (err)
            memset(bits, 0, f->words * 8);
        memcpy(f->map + AT_STABLE, header + AT_STABLE, 8);
        remus_put32(f->map + AT_VALID, err ? 0 : 1);
    }
    /* Of a copy the stamp was final; else time must tell. */
    for (unsigned int i = 0; i < f->volumes; i++) {
        remus_put64(f->map + AT_STAMPS + 8 * i, of->stamp[i]);
        remus_put64(f->map + AT_STAMPED + 8 * i, copy < 0 ? UINT64_MAX : 0);
    }
    err = remus_dirty_run_id(f->io, f->file, of->where, f->map + AT_RUN);
    return err ? remus_fail(err, "dirty map %s: %s", f->path,
                            remus_errno_text(err))
               : 0;
}

static _Atomic uint64_t *counter(const struct remus_dirty_file *f,
                                 unsigned int at, unsigned int volume)
{
    return (_Atomic uint64_t *)(void *)(f->map + at + 8 * volume);
}

int remus_dirty_file_open(struct remus_dirty_file *f, remus_io *io,
                          const struct remus_dirty_of *of)
{
    memset(f, 0, sizeof *f);
    f->io = io;
    f->file = -1;
    remus_dirty_lay_out(f, of);
    int err = remus_dirty_find_names(f, io, of);
    if (!err)
        err = remus_dirty_check_dir(io, f->run_dir);
    if (err)
        return err;
    f->file = remus_dirty_find_map(f, of, 1);
    if (f->file == -EBUSY)
        return remus_fail(-EBUSY, "dirty map %s is in use by another process",
                          f->path);
    f->id = of->id;
    memcpy(f->counts, of->counts, sizeof f->counts);
    err = f->file >= 0 ? map_it(f) : begin_map(f, of);
    for (unsigned int i = 0; !err && i < f->volumes; i++)
        atomic_store(&f->ended[i], atomic_load(counter(f, AT_BEGUN, i)));
    return err;
}

int remus_dirty_file_begin(struct remus_dirty_file *f)
{
    int err = f->io->unlink(f->io, f->copy);
    if (err == -ENOENT)
        err = 0;
    if (!err)
        err = f->io->sync_dir(f->io, f->state_dir);
    return err ? remus_fail(err, "remove %s: %s", f->copy,
                            remus_errno_text(err))
               : 0;
}

void remus_dirty_file_generation(struct remus_dirty_file *f,
                                 const unsigned char id[REMUS_ID_BYTES])
{
    memcpy(f->map + AT_GENERATION, id, REMUS_ID_BYTES);
    remus_put32(f->map + AT_CRC, remus_dirty_fixed_crc(f->map));
}

_Atomic uint64_t *remus_dirty_file_set(const struct remus_dirty_file *f,
                                       unsigned int set)
{
    return (_Atomic uint64_t *)(void *)(f->map + REMUS_PAGE +
                                        set * f->words * 8);
}

int remus_dirty_file_valid(const struct remus_dirty_file *f)
{
    return remus_get32(f->map + AT_VALID) == 1;
}

void remus_dirty_file_set_valid(struct remus_dirty_file *f, int valid)
{
    remus_put32(f->map + AT_VALID, valid ? 1 : 0);
}

uint64_t remus_dirty_file_forgotten(const struct remus_dirty_file *f)
{
    return remus_get64(f->map + AT_STABLE);
}

void remus_dirty_file_set_forgotten(struct remus_dirty_file *f, uint64_t epoch)
{
    remus_put64(f->map + AT_STABLE, epoch);
    atomic_signal_fence(memory_order_seq_cst);
}

/* ---- the images ---------------------------------------------------------- */

/* The stamp of an image as it is now.  What is in the page cache of a block
 * device, ours or another's, counts as written. */
static int look_at_stamp(struct remus_dirty_of *of, remus_io *io, int file,
                         unsigned int i)
{
    uint32_t ms;
    int err = io->stamp(io, file, &of->stamp[i], &ms);
    of->counts[i] = ms == REMUS_STAMP_COUNTS;
    if (err || !of->counts[i])
        return err;
    /* Of one that can't be synced nothing is known. */
    if (io->fdatasync(io, file) || io->stamp(io, file, &of->stamp[i], &ms))
        of->stamp[i] = 0;
    return 0;
}

int remus_dirty_look(struct remus_dirty_of *of, remus_io *io, const int *files,
                     unsigned int volumes)
{
    int err = 0;
    uint64_t mount;
    of->volumes = volumes;
    of->where = 0;
    for (unsigned int i = 0; !err && i < volumes; i++) {
        err = io->size(io, files[i], &of->size[i]);
        if (!err)
            err = look_at_stamp(of, io, files[i], i);
        if (!err)
            err = io->mount_id(io, files[i], &mount);
        if (!err)
            of->where = remus_dirty_where(of->where, mount);
    }
    return err;
}

void remus_dirty_write_begins(struct remus_dirty_file *f, unsigned int volume)
{
    atomic_fetch_add(counter(f, AT_BEGUN, volume), 1);
}

void remus_dirty_write_ended(struct remus_dirty_file *f, unsigned int volume)
{
    atomic_fetch_add(&f->ended[volume], 1);
}

void remus_dirty_settle(struct remus_dirty_file *f, unsigned int volume,
                        int file)
{
    uint64_t begun = atomic_load(counter(f, AT_BEGUN, volume)), stamp;
    uint32_t ms;
    int taken = begun == atomic_load(counter(f, AT_STAMPED, volume));
    /* What a write left in the page cache of a block device is counted
     * later, without a write that begins: that is looked for again. */
    if ((taken && !f->counts[volume]) ||
        begun != atomic_load(&f->ended[volume]) ||
        f->io->stamp(f->io, file, &stamp, &ms))
        return;
    if (f->counts[volume])
        ms = 0; /* it is exact */
    if (taken && stamp == atomic_load(counter(f, AT_STAMPS, volume)))
        return;
    uint64_t now = f->io->now_ns(f->io);
    if (begun != f->seen_writes[volume] || stamp != f->seen_stamp[volume]) {
        f->seen_writes[volume] = begun;
        f->seen_stamp[volume] = stamp;
        f->seen_ns[volume] = now;
        if (ms)
            return;
    }
    if (now - f->seen_ns[volume] < ms * 1000000ull)
        return;
    /* A write that begins now makes the counts differ: which is all that is
     * needed, wherever between these two stores it comes. */
    atomic_store(counter(f, AT_STAMPS, volume), stamp);
    atomic_store(counter(f, AT_STAMPED, volume), begun);
}

int remus_dirty_final_stamps(remus_io *io, const int *files,
                             unsigned int volumes, uint32_t soon_ms,
                             uint64_t *stamps)
{
    for (int look = 0; look < LOOKS; look++) {
        uint32_t wait = 0, ms;
        int same = look > 0;
        for (unsigned int i = 0; i < volumes; i++) {
            uint64_t stamp;
            int err = io->stamp(io, files[i], &stamp, &ms);
            if (err)
                return err;
            same = same && stamp == stamps[i];
            stamps[i] = stamp;
            if (ms != REMUS_STAMP_COUNTS && ms > wait)
                wait = ms;
        }
        if (same || !wait)
            return 0;
        if (wait > soon_ms)
            return -EAGAIN;
        nanosleep(&(struct timespec){wait / 1000, wait % 1000 * 1000000l},
                  NULL);
    }
    return -EBUSY; /* somebody goes on writing to them */
}

/* ---- the copy ------------------------------------------------------------ */

/* Nothing of an older copy may be believed half overwritten. */
static int begin_copy(struct remus_dirty_file *f)
{
    static const unsigned char zeros[REMUS_PAGE];
    int file = f->io->open(f->io, f->copy, O_RDWR | O_CREAT);
    if (file < 0)
        return file;
    int err = remus_io_write(f->io, file, zeros, sizeof zeros, 0);
    if (!err)
        err = f->io->fdatasync(f->io, file);
    if (!err)
        return file;
    f->io->close(f->io, file);
    return err;
}

/* The page of all sets together; 1: something is marked in it. */
static int union_page(const struct remus_dirty_file *f, uint64_t word,
                      unsigned char *page)
{
    int any = 0;
    for (unsigned int i = 0; i < REMUS_DIRTY_PAGE_WORDS; i++) {
        uint64_t bits = 0;
        for (unsigned int s = 0; f->map && s < REMUS_DIRTY_SETS; s++)
            bits |= atomic_load_explicit(&remus_dirty_file_set(f, s)[word + i],
                                         memory_order_relaxed);
        remus_put64(page + 8 * i, bits);
        any |= bits != 0;
    }
    return any;
}

/* All sets as one; pages of zeros beyond the last that has a bit are left
 * out, those before it are written. */
static int write_union(const struct remus_dirty_file *f, int file)
{
    unsigned char page[REMUS_PAGE];
    uint64_t pages = 0;
    int err = 0;
    for (uint64_t w = 0; f->map && w < f->words; w += REMUS_DIRTY_PAGE_WORDS)
        if (union_page(f, w, page))
            pages = w / REMUS_DIRTY_PAGE_WORDS + 1;
    for (uint64_t i = 0; !err && i < pages; i++) {
        union_page(f, i * REMUS_DIRTY_PAGE_WORDS, page);
        err = remus_io_write(f->io, file, page, sizeof page,
                             REMUS_PAGE * (1 + i));
    }
    return err;
}

int remus_dirty_write_copy(struct remus_dirty_file *f, unsigned char *header)
{
    /* One that was longer must not be read on into. */
    int err = f->io->unlink(f->io, f->copy);
    if (err && err != -ENOENT)
        return err;
    int file = begin_copy(f);
    if (file < 0)
        return file;
    err = write_union(f, file);
    if (!err)
        err = f->io->fdatasync(f->io, file);
    remus_put32(header + AT_CLEAN, remus_dirty_clean_crc(header));
    if (!err)
        err = remus_io_write(f->io, file, header, REMUS_PAGE, 0);
    if (!err)
        err = f->io->fdatasync(f->io, file);
    f->io->close(f->io, file);
    return err ? err : f->io->sync_dir(f->io, f->state_dir);
}

/* Stamps that hold for the map as well: if there is no room for a copy, the
 * next process of this run goes on with the file in memory. */
static int leave_clean(struct remus_dirty_file *f, const int *files)
{
    unsigned char header[REMUS_PAGE];
    uint64_t stamps[REMUS_VOLUMES_MAX];
    int err =
        remus_dirty_final_stamps(f->io, files, f->volumes, UINT32_MAX, stamps);
    if (err)
        return err;
    for (unsigned int i = 0; i < f->volumes; i++) {
        atomic_store(counter(f, AT_STAMPS, i), stamps[i]);
        atomic_store(counter(f, AT_STAMPED, i),
                     atomic_load(counter(f, AT_BEGUN, i)));
    }
    memcpy(header, f->map, sizeof header);
    remus_put32(header + AT_SETS, 1);
    remus_put32(header + AT_CRC, remus_dirty_fixed_crc(header));
    return remus_dirty_write_copy(f, header);
}

void remus_dirty_file_close(struct remus_dirty_file *f, int clean,
                            const int *files)
{
    int left = f->map && clean && leave_clean(f, files) == 0;
    if (f->map)
        f->io->unmap(f->io, f->map, f->map_bytes);
    if (left)
        f->io->unlink(f->io, f->path);
    if (f->io && f->file >= 0)
        f->io->close(f->io, f->file);
    remus_dirty_free_names(f);
    memset(f, 0, sizeof *f);
    f->file = -1;
}
