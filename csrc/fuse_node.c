/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The operations on the FUSE directory and its files; see fuse_int.h. */
#include "fuse_int.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BACKGROUND 256     /* asynchronous requests in the kernel's queue */
#define STATUS_BYTES 8192

#define INO_STATUS 2
#define INO_JSON 3
#define INO_VOLUME 16      /* + index */

/* An open file. */
struct handle {
    int volume;            /* -1: a status file */
    _Atomic int sent;      /* sent ioctl 20: its close ends the session */
    int writes;            /* opened for writing */
    size_t len;            /* of text */
    char text[];           /* status as it was at open */
};

/* ---- parked requests --------------------------------------------------- */

static struct remus_pending *pending_take(remus_export *e, fuse_req_t req,
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
static void pending_give(remus_export *e, struct remus_pending *w)
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
    pending_give(w->e, w);
}

static void on_zeroed(void *opaque, int result)
{
    struct remus_pending *w = opaque;
    fuse_reply_err(w->req, -result);
    pending_give(w->e, w);
}

static void on_acked(void *opaque, int result)
{
    struct remus_pending *w = opaque;
    if (result < 0)
        fuse_reply_err(w->req, -result);
    else
        fuse_reply_ioctl(w->req, 0, NULL, 0);
    pending_give(w->e, w);
}

/* ---- attributes -------------------------------------------------------- */

/* NULL: there is none yet. */
static remus_primary *primary_of(remus_export *e)
{
    return atomic_load(&e->p);
}

static uint64_t size_of(remus_export *e, unsigned int volume)
{
    return e->sizes ? e->sizes[volume]
                    : remus_primary_size(primary_of(e), volume);
}

static const char *name_of(remus_export *e, unsigned int volume)
{
    if (!e->names)
        return remus_primary_volume_name(primary_of(e), volume);
    return volume < e->volumes ? e->names[volume] : NULL;
}

static int volume_of(const remus_export *e, fuse_ino_t ino)
{
    if (ino < INO_VOLUME || ino >= INO_VOLUME + e->volumes)
        return -1;
    return (int)(ino - INO_VOLUME);
}

static int fill_attr(remus_export *e, fuse_ino_t ino, struct stat *st)
{
    memset(st, 0, sizeof *st);
    st->st_ino = ino;
    st->st_nlink = 1;
    st->st_blksize = 4096;
    st->st_atime = st->st_mtime = st->st_ctime = e->since;
    int volume = volume_of(e, ino);
    if (ino == FUSE_ROOT_ID) {
        st->st_mode = S_IFDIR | 0755;
        st->st_nlink = 2;
    } else if (ino == INO_STATUS || ino == INO_JSON) {
        st->st_mode = S_IFREG | 0444;
        st->st_size = STATUS_BYTES;
    } else if (volume >= 0) {
        pthread_mutex_lock(&e->lock);
        const struct remus_node *n = &e->nodes[volume];
        st->st_mode = S_IFREG | n->mode;
        st->st_uid = n->uid;
        st->st_gid = n->gid;
        pthread_mutex_unlock(&e->lock);
        uint64_t size = size_of(e, (unsigned int)volume);
        st->st_size = (off_t)size;
        st->st_blocks = (blkcnt_t)(size / 512);
    } else {
        return -ENOENT;
    }
    return 0;
}

static remus_export *of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

static fuse_ino_t inode_of(remus_export *e, const char *name)
{
    if (!strcmp(name, "status"))
        return INO_STATUS;
    if (!strcmp(name, "status.json"))
        return INO_JSON;
    for (unsigned int i = 0; i < e->volumes; i++)
        if (!strcmp(name, name_of(e, i)))
            return INO_VOLUME + i;
    return 0;
}

static void ll_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    remus_export *e = of(req);
    struct fuse_entry_param entry = {.attr_timeout = 1.0,
                                     .entry_timeout = 60.0};
    entry.ino = parent == FUSE_ROOT_ID ? inode_of(e, name) : 0;
    if (!entry.ino || fill_attr(e, entry.ino, &entry.attr))
        fuse_reply_err(req, ENOENT);
    else
        fuse_reply_entry(req, &entry);
}

static void ll_getattr(fuse_req_t req, fuse_ino_t ino,
                       struct fuse_file_info *fi)
{
    (void)fi;
    struct stat st;
    int err = fill_attr(of(req), ino, &st);
    if (err)
        fuse_reply_err(req, -err);
    else
        fuse_reply_attr(req, &st, 1.0);
}

