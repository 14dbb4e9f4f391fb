/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which state follows which; docs/operations.md shows the same table. */
#include <stdatomic.h>
#include <stdio.h>

#include "remus.h"
#include "base/states.h"

#define TO(state) (1u << REMUS_STATE_##state)

static const unsigned int primary[] = {
    [REMUS_STATE_CONNECTING] =
        TO(CATCHING_UP) | TO(UNPROTECTED) | TO(SPLIT_BRAIN) | TO(FENCED),
    [REMUS_STATE_CATCHING_UP] =
        TO(PROTECTED) | TO(CONNECTING) | TO(UNPROTECTED),
    [REMUS_STATE_PROTECTED] = TO(UNPROTECTED) | TO(FENCED),
    [REMUS_STATE_UNPROTECTED] = TO(CATCHING_UP) | TO(SPLIT_BRAIN) | TO(FENCED),
    [REMUS_STATE_SPLIT_BRAIN] = TO(CATCHING_UP) | TO(FENCED),
    [REMUS_STATE_FENCED] = 0,
};

static const unsigned int backup[] = {
    [REMUS_STATE_INCONSISTENT] =
        TO(CATCHING_UP) | TO(SPLIT_BRAIN) | TO(PROMOTING) | TO(FAILED),
    [REMUS_STATE_SPLIT_BRAIN] =
        TO(CATCHING_UP) | TO(INCONSISTENT) | TO(FAILED),
    [REMUS_STATE_CATCHING_UP] = TO(PROTECTED) | TO(STANDBY) |
                                TO(INCONSISTENT) | TO(PROMOTING) | TO(FAILED),
    [REMUS_STATE_PROTECTED] = TO(STANDBY) | TO(PROMOTING) | TO(FAILED),
    [REMUS_STATE_STANDBY] = TO(PROTECTED) | TO(CATCHING_UP) | TO(PROMOTING) |
                            TO(FAILED) | TO(SPLIT_BRAIN),
    [REMUS_STATE_PROMOTING] = TO(PROMOTED) | TO(FAILED),
    [REMUS_STATE_PROMOTED] = TO(SPLIT_BRAIN),
    [REMUS_STATE_FAILED] = 0,
};

int remus_state_follows(enum remus_role role, enum remus_state from,
                        enum remus_state to)
{
    int of_primary = role == REMUS_ROLE_PRIMARY;
    const unsigned int *table = of_primary ? primary : backup;
    size_t n = of_primary ? sizeof primary / sizeof *primary
                          : sizeof backup / sizeof *backup;
    /* A caller's number can be any. */
    if ((role != REMUS_ROLE_PRIMARY && role != REMUS_ROLE_BACKUP) ||
        (unsigned int)from >= n || (unsigned int)to > REMUS_STATE_FENCED)
        return 0;
    return table[from] >> to & 1;
}

static atomic_uint odd; /* from << 8 | to, plus 1; 0: none so far */

void remus_state_note(int role, int from, int to)
{
    if (from != to && !remus_state_follows(role, from, to))
        atomic_store(&odd, ((unsigned int)from << 8 | (unsigned int)to) + 1);
}

int remus_state_odd(int *from, int *to)
{
    unsigned int was = atomic_load(&odd);
    if (!was)
        return 0;
    *from = (int)((was - 1) >> 8);
    *to = (int)((was - 1) & 0xff);
    return 1;
}
