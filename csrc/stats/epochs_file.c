/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Epoch statistics: create, attach, close.
 *
 * A store into a mapped file of a disk's file system can wait for that disk:
 * once the page was written back, the next store has to tell the file
 * system, and is throttled with everything else that dirties pages (tens of
 * milliseconds beside a busy disk, in the middle of a pause).  So only a
 * file on a file system in memory is made under its own name.  Anywhere else
 * the memory is an anonymous file (memfd), `path` becomes a symbolic link to
 * it (/proc/PID/fd/N), and a file with the final state takes the place of
 * the link at close.  If the writer dies, its memory and the statistics in
 * it live on only in the readers that have it open.
 */
#include "stats/epochs.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/sized.h"
#include "base/fork.h"
#include "base/io.h"
#include "base/entry.h"
#include "format/record.h"

typedef unsigned long long ull;

#define MEMFD_NAME "remus-epochs"
#define TEMPORARY ".XXXXXX"
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

/* ---- the header ---------------------------------------------------------- */

/* The id of this start of the kernel; zeroes if it can't be had. */
static void boot_id(unsigned char id[REMUS_BOOT_ID])
{
    remus_io *io = remus_io_system();
    if (io->boot_id(io, id))
        memset(id, 0, REMUS_BOOT_ID);
}

/* What a new mapping, all zeroes, holds before its first sample. */
static void prepare(remus_epochs *e, const char *name)
{
    unsigned char *p = e->base;
    for (int series = 0; series < REMUS_SERIES_COUNT; series++)
        remus_put_early(&remus_epochs_series_at(e, series)[REMUS_HW_MIN],
                        UINT64_MAX);
    remus_put32(p, REMUS_EPOCHS_MAGIC);
    remus_put32(p + 4, REMUS_EPOCHS_VERSION);
    remus_put64(p + 8, REMUS_EPOCHS_BYTES);
    remus_put32(p + 16, REMUS_EPOCHS_RING);
    remus_put32(p + 20, REMUS_EPOCHS_SLOT);
    remus_put32(p + 24, REMUS_SERIES_COUNT);
    remus_put32(p + 28, REMUS_EPOCHS_BUCKETS);
    remus_put32(p + 32, REMUS_EPOCHS_RING_AT);
    remus_put32(p + 36, REMUS_EPOCHS_SERIES_AT);
    remus_put32(p + 40, REMUS_EPOCHS_SERIES);
    remus_put32(p + 44, REMUS_EPOCHS_SUB_BITS);
    remus_put64(p + 48, remus_clock_now());
    remus_put64(p + 56, (uint64_t)getpid());
    boot_id(p + 64);
    memcpy(p + 80, name, strlen(name));
    remus_put32(p + REMUS_EPOCHS_CRC_AT,
                remus_crc32c(0, p, REMUS_EPOCHS_CRC_AT));
}

/* Does this header describe what this code reads? */
static int check_header(const unsigned char *p, const char *path)
{
    if (remus_get32(p) != REMUS_EPOCHS_MAGIC)
        return remus_fail(-EBADMSG, "%s holds no epoch statistics", path);
    if (remus_get32(p + 4) != REMUS_EPOCHS_VERSION)
        return remus_fail(-EBADMSG,
                          "%s: epoch statistics of version %u, this library "
                          "reads version %u: use one version on this host",
                          path, remus_get32(p + 4), REMUS_EPOCHS_VERSION);
    if (remus_get32(p + REMUS_EPOCHS_CRC_AT) !=
            remus_crc32c(0, p, REMUS_EPOCHS_CRC_AT) ||
        remus_get64(p + 8) != REMUS_EPOCHS_BYTES ||
        remus_get32(p + 16) != REMUS_EPOCHS_RING ||
        remus_get32(p + 20) != REMUS_EPOCHS_SLOT ||
        remus_get32(p + 24) != REMUS_SERIES_COUNT ||
        remus_get32(p + 28) != REMUS_EPOCHS_BUCKETS ||
        remus_get32(p + 32) != REMUS_EPOCHS_RING_AT ||
        remus_get32(p + 36) != REMUS_EPOCHS_SERIES_AT ||
        remus_get32(p + 40) != REMUS_EPOCHS_SERIES ||
        remus_get32(p + 44) != REMUS_EPOCHS_SUB_BITS ||
        p[80 + REMUS_NAME_MAX] != 0)
        return remus_fail(-EBADMSG,
                          "%s: the header of the epoch statistics is "
                          "damaged; the writer makes a new file when it "
                          "starts again",
                          path);
    return 0;
}

