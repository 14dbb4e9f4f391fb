/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Devices that answer the protocol D ioctls: DRBD nodes of a kernel that has
 * protocol D, and the files of our own FUSE node.
 *
 * States of a device (guarded by its lock):
 *   IDLE     no barrier outstanding
 *   SENT     a barrier is outstanding
 *   ACKED    the newest barrier is safe and may be committed
 *   STALE    kernel only: a wait failed; the driver still holds its "barrier
 *            queued" flag, would pretend to send, and would drop a late ack.
 *            Only a reconnect and a fresh open help.
 * postsuspend: IDLE, ACKED -> SENT.  preresume: SENT -> ACKED, or stays SENT
 * (timeout), or -> STALE (kernel) / IDLE (node) on loss.
 */
#include "drbd.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "remus_testing.h"

#define FUSE_MAGIC 0x65735546
#define AT_ONCE_NS 5000000u /* an EPROTO faster than this is a real loss */

enum drbd_state { IDLE, SENT, ACKED, STALE };

struct remus_drbd {
    char *path;            /* constant */
    int fd;                /* constant */
    int is_node;           /* constant: a file of our FUSE node */
    pthread_mutex_t lock;
    enum drbd_state state; /* lock */
    int waiting;           /* lock: a preresume is in the kernel */
};

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* What kind of thing is it?  1: our node; 0: a device; -errno. */
static int classify(int fd, const char *path)
{
    struct stat st;
    struct statfs fs;
    if (fstat(fd, &st) || fstatfs(fd, &fs))
        return remus_fail(-errno, "device %s: stat: %s", path,
                          remus_errno_text(errno));
    if (S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode))
        return 0;
    if (S_ISREG(st.st_mode) && (uint32_t)fs.f_type == FUSE_MAGIC)
        return 1;
    return remus_fail(-ENOTTY,
                      "device %s: neither a block device nor a file of a "
                      "replica's node: it takes no checkpoints",
                      path);
}

static int open_file(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd >= 0)
        return fd;
    int err = -errno;
    const char *hint = "";
    if (err == -EMEDIUMTYPE)
        hint = ": the DRBD resource is Secondary here, make it Primary";
    else if (err == -ENXIO)
        hint = ": the DRBD minor is not configured, run drbdadm up";
    else if (err == -ENOENT) /* a minor's node goes when it is down */
        hint = ": run drbdadm up if it is DRBD, or mount the replica's node";
    return remus_fail(err, "device %s: open: %s%s", path,
                      remus_errno_text(err), hint);
}

int remus_drbd_open_as(const char *path, int is_node, remus_drbd **out)
{
    *out = NULL;
    if (!path)
        return remus_fail(-EINVAL, "device: no path given");
    int fd = open_file(path);
    if (fd < 0)
        return fd;
    int kind = is_node < 0 ? classify(fd, path) : is_node;
    remus_drbd *dev = kind < 0 ? NULL : calloc(1, sizeof *dev);
    char *copy = dev ? strdup(path) : NULL;
    if (!copy) {
        close(fd);
        free(dev);
        return kind < 0 ? kind
                        : remus_fail(-ENOMEM, "device %s: out of memory",
                                     path);
    }
    dev->path = copy;
    dev->fd = fd;
    dev->is_node = kind;
    pthread_mutex_init(&dev->lock, NULL);
    *out = dev;
    return 0;
}

int remus_drbd_open(const char *path, remus_drbd **out)
{
    return remus_drbd_open_as(path, -1, out);
}

int remus_test_drbd_open_as(const char *path, int is_node, remus_drbd **out)
{
    return remus_drbd_open_as(path, is_node, out);
}

int remus_drbd_is_node(const remus_drbd *dev)
{
    return dev->is_node;
}

/* The words for a failed ioctl. */
static int ioctl_error(const remus_drbd *dev, const char *what, int err)
{
    switch (err) {
    case -EPROTO:
        return remus_fail(err,
                          "device %s: %s: the backup is not connected: the "
                          "epoch is on this host only",
                          dev->path, what);
    case -EINVAL:
        return remus_fail(err,
                          "device %s: %s: the resource has no network "
                          "configuration or does not use protocol D",
                          dev->path, what);
    case -ENOTTY:
        return remus_fail(err,
                          "device %s: %s: the driver has no checkpoint "
                          "ioctls: a module with protocol D is needed",
                          dev->path, what);
    default:
        return remus_fail(err, "device %s: %s: %s", dev->path, what,
                          remus_errno_text(err));
    }
}

