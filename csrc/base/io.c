/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The system's I/O table: thin wrappers that return -errno. */
#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/le.h"

static int sys_open(remus_io *io, const char *path, int flags)
{
    (void)io;
    for (;;) {
        unsigned int forks = remus_fork_quiet();
        int fd = remus_fd_own(open(path, flags | O_CLOEXEC | O_NOCTTY, 0600));
        if (fd < 0 && errno == EINTR)
            continue;
        if (fd < 0)
            return -errno;
        /* A child of just now may have it unregistered, and would share the
         * lock that is taken on it. */
        if ((flags & O_EXCL) || !remus_fork_since(forks))
            return fd;
        remus_fd_close(fd);
    }
}

static int sys_close(remus_io *io, int file)
{
    (void)io;
    return remus_fd_close(file) ? -errno : 0;
}

static ssize_t sys_pread(remus_io *io, int file, void *buf, size_t len,
                         uint64_t offset)
{
    (void)io;
    ssize_t n = pread(file, buf, len, (off_t)offset);
    return n < 0 ? -errno : n;
}

static ssize_t sys_pwrite(remus_io *io, int file, const void *buf, size_t len,
                          uint64_t offset)
{
    (void)io;
    ssize_t n = pwrite(file, buf, len, (off_t)offset);
    return n < 0 ? -errno : n;
}

/* Zeroes by hand, where neither the file system nor the device helps. */
static int write_zeroes(remus_io *io, int file, uint64_t offset, uint64_t len)
{
    static const unsigned char zeroes[65536];
    while (len) {
        size_t n = len < sizeof zeroes ? (size_t)len : sizeof zeroes;
        int err = remus_io_write(io, file, zeroes, n, offset);
        if (err)
            return err;
        offset += n;
        len -= n;
    }
    return 0;
}

static int sys_zero(remus_io *io, int file, uint64_t offset, uint64_t len)
{
    /* On a block device PUNCH_HOLE is a write-zeroes with unmap allowed:
     * unlike BLKDISCARD it promises zeroes. */
    int rc;
    do
        rc = fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       (off_t)offset, (off_t)len);
    while (rc && errno == EINTR);
    if (!rc)
        return 0;
    if (errno != EOPNOTSUPP && errno != EINVAL && errno != ENODEV &&
        errno != ENOSYS)
        return -errno;
    return write_zeroes(io, file, offset, len);
}

static int sys_fdatasync(remus_io *io, int file)
{
    (void)io;
    int rc;
    /* Interrupted before it was done, as on a network file system: that says
     * nothing of the data. */
    do
        rc = fdatasync(file);
    while (rc && errno == EINTR);
    return rc ? -errno : 0;
}

static int sys_writeback(remus_io *io, int file, uint64_t offset, uint64_t len)
{
    (void)io;
    return sync_file_range(file, (off_t)offset, (off_t)len,
                           SYNC_FILE_RANGE_WRITE)
               ? -errno
               : 0;
}

static int sys_drop_cache(remus_io *io, int file)
{
    (void)io;
    return -posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
}

static int sys_size(remus_io *io, int file, uint64_t *size)
{
    (void)io;
    struct stat st;
    if (fstat(file, &st))
        return -errno;
    if (S_ISBLK(st.st_mode))
        return ioctl(file, BLKGETSIZE64, size) ? -errno : 0;
    if (!S_ISREG(st.st_mode))
        return -ENOTBLK;
    *size = (uint64_t)st.st_size;
    return 0;
}

/* One number for several. */
static uint64_t mix(uint64_t sum, uint64_t value)
{
    sum = (sum ^ value) * 0xff51afd7ed558ccdu;
    return sum ^ sum >> 32;
}

/* Read a small file of /proc or /sys; its bytes, or -errno. */
static ssize_t read_text(const char *path, char *out, size_t cap)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n = read(fd, out, cap - 1);
    int err = n < 0 ? -errno : 0;
    close(fd);
    out[n < 0 ? 0 : n] = '\0';
    return err ? err : n;
}

