/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary, inside.  One job a file:
 *   primary.c         open, close, status
 *   primary_checkpoint.c barrier, ack, commit
 *   primary_io.c      writes: ranges, local disk, queue, parked requests
 *   primary_calls.c   reads and writes that wait, as remus.h has them
 *   primary_link.c    sender, receiver, loss
 *   primary_wait.c    waits for an ack that hold no thread
 *   primary_engine.c  connecting, what to do with a backup, watching
 *   primary_resync.c  first copy, catch-up
 *   primary_session.c sessions of a toolstack, checkpoints without one
 *   primary_ioctl.c   the node's ioctls: one barrier for all volumes
 *   primary_epochs.c  statistics: what an epoch took and came to
 *   primary_state.c   generation and epoch numbers that survive the process
 *   take_over.c       a promoted backup goes on as a primary
 *   primary_verify.c  comparing both sides while the guest runs
 *   primary_fence.c   who may write: giving way, writers, being failed away
 *   dirty.c           what the backup may lack
 *   sendq.c           the queue between writers and socket
 *
 * Locks, in the order in which they may be taken:
 *   state_lock    one change of primary.state at a time; held during it
 *   rx_lock       who holds it is the receiver; held while polling
 *   queue.send_lock  who holds it sends; held during non-blocking sends
 *   volume.lock   the ranges in flight of one volume
 *   lock          everything marked "lock"; a few instructions only
 *   queue.wake_lock  the sender's sleep (takes send_lock under it, so never
 *                 take it with send_lock held)
 * Neither the disk nor the network is waited for with volume.lock or lock
 * held.  Callbacks (`done`) are called with no lock held.
 */
#ifndef REMUS_PRIMARY_INT_H
#define REMUS_PRIMARY_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "dirty.h"
#include "hash.h"
#include "primary.h"
#include "primary_state.h"
#include "record.h"
#include "sendq.h"
#include "transport.h"

#define REMUS_UNACKED_MAX 64u  /* barriers without an ack */
#define REMUS_LINGER_MS 100    /* the rx thread stays away so long after a
                                  caller was the receiver */
#define REMUS_PING_MS 500u     /* both sides */
#define REMUS_OUTAGES 8        /* of them it is known which epochs they took */

/* A range of a volume with a write (or a copy's read) in flight. */
struct remus_range {
    uint64_t start, end;       /* bytes */
    struct remus_range *next;  /* volume.lock */
};

struct remus_pvolume {
    char *name;                /* constant */
    char *path;                /* constant */
    uint64_t size;             /* constant, bytes */
    int file;                  /* constant */
    pthread_mutex_t lock;
    struct remus_range *busy;  /* volume.lock */
    int waiting;               /* volume.lock: requests parked for a range */
    uint64_t joined;           /* lock: newest barrier joined by ioctl 20 */
};

enum remus_request_kind {
    REMUS_REQ_WRITE,  /* local write, then queue */
    REMUS_REQ_ZERO,
    REMUS_REQ_COPY,   /* read locally, then queue: copy and catch-up */
    REMUS_REQ_HOLE,   /* queue as zeroes if it is a hole, else -EAGAIN */
    REMUS_REQ_HASH    /* read locally, queue the hashes of its blocks */
};

enum remus_request_step {
    REMUS_REQ_RANGE,  /* waits for its range */
    REMUS_REQ_ROOM    /* done locally, holds its range, waits for room */
};

struct remus_request {
    enum remus_request_kind kind;
    enum remus_request_step step; /* lock while parked */
    unsigned int volume;
    struct remus_range range;
    const unsigned char *data;    /* WRITE, COPY: bytes of the range */
    unsigned char *into;          /* COPY, HASH: where it is read to */
    unsigned char *hashes;        /* HASH: of its blocks */
    uint64_t session;             /* HASH: the one that it is for */
    int64_t *asked;               /* HASH: where its number goes */
    unsigned char *owned;         /* freed with the request, or NULL */
    uint64_t queued;              /* bytes of the range in the queue */
    uint32_t set;                 /* pinned in the dirty map, see do_local */
    int copy;                     /* began as a COPY */
    int repair;                   /* ... of what the map did not know of */
    int result;                   /* of the local write */
    uint64_t since_ns;            /* parked since */
    remus_done_fn done;
    void *opaque;
    struct remus_request *next;   /* lock: parked list, or free list */
};

