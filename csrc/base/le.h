/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Little-endian numbers in buffers: the one place that knows how. */
#ifndef REMUS_LE_H
#define REMUS_LE_H

#include <stdint.h>

static inline void remus_put16(unsigned char *p, uint16_t v)
{
    p[0] = (unsigned char)v;
    p[1] = (unsigned char)(v >> 8);
}

static inline void remus_put32(unsigned char *p, uint32_t v)
{
    remus_put16(p, (uint16_t)v);
    remus_put16(p + 2, (uint16_t)(v >> 16));
}

static inline void remus_put64(unsigned char *p, uint64_t v)
{
    remus_put32(p, (uint32_t)v);
    remus_put32(p + 4, (uint32_t)(v >> 32));
}

static inline uint16_t remus_get16(const unsigned char *p)
{
    return (uint16_t)(p[0] | (unsigned int)p[1] << 8);
}

static inline uint32_t remus_get32(const unsigned char *p)
{
    return remus_get16(p) | (uint32_t)remus_get16(p + 2) << 16;
}

static inline uint64_t remus_get64(const unsigned char *p)
{
    return remus_get32(p) | (uint64_t)remus_get32(p + 4) << 32;
}

#endif