/* ---- create -------------------------------------------------------------- */

static int map(remus_epochs *e, int writable)
{
    int prot = PROT_READ | (writable ? PROT_WRITE : 0);
    /* Shared also without a file: a private one would be copied page by
     * page, in the middle of epochs, after a fork of the caller's. */
    int flags = MAP_SHARED | (e->fd < 0 ? MAP_ANONYMOUS : 0);
    if (writable)
        flags |= MAP_POPULATE;
    void *base = mmap(NULL, REMUS_EPOCHS_BYTES, prot, flags, e->fd, 0);
    if (base == MAP_FAILED)
        return -errno;
    e->base = base;
    return 0;
}

/* Give the open, empty file e->fd its room, its lock and its header. */
static int fill(remus_epochs *e, const char *name)
{
    /* Room for all of it now: a full file system later would be a SIGBUS. */
    int err = -posix_fallocate(e->fd, 0, REMUS_EPOCHS_BYTES);
    if (!err && flock(e->fd, LOCK_EX | LOCK_NB))
        err = -errno;
    if (!err)
        err = map(e, 1);
    if (!err)
        prepare(e, name);
    return err;
}

/* `path` with a tail for mkostemp, and made absolute: close() needs it, and
 * the caller may be in another directory by then.  NULL: -errno in *err. */
static char *temporary_name(const char *path, int *err)
{
    char here[PATH_MAX] = "";
    char *out = NULL;
    *err = 0;
    if (*path != '/' && !getcwd(here, sizeof here))
        *err = -errno;
    else if (asprintf(&out, "%s%s%s" TEMPORARY, here, *here ? "/" : "", path) <
             0)
        *err = -ENOMEM;
    return *err ? NULL : out;
}

/* Is the directory of `name` in memory?  1, 0 or -errno. */
static int in_memory(const char *name)
{
    char dir[PATH_MAX];
    struct statfs fs;
    size_t len = (size_t)(strrchr(name, '/') - name);
    if (len >= sizeof dir)
        return -ENAMETOOLONG;
    memcpy(dir, name, len);
    memcpy(dir + len, "/", len ? 1 : 2);
    dir[len ? len : 1] = '\0';
    if (statfs(dir, &fs))
        return -errno;
    return fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC;
}

/* The file itself, under its temporary name. */
static int make_file(remus_epochs *e, char *temporary, const char *name)
{
    e->fd = remus_fd_own(mkostemp(temporary, O_CLOEXEC));
    return e->fd < 0 ? -errno : fill(e, name);
}

