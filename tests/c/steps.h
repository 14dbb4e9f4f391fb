/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For tests that walk a decision through all states, events and facts. */
#ifndef REMUS_TEST_STEPS_H
#define REMUS_TEST_STEPS_H

#include <stdio.h>

#include "expect.h"

/* A fact out of a number that goes through all of them. */
static inline int bit(unsigned int of, int n)
{
    return (int)(of >> n & 1);
}

static inline void counted(const char *what, unsigned int states,
                           unsigned int events, unsigned int facts)
{
    printf("%-10s %3u states x %2u events x %3u facts = %u\n", what, states,
           events, facts, states * events * facts);
}

#endif
