/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The ground of a primary: its state, and what all its files stand on.
 * primary/internal.h lists the floors above, from the lowest up.
 *
 * States, each moved by its step in steps.c only, by one file only:
 *
 *   field      written by     values
 *   link       state.c        enum remus_link: what the connection is good
 *                             for; and if there was a backup to lose
 *   alone      alone.c        enum remus_alone_word (what was said in this
 *                             outage) and enum remus_generation (whose we
 *                             are): together enum remus_leave, what becomes
 *                             of a write that no backup takes
 *   authority  authority.c    enum remus_authority: is this side the writer?
 *   session    session.c      enum remus_session: who takes checkpoints, and
 *                             who may commit what an earlier session left
 *   life       state.c        enum remus_life: open, saying good-bye, ending
 *   c          plan.c (as a   struct remus_connection: all that belongs to
 *              whole)         one connection
 *
 * What is asked of them, and what it was as a flag of its own before:
 *
 *   connected                 remus_link_up(): link is not DOWN
 *   streaming                 remus_streaming(): link is COPYING or above,
 *                             life is OPEN
 *   journaled                 remus_counting(): link is CATCHING_UP or above
 *   caught_up                 remus_caught_up(): link is CAUGHT_UP or above
 *   direct                    remus_plan_direct(c.plan)
 *   state                     remus_primary_state(), derived from authority
 *                             and link
 *   fenced, stepped_down,         authority: YIELDING, YIELDED, FAILED_AWAY;
 *   asked                     ASKED, and c.question with its flags
 *   no_writes                 a copy of remus_authority_fenced(authority)
 *                             that writes look at without the lock
 *   alone, taking             alone.generation: OWN, STORING
 *   alone_granted, _refused   alone.word
 *   alone_failed              alone.generation is FAILED; the error itself is
 *                             alone_error
 *   session_open, grace       session: TOOLSTACK; GRACE since ended_ns
 *   stopping                  life is STOPPED
 *   resumed                   c.let_go: no wait goes on in the outage after
 *                             this connection
 *   session_first,            c.first: they were one
 *   catch_epoch
 *
 * Locks, in the order in which they may be taken:
 *   state_lock    one change of primary.state at a time; held during it
 *   rx_lock       who holds it is the receiver; held while polling
 *   queue.wake_lock  the sender's sleep
 *   queue.send_lock  who holds it sends; held during non-blocking sends
 *   volume.lock   the ranges in flight of one volume
 *   lock          everything marked "lock"; a few instructions only
 * Neither the disk nor the network is waited for with volume.lock or lock
 * held.  Callbacks (`done`) are called with no lock held.
 */
#ifndef REMUS_PRIMARY_GROUND_H
#define REMUS_PRIMARY_GROUND_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/entry.h"
#include "primary/dirty.h"
#include "base/clock.h"
#include "base/events.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/spin.h"
#include "primary/primary.h"
#include "format/primary_state.h"
#include "format/record.h"
#include "primary/sendq.h"
#include "primary/steps.h"
#include "link/address.h"
#include "link/input.h"
#include "link/resolve.h"

#define REMUS_UNACKED_MAX 64u /* barriers without an ack */
/* The rx thread stays away so long after a caller was the receiver. */
#define REMUS_LINGER_MS 100
#define REMUS_PING_MS 500u          /* both sides */
#define REMUS_EPOCHS_AHEAD 1000000u /* numbers are reserved so far ahead */
#define REMUS_OUTAGES 8 /* of them it is known which epochs they took */

/* A range of a volume with a write (or a copy's read) in flight. */
struct remus_range {
    uint64_t start, end;      /* bytes */
    struct remus_range *next; /* volume.lock */
};

struct remus_pvolume {
    char *name;    /* constant */
    char *path;    /* constant */
    uint64_t size; /* constant, bytes */
    int file;      /* constant */
    pthread_mutex_t lock;
    remus_primary *primary;   /* constant */
    struct remus_range *busy; /* volume.lock */
    int waiting;              /* volume.lock: requests parked for a range */
    pthread_t thread;         /* carries them out */
    int runs;                 /* open/close only: it does */
    struct remus_request *queue, **queue_tail; /* lock: they */
    int queue_wake;                            /* lock: it shall look */
    pthread_cond_t queue_changed;              /* the same */
};

