/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Looking out awake.  To sleep and be woken takes tens of microseconds, as
 * long as the answer of a peer that is near.  So whoever waits for one looks
 * for it without sleeping first: for as long as answers took lately, twice,
 * and not at all where they took longer than it pays, or where the process
 * has one processor only and would take it from the one who answers.
 */
#ifndef REMUS_SPIN_H
#define REMUS_SPIN_H

#include <stdint.h>

/* Lock: that of the struct it is in. */
struct remus_spin {
    uint64_t typical_ns; /* moving mean of what answers took; 0: none yet */
};

/* The longest that it ever pays, in nanoseconds; 0: one processor. */
uint64_t remus_spin_most(void);

/* An answer took so long. */
void remus_spin_took(struct remus_spin *s, uint64_t ns);

/* Until which moment to look out for the answer to what was asked at
 * `asked_ns`; 0: not at all. */
uint64_t remus_spin_end(const struct remus_spin *s, uint64_t asked_ns,
                        uint64_t most_ns);

#endif