static int sys_boot_id(remus_io *io, unsigned char id[REMUS_BOOT_ID])
{
    (void)io;
    char text[40] = {0};
    ssize_t n =
        read_text("/proc/sys/kernel/random/boot_id", text, sizeof text);
    if (n < 0)
        return (int)n;
    memset(id, 0, REMUS_BOOT_ID);
    unsigned int digits = 0;
    for (ssize_t i = 0; i < n && digits < 2 * REMUS_BOOT_ID; i++) {
        static const char hex[] = "0123456789abcdef";
        const char *at = text[i] ? strchr(hex, text[i]) : NULL;
        if (!at)
            continue;
        id[digits / 2] = (unsigned char)(id[digits / 2] << 4 | (at - hex));
        digits++;
    }
    return digits == 2 * REMUS_BOOT_ID ? 0 : -EIO;
}

/* Does the kernel count what is written to it?  (Where it does not say, it
 * can't be switched off.) */
static int counts_writes(dev_t dev)
{
    char path[96], text[8];
    for (int part = 0; part < 2; part++) {
        snprintf(path, sizeof path, "/sys/dev/block/%u:%u/%squeue/iostats",
                 major(dev), minor(dev), part ? "../" : "");
        if (read_text(path, text, sizeof text) > 0)
            return *text != '0';
    }
    return 1;
}

/* Sectors written and discarded since the machine started (not requests:
 * flushes are among those); with its boot, and what is in the drive, or behind
 * the loop device. */
static uint64_t block_stamp(remus_io *io, int file, dev_t dev)
{
    char path[64], text[512];
    unsigned char boot[REMUS_BOOT_ID];
    uint64_t size, medium = 0, sum = mix(major(dev), minor(dev));
    snprintf(path, sizeof path, "/sys/dev/block/%u:%u/stat", major(dev),
             minor(dev));
    if (sys_boot_id(io, boot) || ioctl(file, BLKGETSIZE64, &size) ||
        !counts_writes(dev) || read_text(path, text, sizeof text) <= 0)
        return 0;
    if (ioctl(file, BLKGETDISKSEQ, &medium))
        medium = 0;
    sum = mix(mix(sum, size), medium);
    sum = mix(mix(sum, remus_get64(boot)), remus_get64(boot + 8));
    const char *at = text;
    for (int field = 1; field <= 14; field++) {
        char *end;
        uint64_t n = strtoull(at, &end, 10);
        if (end == at)
            return field > 11 ? sum | 1 : 0; /* it knows no discards */
        at = end;
        if (field == 7 || field == 14)
            sum = mix(sum, n);
    }
    return sum | 1;
}

static int sys_stamp(remus_io *io, int file, uint64_t *stamp, uint32_t *ms)
{
    struct stat st;
    *stamp = *ms = 0;
    if (fstat(file, &st))
        return -errno;
    if (S_ISBLK(st.st_mode)) {
        *stamp = block_stamp(io, file, st.st_rdev);
        *ms = REMUS_STAMP_COUNTS;
    }
    if (!S_ISREG(st.st_mode))
        return 0;
    const struct timespec *m = &st.st_mtim, *c = &st.st_ctim;
    uint64_t sum = mix((uint64_t)st.st_ino, (uint64_t)st.st_size);
    sum = mix(mix(sum, (uint64_t)m->tv_sec), (uint64_t)m->tv_nsec);
    sum = mix(mix(sum, (uint64_t)c->tv_sec), (uint64_t)c->tv_nsec);
    *stamp = sum | 1;
    /* Times move with the kernel's tick, at least 100 a second; in a file
     * system that keeps whole seconds, with every second one at worst. */
    *ms = m->tv_nsec || c->tv_nsec ? 20 : 2100;
    return 0;
}

static int sys_lock(remus_io *io, int file)
{
    (void)io;
    return flock(file, LOCK_EX | LOCK_NB) ? -errno : 0;
}

/*
 * What QEMU (block/file-posix.c) says of an image by shared locks on its
 * bytes: 100 + n, it has permission n; 200 + n, nobody else may have it.  Who
 * wants one looks for a lock on the other byte.  Ours are those of a guest's
 * disk: reading (0), writing (1) and resizing (3), the last two alone.
 */