/* What is done with a backup that answered our hello. */
enum remus_plan {
    REMUS_PLAN_COPY,      /* all, straight to its disks */
    REMUS_PLAN_CATCH_UP,  /* what changed, through its journal */
    REMUS_PLAN_REWRITE,   /* what changed, straight to its disks */
    REMUS_PLAN_COMPARE,   /* first find out what differs; then one of these */
    REMUS_PLAN_MEND,      /* all, straight to its disks, but what is equal */
    REMUS_PLAN_WAIT       /* nothing can be done; the reason says why */
};

/* A wait for an ack that holds no thread (primary_wait.c). */
struct remus_waiter {
    uint64_t epoch;
    uint64_t deadline_ns;         /* UINT64_MAX: none */
    const void *owner;            /* by either of these two it can be */
    uint64_t id;                  /* ... cancelled; 0: no id */
    remus_done_fn done;
    void *opaque;
    struct remus_waiter *next;    /* lock */
};

/* An epoch on its way into the statistics.  Guard: lock. */
struct remus_timed {
    uint64_t epoch;
    uint64_t bytes;
    uint64_t start_ns;  /* postsuspend began */
    uint64_t sent_ns;   /* ... and ended; 0: not yet */
    uint64_t acked_ns;  /* the ack came, or the loss; 0: not yet */
    int result;
};

/* More than can be without an ack: some may be acked before the call that
 * sent them has returned. */
#define REMUS_TIMED_MAX (2u * REMUS_UNACKED_MAX)

struct remus_primary {
    remus_io *io;                 /* constant */
    remus_epochs *epochs;         /* constant; written with lock held */
    char *resource;               /* constant */
    char *state_dir;              /* constant */
    struct remus_address address; /* constant */
    int ack, commit_by;           /* constant */
    uint32_t max_pause_ms, loss_ms, stall_ms, connect_ms; /* constant */
    unsigned int volume_count;    /* constant */
    struct remus_pvolume *volumes; /* constant array */
    int lock_file;                /* constant */
    int allow_inconsistent;       /* constant */
    uint64_t resync_rate;         /* constant: bytes a second; 0: no limit */
    uint32_t idle_ms, grace_ms;   /* constant */
    int ask_alone;                /* constant */
    int hold;                     /* constant: REMUS_ON_LOSS_HOLD */
    struct remus_tls_keys *keys;  /* constant; NULL: no TLS */
    struct remus_sendq queue;
    struct remus_dirty dirty;     /* see dirty.h; its owner is `lock` */
    int wake;                     /* constant: eventfd, set to stop */
    int kick;                     /* constant: eventfd, moves the rx thread */

    pthread_t sender, receiver, resumer, engine, watch;
    int threads;                  /* open/close only: how many run */

    pthread_mutex_t state_lock;
    unsigned char greeted[REMUS_ID_BYTES]; /* engine thread: generation in
                                     its newest hello */

    pthread_mutex_t lock;
    pthread_cond_t changed;       /* acked, state, resync step, link */
    pthread_cond_t park_changed;  /* the resumer has something to do */
    pthread_cond_t rx_resume;     /* the rx thread may look again */
    pthread_cond_t engine_wake;   /* link, session, room: the engine's sleep */

