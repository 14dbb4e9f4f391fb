/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The checkpoint ioctls of a node; see fuse_int.h. */
#include <errno.h>

#include "node/fuse_int.h"

static void reply(fuse_req_t req, int rc)
{
    if (rc < 0)
        fuse_reply_err(req, -rc);
    else
        fuse_reply_ioctl(req, rc, NULL, 0);
}

static void on_acked(void *opaque, int result)
{
    struct remus_fuse_slot *w = opaque;
    reply(w->req, result);
    remus_fuse_slot_give(w->e, w);
}

static int lives(void *opaque)
{
    const struct remus_fuse_slot *w = opaque;
    return remus_file_lives(w->e, w->file);
}

static int ioctl_send(fuse_req_t req, struct remus_file *f, uint64_t tag)
{
    remus_export *e = remus_node_export(req);
    int err = remus_file_sent_by(e, f, (int32_t)fuse_req_ctx(req)->pid);
    if (err)
        return -EPROTO;
    uint64_t unique = remus_fuse_unique();
    pthread_mutex_lock(&e->lock);
    remus_primary *p = remus_node_primary(e);
    int rc = p ? 0 : remus_ioctl_send_nowhere(&f->ioctl, unique);
    pthread_mutex_unlock(&e->lock);
    return p ? remus_primary_ioctl_send(p, &f->ioctl, unique, tag) : rc;
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
static void ioctl_wait(fuse_req_t req, struct remus_file *f, uint64_t arg)
{
    remus_export *e = remus_node_export(req);
    remus_primary *p = remus_node_primary(e);
    if (arg == REMUS_WAIT_CANCEL) {
        remus_primary_wait_cancel(p, &f->ioctl, -ECANCELED);
        reply(req, 0);
        return;
    }
    int64_t limit = arg && arg < REMUS_WAIT_CANCEL ? (int64_t)arg : -1;
    if (e->adopted)
        remus_file_waits(e, f, (int32_t)fuse_req_ctx(req)->pid);
    struct remus_fuse_slot *w = remus_fuse_slot_take(e, req, 0);
    uint64_t id = remus_primary_wait_id(p);
    w->file = f;
    remus_primary_look_out(p);
    pthread_mutex_lock(&e->interrupt_lock);
    fuse_req_interrupt_func(req, on_interrupt, (void *)(uintptr_t)id);
    int rc = fuse_req_interrupted(req)
                 ? -EINTR
                 : remus_primary_ioctl_wait(p, &f->ioctl, limit, id, lives,
                                            on_acked, w);
    pthread_mutex_unlock(&e->interrupt_lock);
    if (rc == REMUS_PARKED)
        return;
    reply(req, rc);
    remus_fuse_slot_give(e, w);
}

void remus_ll_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int cmd,
                    void *arg, struct fuse_file_info *fi, unsigned int flags,
                    const void *in, size_t in_size, size_t out_size)
{
    (void)in;
    (void)in_size;
    (void)out_size;
    remus_export *e = remus_node_export(req);
    /* A directory has no entry in our table. */
    int ours = !(flags & FUSE_IOCTL_DIR) && remus_node_volume(e, ino) >= 0 &&
               (cmd == REMUS_IOCTL_SEND_CHECKPOINT ||
                cmd == REMUS_IOCTL_WAIT_CHECKPOINT_ACK ||
                cmd == REMUS_IOCTL_COMMIT_CHECKPOINT);
    struct remus_file *f = ours ? remus_file_of(e, fi) : NULL;
    if (!f) {
        fuse_reply_err(req, ours ? EBADF : ENOTTY);
        return;
    }
    remus_primary *p = remus_node_primary(e);
    if (cmd == REMUS_IOCTL_SEND_CHECKPOINT)
        reply(req, ioctl_send(req, f, (uint64_t)(uintptr_t)arg));
    else if (!p)
        reply(req, -EPROTO);
    else if (cmd == REMUS_IOCTL_WAIT_CHECKPOINT_ACK)
        ioctl_wait(req, f, (uint64_t)(uintptr_t)arg);
    else
        reply(req, remus_primary_ioctl_commit(p));
}
