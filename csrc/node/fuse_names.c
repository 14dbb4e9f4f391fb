/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the nodes of a backup are: names, images, sizes; see fuse_int.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/backup.h"
#include "node/fuse_int.h"

int remus_standby_init(remus_export *e, remus_backup *b, int auto_promote)
{
    e->b = b;
    e->auto_promote = auto_promote;
    e->volumes = b->disk_count;
    e->names = calloc(e->volumes, sizeof *e->names);
    e->paths = calloc(e->volumes, sizeof *e->paths);
    e->sizes = calloc(e->volumes, sizeof *e->sizes);
    if (!e->names || !e->paths || !e->sizes)
        return -ENOMEM;
    for (unsigned int i = 0; i < e->volumes; i++) {
        e->names[i] = strdup(b->disks[i].name);
        e->paths[i] = strdup(b->disks[i].path);
        e->sizes[i] = b->disks[i].size;
        if (!e->names[i] || !e->paths[i])
            return -ENOMEM;
    }
    return 0;
}

void remus_standby_free(remus_export *e)
{
    for (unsigned int i = 0; e->names && i < e->volumes; i++)
        free(e->names[i]);
    for (unsigned int i = 0; e->paths && i < e->volumes; i++)
        free(e->paths[i]);
    free(e->names);
    free(e->paths);
    free(e->sizes);
}
