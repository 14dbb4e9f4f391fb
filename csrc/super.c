/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The backup's superblock; the layout is in backup.h. */
#include <errno.h>
#include <string.h>

#include "backup.h"
#include "error.h"

#define MAGIC 0x424d4552u
#define VERSION 2u
#define LINEAGE_AT 168u
#define CRC_AT (LINEAGE_AT + REMUS_LINEAGE_BYTES)

_Static_assert(CRC_AT + 4 <= 512, "a slot in one sector");

int remus_super_promoted(const struct remus_super *s)
{
    return s->role == REMUS_SUPER_PROMOTING ||
           s->role == REMUS_SUPER_PROMOTED;
}

static int decode(const unsigned char *p, const char *resource,
                  struct remus_super *s)
{
    if (remus_get32(p) != MAGIC || remus_get32(p + 4) != VERSION ||
        remus_get32(p + CRC_AT) != remus_crc32c(0, p, CRC_AT) ||
        remus_get32(p + 20) != remus_crc32c(0, resource, strlen(resource)))
        return 0;
    s->sequence = remus_get64(p + 8);
    s->role = remus_get32(p + 16);
    s->applied = remus_get64(p + 24);
    s->base = remus_get64(p + 32);
    s->target = remus_get64(p + 40);
    s->last_epoch = remus_get64(p + 48);
    s->tail = remus_get64(p + 56);
    s->number = remus_get64(p + 64);
    s->segment_bytes = remus_get64(p + 72);
    s->segments = remus_get64(p + 80);
    s->heard = remus_get64(p + 88);
    s->bytes = remus_get64(p + 96);
    memcpy(s->promoted_generation, p + 104, REMUS_ID_BYTES);
    s->next_number = remus_get64(p + 120);
    s->cp.epoch = remus_super_promoted(s) ? s->target : s->applied;
    s->cp.flags = remus_get32(p + 128);
    s->cp.tag_len = remus_get32(p + 132);
    memcpy(s->cp.tag, p + 136, REMUS_TAG_MAX);
    return remus_lineage_decode(p + LINEAGE_AT, &s->lineage) &&
           s->role <= REMUS_SUPER_JOINED && s->cp.tag_len <= REMUS_TAG_MAX;
}

void remus_super_descend(const struct remus_super *s,
                         struct remus_lineage *out)
{
    remus_lineage_at(&s->lineage, s->target, out);
    remus_lineage_push(out, s->promoted_generation, s->target);
}

int remus_super_load(remus_io *io, int file, const char *path,
                     const char *resource, struct remus_super *s)
{
    unsigned char buf[2 * REMUS_PAGE];
    /* A process that was killed may have left a slot in the page cache only:
     * what we rely on from here must not vanish with the power. */
    int err = io->fdatasync(io, file);
    if (err)
        return remus_fail(err, "sync %s: %s", path, remus_errno_text(err));
    io->drop_cache(io, file);
    ssize_t n = remus_io_read_upto(io, file, buf, sizeof buf, 0);
    if (n < 0)
        return remus_fail((int)n, "read %s: %s", path,
                          remus_errno_text((int)n));
    if (n == 0)
        return remus_fail(-ENOENT, "%s is empty", path);
    memset(buf + n, 0, sizeof buf - (size_t)n);
    /* Power was lost before the very first store: nothing was promised. */
    if (remus_get32(buf) == 0 && remus_get32(buf + REMUS_PAGE) == 0)
        return remus_fail(-ENOENT, "%s was never stored", path);
    struct remus_super slot[2];
    int ok0 = decode(buf, resource, &slot[0]);
    int ok1 = decode(buf + REMUS_PAGE, resource, &slot[1]);
    if (!ok0 && !ok1)
        return remus_fail(-EBADMSG,
                          "%s holds no valid superblock of resource %s: it "
                          "belongs to another resource or is damaged; give "
                          "an empty state directory and let the primary copy "
                          "the disks anew",
                          path, resource);
    *s = ok0 && (!ok1 || slot[0].sequence > slot[1].sequence) ? slot[0]
                                                              : slot[1];
    return 0;
}

int remus_super_store(remus_io *io, int file, const char *path,
                      const char *resource, struct remus_super *s)
{
    unsigned char p[REMUS_PAGE] = {0};
    s->sequence++;
    remus_put32(p, MAGIC);
    remus_put32(p + 4, VERSION);
    remus_put64(p + 8, s->sequence);
    remus_put32(p + 16, s->role);
    remus_put32(p + 20, remus_crc32c(0, resource, strlen(resource)));
    remus_put64(p + 24, s->applied);
    remus_put64(p + 32, s->base);
    remus_put64(p + 40, s->target);
    remus_put64(p + 48, s->last_epoch);
    remus_put64(p + 56, s->tail);
    remus_put64(p + 64, s->number);
    remus_put64(p + 72, s->segment_bytes);
    remus_put64(p + 80, s->segments);
    remus_put64(p + 88, s->heard);
    remus_put64(p + 96, s->bytes);
    memcpy(p + 104, s->promoted_generation, REMUS_ID_BYTES);
    remus_put64(p + 120, s->next_number);
    remus_put32(p + 128, s->cp.flags);
    remus_put32(p + 132, s->cp.tag_len);
    memcpy(p + 136, s->cp.tag, REMUS_TAG_MAX);
    remus_lineage_encode(&s->lineage, p + LINEAGE_AT);
    remus_put32(p + CRC_AT, remus_crc32c(0, p, CRC_AT));
    uint64_t slot = s->sequence % 2 * REMUS_PAGE;
    int err = remus_io_write(io, file, p, sizeof p, slot);
    if (!err)
        err = io->fdatasync(io, file);
    if (err)
        return remus_fail(err, "store %s: %s", path, remus_errno_text(err));
    return 0;
}
