/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is known without a comparison.  A side that was the primary knows by
 * its dirty map which blocks differ from a checkpoint that its successor went
 * on from; the successor knows by its own what it has changed since.  So a
 * fail-back sends what either of them marks, and a planned exchange of roles
 * next to nothing.
 */
#include <errno.h>
#include <string.h>

#include "backup/backup.h"
#include "base/error.h"
#include "format/primary_state.h"

static int describe(const remus_backup *b, struct remus_dirty_of *of,
                    const unsigned char *generation)
{
    int files[REMUS_VOLUMES_MAX];
    memset(of, 0, sizeof *of);
    of->resource = b->resource;
    of->state_dir = b->state_dir;
    of->run_dir = b->run_dir;
    of->generation = generation;
    for (unsigned int i = 0; i < b->disk_count; i++)
        files[i] = b->disks[i].file;
    return remus_dirty_look(of, b->io, files, b->disk_count);
}

int remus_backup_marks_open(remus_backup *b)
{
    struct remus_dirty_of of;
    struct remus_primary_state s;
    const unsigned char *id = b->super.lineage.id;
    if (b->read_only || b->super.role != REMUS_SUPER_FOREIGN)
        return 0;
    if (describe(b, &of, id))
        return 0; /* not known */
    int err = remus_primary_state_read(b->io, b->state_dir, b->resource, &s);
    of.id = !err && !memcmp(s.lineage.id, id, REMUS_ID_BYTES)
                ? s.map
                : remus_dirty_id_of(id);
    return remus_dirty_left_read(&b->left, b->io, &of);
}

void remus_backup_marks_reply(const remus_backup *b,
                              const struct remus_hello *h,
                              struct remus_hello_reply *reply)
{
    const struct remus_lineage *ours = &b->super.lineage;
    const unsigned char *id = ours->id;
    uint64_t end = UINT64_MAX, m = 0;
    uint32_t next = 0;
    if (b->super.role != REMUS_SUPER_FOREIGN || !b->left.bits)
        return;
    while (!remus_lineage_has(&h->lineage, id, &m)) {
        if (next == ours->count)
            return;
        id = ours->ancestor[next].id;
        end = ours->ancestor[next++].end;
    }
    /* Up to m both are one; what came here after it is marked, if nothing of
     * that was forgotten. */
    if (m == UINT64_MAX || m > end || m < b->left.forgotten)
        return;
    reply->content = REMUS_CONTENT_MARKED;
    reply->held = m;
    memcpy(reply->generation, id, REMUS_ID_BYTES);
}

int remus_backup_marks_answer(remus_backup *b, const struct remus_record *r,
                              unsigned char bits[REMUS_HASH_BLOCKS / 8])
{
    uint64_t blocks = (r->range + REMUS_BLOCK - 1) / REMUS_BLOCK;
    memset(bits, 0, REMUS_HASH_BLOCKS / 8);
    if (r->volume >= b->disk_count || !r->range || r->offset % REMUS_BLOCK ||
        blocks > REMUS_HASH_BLOCKS || r->offset > b->disks[r->volume].size ||
        r->range > b->disks[r->volume].size - r->offset)
        return remus_fail(-EBADMSG,
                          "a question about %llu bytes at %llu of volume %u",
                          (unsigned long long)r->range,
                          (unsigned long long)r->offset, r->volume);
    pthread_mutex_lock(&b->apply_lock);
    int known = b->left.bits != NULL;
    for (uint64_t i = 0; known && i < blocks; i++)
        if (remus_dirty_left_has(&b->left, r->volume,
                                 r->offset / REMUS_BLOCK + i))
            bits[i / 8] |= (unsigned char)(1u << i % 8);
    pthread_mutex_unlock(&b->apply_lock);
    return known ? 0
                 : remus_fail(-EBADMSG, "a question about a map that is not "
                                        "here");
}

void remus_backup_marks_remove(remus_backup *b)
{
    struct remus_dirty_of of;
    if (b->left.bits && describe(b, &of, b->super.lineage.id) == 0)
        remus_dirty_left_remove(b->io, &of);
    pthread_mutex_lock(&b->lock);
    remus_dirty_left_free(&b->left);
    remus_backup_unlock(b);
}

void remus_backup_marks_leave(remus_backup *b)
{
    struct remus_dirty_of of;
    int files[REMUS_VOLUMES_MAX];
    for (unsigned int i = 0; i < b->disk_count; i++)
        files[i] = b->disks[i].file;
    if (describe(b, &of, b->super.promoted_generation) == 0)
        (void)remus_dirty_leave_empty(b->io, &of, files, b->super.target);
}
