/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which checkpoints there are. */
#include <errno.h>
#include <string.h>

#include "backup/backup.h"
#include "base/entry.h"
#include "base/sized.h"

/* The newest `cap` of the checkpoints that were listed. */
struct list {
    struct remus_checkpoint *out;
    size_t each; /* bytes from one to the next */
    unsigned int cap, n;
};

static void list_one(struct list *l, const struct remus_checkpoint *cp,
                     uint32_t flags)
{
    struct remus_checkpoint one = *cp;
    one.flags |= flags;
    unsigned int at = l->n++;
    if (!l->cap)
        return;
    if (at >= l->cap) {
        at = l->cap - 1;
        memmove(l->out, (char *)l->out + l->each, at * l->each);
    }
    remus_sized_put(l->out, at, &one, sizeof one);
}

int remus_backup_checkpoints(remus_backup *b, struct remus_checkpoint *out,
                             unsigned int cap)
{
    int no = remus_enter(b, "backup_checkpoints");
    if (!no && cap)
        no = remus_sized_check(out, sizeof *out, "backup_checkpoints", "out");
    if (no)
        return no;
    struct list l = {out, cap ? out->struct_size : 0, cap, 0};
    if (remus_backup_try_lock(b))
        return -EAGAIN;
    if (remus_super_promoted(&b->super)) {
        list_one(&l, &b->super.cp, REMUS_CP_COMMITTED);
    } else if (remus_backup_consistent(b)) {
        if (remus_backup_committed(b))
            list_one(&l, &b->committed_cp, REMUS_CP_COMMITTED);
        for (size_t i = 0; i < b->epoch_count; i++)
            if (b->epochs[i]->number > b->committed)
                list_one(&l, &b->epochs[i]->cp, 0);
    }
    remus_backup_unlock(b);
    return (int)l.n;
}
