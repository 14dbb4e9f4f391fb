/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/sized.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "base/entry.h"
#include "base/error.h"
#include "remus.h"

#define SIZE_MOST 65536u /* no struct of any version: not initialised */

static uint32_t size_of(const void *given)
{
    uint32_t size;
    memcpy(&size, given, sizeof size);
    return size;
}

int remus_sized_check(const void *given, size_t ours, const char *call,
                      const char *name)
{
    int no = remus_given(given, call, name);
    if (no)
        return no;
    uint32_t size = size_of(given);
    if (size < sizeof size || size > SIZE_MOST)
        return remus_fail(-EINVAL,
                          "%s: %s.struct_size is %u: set it to the size "
                          "of the struct, as REMUS_INIT does",
                          call, name, size);
    const unsigned char *bytes = given;
    for (size_t i = ours; i < size; i++)
        if (bytes[i])
            return remus_fail(-E2BIG,
                              "%s: %s has %u bytes, this library (%d.%d.%d) "
                              "knows %zu, and byte %zu is not 0: what it "
                              "asks for needs a newer library",
                              call, name, size, REMUS_VERSION_MAJOR,
                              REMUS_VERSION_MINOR, REMUS_VERSION_PATCH, ours,
                              i);
    return 0;
}

int remus_sized_take(void *to, size_t ours, const void *given,
                     const char *call, const char *name)
{
    int no = remus_sized_check(given, ours, call, name);
    if (no)
        return no;
    uint32_t size = size_of(given), set = (uint32_t)ours;
    memset(to, 0, ours);
    memcpy(to, given, size < ours ? size : ours);
    memcpy(to, &set, sizeof set);
    return 0;
}

void remus_sized_give(void *given, const void *from, size_t ours)
{
    uint32_t size = size_of(given);
    memcpy(given, from, size < ours ? size : ours);
    if (size > ours)
        memset((unsigned char *)given + ours, 0, size - ours);
    memcpy(given, &size, sizeof size);
}

int remus_sized_each(void *to, size_t ours, const void *first,
                     unsigned int count, const char *call, const char *name)
{
    for (unsigned int i = 0; i < count; i++) {
        const void *given =
            (const unsigned char *)first + i * (size_t)size_of(first);
        int no = remus_sized_take((unsigned char *)to + i * ours, ours, given,
                                  call, name);
        if (no)
            return no;
        if (size_of(given) != size_of(first))
            return remus_fail(-EINVAL,
                              "%s: %s[%u].struct_size is %u, that of "
                              "the first %u: they are one array",
                              call, name, i, size_of(given), size_of(first));
    }
    return 0;
}

void remus_sized_put(void *first, size_t i, const void *from, size_t ours)
{
    uint32_t size = size_of(first);
    void *at = (unsigned char *)first + i * size;
    memcpy(at, &size, sizeof size);
    remus_sized_give(at, from, ours);
}
