/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A world in which a seed decides which thread runs.
 *
 * Every thread of the code under test is a real thread, but only the one that
 * holds the baton runs.  Each lock, wait, wake-up, socket call, file
 * operation, sleep and look at the clock is a point (world_point) at which
 * the seed may hand the baton on.  Time is virtual: it moves by itself only
 * when nobody can run, to the next moment at which somebody could.  If there
 * is no such moment, the world is stuck, and that is reported as a failure: a
 * deadlock or a lost wake-up.
 *
 * The code under test is the shipped code.  wrap.c stands between it and the C
 * library, by the linker's --wrap; nothing in csrc/ knows of it.
 *
 * One world a process.  No lock guards what is here: the baton does.
 */
#ifndef REMUS_WORLD_SCHED_H
#define REMUS_WORLD_SCHED_H

#include <stdint.h>

#define WORLD_NEVER UINT64_MAX
/* Two with disks; the operator's; and, where the disks' server can die without
 * it, the guest of each of the two. */
#define WORLD_HOSTS 5
#define WORLD_OPERATOR 2
#define WORLD_GUEST 3

static inline int world_guest_of(int host)
{
    return WORLD_GUEST + host;
}

/* The calling thread becomes the operator's.  `trace`: print what happens;
 * `by_kernel`: how the baton is handed on (baton.h). */
void world_begin(uint64_t seed, int trace, int by_kernel);
/* Threads rarely switch. */
void world_calm(void);
/* Is this thread one of a world? */
int world_here(void);

uint64_t world_now(void); /* ns; CLOCK_MONOTONIC of both hosts */
/* How often time has passed that nobody spent running. */
uint64_t world_jumps(void);
uint64_t world_wall(void); /* ns since 1970, as the hosts see it */
void world_wall_jump(int64_t ns);
uint64_t world_random(void);
/* 0 <= result < n */
uint64_t world_below(uint64_t n);
/* True once in n times. */
int world_chance(unsigned int n);

/* The baton may go on here. */
void world_point(const char *what);
/*
 * Wait until ready(on) is true or `deadline` has come: 0, or 1 if it was the
 * deadline.  ready() must be pure.
 */
int world_wait(const char *what, int (*ready)(void *), void *on,
               uint64_t deadline);
/* No point switches until the same number of world_release(). */
void world_hold(void);
void world_release(void);

/* A thread of `host`; the result is its number. */
int world_spawn(int host, const char *name, void *(*main)(void *), void *arg);
void world_join(int thread);
int world_thread_host(void);
int world_self(void);
void *world_result(int thread);
/* It shall end as soon as it waits for a request (device.h). */
void world_cancel(int thread);
int world_cancelled(int thread);

/*
 * The processes of a host end: its threads never run again.  `after`: at the
 * host's point that comes so many after now (0: at once).
 */
void world_kill_after(int host, uint64_t points);
/* Not any more. */
void world_kill_never(int host);
int world_killed(int host);
/* How often its processes were started. */
unsigned int world_life(int host);
/* The host can have threads again. */
void world_revive(int host);
/* Called at the moment at which a host's processes end. */
extern void (*world_on_kill)(int host);

/* Something in the world that will happen by itself: the earliest moment. */
extern uint64_t (*world_next_event)(void);

/* Called when a run fails, before its end. */
extern void (*world_on_fail)(void);
/* The run failed: say why, with the last part of the trace, and exit 1. */
void world_fail(const char *format, ...)
    __attribute__((format(printf, 1, 2), noreturn));
void world_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* What happened until now, as one number. */
uint64_t world_digest(void);
uint64_t world_points(void);
void world_mix(uint64_t value);

#endif
