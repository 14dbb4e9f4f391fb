/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A backup's state, at the bottom of its floor: what a connection is, who
 * decides, how old a checkpoint is, and what follows from that.  Everything
 * here is derived from fields that `lock` guards (it is held by the caller
 * unless said otherwise); nothing waits or does I/O.
 */
#ifndef REMUS_BACKUP_STATE_H
#define REMUS_BACKUP_STATE_H

#include "backup/roles.h"
#include "backup/steps.h"
#include "format/lineage.h"
#include "format/moment.h"
#include "format/record.h"
#include "format/super.h"

/* How the newest hello was related to what is here. */
enum remus_met {
    REMUS_MET_OURS,  /* none yet, or it may go on from here */
    REMUS_MET_SPLIT, /* it went on by itself, as these disks did */
    REMUS_MET_BEHIND /* these disks, left by a primary, went on from it */
};

/* One connection; begun anew by one assignment. */
struct remus_backup_session {
    uint64_t id; /* 0: there was none */
    enum remus_backup_phase phase;
    uint64_t first_epoch;  /* of a catch-up, or after a copy */
    uint64_t expect_epoch; /* of the next counted record; 0: none may come */
    uint64_t cost;         /* credit spent */
    uint64_t granted;      /* the most that was ever announced */
    uint64_t granted_reserve;     /* beyond it, for barriers */
    int full;                     /* it heard that no session has room */
    struct remus_lineage lineage; /* the primary's */
    uint64_t serial; /* the primary's count of sessions, with this one */
};

/* What a status is derived from. */
struct remus_backup_facts {
    uint32_t role;
    enum remus_backup_phase phase;
    enum remus_met met;
    int failed, connected, consistent;
};

/* enum remus_state of it. */
int remus_backup_public_state(const struct remus_backup_facts *f);

struct remus_backup;

/* ---- all below: lock held, unless said otherwise --------------------------- */

/* Keep the reason of a final failure (lock not held); returns err. */
int remus_backup_failed(struct remus_backup *b, int err);
/* 0, or the final failure with its text: also a primary that writes nothing
 * is told of it (lock not held). */
int remus_backup_check_well(struct remus_backup *b);
/* The same; also -EROFS once a promote began (lock not held). */
int remus_backup_check_usable(struct remus_backup *b);
/* Newest epoch that survives a power loss. */
uint64_t remus_backup_stable(const struct remus_backup *b);
/* Is there a checkpoint to promote to, and if so, was one committed since
 * the disks were copied? */
int remus_backup_consistent(const struct remus_backup *b);
int remus_backup_committed(const struct remus_backup *b);
/* Are the disks as a primary left them, not a byte of another one's in them?
 * Then they can be had so, as `super.base`. */
int remus_backup_untouched(const struct remus_backup *b);
/* What is said or done about who decides: the only writer of `authority`. */
void remus_backup_claim(struct remus_backup *b, enum remus_claim_event event);
/* How far the connection is, from here on: the only writer of its phase. */
void remus_backup_phase(struct remus_backup *b, enum remus_phase_event event);
/* The checkpoint that a promote takes without a name. */
uint64_t remus_backup_default(const struct remus_backup *b);

/* May that call be made now? */
int remus_backup_may(const struct remus_backup *b,
                     enum remus_request_kind call);
/* 0: the record is for who handles it; 1: it is read and means nothing;
 * <0: refused, with a text. */
int remus_backup_check_takes(const struct remus_backup *b,
                             const struct remus_record *r);

/* The primary was heard: if it streams, what is here is the newest there
 * is. */
void remus_backup_heard(struct remus_backup *b);
/* A barrier was acked: does it end the catch-up? */
void remus_backup_caught_up(struct remus_backup *b, uint64_t epoch);
/* The last moment at which the default checkpoint was the newest state that
 * could be had; what is not known errs to older. */
const struct remus_moment *remus_backup_current(const struct remus_backup *b);
/* Note it in what is to be stored, of the checkpoint that is the default for a
 * later process: the primary's word is not stored. */
void remus_backup_renew(const struct remus_backup *b, struct remus_super *s);
/* Seconds since then; REMUS_LONG_AGO: not known. */
uint64_t remus_backup_age_s(const struct remus_backup *b);

/* The public state, with a primary connected or not (lock held). */
int remus_backup_state(const struct remus_backup *b, int connected);
/* What must hold whenever `lock` is free: 0, or an error that names it. */
int remus_backup_invariants(const struct remus_backup *b);
/* Take `lock` in a call that must not wait as long as the journal's disk can
 * stall.  0; -EAGAIN after a second, with a text. */
int remus_backup_try_lock(struct remus_backup *b);
/* Its status, with what the connection shows in `net`; while it can't be
 * looked at, the one before, which says so (lock not held). */
void remus_backup_look_at(struct remus_backup *b,
                          const struct remus_status *net,
                          struct remus_status *s);
/* Keep one for that, if there is no need to wait (lock not held). */
void remus_backup_show(struct remus_backup *b, const struct remus_status *net);
/* Release `lock`, and let b->events tell what has changed; builds for tests
 * look first. */
void remus_backup_unlock(struct remus_backup *b);

#endif
