/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a backup decides about failing over, without threads, locks or I/O: a
 * state and an event give the next state and what is to be done.  What it
 * takes in which role is a table of its own (roles.h), and so is who may
 * commit (may_commit.h).  tests/c/test_promote_steps.c walks all of it.
 *
 * authority  who decides what happens to the disks?  (kept in state.c)
 * phase      how far is the connection?  (kept in state.c)
 * target     may the checkpoint that was asked for be promoted to?
 * promote    what one call of promote does next (kept in promote.c)
 */
#ifndef REMUS_BACKUP_STEPS_H
#define REMUS_BACKUP_STEPS_H

#include "backup/roles.h"
#include "remus.h"

/* ---- who decides --------------------------------------------------------- */

enum remus_decides {
    REMUS_DECIDES_PRIMARY, /* a primary, if there is one */
    REMUS_DECIDES_GIVEN,   /* it stepped down, for good: whoever promotes */
    REMUS_DECIDES_OURS,    /* a promote began: nothing is taken any more */
    REMUS_DECIDES
};

struct remus_claim {
    enum remus_decides who;
    int stepped_down; /* the primary did, whoever decides now */
};

enum remus_claim_event {
    REMUS_CLAIM_STEPPED_DOWN, /* the primary's answer */
    REMUS_CLAIM_PROMOTE,      /* a promote begins */
    REMUS_CLAIM_FOUND,        /* one that began earlier is found at a start */
    REMUS_CLAIM_NOT_STORED,   /* it could not be stored that one began */
    REMUS_CLAIM_FAILED,       /* ... and what is stored is not known */
    REMUS_CLAIM_EVENTS
};

/* 1: the state has changed. */
int remus_claim_step(struct remus_claim *s, enum remus_claim_event event);

/* ---- how far the connection is ------------------------------------------- */

enum remus_phase_event {
    REMUS_ON_HELLO,     /* a hello was accepted */
    REMUS_ON_COPY,      /* BEGIN or PARTIAL: the disks are written to */
    REMUS_ON_CATCH_UP,  /* CATCH_UP: counted records follow */
    REMUS_ON_COPIED,    /* END: counted records follow */
    REMUS_ON_CAUGHT_UP, /* the epoch of the catch-up is acked */
    REMUS_ON_END,       /* the connection is over */
    REMUS_PHASE_EVENTS
};

/* The next phase; REMUS_AT_PHASES: that event can't be in this one. */
enum remus_backup_phase remus_phase_step(enum remus_backup_phase at,
                                         enum remus_phase_event event);

/* ---- which checkpoint ---------------------------------------------------- */

/* What is asked for, and what is here. */
struct remus_target_facts {
    int by;               /* REMUS_PROMOTE_* */
    unsigned int fitting; /* EPOCH, TAG: how many checkpoints it names, 2:
                             or more; of a promote that began: is it that? */
    int begun;            /* a promote began, or is complete */
    int failed;           /* the backup has failed for good */
    int taken;            /* the role takes a promote (roles.h) */
    int consistent;       /* a checkpoint is here */
    int untouched;        /* the disks are as a primary left them */
    int none_committed;   /* what is prepared is the first since a copy or a
                             fail-back: no commit was heard since */
    int as_base;          /* the default would be what was before it */
    int stepped_down;     /* the primary did: nothing is newer */
    int stale;            /* it was the newest too long ago */
};

enum remus_target {
    REMUS_TARGET_GO,
    REMUS_TARGET_FIXED,     /* a promote began, to another one */
    REMUS_TARGET_FAILED,    /* the backup must be mended first */
    REMUS_TARGET_NOTHING,   /* no checkpoint is here */
    REMUS_TARGET_AS_LEFT,   /* these disks are a primary's: name it */
    REMUS_TARGET_NONE_YET,  /* none is committed since a copy or a fail-back:
                               name one */
    REMUS_TARGET_STALE,     /* name it, if it is what is wanted */
    REMUS_TARGET_NO_NUMBER, /* no such checkpoint */
    REMUS_TARGET_NO_TAG,    /* none, or several, have that tag */
    REMUS_TARGET_NO_WAY,    /* named in no way that is known */
    REMUS_TARGETS
};

enum remus_target remus_target_step(const struct remus_target_facts *f);

/* ---- one call of promote ------------------------------------------------- */

/* What is done next. */
enum remus_promote_at {
    REMUS_CALL_LOOKS,   /* find the checkpoint, see who is connected */
    REMUS_CALL_ASKS,    /* ask the primary to step down */
    REMUS_CALL_CUTS,    /* let no primary in; if `may_cut`, end the
                              connection */
    REMUS_CALL_DECIDES, /* find the checkpoint again, now for good */
    REMUS_CALL_STORES,  /* make durable that a promote began */
    REMUS_CALL_APPLIES, /* bring the disks there, and store it */
    REMUS_CALL_DONE,
    REMUS_CALL_REFUSED,
    REMUS_CALL_PLACES
};

struct remus_promote {
    enum remus_promote_at at;
    int may_cut; /* the primary was asked, or need not be */
};

enum remus_promote_event {
    REMUS_CALL_LOOKED, /* and this was seen: the facts */
    REMUS_CALL_STAYS,  /* the primary does not step down */
    REMUS_CALL_MAY,    /* it did, or nobody is there any more */
    REMUS_CALL_CAME,   /* one connected meanwhile that was not asked */
    REMUS_CALL_CUT,    /* nobody is connected, nor will be */
    REMUS_CALL_OK,     /* what was to be done is */
    REMUS_CALL_BAD,    /* it is not */
    REMUS_CALL_EVENTS
};

struct remus_promote_facts {
    int connected; /* LOOKS: to a primary that lives */
    int forced;
    int go;       /* the checkpoint can be promoted to */
    int may_come; /* LOOKS: it can't yet, but a primary that steps down
                     commits a last one */
    int begun;    /* a promote began, or is complete */
    int done;     /* it is complete */
    int failed;   /* the backup has failed for good */
};

/* What is forbidden leaves the call as it is: 0. */
int remus_promote_step(struct remus_promote *c, enum remus_promote_event event,
                       const struct remus_promote_facts *f);

#endif