    /* All: lock. */
    struct remus_primary_state kept; /* as on disk; also state_lock to
                                     change */
    int alone;                    /* writes may pass while nobody takes them:
                                     no backup knows this generation */
    int resumed;                  /* no wait goes on in this outage */
    int alone_granted;            /* ... or may soon: the fence succeeded */
    int alone_refused;            /* ... never, in this outage */
    int alone_failed;             /* -errno: the new one could not be stored,
                                     at alone_failed_ns; tried again */
    uint64_t alone_failed_ns;
    char alone_why[REMUS_REASON_MAX]; /* ... in words */
    int taking;                   /* a new generation is being stored */
    int fenced;                   /* no write passes any more */
    unsigned int writers;         /* open files that may write */
    struct remus_verify verify;   /* the one under way, or the last one */
    int verify_cancel;
    int asked;                    /* the backup asks us to give way: 1, and
                                     REMUS_ASK_* shifted left by one */
    int gave_way;                 /* by our own word, not by a promote */
    uint64_t gave_epoch;          /* ... with this last checkpoint; 0: none */
    int turns;                    /* ... in order to be the backup next */
    int stopping;
    int state;                    /* enum remus_state */
    char reason[REMUS_REASON_MAX];
    char lost_reason[REMUS_REASON_MAX]; /* why the link was lost last */
    int fd;                       /* conn.fd while the link is up, else -1;
                                     closed by the engine only, with rx_lock
                                     and send_lock held */
    int streaming;                /* writes go into the queue */
    int journaled;                /* ... as counted records (else DIRECT) */
    uint64_t session;
    uint64_t next_number;
    uint32_t max_payload;
    uint64_t spent, credit, reserve; /* journal cost in this session */
    uint64_t open_epoch;          /* epoch of the next write */
    uint64_t epoch_records;       /* counted records in it */
    uint64_t epoch_bytes;         /* written and zeroed in it */
    uint64_t closed_bytes;        /* ... in the epoch before */
    struct remus_timed timed[REMUS_TIMED_MAX]; /* ring */
    uint64_t timed_start, timed_end; /* positions in it, ever rising */
    /* Of this process, whatever happened to the link: */
    uint64_t first_epoch;         /* first one with a barrier; 0: none */
    uint64_t barrier_epoch;       /* newest one with a barrier */
    uint64_t acked;               /* newest that the backup surely has */
    uint64_t commit_given;        /* newest that was committed here */
    struct {
        uint64_t from, to;        /* epochs that will never be acked */
    } outage[REMUS_OUTAGES];
    unsigned int outages;         /* so far; the newest ones are kept */
    uint64_t outage_floor;        /* of epochs up to here it is not known any
                                     more: they count as lost */
    /* Of this connection: */
    uint64_t session_first;       /* its first epoch */
    uint64_t stable, applied, committed;
    uint64_t capacity;            /* credit that one epoch can have */
    uint64_t catch_epoch;         /* ends the copy or catch-up; 0: none */
    int caught_up;                /* all of that is queued */
    int direct;                   /* it went straight to the disks */
    int64_t hash_asked;           /* the newest question about block hashes */
    int64_t hash_answered;        /* the newest one that has its answer */
    unsigned char hash_bits[REMUS_HASH_BLOCKS / 8]; /* which differ */
    uint64_t progress_ns;         /* last ack, or the first barrier after */
    uint64_t progress_spent;      /* `spent` at the last ack */
    /* Sessions of a toolstack. */
    int session_open;
    unsigned int node_users;      /* open files that sent ioctl 20 */
    uint64_t session_ended_ns;    /* without teardown; 0: no grace */
    uint64_t idle_ns;             /* last checkpoint of the engine, or when
                                     it began to be its turn */
    uint64_t wont_fit;            /* capacity that a catch-up passed; 0 */
    uint64_t wont_fit_ns;         /* when */
    int resync_step;              /* newest answer of the backup */
    uint64_t last_rx_ns;
    uint64_t queue_limit;         /* bytes: measured rate x max_pause */
    struct remus_request *parked, **parked_tail;
    unsigned int parked_room;     /* of them waiting for room */
    struct remus_request *free_requests;
    struct remus_waiter *waiters, *free_waiters;
    int park_kick;                /* the resumer shall look */
    int rx_caller;                /* a caller is or becomes the receiver */
    int rx_polling;               /* the rx thread is or becomes it */
    int rx_wanted;                /* somebody waits who is no receiver */
    uint64_t rx_left_ns;          /* when the last caller stopped being it */
    uint64_t node_barrier;        /* newest barrier of the ioctl session; 0 */
    int node_empty;               /* was its epoch empty */
    uint64_t node_heard;          /* newest one of the ioctl session that an
                                     ioctl 30 was told to be safe; 0 */
    struct remus_status stats;    /* the counters in it */

    /* The engine's until it sets fd; then its sending side is send_lock's,
     * its receiving side rx_lock's. */
    struct remus_conn conn;

