/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Waiting for the ack of a barrier, and for a kernel's device to be ready for
 * the first one; and ending such a wait from outside.
 *
 * A kernel's wait that fails slowly says little: the driver gives up after
 * 2 x ping-timeout though the backup may be well.  What /proc/drbd says then
 * decides: not connected is a loss; `pe:` 0, seen before a wait that failed,
 * means that no ack can come.  If that is so with the guest still suspended
 * (in the first wait for this barrier, before its deadline) one more barrier
 * settles it: 1 means that the backup has everything (the driver had only
 * pretended to send, or somebody else took the ack), 0 that an ack will come.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "group/drbd_int.h"

#define AT_ONCE_NS 5000000u /* an EPROTO faster than this is a real loss */
#define CANCEL_TRIES 100    /* one each millisecond */
#define LOOK_NS 2000000     /* between two looks at /proc/drbd */

static const char WAIT[] = "preresume (ioctl 30)";

void remus_drbd_wait_begin(remus_drbd *dev, const _Atomic int *cancel)
{
    dev->waiting = 1;
    dev->waits++;
    atomic_store(&dev->cancel, cancel ? atomic_load(cancel) : 0);
    if (dev->cancel_signal)
        dev->waiter = (pid_t)syscall(SYS_gettid);
}

/* lock held */
void remus_drbd_wait_end(remus_drbd *dev)
{
    dev->waiting = 0;
}

/* ---- ready --------------------------------------------------------------- */

int remus_drbd_until_ready(remus_drbd *dev, const char *what,
                           int64_t timeout_ms, int all)
{
    struct remus_deadline end =
        remus_deadline_in(remus_clock_now(), timeout_ms);
    for (;;) {
        if (atomic_load(&dev->cancel))
            return remus_fail(-ECANCELED, "device %s: %s: cancelled",
                              dev->path, what);
        struct remus_minor m;
        int err = remus_drbd_look(dev, &m);
        if (!err)
            return 0;
        int waits =
            err == -ETIMEDOUT || (all && (err == -EPROTO || err == -ENOTCONN));
        if (!waits || remus_deadline_over(end, remus_clock_now()))
            return remus_drbd_not_ready(dev, what, &m, err);
        nanosleep(&(struct timespec){0, LOOK_NS}, NULL);
    }
}

int remus_drbd_wait_ready(remus_drbd *dev, int64_t timeout_ms)
{
    int no = remus_enter(dev, "drbd_wait_ready");
    if (no)
        return no;
    if (dev->is_node)
        return 0;
    pthread_mutex_lock(&dev->lock);
    int rc = 0;
    if (dev->waiting) {
        rc = remus_fail(-EBUSY, "device %s: wait_ready: another thread waits",
                        dev->path);
    } else {
        remus_drbd_wait_begin(dev, NULL);
        pthread_mutex_unlock(&dev->lock);
        rc = remus_drbd_until_ready(dev, "wait_ready", timeout_ms, 1);
        pthread_mutex_lock(&dev->lock);
        remus_drbd_wait_end(dev);
        dev->ready = !rc;
    }
    pthread_mutex_unlock(&dev->lock);
    return rc;
}

int remus_drbd_can_come(const remus_drbd *dev)
{
    struct remus_minor m;
    if (dev->is_node || !dev->late)
        return 1;
    int err = remus_drbd_look(dev, &m);
    return err == -ETIMEDOUT || err == -ENODATA ||
           (err == -ENOTCONN && m.pending);
}

/* ---- preresume ----------------------------------------------------------- */

/* One wait for the ack of the newest barrier. */
struct wait {
    struct remus_deadline end;
    uint64_t start, now; /* of the newest ioctl */
    int first;           /* nobody gave this barrier up: the guest stands */
    int at_once;         /* EPROTOs in a row that came at once */
    int strays;          /* cancels that were meant for an earlier wait */
    int hopeless;        /* before the newest ioctl no ack could come */
};

/* One ioctl 30; a node keeps to the time itself. */
static int wait_once(remus_drbd *dev, const struct wait *w)
{
    uint64_t arg = 0;
    int64_t ms = remus_deadline_ms(w->end, w->start);
    if (dev->is_node && ms >= 0)
        arg = ms ? (uint64_t)ms : 1;
    if (arg >= REMUS_WAIT_CANCEL)
        arg = 0;
    return ioctl(dev->fd, REMUS_IOCTL_WAIT_CHECKPOINT_ACK, arg) < 0 ? -errno
                                                                    : 0;
}

/* No ack can come: find out with one more barrier, if that is allowed.  0:
 * all is there; 1: an ack will come; -errno. */
static int settle(remus_drbd *dev, struct wait *w)
{
    struct remus_minor m;
    if (!w->first || remus_deadline_over(w->end, w->now) ||
        remus_drbd_look(dev, &m))
        return -ETIME;
    int rc = remus_drbd_send(dev, 0);
    w->first = 0;
    w->hopeless = 0;
    if (rc == 1)
        return remus_drbd_look(dev, &m) ? -ETIME : 0;
    return rc < 0 ? rc : 1;
}

/* The kernel's driver said EPROTO, and not because of a cancel.  0: safe all
 * the same; 1: wait on; -errno. */
