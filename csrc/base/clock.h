/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Time: the one arithmetic of deadlines, and waits on conditions.
 *
 * Moments are nanoseconds of CLOCK_MONOTONIC.  Code that has an I/O table
 * reads them from its clock, so that tests can set it; the rest from
 * remus_clock_now().  A deadline saturates: what lies beyond the end of the
 * clock (584 years) never comes.
 */
#ifndef REMUS_CLOCK_H
#define REMUS_CLOCK_H

#include <pthread.h>
#include <stdint.h>

#define REMUS_NS_PER_MS 1000000u
#define REMUS_NS_PER_S 1000000000u

/* In a struct of its own, so that nobody compares it with a number of ms. */
struct remus_deadline {
    uint64_t ns; /* UINT64_MAX: never */
};

#define REMUS_NEVER ((struct remus_deadline){UINT64_MAX})

/* CLOCK_MONOTONIC of the system. */
uint64_t remus_clock_now(void);

/* `ms` from `now_ns` on; negative: never. */
struct remus_deadline remus_deadline_in(uint64_t now_ns, int64_t ms);
struct remus_deadline remus_deadline_in_ns(uint64_t now_ns, uint64_t ns);

int remus_deadline_never(struct remus_deadline d);
int remus_deadline_over(struct remus_deadline d, uint64_t now_ns);

/* What is left, rounded up; -1: it never comes, so without a limit. */
int64_t remus_deadline_ms(struct remus_deadline d, uint64_t now_ns);

/* The same for poll(2), which takes an int. */
int remus_deadline_poll_ms(struct remus_deadline d, uint64_t now_ns);

/* A condition whose timed waits are on CLOCK_MONOTONIC. */
void remus_cond_init(pthread_cond_t *cond);

/*
 * Wait until somebody signals or the deadline is over, now being `now_ns` by
 * the clock that the deadline is of.  May return early, as
 * pthread_cond_wait() may: the caller asks again, with a new now.
 * 0; -ETIMEDOUT at once if the deadline was over before.
 */
int remus_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock,
                    uint64_t now_ns, struct remus_deadline d);

#endif
