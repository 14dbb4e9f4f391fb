/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The mount point of the nodes.
 *
 * Below the mount it is an empty directory that nobody can write into: else a
 * toolstack that comes while no disk is served makes a plain file in it, the
 * guest writes into that, and the next mount hides it.  Where root mounts,
 * its mode becomes 0, and it becomes immutable where the file system has
 * that.  Both stay when the process dies, for that is when they are needed,
 * and after a close if the owner says so; else a close restores what was.
 *
 * The mount says whose it is: its source, in /proc/self/mountinfo, is
 *
 *   remus-native:RESOURCE:STATE_DIRECTORY
 *
 * cut to REMUS_SOURCE_MAX bytes, with the type fuse.remus-native.  The mount
 * of a process that was killed stays behind, dead; it is replaced if it says
 * so of this resource and state directory, whose lock we hold.  Any other one
 * is named, and left.
 *
 * Root mounts with mount(2) itself, else fusermount3 does it for libfuse.  So
 * libfuse has nothing to complain of that would have to be caught: what its
 * log function is belongs to the program that we are part of.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/error.h"
#include "node/fuse_int.h"

#define TYPE "fuse.remus-native"
#define DEAD_MAX 16 /* dead mounts on one directory, one above the other */

/* ---- what is mounted ------------------------------------------------------ */

struct mounted {
    char type[64];
    char source[REMUS_SOURCE_MAX];
};

/* Undo what the kernel does to blanks and the like: \040. */
static void unescape(char *text)
{
    char *to = text;
    for (const char *from = text; *from; to++) {
        unsigned int c;
        int octal = from[0] == '\\' && strspn(from + 1, "01234567") >= 3 &&
                    sscanf(from + 1, "%3o", &c) == 1;
        *to = octal ? (char)c : *from;
        from += octal ? 4 : 1;
    }
    *to = '\0';
}

/* A line of mountinfo: 1 if it is a mount on `path`. */
static int parse(char *line, const char *path, struct mounted *m)
{
    char *save, *point = NULL;
    char *word = strtok_r(line, " ", &save);
    for (int i = 0; word && strcmp(word, "-"); i++) {
        if (i == 4)
            point = word;
        word = strtok_r(NULL, " ", &save);
    }
    char *type = strtok_r(NULL, " ", &save);
    char *source = strtok_r(NULL, " ", &save);
    if (!point || !type || !source)
        return 0;
    unescape(point);
    if (strcmp(point, path))
        return 0;
    unescape(source);
    snprintf(m->type, sizeof m->type, "%s", type);
    snprintf(m->source, sizeof m->source, "%s", source);
    return 1;
}

/* What is mounted on a path, the topmost.  1; 0: nothing that we can see. */
static int look(const char *path, struct mounted *m)
{
    FILE *file = fopen("/proc/self/mountinfo", "re");
    char *line = NULL;
    size_t cap = 0;
    int found = 0;
    while (file && getline(&line, &cap, file) > 0)
        found |= parse(line, path, m);
    free(line);
    if (file)
        fclose(file);
    return found;
}

/* The path of a dead mount, which can't be asked itself. */
static int place_of(const char *path, char out[PATH_MAX])
{
    char copy[PATH_MAX];
    size_t n = (size_t)snprintf(copy, sizeof copy, "%s", path);
    while (n > 1 && n < sizeof copy && copy[n - 1] == '/')
        copy[--n] = '\0';
    char *slash = strrchr(copy, '/');
    const char *name = slash ? slash + 1 : copy;
    char up[PATH_MAX];
    if (slash)
        *slash = '\0';
    if (n >= sizeof copy ||
        !realpath(!slash  ? "."
                  : *copy ? copy
                          : "/",
                  up) ||
        snprintf(out, PATH_MAX, "%s/%s", strcmp(up, "/") ? up : "", name) >=
            PATH_MAX)
        return -1;
    return 0;
}

static int take_dead_away(const char *path, const char *source)
{
    char place[PATH_MAX];
    struct mounted m = {.type = "?", .source = "?"};
    if (place_of(path, place) || !look(place, &m) || strcmp(m.type, TYPE) ||
        strcmp(m.source, source))
        return remus_fail(-EBUSY,
                          "mount %s: a dead mount is there that is not this "
                          "resource's (%.128s of type %.60s, expected "
                          "%.128s): if nothing needs it, umount -l %s",
                          path, m.source, m.type, source, path);
    if (umount2(path, MNT_DETACH))
        return remus_fail(-errno,
                          "mount %s: a dead mount is there and can't be "
                          "removed: %s: umount -l %s",
                          path, remus_errno_text(errno), path);
    return 0;
}

