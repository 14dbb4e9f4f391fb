/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whose journal is in this directory?  A journal may lie apart from its
 * state, on a faster disk, where two resources can be given the same place by
 * mistake, or nothing may be mounted one day.
 *
 * state_dir/journal.id and dir/journal.id hold the same random id, 32 bytes:
 * magic "RMJI", version 1, the id (16 bytes), zeros (4), CRC32C of what is
 * before it (little-endian numbers).  The state's is stored first, then the
 * journal's, both durably before the superblock is; so where there is a
 * superblock there must be both.  dir/lock is held while the journal is used.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/random.h"
#include "journal/journal.h"

#define MAGIC 0x494a4d52u
#define VERSION 1u
#define BYTES 32u
#define CRC_AT 28u

/* Open dir/name; a missing one is made if `create`. */
static int open_in(remus_io *io, const char *dir, const char *name, int create)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int file = io->open(io, path, O_RDWR | (create ? O_CREAT : 0));
    return file < 0 ? remus_fail(file, "journal: open %s: %s", path,
                                 remus_errno_text(file))
                    : file;
}

/* 1: there is a valid id; 0: none; -errno. */
static int load(remus_io *io, const char *dir,
                unsigned char id[REMUS_ID_BYTES])
{
    unsigned char p[BYTES];
    int file = open_in(io, dir, "journal.id", 0);
    if (file == -ENOENT)
        return 0;
    if (file < 0)
        return file;
    /* It may have been left in the page cache only. */
    int err = io->fdatasync(io, file);
    ssize_t n = err ? err : remus_io_read_upto(io, file, p, sizeof p, 0);
    io->close(io, file);
    if (n < 0)
        return remus_fail((int)n, "journal: read %s/journal.id: %s", dir,
                          remus_errno_text((int)n));
    if (n != BYTES || remus_get32(p) != MAGIC ||
        remus_get32(p + 4) != VERSION ||
        remus_get32(p + CRC_AT) != remus_crc32c(0, p, CRC_AT))
        return 0;
    memcpy(id, p + 8, REMUS_ID_BYTES);
    return 1;
}

static int store(remus_io *io, const char *dir,
                 const unsigned char id[REMUS_ID_BYTES])
{
    unsigned char p[BYTES] = {0};
    remus_put32(p, MAGIC);
    remus_put32(p + 4, VERSION);
    memcpy(p + 8, id, REMUS_ID_BYTES);
    remus_put32(p + CRC_AT, remus_crc32c(0, p, CRC_AT));
    int file = open_in(io, dir, "journal.id", 1);
    if (file < 0)
        return file;
    int err = remus_io_write(io, file, p, sizeof p, 0);
    if (!err)
        err = io->fdatasync(io, file);
    io->close(io, file);
    if (!err)
        err = io->sync_dir(io, dir);
    return err ? remus_fail(err, "journal: store %s/journal.id: %s", dir,
                            remus_errno_text(err))
               : 0;
}

/* A state that is just being made takes the directory. */
static int take(remus_io *io, const char *state_dir, const char *dir,
                unsigned char ours[REMUS_ID_BYTES])
{
    unsigned char theirs[REMUS_ID_BYTES];
    int mine = load(io, state_dir, ours);
    int there = mine < 0 ? 0 : load(io, dir, theirs);
    if (mine < 0 || there < 0)
        return mine < 0 ? mine : there;
    if (there && (!mine || memcmp(ours, theirs, REMUS_ID_BYTES)))
        return remus_fail(-EEXIST,
                          "journal: %s holds the journal of another state "
                          "directory than %s: give an empty one, or, if "
                          "nothing needs that journal any longer, remove it",
                          dir, state_dir);
    int err = mine ? 0 : remus_random(io, ours, REMUS_ID_BYTES, "journal");
    if (err)
        return err;
    /* Again if they are there: a sync of an earlier try may have failed, and
     * what is read back then is in the page cache only. */
    err = store(io, state_dir, ours);
    return err ? err : store(io, dir, ours);
}

/* A state that is in use must find its own. */
static int find(remus_io *io, const char *state_dir, const char *dir,
                unsigned char ours[REMUS_ID_BYTES])
{
    unsigned char theirs[REMUS_ID_BYTES];
    int mine = load(io, state_dir, ours);
    int there = mine < 0 ? 0 : load(io, dir, theirs);
    if (mine < 0 || there < 0)
        return mine < 0 ? mine : there;
    if (mine && there && !memcmp(ours, theirs, REMUS_ID_BYTES))
        return 0;
    return remus_fail(
        -ENOENT,
        "journal: the journal of %s is not in %s%s: mount or move it there; "
        "only if it is lost, and acked epochs with it, empty the state "
        "directory too and let the primary copy the disks again",
        state_dir, dir, there ? " (another's is)" : "");
}

int remus_journal_claim(remus_io *io, const char *state_dir, const char *dir,
                        int fresh, unsigned char id[REMUS_ID_BYTES])
{
    int err = remus_io_private(io, dir);
    if (err)
        return remus_fail_in(err, "journal directory");
    /* Where it is not, nothing is left behind either. */
    err = fresh ? io->mkdir(io, dir) : find(io, state_dir, dir, id);
    if (err)
        return fresh ? remus_fail(err, "journal: make directory %s: %s", dir,
                                  remus_errno_text(err))
                     : err;
    int file = open_in(io, dir, "lock", 1);
    if (file < 0)
        return file;
    err = io->lock(io, file);
    if (err)
        err = remus_fail(err == -EWOULDBLOCK ? -EBUSY : err,
                         "journal: %s is in use by another resource or "
                         "process: %s",
                         dir, remus_errno_text(err));
    else if (fresh)
        err = take(io, state_dir, dir, id);
    if (err) {
        io->close(io, file);
        return err;
    }
    return file;
}
