/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Structs that a caller allocates: their first member is a uint32_t, their
 * size as the caller was compiled with it.  So both sides can be older:
 *   smaller than ours  the caller is older: what it lacks is 0, the default
 *   larger than ours   it is newer: all that we don't know must be 0
 * The rule is the same for what a call reads and for what it fills.
 */
#ifndef REMUS_SIZED_H
#define REMUS_SIZED_H

#include <stddef.h>

/*
 * 0, or with a text: -EINVAL no size is set, or `given` is NULL; -E2BIG what
 * is beyond `ours` bytes is not 0.  `call` without the "remus_".
 */
int remus_sized_check(const void *given, size_t ours, const char *call,
                      const char *name);

/* The same, and copy it into a struct of ours, which then has our size. */
int remus_sized_take(void *to, size_t ours, const void *given,
                     const char *call, const char *name);

/*
 * Fill a struct that was checked with one of ours: as much as it has room
 * for, and 0 beyond.
 */
void remus_sized_give(void *given, const void *from, size_t ours);

/* remus_sized_take() for an array of `count`. */
int remus_sized_each(void *to, size_t ours, const void *first,
                     unsigned int count, const char *call, const char *name);

/*
 * remus_sized_give() for element `i` of an array.  All have the size of the
 * first, which alone must be set, and was checked.
 */
void remus_sized_put(void *first, size_t i, const void *from, size_t ours);

#endif