/* ---- the directory --------------------------------------------------------- */

static int check_empty(const char *path)
{
    DIR *dir = opendir(path);
    if (!dir)
        return remus_fail(-errno, "mount %s: %s", path,
                          remus_errno_text(errno));
    const struct dirent *entry;
    while ((entry = readdir(dir)) &&
           (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")))
        ;
    int err = 0;
    if (entry)
        err =
            remus_fail(-ENOTEMPTY,
                       "mount %s: it is not empty, there is \"%.200s\" in "
                       "it, which the mount would hide; perhaps it was made "
                       "while no disk was served: check it, and move it away",
                       path, entry->d_name);
    closedir(dir);
    return err;
}

int remus_mount_check(const char *path, const char *source)
{
    struct stat st, up;
    struct statvfs fs;
    char parent[PATH_MAX];
    /* What stat knows may be a second old; this is asked of who serves it. */
    for (int i = 0; stat(path, &st) || statvfs(path, &fs); i++) {
        if (errno != ENOTCONN || i == DEAD_MAX)
            return remus_fail(-errno, "mount %s: %s", path,
                              remus_errno_text(errno));
        int err = take_dead_away(path, source);
        if (err)
            return err;
    }
    if (!S_ISDIR(st.st_mode))
        return remus_fail(-ENOTDIR, "mount %s: not a directory", path);
    snprintf(parent, sizeof parent, "%s/..", path);
    if (stat(parent, &up) == 0 && up.st_dev != st.st_dev)
        return remus_fail(-EBUSY,
                          "mount %s: something is mounted there "
                          "already: unmount it first",
                          path);
    return check_empty(path);
}

static int set_immutable(int dir, int on)
{
    int flags; /* the header says long, the kernel takes int */
    if (ioctl(dir, FS_IOC_GETFLAGS, &flags))
        return -1;
    int before = flags & FS_IMMUTABLE_FL;
    flags = on ? flags | FS_IMMUTABLE_FL : flags & ~FS_IMMUTABLE_FL;
    if (!before == !on)
        return before != 0;
    return ioctl(dir, FS_IOC_SETFLAGS, &flags) ? -1 : before != 0;
}

static void guard_point(const char *path, struct remus_guard *g)
{
    struct stat st;
    g->dir = -1;
    if (geteuid() != 0) /* fusermount3 must be able to go there */
        return;
    g->dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (g->dir < 0)
        return;
    g->mode = fstat(g->dir, &st) ? 0755 : st.st_mode & 07777;
    /* A file system that can't do one of the two still has the other. */
    (void)fchmod(g->dir, 0);
    g->immutable = set_immutable(g->dir, 1);
}

/* Leave it, as it was before or as it is. */
static void leave_point(struct remus_guard *g, int restore)
{
    if (g->dir < 0)
        return;
    if (restore) {
        if (g->immutable == 0)
            (void)set_immutable(g->dir, 0);
        (void)fchmod(g->dir, g->mode);
    }
    close(g->dir);
    g->dir = -1;
}

void remus_export_stay_guarded(remus_export *e)
{
    if (!remus_enter(e, "export_stay_guarded"))
        e->guard.stay = 1;
}

/* ---- mounting ------------------------------------------------------------- */

/* The descriptor is the session's from here on: 0 or -errno. */
static int give_descriptor(remus_export *e, int dev)
{
    char name[32];
    snprintf(name, sizeof name, "/dev/fd/%d", dev);
    return fuse_session_mount(e->se, name)
               ? remus_fail(-EIO, "mount %s: libfuse does not take %s",
                            e->mountpoint, name)
               : 0;
}

static int mount_as_root(remus_export *e, const char *source, int device)
{
    char options[128];
    int dev = device < 0 ? open("/dev/fuse", O_RDWR | O_CLOEXEC) : device;
    if (dev < 0)
        return remus_fail(-errno, "mount %s: open /dev/fuse: %s",
                          e->mountpoint, remus_errno_text(errno));
    snprintf(options, sizeof options,
             "fd=%d,rootmode=40000,user_id=0,group_id=0,"
             "default_permissions,allow_other",
             dev);
    e->kept.head->mounted = 1;
    if (mount(source, e->mountpoint, TYPE, MS_NOSUID | MS_NODEV, options)) {
        int err = -errno;
        if (device < 0)
            close(dev);
        return remus_fail(
            err, "mount %s: %s%s", e->mountpoint, remus_errno_text(err),
            err == -ENODEV ? ": load the kernel module fuse" : "");
    }
    int err = give_descriptor(e, dev);
    if (err) {
        if (device < 0)
            close(dev);
        umount2(e->mountpoint, MNT_DETACH);
        return err;
    }
    e->ours = 1;
    return 0;
}

static int mount_for_user(remus_export *e)
{
    errno = 0;
    if (fuse_session_mount(e->se, e->mountpoint) == 0)
        return 0;
    int err = errno ? -errno : -EPERM;
    return remus_fail(err, "mount %s: fusermount3: %s", e->mountpoint,
                      remus_errno_text(err));
}

/* The value of an option: a comma ends one. */
static void add_escaped(char *out, size_t cap, const char *text)
{
    size_t n = strlen(out);
    for (; *text && n + 3 < cap; text++) {
        if (*text == ',' || *text == '\\')
            out[n++] = '\\';
        out[n++] = *text;
    }
    out[n] = '\0';
}

static struct fuse_session *
new_session(remus_export *e, const char *source,
            const struct fuse_lowlevel_ops *operations)
{
    char name[] = "remus-native", option[] = "-o";
    char values[2 * REMUS_SOURCE_MAX + 128] =
        "subtype=remus-native,default_permissions,fsname=";
    add_escaped(values, sizeof values, source);
    char *argv[] = {name, option, values, NULL};
    int root = geteuid() == 0; /* then these are not libfuse's to do */
    struct fuse_args args = FUSE_ARGS_INIT(root ? 1 : 3, argv);
    struct fuse_session *se =
        fuse_session_new(&args, operations, sizeof *operations, e);
    fuse_opt_free_args(&args);
    return se;
}

int remus_mount_again(remus_export *e, int device,
                      const struct fuse_lowlevel_ops *operations)
{
    e->guard.dir = -1; /* as the process before has left it */
    e->se = new_session(e, "", operations);
    int err = e->se ? give_descriptor(e, device)
                    : remus_fail(-EIO, "mount %s: libfuse makes no session",
                                 e->mountpoint);
    if (err && e->se) {
        fuse_session_destroy(e->se);
        e->se = NULL;
    }
    e->ours = !err;
    return err;
}

int remus_mount_open(remus_export *e, const char *source,
                     const struct fuse_lowlevel_ops *operations, int device)
{
    if (access("/dev/fuse", F_OK))
        return remus_fail(-ENODEV,
                          "mount %s: there is no /dev/fuse: load "
                          "the kernel module fuse",
                          e->mountpoint);
    e->se = new_session(e, source, operations);
    if (!e->se)
        return remus_fail(-EIO, "mount %s: libfuse makes no session",
                          e->mountpoint);
    guard_point(e->mountpoint, &e->guard);
    int err =
        geteuid() == 0 ? mount_as_root(e, source, device) : mount_for_user(e);
    if (err) {
        leave_point(&e->guard, 1);
        fuse_session_destroy(e->se);
        e->se = NULL;
    }
    return err;
}

/* End the connection. */
static void cut(remus_export *e)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        dup3(null, fuse_session_fd(e->se), O_CLOEXEC);
        close(null);
    }
}

void remus_mount_close(remus_export *e)
{
    if (!e->ours) {
        fuse_session_unmount(e->se);
        return;
    }
    struct pollfd pf = {.fd = fuse_session_fd(e->se)};
    /* Who unmounted it before may have mounted something else there. */
    int gone = poll(&pf, 1, 0) == 1 && pf.revents & POLLERR;
    cut(e);
    if (!gone)
        umount2(e->mountpoint, MNT_DETACH);
    leave_point(&e->guard, !e->guard.stay);
}

void remus_mount_detach(remus_export *e)
{
    umount2(e->mountpoint, MNT_DETACH);
    leave_point(&e->guard, !e->guard.stay);
    cut(e);
}
