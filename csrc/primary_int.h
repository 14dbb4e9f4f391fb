/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary, inside.  One job a file:
 *   primary.c         open, close, status, epochs (barrier, ack, commit)
 *   primary_io.c      reads, writes, ranges, parked requests
 *   primary_link.c    sender, receiver, loss
 *   primary_engine.c  connecting, first copy, watching
 *   primary_ioctl.c   the node's ioctls: one barrier for all volumes
 *   primary_state.c   epoch numbers that survive the process
 *   sendq.c           the queue between writers and socket
 *
 * Locks, in the order in which they may be taken:
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

#include "primary.h"
#include "record.h"
#include "sendq.h"
#include "transport.h"

#define REMUS_UNACKED_MAX 64u  /* barriers without an ack */
#define REMUS_LINGER_MS 100    /* the rx thread stays away so long after a
                                  caller was the receiver */
#define REMUS_PING_MS 500u     /* both sides */

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
    REMUS_REQ_COPY    /* read locally, then queue: first copy */
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
    unsigned char *into;          /* COPY: where it is read to */
    unsigned char *owned;         /* freed with the request, or NULL */
    uint64_t queued;              /* bytes of the range in the queue */
    int result;                   /* of the local write */
    uint64_t since_ns;            /* parked since */
    remus_done_fn done;
    void *opaque;
    struct remus_request *next;   /* lock: parked list, or free list */
};

/* A parked ioctl 30. */
struct remus_waiter {
    uint64_t epoch;
    remus_done_fn done;
    void *opaque;
    struct remus_waiter *next;    /* lock */
};

struct remus_primary {
    remus_io *io;                 /* constant */
    char *resource;               /* constant */
    char *state_dir;              /* constant */
    struct remus_address address; /* constant */
    int ack, commit_by;           /* constant */
    uint32_t max_pause_ms, loss_ms, stall_ms, connect_ms; /* constant */
    unsigned int volume_count;    /* constant */
    struct remus_pvolume *volumes; /* constant array */
    int lock_file;                /* constant */
    struct remus_tls_keys *keys;  /* constant; NULL: no TLS */
    unsigned char generation[REMUS_ID_BYTES]; /* constant */
    struct remus_sendq queue;
    int wake;                     /* constant: eventfd, set to stop */
    int kick;                     /* constant: eventfd, moves the rx thread */

    pthread_t sender, receiver, resumer, engine, watch;
    int threads;                  /* open/close only: how many run */

    pthread_mutex_t lock;
    pthread_cond_t changed;       /* acked, state, resync step, link */
    pthread_cond_t park_changed;  /* the resumer has something to do */
    pthread_cond_t rx_resume;     /* the rx thread may look again */

    /* All: lock. */
    int stopping;
    int state;                    /* enum remus_state */
    char reason[REMUS_REASON_MAX];
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
    uint64_t first_epoch;         /* first one with a barrier */
    uint64_t barrier_epoch;       /* newest one with a barrier */
    uint64_t acked, stable, applied, committed;
    int resync_step;              /* newest answer of the backup */
    uint64_t last_rx_ns;
    uint64_t queue_limit;         /* bytes: measured rate x max_pause */
    uint64_t epoch_limit;         /* numbers below it are reserved on disk */
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
    struct remus_status stats;    /* the counters in it */

    /* The engine's until it sets fd; then its sending side is send_lock's,
     * its receiving side rx_lock's. */
    struct remus_conn conn;

    _Atomic int room_wanted;      /* parked_room != 0, read by the sender */

    pthread_mutex_t rx_lock;
    struct remus_input input;     /* rx_lock */
};

/* primary.c */
/* Is replication up?  0, or -EPROTO with the state and why (lock held). */
int remus_primary_check_protected(remus_primary *p);
/*
 * Close the open epoch (lock held).  Returns the slot to publish with
 * remus_primary_send_barrier(), or NULL with *err.
 */
struct remus_slot *remus_primary_close_epoch(remus_primary *p,
                                             struct remus_record *r,
                                             int flags, size_t tag_len,
                                             int *empty, int *err);
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
/* Set the state and its reason, wake those who wait (lock held). */
void remus_primary_set_state(remus_primary *p, int state, const char *reason);

/* primary_io.c */
void *remus_primary_resumer_main(void *arg);
/* Let the resumer look at the parked requests (lock held). */
void remus_primary_kick_parked(remus_primary *p);
/* Read a range and queue it in the first copy; blocks.  0 or -errno. */
int remus_primary_copy_range(remus_primary *p, unsigned int volume,
                             uint64_t offset, size_t len,
                             unsigned char *buf);
/* Age in ns of the oldest write that waits for room; 0: none (lock). */
uint64_t remus_primary_oldest_wait(remus_primary *p, uint64_t now);
int remus_primary_check_io(remus_primary *p, unsigned int volume,
                           uint64_t offset, uint64_t len, int err);

/* primary_engine.c */
void *remus_primary_engine_main(void *arg);
void *remus_primary_watch_main(void *arg);

/* primary_link.c */
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

/* primary_state.c */
/* Load or make state_dir/primary.state; the first free epoch number. */
int remus_primary_state_load(remus_primary *p, uint64_t *next_epoch);
/* Reserve numbers below `limit` durably. */
int remus_primary_state_store(remus_primary *p, uint64_t limit);

#endif