enum remus_disk_request {
    REMUS_REQ_WRITE, /* local write, then queue */
    REMUS_REQ_ZERO,
    REMUS_REQ_COPY, /* read locally, then queue: copy and catch-up */
    REMUS_REQ_HOLE, /* queue as zeroes if it is a hole, else -EAGAIN */
    REMUS_REQ_HASH  /* read locally, queue the hashes of its blocks */
};

enum remus_request_step {
    REMUS_REQ_RANGE, /* waits for its range, nothing is done */
    REMUS_REQ_ROOM   /* done locally, holds its range, waits for room */
};

struct remus_request {
    enum remus_disk_request kind;
    enum remus_request_step step; /* lock while parked */
    unsigned int volume;
    struct remus_range range;
    const unsigned char *data;  /* WRITE, COPY: bytes of the range */
    const struct iovec *vector; /* WRITE: ... or, if not NULL, in pieces */
    unsigned int pieces;        /* ... so many */
    unsigned char *into;        /* COPY, HASH: where it is read to */
    unsigned char *hashes;      /* HASH: of its blocks */
    uint64_t session;           /* HASH: the one that it is for */
    int64_t *asked;             /* HASH: where its number goes */
    unsigned char *owned;       /* freed with the request, or NULL */
    uint64_t queued;            /* bytes of the range in the queue */
    uint32_t set;               /* pinned in the dirty map, see do_local */
    int copy;                   /* began as a COPY */
    int repair;                 /* ... of what the map did not know of */
    int result;                 /* of the local write */
    uint64_t since_ns;          /* parked since */
    int abandoned;              /* lock: nobody waits, and nothing is done */
    struct remus_asker who;     /* lock while parked */
    struct remus_request *next; /* lock: a list of parked ones, or free */
};

/* A wait for an ack that holds no thread (waiters.c). */
struct remus_waiter {
    uint64_t epoch;
    uint64_t deadline_ns; /* UINT64_MAX: none */
    const void *owner;    /* by either of these two it can be */
    uint64_t id;          /* ... cancelled; 0: no id */
    remus_done_fn done;
    void *opaque;
    struct remus_ioctl_file *file; /* of an ioctl 30, else NULL */
    int (*lives)(void *opaque);    /* ... does who sent its 20 live? */
    int later;                 /* ... that failed: `epoch` is not known yet */
    struct remus_waiter *next; /* lock */
};

/* The newest barrier of an ioctl 20: whose it is, and by which number its
 * session knows it.  Guard: lock. */
struct remus_ioctl_barrier {
    uint64_t epoch; /* 0: there was none */
    struct remus_ioctl_id by;
    int empty;  /* was its epoch empty */
    int waited; /* an ioctl 30 has asked for it */
};

/* An epoch on its way into the statistics.  Guard: lock. */
struct remus_timed {
    uint64_t epoch;
    uint64_t bytes;
    uint64_t start_ns; /* postsuspend began */
    uint64_t sent_ns;  /* ... and ended; 0: not yet */
    uint64_t acked_ns; /* the ack came, or the loss; 0: not yet */
    int result;
};

/* More than can be without an ack: some may be acked before the call that
 * sent them has returned. */
#define REMUS_TIMED_MAX (2u * REMUS_UNACKED_MAX)

/* Of what the open files of a process before had joined: see asked.c. */
enum remus_asking {
    REMUS_ASKING_OVER,
    REMUS_ASKING_FILES,
    REMUS_ASKING_BACKUP,
};

/* Going on, saying good-bye (nothing more is queued), or ending. */
enum remus_life { REMUS_LIFE_OPEN, REMUS_LIFE_LEAVING, REMUS_LIFE_STOPPED };

/*
 * All that belongs to one connection: reset by one assignment when the next
 * one begins, and looked at until then.  Guard: lock.
 */
