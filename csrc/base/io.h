/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The I/O table: every read, write and sync of journal, disks and state
 * files, and the clock, go through it, so that tests can stop the world
 * after any operation and lose, keep, tear or reorder what was not synced
 * (io_sim.c).  The system's own is remus_io_system().
 *
 * All functions return >= 0 or -errno.  They may block.  A table may be used
 * from many threads at once.  `file` is what open returned (>= 0).
 */
#ifndef REMUS_IO_H
#define REMUS_IO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define REMUS_BOOT_ID 16

typedef struct remus_io remus_io;

#define REMUS_STAMP_COUNTS UINT32_MAX

struct remus_io {
    /* flags: O_RDWR or O_RDONLY, plus O_CREAT, O_EXCL, O_DIRECT; mode 0600.
     * Block devices are opened too. */
    int (*open)(remus_io *io, const char *path, int flags);
    int (*close)(remus_io *io, int file);
    /* May be short or -EINTR, like the system calls; see
     * remus_io_read/write.  Nothing else here ends in -EINTR. */
    ssize_t (*pread)(remus_io *io, int file, void *buf, size_t len,
                     uint64_t offset);
    ssize_t (*pwrite)(remus_io *io, int file, const void *buf, size_t len,
                      uint64_t offset);
    /* Make [offset, offset+len) read as zeroes, never changing the size. */
    int (*zero)(remus_io *io, int file, uint64_t offset, uint64_t len);
    int (*fdatasync)(remus_io *io, int file);
    /* Start writing back without waiting: a hint that may do nothing. */
    int (*writeback)(remus_io *io, int file, uint64_t offset, uint64_t len);
    /* Forget clean cached pages, so that reads see the medium: a hint. */
    int (*drop_cache)(remus_io *io, int file);
    int (*size)(remus_io *io, int file, uint64_t *size);
    /* A number that a write by anybody changes; 0: there is none such.  Of a
     * file its times, size and place; *ms: a write sooner than that after
     * another one may not change it.  Of a block device the writes that it
     * has counted since the machine was started, so *ms is
     * REMUS_STAMP_COUNTS: what is in the page cache is not counted yet. */
    int (*stamp)(remus_io *io, int file, uint64_t *stamp, uint32_t *ms);
    /* Exclusive advisory lock of an open file; -EWOULDBLOCK if taken. */
    int (*lock)(remus_io *io, int file);
    /* The same of an image, told in QEMU's way as well; -EBUSY: a QEMU has
     * it.  An error leaves what was locked until the file is closed. */
    int (*claim)(remus_io *io, int file);
    int (*mkdir)(remus_io *io, const char *path); /* 0700; exists: 0 */
    int (*unlink)(remus_io *io, const char *path);
    int (*sync_dir)(remus_io *io, const char *path);
    /* Does this directory lie in memory, and not on a disk?  1, 0 or -errno;
     * ours: -EPERM if others can change what is in it. */
    int (*memory_dir)(remus_io *io, const char *path, int ours);
    /* Map [0, len) of a file in memory, shared, with its pages locked there:
     * no store waits for a disk, and what is stored survives the process.
     * The file must have these bytes, written. */
    int (*map)(remus_io *io, int file, size_t len, void **at);
    int (*unmap)(remus_io *io, void *at, size_t len);
    /* The first range at or after `offset` that is not a hole: 1 and it, or
     * 0 if there is none.  May call holes data. */
    int (*next_data)(remus_io *io, int file, uint64_t offset, uint64_t *start,
                     uint64_t *end);
    /* What tells this run of the machine from every other. */
    int (*boot_id)(remus_io *io, unsigned char id[REMUS_BOOT_ID]);
    /* A number that is another one after the file system of this file was
     * mounted again, or its device attached again: what was cached may have
     * been lost between, with the machine still running.  0: not known. */
    int (*mount_id)(remus_io *io, int file, uint64_t *id);
    uint64_t (*now_ns)(remus_io *io);  /* CLOCK_MONOTONIC */
    uint64_t (*boot_ns)(remus_io *io); /* CLOCK_BOOTTIME: also in a suspend */
    uint64_t (*real_s)(remus_io *io);  /* since 1970 */
    int (*random)(remus_io *io, void *buf, size_t len);
};

/* The system's own table.  Static, stateless. */
remus_io *remus_io_system(void);

/*
 * Who can write to a directory of state or journal can make a backup promote
 * wrong data.  0, or -EPERM with a text if it belongs to anybody but this
 * process's user or root, or others may write to it.  One that is not there
 * yet is right; so is any of a table other than the system's.
 */
int remus_io_private(remus_io *io, const char *dir);

/*
 * Whole reads and writes: 0 or -errno.  A read that meets the end of the
 * file is -EIO; remus_io_read_upto() returns what it got instead.
 */
int remus_io_read(remus_io *io, int file, void *buf, size_t len,
                  uint64_t offset);
int remus_io_write(remus_io *io, int file, const void *buf, size_t len,
                   uint64_t offset);
ssize_t remus_io_read_upto(remus_io *io, int file, void *buf, size_t len,
                           uint64_t offset);

#endif
