/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The two hosts: what runs on them, and how it is started and ended. */
#ifndef REMUS_WORLD_SIDES_H
#define REMUS_WORLD_SIDES_H

#include "disks.h"
#include "program.h"

#include "backup/backup.h"
#include "primary/primary.h"

struct side {
    remus_sim *sim;
    remus_primary *primary; /* what runs: one of these, or neither */
    remus_backup *backup;
    remus_former
        *former;         /* beside a primary, where its backup's address was */
    int stop;            /* its guest and its toolstack shall end */
    int guests;          /* threads of them */
    int riders;          /* ... that outlive the disks' server (reach.h) */
    remus_export *nodes; /* through which those reach their disks */
    uint64_t soon;       /* its next process ends at that point; 0: no */
    int watched;         /* its reader does not pause */
    int reopens;         /* its guest opens and closes its disks */
    int suspended;       /* its writers of shared.h stand still, ... */
    int writing;         /* ... but for so many that have not heard of it */
    int lets_go;         /* nothing is pinned here any more */
    uint64_t pinned;     /* this checkpoint is, for sure; 0: who knows */
    unsigned int life;   /* its process, counted */
    uint64_t since;      /* when that was started */
    unsigned int branch; /* whose its guest is; see oracle_branch() */
    uint64_t answered;   /* writes of its guest */
};

extern struct side side[2];
/* Which host is which, as the operator knows it. */
extern int primary_host, backup_host;
/* The branch of history that goes on: others' guests are lost. */
extern unsigned int the_branch;
extern char volume_paths[ORACLE_VOLUMES][8];
void sides_begin(void);

/* Does a process run there? */
int side_up(int host);
/* Run it in a thread of that host: 0, or its process was killed. */
int on_host(int host, const char *name, void *(*what)(void *), void *arg);
void pause_for(uint64_t ns);

/* Start what it is: 0, or the error with which that failed. */
int start_primary(int host);
int start_backup(int host, int discard_local);
/* Its processes end; `within` so many of its points, at the latest soon;
 * `power` >= 0: the machine, too, and so are its writes lost. */
void end_host(int host, uint64_t within, int power);
/* Only the disks' server ends: its guest waits for the next one. */
void end_server(int host, uint64_t within);
/* A clean end of the primary, or of the backup. */
void close_side(int host);

int primary_status(int host, struct remus_status *st);
int backup_status(int host, struct remus_status *st);

/* The call that has just been made may not wait for a disk or the network:
 * no time passed that was not spent running. */
void must_not_wait(const char *call, uint64_t jumps);

#endif
