/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The names and the header of a dirty map's file, and when it is believed;
 * see dirty_file.h. */
#include "format/dirty_header.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/hash.h"

#define MAGIC 0x444d4552u
#define VERSION 2u
#define STATE_DIR_BYTES 1024u
#define END (AT_STATE_DIR + STATE_DIR_BYTES)

_Static_assert(AT_STAMPS + 8 * REMUS_VOLUMES_MAX == AT_BEGUN, "layout");
_Static_assert(END <= REMUS_PAGE, "a header in one page");

/* ---- where it is --------------------------------------------------------- */

/* The first of the usual places that is in memory. */
static int default_dir(remus_io *io, char *out, size_t cap)
{
    unsigned int uid = (unsigned int)geteuid();
    char own[64], shm[64];
    snprintf(own, sizeof own, "/run/user/%u", uid);
    snprintf(shm, sizeof shm,
             uid ? "/dev/shm/remus-native-%u" : "/dev/shm/remus-native", uid);
    const char *run = uid ? own : "/run";
    if (io->memory_dir(io, run, 0) == 1)
        snprintf(out, cap, "%s/remus-native", run);
    else if (io->memory_dir(io, "/dev/shm", 0) == 1)
        snprintf(out, cap, "%s", shm);
    else
        return remus_fail(-EINVAL,
                          "dirty map: neither %s nor /dev/shm is in memory "
                          "(tmpfs): name a directory on tmpfs as run_dir",
                          run);
    return 0;
}

int remus_dirty_check_dir(remus_io *io, const char *dir)
{
    int err = io->mkdir(io, dir);
    if (err)
        return remus_fail(err, "dirty map: make the directory %s: %s", dir,
                          remus_errno_text(err));
    int rc = io->memory_dir(io, dir, 1);
    if (rc == 1)
        return 0;
    if (rc == -EPERM)
        return remus_fail(-EPERM,
                          "dirty map: others can write to %s: make the user "
                          "of this process its owner and chmod go-w it, or "
                          "name another directory as run_dir",
                          dir);
    return rc < 0 ? remus_fail(rc, "dirty map: inspect %s: %s", dir,
                               remus_errno_text(rc))
                  : remus_fail(-EINVAL,
                               "dirty map: %s is not in memory: a write of "
                               "the guest could wait for its disk; name a "
                               "directory on tmpfs as run_dir",
                               dir);
}

void remus_dirty_free_names(struct remus_dirty_file *f)
{
    free(f->path);
    free(f->copy);
    free(f->state_dir);
    free(f->run_dir);
    f->path = f->copy = f->state_dir = f->run_dir = NULL;
}

/* The names of file and copy; nothing is made. */
int remus_dirty_find_names(struct remus_dirty_file *f, remus_io *io,
                           const struct remus_dirty_of *of)
{
    char dir[REMUS_DIRTY_PATH], name[REMUS_DIRTY_PATH + 128];
    unsigned char hash[REMUS_HASH_BYTES];
    int err = 0;
    if (!of->run_dir)
        err = default_dir(io, dir, sizeof dir);
    else if (strlen(of->run_dir) >= sizeof dir)
        err = remus_fail(-ENAMETOOLONG, "run_dir: the path is too long");
    else
        strcpy(dir, of->run_dir);
    if (err)
        return err;
    f->state_dir = realpath(of->state_dir, NULL);
    if (!f->state_dir)
        f->state_dir = strdup(of->state_dir);
    if (!f->state_dir)
        return remus_fail(-ENOMEM, "dirty map: out of memory");
    err = remus_hash(f->state_dir, strlen(f->state_dir), hash);
    if (err)
        return err;
    snprintf(name, sizeof name, "%s/%s-%016llx.dirty.map", dir, of->resource,
             (unsigned long long)remus_get64(hash));
    f->run_dir = strdup(dir);
    f->path = strdup(name);
    snprintf(name, sizeof name, "%.4095s/dirty.map", of->state_dir);
    f->copy = strdup(name);
    return f->run_dir && f->path && f->copy
               ? 0
               : remus_fail(-ENOMEM, "dirty map: out of memory");
}

/* ---- the header ------------------------------------------------------ */

void remus_dirty_lay_out(struct remus_dirty_file *f,
                         const struct remus_dirty_of *of)
{
    uint64_t bits = 0;
    f->volumes = of->volumes;
    for (unsigned int i = 0; i < f->volumes; i++) {
        f->size[i] = of->size[i];
        f->first[i] = bits;
        bits += of->size[i] / REMUS_BLOCK + 1;
        bits = (bits + 63) / 64 * 64;
    }
    f->words = (bits / 64 + REMUS_DIRTY_PAGE_WORDS - 1) /
               REMUS_DIRTY_PAGE_WORDS * REMUS_DIRTY_PAGE_WORDS;
    f->map_bytes = REMUS_PAGE + REMUS_DIRTY_SETS * f->words * 8;
}

uint32_t remus_dirty_fixed_crc(const unsigned char *h)
{
    uint32_t crc = remus_crc32c(0, h, AT_RUN);
    crc = remus_crc32c(crc, h + AT_SIZES, AT_CRC - AT_SIZES);
    return remus_crc32c(crc, h + AT_ID, 8);
}

/* 0 says "not clean": a sum of 0 is told as 1. */
uint32_t remus_dirty_clean_crc(const unsigned char *h)
{
    uint32_t crc = remus_crc32c(remus_crc32c(0, h, AT_CLEAN), h + AT_VALID,
                                END - AT_VALID);
    return crc ? crc : 1;
}

