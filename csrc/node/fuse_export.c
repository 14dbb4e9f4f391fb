/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A primary's volumes as files: open, close; see fuse_int.h. */
#include "node/fuse_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/sized.h"
#include "base/fork.h"
#include "base/entry.h"

#define DRAIN_MS 5000 /* patience for parked requests at close */

/* ---- open and close ---------------------------------------------------- */

static void init_locks(remus_export *e)
{
    pthread_mutexattr_t recursive;
    pthread_mutex_init(&e->lock, NULL);
    pthread_mutex_init(&e->disk_lock, NULL);
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&e->interrupt_lock, &recursive);
    pthread_mutexattr_destroy(&recursive);
    remus_cond_init(&e->drained);
    remus_cond_init(&e->slot_free);
    remus_cond_init(&e->watch_wake);
    pthread_rwlock_init(&e->source, NULL);
}

/* What is to outlive the process, in the caller's hands; or nothing. */
struct keep {
    int memory, device; /* -1: nothing is */
};

static int make_kept(remus_export *e, const struct keep *keep)
{
    uint32_t background = REMUS_FUSE_BACKGROUND * e->volumes;
    if (keep->memory < 0)
        return remus_kept_make(&e->kept, e->volumes, background);
    int fd = fcntl(keep->memory, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int err = remus_kept_map(&e->kept, fd, e->volumes, background);
    if (err)
        close(fd);
    else
        remus_fd_own(fd);
    return err;
}

/* All that is as large as there are volumes, and the tables: 0 or -errno. */
static int make_tables(remus_export *e, const struct keep *keep)
{
    e->width = remus_fuse_width(e->volumes);
    e->threads = calloc(remus_fuse_workers(e->volumes), sizeof *e->threads);
    e->lanes = calloc(e->volumes, sizeof *e->lanes);
    if (!e->threads || !e->lanes)
        return -ENOMEM;
    int err = make_kept(e, keep);
    if (err)
        return err;
    if (remus_slots_init(e) || remus_files_init(e))
        return -ENOMEM;
    e->nodes = e->kept.nodes;
    for (unsigned int i = 0; i < e->volumes; i++)
        e->lanes[i].tail = &e->lanes[i].put_off;
    return 0;
}

/* Owners and modes, as given or by default. */
static int take_nodes(remus_export *e, const struct remus_node *nodes)
{
    int err = nodes ? remus_sized_each(e->nodes, sizeof *e->nodes, nodes,
                                       e->volumes, "export_open", "nodes")
                    : 0;
    for (unsigned int i = 0; i < e->volumes; i++)
        if (!e->nodes[i].mode)
            e->nodes[i].mode = 0600;
    return err;
}

/* 0, or -errno with a text. */
static int new_export(remus_primary *p, remus_backup *b, int auto_promote,
                      const char *mountpoint, const struct remus_node *nodes,
                      const struct keep *keep, remus_export **out)
{
    remus_export *e = *out = calloc(1, sizeof *e);
    if (!e)
        return remus_fail(-ENOMEM, "out of memory");
    remus_entry_init(&e->entry);
    init_locks(e);
    e->since = time(NULL);
    atomic_init(&e->p, p);
    int err = p ? 0 : remus_standby_init(e, b, auto_promote);
    if (p)
        e->volumes = remus_primary_volume_count(p);
    if (!err)
        err = make_tables(e, keep);
    int again = !err && e->kept.head->mounted;
    /* Whatever asks a mount that nobody serves waits for us. */
    e->mountpoint = again ? strdup(mountpoint) : realpath(mountpoint, NULL);
    if (!err && !e->mountpoint)
        err = -ENOMEM;
    if (err && err != -EINVAL) /* that has its text */
        err = remus_fail(-ENOMEM, "out of memory");
    else if (!again)
        err = take_nodes(e, nodes);
    if (err)
        remus_export_forget(e);
    return err;
}

static int start_threads(remus_export *e)
{
    int err = -pthread_create(&e->watch, NULL, remus_fuse_watch_main, e);
    e->watching = !err;
    unsigned int count = remus_fuse_workers(e->volumes);
    for (unsigned int i = 0; !err && i < count; i++) {
        err = -pthread_create(&e->threads[i], NULL, remus_fuse_worker_main, e);
        if (!err)
            e->running++;
    }
    return err;
}

/* What the mount says: whose it is. */
static void name_source(remus_primary *p, remus_backup *b,
                        char source[REMUS_SOURCE_MAX])
{
    const char *resource, *state_dir;
    if (p)
        remus_primary_names(p, &resource, &state_dir);
    else
        remus_standby_names(b, &resource, &state_dir);
    char *real = realpath(state_dir, NULL);
    snprintf(source, REMUS_SOURCE_MAX, "remus-native:%s:%s", resource,
             real ? real : state_dir);
    free(real);
}

/* Mount it, or go on with what another process has mounted. */
static int mount_export(remus_export *e, const char *source,
                        const struct keep *keep)
{
    int device = -1;
    if (keep->device >= 0) {
        device = fcntl(keep->device, F_DUPFD_CLOEXEC, 0);
        if (device < 0)
            return remus_fail(-errno, "mount %s: %s", e->mountpoint,
                              remus_errno_text(errno));
    }
    int err =
        e->kept.head->mounted
            ? remus_adopt(e, device, &remus_fuse_operations)
            : remus_mount_open(e, source, &remus_fuse_operations, device);
    if (err && device >= 0)
        close(device);
    return err;
}

/* Does it go on with the mount of a process before? */
static int goes_on(const struct keep *keep)
{
    struct remus_kept_head h;
    return keep->memory >= 0 &&
           pread(keep->memory, &h, sizeof h, 0) == (ssize_t)sizeof h &&
           h.mounted;
}

static int open_export(remus_primary *p, remus_backup *b, int auto_promote,
                       const char *mountpoint, const struct remus_node *nodes,
                       const struct keep *keep, remus_export **out)
{
    *out = NULL;
    char source[REMUS_SOURCE_MAX];
    name_source(p, b, source);
    int err = goes_on(keep) ? 0 : remus_mount_check(mountpoint, source);
    if (err)
        return err;
    remus_export *e;
    err = new_export(p, b, auto_promote, mountpoint, nodes, keep, &e);
    if (err)
        return remus_fail_in(err, "mount %s", mountpoint);
    err = mount_export(e, source, keep);
    if (err) {
        remus_export_forget(e);
        return err;
    }
    /* A forked child would hold the mount when nobody serves it any more. */
    remus_fd_own(fuse_session_fd(e->se));
    err = start_threads(e);
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
    int no = remus_given(out, "export_open", "out");
    if (no)
        return no;
    *out = NULL;
    no = remus_enter(p, "export_open");
    if (!no)
        no = remus_given(mountpoint, "export_open", "mountpoint");
    if (no)
        return no;
    const struct keep none = {-1, -1};
    return open_export(p, NULL, 0, mountpoint, nodes, &none, out);
}

int remus_keep_open(unsigned int volumes, int *memory, int *device)
{
    int no = remus_given(memory, "keep_open", "memory");
    if (!no)
        no = remus_given(device, "keep_open", "device");
    if (!no && (!volumes || volumes > REMUS_VOLUMES_MAX))
        no = remus_fail(-EINVAL, "keep_open: %u volumes: expected 1 to %u",
                        volumes, REMUS_VOLUMES_MAX);
    if (no)
        return no;
    *device = -1;
    *memory = remus_kept_create(volumes, REMUS_FUSE_BACKGROUND * volumes);
    if (*memory < 0)
        return remus_fail(*memory, "make a file of memory: %s",
                          remus_errno_text(*memory));
    *device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (*device >= 0)
        return 0;
    int err = -errno;
    close(*memory);
    *memory = -1;
    return remus_fail(err, "open /dev/fuse: %s", remus_errno_text(err));
}

int remus_keep_check(unsigned int volumes, int memory)
{
    if (!volumes || volumes > REMUS_VOLUMES_MAX)
        return remus_fail(-EINVAL, "keep_check: %u volumes: expected 1 to %u",
                          volumes, REMUS_VOLUMES_MAX);
    return remus_kept_check(memory, volumes, REMUS_FUSE_BACKGROUND * volumes);
}

/* Of `side`, a primary or a backup: can it be, with such descriptors? */
static int check_kept(void *side, const char *call, const char *mountpoint,
                      int memory, int device)
{
    int no = remus_enter(side, call);
    if (!no)
        no = remus_given(mountpoint, call, "mountpoint");
    if (!no && (memory < 0 || device < 0))
        no = remus_fail(-EINVAL, "%s: no descriptors", call);
    if (!no && geteuid() != 0)
        no = remus_fail(-EPERM, "mount %s: only a mount of root's can be kept",
                        mountpoint);
    return no;
}

int remus_export_open_kept(remus_primary *p, const char *mountpoint,
                           const struct remus_node *nodes, int memory,
                           int device, remus_export **out)
{
    int no = remus_given(out, "export_open_kept", "out");
    if (no)
        return no;
    *out = NULL;
    no = check_kept(p, "export_open_kept", mountpoint, memory, device);
    if (no)
        return no;
    const struct keep keep = {memory, device};
    int err = open_export(p, NULL, 0, mountpoint, nodes, &keep, out);
    remus_primary_continued(p);
    return err;
}

int remus_standby_open(remus_backup *b, const char *mountpoint,
                       const struct remus_node *nodes, int auto_promote,
                       remus_export **out)
{
    int no = remus_given(out, "standby_open", "out");
    if (no)
        return no;
    *out = NULL;
    no = remus_enter(b, "standby_open");
    if (!no)
        no = remus_given(mountpoint, "standby_open", "mountpoint");
    if (no)
        return no;
    const struct keep none = {-1, -1};
    return open_export(NULL, b, auto_promote, mountpoint, nodes, &none, out);
}

int remus_standby_open_kept(remus_backup *b, const char *mountpoint,
                            const struct remus_node *nodes, int auto_promote,
                            int memory, int device, remus_export **out)
{
    int no = remus_given(out, "standby_open_kept", "out");
    if (no)
        return no;
    *out = NULL;
    no = check_kept(b, "standby_open_kept", mountpoint, memory, device);
    if (no)
        return no;
    const struct keep keep = {memory, device};
    return open_export(NULL, b, auto_promote, mountpoint, nodes, &keep, out);
}

int remus_export_alive(remus_export *e)
{
    int no = remus_enter(e, "export_alive");
    if (no)
        return no;
    return !fuse_session_exited(e->se);
}

/* Wait until the primary has answered all it has.  1: it has. */
static int drain(remus_export *e)
{
    struct remus_deadline end = remus_deadline_in(remus_clock_now(), DRAIN_MS);
    pthread_mutex_lock(&e->lock);
    while (e->parked &&
           !remus_cond_wait(&e->drained, &e->lock, remus_clock_now(), end))
        ;
    int empty = e->parked == 0;
    pthread_mutex_unlock(&e->lock);
    return empty;
}

/*
 * Requests are still parked: who waits for them gets an error.  Their answers
 * must find a file, but not one that somebody opened meanwhile.  The last of
 * them frees the export.
 */
static void leave(remus_export *e)
{
    remus_mount_detach(e);
    pthread_mutex_lock(&e->lock);
    e->abandoned = 1;
    int empty = e->parked == 0;
    pthread_mutex_unlock(&e->lock);
    if (empty)
        remus_export_free(e);
}

static void stop_threads(remus_export *e)
{
    for (unsigned int i = 0; i < e->running; i++)
        pthread_cancel(e->threads[i]);
    for (unsigned int i = 0; i < e->running; i++)
        pthread_join(e->threads[i], NULL);
    pthread_mutex_lock(&e->lock);
    e->stop = 1;
    pthread_cond_signal(&e->watch_wake);
    pthread_mutex_unlock(&e->lock);
    if (e->watching)
        pthread_join(e->watch, NULL);
}

void remus_export_close(remus_export *e)
{
    if (!e || remus_enter(e, "export_close"))
        return;
    remus_standby_end(e);
    stop_threads(e);
    remus_node_release_all(e);
    if (!drain(e)) {
        /* The primary still holds requests of this session and will answer
         * them: what they need must stay. */
        leave(e);
        return;
    }
    /* Closes the connection, which ends requests that nobody reads any more
     * and files that are still open, and takes it off the tree. */
    remus_fd_disown(fuse_session_fd(e->se));
    remus_mount_close(e);
    remus_export_free(e);
}
