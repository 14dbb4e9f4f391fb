/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuse_static MOUNTPOINT NAME CONTENT [NAME CONTENT]...
 *
 * A FUSE filesystem of one directory whose files have fixed content: a stand
 * in for a replica's mount, where a test needs a real one in a known state.
 * Runs in the foreground; writes "ready" and a newline to stdout once mounted;
 * SIGTERM unmounts and ends it. Nothing is cached by the kernel, so that each
 * look at a file asks this process (or finds it gone).  The content "@stall"
 * means that a read of the file is taken and never answered, as by a server
 * whose disk hangs: who reads can't even be killed until this process ends.
 *
 * Build: gcc fuse_static.c $(pkg-config --cflags --libs fuse3)
 */
#define _DEFAULT_SOURCE
#define FUSE_USE_VERSION 31

#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char **files; /* name, content, name, content, ..., NULL */

static const char *content_of(const char *path)
{
    for (char **f = files; *f; f += 2)
        if (!strcmp(path + 1, f[0]))
            return f[1];
    return NULL;
}

static void *static_init(struct fuse_conn_info *conn, struct fuse_config *cfg)
{
    (void)conn;
    cfg->direct_io = 1;
    cfg->entry_timeout = 0;
    cfg->attr_timeout = 0;
    puts("ready");
    fflush(stdout);
    return NULL;
}

static int static_getattr(const char *path, struct stat *st,
                          struct fuse_file_info *fi)
{
    (void)fi;
    memset(st, 0, sizeof(*st));
    if (!strcmp(path, "/")) {
        st->st_mode = S_IFDIR | 0755;
        st->st_nlink = 2;
        return 0;
    }
    const char *content = content_of(path);
    if (!content)
        return -ENOENT;
    st->st_mode = S_IFREG | 0444;
    st->st_nlink = 1;
    st->st_size = (off_t)strlen(content);
    return 0;
}

static int static_readdir(const char *path, void *buf, fuse_fill_dir_t fill,
                          off_t offset, struct fuse_file_info *fi,
                          enum fuse_readdir_flags flags)
{
    (void)path;
    (void)offset;
    (void)fi;
    (void)flags;
    for (char **f = files; *f; f += 2)
        fill(buf, f[0], NULL, 0, (enum fuse_fill_dir_flags)0);
    return 0;
}

static int static_open(const char *path, struct fuse_file_info *fi)
{
    if (!content_of(path))
        return -ENOENT;
    return (fi->flags & O_ACCMODE) == O_RDONLY ? 0 : -EROFS;
}

static int static_read(const char *path, char *buf, size_t size, off_t offset,
                       struct fuse_file_info *fi)
{
    (void)fi;
    const char *content = content_of(path);
    if (!content)
        return -ENOENT;
    if (!strcmp(content, "@stall")) {
        pause();
        return -EIO;
    }
    size_t len = strlen(content);
    if (offset < 0 || (size_t)offset >= len)
        return 0;
    if (size > len - (size_t)offset)
        size = len - (size_t)offset;
    memcpy(buf, content + offset, size);
    return (int)size;
}

static const struct fuse_operations ops = {
    .init = static_init,
    .getattr = static_getattr,
    .readdir = static_readdir,
    .open = static_open,
    .read = static_read,
};

int main(int argc, char **argv)
{
    if (argc < 4 || argc % 2) {
        fprintf(stderr, "usage: %s MOUNTPOINT NAME CONTENT...\n", argv[0]);
        return 2;
    }
    files = argv + 2;
    char *args[] = {
        argv[0], argv[1], "-f",
        "-s",    "-o",    "ro,fsname=static,subtype=remus-native",
        NULL,
    };
    return fuse_main(6, args, &ops, NULL);
}
