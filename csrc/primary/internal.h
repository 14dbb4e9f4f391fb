/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary, inside.  One job a file; each calls only what stands above it
 * here (tests/house):
 *   steps.c       what is decided: pure, without threads, locks or I/O
 *   dirty.c       what the backup may lack
 *   sendq.c       the queue between writers and socket
 *   invariants.c  what holds whenever the lock is free
 *   state.c       the ground: state, lock, sleeping and waking
 *   epochs.c      statistics: what an epoch took and came to
 *   waiters.c     who waits for an ack without a thread
 *   loss.c        the link is lost
 *   flow.c        does what is sent arrive; what a guest waits in an outage
 *   alone.c       generations; may a write pass that no backup takes?
 *   authority.c   who may write: stepping down, being failed away from
 *   session.c     sessions of a toolstack
 *   asked.c       what the open files of a process before had joined
 *   io.c          writes, step by step: range, local disk, queue
 *   request.c     who takes the steps: parked requests, their threads
 *   calls.c       reads and writes that wait, as remus.h has them
 *   checkpoint.c  barrier, ack, commit
 *   ioctl.c       the node's ioctls: one barrier for all volumes
 *   link.c        sender, receiver
 *   wait.c        waits for an ack
 *   events.c      that something has changed, an ack too, for poll loops
 *   plan.c        what to do with a backup, and how a connection begins
 *   resync.c      first copy, catch-up
 *   verify.c      comparing both sides while the guest runs
 *   attend.c      checkpoints without a session; stepping down
 *   watch.c       pings, silence, stalls; waits for no disk
 *   upkeep.c      what is stored or looked at now and then
 *   engine.c      connecting, and all of a connection's life
 *   take_over.c   a promoted backup goes on as a primary
 *   primary.c     the roof: open, close, status
 */
#ifndef REMUS_PRIMARY_INTERNAL_H
#define REMUS_PRIMARY_INTERNAL_H

#include "primary/state.h"

/* ---- epochs.c --------------------------------------------------------- */

/* Its barrier was just reserved by a toolstack's call that began at
 * `start_ns` (lock held). */
void remus_primary_epoch_closed(remus_primary *p, uint64_t epoch,
                                uint64_t start_ns);
/* That call ends (no lock held). */
void remus_primary_epoch_sent(remus_primary *p, uint64_t epoch);
/* p->acked has grown (lock held). */
void remus_primary_epochs_acked(remus_primary *p);
/* No further ack comes in this session (lock held). */
void remus_primary_epochs_lost(remus_primary *p);
/* A commit that began at `start_ns` ends (no lock held). */
void remus_primary_epoch_committed(remus_primary *p, uint64_t epoch,
                                   uint64_t start_ns);
/* Payload of APPLIED.  0, or -EBADMSG with a text. */
int remus_primary_epochs_measured(remus_primary *p,
                                  const unsigned char *payload,
                                  uint32_t length);

/* ---- waiters.c -------------------------------------------------------- */

/* Take every waiter up to `epoch` off the list, but none that has no barrier
 * yet (lock held). */
struct remus_waiter *remus_primary_take_waiters(remus_primary *p,
                                                uint64_t epoch);
/* All of them (lock held). */
struct remus_waiter *remus_primary_take_all_waiters(remus_primary *p);
/* These waiters will hear that their epochs are safe (lock held). */
void remus_primary_note_heard(remus_primary *p, const struct remus_waiter *w);
/* Can no call name any more what earlier sessions prepared?  (lock held) */
int remus_primary_over(const remus_primary *p);
/* The newest checkpoint that the toolstack of a node knows to be safe (lock
 * held); and let the backup know, if it does not (lock not held). */
uint64_t remus_primary_complete(const remus_primary *p);
void remus_primary_tell(remus_primary *p);
/* Put one on the list: REMUS_PARKED, or -ENOMEM (lock held). */
int remus_primary_park_waiter(remus_primary *p,
                              const struct remus_waiter *wanted);
/* Answer waiters that were taken off (no lock held). */
void remus_primary_answer(remus_primary *p, struct remus_waiter *w,
                          int result);
/* End the waits whose time is over (lock held, given up meanwhile); returns
 * ms, or less if a deadline comes sooner. */
int remus_primary_expire_waiters(remus_primary *p, int ms);
/* End those waits; returns them for remus_primary_answer() (lock held). */
struct remus_waiter *remus_primary_let_go(remus_primary *p);

/* ---- loss.c ----------------------------------------------------------- */

/* The link is lost: the guest goes on.  Who waits, for remus_primary_answer()
 * (lock held). */
