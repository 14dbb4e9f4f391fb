/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The backup's superblock; the layout is in super.h. */
#include "format/super.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "format/fields.h"
#include "format/record.h"

#define LINEAGE_AT 512u
#define SESSIONS_AT (LINEAGE_AT + REMUS_LINEAGE_BYTES)
#define STAMPS_AT (SESSIONS_AT + 16u)
#define STAMPS_END (STAMPS_AT + 8u * REMUS_VOLUMES_MAX)
#define VERSION 3u
#define NAME_AT 20u
#define CRC_AT (REMUS_PAGE - 4u)
#define FLAGS REMUS_SUPER_UNSYNCED
#define NUMBER(at, member) REMUS_FIELD(at, struct remus_super, member, 1)
#define BYTES(at, member) REMUS_FIELD(at, struct remus_super, member, 0)

_Static_assert(STAMPS_END + REMUS_BOOT_ID + 4 <= CRC_AT, "a slot is a page");

/* Without cp.epoch, which is `target` or `applied`, lineage and stamps. */
static const struct remus_field fields[] = {
    NUMBER(8, serial),
    NUMBER(16, role),
    NUMBER(24, applied),
    NUMBER(32, base),
    NUMBER(40, target),
    NUMBER(48, last_epoch),
    NUMBER(56, tail),
    NUMBER(64, tail_salt),
    NUMBER(68, flags),
    NUMBER(72, next_number),
    NUMBER(80, committed),
    NUMBER(88, told),
    NUMBER(96, segment_bytes),
    NUMBER(104, segments),
    NUMBER(112, bytes),
    BYTES(120, promoted_generation),
    NUMBER(136, cp.flags),
    NUMBER(140, cp.tag_len),
    BYTES(144, cp.tag),
    BYTES(176, cp_by.session),
    NUMBER(192, cp_by.number),
    NUMBER(200, current_epoch),
    NUMBER(208, current.wall_s),
    NUMBER(216, current.boot_ns),
    BYTES(224, current.boot),
    BYTES(248, unsynced_boot),
    NUMBER(SESSIONS_AT, sessions),
    NUMBER(SESSIONS_AT + 8, session),
    BYTES(STAMPS_END, stamp_boot),
    NUMBER(STAMPS_END + REMUS_BOOT_ID, reshape),
};
#define FIELDS (sizeof fields / sizeof *fields)

int remus_super_promoted(const struct remus_super *s)
{
    return s->role == REMUS_SUPER_PROMOTING || s->role == REMUS_SUPER_PROMOTED;
}

/* Could it have been stored?  All else relies on this order of its numbers,
 * and on sums of them that don't overflow. */
static int makes_sense(const struct remus_super *s)
{
    return s->cp.tag_len <= REMUS_TAG_MAX && s->applied <= s->last_epoch &&
           (!remus_super_promoted(s) || s->target <= s->last_epoch) &&
           s->committed <= s->last_epoch &&
           s->last_epoch <= REMUS_NUMBER_MAX &&
           s->next_number <= REMUS_NUMBER_MAX && s->tail <= REMUS_NUMBER_MAX;
}

static int decode(const unsigned char *p, void *out)
{
    struct remus_super *s = out;
    memset(s, 0, sizeof *s);
    remus_fields_get(fields, FIELDS, p, s);
    for (unsigned int i = 0; i < REMUS_VOLUMES_MAX; i++)
        s->stamp[i] = remus_get64(p + STAMPS_AT + 8 * i);
    s->cp.epoch = remus_super_promoted(s) ? s->target : s->applied;
    return remus_lineage_decode(p + LINEAGE_AT, &s->lineage) && makes_sense(s);
}

static const struct remus_slot_kind kind = {.magic = 0x424d4552u,
                                            .version = VERSION,
                                            .name_at = NAME_AT,
                                            .crc_at = CRC_AT,
                                            .decode = decode};

void remus_super_descend(const struct remus_super *s,
                         struct remus_lineage *out)
{
    remus_lineage_at(&s->lineage, s->target, out);
    remus_lineage_push(out, s->promoted_generation, s->target);
}

int remus_super_load(remus_io *io, int file, const char *path,
                     const char *resource, struct remus_super *s)
{
    uint32_t version;
    int err = remus_slots_load(io, file, &kind, path, resource, s, &version);
    if (err == -EPROTONOSUPPORT)
        return remus_fail(err,
                          "%s has format version %u, this release reads "
                          "%u: let the release that wrote it finish "
                          "(promote here, or go on there), or empty state "
                          "and journal directory and let the primary copy "
                          "the disks again",
                          path, version, VERSION);
    if (err == -EBADMSG)
        return remus_fail(err,
                          "%s holds no valid superblock of resource %s: it "
                          "belongs to another resource or is damaged; give "
                          "an empty state directory and let the primary copy "
                          "the disks again",
                          path, resource);
    if (!err && (s->role >= REMUS_SUPER_ROLES || s->flags & ~FLAGS))
        return remus_fail(-EPROTONOSUPPORT,
                          "%s has a role (%u) or flags (0x%x) that this "
                          "release does not know: start the release that "
                          "wrote it",
                          path, s->role, s->flags);
    return err;
}

int remus_super_store(remus_io *io, int file, const char *path,
                      const char *resource, enum remus_slot_store what,
                      struct remus_super *s)
{
    unsigned char p[REMUS_PAGE] = {0};
    s->serial++;
    remus_fields_put(fields, FIELDS, s, p);
    remus_lineage_encode(&s->lineage, p + LINEAGE_AT);
    for (unsigned int i = 0; i < REMUS_VOLUMES_MAX; i++)
        remus_put64(p + STAMPS_AT + 8 * i, s->stamp[i]);
    return remus_slots_store(io, file, &kind, path, resource, what, s->serial,
                             p);
}
