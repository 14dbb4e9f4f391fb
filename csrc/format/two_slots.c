/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A state file of two slots; see two_slots.h. */
#include "format/two_slots.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"

#define SERIAL_AT 8u
#define SECTOR 512u

static uint32_t name_crc(const char *resource)
{
    return remus_crc32c(0, resource, strlen(resource));
}

/* Is it this resource's slot, whatever its version?  (older versions had
 * their CRC elsewhere) */
static int is_ours(const struct remus_slot_kind *kind, const unsigned char *p,
                   const char *resource)
{
    return remus_get32(p) == kind->magic &&
           remus_get32(p + kind->name_at) == name_crc(resource) &&
           (remus_get32(p + 4) < kind->version ||
            remus_get32(p + kind->crc_at) == remus_crc32c(0, p, kind->crc_at));
}

/* Why neither slot can be used. */
static int refuse(const struct remus_slot_kind *kind, const unsigned char *buf,
                  const char *resource, uint32_t *version)
{
    for (unsigned int i = 0; i < 2; i++) {
        const unsigned char *p = buf + i * REMUS_PAGE;
        *version = remus_get32(p + 4);
        if (is_ours(kind, p, resource) && *version != kind->version)
            return -EPROTONOSUPPORT;
    }
    return -EBADMSG;
}

int remus_slots_load(remus_io *io, int file,
                     const struct remus_slot_kind *kind, const char *path,
                     const char *resource, void *out, uint32_t *version)
{
    unsigned char buf[2 * REMUS_PAGE];
    /* What we rely on from here must not vanish with the power. */
    int err = io->fdatasync(io, file);
    if (err)
        return remus_fail(err, "sync %s: %s", path, remus_errno_text(err));
    io->drop_cache(io, file);
    ssize_t n = remus_io_read_upto(io, file, buf, sizeof buf, 0);
    if (n < 0)
        return remus_fail((int)n, "read %s: %s", path,
                          remus_errno_text((int)n));
    memset(buf + n, 0, sizeof buf - (size_t)n);
    /* Power was lost before the very first store: nothing was promised. */
    if (remus_get32(buf) == 0 && remus_get32(buf + REMUS_PAGE) == 0)
        return remus_fail(-ENOENT, "%s was never stored", path);
    uint64_t first = remus_get64(buf + SERIAL_AT);
    uint64_t second = remus_get64(buf + REMUS_PAGE + SERIAL_AT);
    for (unsigned int i = 0; i < 2; i++) {
        const unsigned char *p =
            buf + ((first > second) == (i == 0) ? 0 : REMUS_PAGE);
        if (is_ours(kind, p, resource) &&
            remus_get32(p + 4) == kind->version && kind->decode(p, out))
            return 0;
    }
    return refuse(kind, buf, resource, version);
}

/* Before the first store everything but the sectors with the magic. */
static int prepare(remus_io *io, int file, const unsigned char p[REMUS_PAGE])
{
    int err = 0;
    for (unsigned int i = 0; !err && i < 2; i++)
        err = remus_io_write(io, file, p + SECTOR, REMUS_PAGE - SECTOR,
                             i * REMUS_PAGE + SECTOR);
    return err ? err : io->fdatasync(io, file);
}

int remus_slots_store(remus_io *io, int file,
                      const struct remus_slot_kind *kind, const char *path,
                      const char *resource, enum remus_slot_store what,
                      uint64_t serial, unsigned char slot[REMUS_PAGE])
{
    remus_put32(slot, kind->magic);
    remus_put32(slot + 4, kind->version);
    remus_put64(slot + SERIAL_AT, serial);
    remus_put32(slot + kind->name_at, name_crc(resource));
    remus_put32(slot + kind->crc_at, remus_crc32c(0, slot, kind->crc_at));
    unsigned int copies = what == REMUS_STORE_DECISION ? 2 : 1;
    int err = serial == 1 ? prepare(io, file, slot) : 0;
    for (unsigned int i = 0; !err && i < copies; i++) {
        err = remus_io_write(io, file, slot, REMUS_PAGE,
                             (serial + i) % 2 * REMUS_PAGE);
        if (!err)
            err = io->fdatasync(io, file);
    }
    return err ? remus_fail(err, "store %s: %s", path, remus_errno_text(err))
               : 0;
}
