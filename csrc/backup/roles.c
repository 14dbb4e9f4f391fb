/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a backup takes: the table of roles.h. */
#include "backup/roles.h"

#include <errno.h>

#include "base/error.h"

#define ROLE(name) (1u << REMUS_SUPER_##name)
#define FRESH (ROLE(EMPTY) | ROLE(COPYING))
#define FOLLOWS (ROLE(SYNCED) | ROLE(BACKUP) | ROLE(JOINED))
#define FOREIGN ROLE(FOREIGN)
#define COPYING ROLE(COPYING)
#define ANY ((1u << REMUS_SUPER_ROLES) - 1u)
#define GREETS (ANY & ~(ROLE(PROMOTING) | ROLE(LEFT)))
#define PROMOTES (FOLLOWS | FOREIGN | ROLE(PROMOTING) | ROLE(PROMOTED))

#define AFTER_HELLO                                                           \
    {                                                                         \
        0, ANY, ANY, ANY, ANY                                                 \
    }
#define IN_STREAM                                                             \
    {                                                                         \
        0, 0, 0, FOLLOWS, FOLLOWS                                             \
    }
#define IN_COPY                                                               \
    {                                                                         \
        0, 0, COPYING, 0, 0                                                   \
    }
#define CALL(roles)                                                           \
    {                                                                         \
        roles, roles, roles, roles, roles                                     \
    }

/* Of each: its name, the roles in which it is taken (and those in which it
 * is void), phase by phase, and what to say of it else. */
static const struct {
    const char *name;
    uint16_t yes[REMUS_AT_PHASES];
    uint16_t no_matter[REMUS_AT_PHASES];
    const char *why;
} table[REMUS_REQUEST_KINDS] = {
    [REMUS_ASKS_HELLO] = {.name = "HELLO",
                          .yes = {GREETS, 0, 0, 0, 0},
                          .why = "a hello in the middle of a session"},
    [REMUS_ASKS_COUNTED] = {.name = "WRITE or ZERO",
                            .yes = IN_STREAM,
                            .why = "a counted record before the copy ended "
                                   "or a catch-up began"},
    [REMUS_ASKS_DIRECT] = {.name = "WRITE or ZERO with DIRECT",
                           .yes = IN_COPY,
                           .why = "direct data outside of a copy"},
    [REMUS_ASKS_BARRIER] = {.name = "BARRIER",
                            .yes = IN_STREAM,
                            .why = "a counted record before the copy ended "
                                   "or a catch-up began"},
    [REMUS_ASKS_COMMIT] = {.name = "COMMIT",
                           .yes = {0, FOLLOWS, 0, FOLLOWS, FOLLOWS},
                           .no_matter = {0, ANY & ~FOLLOWS, ANY, 0, 0},
                           .why = "a commit before the hello"},
    [REMUS_ASKS_TOLD] = {.name = "TOLD",
                         .yes = {0, FOLLOWS, 0, FOLLOWS, FOLLOWS},
                         .no_matter = {0, ANY & ~FOLLOWS, ANY, 0, 0},
                         .why = "a word on an ioctl before the hello"},
    [REMUS_ASKS_BEGIN] = {.name = "RESYNC BEGIN",
                          .yes = {0, FRESH, 0, 0, 0},
                          .why = "it would throw away what is here: a whole "
                                 "copy begins right after the hello, and only "
                                 "where no complete one is"},
    [REMUS_ASKS_PARTIAL] = {.name = "RESYNC PARTIAL",
                            .yes = {0, FOLLOWS | FOREIGN, 0, 0, 0},
                            .why = "it begins right after the hello, and only "
                                   "on top of a complete copy"},
    [REMUS_ASKS_CATCH_UP] = {.name = "RESYNC CATCH_UP",
                             .yes = {0, FOLLOWS | FOREIGN, 0, 0, 0},
                             .why = "a catch-up begins right after the hello, "
                                    "and needs disks that were copied once"},
    [REMUS_ASKS_FLUSH] = {.name = "RESYNC FLUSH",
                          .yes = IN_COPY,
                          .why = "there is no copy under way"},
    [REMUS_ASKS_END] = {.name = "RESYNC END",
                        .yes = IN_COPY,
                        .why = "there is no copy under way"},
    [REMUS_ASKS_HASH] = {.name = "HASH",
                         .yes = {0, FOLLOWS | FOREIGN, COPYING, FOLLOWS,
                                 FOLLOWS},
                         .why = "there is nothing to compare with"},
    [REMUS_ASKS_STEPPED_DOWN] = {.name = "STEPPED_DOWN",
                                 .yes = AFTER_HELLO,
                                 .why = "an answer before the hello"},
    [REMUS_ASKS_PING] = {.name = "PING",
                         .yes = AFTER_HELLO,
                         .why = "a ping before the hello"},
    [REMUS_ASKS_BYE] = {.name = "BYE",
                        .yes = AFTER_HELLO,
                        .why = "a goodbye before the hello"},
    [REMUS_ASKS_ERROR] = {.name = "ERROR",
                          .yes = AFTER_HELLO,
                          .why = "an error before the hello"},
    [REMUS_ASKS_STRANGE] = {.name = "what only a backup sends",
                            .why = "it is not for a primary to send"},
    [REMUS_CALLS_COMMIT] = {.name = "commit",
                            .yes = CALL(FOLLOWS),
                            .why = "no checkpoint is prepared here"},
    [REMUS_CALLS_PIN] = {.name = "pin",
                         .yes = CALL(FOLLOWS),
                         .why = "no checkpoint is prepared here"},
    [REMUS_CALLS_APPLY] = {.name = "apply",
                           .yes = CALL(FOLLOWS),
                           .why = "there is nothing to apply"},
    [REMUS_CALLS_CHECKPOINT] = {.name = "checkpoint",
                                .yes = CALL(FOLLOWS),
                                .why = "there is nothing to store"},
    [REMUS_CALLS_PROMOTE] = {.name = "promote",
                             .yes = CALL(PROMOTES),
                             .why = "the disks are Inconsistent, no copy was "
                                    "ever completed by a checkpoint: there "
                                    "is none to go to"},
};

