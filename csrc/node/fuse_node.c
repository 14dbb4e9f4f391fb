/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Open files of the FUSE directory: opening, I/O; see fuse_int.h. */
#include "node/fuse_int.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void on_written(void *opaque, int result)
{
    struct remus_fuse_slot *w = opaque;
    if (result < 0)
        fuse_reply_err(w->req, -result);
    else
        fuse_reply_write(w->req, w->len);
    remus_fuse_slot_give(w->e, w);
}

static void on_zeroed(void *opaque, int result)
{
    struct remus_fuse_slot *w = opaque;
    fuse_reply_err(w->req, -result);
    remus_fuse_slot_give(w->e, w);
}

static struct remus_asker asker_of(struct remus_fuse_slot *w,
                                   const struct remus_file *f,
                                   remus_done_fn done)
{
    return (struct remus_asker){
        .begins = remus_fuse_slot_begins,
        .done = done,
        .opaque = w,
        .owner = w->e,
        .id = w->unique,
        .thread = (int32_t)fuse_req_ctx(w->req)->pid,
        .process = f->opener,
    };
}

/* ---- open files -------------------------------------------------------- */

static int take_status(remus_export *e, const struct remus_file *f, int json)
{
    struct remus_status status = REMUS_INIT(remus_status);
    char *text = malloc(REMUS_STATUS_BYTES);
    if (!text)
        return -ENOMEM;
    if (remus_node_primary(e))
        remus_primary_status(remus_node_primary(e), &status);
    else
        remus_standby_status(e, &status);
    int n = remus_status_format(&status, json, text, REMUS_STATUS_BYTES);
    remus_file_set_text(e, f, text, n > 0 ? (size_t)n : 0);
    return 0;
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
    *o = (struct remus_opener){.slot = remus_fuse_slot_take(e, req, 0),
                               .fi = *fi};
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
    if (remus_node_reply_again(e, req, fi, remus_fuse_unique()))
        return;
    if (volume >= 0 && (fi->flags & O_ACCMODE) != O_RDONLY) {
        if (remus_node_primary(e))
            remus_node_open_to_write(e, req, fi, volume, remus_fuse_unique());
        else
            open_later(e, req, fi, volume);
        return;
    }
    struct remus_file *f =
        remus_file_open(e, req, volume, 0, remus_fuse_unique());
    int err = f ? 0 : -ENFILE;
    if (f && volume < 0)
        err = take_status(e, f, ino == REMUS_INO_JSON);
    if (!err) {
        remus_node_reply_opened(e, req, fi, f);
        return;
    }
    if (f)
        remus_file_close(e, f);
    fuse_reply_err(req, -err);
}

static void ll_release(fuse_req_t req, fuse_ino_t ino,
                       struct fuse_file_info *fi)
{
    (void)ino;
    remus_export *e = remus_node_export(req);
    struct remus_file *f = remus_file_of(e, fi);
    if (f) /* else that one was closed before */
        remus_node_close(e, f);
    fuse_reply_err(req, 0);
}

static void ll_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    (void)fi;
    fuse_reply_err(req, 0);
}

static void read_volume(fuse_req_t req, unsigned int volume, size_t size,
                        uint64_t at)
{
    remus_export *e = remus_node_export(req);
    unsigned char *to = remus_fuse_buffer();
    remus_primary *p = remus_node_primary(e);
    int err = p ? remus_primary_pread(p, volume, to, size, at)
                : remus_standby_read(e, volume, to, size, at);
    if (err)
        fuse_reply_err(req, -err);
    else
        fuse_reply_buf(req, (char *)to, size);
}

static void ll_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
    remus_export *e = remus_node_export(req);
    struct remus_file *f = remus_file_of(e, fi);
    if (!f) {
        fuse_reply_err(req, EBADF);
        return;
    }
    if (size > REMUS_FUSE_IO)
        size = REMUS_FUSE_IO;
    uint64_t at = (uint64_t)off;
    if (f->volume < 0) {
        unsigned char *to = remus_fuse_buffer();
        /* Opened in the process before. */
        int err = e->adopted && !remus_file_has_text(e, f)
                      ? take_status(e, f, ino == REMUS_INO_JSON)
                      : 0;
        if (err) {
            fuse_reply_err(req, -err);
            return;
        }
        size = remus_file_read_text(e, f, to, size, at);
        fuse_reply_buf(req, (char *)to, size);
        return;
    }
    uint64_t end = remus_node_size(e, (unsigned int)f->volume);
    if (at >= end || !size) {
        fuse_reply_buf(req, NULL, 0);
        return;
    }
    if (size > end - at)
        size = (size_t)(end - at);
    read_volume(req, (unsigned int)f->volume, size, at);
}

