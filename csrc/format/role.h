/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a backup durably is, and what may turn it into what.  The role stands
 * in the superblock and decides which data counts, so it has one writer:
 * remus_super_change() in super.h, by the table of remus_role_next().
 *
 *               COPY  COPIED  ADOPT   APPLY   PROMOTE    FINISH    LEAVE FIND
 *   EMPTY       copy  -       -       -       -          -         -     foreign
 *   COPYING     copy  synced  -       -       -          -         -     -
 *   SYNCED      copy  -       synced  backup  promoting  -         -     -
 *   BACKUP      copy  -       backup  backup  promoting  -         -     -
 *   PROMOTING   -     -       -       -       -          promoted  -     -
 *   PROMOTED    -     -       -       -       -          -         left  foreign
 *   LEFT        -     -       -       -       -          -         left  foreign
 *   FOREIGN     copy  -       joined  -       promoting  -         left  -
 *   JOINED      copy  -       joined  backup  promoting  -         -     -
 */
#ifndef REMUS_ROLE_H
#define REMUS_ROLE_H

#include <stdint.h>

/* The numbers stand in the superblock. */
enum remus_backup_role {
    REMUS_SUPER_EMPTY = 0,     /* never had a primary: Inconsistent */
    REMUS_SUPER_COPYING = 1,   /* a copy writes to the disks: Inconsistent */
    REMUS_SUPER_SYNCED = 2,    /* copied; consistent once an epoch > base is
                                  committed */
    REMUS_SUPER_BACKUP = 3,    /* consistent at `applied` and later ones */
    REMUS_SUPER_PROMOTING = 4, /* will be at `target`, nothing else */
    REMUS_SUPER_PROMOTED = 5,  /* is at `target`; never replays */
    REMUS_SUPER_LEFT = 6,      /* a primary took it over since: its state is
                                  what counts */
    REMUS_SUPER_FOREIGN = 7,   /* the disks are as a primary left them; another
                                  one may overwrite them */
    REMUS_SUPER_JOINED = 8,    /* was FOREIGN; the disks are not written to
                                  before a commit, and consistent with each
                                  prepared epoch > base on top of them */
    REMUS_SUPER_ROLES          /* one more than the largest */
};

enum remus_role_event {
    REMUS_ROLE_COPY,   /* a copy is about to write its first byte */
    REMUS_ROLE_COPIED, /* it is complete and synced */
    REMUS_ROLE_ADOPT, /* a catch-up begins: its primary is the one to follow */
    REMUS_ROLE_APPLY, /* an epoch > base was committed and is in the disks */
    REMUS_ROLE_PROMOTE, /* checkpoint and new generation are chosen */
    REMUS_ROLE_FINISH,  /* the disks are at that checkpoint */
    REMUS_ROLE_LEAVE,   /* a primary takes this side over */
    REMUS_ROLE_FIND,    /* opened as a backup: its disks are a primary's */
    REMUS_ROLE_EVENTS   /* how many there are */
};

/* The role after it; -1: what may not happen in this one. */
int remus_role_next(uint32_t role, enum remus_role_event event);
const char *remus_role_name(uint32_t role);
const char *remus_role_event_name(enum remus_role_event event);

/* SYNCED, JOINED: nothing was ever committed on top of these disks. */
static inline int remus_super_uncommitted(uint32_t role)
{
    return role == REMUS_SUPER_SYNCED || role == REMUS_SUPER_JOINED;
}

/* Can they follow a primary through the journal? */
static inline int remus_super_follows(uint32_t role)
{
    return remus_super_uncommitted(role) || role == REMUS_SUPER_BACKUP;
}

#endif