void remus_dirty_make_header(const struct remus_dirty_file *f,
                             const struct remus_dirty_of *of, uint32_t sets,
                             uint64_t id, unsigned char *h)
{
    size_t n = strlen(f->state_dir);
    memset(h, 0, REMUS_PAGE);
    remus_put32(h, MAGIC);
    remus_put32(h + 4, VERSION);
    remus_put32(h + 8, REMUS_BLOCK);
    remus_put32(h + AT_SETS, sets);
    remus_put32(h + 16, remus_crc32c(0, of->resource, strlen(of->resource)));
    remus_put32(h + 20, f->volumes);
    remus_put64(h + 24, f->words * 8);
    memcpy(h + AT_GENERATION, of->generation, REMUS_ID_BYTES);
    for (unsigned int i = 0; i < f->volumes; i++)
        remus_put64(h + AT_SIZES + 8 * i, f->size[i]);
    remus_put64(h + AT_ID, id);
    memcpy(h + AT_STATE_DIR, f->state_dir,
           n < STATE_DIR_BYTES ? n : STATE_DIR_BYTES);
    remus_put32(h + AT_CRC, remus_dirty_fixed_crc(h));
}

/* What tells this run of the machine, with everything still mounted, from
 * every other. */
int remus_dirty_run_id(remus_io *io, int file, uint64_t where,
                       unsigned char *id)
{
    uint64_t mount;
    int err = io->boot_id(io, id);
    if (!err)
        err = io->mount_id(io, file, &mount);
    if (!err)
        remus_put64(id + 8,
                    remus_get64(id + 8) ^ remus_dirty_where(where, mount));
    return err;
}

/* Is it the map that counts, of just this? */
static int header_fits(const struct remus_dirty_file *f,
                       const struct remus_dirty_of *of, uint32_t sets,
                       const unsigned char *h)
{
    unsigned char want[REMUS_PAGE];
    remus_dirty_make_header(f, of, sets, of->id, want);
    return of->id && !memcmp(h, want, AT_RUN) &&
           !memcmp(h + AT_SIZES, want + AT_SIZES, AT_CRC + 4 - AT_SIZES) &&
           !memcmp(h + AT_ID, want + AT_ID, 8) &&
           remus_get32(h + AT_VALID) == 1;
}

/* Was nothing written to the images since that this map does not know? */
static int images_fit(const struct remus_dirty_of *of, const unsigned char *h)
{
    for (unsigned int i = 0; i < of->volumes; i++)
        if (!of->stamp[i] ||
            remus_get64(h + AT_STAMPS + 8 * i) != of->stamp[i] ||
            remus_get64(h + AT_BEGUN + 8 * i) !=
                remus_get64(h + AT_STAMPED + 8 * i))
            return 0;
    return 1;
}

/* ---- what is there ------------------------------------------------------- */

/* Open and read the header of `path`.  The file, or -errno; -ENOENT too if
 * there is no whole header. */
static int open_header(remus_io *io, const char *path, int flags,
                       unsigned char *h)
{
    int file = io->open(io, path, flags);
    if (file < 0)
        return file;
    ssize_t n = remus_io_read_upto(io, file, h, REMUS_PAGE, 0);
    if (n == (ssize_t)REMUS_PAGE)
        return file;
    io->close(io, file);
    return n < 0 ? (int)n : -ENOENT;
}

/* The map in memory, if it can be believed: its file, else -ENOENT; -EBUSY.
 * `write`: to go on in it, locked. */
int remus_dirty_find_map(const struct remus_dirty_file *f,
                         const struct remus_dirty_of *of, int write)
{
    unsigned char h[REMUS_PAGE], run[REMUS_BOOT_ID];
    remus_io *io = f->io;
    int file = open_header(io, f->path, write ? O_RDWR : O_RDONLY, h);
    if (file < 0)
        return file;
    uint64_t size = 0;
    int err = write ? io->lock(io, file) : 0;
    if (!err)
        err = io->size(io, file, &size);
    if (!err)
        err = remus_dirty_run_id(io, file, of->where, run);
    if (!err &&
        (size < f->map_bytes || !header_fits(f, of, REMUS_DIRTY_SETS, h) ||
         memcmp(run, h + AT_RUN, REMUS_BOOT_ID) ||
         (!of->continues && !images_fit(of, h))))
        err = -ENOENT;
    if (err)
        io->close(io, file);
    return err == -EWOULDBLOCK ? -EBUSY : err ? err : file;
}

/* The copy, if it can be believed: its file, else -ENOENT, and how far it
 * could be read. */
int remus_dirty_find_copy(const struct remus_dirty_file *f,
                          const struct remus_dirty_of *of, unsigned char *h)
{
    int file = open_header(f->io, f->copy, O_RDONLY, h);
    if (file < 0)
        return file;
    if (header_fits(f, of, 1, h) &&
        remus_get32(h + AT_CLEAN) == remus_dirty_clean_crc(h) &&
        images_fit(of, h))
        return file;
    f->io->close(f->io, file);
    return -ENOENT;
}

/* Add the sets of a file to `bits`.  0 or -errno. */
int remus_dirty_read_sets(const struct remus_dirty_file *f, int file,
                          unsigned int sets, uint64_t *bits)
{
    unsigned char page[REMUS_PAGE];
    for (unsigned int s = 0; s < sets; s++)
        for (uint64_t w = 0; w < f->words; w += REMUS_DIRTY_PAGE_WORDS) {
            memset(page, 0, sizeof page);
            ssize_t n =
                remus_io_read_upto(f->io, file, page, sizeof page,
                                   REMUS_PAGE + (s * f->words + w) * 8);
            if (n < 0)
                return (int)n;
            if (n == 0)
                break; /* the rest of a copy is zero */
            for (unsigned int i = 0; i < REMUS_DIRTY_PAGE_WORDS; i++)
                bits[w + i] |= remus_get64(page + 8 * i);
        }
    return 0;
}