struct remus_connection {
    uint64_t id;          /* of its records; random */
    enum remus_plan plan; /* what it brings the backup up to date by */
    uint64_t first;       /* its first epoch, which completes that */
    uint64_t next_number; /* of the next counted record */
    uint32_t max_payload; /* of a counted record */
    uint64_t spent;       /* journal cost of all counted records */
    uint64_t credit;      /* ... that the backup allows */
    uint64_t reserve;     /* ... beyond it, for barriers */
    uint64_t capacity;    /* credit that one epoch can have */
    uint64_t records;     /* counted ones in the open epoch */
    uint64_t bytes;       /* written and zeroed in it */
    uint64_t stable, applied, committed; /* epochs */
    uint64_t accepted; /* newest that the backup took as committed */
    int pinned;        /* ... and cannot take newer ones for a pin there */
    uint64_t told;     /* newest of which it knows that an ioctl 30 was told */
    int64_t hash_answered; /* the newest question that has its answer */
    unsigned char hash_bits[REMUS_HASH_BLOCKS / 8]; /* which differ */
    uint64_t progress_ns;    /* last ack, or the first barrier after */
    uint64_t progress_spent; /* `spent` at the last ack */
    uint64_t asked_ns;       /* the newest barrier */
    struct remus_spin acks;  /* what they took after it */
    uint64_t rx_ns;          /* something came in */
    int resync_step;         /* newest answer of the backup */
    unsigned int question;   /* the backup asks us to step down: 1, and
                               REMUS_ASK_* shifted left by one */
    int let_go;              /* no wait goes on in the outage after it */
    /* flow.c: */
    uint64_t arrived;       /* bytes that the other host has acked (a Unix
                               socket: that it took) */
    uint64_t moved_ns;      /* when that grew */
    uint64_t on_its_way_ns; /* ... or when nothing was on its way */
    uint64_t held_ns;       /* so long writes waited, and nothing moved */
    int proven;             /* enough has arrived */
};

/* What a catch-up that seems not to fit costs in the journal. */
struct remus_measure {
    int due;        /* it should be measured */
    uint64_t asked; /* bytes that were missing then */
    uint64_t bytes; /* ... when it was measured, last at ns; 0: never */
    uint64_t ns;
    uint64_t cost; /* 0: not known, or too much */
};

/* What an outage has cost so far; over with the first ack.  Guard: lock. */
struct remus_flow {
    unsigned int failures; /* connections on which nothing moved, in a row */
    uint64_t until_ns;     /* no other one before */
    uint64_t waited_ns;    /* writes waited for room, and nothing moved */
};

/* The one wait for an ack of remus_primary_preresume_begin() (events.c). */
struct remus_ack_wait {
    int fd;             /* constant: eventfd */
    _Atomic int at;     /* how far it is; who made it BUSY owns the rest */
    int result;         /* of `done`, before it is ANSWERED */
    uint64_t epoch;     /* which is waited for */
    int64_t timeout_ms; /* ... so long, for the words */
};

struct remus_primary {
    struct remus_entry entry;       /* constant; the first: see entry.h */
    remus_io *io;                   /* constant */
    remus_epochs *epochs;           /* constant; written with lock held */
    char *resource;                 /* constant */
    char *state_dir;                /* constant */
    struct remus_address address;   /* constant */
    struct remus_resolver resolver; /* engine thread */
    int ack, commit_by;             /* constant */
    uint32_t max_pause_ms, loss_ms, stall_ms, connect_ms; /* constant */
    unsigned int volume_count;                            /* constant */
    struct remus_pvolume *volumes;                        /* constant array */
    int lock_file;                                        /* constant */
    int allow_inconsistent;                               /* constant */
    uint64_t resync_rate;        /* constant: bytes a second; 0: no limit */
    uint32_t idle_ms, grace_ms;  /* constant */
    int ask_alone;               /* constant */
    int hold;                    /* constant: REMUS_ON_LOSS_HOLD */
    struct remus_tls_keys *keys; /* constant; NULL: no TLS */
    struct remus_sendq queue;    /* see sendq.h */
    struct remus_dirty dirty;    /* see dirty.h; its owner is `lock` */
    int wake;                    /* constant: eventfd, set to stop */
    int rx_wake;                 /* constant: eventfd, moves the rx thread */
    uint64_t spin_most;          /* constant: remus_spin_most() */
    struct remus_events events;  /* see events.h: state or link changed */
    struct remus_log log;        /* lock: what was said */
    struct remus_ack_wait ack_wait; /* see events.c */

    pthread_t sender, receiver, resumer, engine, watch, upkeep;
    int threads;                 /* open/close only: how many of these run */
    unsigned int volume_threads; /* lock: how many of the volumes' run */
    int engine_runs; /* lock: the engine does: it brings requests, so who
                        carries them out ends after it */

