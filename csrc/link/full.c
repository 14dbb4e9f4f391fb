/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A journal that is full; see full.h. */
#include "link/full.h"

#include <stdio.h>

typedef unsigned long long ull;

void remus_full_text(char text[REMUS_REASON_MAX], const struct remus_full *f)
{
    int here = f->role == REMUS_ROLE_BACKUP;
    const char *whose = here ? "the" : "the backup's";
    char pin[40] = "a checkpoint";
    if (f->pin)
        snprintf(pin, sizeof pin, "checkpoint %llu", (ull)f->pin);
    if (f->pinned)
        snprintf(text, REMUS_REASON_MAX,
                 "%s journal is full: %s is pinned by whoever holds its "
                 "memory, and nothing newer is committed until the pin is "
                 "released (newest committed %llu, newest %s %llu)",
                 whose, pin, (ull)f->committed, here ? "here" : "there",
                 (ull)f->newest);
    else
        snprintf(text, REMUS_REASON_MAX,
                 "%s journal is full of checkpoints that are not committed "
                 "(newest committed %llu, newest %s %llu): commit them, or %s",
                 whose, (ull)f->committed, here ? "here" : "there",
                 (ull)f->newest, here ? "promote" : "enlarge the journal");
}
