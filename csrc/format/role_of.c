/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which side a state directory says its host is.
 *
 *   backup.state        primary.state    then it is
 *   none                none             neither
 *   none, LEFT          fenced           the backup: it stepped down
 *   none, LEFT          any other        the primary
 *   PROMOTED            any              the primary: it was promoted since
 *   any other           any              the backup
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "base/entry.h"
#include "base/error.h"
#include "format/primary_state.h"
#include "format/super.h"

/* 0; -ENOENT there is none, or nothing is in it; -errno with a text. */
static int load_super(const char *resource, const char *state_dir,
                      struct remus_super *super)
{
    char path[4096];
    remus_io *io = remus_io_system();
    if (snprintf(path, sizeof path, "%s/backup.state", state_dir) >=
        (int)sizeof path)
        return remus_fail(-ENAMETOOLONG, "%.100s...: the path is too long",
                          state_dir);
    int file = io->open(io, path, O_RDONLY);
    if (file == -ENOENT)
        return file;
    if (file < 0)
        return remus_fail(file, "open %s: %s", path, remus_errno_text(file));
    int err = remus_super_load(io, file, path, resource, super);
    io->close(io, file);
    return err;
}

int remus_role_of(const char *resource, const char *state_dir)
{
    int no = remus_given(resource, "role_of", "resource");
    if (!no)
        no = remus_given(state_dir, "role_of", "state_dir");
    if (no)
        return no;
    struct remus_super super;
    struct remus_primary_state primary;
    int err = load_super(resource, state_dir, &super);
    if (err && err != -ENOENT)
        return err;
    /* What was never stored promised nothing. */
    uint32_t role = err ? REMUS_SUPER_LEFT : super.role;
    if (role == REMUS_SUPER_PROMOTED)
        return REMUS_ROLE_PRIMARY;
    if (role != REMUS_SUPER_LEFT)
        return REMUS_ROLE_BACKUP;
    err = remus_primary_state_read(remus_io_system(), state_dir, resource,
                                   &primary);
    if (err == -ENOENT)
        return remus_fail(err, "%s holds no state of resource %s", state_dir,
                          resource);
    if (err)
        return err;
    return primary.flags & REMUS_PRIMARY_FENCED ? REMUS_ROLE_BACKUP
                                                : REMUS_ROLE_PRIMARY;
}
