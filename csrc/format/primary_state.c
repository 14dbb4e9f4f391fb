/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What survives a primary; the layout is in primary_state.h. */
#include "format/primary_state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "format/fields.h"
#include "format/two_slots.h"

#define VERSION 4u
#define NAME_AT 28u
#define LINEAGE_AT 32u
#define MAP_AT (LINEAGE_AT + REMUS_LINEAGE_BYTES)
#define CRC_AT (MAP_AT + 24u)
#define NUMBER(at, member)                                                    \
    REMUS_FIELD(at, struct remus_primary_state, member, 1)

_Static_assert(CRC_AT + 4 <= 512, "a slot in one sector");

/* Without the lineage. */
static const struct remus_field fields[] = {
    NUMBER(8, serial),
    NUMBER(16, limit),
    NUMBER(24, flags),
    NUMBER(MAP_AT, map),
    NUMBER(MAP_AT + 8, sessions),
    NUMBER(MAP_AT + 16, session),
};
#define FIELDS (sizeof fields / sizeof *fields)

static int decode(const unsigned char *p, void *out)
{
    struct remus_primary_state *s = out;
    memset(s, 0, sizeof *s);
    remus_fields_get(fields, FIELDS, p, s);
    return remus_lineage_decode(p + LINEAGE_AT, &s->lineage);
}

static const struct remus_slot_kind kind = {.magic = 0x504d4552u,
                                            .version = VERSION,
                                            .name_at = NAME_AT,
                                            .crc_at = CRC_AT,
                                            .decode = decode};

static int open_file(remus_io *io, const char *state_dir, const char *resource,
                     int flags, char *path, size_t cap)
{
    snprintf(path, cap, "%s/primary.state", state_dir);
    int file = io->open(io, path, flags);
    if (file < 0)
        remus_fail(file, "resource %s: open %s: %s", resource, path,
                   remus_errno_text(file));
    return file;
}

static int load(remus_io *io, int file, const char *path, const char *resource,
                struct remus_primary_state *s)
{
    uint32_t version;
    int err = remus_slots_load(io, file, &kind, path, resource, s, &version);
    switch (err) {
    case 0:
        return 0;
    case -ENOENT:
        *s = (struct remus_primary_state){.limit = 1};
        break;
    case -EPROTONOSUPPORT:
        remus_fail(err,
                   "%s has format version %u, this release reads %u: start "
                   "the release that wrote it, or give another state "
                   "directory",
                   path, version, VERSION);
        break;
    case -EBADMSG:
        remus_fail(err,
                   "%s is not the state of this resource: give another state "
                   "directory",
                   path);
        break;
    default:
        break;
    }
    return remus_fail_in(err, "resource %s", resource);
}

int remus_primary_state_read(remus_io *io, const char *state_dir,
                             const char *resource,
                             struct remus_primary_state *s)
{
    char path[4096];
    int file = open_file(io, state_dir, resource, O_RDWR, path, sizeof path);
    if (file < 0)
        return file;
    int err = load(io, file, path, resource, s);
    io->close(io, file);
    return err;
}

int remus_primary_state_write(remus_io *io, const char *state_dir,
                              const char *resource,
                              struct remus_primary_state *s)
{
    char path[4096];
    struct remus_primary_state before;
    unsigned char p[REMUS_PAGE] = {0};
    int file = open_file(io, state_dir, resource, O_RDWR | O_CREAT, path,
                         sizeof path);
    if (file < 0)
        return file;
    int err = load(io, file, path, resource, &before);
    if (!err || err == -ENOENT) {
        s->serial = before.serial + 1;
        remus_fields_put(fields, FIELDS, s, p);
        remus_lineage_encode(&s->lineage, p + LINEAGE_AT);
        err = remus_slots_store(io, file, &kind, path, resource,
                                REMUS_STORE_DECISION, s->serial, p);
        if (!err && (err = io->sync_dir(io, state_dir)))
            remus_fail(err, "sync %s: %s", state_dir, remus_errno_text(err));
        if (err)
            remus_fail_in(err, "resource %s", resource);
    }
    io->close(io, file);
    return err;
}
