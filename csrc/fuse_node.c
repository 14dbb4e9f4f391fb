/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Open files of the FUSE directory: opening, I/O; see fuse_int.h. */
#include "fuse_int.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BACKGROUND 256     /* asynchronous requests in the kernel's queue */

/* ---- parked requests --------------------------------------------------- */

struct remus_pending *remus_pending_take(remus_export *e, fuse_req_t req,
                                         size_t len)
{
    pthread_mutex_lock(&e->lock);
    struct remus_pending *w = e->free;
    if (w)
        e->free = w->next;
    e->parked++;
    pthread_mutex_unlock(&e->lock);
    if (!w)
        w = malloc(sizeof *w);
    if (w)
        *w = (struct remus_pending){e, req, len, NULL};
    return w;
}

/* The request is answered, or was never parked. */
void remus_pending_give(remus_export *e, struct remus_pending *w)
{
    pthread_mutex_lock(&e->lock);
    if (w) {
        w->next = e->free;
        e->free = w;
    }
    int last = --e->parked == 0;
    int abandoned = last && e->abandoned;
    if (last)
        pthread_cond_broadcast(&e->drained);
    pthread_mutex_unlock(&e->lock);
    if (abandoned)
        remus_export_free(e);
}

static void reply_written(fuse_req_t req, size_t len, int result)
{
    if (result < 0)
        fuse_reply_err(req, -result);
    else
        fuse_reply_write(req, len);
}

static void on_written(void *opaque, int result)
{
    struct remus_pending *w = opaque;
    reply_written(w->req, w->len, result);
    remus_pending_give(w->e, w);
}

static void on_zeroed(void *opaque, int result)
{
    struct remus_pending *w = opaque;
    fuse_reply_err(w->req, -result);
    remus_pending_give(w->e, w);
}

/* ---- open files -------------------------------------------------------- */

struct remus_handle *remus_node_handle(struct fuse_file_info *fi)
{
    return (struct remus_handle *)(uintptr_t)fi->fh;
}

static struct remus_handle *open_status(remus_export *e, int json)
{
    struct remus_handle *h = malloc(sizeof *h + REMUS_STATUS_BYTES);
    struct remus_status status;
    if (!h)
        return NULL;
    h->volume = -1;
    h->writes = 0;
    atomic_init(&h->sent, 0);
    if (remus_node_primary(e))
        remus_primary_status(remus_node_primary(e), &status);
    else
        remus_standby_status(e, &status);
    int n = remus_status_format(&status, json, h->text, REMUS_STATUS_BYTES);
    h->len = n > 0 ? (size_t)n : 0;
    return h;
}

static struct remus_handle *open_volume(int volume, int writes)
{
    struct remus_handle *h = malloc(sizeof *h);
    if (h) {
        h->volume = volume;
        h->writes = writes;
        h->len = 0;
        atomic_init(&h->sent, 0);
    }
    return h;
}

static void reply_opened(remus_export *e, fuse_req_t req,
                         struct fuse_file_info *fi, struct remus_handle *h)
{
    fi->fh = (uintptr_t)h;
    fi->direct_io = 1;
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 15)
    fi->parallel_direct_writes = 1;
#endif
    if (fuse_reply_open(req, fi)) {
        /* The opener was interrupted: no release will come. */
        if (h->writes)
            remus_primary_writer_closes(remus_node_primary(e));
        free(h);
    }
}

/* Of a disk that a primary serves, for writing. */
static void open_to_write(remus_export *e, fuse_req_t req,
                          struct fuse_file_info *fi, int volume)
{
    if (remus_primary_writer_opens(remus_node_primary(e))) {
        fuse_reply_err(req, EROFS);
        return;
    }
    struct remus_handle *h = open_volume(volume, 1);
    if (h) {
        reply_opened(e, req, fi, h);
        return;
    }
    remus_primary_writer_closes(remus_node_primary(e));
    fuse_reply_err(req, ENOMEM);
}

void remus_node_opened(remus_export *e, struct remus_opener *o, int err)
{
    if (err)
        fuse_reply_err(o->req, err);
    else /* `fh` told the volume meanwhile */
        open_to_write(e, o->req, &o->fi, (int)o->fi.fh);
    free(o);
}

/* Whoever waits with an open got a signal: it can be killed, and what nobody
 * waits for is not promoted. */
