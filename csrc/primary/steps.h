/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a primary decides, without threads, locks or I/O: a state and an event
 * give the next state and what is to be done. primary/state.h says which file
 * keeps which state; tests/c/test_steps.c and test_session_steps.c walk all
 * states and events.
 *
 * link        what the connection to the backup is good for
 * leave       may writes pass that no backup takes?
 * authority   is this the side that writes?
 * session     who takes checkpoints?
 * plan        what is done with a backup that answered our hello?
 * commit      who may commit what?
 *
 * The state that users see (enum remus_state) is none of its own: it follows
 * from authority and link (remus_primary_public_state).
 */
#ifndef REMUS_PRIMARY_STEPS_H
#define REMUS_PRIMARY_STEPS_H

#include "remus.h"

/* ---- the link ----------------------------------------------------------- */

/* In this order: what is at or above COPYING takes every write. */
enum remus_link {
    REMUS_LINK_DOWN,        /* nobody takes a write */
    REMUS_LINK_COMPARING,   /* both sides find out what differs; nobody takes
                               a write yet */
    REMUS_LINK_COPYING,     /* writes go straight to the backup's disks */
    REMUS_LINK_CATCHING_UP, /* ... and are counted; not all is queued yet */
    REMUS_LINK_CAUGHT_UP,   /* all that changed is queued; the next
                               checkpoint completes it */
    REMUS_LINK_STREAMING,   /* each checkpoint is safe on the backup */
    REMUS_LINKS
};

enum remus_link_event {
    REMUS_LINK_COMPARE,  /* a connection begins with a comparison */
    REMUS_LINK_COPY,     /* a copy straight to the disks begins */
    REMUS_LINK_CATCH_UP, /* a catch-up through the journal begins */
    REMUS_LINK_COUNT,    /* a copy is at its end: counted records follow */
    REMUS_LINK_QUEUED,   /* all that changed is queued */
    REMUS_LINK_SAFE,     /* the checkpoint that completes it is safe */
    REMUS_LINK_REFUSED,  /* a backup answered, and nothing can be done */
    REMUS_LINK_LOST,     /* the connection ended */
    REMUS_LINK_EVENTS
};

/* What the link step looks at beside the link. */
struct remus_link_facts {
    int map_counts; /* the dirty map tells what a backup lacks */
    int holds;      /* waits for acks go on in an outage */
};

struct remus_link_state {
    enum remus_link link;
    int had; /* there was a backup to lose: down is Unprotected, else it is
                Connecting */
};

/* What is to be done, of each step below. */
enum remus_effect {
    REMUS_DO_FORBIDDEN = 1 << 0, /* this event can't be in this state */
    /* link */
    REMUS_DO_RESET = 1 << 1,     /* forget all of the last connection */
    REMUS_DO_SETTLE = 1 << 2,    /* every wait's end is known now */
    REMUS_DO_END_WAITS = 1 << 3, /* who waits for an ack hears of the loss */
    REMUS_DO_SHARE = 1 << 4,     /* the backup knows our generation now */
    /* authority */
    REMUS_DO_WAKE_ENGINE = 1 << 5, /* it answers a question */
    REMUS_DO_REPLY_NO = 1 << 6,
    REMUS_DO_REPLY_YES = 1 << 7,
    REMUS_DO_LAST_CHECKPOINT = 1 << 8, /* take it, fence durably, say how it
                                          went */
    REMUS_DO_FENCE = 1 << 9,           /* durably */
    REMUS_DO_LET_GO = 1 << 10,         /* no wait goes on in this outage */
    /* alone */
    REMUS_DO_STORE = 1 << 11, /* make a new generation durable, say how it
                                   went */
    REMUS_DO_RESUME = 1 << 12 /* let parked writes look again */
};

/* Next state and effects.  What is forbidden leaves the state as it is. */
unsigned int remus_link_step(struct remus_link_state *s,
                             enum remus_link_event event,
                             const struct remus_link_facts *facts);

/* ---- going alone -------------------------------------------------------- */

/* What was said about it in this outage. */
enum remus_alone_word {
    REMUS_ALONE_WORD_NONE,
    REMUS_ALONE_WORD_GRANTED,
    REMUS_ALONE_WORD_REFUSED
};

/* Whose is the generation that we write in? */
enum remus_generation {
    REMUS_GENERATION_SHARED,  /* a backup may know it: before a write passes
                                 alone, a new one */
    REMUS_GENERATION_STORING, /* the new one is being stored */
    REMUS_GENERATION_FAILED,  /* it could not be stored; tried again */
    REMUS_GENERATION_OWN      /* nobody else knows it */
};

