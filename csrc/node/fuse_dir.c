/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The FUSE directory: names, attributes, what can't be done; fuse_int.h. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "node/fuse_int.h"

/* ---- attributes -------------------------------------------------------- */

uint64_t remus_node_size(remus_export *e, unsigned int volume)
{
    return e->sizes ? e->sizes[volume]
                    : remus_primary_size(remus_node_primary(e), volume);
}

static const char *name_of(remus_export *e, unsigned int volume)
{
    if (!e->names)
        return remus_primary_volume_name(remus_node_primary(e), volume);
    return volume < e->volumes ? e->names[volume] : NULL;
}

int remus_node_attr(remus_export *e, fuse_ino_t ino, struct stat *st)
{
    memset(st, 0, sizeof *st);
    st->st_ino = ino;
    st->st_nlink = 1;
    st->st_blksize = 4096;
    st->st_atime = st->st_mtime = st->st_ctime = e->since;
    int volume = remus_node_volume(e, ino);
    if (ino == FUSE_ROOT_ID) {
        st->st_mode = S_IFDIR | 0755;
        st->st_nlink = 2;
    } else if (ino == REMUS_INO_STATUS || ino == REMUS_INO_JSON) {
        st->st_mode = S_IFREG | 0444;
        st->st_size = REMUS_STATUS_BYTES;
    } else if (volume >= 0) {
        pthread_mutex_lock(&e->lock);
        const struct remus_node *n = &e->nodes[volume];
        st->st_mode = S_IFREG | n->mode;
        st->st_uid = n->uid;
        st->st_gid = n->gid;
        pthread_mutex_unlock(&e->lock);
        uint64_t size = remus_node_size(e, (unsigned int)volume);
        st->st_size = (off_t)size;
        st->st_blocks = (blkcnt_t)(size / 512);
    } else {
        return -ENOENT;
    }
    return 0;
}

remus_export *remus_node_export(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

static fuse_ino_t inode_of(remus_export *e, const char *name)
{
    if (!strcmp(name, "status"))
        return REMUS_INO_STATUS;
    if (!strcmp(name, "status.json"))
        return REMUS_INO_JSON;
    for (unsigned int i = 0; i < e->volumes; i++)
        if (!strcmp(name, name_of(e, i)))
            return REMUS_INO_VOLUME + i;
    return 0;
}

void remus_ll_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    remus_export *e = remus_node_export(req);
    struct fuse_entry_param entry = {.attr_timeout = 1.0,
                                     .entry_timeout = 60.0};
    entry.ino = parent == FUSE_ROOT_ID ? inode_of(e, name) : 0;
    if (!entry.ino || remus_node_attr(e, entry.ino, &entry.attr))
        fuse_reply_err(req, ENOENT);
    else
        fuse_reply_entry(req, &entry);
}

void remus_ll_getattr(fuse_req_t req, fuse_ino_t ino,
                      struct fuse_file_info *fi)
{
    (void)fi;
    struct stat st;
    int err = remus_node_attr(remus_node_export(req), ino, &st);
    if (err)
        fuse_reply_err(req, -err);
    else
        fuse_reply_attr(req, &st, 1.0);
}

void remus_ll_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr,
                      int to_set, struct fuse_file_info *fi)
{
    (void)fi;
    remus_export *e = remus_node_export(req);
    int volume = remus_node_volume(e, ino);
    struct stat st;
    if (volume < 0) {
        fuse_reply_err(req, EPERM);
        return;
    }
    /* A disk does not change its size. */
    if ((to_set & FUSE_SET_ATTR_SIZE) &&
        (uint64_t)attr->st_size != remus_node_size(e, (unsigned int)volume)) {
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
    remus_node_attr(e, ino, &st);
    fuse_reply_attr(req, &st, 1.0);
}

/* ---- the directory ----------------------------------------------------- */

static const char *entry_name(remus_export *e, off_t index, fuse_ino_t *ino)
{
    static const char *const fixed[] = {".", "..", "status", "status.json"};
    static const fuse_ino_t inodes[] = {FUSE_ROOT_ID, FUSE_ROOT_ID,
                                        REMUS_INO_STATUS, REMUS_INO_JSON};
    if (index < 4) {
        *ino = inodes[index];
        return fixed[index];
    }
    *ino = (fuse_ino_t)(REMUS_INO_VOLUME + index - 4);
    return name_of(e, (unsigned int)(index - 4));
}

void remus_ll_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                      struct fuse_file_info *fi)
{
    (void)fi;
    remus_export *e = remus_node_export(req);
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
        remus_node_attr(e, child, &st);
        size_t n = fuse_add_direntry(req, (char *)remus_fuse_buffer() + used,
                                     size - used, name, &st, i + 1);
        if (n > size - used)
            break;
        used += n;
    }
    fuse_reply_buf(req, (char *)remus_fuse_buffer(), used);
}

void remus_ll_statfs(fuse_req_t req, fuse_ino_t ino)
{
    (void)ino;
    remus_export *e = remus_node_export(req);
    struct statvfs fs = {.f_bsize = 4096, .f_frsize = 4096, .f_namemax = 63};
    for (unsigned int i = 0; i < e->volumes; i++)
        fs.f_blocks += remus_node_size(e, i) / 4096;
    fs.f_files = e->volumes + 2;
    fuse_reply_statfs(req, &fs);
}

/* The nodes are what they are: nothing can be made or taken away. */
void remus_ll_mknod(fuse_req_t req, fuse_ino_t parent, const char *name,
                    mode_t mode, dev_t device)
{
    (void)parent;
    (void)name;
    (void)mode;
    (void)device;
    fuse_reply_err(req, EPERM);
}

void remus_ll_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name,
                    mode_t mode)
{
    remus_ll_mknod(req, parent, name, mode, 0);
}

void remus_ll_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    remus_ll_mknod(req, parent, name, 0, 0);
}

void remus_ll_symlink(fuse_req_t req, const char *target, fuse_ino_t parent,
                      const char *name)
{
    (void)target;
    remus_ll_mknod(req, parent, name, 0, 0);
}

void remus_ll_rename(fuse_req_t req, fuse_ino_t parent, const char *name,
                     fuse_ino_t to, const char *new_name, unsigned int flags)
{
    (void)to;
    (void)new_name;
    (void)flags;
    remus_ll_mknod(req, parent, name, 0, 0);
}

void remus_ll_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent,
                   const char *name)
{
    (void)ino;
    remus_ll_mknod(req, parent, name, 0, 0);
}
