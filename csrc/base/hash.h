/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The hash by which two sides find the blocks that differ: the first 16 bytes
 * of SHA-256, by GnuTLS, which uses the processor's instructions for it.  At
 * 2^-64 for any two of 2^32 blocks a false match is far rarer than a false
 * read of a disk.
 */
#ifndef REMUS_HASH_H
#define REMUS_HASH_H

#include <stddef.h>

#define REMUS_HASH_BYTES 16
#define REMUS_HASH_BLOCKS 256u /* at most in one HASH record */

/* 0, or -ENOTSUP where the system's crypto policy has no SHA-256: then `out`
 * is zeros, and nothing may be concluded from it.  From any thread. */
int remus_hash(const void *data, size_t len,
               unsigned char out[REMUS_HASH_BYTES]);
/* The same of each `block` bytes in turn (the last may be shorter), one hash
 * behind the other; ends at the first error. */
int remus_hash_blocks(const void *data, size_t len, size_t block,
                      unsigned char *out);

#endif
