/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Looking out awake; see spin.h. */
#include "base/spin.h"

#include <sched.h>

#define MOST_NS 200000u

uint64_t remus_spin_most(void)
{
    cpu_set_t set;
    /* More processors than the set can name are more than one. */
    if (sched_getaffinity(0, sizeof set, &set))
        return MOST_NS;
    return CPU_COUNT(&set) > 1 ? MOST_NS : 0;
}

void remus_spin_took(struct remus_spin *s, uint64_t ns)
{
    /* One that stood still says little of the next. */
    uint64_t most = s->typical_ns ? 8 * s->typical_ns : ns;
    uint64_t took = ns < most ? ns : most;
    s->typical_ns =
        s->typical_ns ? (7 * s->typical_ns + took + 4) / 8 : took + !took;
}

uint64_t remus_spin_end(const struct remus_spin *s, uint64_t asked_ns,
                        uint64_t most_ns)
{
    if (!s->typical_ns || s->typical_ns > most_ns * 3 / 4)
        return 0;
    uint64_t ns = 2 * s->typical_ns;
    return asked_ns + (ns < most_ns ? ns : most_ns);
}
