/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An open file of a disk, as the primary counts it, from the answer to its
 * open to its release; see fuse_int.h. */
#include "node/fuse_int.h"

#include <errno.h>
#include <stdlib.h>

/* What the primary counts of it. */
static void release_file(remus_export *e, const struct remus_file *f)
{
    remus_primary *p = remus_node_primary(e);
    if (p)
        remus_primary_ioctl_release(p, &f->ioctl);
    if (f->writes)
        remus_primary_writer_closes(p);
}

void remus_node_close(remus_export *e, struct remus_file *f)
{
    release_file(e, f);
    remus_file_close(e, f);
}

void remus_node_release_all(remus_export *e)
{
    pthread_mutex_lock(&e->lock);
    uint32_t used = e->kept.head->files_used;
    pthread_mutex_unlock(&e->lock);
    for (uint32_t i = 0; i < used; i++)
        if (e->files.v[i].serial)
            release_file(e, &e->files.v[i]);
}

static void reply_opened(remus_export *e, fuse_req_t req,
                         struct fuse_file_info *fi, struct remus_file *f,
                         int again)
{
    fi->fh = remus_file_handle(e, f);
    fi->direct_io = 1;
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 15)
    fi->parallel_direct_writes = 1;
#endif
    int err = fuse_reply_open(req, fi);
    /* Interrupted: no release will come.  Of what the process before had
     * nobody knows: it may have been answered by that one. */
    if (err && !again)
        remus_node_close(e, f);
}

int remus_node_reply_again(remus_export *e, fuse_req_t req,
                           struct fuse_file_info *fi, uint64_t unique)
{
    struct remus_file *f = e->adopted ? remus_file_opened_by(e, unique) : NULL;
    if (f)
        reply_opened(e, req, fi, f, 1);
    return f != NULL;
}

void remus_node_reply_opened(remus_export *e, fuse_req_t req,
                             struct fuse_file_info *fi, struct remus_file *f)
{
    reply_opened(e, req, fi, f, 0);
}

/* Of a disk that a primary serves, for writing. */
void remus_node_open_to_write(remus_export *e, fuse_req_t req,
                              struct fuse_file_info *fi, int volume,
                              uint64_t unique)
{
    if (remus_primary_writer_opens(remus_node_primary(e))) {
        fuse_reply_err(req, EROFS);
        return;
    }
    struct remus_file *f = remus_file_open(e, req, volume, 1, unique);
    if (f) {
        remus_node_reply_opened(e, req, fi, f);
        return;
    }
    remus_primary_writer_closes(remus_node_primary(e));
    fuse_reply_err(req, ENFILE);
}

void remus_node_opened(remus_export *e, struct remus_opener *o, int err)
{
    struct remus_fuse_slot *w = o->slot;
    if (err)
        fuse_reply_err(w->req, err);
    else /* `fh` told the volume meanwhile */
        remus_node_open_to_write(e, w->req, &o->fi, (int)o->fi.fh, w->unique);
    free(o);
    remus_fuse_slot_give(e, w);
}