static void ll_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr,
                       int to_set, struct fuse_file_info *fi)
{
    (void)fi;
    remus_export *e = of(req);
    int volume = volume_of(e, ino);
    struct stat st;
    if (volume < 0) {
        fuse_reply_err(req, EPERM);
        return;
    }
    /* A disk does not change its size. */
    if ((to_set & FUSE_SET_ATTR_SIZE) &&
        (uint64_t)attr->st_size !=
            size_of(e, (unsigned int)volume)) {
        fuse_reply_err(req, EINVAL);
        return;
    }
    pthread_mutex_lock(&e->lock);
    struct remus_node *n = &e->nodes[volume];
    if (to_set & FUSE_SET_ATTR_MODE)
        n->mode = attr->st_mode & 07777;
    if (to_set & FUSE_SET_ATTR_UID)
        n->uid = attr->st_uid;
    if (to_set & FUSE_SET_ATTR_GID)
        n->gid = attr->st_gid;
    pthread_mutex_unlock(&e->lock);
    fill_attr(e, ino, &st);
    fuse_reply_attr(req, &st, 1.0);
}

/* ---- the directory ----------------------------------------------------- */

static const char *entry_name(remus_export *e, off_t index, fuse_ino_t *ino)
{
    static const char *const fixed[] = {".", "..", "status", "status.json"};
    static const fuse_ino_t inodes[] = {FUSE_ROOT_ID, FUSE_ROOT_ID,
                                        INO_STATUS, INO_JSON};
    if (index < 4) {
        *ino = inodes[index];
        return fixed[index];
    }
    *ino = (fuse_ino_t)(INO_VOLUME + index - 4);
    return name_of(e, (unsigned int)(index - 4));
}

static void ll_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                       struct fuse_file_info *fi)
{
    (void)fi;
    remus_export *e = of(req);
    size_t used = 0;
    if (ino != FUSE_ROOT_ID) {
        fuse_reply_err(req, ENOTDIR);
        return;
    }
    if (size > REMUS_FUSE_IO)
        size = REMUS_FUSE_IO;
    for (off_t i = off;; i++) {
        struct stat st = {0};
        fuse_ino_t child;
        const char *name = entry_name(e, i, &child);
        if (!name)
            break;
        fill_attr(e, child, &st);
        size_t n = fuse_add_direntry(req, (char *)remus_fuse_buffer() + used,
                                     size - used, name, &st, i + 1);
        if (n > size - used)
            break;
        used += n;
    }
    fuse_reply_buf(req, (char *)remus_fuse_buffer(), used);
}

static void ll_statfs(fuse_req_t req, fuse_ino_t ino)
{
    (void)ino;
    remus_export *e = of(req);
    struct statvfs fs = {.f_bsize = 4096, .f_frsize = 4096, .f_namemax = 63};
    for (unsigned int i = 0; i < e->volumes; i++)
        fs.f_blocks += size_of(e, i) / 4096;
    fs.f_files = e->volumes + 2;
    fuse_reply_statfs(req, &fs);
}

/* ---- open files -------------------------------------------------------- */

static struct handle *of_file(struct fuse_file_info *fi)
{
    return (struct handle *)(uintptr_t)fi->fh;
}

static struct handle *open_status(remus_export *e, int json)
{
    struct handle *h = malloc(sizeof *h + STATUS_BYTES);
    struct remus_status status;
    if (!h)
        return NULL;
    h->volume = -1;
    h->writes = 0;
    atomic_init(&h->sent, 0);
    if (primary_of(e))
        remus_primary_status(primary_of(e), &status);
    else
        remus_standby_status(e, &status);
    int n = remus_status_format(&status, json, h->text, STATUS_BYTES);
    h->len = n > 0 ? (size_t)n : 0;
    return h;
}

static struct handle *open_volume(int volume, int writes)
{
    struct handle *h = malloc(sizeof *h);
    if (h) {
        h->volume = volume;
        h->writes = writes;
        h->len = 0;
        atomic_init(&h->sent, 0);
    }
    return h;
}

static void reply_opened(remus_export *e, fuse_req_t req,
                         struct fuse_file_info *fi, struct handle *h)
{
    fi->fh = (uintptr_t)h;
    fi->direct_io = 1;
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 15)
    fi->parallel_direct_writes = 1;
#endif
    if (fuse_reply_open(req, fi)) {
        /* The opener was interrupted: no release will come. */
        if (h->writes)
            remus_primary_writer_closes(primary_of(e));
        free(h);
    }
}

