/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Nodes on the backup's host, before and while it is promoted: the disks
 * have their size, mode and place already, and reading gives the applied
 * state.  Who opens one for writing waits (no worker does) until the owner
 * of the export has promoted the backup and hands the nodes over to a
 * primary, or refuses.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/backup.h"
#include "base/error.h"
#include "base/entry.h"
#include "node/fuse_int.h"

void remus_standby_status(remus_export *e, struct remus_status *s)
{
    pthread_rwlock_rdlock(&e->source);
    if (e->b)
        remus_backup_status(e->b, s);
    else
        s->state = REMUS_STATE_PROMOTED;
    pthread_rwlock_unlock(&e->source);
}

void remus_standby_names(remus_backup *b, const char **resource,
                         const char **state_dir)
{
    *resource = b->resource;
    *state_dir = b->state_dir;
}

/* Once promoted the images are what they are, and nobody's until a primary has them. */
static int read_image(const remus_export *e, unsigned int volume, void *buf,
                      size_t len, uint64_t offset)
{
    remus_io *io = remus_io_system();
    int file = io->open(io, e->paths[volume], O_RDONLY);
    if (file < 0)
        return file;
    int err = remus_io_read(io, file, buf, len, offset);
    io->close(io, file);
    return err;
}

int remus_standby_read(remus_export *e, unsigned int volume, void *buf,
                       size_t len, uint64_t offset)
{
    int err = -EAGAIN;
    pthread_rwlock_rdlock(&e->source);
    if (e->b)
        err = remus_backup_read(e->b, volume, buf, len, offset);
    pthread_rwlock_unlock(&e->source);
    return err == -EAGAIN ? read_image(e, volume, buf, len, offset) : err;
}

/* Keep the open until the nodes have a primary.  1; 0: they have; -errno. */
int remus_standby_park(remus_export *e, struct remus_opener *o)
{
    int rc = 1;
    pthread_mutex_lock(&e->lock);
    if (atomic_load(&e->p))
        rc = 0;
    else if (!e->auto_promote || e->ended)
        rc = -EROFS;
    if (rc > 0) {
        o->next = e->openers;
        e->openers = o;
    }
    pthread_mutex_unlock(&e->lock);
    return rc;
}

static struct remus_opener *take_openers(remus_export *e)
{
    pthread_mutex_lock(&e->lock);
    struct remus_opener *o = e->openers;
    e->openers = NULL;
    pthread_mutex_unlock(&e->lock);
    return o;
}

void remus_standby_interrupt(remus_export *e, fuse_req_t req)
{
    pthread_mutex_lock(&e->lock);
    struct remus_opener **at = &e->openers;
    while (*at && (*at)->slot->req != req)
        at = &(*at)->next;
    struct remus_opener *o = *at;
    if (o)
        *at = o->next;
    pthread_mutex_unlock(&e->lock);
    if (o)
        remus_node_opened(e, o, EINTR);
}

static void answer(remus_export *e, struct remus_opener *o, int err)
{
    while (o) {
        struct remus_opener *next = o->next;
        remus_node_opened(e, o, err);
        o = next;
    }
}

int remus_standby_wanted(remus_export *e)
{
    int no = remus_enter(e, "standby_wanted");
    if (no)
        return no;
    pthread_mutex_lock(&e->lock);
    int wanted = e->openers != NULL;
    pthread_mutex_unlock(&e->lock);
    return wanted;
}

void remus_standby_release(remus_export *e)
{
    if (remus_enter(e, "standby_release"))
        return;
    pthread_rwlock_wrlock(&e->source);
    e->b = NULL;
    pthread_rwlock_unlock(&e->source);
}

int remus_standby_switch(remus_export *e, remus_primary *p)
{
    int no = remus_enter(e, "standby_switch");
    if (!no)
        no = remus_enter(p, "standby_switch");
    if (no)
        return no;
    if (remus_primary_volume_count(p) != e->volumes)
        return remus_fail(-EINVAL,
                          "mount %s: the primary has %u volumes, the "
                          "nodes are %u",
                          e->mountpoint, remus_primary_volume_count(p),
                          e->volumes);
    for (unsigned int i = 0; i < e->volumes; i++)
        if (strcmp(remus_primary_volume_name(p, i), e->names[i]) ||
            remus_primary_size(p, i) != e->sizes[i])
            return remus_fail(-EINVAL,
                              "mount %s: volume %u is %s of the primary, the "
                              "node is %s",
                              e->mountpoint, i,
                              remus_primary_volume_name(p, i), e->names[i]);
    remus_standby_release(e);
    pthread_mutex_lock(&e->lock);
    atomic_store(&e->p, p);
    pthread_mutex_unlock(&e->lock);
    answer(e, take_openers(e), 0);
    return 0;
}

void remus_standby_refuse(remus_export *e, int err)
{
    if (remus_enter(e, "standby_refuse"))
        return;
    answer(e, take_openers(e), err > 0 ? err : EIO);
}

void remus_standby_end(remus_export *e)
{
    pthread_mutex_lock(&e->lock);
    e->ended = 1;
    pthread_mutex_unlock(&e->lock);
    answer(e, take_openers(e), EROFS);
}
