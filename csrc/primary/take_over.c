/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A side that was promoted goes on as a primary: the superblock of the
 * backup tells where its generation comes from.  Each step can be repeated:
 * primary.state first, then the superblock says that it is what counts.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "format/super.h"
#include "base/error.h"
#include "primary/internal.h"

static int is_backup(const char *path)
{
    return remus_fail(-EROFS,
                      "this side is the backup (%s): promote it first, or "
                      "start it as the backup",
                      path);
}

static int take_over(remus_primary *p, int file, const char *path,
                     struct remus_super *super)
{
    /* The promote left a map, if it could. */
    struct remus_primary_state s = {
        .limit = super->last_epoch + 1,
        .map = remus_dirty_id_of(super->promoted_generation)};
    remus_super_descend(super, &s.lineage);
    int err = remus_primary_state_write(p->io, p->state_dir, p->resource, &s);
    if (!err)
        err = remus_super_change(super, REMUS_ROLE_LEAVE);
    return err ? err
               : remus_super_store(p->io, file, path, p->resource,
                                   REMUS_STORE_DECISION, super);
}

/*
 * It was started as the backup since it was a primary, and no other primary
 * has brought it up to date: it is what it was.  One that is fenced says so
 * itself.
 */
static int take_back(remus_primary *p, int file, const char *path,
                     struct remus_super *super)
{
    struct remus_primary_state s;
    int err = remus_primary_state_read(p->io, p->state_dir, p->resource, &s);
    if (err == -ENOENT ||
        (!err && memcmp(s.lineage.id, super->lineage.id, REMUS_ID_BYTES)))
        return is_backup(path); /* it was promoted, and chosen to lose */
    if (err || s.flags & REMUS_PRIMARY_FENCED)
        return err;
    err = remus_super_change(super, REMUS_ROLE_LEAVE);
    return err ? err
               : remus_super_store(p->io, file, path, p->resource,
                                   REMUS_STORE_DECISION, super);
}

int remus_primary_take_over(remus_primary *p)
{
    char path[4096];
    struct remus_super super;
    snprintf(path, sizeof path, "%s/backup.state", p->state_dir);
    int file = p->io->open(p->io, path, O_RDWR);
    if (file == -ENOENT)
        return 0;
    if (file < 0)
        return remus_fail(file, "open %s: %s", path, remus_errno_text(file));
    int err = remus_super_load(p->io, file, path, p->resource, &super);
    if (err == -ENOENT)
        err = 0; /* never stored: nothing was promised */
    else if (!err && super.role == REMUS_SUPER_PROMOTED)
        err = take_over(p, file, path, &super);
    else if (!err && super.role == REMUS_SUPER_FOREIGN)
        err = take_back(p, file, path, &super);
    else if (!err && super.role != REMUS_SUPER_LEFT)
        err = is_backup(path);
    p->io->close(p->io, file);
    return err;
}
