/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The checkpoint ioctls of a node; see fuse_int.h. */
#include <errno.h>

#include "fuse_int.h"

static void on_acked(void *opaque, int result)
{
    struct remus_pending *w = opaque;
    if (result < 0)
        fuse_reply_err(w->req, -result);
    else
        fuse_reply_ioctl(w->req, 0, NULL, 0);
    remus_pending_give(w->e, w);
}

static void ioctl_send(fuse_req_t req, struct remus_handle *h, uint64_t tag)
{
    remus_primary *p = remus_node_primary(remus_node_export(req));
    int rc = remus_primary_ioctl_send(p, (unsigned int)h->volume, tag);
    if (rc < 0) {
        fuse_reply_err(req, -rc);
        return;
    }
    if (!atomic_exchange(&h->sent, 1))
        remus_primary_ioctl_attach(p);
    fuse_reply_ioctl(req, rc, NULL, 0);
}

/* The caller of ioctl 30 got a signal. */
static void on_interrupt(fuse_req_t req, void *data)
{
    remus_export *e = remus_node_export(req);
    /* It comes when it comes: let the request be parked first. */
    pthread_mutex_lock(&e->interrupt_lock);
    pthread_mutex_unlock(&e->interrupt_lock);
    remus_primary_wait_cancel_id(remus_node_primary(e),
                                 (uint64_t)(uintptr_t)data, -EINTR);
}

/*
 * `arg`: 0 no limit, as libxl says; REMUS_WAIT_CANCEL: end the waits of this
 * open file; else a limit in ms.
 */
static void ioctl_wait(fuse_req_t req, struct remus_handle *h, uint64_t arg)
{
    remus_export *e = remus_node_export(req);
    remus_primary *p = remus_node_primary(e);
    if (arg == REMUS_WAIT_CANCEL) {
        remus_primary_wait_cancel(p, h, -ECANCELED);
        fuse_reply_ioctl(req, 0, NULL, 0);
        return;
    }
    int64_t limit = arg && arg < REMUS_WAIT_CANCEL ? (int64_t)arg : -1;
    struct remus_pending *w = remus_pending_take(e, req, 0);
    uint64_t id = remus_primary_wait_id(p);
    int rc = -ENOMEM;
    if (w) {
        pthread_mutex_lock(&e->interrupt_lock);
        fuse_req_interrupt_func(req, on_interrupt, (void *)(uintptr_t)id);
        rc = fuse_req_interrupted(req)
                 ? -EINTR
                 : remus_primary_ioctl_wait(p, (unsigned int)h->volume, limit,
                                            h, id, on_acked, w);
        pthread_mutex_unlock(&e->interrupt_lock);
    }
    if (rc == REMUS_PARKED)
        return;
    if (rc < 0)
        fuse_reply_err(req, -rc);
    else
        fuse_reply_ioctl(req, 0, NULL, 0);
    remus_pending_give(e, w);
}

void remus_ll_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int cmd,
                    void *arg, struct fuse_file_info *fi, unsigned int flags,
                    const void *in, size_t in_size, size_t out_size)
{
    (void)in;
    (void)in_size;
    (void)out_size;
    remus_export *e = remus_node_export(req);
    /* A directory has no handle of ours. */
    if ((flags & FUSE_IOCTL_DIR) || remus_node_volume(e, ino) < 0) {
        fuse_reply_err(req, ENOTTY);
        return;
    }
    struct remus_handle *h = remus_node_handle(fi);
    int ours = cmd == REMUS_IOCTL_SEND_CHECKPOINT ||
               cmd == REMUS_IOCTL_WAIT_CHECKPOINT_ACK ||
               cmd == REMUS_IOCTL_COMMIT_CHECKPOINT;
    remus_primary *p = remus_node_primary(e);
    if (!ours || !p) {
        fuse_reply_err(req, ours ? EPROTO : ENOTTY);
        return;
    }
    int rc;
    switch (cmd) {
    case REMUS_IOCTL_SEND_CHECKPOINT:
        ioctl_send(req, h, (uint64_t)(uintptr_t)arg);
        break;
    case REMUS_IOCTL_WAIT_CHECKPOINT_ACK:
        ioctl_wait(req, h, (uint64_t)(uintptr_t)arg);
        break;
    case REMUS_IOCTL_COMMIT_CHECKPOINT:
        rc = remus_primary_ioctl_commit(p, (unsigned int)h->volume);
        if (rc < 0)
            fuse_reply_err(req, -rc);
        else
            fuse_reply_ioctl(req, 0, NULL, 0);
        break;
    default:
        fuse_reply_err(req, ENOTTY);
        break;
    }
}
