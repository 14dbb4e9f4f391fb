/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The header of a journal segment; the layout is in journal.h. */
#ifndef REMUS_SEGMENT_H
#define REMUS_SEGMENT_H

#include "journal.h"

#define REMUS_SEGMENT_HEADER 84u

void remus_segment_encode(const struct remus_segment *seg,
                          const char *resource, uint64_t segment_bytes,
                          unsigned char out[REMUS_SEGMENT_HEADER]);
/* 1 if valid for this resource and size, else 0. */
int remus_segment_decode(const unsigned char in[REMUS_SEGMENT_HEADER],
                         const char *resource, uint64_t segment_bytes,
                         struct remus_segment *seg);

#endif