static int anonymous_file(void)
{
    int fd = memfd_create(MEMFD_NAME, MFD_CLOEXEC | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
        fd = memfd_create(MEMFD_NAME, MFD_CLOEXEC);
    if (fd >= 0 && fchmod(fd, 0600)) {
        int err = -errno;
        close(fd);
        return err;
    }
    return fd < 0 ? -errno : fd;
}

/* An anonymous file, and the link to it under its temporary name. */
static int make_link(remus_epochs *e, char *temporary, const char *name)
{
    e->fd = remus_fd_own(anonymous_file());
    int err = e->fd < 0 ? e->fd : fill(e, name);
    if (!err &&
        asprintf(&e->link, "/proc/%d/fd/%d", (int)getpid(), e->fd) < 0) {
        e->link = NULL;
        err = -ENOMEM;
    }
    if (err)
        return err;
    /* A free name by making a file, which the link then replaces. */
    int fd = mkostemp(temporary, O_CLOEXEC);
    if (fd < 0)
        return -errno;
    close(fd);
    if (unlink(temporary) || symlink(e->link, temporary))
        return -errno;
    return 0;
}

static int create_file(remus_epochs *e, const char *path, const char *name)
{
    int err;
    char *temporary = temporary_name(path, &err);
    if (!temporary)
        return err;
    e->path = strdup(temporary);
    if (!e->path) {
        free(temporary);
        return -ENOMEM;
    }
    e->path[strlen(e->path) - strlen(TEMPORARY)] = '\0';
    int memory = in_memory(temporary);
    err = memory < 0 ? memory
          : memory   ? make_file(e, temporary, name)
                     : make_link(e, temporary, name);
    /* Over an older one, never into it: its readers must not meet a file
     * that shrinks, or the words of two writers. */
    if (!err && rename(temporary, e->path))
        err = -errno;
    if (err)
        unlink(temporary); /* if it came so far */
    free(temporary);
    return err;
}

static void release(remus_epochs *e)
{
    if (e->base)
        munmap(e->base, REMUS_EPOCHS_BYTES);
    if (e->fd >= 0)
        remus_fd_close(e->fd);
    free(e->path);
    free(e->link);
    free(e);
}

int remus_epochs_create(const char *path, const char *name, remus_epochs **out)
{
    int no = remus_given(out, "epochs_create", "out");
    if (no)
        return no;
    *out = NULL;
    no = remus_given(name, "epochs_create", "name");
    if (no)
        return no;
    const char *what = path ? path : "in memory";
    if (!*name || strlen(name) > REMUS_NAME_MAX)
        return remus_fail(-EINVAL,
                          "epoch statistics %s: the name \"%s\" is not of 1 "
                          "to %d bytes",
                          what, name, REMUS_NAME_MAX);
    remus_epochs *e = calloc(1, sizeof *e);
    if (!e)
        return remus_fail(-ENOMEM, "epoch statistics %s: no memory", what);
    remus_entry_init(&e->entry);
    e->fd = -1;
    e->writer = 1;
    int err = path ? create_file(e, path, name) : map(e, 1);
    if (err) {
        remus_fail(err, "create the epoch statistics %s: %s", what,
                   remus_errno_text(err));
        release(e);
        return err;
    }
    if (!path)
        prepare(e, name);
    *out = e;
    return 0;
}

/* ---- attach -------------------------------------------------------------- */

static int attach_fd(remus_epochs *e, const char *path)
{
    struct stat st;
    if (fstat(e->fd, &st))
        return remus_fail(-errno, "%s: %s", path, remus_errno_text(errno));
    if (!S_ISREG(st.st_mode))
        return remus_fail(-EBADMSG, "%s is not a regular file", path);
    /* What lies beyond the end of the file can't be touched. */
    if (st.st_size != (off_t)REMUS_EPOCHS_BYTES)
        return remus_fail(-EBADMSG,
                          "%s holds no epoch statistics: %lld bytes, "
                          "expected %llu",
                          path, (long long)st.st_size,
                          (ull)REMUS_EPOCHS_BYTES);
    int err = map(e, 0);
    if (err)
        return remus_fail(err, "map %s: %s", path, remus_errno_text(err));
    return check_header(e->base, path);
}

/*
 * A link into a process that has died can lead to anything, once the pid is
 * in use again, and opening a device can have effects.  0: open it.
 */
static int check_link(const char *path)
{
    char link[64], target[64];
    ssize_t n = readlink(path, link, sizeof link - 1);
    if (n < 0)
        return 0; /* no link */
    link[n] = '\0';
    if (strncmp(link, "/proc/", 6))
        return 0; /* the user's own */
    n = readlink(link, target, sizeof target - 1);
    if (n < 0 && errno != ENOENT)
        return remus_fail(-errno, "open the epoch statistics %s: %s: %s", path,
                          link, remus_errno_text(errno));
    target[n < 0 ? 0 : n] = '\0';
    if (n < 0 ||
        strncmp(target, "/memfd:" MEMFD_NAME, strlen("/memfd:" MEMFD_NAME)))
        return remus_fail(-ENOENT,
                          "%s: the process that kept these epoch statistics "
                          "died without closing them (%s)",
                          path, link);
    return 0;
}

static int open_file(const char *path)
{
    int err = check_link(path);
    if (err)
        return err;
    /* O_NONBLOCK: a FIFO in its place must not hold us up. */
    int fd =
        remus_fd_own(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    if (fd < 0)
        return remus_fail(-errno, "open the epoch statistics %s: %s", path,
                          remus_errno_text(errno));
    return fd;
}

int remus_epochs_attach(const char *path, remus_epochs **out)
{
    int no = remus_given(out, "epochs_attach", "out");
    if (no)
        return no;
    *out = NULL;
    no = remus_given(path, "epochs_attach", "path");
    if (no)
        return no;
    remus_epochs *e = calloc(1, sizeof *e);
    if (!e)
        return remus_fail(-ENOMEM, "epoch statistics %s: no memory", path);
    remus_entry_init(&e->entry);
    e->fd = open_file(path);
    int err = e->fd < 0 ? e->fd : attach_fd(e, path);
    if (err) {
        release(e);
        return err;
    }
    *out = e;
    return 0;
}

/* ---- info, close --------------------------------------------------------- */

int remus_epochs_info(remus_epochs *e, struct remus_epochs_info *out)
{
    int no = remus_enter(e, "epochs_info");
    if (!no)
        no = remus_sized_check(out, sizeof *out, "epochs_info", "out");
    if (no)
        return no;
    remus_word *words = remus_epochs_words(e);
    unsigned char id[REMUS_BOOT_ID];
    boot_id(id);
    struct remus_epochs_info now = REMUS_INIT(remus_epochs_info);
    memcpy(now.name, e->base + 80, sizeof now.name);
    now.added = remus_get(&words[REMUS_EW_ADDED]);
    now.failed = remus_get(&words[REMUS_EW_FAILED]);
    now.created_ns = remus_get64(e->base + 48);
    now.pid = (int64_t)remus_get64(e->base + 56);
    now.this_boot = memcmp(e->base + 64, id, sizeof id) == 0;
    now.writing = e->writer;
    if (!e->writer) {
        /* Only the writer ever holds it for longer than this. */
        now.writing = flock(e->fd, LOCK_SH | LOCK_NB) != 0;
        if (!now.writing)
            flock(e->fd, LOCK_UN);
    }
    /* After the lock: who closed in between is found closed. */
    now.closed = remus_get(&words[REMUS_EW_CLOSED]) != 0;
    now.writing = now.writing && !now.closed;
    remus_sized_give(out, &now, sizeof now);
    return 0;
}

/* Does `path` still hold our link, not that of a later writer? */
static int link_is_ours(const remus_epochs *e)
{
    char link[64];
    ssize_t n = readlink(e->path, link, sizeof link - 1);
    if (n < 0)
        return 0;
    link[n] = '\0';
    return strcmp(link, e->link) == 0;
}

static int write_all(int fd, const unsigned char *p, size_t len)
{
    while (len) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

/* A file with the final state in place of the link; without one (the disk
 * is full) the link goes all the same: it would lead nowhere. */
static void leave_file(const remus_epochs *e)
{
    int err;
    char *temporary = temporary_name(e->path, &err);
    int fd = temporary ? mkostemp(temporary, O_CLOEXEC) : -1;
    int ok = fd >= 0 && !write_all(fd, e->base, REMUS_EPOCHS_BYTES);
    if (fd >= 0)
        close(fd);
    if (!ok || rename(temporary, e->path)) {
        if (fd >= 0)
            unlink(temporary);
        unlink(e->path);
    }
    free(temporary);
}

void remus_epochs_close(remus_epochs *e)
{
    if (!e || remus_enter(e, "epochs_close"))
        return;
    if (e->writer)
        remus_put(&remus_epochs_words(e)[REMUS_EW_CLOSED], 1);
    if (e->writer && e->link && link_is_ours(e))
        leave_file(e);
    release(e);
}
