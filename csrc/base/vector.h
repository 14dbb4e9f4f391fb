/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The bytes of one read or write that lie in several pieces of memory.
 */
#ifndef REMUS_VECTOR_H
#define REMUS_VECTOR_H

#include <sys/uio.h>

#include "base/io.h"

/* The sum of the pieces' lengths.  0, or -EINVAL with a text: more pieces than
 * `max`, a piece without memory, or a sum that is no length. */
int remus_vector_length(const struct iovec *vector, unsigned int count,
                        unsigned int max, size_t *length);

/* Copy `len` bytes from byte `at` of the vector on; they must be there. */
void remus_vector_copy(unsigned char *to, const struct iovec *vector,
                       uint64_t at, size_t len);

/* As remus_io_read() and remus_io_write(), one piece after the other. */
int remus_io_readv(remus_io *io, int file, const struct iovec *vector,
                   unsigned int count, uint64_t offset);
int remus_io_writev(remus_io *io, int file, const struct iovec *vector,
                    unsigned int count, uint64_t offset);

#endif
