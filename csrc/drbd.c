/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Devices that answer the protocol D ioctls: DRBD nodes of a kernel that has
 * protocol D, and the files of our own FUSE node.
 *
 * States of a device:
 *   IDLE     no barrier outstanding
 *   SENT     a barrier is outstanding
 *   LATE     node only: and a wait for it gave up; a new barrier may follow
 *   LEFT     kernel only: nobody will wait for it, and with its "barrier
 *            queued" flag still there no barrier can follow; as STALE
 *   ACKED    the newest barrier is safe and may be committed
 *   LOST     node only: the newest barrier is lost; a new one may follow
 *   STALE    kernel only: a wait failed; the driver still holds its "barrier
 *            queued" flag, would pretend to send, and would drop a late ack.
 *            Only a reconnect and a fresh open help.
 * postsuspend: IDLE, LATE, ACKED, LOST -> SENT.  preresume: SENT, LATE ->
 * ACKED; stays SENT (kernel) or becomes LATE (node) on a timeout; becomes
 * STALE (kernel) or LOST (node) on a loss, and says so until the next
 * barrier.  abandon: SENT -> LEFT (kernel) or LATE (node).
 */
#include "drbd.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "remus_testing.h"

#define FUSE_MAGIC 0x65735546
#define AT_ONCE_NS 5000000u /* an EPROTO faster than this is a real loss */
#define CANCEL_TRIES 100    /* one each millisecond */

enum drbd_state { IDLE, SENT, LATE, LEFT, ACKED, LOST, STALE };