static enum remus_request_kind step_kind(unsigned int step)
{
    switch (step) {
    case REMUS_RESYNC_BEGIN:
        return REMUS_ASKS_BEGIN;
    case REMUS_RESYNC_PARTIAL:
        return REMUS_ASKS_PARTIAL;
    case REMUS_RESYNC_CATCH_UP:
        return REMUS_ASKS_CATCH_UP;
    case REMUS_RESYNC_FLUSH:
        return REMUS_ASKS_FLUSH;
    case REMUS_RESYNC_END:
        return REMUS_ASKS_END;
    default:
        return REMUS_ASKS_STRANGE;
    }
}

enum remus_request_kind remus_request_kind_of(const struct remus_record *r)
{
    switch (r->type) {
    case REMUS_REC_HELLO:
        return REMUS_ASKS_HELLO;
    case REMUS_REC_WRITE:
    case REMUS_REC_ZERO:
        return r->flags & REMUS_REC_DIRECT ? REMUS_ASKS_DIRECT
                                           : REMUS_ASKS_COUNTED;
    case REMUS_REC_BARRIER:
        return REMUS_ASKS_BARRIER;
    case REMUS_REC_COMMIT:
        return REMUS_ASKS_COMMIT;
    case REMUS_REC_TOLD:
        return REMUS_ASKS_TOLD;
    case REMUS_REC_RESYNC:
        return step_kind(r->flags);
    case REMUS_REC_HASH:
        return REMUS_ASKS_HASH;
    case REMUS_REC_STEPPED_DOWN:
        return REMUS_ASKS_STEPPED_DOWN;
    case REMUS_REC_PING:
        return REMUS_ASKS_PING;
    case REMUS_REC_BYE:
        return REMUS_ASKS_BYE;
    case REMUS_REC_ERROR:
        return REMUS_ASKS_ERROR;
    default:
        return REMUS_ASKS_STRANGE;
    }
}

enum remus_taken remus_backup_takes(uint32_t role,
                                    enum remus_backup_phase phase,
                                    enum remus_request_kind kind)
{
    if (role >= REMUS_SUPER_ROLES || phase >= REMUS_AT_PHASES ||
        kind >= REMUS_REQUEST_KINDS)
        return REMUS_TAKEN_NO;
    uint16_t mine = (uint16_t)(1u << role);
    if (table[kind].yes[phase] & mine)
        return REMUS_TAKEN_YES;
    return table[kind].no_matter[phase] & mine ? REMUS_TAKEN_VOID
                                               : REMUS_TAKEN_NO;
}

int remus_backup_refuses(uint32_t role, enum remus_backup_phase phase,
                         enum remus_request_kind kind,
                         const struct remus_record *r)
{
    if (r && kind == REMUS_ASKS_STRANGE)
        return remus_fail(-EBADMSG,
                          "record type %u (flags %u) from a primary: only a "
                          "backup sends it",
                          r->type, r->flags);
    return remus_fail(-EBADMSG,
                      "%s refused: %s (this side is %s, the connection %s)",
                      table[kind].name, table[kind].why, remus_role_name(role),
                      remus_phase_name(phase));
}

const char *remus_phase_name(enum remus_backup_phase phase)
{
    static const char *const names[REMUS_AT_PHASES] = {
        "not greeted", "greeted", "copying", "catching up", "streaming"};
    return phase < REMUS_AT_PHASES ? names[phase] : "?";
}

const char *remus_request_kind_name(enum remus_request_kind kind)
{
    return kind < REMUS_REQUEST_KINDS ? table[kind].name : "?";
}