    pthread_mutex_t state_lock;
    unsigned char greeted[REMUS_ID_BYTES]; /* engine thread: generation in
                                     its newest hello */

    pthread_mutex_t lock;
    pthread_cond_t changed;      /* acked, state, resync step, link */
    pthread_cond_t park_changed; /* the resumer has something to do */
    pthread_cond_t rx_resume;    /* the rx thread may look again */
    pthread_cond_t engine_wake;  /* link, session, room: the engine's sleep */

    /* All: lock. */
    struct remus_primary_state kept; /* as on disk; also state_lock to
                                     change */
    struct remus_alone alone;        /* alone.c, as the next four */
    uint64_t answered_ns;    /* a backup answered that can't be caught up */
    int alone_error;         /* -errno: storing a new generation failed */
    uint64_t alone_error_ns; /* ... when */
    char alone_why[REMUS_REASON_MAX]; /* ... in words */
    enum remus_authority authority;   /* authority.c */
    unsigned int writers;             /* open files that may write */
    int continues; /* ... one stands for those that are not counted yet */
    struct remus_verify verify; /* the one under way, or the last one */
    int verify_cancel;
    uint64_t yielded_epoch; /* the last checkpoint, with which we stepped down;
                               0: none */
    int switches;           /* ... in order to be the backup next */
    enum remus_life life;   /* state.c */
    struct remus_link_state link;  /* state.c */
    struct remus_connection c;     /* the one that is up, or was up last */
    char reason[REMUS_REASON_MAX]; /* state.c, as the next one */
    char lost_reason[REMUS_REASON_MAX]; /* why the link was lost last */
    int fd; /* conn.fd while the link is up, else -1; closed by the engine
                  only, with rx_lock and send_lock held */
    uint64_t open_epoch;   /* epoch of the next write */
    uint64_t closed_bytes; /* written and zeroed in the epoch before */
    struct remus_timed timed[REMUS_TIMED_MAX]; /* ring */
    uint64_t timed_start, timed_end; /* positions in it, ever rising */
    /* Of this process, whatever happened to the link: */
    uint64_t first_epoch;   /* first one with a barrier; 0: none */
    uint64_t barrier_epoch; /* newest one with a barrier */
    uint64_t named_epoch;   /* newest one that a toolstack closed */
    uint64_t acked;         /* newest that the backup surely has */
    uint64_t commit_given;  /* newest that was committed here */
    int64_t hash_asked;     /* the newest question about block hashes */
    struct {
        uint64_t from, to; /* epochs that will never be acked */
    } outage[REMUS_OUTAGES];
    unsigned int outages;  /* so far; the newest ones are kept */
    uint64_t outage_floor; /* of epochs up to here it is not known any more:
                              they are lost */
    /* Sessions of a toolstack. */
    enum remus_session session;    /* session.c: who takes checkpoints */
    unsigned int node_users;       /* open files that joined a barrier */
    uint64_t ended_ns;             /* the last one did */
    uint64_t idle_ns;              /* last checkpoint of the engine, or when
                                     it began to take them */
    struct remus_flow flow;        /* flow.c */
    struct remus_measure measured; /* plan.c */
    uint64_t wont_fit;             /* capacity that a catch-up passed; 0 */
    uint64_t wont_fit_ns;          /* when */
    uint64_t queue_limit;          /* bytes: measured rate x max_pause */
    struct remus_request *parked, **parked_tail; /* waiting for room */
    unsigned int parked_room;                    /* how many */
    struct remus_request *free_requests;
    struct remus_waiter *waiters, *free_waiters;
    int park_wake;              /* the resumer shall look */
    int rx_caller;              /* a caller is or becomes the receiver */
    int rx_polling;             /* the rx thread is or becomes it */
    int rx_wanted;              /* somebody waits who is no receiver */
    uint64_t rx_left_ns;        /* when the last caller stopped being it */
    enum remus_asking asking;   /* asked.c, as the next three */
    struct remus_ioctl_id asks; /* whose barrier it is about */
    uint64_t asked_epoch;       /* ... its epoch */
    uint64_t found;             /* ... that the backup has; 0: it has not */
    struct remus_ioctl_barrier newest; /* barrier of an ioctl 20 */
    uint64_t heard; /* newest one of which any 30 heard that it is safe; 0 */
    struct remus_status stats; /* the counters in it */

