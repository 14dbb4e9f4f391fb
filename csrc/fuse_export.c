/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A primary's volumes as files: mount, close; see fuse_int.h. */
#include "fuse_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "error.h"

#define PENDING_MADE 512   /* made beforehand */
#define DRAIN_MS 5000      /* patience for parked requests at close */

static _Thread_local char log_text[256]; /* libfuse's last complaint */

static void keep_log(enum fuse_log_level level, const char *format,
                     va_list args)
{
    (void)level;
    vsnprintf(log_text, sizeof log_text, format, args);
    log_text[strcspn(log_text, "\n")] = '\0';
}

/* ---- open and close ---------------------------------------------------- */

static int check_mountpoint(const char *path)
{
    struct stat st, up;
    struct statvfs fs;
    char parent[4096];
    /* What stat knows may be a second old; this is asked of who serves it. */
    if (stat(path, &st) || statvfs(path, &fs)) {
        /* Ours, and its process died without a chance to unmount. */
        if (errno != ENOTCONN)
            return remus_fail(-errno, "mount %s: %s", path,
                              remus_errno_text(errno));
        if (umount2(path, MNT_DETACH) || stat(path, &st))
            return remus_fail(-errno, "mount %s: a dead mount is there and "
                                      "can't be removed: %s",
                              path, remus_errno_text(errno));
    }
    if (!S_ISDIR(st.st_mode))
        return remus_fail(-ENOTDIR, "mount %s: not a directory", path);
    snprintf(parent, sizeof parent, "%s/..", path);
    if (stat(parent, &up) == 0 && up.st_dev != st.st_dev)
        return remus_fail(-EBUSY, "mount %s: something is mounted there "
                                  "already: unmount it first",
                          path);
    return 0;
}

static void free_export(remus_export *e)
{
    while (e->free) {
        struct remus_pending *w = e->free;
        e->free = w->next;
        free(w);
    }
    pthread_mutex_destroy(&e->lock);
    pthread_mutex_destroy(&e->disk_lock);
    pthread_mutex_destroy(&e->interrupt_lock);
    pthread_cond_destroy(&e->drained);
    pthread_rwlock_destroy(&e->source);
    remus_standby_free(e);
    free(e->nodes);
    free(e->mountpoint);
    free(e);
}

void remus_export_free(remus_export *e)
{
    fuse_session_destroy(e->se);
    free_export(e);
}

static remus_export *new_export(remus_primary *p, remus_backup *b,
                                int auto_promote, const char *mountpoint,
                                const struct remus_node *nodes)
{
    remus_export *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&e->lock, NULL);
    pthread_mutex_init(&e->disk_lock, NULL);
    e->put_off_tail = &e->put_off;
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&e->interrupt_lock, &recursive);
    pthread_mutexattr_destroy(&recursive);
    pthread_cond_init(&e->drained, &attr);
    pthread_condattr_destroy(&attr);
    pthread_rwlock_init(&e->source, NULL);
    e->since = time(NULL);
    atomic_init(&e->p, p);
    int err = p ? 0 : remus_standby_init(e, b, auto_promote);
    if (p)
        e->volumes = remus_primary_volume_count(p);
    e->mountpoint = realpath(mountpoint, NULL);
    e->nodes = calloc(e->volumes, sizeof *e->nodes);
    for (int i = 0; i < PENDING_MADE; i++) {
        struct remus_pending *w = calloc(1, sizeof *w);
        if (!w)
            break;
        w->next = e->free;
        e->free = w;
    }
    if (err || !e->nodes || !e->mountpoint) {
        free_export(e);
        return NULL;
    }
    for (unsigned int i = 0; i < e->volumes; i++) {
        if (nodes)
            e->nodes[i] = nodes[i];
        if (!e->nodes[i].mode)
            e->nodes[i].mode = 0600;
    }
    return e;
}

