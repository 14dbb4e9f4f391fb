/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The hash by which two sides find the blocks that differ: BLAKE2b with 128
 * bits of result and no key (RFC 7693).  At 2^-64 for any two of 2^32 blocks
 * a false match is far rarer than a false read of a disk.
 */
#ifndef REMUS_HASH_H
#define REMUS_HASH_H

#include <stddef.h>

#define REMUS_HASH_BYTES 16
#define REMUS_HASH_BLOCKS 256u /* at most in one HASH record */

void remus_hash(const void *data, size_t len,
                unsigned char out[REMUS_HASH_BYTES]);

#endif
