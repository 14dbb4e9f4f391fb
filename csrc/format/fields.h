/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Fields at fixed offsets, as one table for both ways. */
#ifndef REMUS_FIELDS_H
#define REMUS_FIELDS_H

#include <stddef.h>
#include <stdint.h>

struct remus_field {
    uint16_t at;    /* offset in the bytes */
    uint16_t in;    /* offset in the struct */
    uint16_t size;  /* the same in both; a number: 1, 2, 4 or 8 */
    uint8_t number; /* 1: little-endian in the bytes; 0: bytes as they are */
};

#define REMUS_FIELD(at, type, member, number)                                 \
    {                                                                         \
        (at), offsetof(type, member), sizeof(((type *)0)->member), (number)   \
    }

/* What is between the fields is left alone, either way. */
void remus_fields_put(const struct remus_field *table, size_t count,
                      const void *from, unsigned char *out);
void remus_fields_get(const struct remus_field *table, size_t count,
                      const unsigned char *in, void *to);

#endif