#define QEMU_HAS 100
#define QEMU_ALONE 200

static const struct {
    short byte;     /* that is locked */
    short conflict; /* that nobody else may have locked */
} qemu_locks[] = {{QEMU_HAS + 0, QEMU_ALONE + 0},
                  {QEMU_HAS + 1, QEMU_ALONE + 1},
                  {QEMU_HAS + 3, QEMU_ALONE + 3},
                  {QEMU_ALONE + 1, QEMU_HAS + 1},
                  {QEMU_ALONE + 3, QEMU_HAS + 3}};

static int sys_claim(remus_io *io, int file)
{
    const size_t count = sizeof qemu_locks / sizeof *qemu_locks;
    int err = sys_lock(io, file);
    for (size_t i = 0; !err && i < count; i++) {
        struct flock mine = {
            .l_type = F_RDLCK, .l_start = qemu_locks[i].byte, .l_len = 1};
        if (fcntl(file, F_OFD_SETLK, &mine))
            /* Where there are no such locks QEMU takes none either. */
            return errno == EAGAIN || errno == EACCES ? -EBUSY : 0;
    }
    for (size_t i = 0; !err && i < count; i++) {
        struct flock theirs = {
            .l_type = F_WRLCK, .l_start = qemu_locks[i].conflict, .l_len = 1};
        if (fcntl(file, F_OFD_GETLK, &theirs) == 0 && theirs.l_type != F_UNLCK)
            err = -EBUSY;
    }
    return err;
}

static int sys_mkdir(remus_io *io, const char *path)
{
    (void)io;
    if (mkdir(path, 0700) && errno != EEXIST)
        return -errno;
    return 0;
}

static int sys_unlink(remus_io *io, const char *path)
{
    (void)io;
    return unlink(path) ? -errno : 0;
}

static int sys_sync_dir(remus_io *io, const char *path)
{
    (void)io;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc;
    do
        rc = fsync(fd);
    while (rc && errno == EINTR);
    int err = rc ? -errno : 0;
    close(fd);
    return err;
}

static int sys_memory_dir(remus_io *io, const char *path, int ours)
{
    (void)io;
    struct statfs fs;
    struct stat st;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc = fstatfs(fd, &fs) || fstat(fd, &st) ? -errno : 0;
    close(fd);
    if (rc)
        return rc;
    if (ours && (st.st_mode & (S_IWGRP | S_IWOTH) ||
                 (st.st_uid && st.st_uid != geteuid())))
        return -EPERM;
    return fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC;
}

static int sys_map(remus_io *io, int file, size_t len, void **at)
{
    (void)io;
    *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (*at == MAP_FAILED)
        return -errno;
    /* A child's mapping would hold the file, and with it the file's lock, for
     * as long as it lives. */
    int err = 0;
    if (madvise(*at, len, MADV_DONTFORK) || mlock(*at, len))
        err = -errno;
    if (!err)
        return 0;
    munmap(*at, len);
    return err;
}

static int sys_unmap(remus_io *io, void *at, size_t len)
{
    (void)io;
    return munmap(at, len) ? -errno : 0;
}

static int sys_next_data(remus_io *io, int file, uint64_t offset,
                         uint64_t *start, uint64_t *end)
{
    uint64_t size;
    int err = sys_size(io, file, &size);
    if (err)
        return err;
    if (offset >= size)
        return 0;
    off_t data = lseek(file, (off_t)offset, SEEK_DATA);
    if (data < 0 && errno == ENXIO)
        return 0;
    off_t hole = data < 0 ? -1 : lseek(file, data, SEEK_HOLE);
    if (hole < 0) { /* a device, or a file system that can't say */
        *start = offset;
        *end = size;
        return 1;
    }
    *start = (uint64_t)data;
    *end = (uint64_t)hole;
    return 1;
}

/* The kernel's random id of this boot, without its dashes. */

#ifndef BLKGETDISKSEQ /* Linux 5.15 */
#define BLKGETDISKSEQ _IOR(0x12, 128, uint64_t)
#endif
#define MNT_ID_UNIQUE 0x4000u /* STATX_MNT_ID_UNIQUE, Linux 6.8 */

