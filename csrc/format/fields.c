/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Fields at fixed offsets; see fields.h. */
#include "format/fields.h"

#include <string.h>

#include "base/le.h"

static void put_number(const struct remus_field *f, const unsigned char *from,
                       unsigned char *out)
{
    uint64_t eight;
    uint32_t four;
    uint16_t two;
    switch (f->size) {
    case 8:
        memcpy(&eight, from, sizeof eight);
        remus_put64(out, eight);
        break;
    case 4:
        memcpy(&four, from, sizeof four);
        remus_put32(out, four);
        break;
    case 2:
        memcpy(&two, from, sizeof two);
        remus_put16(out, two);
        break;
    default:
        *out = *from;
        break;
    }
}

static void get_number(const struct remus_field *f, const unsigned char *in,
                       unsigned char *to)
{
    uint64_t eight;
    uint32_t four;
    uint16_t two;
    switch (f->size) {
    case 8:
        eight = remus_get64(in);
        memcpy(to, &eight, sizeof eight);
        break;
    case 4:
        four = remus_get32(in);
        memcpy(to, &four, sizeof four);
        break;
    case 2:
        two = remus_get16(in);
        memcpy(to, &two, sizeof two);
        break;
    default:
        *to = *in;
        break;
    }
}

void remus_fields_put(const struct remus_field *table, size_t count,
                      const void *from, unsigned char *out)
{
    for (size_t i = 0; i < count; i++) {
        const struct remus_field *f = &table[i];
        const unsigned char *member = (const unsigned char *)from + f->in;
        if (f->number)
            put_number(f, member, out + f->at);
        else
            memcpy(out + f->at, member, f->size);
    }
}

void remus_fields_get(const struct remus_field *table, size_t count,
                      const unsigned char *in, void *to)
{
    for (size_t i = 0; i < count; i++) {
        const struct remus_field *f = &table[i];
        unsigned char *member = (unsigned char *)to + f->in;
        if (f->number)
            get_number(f, in + f->at, member);
        else
            memcpy(member, in + f->at, f->size);
    }
}
