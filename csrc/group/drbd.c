/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Devices that answer the protocol D ioctls: DRBD nodes of a kernel that has
 * protocol D, and the files of our own FUSE node.  States: drbd_int.h.
 */
#include "group/drbd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork.h"
#include "group/drbd_int.h"

#define FUSE_MAGIC 0x65735546
#define READY_MS 2000 /* an old barrier was seen to take 0.8 s at most */

/* ---- open and close ------------------------------------------------------ */

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
    int fd = remus_fd_own(open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY));
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

int remus_drbd_open_as(const char *path, int is_node, const char *proc,
                       int ready_ms, remus_drbd **out)
{
    *out = NULL;
    int fd = open_file(path);
    if (fd < 0)
        return fd;
    int kind = is_node < 0 ? classify(fd, path) : is_node;
    struct stat st = {0};
    if (kind >= 0 && fstat(fd, &st))
        kind = remus_fail(-errno, "device %s: stat: %s", path,
                          remus_errno_text(errno));
    remus_drbd *dev = kind < 0 ? NULL : calloc(1, sizeof *dev);
    if (dev) {
        dev->path = strdup(path);
        dev->proc = strdup(proc);
    }
    if (!dev || !dev->path || !dev->proc) {
        remus_fd_close(fd);
        if (dev)
            free(dev->path);
        if (dev)
            free(dev->proc);
        free(dev);
        return kind < 0
                   ? kind
                   : remus_fail(-ENOMEM, "device %s: out of memory", path);
    }
    remus_entry_init(&dev->entry);
    dev->minor = minor(st.st_rdev);
    dev->ready_ms = ready_ms;
    dev->fd = fd;
    dev->is_node = kind;
    atomic_init(&dev->owners, 1);
    pthread_mutex_init(&dev->lock, NULL);
    *out = dev;
    return 0;
}

int remus_drbd_open(const char *path, remus_drbd **out)
{
    int no = remus_given(out, "drbd_open", "out");
    if (no)
        return no;
    *out = NULL;
    no = remus_given(path, "drbd_open", "path");
    if (no)
        return no;
    return remus_drbd_open_as(path, -1, REMUS_PROC_DRBD, READY_MS, out);
}

int remus_drbd_is_node(const remus_drbd *dev)
{
    int no = remus_enter(dev, "drbd_is_node");
    return no ? no : dev->is_node;
}

void remus_drbd_hold(remus_drbd *dev)
{
    atomic_fetch_add(&dev->owners, 1);
}

void remus_drbd_close(remus_drbd *dev)
{
    if (!dev || remus_enter(dev, "drbd_close") ||
        atomic_fetch_sub(&dev->owners, 1) > 1)
        return;
    remus_fd_close(dev->fd);
    pthread_mutex_destroy(&dev->lock);
    free(dev->path);
    free(dev->proc);
    free(dev);
}

/* ---- postsuspend --------------------------------------------------------- */

/* May a barrier follow?  0 or -errno (lock held).  (lock held) */
static int may_send(remus_drbd *dev)
{
    if (dev->waiting || (dev->state == SENT && remus_drbd_can_come(dev)))
        return remus_fail(-EBUSY,
                          "device %s: postsuspend: a barrier is outstanding: "
                          "preresume comes first",
                          dev->path);
    if (dev->state == STALE)
        return remus_fail(-ESTALE,
                          "device %s: postsuspend: the driver had no memory "
                          "for the epoch after the last one: open the device "
                          "again",
                          dev->path);
    return 0;
}

/* Nothing old must be on its way (lock held, given up meanwhile).  0; else
 * the error, which counts only if the driver does not say one itself. */
static int make_ready(remus_drbd *dev)
{
    if (dev->is_node || dev->ready)
        return 0;
    remus_drbd_wait_begin(dev, NULL);
    pthread_mutex_unlock(&dev->lock);
    int err = remus_drbd_until_ready(dev, "postsuspend", dev->ready_ms, 0);
    pthread_mutex_lock(&dev->lock);
    remus_drbd_wait_end(dev);
    dev->ready = !err;
    return err;
}

