/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A small file that holds one state, and after a crash the old one or the new
 * one, never part of either.
 *
 * Two slots of 4096 bytes.  Each store has a serial of its own, one more than
 * the last; slot (serial mod 2) is written and synced.  Valid is a slot with
 * the right magic, version, name and CRC; the one with the higher serial
 * counts.  Before the very first store all but the sectors with the magic is
 * written and synced: a torn first store is none.
 *
 * Magic, version and serial stand at bytes 0, 4 and 8.  Where the CRC32C of
 * the resource's name is, and that of all that is before it, is the kind's;
 * and so is what else is in a slot: super.h, primary_state.h.
 */
#ifndef REMUS_TWO_SLOTS_H
#define REMUS_TWO_SLOTS_H

#include "base/io.h"
#include "format/record.h"

struct remus_slot_kind {
    uint32_t magic, version;
    uint16_t name_at, crc_at;
    /* The state in a valid slot; 0: it makes no sense, and does not count. */
    int (*decode)(const unsigned char slot[REMUS_PAGE], void *out);
};

/*
 * Decode the slot that counts.  What a process that was killed left in the
 * page cache only is synced, and then read from the disk.
 * 0; -ENOENT: it was never stored; -errno, all with a text; without one:
 * -EBADMSG no slot is valid, -EPROTONOSUPPORT one is another release's, of
 * the version in *version.
 */
int remus_slots_load(remus_io *io, int file,
                     const struct remus_slot_kind *kind, const char *path,
                     const char *resource, void *out, uint32_t *version);

enum remus_slot_store {
    REMUS_STORE_PROGRESS, /* one slot */
    REMUS_STORE_DECISION  /* both, one after the other: damage to one of them
                             can't take it back */
};

/* Seal `slot` with this serial, write it and sync it.  0; -errno, with a
 * text. */
int remus_slots_store(remus_io *io, int file,
                      const struct remus_slot_kind *kind, const char *path,
                      const char *resource, enum remus_slot_store what,
                      uint64_t serial, unsigned char slot[REMUS_PAGE]);

#endif