    /* The engine's until it sets fd; then its sending side is send_lock's,
     * its receiving side rx_lock's. */
    struct remus_conn conn;

    _Atomic uint64_t wait_ids; /* given out so far */
    _Atomic int no_writes;     /* authority.c: is it fenced, for writes */
    _Atomic int room_wanted;   /* parked_room != 0, read by the sender */

    pthread_mutex_t rx_lock;
    struct remus_input input; /* rx_lock */
};

/* ---- lock ----------------------------------------------------------------- */

/* What holds whenever the lock is free (invariants.c).  Aborts where it does
 * not, in builds with -DREMUS_CHECKED; all tests are. */
void remus_primary_invariants(remus_primary *p);

static inline void remus_primary_lock(remus_primary *p)
{
    pthread_mutex_lock(&p->lock);
}

static inline void remus_primary_unlock(remus_primary *p)
{
#ifdef REMUS_CHECKED
    remus_primary_invariants(p);
#endif
    pthread_mutex_unlock(&p->lock);
}

/* Now, in ns, on the clock that all deadlines are on. */
static inline uint64_t remus_primary_now(const remus_primary *p)
{
    return p->io->now_ns(p->io);
}

/* ---- all below: lock held, unless said otherwise --------------------------- */

/* The backup is connected. */
static inline int remus_link_up(const remus_primary *p)
{
    return p->link.link != REMUS_LINK_DOWN;
}

/* Every write goes into the queue. */
static inline int remus_streaming(const remus_primary *p)
{
    return p->link.link >= REMUS_LINK_COPYING && p->life == REMUS_LIFE_OPEN;
}

/* ... as a counted record (else straight to the backup's disks). */
static inline int remus_counting(const remus_primary *p)
{
    return p->link.link >= REMUS_LINK_CATCHING_UP;
}

/* All that changed is queued, and that connection is still there. */
static inline int remus_caught_up(const remus_primary *p)
{
    return p->link.link >= REMUS_LINK_CAUGHT_UP;
}

static inline int remus_stopping(const remus_primary *p)
{
    return p->life == REMUS_LIFE_STOPPED;
}

/* enum remus_state, as users see it. */
int remus_primary_state(const remus_primary *p);
/* An event of the link (see steps.h), with what there is to say about it; NULL:
 * nothing.  Wakes those who wait; what else there is to do. */
unsigned int remus_primary_link_event(remus_primary *p,
                                      enum remus_link_event event,
                                      const char *text);
/* Authority or link were assigned: let `events` tell what has changed. */
void remus_primary_shows(remus_primary *p);
/* The reason of the state as it is. */
void remus_primary_say(remus_primary *p, const char *text);
/* The primary is about to end; wakes those who wait. */
void remus_primary_ends(remus_primary *p, enum remus_life life);
/* Do waits for acks go on, though there is no connection? */
int remus_primary_holds(const remus_primary *p);
/* Wait until somebody wakes us, or not beyond a moment: 0, or -ETIMEDOUT. */
int remus_primary_wait(remus_primary *p, pthread_cond_t *cond,
                       struct remus_deadline end);
/* Wait at most `ms`. */
void remus_primary_timed_wait(remus_primary *p, pthread_cond_t *cond, int ms);
/* Sleep, but not longer than until the stop.  1: stop.  (no lock held) */
int remus_primary_sleep(remus_primary *p, uint32_t ms);
/* Let the resumer look at the parked requests. */
void remus_primary_wake_parked(remus_primary *p);
/* Let a volume's thread look at the requests that wait for a range. */
void remus_primary_wake_volume(struct remus_pvolume *v);
/* Age in ns of the oldest write that waits for room; 0: none. */
uint64_t remus_primary_oldest_wait(remus_primary *p, uint64_t now);
/* Was this epoch lost with a link, for good? */
int remus_primary_epoch_lost(const remus_primary *p, uint64_t epoch);
/* Is the range inside the volume?  Else `err`, with a text (no lock
 * needed). */
int remus_primary_check_io(remus_primary *p, unsigned int volume,
                           uint64_t offset, uint64_t len, int err);

#endif