    _Atomic uint64_t wait_ids;    /* given out so far */
    _Atomic int no_writes;        /* `fenced`, as writes look at it first */
    _Atomic int room_wanted;      /* parked_room != 0, read by the sender */

    pthread_mutex_t rx_lock;
    struct remus_input input;     /* rx_lock */
};

/* primary.c */
/* Set the state and its reason, wake those who wait (lock held). */
void remus_primary_set_state(remus_primary *p, int state, const char *reason);

/* primary_checkpoint.c */
/* Is replication up?  0, or -EPROTO with the state and why (lock held). */
int remus_primary_check_protected(remus_primary *p);
/*
 * Close the open epoch (lock held).  Returns the slot to publish with
 * remus_primary_send_now(), or NULL with *err.
 */
struct remus_slot *remus_primary_close_epoch(remus_primary *p,
                                             struct remus_record *r,
                                             int flags, size_t tag_len,
                                             int *empty, int *err);
/* Was this epoch lost with a link, for good?  (lock held) */
int remus_primary_epoch_lost(const remus_primary *p, uint64_t epoch);
/* Was all that the epochs up to it hold prepared?  Then the backup follows:
 * Protected (lock held). */
void remus_primary_check_caught_up(remus_primary *p);
/* Reserve a commit of everything acked up to `epoch`; NULL: nothing to do
 * or no room (*err) (lock held). */
