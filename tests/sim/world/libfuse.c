/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libfuse, as far as the nodes call it, on the model of the kernel's side
 * (device.h); and of the mount point, which is not there, what fuse_mount.c
 * would do.  An answer is one step, with points before and behind it.
 *
 * Threads have no cancellation here: whoever is cancelled reads that there
 * will be no more requests.
 */
#include <errno.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device.h"
#include "net.h"
#include "node/fuse_int.h"
#include "sched.h"

struct fuse_session {
    const struct fuse_lowlevel_ops *ops;
    void *userdata;
    int fd, host, exited;
};

struct fuse_req {
    struct fuse_session *se;
    uint64_t unique;
    struct fuse_ctx ctx;
};

static struct fuse_session *newest[2]; /* of each host */

/* ---- the mount ---------------------------------------------------------------- */

static void new_session(remus_export *e, const struct fuse_lowlevel_ops *ops,
                        int fd)
{
    int host = world_thread_host();
    struct fuse_session *se = calloc(1, sizeof *se);
    if (!se)
        world_fail("out of memory");
    *se = (struct fuse_session){ops, e, fd, host, 0};
    newest[host] = e->se = se;
    e->guard.dir = -1;
    e->ours = 1;
}

int __wrap_remus_mount_check(const char *path, const char *source);
int __wrap_remus_mount_check(const char *path, const char *source)
{
    (void)path;
    (void)source;
    return 0;
}

int __wrap_remus_mount_open(remus_export *e, const char *source,
                            const struct fuse_lowlevel_ops *ops, int device);
int __wrap_remus_mount_open(remus_export *e, const char *source,
                            const struct fuse_lowlevel_ops *ops, int device)
{
    (void)source;
    world_point("mount");
    e->kept.head->mounted = 1;
    world_point("mounted");
    new_session(e, ops, device);
    return 0;
}

int __wrap_remus_mount_again(remus_export *e, int device,
                             const struct fuse_lowlevel_ops *ops);
int __wrap_remus_mount_again(remus_export *e, int device,
                             const struct fuse_lowlevel_ops *ops)
{
    new_session(e, ops, device);
    return 0;
}

/* Of the kernel's descriptor, over the one that swallowed an answer. */
int __wrap_dup3(int from, int to, int flags);
int __wrap_dup3(int from, int to, int flags)
{
    struct fuse_session *se = newest[world_thread_host()];
    (void)flags;
    if (se->fd != to)
        world_fail("dup3 of something else");
    close(to);
    se->fd = from;
    return from;
}

void __wrap_remus_mount_close(remus_export *e);
void __wrap_remus_mount_close(remus_export *e)
{
    device_end(e->se->host);
}

void __wrap_remus_mount_detach(remus_export *e);
void __wrap_remus_mount_detach(remus_export *e)
{
    device_end(e->se->host);
}

/* ---- sessions ------------------------------------------------------------------ */

int fuse_session_fd(struct fuse_session *se)
{
    return se->fd;
}

int fuse_session_exited(struct fuse_session *se)
{
    return se->exited;
}

void fuse_session_exit(struct fuse_session *se)
{
    se->exited = 1;
}

void fuse_session_destroy(struct fuse_session *se)
{
    free(se);
}

static void init(struct fuse_session *se)
{
    struct fuse_conn_info conn = {.capable = FUSE_CAP_ATOMIC_O_TRUNC |
                                             FUSE_CAP_ASYNC_DIO};
    se->ops->init(se->userdata, &conn);
}

/* Those that have a file. */
static void of_file(struct fuse_req *req, const struct fuse_in_header *in,
                    const void *body)
{
    const struct fuse_lowlevel_ops *ops = req->se->ops;
    const struct fuse_open_in *open = body;
    const struct fuse_release_in *release = body;
    const struct fuse_read_in *r = body;
    const struct fuse_write_in *w = body;
    const struct fuse_fallocate_in *f = body;
    const struct fuse_fsync_in *s = body;
    struct fuse_file_info fi = {.flags = O_RDWR};
    switch (in->opcode) {
    case FUSE_OPEN:
        fi.flags = (int)open->flags;
        ops->open(req, in->nodeid, &fi);
        return;
    case FUSE_RELEASE:
        fi.fh = release->fh;
        ops->release(req, in->nodeid, &fi);
        return;
    case FUSE_READ:
        fi.fh = r->fh;
        ops->read(req, in->nodeid, r->size, (off_t)r->offset, &fi);
        return;
    case FUSE_WRITE:
        fi.fh = w->fh;
        ops->write(req, in->nodeid, (const char *)(w + 1), w->size,
                   (off_t)w->offset, &fi);
        return;
    case FUSE_FALLOCATE:
        fi.fh = f->fh;
        ops->fallocate(req, in->nodeid, (int)f->mode, (off_t)f->offset,
                       (off_t)f->length, &fi);
        return;
    case FUSE_FSYNC:
        fi.fh = s->fh;
        ops->fsync(req, in->nodeid, 1, &fi);
        return;
    default:
        world_fail("a request %u that nobody sends", in->opcode);
    }
}

void fuse_session_process_buf(struct fuse_session *se,
                              const struct fuse_buf *buf)
{
    const struct fuse_in_header *in = buf->mem;
    struct fuse_req *req = calloc(1, sizeof *req);
    if (!req || buf->size < sizeof *in || buf->size != in->len)
        world_fail("contract 10: a request of %zu bytes", buf->size);
    *req = (struct fuse_req){.se = se, .unique = in->unique};
    if (in->opcode == FUSE_INIT) {
        init(se);
        fuse_reply_err(req, 0);
        return;
    }
    of_file(req, in, in + 1);
}

/* ---- requests ------------------------------------------------------------------- */

void *fuse_req_userdata(fuse_req_t req)
{
    return req->se->userdata;
}

const struct fuse_ctx *fuse_req_ctx(fuse_req_t req)
{
    return &req->ctx;
}

int fuse_req_interrupted(fuse_req_t req)
{
    (void)req;
    return 0;
}

void fuse_req_interrupt_func(fuse_req_t req, fuse_interrupt_func_t func,
                             void *data)
{
    (void)req;
    (void)func;
    (void)data;
}

static int reply(fuse_req_t req, int error, const void *data, size_t len)
{
    world_point("answer");
    /* What goes to /dev/null is swallowed. */
    int rc = world_fd(req->se->fd)
                 ? device_answer(req->se->host, req->unique, error, data, len)
                 : 0;
    free(req);
    world_point("answered");
    return rc;
}

int fuse_reply_err(fuse_req_t req, int err)
{
    return reply(req, err, NULL, 0);
}

int fuse_reply_open(fuse_req_t req, const struct fuse_file_info *fi)
{
    uint64_t fh = fi->fh;
    return reply(req, 0, &fh, sizeof fh);
}

int fuse_reply_write(fuse_req_t req, size_t count)
{
    uint64_t n = count;
    return reply(req, 0, &n, sizeof n);
}

int fuse_reply_buf(fuse_req_t req, const char *buf, size_t size)
{
    return reply(req, 0, buf, size);
}