/* Does a 1 of the kernel's driver mean that all is there?  0 or -errno. */
static int all_there(remus_drbd *dev)
{
    struct remus_minor m;
    int err = remus_drbd_look(dev, &m);
    return err ? remus_drbd_not_ready(dev, "postsuspend (ioctl 20)", &m, err)
               : 0;
}

/* Send, once nothing old is on its way (lock held).  (lock held) */
static int send_ready(remus_drbd *dev, uint64_t tag)
{
    static const char what[] = "postsuspend (ioctl 20)";
    int err = make_ready(dev);
    if (err == -ENOTCONN || err == -ETIMEDOUT || err == -ECANCELED)
        return err;
    int rc = remus_drbd_send(dev, tag);
    if (rc < 0)
        return remus_drbd_ioctl_error(dev, what, rc, dev->answered);
    dev->answered = 1;
    if (err) {
        /* Connected in this very moment; or nobody can tell. */
        struct remus_minor m;
        int now = remus_drbd_look(dev, &m);
        return remus_drbd_not_ready(dev, what, &m, now ? now : -ETIMEDOUT);
    }
    if (rc && !dev->is_node)
        err = all_there(dev);
    return err ? err : rc;
}

int remus_drbd_postsuspend(remus_drbd *dev, uint64_t tag)
{
    int no = remus_enter(dev, "drbd_postsuspend");
    if (no)
        return no;
    pthread_mutex_lock(&dev->lock);
    int rc = may_send(dev);
    if (!rc) {
        if (dev->state != ACKED && dev->state != IDLE)
            dev->ready = 0;
        rc = send_ready(dev, tag);
        dev->late = 0;
        if (rc < 0) {
            dev->state = UNSENT;
            dev->unsent = rc;
            dev->ready = 0;
        } else {
            /* A kernel device that says 1 has sent nothing: no ack will
             * come. */
            dev->state = rc && !dev->is_node ? ACKED : SENT;
            dev->barriers++;
            dev->empty = rc;
        }
    }
    pthread_mutex_unlock(&dev->lock);
    return rc;
}

uint64_t remus_drbd_barriers(remus_drbd *dev, int *empty)
{
    if (remus_enter(dev, "drbd_barriers"))
        return 0;
    pthread_mutex_lock(&dev->lock);
    uint64_t barriers = dev->barriers;
    if (empty)
        *empty = dev->empty;
    pthread_mutex_unlock(&dev->lock);
    return barriers;
}

int remus_drbd_owes(remus_drbd *dev)
{
    pthread_mutex_lock(&dev->lock);
    int owes =
        !dev->is_node &&
        (dev->waiting || (dev->state == SENT && remus_drbd_can_come(dev)));
    pthread_mutex_unlock(&dev->lock);
    return owes;
}

void remus_drbd_abandon(remus_drbd *dev)
{
    pthread_mutex_lock(&dev->lock);
    if (dev->state == SENT)
        dev->state = dev->is_node ? LATE : LEFT;
    pthread_mutex_unlock(&dev->lock);
}

/* ---- commit -------------------------------------------------------------- */

int remus_drbd_commit(remus_drbd *dev)
{
    int no = remus_enter(dev, "drbd_commit");
    if (no)
        return no;
    if (!dev->is_node)
        return 0;
    pthread_mutex_lock(&dev->lock);
    int rc = 0;
    if (dev->waiting || dev->state == SENT || dev->state == LATE)
        rc = remus_fail(-EBUSY,
                        "device %s: commit: the ack is outstanding: "
                        "preresume comes first",
                        dev->path);
    else if (ioctl(dev->fd, REMUS_IOCTL_COMMIT_CHECKPOINT, 0) < 0)
        rc = remus_drbd_ioctl_error(dev, "commit (ioctl 40)", -errno, 0);
    pthread_mutex_unlock(&dev->lock);
    return rc;
}
