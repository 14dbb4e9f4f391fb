/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What both halves of a device that answers the protocol D ioctls ask: one
 * ioctl 20, whether nothing old is on its way, and the words for errors.
 */
#include <errno.h>
#include <sys/ioctl.h>

#include "base/error.h"
#include "group/drbd_int.h"

int remus_drbd_send(remus_drbd *dev, uint64_t tag)
{
    int rc;
    do {
        rc = ioctl(dev->fd, REMUS_IOCTL_SEND_CHECKPOINT, tag);
    } while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : rc;
}

int remus_drbd_look(const remus_drbd *dev, struct remus_minor *m)
{
    if (remus_minor_read(dev->proc, dev->minor, m))
        return -ENODATA;
    if (!m->connected)
        return -EPROTO;
    if (m->protocol != 'D')
        return -EINVAL;
    if (!m->both_primary)
        return -ENOTCONN;
    return m->pending ? -ETIMEDOUT : 0;
}

/* ---- words --------------------------------------------------------------- */

int remus_drbd_not_ready(const remus_drbd *dev, const char *what,
                         const struct remus_minor *m, int err)
{
    switch (err) {
    case -EPROTO:
        return remus_fail(err,
                          "device %s: %s: the backup is not connected (%s, "
                          "%s): the epoch is on this host only%s",
                          dev->path, what, m->state, m->roles,
                          m->stand_alone ? ": drbdadm secondary on the other "
                                           "host first, then drbdadm connect "
                                           "on both"
                                         : "");
    case -ENOTCONN:
        return remus_fail(err,
                          "device %s: %s: %s: both sides must be "
                          "Primary/Primary, else no ack counts: drbdadm "
                          "primary on the other host",
                          dev->path, what, m->roles);
    case -ETIMEDOUT:
        return remus_fail(err,
                          "device %s: %s: an older barrier is still on its "
                          "way (pe:%lu in %s), and its ack would count for "
                          "the new one: try again",
                          dev->path, what, m->pending, dev->proc);
    case -EINVAL:
        return remus_fail(err, "device %s: %s: the resource uses protocol %c",
                          dev->path, what, m->protocol ? m->protocol : '?');
    default:
        return remus_fail(err,
                          "device %s: %s: %s does not tell whether an older "
                          "barrier of minor %u is on its way",
                          dev->path, what, dev->proc, dev->minor);
    }
}

int remus_drbd_ioctl_error(remus_drbd *dev, const char *what, int err,
                           int answered)
{
    struct remus_minor m;
    if (!dev->is_node && (err == -EPROTO || err == -EINVAL)) {
        int now = remus_drbd_look(dev, &m);
        if (now == -EPROTO)
            return remus_drbd_not_ready(dev, what, &m, now);
        /* StandAlone a moment ago, or so it must have been: a device does
         * not lose its protocol. */
        if (answered)
            err = -EPROTO;
    }
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
