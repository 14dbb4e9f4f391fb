/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Key files of TLS with pre-shared keys, as psktool writes them: one
 * "identity:hexkey" a line; an identity with unusual characters is written
 * as '#' and its bytes in hex.
 */
#ifndef REMUS_PSK_H
#define REMUS_PSK_H

#include <stddef.h>

#define REMUS_PSK_IDENTITY_MAX 128 /* bytes, as GnuTLS takes them */
#define REMUS_PSK_KEY_MIN 16       /* bytes */
#define REMUS_PSK_KEY_MAX 64

#define REMUS_PSK_RING 8 /* keys of one resource, at most */

struct remus_psk {
    char identity[REMUS_PSK_IDENTITY_MAX + 1];
    unsigned char key[REMUS_PSK_KEY_MAX];
    size_t key_len;
};

/*
 * The keys of one identity, in the file's order; the last one is the newest.
 * While a key is replaced there are several: its own, and each whose name is
 * the identity, '+' and anything, such as "guest0+2".
 */
struct remus_psk_ring {
    unsigned int count;
    struct remus_psk psk[REMUS_PSK_RING];
};

/*
 * Read the keys of `identity`.  The file must be a regular file of root's or
 * our own that group and others can't use, and right in every line.  Never
 * waits for anything but its disk.
 * Errors: -EINVAL, -EPERM, -ENOENT (no file, or no such identity in it),
 * others of open(2); with a text that says what to do.
 */
int remus_psk_load(const char *file, const char *identity,
                   struct remus_psk_ring *out);
/* Overwrite the keys. */
void remus_psk_wipe(struct remus_psk_ring *ring);

#endif
