/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a backup durably is: the table of role.h. */
#include "format/role.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "format/super.h"

#define NO 0 /* what is not in the table may not happen */
#define TO(role) (REMUS_SUPER_##role + 1)

static const uint8_t table[REMUS_SUPER_ROLES][REMUS_ROLE_EVENTS] = {
    [REMUS_SUPER_EMPTY] = {TO(COPYING), NO, NO, NO, NO, NO, NO, TO(FOREIGN)},
    [REMUS_SUPER_COPYING] = {TO(COPYING), TO(SYNCED), NO, NO, NO, NO, NO, NO},
    [REMUS_SUPER_SYNCED] = {TO(COPYING), NO, TO(SYNCED), TO(BACKUP),
                            TO(PROMOTING), NO, NO, NO},
    [REMUS_SUPER_BACKUP] = {TO(COPYING), NO, TO(BACKUP), TO(BACKUP),
                            TO(PROMOTING), NO, NO, NO},
    [REMUS_SUPER_PROMOTING] = {NO, NO, NO, NO, NO, TO(PROMOTED), NO, NO},
    [REMUS_SUPER_PROMOTED] = {NO, NO, NO, NO, NO, NO, TO(LEFT), TO(FOREIGN)},
    [REMUS_SUPER_LEFT] = {NO, NO, NO, NO, NO, NO, TO(LEFT), TO(FOREIGN)},
    [REMUS_SUPER_FOREIGN] = {TO(COPYING), NO, TO(JOINED), NO, TO(PROMOTING),
                             NO, TO(LEFT), NO},
    [REMUS_SUPER_JOINED] = {TO(COPYING), NO, TO(JOINED), TO(BACKUP),
                            TO(PROMOTING), NO, NO, NO},
};

int remus_role_next(uint32_t role, enum remus_role_event event)
{
    if (role >= REMUS_SUPER_ROLES || event >= REMUS_ROLE_EVENTS)
        return -1;
    return table[role][event] - 1;
}

const char *remus_role_name(uint32_t role)
{
    static const char *const names[REMUS_SUPER_ROLES] = {
        "empty",    "copying", "synced",  "backup", "promoting",
        "promoted", "left",    "foreign", "joined"};
    return role < REMUS_SUPER_ROLES ? names[role] : "?";
}

const char *remus_role_event_name(enum remus_role_event event)
{
    static const char *const names[REMUS_ROLE_EVENTS] = {
        "copy",    "copied", "adopt", "apply",
        "promote", "finish", "leave", "find"};
    return event < REMUS_ROLE_EVENTS ? names[event] : "?";
}

/* ---- the superblock ------------------------------------------------------ */

int remus_super_change(struct remus_super *s, enum remus_role_event event)
{
    int next = remus_role_next(s->role, event);
    if (next < 0)
        return remus_fail(-EPROTO,
                          "this side is %s in its superblock: \"%s\" may not "
                          "happen to it",
                          remus_role_name(s->role),
                          remus_role_event_name(event));
    if (event == REMUS_ROLE_ADOPT && s->role == REMUS_SUPER_FOREIGN)
        memcpy(s->promoted_generation, s->lineage.id, REMUS_ID_BYTES);
    else if (event == REMUS_ROLE_COPY || event == REMUS_ROLE_APPLY)
        memset(s->promoted_generation, 0, REMUS_ID_BYTES);
    s->role = (uint32_t)next;
    return 0;
}

void remus_super_as_left(struct remus_super *s)
{
    struct remus_lineage *l = &s->lineage;
    uint32_t skip = 0; /* ancestors up to it */
    if (s->role != REMUS_SUPER_JOINED)
        return; /* nobody has put another one in its place */
    while (skip < l->count && memcmp(l->ancestor[skip].id,
                                     s->promoted_generation, REMUS_ID_BYTES))
        skip++;
    /* One that was chosen to lose stands beside it, not in it: what both
     * descend from is among its ancestors. */
    skip = skip < l->count ? skip + 1 : 0;
    memcpy(l->id, s->promoted_generation, REMUS_ID_BYTES);
    l->count -= skip;
    memmove(l->ancestor, l->ancestor + skip, l->count * sizeof l->ancestor[0]);
    memset(l->ancestor + l->count, 0, skip * sizeof l->ancestor[0]);
}