struct remus_slot *remus_primary_reserve_commit(remus_primary *p,
                                                struct remus_record *r,
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

/* primary_io.c */
void *remus_primary_resumer_main(void *arg);
/*
 * Carry a request out: its result, or REMUS_PARKED, and then its `done` gets
 * it.  `borrow`: the data stays good until then, no copy is needed.
 */
int remus_primary_submit(remus_primary *p, struct remus_request *proto,
                         int borrow);
/* -EROFS, and why. */
int remus_primary_fenced(remus_primary *p, const struct remus_pvolume *v);
/* Let the resumer look at the parked requests (lock held). */
void remus_primary_kick_parked(remus_primary *p);
/* Age in ns of the oldest write that waits for room; 0: none (lock). */
uint64_t remus_primary_oldest_wait(remus_primary *p, uint64_t now);

/* primary_calls.c */
/* Is the range inside the volume?  Else `err`, with a text. */
int remus_primary_check_io(remus_primary *p, unsigned int volume,
                           uint64_t offset, uint64_t len, int err);
/* Read a range and queue it in the first copy; blocks.  0 or -errno. */
int remus_primary_copy_range(remus_primary *p, unsigned int volume,
                             uint64_t offset, size_t len,
                             unsigned char *buf);
/* The same of a range that both sides were believed to agree on: like a
 * write it is marked as what the backup lacks, in the epoch it is queued in. */
int remus_primary_repair_range(remus_primary *p, unsigned int volume,
                               uint64_t offset, size_t len,
                               unsigned char *buf);
/* Queue a range as zeroes if it is a hole.  -EAGAIN: it is not. */
int remus_primary_copy_hole(remus_primary *p, unsigned int volume,
                            uint64_t offset, uint64_t len);
/* Queue the hashes of a range, read with the range held, as a question to the
 * backup of this session; blocks.  -EPROTO: it is not connected any more. */
int remus_primary_hash_range(remus_primary *p, unsigned int volume,
                             uint64_t offset, size_t len, unsigned char *buf,
                             unsigned char *hashes, uint64_t session,
                             int64_t *question);

/* primary_engine.c */
void *remus_primary_engine_main(void *arg);
void *remus_primary_watch_main(void *arg);
/* Begin what the plan says (send_lock not needed, lock held).  The record to
 * publish with its slot. */
struct remus_slot *remus_primary_begin_plan(
    remus_primary *p, const struct remus_hello_reply *reply,
    enum remus_plan plan, struct remus_record *r);
/* Sleep on engine_wake for at most `ms` (lock held). */
void remus_primary_engine_wait(remus_primary *p, uint32_t ms);

/* primary_resync.c */
/* What to do with this backup; WAIT leaves the reason as the last error.
 * `compared`: the map was just made by a comparison. */
enum remus_plan remus_primary_plan(remus_primary *p,
                                   const struct remus_hello_reply *reply,
                                   int compared);
/* Carry it out, on the connection that was prepared for it; blocks. */
int remus_primary_resync(remus_primary *p, enum remus_plan plan,
                         const struct remus_hello_reply *reply);

/* primary_session.c */
/* A toolstack takes checkpoints from here on (lock held). */
void remus_primary_session_opens(remus_primary *p);
/* Take checkpoints while no session is open, until the link is lost. */
void remus_primary_attend(remus_primary *p);
/* A checkpoint of the engine: barrier, ack, commit; blocks.  *epoch. */
int remus_primary_own_checkpoint(remus_primary *p, uint64_t *epoch);

/* primary_link.c */
/* Wait at most `ms` (lock held). */
void remus_primary_timed_wait(remus_primary *p, pthread_cond_t *cond, int ms);
void *remus_primary_sender_main(void *arg);
void *remus_primary_receiver_main(void *arg);
/* The backup is lost: guest goes on, everybody who waits is told. */
void remus_primary_link_lost(remus_primary *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/*
 * Wait until `ready(p, arg)` is not 0 (called with lock held) and return it;
 * the caller is the receiver meanwhile.  -ETIMEDOUT.
 */
int remus_primary_wait_for(remus_primary *p,
                           int (*ready)(remus_primary *p, uint64_t arg),
                           uint64_t arg, int64_t timeout_ms);

/* primary_wait.c */
/* Take every waiter up to `epoch` off the list (lock held). */
struct remus_waiter *remus_primary_take_waiters(remus_primary *p,
                                                uint64_t epoch);
/* These waiters will hear that their epochs are safe (lock held). */
void remus_primary_note_heard(remus_primary *p, const struct remus_waiter *w);
/* Answer waiters that were taken off (no lock held). */
void remus_primary_answer(remus_primary *p, struct remus_waiter *w,
                          int result);
/* End the waits whose time is over (lock held, given up meanwhile); returns
 * ms, or less if a deadline comes sooner. */
int remus_primary_expire_waiters(remus_primary *p, int ms);

/* Do waits for acks go on, though there is no connection?  (lock held) */
int remus_primary_holds(const remus_primary *p);
/* End those waits; returns them for remus_primary_answer() (lock held). */
struct remus_waiter *remus_primary_let_go(remus_primary *p);

/* primary_epochs.c */
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

/* primary_state.c */
/* Load or make state_dir/primary.state; the first free epoch number. */
int remus_primary_state_load(remus_primary *p, uint64_t *next_epoch);
/* Reserve numbers below `limit` durably. */
int remus_primary_state_store(remus_primary *p, uint64_t limit);
/* Set a flag (REMUS_PRIMARY_*) durably. */
int remus_primary_state_flag(remus_primary *p, uint32_t flag);
/* May writes pass that nobody takes?  (lock held) */
int remus_primary_has_leave(const remus_primary *p);
/* Do some wait for that, and was the backup away for long enough?  (lock
 * held) */
int remus_primary_asks_alone(const remus_primary *p);
/* Does a write that nobody takes need a new generation, and may it have one?
 * (lock held) */
int remus_primary_may_go_alone(const remus_primary *p);
/* Take it, if that is still so; blocks for the state's disk.  A failure is
 * kept in alone_failed, and told in the state's reason. */
void remus_primary_take_generation(remus_primary *p);
/* Must a write that waits for it fail, since it could not be stored a moment
 * ago?  (lock held) */
int remus_primary_alone_fails(const remus_primary *p);

/* take_over.c */
/* Is this the state of a promoted backup?  Then go on from there; blocks for
 * its disk.  0; -EROFS it is one of a backup; -errno. */
int remus_primary_take_over(remus_primary *p);

/* Did a session end without teardown, not long ago?  (lock held) */
int remus_primary_in_grace(const remus_primary *p);

/* primary_fence.c */
/* The backup asks us to give way (receiver). */
void remus_primary_asked(remus_primary *p, int flags);
/* The backup asks us to give way: answer it (engine thread).  flags:
 * REMUS_ASK_*. */
void remus_primary_answer_ask(remus_primary *p, int flags);
/* The backup was promoted, or both went on: what that means for us. */
void remus_primary_failed_away(remus_primary *p,
                               const struct remus_hello_reply *reply);

#endif