struct remus_alone {
    enum remus_alone_word word;
    enum remus_generation generation;
};

/* While a backup is connected, or answers though it can't be caught up, it
 * is there: what is to be sure of comes with its loss. */
struct remus_alone_facts {
    int ask; /* configured: somebody must say the word */
    int connected;
    int answers;
};

/* May a write pass that no backup takes?  What the two above come to. */
enum remus_leave {
    REMUS_LEAVE_NOT_NEEDED, /* it passes */
    REMUS_LEAVE_WITHHELD,   /* it waits for a word */
    REMUS_LEAVE_GRANTED,    /* it waits until a new generation is stored */
    REMUS_LEAVE_STORING,    /* ... which is under way */
    REMUS_LEAVE_REFUSED,    /* it fails */
    REMUS_LEAVE_FAILED,     /* it fails: the generation can't be stored */
    REMUS_LEAVES
};

enum remus_alone_event {
    REMUS_ALONE_GRANT,
    REMUS_ALONE_REFUSE,
    REMUS_ALONE_WRITE, /* a write waits that no backup takes */
    REMUS_ALONE_STORED,
    REMUS_ALONE_NOT_STORED,
    REMUS_ALONE_SHARED, /* a backup takes the writes from here on */
    REMUS_ALONE_NEVER,  /* it never stored the generation */
    REMUS_ALONE_EVENTS
};

/* What becomes of a write that no backup takes. */
enum remus_verdict {
    REMUS_VERDICT_PASSES,
    REMUS_VERDICT_WAITS,
    REMUS_VERDICT_FENCED,  /* -EROFS */
    REMUS_VERDICT_REFUSED, /* -EIO */
    REMUS_VERDICT_FAILED   /* with what storing the generation failed with */
};

enum remus_leave remus_leave(const struct remus_alone *a,
                             const struct remus_alone_facts *facts);
unsigned int remus_alone_step(struct remus_alone *a,
                              enum remus_alone_event event,
                              const struct remus_alone_facts *facts);

/* ---- who writes --------------------------------------------------------- */

enum remus_authority {
    REMUS_AUTHORITY_WRITER,
    REMUS_AUTHORITY_ASKED,       /* the backup asks us to step down; the
                                    engine has not answered yet */
    REMUS_AUTHORITY_YIELDING,    /* no write passes; the last checkpoint is
                                    on its way */
    REMUS_AUTHORITY_YIELDED,     /* stepped down, for good */
    REMUS_AUTHORITY_FAILED_AWAY, /* the backup was promoted */
    REMUS_AUTHORITY_SPLIT,       /* both sides went on: writes go on, too */
    REMUS_AUTHORITIES
};

enum remus_authority_event {
    REMUS_EVENT_ASK,          /* the backup asks; facts->idle: we may */
    REMUS_EVENT_ANSWER,       /* the engine takes the question up */
    REMUS_EVENT_CHECKPOINTED, /* the last checkpoint is safe, the fence is
                                 durable */
    REMUS_EVENT_NO_CHECKPOINT,
    REMUS_EVENT_PROMOTED,  /* a hello says: it went on from what we are */
    REMUS_EVENT_SPLIT,     /* ... both sides went on */
    REMUS_EVENT_CONNECTED, /* a connection begins */
    REMUS_AUTHORITY_EVENTS
};

unsigned int remus_authority_step(enum remus_authority *s,
                                  enum remus_authority_event event, int idle);
/* Does no write of a guest pass? */
int remus_authority_fenced(enum remus_authority s);
/* closing: nobody is waited for any more.  failed_now: the generation could
 * not be stored a moment ago. */
enum remus_verdict remus_write_verdict(enum remus_authority authority,
                                       enum remus_leave leave, int closing,
                                       int failed_now);
/* Does a write wait that somebody's word would let pass?  Nobody is asked in
 * split brain: the other side is there, and may be in use. */
int remus_leave_asks(enum remus_authority authority, enum remus_leave leave);

/* ---- the state that users see ------------------------------------------- */

int remus_primary_public_state(enum remus_authority authority,
                               const struct remus_link_state *link);

/* ---- sessions ----------------------------------------------------------- */

enum remus_session {
    REMUS_SESSION_TAKEN_OVER, /* none; what an ended one, or an earlier
                                 process, left prepared nobody can name any
                                 more: the engine commits it, too */
    REMUS_SESSION_ENGINE,     /* none: the engine takes checkpoints, and can
                                 name all that is prepared */
    REMUS_SESSION_TOOLSTACK,  /* a toolstack takes them */
    REMUS_SESSION_GRACE,      /* one ended without teardown, not long ago: its
                            memory may still be failed over to */
    REMUS_SESSIONS
};