static void on_open_interrupt(fuse_req_t req, void *data)
{
    remus_export *e = data;
    /* It comes when it comes: let the opener be parked first. */
    pthread_mutex_lock(&e->interrupt_lock);
    pthread_mutex_unlock(&e->interrupt_lock);
    remus_standby_interrupt(e, req);
}

/* Of a disk of a backup, for writing: it is promoted first, or not at all. */
static void open_later(remus_export *e, fuse_req_t req,
                       const struct fuse_file_info *fi, int volume)
{
    struct remus_opener *o = malloc(sizeof *o);
    if (!o) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    *o = (struct remus_opener){.req = req, .fi = *fi};
    o->fi.fh = (uint64_t)volume;
    pthread_mutex_lock(&e->interrupt_lock);
    fuse_req_interrupt_func(req, on_open_interrupt, e);
    int rc = fuse_req_interrupted(req) ? -EINTR : remus_standby_park(e, o);
    pthread_mutex_unlock(&e->interrupt_lock);
    if (rc <= 0)
        remus_node_opened(e, o, -rc);
}

static void ll_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    remus_export *e = remus_node_export(req);
    int volume = remus_node_volume(e, ino);
    if (ino == FUSE_ROOT_ID) {
        fuse_reply_err(req, EISDIR);
        return;
    }
    if (volume >= 0 && (fi->flags & O_ACCMODE) != O_RDONLY) {
        if (remus_node_primary(e))
            open_to_write(e, req, fi, volume);
        else
            open_later(e, req, fi, volume);
        return;
    }
    struct remus_handle *h = volume >= 0 ? open_volume(volume, 0)
                                   : open_status(e, ino == REMUS_INO_JSON);
    if (h)
        reply_opened(e, req, fi, h);
    else
        fuse_reply_err(req, ENOMEM);
}

static void ll_release(fuse_req_t req, fuse_ino_t ino,
                       struct fuse_file_info *fi)
{
    (void)ino;
    struct remus_handle *h = remus_node_handle(fi);
    remus_primary *p = remus_node_primary(remus_node_export(req));
    if (atomic_load(&h->sent))
        remus_primary_ioctl_release(p, (unsigned int)h->volume);
    if (h->writes)
        remus_primary_writer_closes(p);
    free(h);
    fuse_reply_err(req, 0);
}

static void ll_flush(fuse_req_t req, fuse_ino_t ino,
                     struct fuse_file_info *fi)
{
    (void)ino;
    (void)fi;
    fuse_reply_err(req, 0);
}

static void ll_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
    (void)ino;
    remus_export *e = remus_node_export(req);
    struct remus_handle *h = remus_node_handle(fi);
    uint64_t at = (uint64_t)off;
    uint64_t end = h->volume < 0 ? h->len
                                 : remus_node_size(
                                       e, (unsigned int)h->volume);
    if (at >= end || !size) {
        fuse_reply_buf(req, NULL, 0);
        return;
    }
    if (size > end - at)
        size = (size_t)(end - at);
    if (size > REMUS_FUSE_IO)
        size = REMUS_FUSE_IO;
    if (h->volume < 0) {
        fuse_reply_buf(req, h->text + at, size);
        return;
    }
    unsigned int volume = (unsigned int)h->volume;
    unsigned char *to = remus_fuse_buffer();
    remus_primary *p = remus_node_primary(e);
    int err = p ? remus_primary_pread(p, volume, to, size, at)
                : remus_standby_read(e, volume, to, size, at);
    if (err)
        fuse_reply_err(req, -err);
    else
        fuse_reply_buf(req, (char *)remus_fuse_buffer(), size);
}

static void ll_write(fuse_req_t req, fuse_ino_t ino, const char *buf,
                     size_t size, off_t off, struct fuse_file_info *fi)
{
    (void)ino;
    remus_export *e = remus_node_export(req);
    struct remus_handle *h = remus_node_handle(fi);
    remus_primary *p = remus_node_primary(e);
    if (h->volume < 0 || !p) {
        fuse_reply_err(req, h->volume < 0 ? EPERM : EROFS);
        return;
    }
    unsigned int volume = (unsigned int)h->volume;
    uint64_t end = remus_node_size(e, volume);
    /* As on a block device: what begins at the end has no space, what
     * crosses it is cut. */
    if ((uint64_t)off >= end) {
        fuse_reply_err(req, size ? ENOSPC : 0);
        return;
    }
    if (size > end - (uint64_t)off)
        size = (size_t)(end - (uint64_t)off);
    struct remus_pending *w = remus_pending_take(e, req, size);
    int rc = w ? remus_primary_submit_write(p, volume, buf, size,
                                            (uint64_t)off, on_written, w)
               : -ENOMEM;
    if (rc == REMUS_PARKED)
        return;
    reply_written(req, size, rc);
    remus_pending_give(e, w);
}

