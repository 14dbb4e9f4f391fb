/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a backup takes: every record type and every call, in each role and
 * phase of the connection.  What no row takes is refused by name.
 *
 *   fresh    EMPTY, COPYING: the disks hold nothing that counts
 *   follows  SYNCED, BACKUP, JOINED: they hold a complete copy
 *   foreign  FOREIGN: they are as a primary left them
 *
 *                 nobody  greeted            copying  catching, streaming
 *   HELLO         any(1)  -                  -        -
 *   WRITE, ZERO   -       -                  -        follows
 *     DIRECT      -       -                  COPYING  -
 *   BARRIER       -       -                  -        follows
 *   COMMIT        -       follows(2)         (2)      follows
 *   TOLD          -       follows(2)         (2)      follows
 *   BEGIN         -       fresh              -        -
 *   PARTIAL       -       follows, foreign   -        -
 *   CATCH_UP      -       follows, foreign   -        -
 *   FLUSH, END    -       -                  COPYING  -
 *   HASH          -       follows, foreign   COPYING  follows
 *   STEPPED_DOWN, PING, BYE, ERROR: any role, after the hello
 *   what a backup sends: never
 *
 *   calls, in any phase:
 *   commit, pin, apply, checkpoint   follows
 *   promote                          follows, foreign, PROMOTING, PROMOTED
 *
 * (1) not PROMOTING and not LEFT; what a PROMOTED one answers is no.  (2) In
 * the other roles, and in a copy, it is read and means nothing: its epochs
 * are gone.
 */
#ifndef REMUS_BACKUP_ROLES_H
#define REMUS_BACKUP_ROLES_H

#include "format/record.h"
#include "format/role.h"

/* How far a connection is. */
enum remus_backup_phase {
    REMUS_AT_NOBODY,   /* none, or its hello was not accepted yet */
    REMUS_AT_GREETED,  /* accepted; nothing has begun */
    REMUS_AT_COPYING,  /* BEGIN or PARTIAL to END */
    REMUS_AT_CATCHING, /* the epoch of a catch-up has no ack yet */
    REMUS_AT_STREAMING,
    REMUS_AT_PHASES /* how many there are */
};

/* What may be sent to a backup, or asked of it. */
enum remus_request_kind {
    REMUS_ASKS_HELLO,
    REMUS_ASKS_COUNTED, /* WRITE, ZERO */
    REMUS_ASKS_DIRECT,  /* the same with the DIRECT flag */
    REMUS_ASKS_BARRIER,
    REMUS_ASKS_COMMIT,
    REMUS_ASKS_TOLD,
    REMUS_ASKS_BEGIN, /* steps of RESYNC */
    REMUS_ASKS_PARTIAL,
    REMUS_ASKS_CATCH_UP,
    REMUS_ASKS_FLUSH,
    REMUS_ASKS_END,
    REMUS_ASKS_HASH,
    REMUS_ASKS_STEPPED_DOWN,
    REMUS_ASKS_PING,
    REMUS_ASKS_BYE,
    REMUS_ASKS_ERROR,
    REMUS_ASKS_STRANGE, /* what only a backup sends */
    REMUS_CALLS_COMMIT, /* calls from here on */
    REMUS_CALLS_PIN,
    REMUS_CALLS_APPLY,
    REMUS_CALLS_CHECKPOINT,
    REMUS_CALLS_PROMOTE,
    REMUS_REQUEST_KINDS /* how many there are */
};

enum remus_taken {
    REMUS_TAKEN_NO, /* refused: the connection ends, the call fails */
    REMUS_TAKEN_YES,
    REMUS_TAKEN_VOID /* read, and nothing is done */
};

enum remus_request_kind remus_request_kind_of(const struct remus_record *r);
enum remus_taken remus_backup_takes(uint32_t role,
                                    enum remus_backup_phase phase,
                                    enum remus_request_kind kind);
/* -EBADMSG, with a text that names what was refused, why, and where. */
int remus_backup_refuses(uint32_t role, enum remus_backup_phase phase,
                         enum remus_request_kind kind,
                         const struct remus_record *r);
const char *remus_phase_name(enum remus_backup_phase phase);
const char *remus_request_kind_name(enum remus_request_kind kind);

#endif