static int sys_mount_id(remus_io *io, int file, uint64_t *id)
{
    (void)io;
    struct stat st;
    struct statx stx;
    *id = 0;
    if (fstat(file, &st))
        return -errno;
    if (S_ISBLK(st.st_mode)) {
        if (ioctl(file, BLKGETDISKSEQ, id))
            *id = 0;
    } else if (statx(file, "", AT_EMPTY_PATH, MNT_ID_UNIQUE, &stx) == 0 &&
               stx.stx_mask & MNT_ID_UNIQUE) {
        *id = stx.stx_mnt_id;
    }
    return 0;
}

static uint64_t sys_real_s(remus_io *io)
{
    (void)io;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec;
}

static uint64_t sys_now_ns(remus_io *io)
{
    (void)io;
    return remus_clock_now();
}

static uint64_t sys_boot_ns(remus_io *io)
{
    (void)io;
    struct timespec ts;
    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int sys_random(remus_io *io, void *buf, size_t len)
{
    (void)io;
    unsigned char *p = buf;
    while (len) {
        ssize_t n = getrandom(p, len, 0);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

static const remus_io system_io = {
    .open = sys_open,
    .close = sys_close,
    .pread = sys_pread,
    .pwrite = sys_pwrite,
    .zero = sys_zero,
    .fdatasync = sys_fdatasync,
    .writeback = sys_writeback,
    .drop_cache = sys_drop_cache,
    .size = sys_size,
    .stamp = sys_stamp,
    .lock = sys_lock,
    .claim = sys_claim,
    .mkdir = sys_mkdir,
    .unlink = sys_unlink,
    .sync_dir = sys_sync_dir,
    .memory_dir = sys_memory_dir,
    .map = sys_map,
    .unmap = sys_unmap,
    .next_data = sys_next_data,
    .boot_id = sys_boot_id,
    .mount_id = sys_mount_id,
    .now_ns = sys_now_ns,
    .boot_ns = sys_boot_ns,
    .real_s = sys_real_s,
    .random = sys_random,
};

remus_io *remus_io_system(void)
{
    /* Stateless: nothing ever writes through this pointer. */
    return (remus_io *)(uintptr_t)&system_io;
}

ssize_t remus_io_read_upto(remus_io *io, int file, void *buf, size_t len,
                           uint64_t offset)
{
    unsigned char *p = buf;
    size_t done = 0;
    while (done < len) {
        ssize_t n = io->pread(io, file, p + done, len - done, offset + done);
        if (n == -EINTR)
            continue;
        if (n < 0)
            return n;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

int remus_io_read(remus_io *io, int file, void *buf, size_t len,
                  uint64_t offset)
{
    ssize_t n = remus_io_read_upto(io, file, buf, len, offset);
    if (n < 0)
        return (int)n;
    return (size_t)n == len ? 0 : -EIO;
}

int remus_io_write(remus_io *io, int file, const void *buf, size_t len,
                   uint64_t offset)
{
    const unsigned char *p = buf;
    while (len) {
        ssize_t n = io->pwrite(io, file, p, len, offset);
        if (n == -EINTR)
            continue;
        if (n < 0)
            return (int)n;
        if (n == 0)
            return -EIO;
        p += n;
        offset += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

int remus_io_private(remus_io *io, const char *dir)
{
    struct stat st;
    if (io != remus_io_system() || stat(dir, &st) || !S_ISDIR(st.st_mode))
        return 0;
    if (st.st_uid != geteuid() && st.st_uid != 0)
        return remus_fail(
            -EPERM,
            "%s belongs to uid %u: whoever can write there can make "
            "a backup promote wrong data: chown it to uid %u or "
            "to root",
            dir, (unsigned int)st.st_uid, (unsigned int)geteuid());
    if (st.st_mode & (S_IWGRP | S_IWOTH))
        return remus_fail(
            -EPERM,
            "%s has mode %04o: whoever can write there can make a "
            "backup promote wrong data: chmod go-w it",
            dir, (unsigned int)st.st_mode & 07777u);
    return 0;
}