struct remus_waiter *remus_primary_lose(remus_primary *p, const char *text);
/* The same, and everybody who waits is told. */
void remus_primary_link_lost(remus_primary *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- alone.c ---------------------------------------------------------- */

/* Load or make state_dir/primary.state; the first free epoch number. */
int remus_primary_state_load(remus_primary *p, uint64_t *next_epoch);
/* Reserve numbers below `limit` durably. */
int remus_primary_state_store(remus_primary *p, uint64_t limit);
/* Set a flag (REMUS_PRIMARY_*) durably. */
int remus_primary_state_flag(remus_primary *p, uint32_t flag);
/* Say durably which dirty map counts. */
int remus_primary_state_map(remus_primary *p, uint64_t id);
/* A backup answered our hello: if it never stored this generation, no new
 * one is needed to go on alone (engine thread). */
int remus_primary_state_heard(remus_primary *p,
                              const struct remus_hello_reply *reply);
/* Say durably that a backup may store the generation that we greeted it with,
 * in this session: before it is told to (engine thread). */
int remus_primary_state_session(remus_primary *p, uint64_t session);
/* May a write pass that no backup takes, and what becomes of it now?  (lock
 * held) */
enum remus_leave remus_primary_leave(const remus_primary *p);
enum remus_verdict remus_primary_verdict(const remus_primary *p);
/* A backup takes every write from here on, and knows our generation (lock
 * held). */
void remus_primary_shared(remus_primary *p);
/* A backup answered, as ours, though it can't be caught up (lock held). */
void remus_primary_answers(remus_primary *p);
/* Do some wait for that, and was the backup away for long enough?  (lock
 * held) */
int remus_primary_asks_alone(const remus_primary *p);
/* Does a write that nobody takes need a new generation, and may it have one?
 * (lock held) */
int remus_primary_may_go_alone(const remus_primary *p);
/* Take it, if that is still so; blocks for the state's disk.  A failure is
 * kept in alone_error, and told in the state's reason. */
void remus_primary_take_generation(remus_primary *p);

/* ---- authority.c ------------------------------------------------------ */

/* -EROFS, and why. */
int remus_primary_fenced(remus_primary *p, const struct remus_pvolume *v);
/* A connection begins.  The link's event, which follows before the lock is
 * released, shows the state: in between it would be none that can follow.
 * (lock held) */
void remus_primary_authority_connected(remus_primary *p);
/* An event of who may write (see steps.h); what there is to do (lock held). */
unsigned int remus_primary_authority_event(remus_primary *p,
                                           enum remus_authority_event event,
                                           int idle);
/* May we step down now?  Else why not.  (lock held) */
int remus_primary_may_step_down(const remus_primary *p, char *why, size_t cap);
/* We stepped down, with this last checkpoint; 0: none (lock held). */
void remus_primary_stepped_down(remus_primary *p, uint64_t epoch);
void remus_primary_reply_to_ask(remus_primary *p, int yes, uint64_t epoch,
                                const char *why);
/* The backup asks us to step down (receiver). */
void remus_primary_asked(remus_primary *p, int flags);
/* The backup takes no writes of ours: what that means for us.  The last error
 * says why. */
void remus_primary_set_apart(remus_primary *p, enum remus_plan plan,
                             const struct remus_hello_reply *reply);

/* ---- session.c -------------------------------------------------------- */

/* A toolstack takes checkpoints from here on (lock held). */
void remus_primary_session_opens(remus_primary *p);
/* An open file of a node takes its first checkpoint (lock held). */
void remus_primary_ioctl_attach(remus_primary *p);
/* The engine committed all that was there (lock held). */
void remus_primary_session_committed(remus_primary *p);
/* Who takes checkpoints now: a grace may have ended (lock held). */
enum remus_session remus_primary_session_now(remus_primary *p);

/* ---- io.c ------------------------------------------------------------- */

/* Take a range.  1: taken; 0: an overlapping one is in flight, whose end will
 * wake the volume's thread if `will_park`. */
int remus_primary_range_take(struct remus_pvolume *v, struct remus_range *r,
                             int will_park);
void remus_primary_range_give(remus_primary *p, struct remus_pvolume *v,
                              struct remus_range *r);
/* One that was to park is parked no more. */
void remus_primary_range_stop_waiting(struct remus_pvolume *v);
/* With the range held: the part that only the local disk decides. */
void remus_primary_do_local(remus_primary *p, struct remus_request *q);
/*
 * Queue what is left of a request's range, as far as there is room.  `first`:
 * those who wait go first.  1: all is queued (or nothing has to be); 0: no
 * room for the rest.
 */
int remus_primary_queue_range(remus_primary *p, struct remus_request *q,
                              int first);
/* len: not 0. */
int remus_all_zero(const unsigned char *data, size_t len);
/* It is queued, or marked where it stays marked until it was. */
void remus_primary_range_release(remus_primary *p, struct remus_request *q);

/* ---- request.c --------------------------------------------------------- */

void *remus_primary_resumer_main(void *arg);
/* arg: the volume */
void *remus_primary_volume_main(void *arg);
/*
 * Carry a request out: its result, or REMUS_PARKED, and then its `done` gets
 * it.  `borrow`: the data stays good until then, no copy is needed; without
 * it `done` gets the result also if it is there at once.
 */
int remus_primary_submit(remus_primary *p, struct remus_request *proto,
                         int borrow);

/* ---- calls.c ---------------------------------------------------------- */

/* Read a range and queue it in the first copy; blocks.  0 or -errno. */
int remus_primary_copy_range(remus_primary *p, unsigned int volume,
                             uint64_t offset, size_t len, unsigned char *buf);
/* The same of a range that both sides were believed to agree on: like a
 * write it is marked as what the backup lacks, in the epoch it is queued in. */
int remus_primary_repair_range(remus_primary *p, unsigned int volume,
                               uint64_t offset, size_t len,
                               unsigned char *buf);
/* Queue a range as zeroes if it is a hole.  -EAGAIN: it is not. */
int remus_primary_copy_hole(remus_primary *p, unsigned int volume,
                            uint64_t offset, uint64_t len);
/* A comparison begins: let reads of a volume see what its disk holds, not
 * what the page cache may hold since a sync failed.  Blocks. */
int remus_primary_see_disk(remus_primary *p, unsigned int volume);
/* Queue the hashes of a range, read with the range held, as a question to the
 * backup of this session; blocks.  -EPROTO: it is not connected any more. */
int remus_primary_hash_range(remus_primary *p, unsigned int volume,
                             uint64_t offset, size_t len, unsigned char *buf,
                             unsigned char *hashes, uint64_t session,
                             int64_t *question);

/* ---- checkpoint.c ----------------------------------------------------- */

/* Can a toolstack take a checkpoint now?  (lock held) */
int remus_primary_may_barrier(const remus_primary *p);
/* Is replication up?  0, or -EPROTO with the state and why (lock held). */
int remus_primary_check_protected(remus_primary *p);
/*
 * Close the open epoch (lock held).  Returns the slot to publish with
 * remus_primary_send_now() and a payload of that length
 * (remus_barrier_encode), or NULL with *err.
 */
struct remus_slot *remus_primary_close_epoch(remus_primary *p,
                                             struct remus_record *r, int flags,
                                             uint32_t payload_len, int *empty,
                                             int *err);
/* Was all that the epochs up to it hold prepared?  Then the backup follows:
 * Protected (lock held). */
void remus_primary_check_caught_up(remus_primary *p);
/* Reserve a commit of everything acked up to `epoch`; NULL: nothing to do
 * or no room (*err) (lock held). */
struct remus_slot *remus_primary_reserve_commit(remus_primary *p,
                                                struct remus_record *r,
                                                enum remus_committer who,
                                                uint64_t epoch, int *err);
/* Publish a control record and send at once if nothing is in its way (no
 * lock held). */
void remus_primary_send_now(remus_primary *p, struct remus_slot *slot,
                            struct remus_record *r, const void *payload);
/* A barrier of the engine or of postsuspend; 0/1/-errno. */
int remus_primary_barrier(remus_primary *p, const void *tag, size_t tag_len,
                          int flags, int need_protected, uint64_t *epoch);
/* 1: `epoch` is acked; 0: wait; -EPROTO lost; -EINVAL (lock held). */
int remus_primary_acked_or_lost(remus_primary *p, uint64_t epoch);

/* ---- flow.c ----------------------------------------------------------- */

/* Look whether what is sent arrives; declares the loss.  Every `tick_ns`. */
void remus_primary_check_flow(remus_primary *p, uint64_t now,
                              uint64_t tick_ns);
/* An ack came: the outage is over (lock held). */
void remus_primary_flow_moves(remus_primary *p);
/* Is it too early for another connection?  (lock held) */
int remus_primary_flow_waits(const remus_primary *p);
/* ... and why, as the last error (lock held). */
void remus_primary_flow_text(const remus_primary *p, uint64_t now);
/* Wait until it is proven that what is sent arrives.  0, or -EPROTO: lost. */
int remus_primary_flow_prove(remus_primary *p);
/* How much of `piece` bytes may be sent before that. */
size_t remus_primary_flow_piece(remus_primary *p, size_t piece);

/* ---- link.c ----------------------------------------------------------- */

void *remus_primary_sender_main(void *arg);
void *remus_primary_receiver_main(void *arg);
/*
 * Wait until `ready(p, arg)` is not 0 (called with lock held) and return it;
 * the caller is the receiver meanwhile.  -ETIMEDOUT.
 */
int remus_primary_wait_for(remus_primary *p,
                           int (*ready)(remus_primary *p, uint64_t arg),
                           uint64_t arg, int64_t timeout_ms);

/* ---- asked.c ---------------------------------------------------------- */

/* Before the threads start. */
void remus_primary_asking_begins(remus_primary *p);
/* Until the open files of the process before are counted, or the stop.  (no
 * lock held) */
void remus_primary_await_files(remus_primary *p);
/* What the hello asks for (lock held). */
void remus_primary_question(const remus_primary *p,
                            struct remus_ioctl_id *out);
/* If this file waits for the answer, and there is one: what that says of it
 * (lock held). */
void remus_primary_settle(const remus_primary *p, struct remus_ioctl_file *f);
/* The answer of a backup with which this connection begins; who is told by
 * it that his 20 has failed (lock held). */
struct remus_waiter *
remus_primary_ask_answered(remus_primary *p,
                           const struct remus_hello_reply *reply,
                           enum remus_plan plan);
/* No backup answers: since loss is established, or for good (no lock
 * held). */
void remus_primary_asked_in_vain(remus_primary *p, int for_good);

/* ---- ioctl.c  --------------------------------------------------- */

/* Does an ioctl 30 wait for the barrier that its 20 could not take, and can
 * that be taken now?  (lock held) */
int remus_primary_ioctl_due(const remus_primary *p);
/* Take it, for all of them (no lock held). */
void remus_primary_ioctl_take(remus_primary *p);

/* ---- plan.c ----------------------------------------------------------- */

/* Look at what the last plan found missing, if it did not fit and that was
 * not done lately: does it fit?  By the engine, with no connection. */
int remus_primary_measure(remus_primary *p, uint64_t capacity);
/* How much of [at, end), from `at` on, is a hole, in whole blocks or up to its
 * end; if nothing, the data ends at *next at the latest. */
uint64_t remus_primary_hole(const remus_primary *p, unsigned int volume,
                            uint64_t at, uint64_t end, uint64_t *next);
/* What to do with this backup; WAIT leaves the reason as the last error.
 * `compared`: the map was just made by a comparison. */
enum remus_plan remus_primary_plan(remus_primary *p,
                                   const struct remus_hello_reply *reply,
                                   int compared);
/* Is the backup talking to the generation that we are?  (lock held) */
int remus_primary_greeted_right(const remus_primary *p);
/* Nothing of the last connection counts any more (lock held). */
void remus_primary_begin_connection(remus_primary *p, int fd, uint64_t id,
                                    const struct remus_hello_reply *reply);
/* Begin what the plan says (send_lock not needed, lock held).  The record to
 * publish with its slot. */
struct remus_slot *
remus_primary_begin_plan(remus_primary *p,
                         const struct remus_hello_reply *reply,
                         enum remus_plan plan, struct remus_record *r);
/* A commit that was given may have been lost with the link: its slot, or NULL
 * (lock held). */
struct remus_slot *remus_primary_commit_again(remus_primary *p,
                                              struct remus_record *r);

/* ---- resync.c --------------------------------------------------------- */

/* Carry it out, on the connection that was prepared for it; blocks. */
int remus_primary_resync(remus_primary *p, enum remus_plan plan,
                         const struct remus_hello_reply *reply);

/* ---- attend.c --------------------------------------------------------- */

/* Take checkpoints while no session is open, and answer a backup that asks us
 * to step down, until the link is lost. */
void remus_primary_attend(remus_primary *p);

/* ---- watch.c, upkeep.c, engine.c ------------------------------------------------ */

void *remus_primary_watch_main(void *arg);
/* Has a write waited for room, and nothing lacks but commits?  Then the reason
 * (REMUS_REASON_MAX bytes) (lock held). */
int remus_primary_waits_for_commits(remus_primary *p, char *text);
void *remus_primary_upkeep_main(void *arg);
void *remus_primary_engine_main(void *arg);
/* Its thread runs, or has ended: the volumes' threads end after it. */
void remus_primary_engine_runs(remus_primary *p, int runs);

/* ---- take_over.c ------------------------------------------------------ */

/* Is this the state of a promoted backup?  Then go on from there; blocks for
 * its disk.  0; -EROFS it is one of a backup; -errno. */
int remus_primary_take_over(remus_primary *p);

#endif
