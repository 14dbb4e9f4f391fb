/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Pieces of memory; see vector.h. */
#include "base/vector.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"

int remus_vector_length(const struct iovec *vector, unsigned int count,
                        unsigned int max, size_t *length)
{
    *length = 0;
    if (count > max)
        return remus_fail(-EINVAL, "vector: %u pieces, at most %u", count,
                          max);
    for (unsigned int i = 0; i < count; i++) {
        size_t n = vector[i].iov_len;
        if (n && !vector[i].iov_base)
            return remus_fail(-EINVAL, "vector: piece %u has no memory", i);
        if (n > (size_t)PTRDIFF_MAX - *length)
            return remus_fail(-EINVAL,
                              "vector: pieces 0 to %u are longer "
                              "than any memory",
                              i);
        *length += n;
    }
    return 0;
}

void remus_vector_copy(unsigned char *to, const struct iovec *vector,
                       uint64_t at, size_t len)
{
    for (; len; vector++) {
        size_t has = vector->iov_len;
        if (at >= has) {
            at -= has;
            continue;
        }
        size_t n = has - (size_t)at < len ? has - (size_t)at : len;
        memcpy(to, (const unsigned char *)vector->iov_base + at, n);
        to += n;
        len -= n;
        at = 0;
    }
}

int remus_io_readv(remus_io *io, int file, const struct iovec *vector,
                   unsigned int count, uint64_t offset)
{
    int err = 0;
    for (unsigned int i = 0; i < count && !err; i++) {
        if (vector[i].iov_len)
            err = remus_io_read(io, file, vector[i].iov_base,
                                vector[i].iov_len, offset);
        offset += vector[i].iov_len;
    }
    return err;
}

int remus_io_writev(remus_io *io, int file, const struct iovec *vector,
                    unsigned int count, uint64_t offset)
{
    int err = 0;
    for (unsigned int i = 0; i < count && !err; i++) {
        if (vector[i].iov_len)
            err = remus_io_write(io, file, vector[i].iov_base,
                                 vector[i].iov_len, offset);
        offset += vector[i].iov_len;
    }
    return err;
}