enum remus_session_event {
    REMUS_SESSION_OPENS,
    REMUS_SESSION_ENDS,   /* by teardown */
    REMUS_SESSION_CLOSES, /* without one */
    REMUS_SESSION_GRACE_ENDS,
    REMUS_SESSION_COMMITTED, /* the engine committed all that was there */
    REMUS_SESSION_EVENTS
};

enum remus_session remus_session_step(enum remus_session s,
                                      enum remus_session_event event);

struct remus_due_facts {
    enum remus_session session;
    enum remus_link link;
    int over;        /* fenced, or about to close */
    int direct;      /* the catch-up went straight to the disks */
    int on_its_way;  /* the barrier that completes it is sent */
    int pressed;     /* the journal's room runs out */
    int written;     /* the open epoch is not empty */
    int uncommitted; /* something is acked and not committed */
    int idle_over;   /* the interval is over */
};

/* Shall the engine take a checkpoint now? */
int remus_engine_due(const struct remus_due_facts *f);

/* ---- commits ------------------------------------------------------------ */

enum remus_committer {
    REMUS_COMMITTER_CALL,   /* remus_primary_commit() */
    REMUS_COMMITTER_NEXT,   /* ioctl 20, of what a 30 was told or is empty */
    REMUS_COMMITTER_IOCTL,  /* ioctl 40 */
    REMUS_COMMITTER_ENGINE, /* its own checkpoint, and what is before it */
    REMUS_COMMITTERS
};

enum remus_commit {
    REMUS_COMMIT_SEND,
    REMUS_COMMIT_LATER,   /* not now; once a catch-up begins */
    REMUS_COMMIT_VOID,    /* a copy takes its place: never */
    REMUS_COMMIT_NOTHING, /* it is not the primary's to say */
    REMUS_COMMIT_KEEP     /* somebody may still name what is before it */
};

struct remus_commit_facts {
    enum remus_link link;
    enum remus_session session;
    int by_backup;   /* commit_by = "backup" */
    int own;         /* all that it covers was closed by the engine */
    int before_copy; /* it is older than the copy that this connection began
                        with */
};

enum remus_commit remus_commit_step(enum remus_committer who,
                                    const struct remus_commit_facts *f);

/* ---- a backup that answered --------------------------------------------- */

enum remus_plan {
    REMUS_PLAN_COPY,     /* all, straight to its disks */
    REMUS_PLAN_CATCH_UP, /* what changed, through its journal */
    REMUS_PLAN_REWRITE,  /* what changed, straight to its disks */
    REMUS_PLAN_COMPARE,  /* first find out what differs; then one of these */
    REMUS_PLAN_MARKS,    /* first ask what its own map marks; then as after
                             COMPARE */
    REMUS_PLAN_MEND,     /* all, straight to its disks, but what is equal */
    /* No connection comes of these: */
    REMUS_PLAN_WAIT,     /* a catch-up does not fit */
    REMUS_PLAN_FENCE,    /* it was promoted from what we are */
    REMUS_PLAN_STRANGER, /* it was promoted, as another one's backup */
    REMUS_PLAN_SPLIT,    /* both sides went on from one checkpoint */
    REMUS_PLAN_SET_BACK, /* it has numbers that we never gave: our state is
                             older than what we were */
    REMUS_PLAN_LATER,    /* a new generation is being stored */
    REMUS_PLAN_OVER,     /* we are fenced */
    REMUS_PLANS
};

/* Whose generation a promoted backup went on from. */
enum remus_origin {
    REMUS_ORIGIN_OURS,    /* the one that we are */
    REMUS_ORIGIN_RELATED, /* an ancestor of it */
    REMUS_ORIGIN_OTHER
};

struct remus_offer {
    int content; /* enum remus_content of its hello */
    enum remus_origin origin;
    int set_back;   /* it has numbers of our generation that we never gave */
    int map_counts; /* the map tells all that it lacks */
    int known;      /* ... and what its own map marks was asked */
    int full;       /* no segment of its journal is free for a session */
    int fits;       /* that fits into its journal */
    int allow;      /* allow_inconsistent */
    int storing;
    int fenced;
};

enum remus_plan remus_plan_step(const struct remus_offer *o);
/* Does a connection come of it? */
int remus_plan_connects(enum remus_plan plan);
/* Does it only ask, and another plan follows? */
int remus_plan_asks(enum remus_plan plan);
/* Does it write straight to the backup's disks? */
int remus_plan_direct(enum remus_plan plan);

#endif