struct remus_drbd {
    char *path;            /* constant */
    int fd;                /* constant */
    int is_node;           /* constant: a file of our FUSE node */
    _Atomic int owners;    /* the last one frees */
    pthread_mutex_t lock;
    enum drbd_state state; /* lock */
    uint64_t barriers;     /* lock: sent so far */
    int empty;             /* lock: what ioctl 20 said of the newest */
    int lost;              /* lock: STALE by a loss, not by -ENOMEM */
    int cancel_signal;     /* lock: 0 none */
    int waiting;           /* lock: a preresume is in the kernel */
    uint64_t waits;        /* lock: its number */
    pid_t waiter;          /* lock: its thread, while `waiting` */
    _Atomic int cancel;    /* that preresume shall end */
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
    atomic_init(&dev->owners, 1);
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
    case -EAGAIN:
        return remus_fail(err,
                          "device %s: %s: no room for a barrier: too many "
                          "have no ack yet, or the backup's journal is full "
                          "of checkpoints that were not committed",
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
    } else if (dev->state == STALE || dev->state == LEFT) {
        rc = remus_fail(-ESTALE,
                        "device %s: postsuspend: %s before, and the driver "
                        "would only pretend to send: reconnect the resource "
                        "and open it again",
                        dev->path,
                        dev->state == STALE ? "a wait failed"
                                            : "a barrier was not waited for");
    } else {
        rc = send_barrier(dev, tag);
        if (rc < 0) {
            rc = ioctl_error(dev, "postsuspend (ioctl 20)", rc);
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

/* One ioctl 30; a node keeps to the time itself. */
static int wait_once(remus_drbd *dev, uint64_t now, uint64_t deadline)
{
    uint64_t arg = 0;
    if (dev->is_node && deadline != UINT64_MAX)
        arg = now >= deadline ? 1 : (deadline - now + 999999u) / 1000000u;
    if (arg >= REMUS_WAIT_CANCEL)
        arg = 0;
    return ioctl(dev->fd, REMUS_IOCTL_WAIT_CHECKPOINT_ACK, arg) < 0 ? -errno
                                                                    : 0;
}

/*
 * Wait until acked, lost, cancelled, or past the deadline; signals are
 * blocked, for one that arrives would look like a lost backup.
 */
static int wait_ack(remus_drbd *dev, int64_t timeout_ms)
{
    uint64_t end = now_ns();
    uint64_t deadline = timeout_ms < 0
                            ? UINT64_MAX
                            : end + (uint64_t)timeout_ms * 1000000u;
    int at_once = 0, strays = 0;
    for (;;) {
        if (atomic_load(&dev->cancel))
            return -ECANCELED;
        uint64_t start = end;
        int err = wait_once(dev, start, deadline);
        /* Cancelled by a signal, a kernel device says EPROTO. */
        if (!err || (atomic_load(&dev->cancel) && err != -ENOMEM))
            return err ? -ECANCELED : 0;
        end = now_ns();
        if (err == -EPROTO) {
            /* The driver gives up after 2 x ping-timeout though the backup
             * may be well; a lost connection answers at once, every time. */
            at_once = end - start < AT_ONCE_NS ? at_once + 1 : 0;
            if (at_once >= 2)
                return err;
        } else if (err == -ECANCELED && dev->is_node &&
                   strays < CANCEL_TRIES) {
            strays++; /* meant for the wait before, which was over by then */
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
    case -ECANCELED:
        dev->state = dev->is_node ? LATE : SENT;
        if (rc == -ECANCELED)
            return remus_fail(rc,
                              "device %s: preresume: cancelled; the ack may "
                              "still come: wait again",
                              dev->path);
        return remus_fail(rc,
                          "device %s: preresume: no ack after %lld ms; it "
                          "may still come: wait again",
                          dev->path, (long long)timeout_ms);
    default:
        break;
    }
    dev->state = dev->is_node ? LOST : STALE;
    dev->lost = 1;
    return ioctl_error(dev, "preresume (ioctl 30)", rc);
}

/* Is there anything to wait for?  1; 0 or -errno: the result (lock held). */
static int may_wait(remus_drbd *dev)
{
    if (dev->waiting)
        return remus_fail(-EBUSY, "device %s: preresume: another thread waits",
                          dev->path);
    if (dev->state == LOST || (dev->state == STALE && dev->lost))
        return ioctl_error(dev, "preresume (ioctl 30)", -EPROTO);
    if (dev->state == LEFT)
        return remus_fail(-ESTALE,
                          "device %s: preresume: its barrier was given up",
                          dev->path);
    return dev->state == SENT || dev->state == LATE;
}

int remus_drbd_preresume_until(remus_drbd *dev, int64_t timeout_ms,
                               const _Atomic int *cancel)
{
    pthread_mutex_lock(&dev->lock);
    int rc = may_wait(dev);
    if (rc <= 0) {
        pthread_mutex_unlock(&dev->lock);
        return rc;
    }
    dev->waiting = 1;
    dev->waits++;
    int cancel_signal = dev->cancel_signal;
    atomic_store(&dev->cancel, cancel ? atomic_load(cancel) : 0);
    if (cancel_signal)
        dev->waiter = (pid_t)syscall(SYS_gettid);
    pthread_mutex_unlock(&dev->lock);
    sigset_t all, before;
    sigfillset(&all);
    if (cancel_signal)
        sigdelset(&all, cancel_signal);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = wait_ack(dev, timeout_ms);
    pthread_mutex_lock(&dev->lock);
    dev->waiting = 0;
    rc = after_wait(dev, rc, timeout_ms);
    pthread_mutex_unlock(&dev->lock);
    /* Only now: a late cancel signal must not end another call. */
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

int remus_drbd_preresume(remus_drbd *dev, int64_t timeout_ms)
{
    return remus_drbd_preresume_until(dev, timeout_ms, NULL);
}

/* Tell the one who waits, once.  1: it may need telling again. */
static int nudge(remus_drbd *dev)
{
    if (dev->is_node) {
        ioctl(dev->fd, REMUS_IOCTL_WAIT_CHECKPOINT_ACK, REMUS_WAIT_CANCEL);
        return 1;
    }
    pthread_mutex_lock(&dev->lock);
    int again = dev->waiting && dev->cancel_signal;
    if (again)
        syscall(SYS_tgkill, getpid(), dev->waiter, dev->cancel_signal);
    pthread_mutex_unlock(&dev->lock);
    return again;
}

/* Is a thread still in the wait of this number? */
static int in_wait(remus_drbd *dev, uint64_t number)
{
    pthread_mutex_lock(&dev->lock);
    int waiting = dev->waiting && dev->waits == number;
    pthread_mutex_unlock(&dev->lock);
    return waiting;
}

int remus_drbd_cancel_if(remus_drbd *dev, const _Atomic int *only_if)
{
    pthread_mutex_lock(&dev->lock);
    int waiting = dev->waiting && (!only_if || atomic_load(only_if));
    uint64_t number = dev->waits;
    if (waiting)
        atomic_store(&dev->cancel, 1);
    pthread_mutex_unlock(&dev->lock);
    /* It can be on its way into the kernel just now, where a word that came
     * before it is not heard: so again, until it is out. */
    for (int i = 0; waiting && i < CANCEL_TRIES; i++) {
        if (!nudge(dev))
            break;
        waiting = in_wait(dev, number);
        if (waiting)
            nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    return waiting ? remus_fail(-EINPROGRESS,
                                "device %s: cancel: the wait is inside the "
                                "driver, which ends it by its own limit",
                                dev->path)
                   : 0;
}

int remus_drbd_cancel(remus_drbd *dev)
{
    return remus_drbd_cancel_if(dev, NULL);
}

int remus_drbd_cancel_signal(remus_drbd *dev, int signal)
{
    struct sigaction action;
    if (signal && (signal < 1 || sigaction(signal, NULL, &action)))
        return remus_fail(-EINVAL, "device %s: no signal %d", dev->path,
                          signal);
    if (signal && (action.sa_handler == SIG_DFL ||
                   action.sa_handler == SIG_IGN ||
                   (action.sa_flags & SA_RESTART)))
        return remus_fail(-EINVAL,
                          "device %s: signal %d cannot end a wait: install "
                          "a handler for it, without SA_RESTART",
                          dev->path, signal);
    pthread_mutex_lock(&dev->lock);
    int rc = dev->waiting ? -EBUSY : 0;
    if (rc)
        remus_fail(rc, "device %s: a preresume is under way", dev->path);
    else
        dev->cancel_signal = signal;
    pthread_mutex_unlock(&dev->lock);
    return rc;
}

uint64_t remus_drbd_barriers(remus_drbd *dev, int *empty)
{
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
    int owes = !dev->is_node && (dev->waiting || dev->state == SENT);
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

int remus_drbd_commit(remus_drbd *dev)
{
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
        rc = ioctl_error(dev, "commit (ioctl 40)", -errno);
    pthread_mutex_unlock(&dev->lock);
    return rc;
}

void remus_drbd_hold(remus_drbd *dev)
{
    atomic_fetch_add(&dev->owners, 1);
}

void remus_drbd_close(remus_drbd *dev)
{
    if (!dev || atomic_fetch_sub(&dev->owners, 1) > 1)
        return;
    close(dev->fd);
    pthread_mutex_destroy(&dev->lock);
    free(dev->path);
    free(dev);
}