static void ll_fsync(fuse_req_t req, fuse_ino_t ino, int datasync,
                     struct fuse_file_info *fi)
{
    (void)ino;
    (void)datasync;
    struct remus_handle *h = remus_node_handle(fi);
    remus_primary *p = remus_node_primary(remus_node_export(req));
    int err = h->volume < 0 || !p
                  ? 0
                  : remus_primary_flush(p, (unsigned int)h->volume);
    fuse_reply_err(req, -err);
}

static void ll_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off,
                         off_t len, struct fuse_file_info *fi)
{
    (void)ino;
    remus_export *e = remus_node_export(req);
    struct remus_handle *h = remus_node_handle(fi);
    int what = mode & ~FALLOC_FL_KEEP_SIZE;
    if (h->volume < 0 || (what && what != FALLOC_FL_PUNCH_HOLE &&
                          what != FALLOC_FL_ZERO_RANGE)) {
        fuse_reply_err(req, EOPNOTSUPP);
        return;
    }
    unsigned int volume = (unsigned int)h->volume;
    uint64_t end = remus_node_size(e, volume);
    uint64_t at = (uint64_t)off, n = (uint64_t)len;
    if (at > end || n > end - at) {
        /* Punching beyond the end changes nothing there; anything else
         * would have to grow the disk. */
        if (what != FALLOC_FL_PUNCH_HOLE) {
            fuse_reply_err(req, ENOSPC);
            return;
        }
        n = at < end ? end - at : 0;
    }
    remus_primary *p = remus_node_primary(e);
    if (!p) {
        fuse_reply_err(req, EROFS);
        return;
    }
    if (!what || !n) {
        fuse_reply_err(req, 0);
        return;
    }
    struct remus_pending *w = remus_pending_take(e, req, 0);
    int rc = w ? remus_primary_submit_zero(p, volume, at, n, on_zeroed, w)
               : -ENOMEM;
    if (rc == REMUS_PARKED)
        return;
    fuse_reply_err(req, -rc);
    remus_pending_give(e, w);
}

static void ll_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence,
                     struct fuse_file_info *fi)
{
    (void)fi;
    struct stat st;
    /* All of it is data. */
    if (remus_node_attr(remus_node_export(req), ino, &st) || off < 0 ||
        off >= st.st_size)
        fuse_reply_err(req, ENXIO);
    else if (whence == SEEK_DATA)
        fuse_reply_lseek(req, off);
    else if (whence == SEEK_HOLE)
        fuse_reply_lseek(req, st.st_size);
    else
        fuse_reply_err(req, EINVAL);
}

static void ll_init(void *userdata, struct fuse_conn_info *conn)
{
    (void)userdata;
    conn->max_background = BACKGROUND;
    conn->congestion_threshold = BACKGROUND * 3 / 4;
    conn->max_write = REMUS_FUSE_IO;
    /* The data is copied into the queue: pipes would only add calls. */
    conn->want &= ~(unsigned int)(FUSE_CAP_SPLICE_READ |
                                  FUSE_CAP_SPLICE_WRITE |
                                  FUSE_CAP_SPLICE_MOVE);
    /* O_TRUNC comes with open, where it has no effect, as on a disk. */
    conn->want |= conn->capable & FUSE_CAP_ATOMIC_O_TRUNC;
    conn->want |= conn->capable & FUSE_CAP_ASYNC_DIO;
}

const struct fuse_lowlevel_ops remus_fuse_operations = {
    .init = ll_init,
    .lookup = remus_ll_lookup,
    .getattr = remus_ll_getattr,
    .setattr = remus_ll_setattr,
    .readdir = remus_ll_readdir,
    .statfs = remus_ll_statfs,
    .open = ll_open,
    .release = ll_release,
    .flush = ll_flush,
    .mknod = remus_ll_mknod,
    .mkdir = remus_ll_mkdir,
    .unlink = remus_ll_unlink,
    .rmdir = remus_ll_unlink,
    .symlink = remus_ll_symlink,
    .rename = remus_ll_rename,
    .link = remus_ll_link,
    .read = ll_read,
    .write = ll_write,
    .fsync = ll_fsync,
    .fallocate = ll_fallocate,
    .lseek = ll_lseek,
    .ioctl = remus_ll_ioctl,
};
