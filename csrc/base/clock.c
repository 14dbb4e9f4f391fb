/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/clock.h"

#include <errno.h>
#include <limits.h>
#include <time.h>

#define LONGEST_S 3600 /* of one wait: whoever calls asks again */

uint64_t remus_clock_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * REMUS_NS_PER_S + (uint64_t)ts.tv_nsec;
}

struct remus_deadline remus_deadline_in_ns(uint64_t now_ns, uint64_t ns)
{
    struct remus_deadline d = REMUS_NEVER;
    if (ns < UINT64_MAX - now_ns)
        d.ns = now_ns + ns;
    return d;
}

struct remus_deadline remus_deadline_in(uint64_t now_ns, int64_t ms)
{
    if (ms < 0 || (uint64_t)ms > UINT64_MAX / REMUS_NS_PER_MS)
        return REMUS_NEVER;
    return remus_deadline_in_ns(now_ns, (uint64_t)ms * REMUS_NS_PER_MS);
}

int remus_deadline_never(struct remus_deadline d)
{
    return d.ns == UINT64_MAX;
}

int remus_deadline_over(struct remus_deadline d, uint64_t now_ns)
{
    return !remus_deadline_never(d) && now_ns >= d.ns;
}

int64_t remus_deadline_ms(struct remus_deadline d, uint64_t now_ns)
{
    if (remus_deadline_never(d))
        return -1;
    uint64_t left = now_ns >= d.ns ? 0 : d.ns - now_ns;
    return (int64_t)(left / REMUS_NS_PER_MS + (left % REMUS_NS_PER_MS != 0));
}

int remus_deadline_poll_ms(struct remus_deadline d, uint64_t now_ns)
{
    int64_t ms = remus_deadline_ms(d, now_ns);
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

void remus_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

int remus_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock,
                    uint64_t now_ns, struct remus_deadline d)
{
    if (remus_deadline_never(d)) {
        pthread_cond_wait(cond, lock);
        return 0;
    }
    if (remus_deadline_over(d, now_ns))
        return -ETIMEDOUT;
    /* The deadline's clock need not be the system's: only the distance
     * counts. */
    uint64_t left = d.ns - now_ns;
    if (left > (uint64_t)LONGEST_S * REMUS_NS_PER_S)
        left = (uint64_t)LONGEST_S * REMUS_NS_PER_S;
    uint64_t at = remus_clock_now() + left;
    struct timespec until = {(time_t)(at / REMUS_NS_PER_S),
                             (long)(at % REMUS_NS_PER_S)};
    pthread_cond_timedwait(cond, lock, &until);
    return 0;
}