static int mount_session(remus_export *e)
{
    char name[] = "remus-native", option[] = "-o";
    char values[] = "fsname=remus-native,subtype=remus-native,"
                    "default_permissions,allow_other";
    /* Without root others are let in only where fuse.conf says so. */
    if (geteuid() != 0)
        values[strlen(values) - strlen(",allow_other")] = '\0';
    char *argv[] = {name, option, values, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, argv);
    fuse_set_log_func(keep_log);
    log_text[0] = '\0';
    if (access("/dev/fuse", F_OK))
        return remus_fail(-ENODEV, "mount %s: there is no /dev/fuse: load "
                                   "the kernel module fuse",
                          e->mountpoint);
    e->se = fuse_session_new(&args, &remus_fuse_operations,
                             sizeof remus_fuse_operations, e);
    fuse_opt_free_args(&args);
    if (!e->se)
        return remus_fail(-EIO, "mount %s: FUSE session: %s", e->mountpoint,
                          log_text);
    errno = 0;
    if (fuse_session_mount(e->se, e->mountpoint)) {
        int err = errno ? -errno : -EPERM;
        remus_fail(err, "mount %s: %s", e->mountpoint,
                   *log_text ? log_text : remus_errno_text(err));
        fuse_session_destroy(e->se);
        e->se = NULL;
        return err;
    }
    return 0;
}

static int open_export(remus_primary *p, remus_backup *b, int auto_promote,
                       const char *mountpoint,
                       const struct remus_node *nodes, remus_export **out)
{
    *out = NULL;
    int err = check_mountpoint(mountpoint);
    if (err)
        return err;
    remus_export *e = new_export(p, b, auto_promote, mountpoint, nodes);
    if (!e)
        return remus_fail(-ENOMEM, "mount %s: out of memory", mountpoint);
    err = mount_session(e);
    if (err) {
        free_export(e);
        return err;
    }
    for (int i = 0; i < REMUS_FUSE_WORKERS; i++) {
        err = -pthread_create(&e->threads[i], NULL,
                              remus_fuse_worker_main, e);
        if (err)
            break;
        e->running++;
    }
    if (err) {
        remus_export_close(e);
        return remus_fail(err, "mount %s: start a thread: %s", mountpoint,
                          remus_errno_text(err));
    }
    *out = e;
    return 0;
}

int remus_export_open(remus_primary *p, const char *mountpoint,
                      const struct remus_node *nodes, remus_export **out)
{
    return open_export(p, NULL, 0, mountpoint, nodes, out);
}

int remus_standby_open(remus_backup *b, const char *mountpoint,
                       const struct remus_node *nodes, int auto_promote,
                       remus_export **out)
{
    return open_export(NULL, b, auto_promote, mountpoint, nodes, out);
}

int remus_export_alive(remus_export *e)
{
    return !fuse_session_exited(e->se);
}

/* Wait until the primary has answered all it has.  1: it has. */
static int drain(remus_export *e)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += DRAIN_MS / 1000;
    int rc = 0;
    pthread_mutex_lock(&e->lock);
    while (e->parked && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&e->drained, &e->lock, &until);
    int empty = e->parked == 0;
    pthread_mutex_unlock(&e->lock);
    return empty;
}

/*
 * End the connection under requests that are still parked: who waits for
 * them gets an error.  Their answers must find a file, but not one that
 * somebody opened meanwhile.  The last of them frees the export.
 */
static void cut(remus_export *e)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        dup3(null, fuse_session_fd(e->se), O_CLOEXEC);
        close(null);
    }
    pthread_mutex_lock(&e->lock);
    e->abandoned = 1;
    int empty = e->parked == 0;
    pthread_mutex_unlock(&e->lock);
    if (empty)
        remus_export_free(e);
}

void remus_export_close(remus_export *e)
{
    if (!e)
        return;
    remus_standby_end(e);
    for (int i = 0; i < e->running; i++)
        pthread_cancel(e->threads[i]);
    for (int i = 0; i < e->running; i++)
        pthread_join(e->threads[i], NULL);
    if (!drain(e)) {
        /* The primary still holds requests of this session and will answer
         * them: what they need must stay. */
        umount2(e->mountpoint, MNT_DETACH);
        cut(e);
        return;
    }
    /* Closes the connection, which ends requests that nobody reads any more
     * and files that are still open, and takes it off the tree. */
    fuse_session_unmount(e->se);
    remus_export_free(e);
}
