/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What survives a primary: state_dir/primary.state says which generation it
 * is and below which number all epochs may have been used.  Numbers are
 * reserved far ahead, so that no epoch waits for a disk, and are never used
 * twice.
 *
 * A file of two slots (two_slots.h).
 *
 *   offset size
 *    0     4    magic 0x504d4552 ("REMP")
 *    4     4    version, 4
 *    8     8    serial
 *   16     8    limit: the first number that was not reserved
 *   24     4    flags: 1 = a backup may have stored this generation; 2 = fenced;
 *                4 = began without leave to go on alone
 *   28     4    CRC32C of the resource's name
 *   32   312    lineage (lineage.h)
 *  344     8    id of the dirty map that counts (dirty_file.h); 0: none
 *  352     8    sessions in which something was to be sent, so far
 *  360     8    id of the newest of them
 *  368     4    CRC32C of bytes 0..367
 */
#ifndef REMUS_PRIMARY_STATE_H
#define REMUS_PRIMARY_STATE_H

#include "base/io.h"
#include "format/lineage.h"

#define REMUS_PRIMARY_SHARED 1u  /* before a write passes alone, a new one */
#define REMUS_PRIMARY_FENCED 2u  /* stepped down, or was failed away from */
#define REMUS_PRIMARY_UNASKED 4u /* whose start has no leave to go on alone */

struct remus_primary_state {
    uint64_t serial;
    uint64_t limit;
    uint32_t flags;
    struct remus_lineage lineage;
    uint64_t map;
    uint64_t sessions;
    uint64_t session;
};

/* 0; -ENOENT there is none; -EBADMSG; -errno; with a text. */
int remus_primary_state_read(remus_io *io, const char *state_dir,
                             const char *resource,
                             struct remus_primary_state *s);
/* Take the next serial and make it durable, in both slots: what a primary
 * stores is who may write, and which numbers were used, and an older slot says
 * neither.  Blocks.  Not two at a time. */
int remus_primary_state_write(remus_io *io, const char *state_dir,
                              const char *resource,
                              struct remus_primary_state *s);

#endif
