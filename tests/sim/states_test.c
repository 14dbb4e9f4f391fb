/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the library notes by itself, as tests ask for it. */
#include "base/states.h"
#include "remus_testing.h"

int remus_test_odd_transition(int *from, int *to)
{
    return remus_state_odd(from, to);
}