static int given_up(remus_drbd *dev, struct wait *w)
{
    w->at_once = w->now - w->start < AT_ONCE_NS ? w->at_once + 1 : 0;
    if (w->at_once >= 2)
        return -EPROTO;
    if (dev->is_node)
        return 1;
    struct remus_minor m;
    int now = remus_drbd_look(dev, &m);
    if (now == -EPROTO)
        return now;
    if (w->hopeless)
        return settle(dev, w);
    /* One wait more: it may have come between that and the look. */
    w->hopeless = now == 0 || now == -ENOTCONN;
    return 1;
}

/*
 * Wait until acked, lost, cancelled, or past the deadline; signals are
 * blocked, for one that arrives would look like a lost backup.
 */
static int wait_ack(remus_drbd *dev, struct wait *w)
{
    w->now = remus_clock_now();
    for (;;) {
        if (atomic_load(&dev->cancel))
            return -ECANCELED;
        w->start = w->now;
        int err = wait_once(dev, w);
        /* Cancelled by a signal, a kernel device says EPROTO. */
        if (!err || (atomic_load(&dev->cancel) && err != -ENOMEM))
            return err ? -ECANCELED : 0;
        w->now = remus_clock_now();
        if (err == -EPROTO) {
            int rc = given_up(dev, w);
            if (rc <= 0)
                return rc;
        } else if (err == -ECANCELED && dev->is_node &&
                   w->strays < CANCEL_TRIES) {
            w->strays++; /* meant for the wait before, which was over */
        } else if (err != -EINTR) {
            return err;
        }
        if (remus_deadline_over(w->end, w->now))
            return w->at_once ? -EPROTO : -ETIMEDOUT;
    }
}

static int lapsed(remus_drbd *dev)
{
    struct remus_minor m;
    int err = remus_drbd_look(dev, &m);
    return remus_fail(-ETIME,
                      "device %s: preresume: no ack can come any longer%s%s: "
                      "whether the backup has the epoch is unknown: "
                      "postsuspend again",
                      dev->path, err == -ENOTCONN ? ", the roles are " : "",
                      err == -ENOTCONN ? m.roles : "");
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
    case -ETIME:
        if (dev->is_node)
            break;
        dev->state = LAPSED;
        return lapsed(dev);
    case -ETIMEDOUT:
    case -ECANCELED:
        dev->state = dev->is_node ? LATE : SENT;
        dev->late = 1;
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
    dev->state = LOST;
    return remus_drbd_ioctl_error(dev, WAIT, rc, 1);
}

/* Is there anything to wait for?  1; 0 or -errno: the result (lock held). */
static int may_wait(remus_drbd *dev)
{
    if (dev->waiting)
        return remus_fail(-EBUSY, "device %s: preresume: another thread waits",
                          dev->path);
    switch (dev->state) {
    case UNSENT:
        return remus_fail(dev->unsent,
                          "device %s: preresume: its barrier could not be "
                          "sent: postsuspend again",
                          dev->path);
    case LOST:
        return remus_drbd_ioctl_error(dev, WAIT, -EPROTO, 1);
    case LAPSED:
        return lapsed(dev);
    case LEFT:
        return remus_fail(-ESTALE,
                          "device %s: preresume: its barrier was abandoned: "
                          "postsuspend again",
                          dev->path);
    default:
        return dev->state == SENT || dev->state == LATE;
    }
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
    struct wait w = {.end = remus_deadline_in(remus_clock_now(), timeout_ms),
                     .first = !dev->late,
                     .hopeless = !remus_drbd_can_come(dev)};
    remus_drbd_wait_begin(dev, cancel);
    int cancel_signal = dev->cancel_signal;
    pthread_mutex_unlock(&dev->lock);
    sigset_t all, before;
    sigfillset(&all);
    if (cancel_signal)
        sigdelset(&all, cancel_signal);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = wait_ack(dev, &w);
    pthread_mutex_lock(&dev->lock);
    remus_drbd_wait_end(dev);
    rc = after_wait(dev, rc, timeout_ms);
    pthread_mutex_unlock(&dev->lock);
    /* Only now: a late cancel signal must not end another call. */
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

int remus_drbd_preresume(remus_drbd *dev, int64_t timeout_ms)
{
    int no = remus_enter(dev, "drbd_preresume");
    return no ? no : remus_drbd_preresume_until(dev, timeout_ms, NULL);
}

/* ---- ended from outside -------------------------------------------------- */

/* Tell the one who waits, once.  1: it may need telling again. */
static int wake_up(remus_drbd *dev)
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
        if (!wake_up(dev))
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
    int no = remus_enter(dev, "drbd_cancel");
    if (no)
        return no;
    return remus_drbd_cancel_if(dev, NULL);
}

int remus_drbd_cancel_signal(remus_drbd *dev, int signal)
{
    int no = remus_enter(dev, "drbd_cancel_signal");
    if (no)
        return no;
    struct sigaction action;
    if (signal && (signal < 1 || sigaction(signal, NULL, &action)))
        return remus_fail(-EINVAL, "device %s: no signal %d", dev->path,
                          signal);
    if (signal &&
        (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN ||
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