/* Of a disk that a primary serves, for writing. */
static void open_to_write(remus_export *e, fuse_req_t req,
                          struct fuse_file_info *fi, int volume)
{
    if (remus_primary_writer_opens(primary_of(e))) {
        fuse_reply_err(req, EROFS);
        return;
    }
    struct handle *h = open_volume(volume, 1);
    if (h) {
        reply_opened(e, req, fi, h);
        return;
    }
    remus_primary_writer_closes(primary_of(e));
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
    remus_export *e = of(req);
    int volume = volume_of(e, ino);
    if (ino == FUSE_ROOT_ID) {
        fuse_reply_err(req, EISDIR);
        return;
    }
    if (volume >= 0 && (fi->flags & O_ACCMODE) != O_RDONLY) {
        if (primary_of(e))
            open_to_write(e, req, fi, volume);
        else
            open_later(e, req, fi, volume);
        return;
    }
    struct handle *h = volume >= 0 ? open_volume(volume, 0)
                                   : open_status(e, ino == INO_JSON);
    if (h)
        reply_opened(e, req, fi, h);
    else
        fuse_reply_err(req, ENOMEM);
}

static void ll_release(fuse_req_t req, fuse_ino_t ino,
                       struct fuse_file_info *fi)
{
    (void)ino;
    struct handle *h = of_file(fi);
    if (atomic_load(&h->sent))
        remus_primary_ioctl_release(primary_of(of(req)), (unsigned int)h->volume);
    if (h->writes)
        remus_primary_writer_closes(primary_of(of(req)));
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

/* The nodes are what they are: nothing can be made or taken away. */
static void ll_mknod(fuse_req_t req, fuse_ino_t parent, const char *name,
                     mode_t mode, dev_t device)
{
    (void)parent;
    (void)name;
    (void)mode;
    (void)device;
    fuse_reply_err(req, EPERM);
}

static void ll_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name,
                     mode_t mode)
{
    ll_mknod(req, parent, name, mode, 0);
}

static void ll_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    ll_mknod(req, parent, name, 0, 0);
}

static void ll_symlink(fuse_req_t req, const char *target, fuse_ino_t parent,
                       const char *name)
{
    (void)target;
    ll_mknod(req, parent, name, 0, 0);
}

static void ll_rename(fuse_req_t req, fuse_ino_t parent, const char *name,
                      fuse_ino_t to, const char *new_name, unsigned int flags)
{
    (void)to;
    (void)new_name;
    (void)flags;
    ll_mknod(req, parent, name, 0, 0);
}

static void ll_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent,
                    const char *name)
{
    (void)ino;
    ll_mknod(req, parent, name, 0, 0);
}

static void ll_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
    (void)ino;
    remus_export *e = of(req);
    struct handle *h = of_file(fi);
    uint64_t at = (uint64_t)off;
    uint64_t end = h->volume < 0 ? h->len
                                 : size_of(
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
    int err = primary_of(e)
                  ? remus_primary_pread(primary_of(e), volume, to, size, at)
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
    remus_export *e = of(req);
    struct handle *h = of_file(fi);
    if (h->volume < 0 || !primary_of(e)) {
        fuse_reply_err(req, h->volume < 0 ? EPERM : EROFS);
        return;
    }
    unsigned int volume = (unsigned int)h->volume;
    uint64_t end = size_of(e, volume);
    /* As on a block device: what begins at the end has no space, what
     * crosses it is cut. */
    if ((uint64_t)off >= end) {
        fuse_reply_err(req, size ? ENOSPC : 0);
        return;
    }
    if (size > end - (uint64_t)off)
        size = (size_t)(end - (uint64_t)off);
    struct remus_pending *w = pending_take(e, req, size);
    int rc = w ? remus_primary_submit_write(primary_of(e), volume, buf, size,
                                            (uint64_t)off, on_written, w)
               : -ENOMEM;
    if (rc == REMUS_PARKED)
        return;
    reply_written(req, size, rc);
    pending_give(e, w);
}

static void ll_fsync(fuse_req_t req, fuse_ino_t ino, int datasync,
                     struct fuse_file_info *fi)
{
    (void)ino;
    (void)datasync;
    struct handle *h = of_file(fi);
    remus_primary *p = primary_of(of(req));
    int err = h->volume < 0 || !p
                  ? 0
                  : remus_primary_flush(p, (unsigned int)h->volume);
    fuse_reply_err(req, -err);
}

static void ll_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off,
                         off_t len, struct fuse_file_info *fi)
{
    (void)ino;
    remus_export *e = of(req);
    struct handle *h = of_file(fi);
    int what = mode & ~FALLOC_FL_KEEP_SIZE;
    if (h->volume < 0 || (what && what != FALLOC_FL_PUNCH_HOLE &&
                          what != FALLOC_FL_ZERO_RANGE)) {
        fuse_reply_err(req, EOPNOTSUPP);
        return;
    }
    unsigned int volume = (unsigned int)h->volume;
    uint64_t end = size_of(e, volume);
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
    if (!primary_of(e)) {
        fuse_reply_err(req, EROFS);
        return;
    }
    if (!what || !n) {
        fuse_reply_err(req, 0);
        return;
    }
    struct remus_pending *w = pending_take(e, req, 0);
    int rc = w ? remus_primary_submit_zero(primary_of(e), volume, at, n, on_zeroed, w)
               : -ENOMEM;
    if (rc == REMUS_PARKED)
        return;
    fuse_reply_err(req, -rc);
    pending_give(e, w);
}

