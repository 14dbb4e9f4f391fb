/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a seed wants to happen: the setting, and the steps of the operator, one
 * after the other.  It is drawn before anything runs, from numbers of its
 * own, so that a step can be left out (world.c shrinks a failing seed that
 * way) and the others stay what they were.
 */
#ifndef REMUS_WORLD_PROGRAM_H
#define REMUS_WORLD_PROGRAM_H

#include <stdint.h>

#include "oracle.h"

#define PROGRAM_STEPS 20u
#define MS 1000000u
#define S 1000000000u
#define SEGMENT 65536u

enum step_kind {
    STEP_NOTHING,
    STEP_KILL,       /* the processes of a host end */
    STEP_POWER,      /* the host loses its power */
    STEP_POWER_BOTH, /* both do */
    STEP_CUT,        /* nothing comes from a host any more, or both */
    STEP_RESET,      /* all connections are reset */
    STEP_SLOW,       /* a host's disks are */
    STEP_FREEZE,     /* the file system of a host's state stands still */
    STEP_FAIL,       /* a file operation fails */
    STEP_JUMP,       /* the wall clock jumps */
    STEP_FAIL_OVER,  /* the primary dies, the backup is promoted */
    STEP_FORCE,      /* the backup is promoted while the primary lives */
    STEP_SWAP,       /* the guest is stopped, both sides switch roles */
    STEP_VERIFY,     /* both sides are compared, and found equal */
    STEP_RESUME,     /* who waits for the backup goes on without it */
    STEP_SERVER,     /* the disks' server dies, and the next one may */
    STEP_KINDS
};

struct step {
    enum step_kind kind;
    int host;       /* of those that are about one */
    uint64_t a, b;  /* what the kind makes of it */
    uint64_t pause; /* ns, after it */
    int heals;      /* then links and disks are as they were */
    int restarts;   /* bit k: host k is started again, if it is down */
};

enum toolstack {
    TOOLSTACK_API,
    TOOLSTACK_IOCTL,
    TOOLSTACK_NONE,
    TOOLSTACK_GROUP
};

struct program {
    unsigned int volumes, segments, writer_pause_ms, checkpoint_ms;
    uint64_t sizes[ORACLE_VOLUMES];
    int ack, commit_by, on_loss, ask_alone;
    enum toolstack toolstack;
    int sessions;     /* some end, and another begins */
    int late_commits; /* some are late, or never come */
    int idle_ms, grace_ms, loss_ms;
    uint32_t queue_bytes;
    int waits_first;  /* until Protected, before the first step */
    int tags;         /* checkpoints have them */
    int pins;         /* who has the memory on the backup pins it */
    int inconsistent; /* allow_inconsistent */
    int former;       /* a promoted side answers at its old address */
    int writers;      /* so many beside the first, of shared.h's sectors */
    int node;         /* the guest outlives its disks' server */
    unsigned int steps;
    struct step step[PROGRAM_STEPS];
};

/* What is left out of a program, to shrink it. */
enum plain {
    PLAIN_ONE_VOLUME = 1,
    PLAIN_API = 2,         /* the toolstack calls, and in order */
    PLAIN_NO_SESSIONS = 4, /* that end */
    PLAIN_COMMITS = 8,     /* all of them, by the primary, at once */
    PLAIN_DURABLE = 16,
    PLAIN_CONTINUE = 32,  /* on_loss, and nobody is asked */
    PLAIN_LINK = 64,      /* it is fast */
    PLAIN_THREADS = 128,  /* they rarely switch */
    PLAIN_PINS = 256,     /* there are none, nor tags */
    PLAIN_COPY = 512,     /* no catch-up goes straight to the disks */
    PLAIN_WRITERS = 1024, /* one */
    PLAIN_DEVICES = 2048, /* no group */
    PLAIN_NODE = 4096,    /* the guest is in the server's process */
    PLAIN_ALL = 8192
};

struct reduction {
    uint64_t skip;      /* bit i: step i is left out */
    unsigned int plain; /* enum plain */
};

extern struct program program;

void program_make(uint64_t seed, const struct reduction *less);
/* One line for the setting and one for each step that is left. */
void program_print(void);
const char *step_text(const struct step *s, char *buf, unsigned int cap);

#endif