static int send_barrier(remus_drbd *dev, uint64_t tag)
{
    int rc;
    do {
        rc = ioctl(dev->fd, REMUS_IOCTL_SEND_CHECKPOINT, tag);
    } while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : rc;
}

int remus_drbd_postsuspend(remus_drbd *dev, uint64_t tag)
{
    pthread_mutex_lock(&dev->lock);
    int rc;
    if (dev->waiting || dev->state == SENT) {
        rc = remus_fail(-EBUSY,
                        "device %s: postsuspend: a barrier is outstanding: "
                        "preresume comes first",
                        dev->path);
    } else if (dev->state == STALE) {
        rc = remus_fail(-ESTALE,
                        "device %s: postsuspend: a wait failed before, and "
                        "the driver would only pretend to send: reconnect "
                        "the resource and open it again",
                        dev->path);
    } else {
        rc = send_barrier(dev, tag);
        if (rc < 0)
            rc = ioctl_error(dev, "postsuspend (ioctl 20)", rc);
        /* A kernel device that says 1 has sent nothing: no ack will come. */
        else
            dev->state = rc && !dev->is_node ? ACKED : SENT;
    }
    pthread_mutex_unlock(&dev->lock);
    return rc;
}

/*
 * Wait until acked, lost, or past the deadline; signals are blocked, for one
 * that arrives would look like a lost backup.
 */
static int wait_ack(remus_drbd *dev, int64_t timeout_ms)
{
    uint64_t deadline =
        timeout_ms < 0 ? UINT64_MAX
                       : now_ns() + (uint64_t)timeout_ms * 1000000u;
    int at_once = 0;
    for (;;) {
        uint64_t start = now_ns();
        int rc = ioctl(dev->fd, REMUS_IOCTL_WAIT_CHECKPOINT_ACK, 0);
        if (rc >= 0)
            return 0;
        int err = -errno;
        uint64_t end = now_ns();
        if (err == -EPROTO) {
            /* The driver gives up after 2 x ping-timeout though the backup
             * may be well; a lost connection answers at once, every time. */
            at_once = end - start < AT_ONCE_NS ? at_once + 1 : 0;
            if (at_once >= 2)
                return err;
        } else if (err != -EINTR) {
            return err;
        }
        if (end >= deadline)
            return at_once ? -EPROTO : -ETIMEDOUT;
    }
}

/* What the answer makes of the device (lock held). */
static int after_wait(remus_drbd *dev, int rc, int64_t timeout_ms)
{
    switch (rc) {
    case 0:
        dev->state = ACKED;
        return 0;
    case -ENOMEM:
        if (dev->is_node)
            break;
        /* The ack is in; the driver has no room for the next epoch. */
        dev->state = STALE;
        return 0;
    case -ETIMEDOUT:
        return remus_fail(rc,
                          "device %s: preresume: no ack after %lld ms; it "
                          "may still come: wait again",
                          dev->path, (long long)timeout_ms);
    default:
        break;
    }
    dev->state = dev->is_node ? IDLE : STALE;
    return ioctl_error(dev, "preresume (ioctl 30)", rc);
}

int remus_drbd_preresume(remus_drbd *dev, int64_t timeout_ms)
{
    pthread_mutex_lock(&dev->lock);
    if (dev->waiting) {
        pthread_mutex_unlock(&dev->lock);
        return remus_fail(-EBUSY,
                          "device %s: preresume: another thread waits",
                          dev->path);
    }
    if (dev->state != SENT) {
        pthread_mutex_unlock(&dev->lock);
        return 0;
    }
    dev->waiting = 1;
    pthread_mutex_unlock(&dev->lock);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = wait_ack(dev, timeout_ms);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_mutex_lock(&dev->lock);
    dev->waiting = 0;
    rc = after_wait(dev, rc, timeout_ms);
    pthread_mutex_unlock(&dev->lock);
    return rc;
}

int remus_drbd_commit(remus_drbd *dev)
{
    if (!dev->is_node)
        return 0;
    pthread_mutex_lock(&dev->lock);
    int rc = 0;
    if (dev->waiting || dev->state == SENT)
        rc = remus_fail(-EBUSY,
                        "device %s: commit: the ack is outstanding: "
                        "preresume comes first",
                        dev->path);
    else if (ioctl(dev->fd, REMUS_IOCTL_COMMIT_CHECKPOINT, 0) < 0)
        rc = ioctl_error(dev, "commit (ioctl 40)", -errno);
    pthread_mutex_unlock(&dev->lock);
    return rc;
}

void remus_drbd_close(remus_drbd *dev)
{
    if (!dev)
        return;
    close(dev->fd);
    pthread_mutex_destroy(&dev->lock);
    free(dev->path);
    free(dev);
}