static void ll_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence,
                     struct fuse_file_info *fi)
{
    (void)fi;
    struct stat st;
    /* All of it is data. */
    if (fill_attr(of(req), ino, &st) || off < 0 || off >= st.st_size)
        fuse_reply_err(req, ENXIO);
    else if (whence == SEEK_DATA)
        fuse_reply_lseek(req, off);
    else if (whence == SEEK_HOLE)
        fuse_reply_lseek(req, st.st_size);
    else
        fuse_reply_err(req, EINVAL);
}

/* ---- the checkpoint ioctls --------------------------------------------- */

static void ioctl_send(fuse_req_t req, struct handle *h, uint64_t tag)
{
    int rc = remus_primary_ioctl_send(primary_of(of(req)), (unsigned int)h->volume,
                                      tag);
    if (rc < 0) {
        fuse_reply_err(req, -rc);
        return;
    }
    if (!atomic_exchange(&h->sent, 1))
        remus_primary_ioctl_attach(primary_of(of(req)));
    fuse_reply_ioctl(req, rc, NULL, 0);
}

/* The caller of ioctl 30 got a signal. */
static void on_interrupt(fuse_req_t req, void *data)
{
    remus_export *e = of(req);
    /* It comes when it comes: let the request be parked first. */
    pthread_mutex_lock(&e->interrupt_lock);
    pthread_mutex_unlock(&e->interrupt_lock);
    remus_primary_wait_cancel_id(primary_of(e), (uint64_t)(uintptr_t)data, -EINTR);
}

/*
 * `arg`: 0 no limit, as libxl says; REMUS_WAIT_CANCEL: end the waits of this
 * open file; else a limit in ms.
 */
static void ioctl_wait(fuse_req_t req, struct handle *h, uint64_t arg)
{
    remus_export *e = of(req);
    if (arg == REMUS_WAIT_CANCEL) {
        remus_primary_wait_cancel(primary_of(e), h, -ECANCELED);
        fuse_reply_ioctl(req, 0, NULL, 0);
        return;
    }
    int64_t limit = arg && arg < REMUS_WAIT_CANCEL ? (int64_t)arg : -1;
    struct remus_pending *w = pending_take(e, req, 0);
    uint64_t id = remus_primary_wait_id(primary_of(e));
    int rc = -ENOMEM;
    if (w) {
        pthread_mutex_lock(&e->interrupt_lock);
        fuse_req_interrupt_func(req, on_interrupt, (void *)(uintptr_t)id);
        rc = fuse_req_interrupted(req)
                 ? -EINTR
                 : remus_primary_ioctl_wait(primary_of(e), (unsigned int)h->volume,
                                            limit, h, id, on_acked, w);
        pthread_mutex_unlock(&e->interrupt_lock);
    }
    if (rc == REMUS_PARKED)
        return;
    if (rc < 0)
        fuse_reply_err(req, -rc);
    else
        fuse_reply_ioctl(req, 0, NULL, 0);
    pending_give(e, w);
}

static void ll_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int cmd,
                     void *arg, struct fuse_file_info *fi, unsigned int flags,
                     const void *in, size_t in_size, size_t out_size)
{
    (void)in;
    (void)in_size;
    (void)out_size;
    remus_export *e = of(req);
    /* A directory has no handle of ours. */
    if ((flags & FUSE_IOCTL_DIR) || volume_of(e, ino) < 0) {
        fuse_reply_err(req, ENOTTY);
        return;
    }
    struct handle *h = of_file(fi);
    int ours = cmd == REMUS_IOCTL_SEND_CHECKPOINT ||
               cmd == REMUS_IOCTL_WAIT_CHECKPOINT_ACK ||
               cmd == REMUS_IOCTL_COMMIT_CHECKPOINT;
    if (!ours || !primary_of(e)) {
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
        rc = remus_primary_ioctl_commit(primary_of(e), (unsigned int)h->volume);
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
    .lookup = ll_lookup,
    .getattr = ll_getattr,
    .setattr = ll_setattr,
    .readdir = ll_readdir,
    .statfs = ll_statfs,
    .open = ll_open,
    .release = ll_release,
    .flush = ll_flush,
    .mknod = ll_mknod,
    .mkdir = ll_mkdir,
    .unlink = ll_unlink,
    .rmdir = ll_unlink,
    .symlink = ll_symlink,
    .rename = ll_rename,
    .link = ll_link,
    .read = ll_read,
    .write = ll_write,
    .fsync = ll_fsync,
    .fallocate = ll_fallocate,
    .lseek = ll_lseek,
    .ioctl = ll_ioctl,
};