static void ll_write(fuse_req_t req, fuse_ino_t ino, const char *buf,
                     size_t size, off_t off, struct fuse_file_info *fi)
{
    (void)ino;
    remus_export *e = remus_node_export(req);
    struct remus_file *f = remus_file_of(e, fi);
    remus_primary *p = remus_node_primary(e);
    if (!f || f->volume < 0 || !p) {
        fuse_reply_err(req, !f ? EBADF : f->volume < 0 ? EPERM : EROFS);
        return;
    }
    unsigned int volume = (unsigned int)f->volume;
    uint64_t end = remus_node_size(e, volume);
    /* As on a block device: what begins at the end has no space, what
     * crosses it is cut. */
    if ((uint64_t)off >= end) {
        fuse_reply_err(req, size ? ENOSPC : 0);
        return;
    }
    if (size > end - (uint64_t)off)
        size = (size_t)(end - (uint64_t)off);
    struct remus_fuse_slot *w = remus_fuse_slot_take(e, req, size);
    const struct remus_asker who = asker_of(w, f, on_written);
    remus_fuse_slot_range(w, volume, (uint64_t)off, size);
    int rc =
        remus_primary_submit_write(p, volume, buf, size, (uint64_t)off, &who);
    if (rc == REMUS_PARKED)
        return;
    fuse_reply_err(req, -rc);
    remus_fuse_slot_give(e, w);
}

static void ll_fsync(fuse_req_t req, fuse_ino_t ino, int datasync,
                     struct fuse_file_info *fi)
{
    (void)ino;
    (void)datasync;
    remus_export *e = remus_node_export(req);
    struct remus_file *f = remus_file_of(e, fi);
    remus_primary *p = remus_node_primary(e);
    int err = !f || f->volume < 0 || !p
                  ? 0
                  : remus_primary_flush(p, (unsigned int)f->volume);
    fuse_reply_err(req, -err);
}

/*
 * Zeroes and holes only, as a block device does.  Mode 0 would have to keep
 * space back on both hosts, or lie: whoever needs it (posix_fallocate) then
 * writes, and that does it.
 */
static void ll_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off,
                         off_t len, struct fuse_file_info *fi)
{
    (void)ino;
    remus_export *e = remus_node_export(req);
    struct remus_file *f = remus_file_of(e, fi);
    int what = mode & ~FALLOC_FL_KEEP_SIZE;
    if (!f || f->volume < 0 ||
        (what != FALLOC_FL_PUNCH_HOLE && what != FALLOC_FL_ZERO_RANGE)) {
        fuse_reply_err(req, f ? EOPNOTSUPP : EBADF);
        return;
    }
    unsigned int volume = (unsigned int)f->volume;
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
    if (!p || !n) {
        fuse_reply_err(req, p ? 0 : EROFS);
        return;
    }
    struct remus_fuse_slot *w = remus_fuse_slot_take(e, req, 0);
    const struct remus_asker who = asker_of(w, f, on_zeroed);
    remus_fuse_slot_range(w, volume, at, n);
    int rc = remus_primary_submit_zero(p, volume, at, n, &who);
    if (rc == REMUS_PARKED)
        return;
    fuse_reply_err(req, -rc);
    remus_fuse_slot_give(e, w);
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
    const remus_export *e = userdata;
    conn->max_background = REMUS_FUSE_BACKGROUND * e->volumes;
    conn->congestion_threshold = conn->max_background / 4 * 3;
    conn->max_write = REMUS_FUSE_IO;
    /* The data is copied into the queue: pipes would only add calls. */
    conn->want &=
        ~(unsigned int)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE |
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
