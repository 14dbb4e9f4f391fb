/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a C test asks for: it ends with 1 and says where, unless it holds. */
#ifndef REMUS_TEST_EXPECT_H
#define REMUS_TEST_EXPECT_H

#include <stdio.h>
#include <stdlib.h>

#include "remus.h"

/* A call that does not fail: its result is not negative. */
#define CHECK(expr)                                                           \
    do {                                                                      \
        long long rc_ = (long long)(expr);                                    \
        if (rc_ < 0) {                                                        \
            fprintf(stderr, "%s:%d: %s = %lld: %s\n", __FILE__, __LINE__,     \
                    #expr, rc_, remus_last_error());                          \
            exit(1);                                                          \
        }                                                                     \
    } while (0)
#define EXPECT(cond)                                                          \
    do {                                                                      \
        if (!(cond)) {                                                        \
            fprintf(stderr, "%s:%d: not true: %s (%s)\n", __FILE__, __LINE__, \
                    #cond, remus_last_error());                               \
            exit(1);                                                          \
        }                                                                     \
    } while (0)

#endif
