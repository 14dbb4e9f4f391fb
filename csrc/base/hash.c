/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/hash.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <string.h>

#include "base/error.h"

int remus_hash(const void *data, size_t len,
               unsigned char out[REMUS_HASH_BYTES])
{
    unsigned char whole[32];
    int rc = gnutls_hash_fast(GNUTLS_DIG_SHA256, data, len, whole);
    if (rc < 0) {
        memset(out, 0, REMUS_HASH_BYTES);
        return remus_fail(-ENOTSUP, "SHA-256: GnuTLS says: %s",
                          gnutls_strerror(rc));
    }
    memcpy(out, whole, REMUS_HASH_BYTES);
    return 0;
}

int remus_hash_blocks(const void *data, size_t len, size_t block,
                      unsigned char *out)
{
    const unsigned char *in = data;
    int err = 0;
    for (size_t at = 0; at < len && !err; at += block) {
        err = remus_hash(in + at, len - at < block ? len - at : block, out);
        out += REMUS_HASH_BYTES;
    }
    return err;
}
