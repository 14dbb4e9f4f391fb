/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Deadlines saturate: no timeout, however long, is over at once. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/fork.h"
#include "base/wake.h"

static void check(int ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "FAILED: %s\n", what);
    exit(1);
}

static void test_arithmetic(void)
{
    static const int64_t long_ms[] = {INT64_MAX,
                                      INT64_MAX / 2,
                                      INT64_MAX / 1000000,
                                      INT64_MAX / 1000000 + 1,
                                      (int64_t)18446744073710,
                                      INT64_MAX - 1};
    static const uint64_t nows[] = {0, 1, 1000000000u, UINT64_MAX / 2,
                                    UINT64_MAX - 2};
    for (size_t n = 0; n < sizeof nows / sizeof *nows; n++) {
        for (size_t i = 0; i < sizeof long_ms / sizeof *long_ms; i++) {
            struct remus_deadline d = remus_deadline_in(nows[n], long_ms[i]);
            check(!remus_deadline_over(d, nows[n]), "a long timeout is over");
            check(remus_deadline_ms(d, nows[n]) != 0, "nothing left of it");
            check(remus_deadline_poll_ms(d, nows[n]) != 0,
                  "poll does not wait");
        }
        struct remus_deadline never = remus_deadline_in(nows[n], -1);
        check(!remus_deadline_over(never, UINT64_MAX), "never is over");
        check(remus_deadline_ms(never, UINT64_MAX) == -1, "never in ms");
        struct remus_deadline at_once = remus_deadline_in(nows[n], 0);
        check(remus_deadline_over(at_once, nows[n]), "0 ms is not over");
        check(remus_deadline_ms(at_once, nows[n]) == 0, "0 ms in ms");
    }
    struct remus_deadline d = remus_deadline_in(5, 2);
    check(remus_deadline_ms(d, 5) == 2, "2 ms");
    check(remus_deadline_ms(d, 6) == 2, "rounded up");
    check(remus_deadline_ms(d, 2000004) == 1, "one nanosecond is left");
    check(remus_deadline_over(d, 2000005), "it is over");
    d = remus_deadline_in(0, (int64_t)INT_MAX + 5);
    check(remus_deadline_poll_ms(d, 0) == INT_MAX, "poll takes an int");
}

static void test_waiting(void)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t cond;
    remus_cond_init(&cond);
    pthread_mutex_lock(&lock);
    uint64_t start = remus_clock_now();
    struct remus_deadline end = remus_deadline_in(start, 20);
    while (!remus_cond_wait(&cond, &lock, remus_clock_now(), end))
        ;
    uint64_t took = remus_clock_now() - start;
    check(took >= 20 * REMUS_NS_PER_MS, "a wait ended early");
    /* Of another clock, only the distance counts. */
    start = remus_clock_now();
    check(remus_cond_wait(&cond, &lock, 7, remus_deadline_in(7, 5)) == 0,
          "a wait by a clock of its own");
    check(remus_clock_now() - start < 5 * REMUS_NS_PER_S, "its length");
    check(remus_cond_wait(&cond, &lock, 7, remus_deadline_in(7, 0)) ==
              -ETIMEDOUT,
          "what is over is not waited for");
    pthread_mutex_unlock(&lock);
    pthread_cond_destroy(&cond);
}

static void test_wake(void)
{
    int wake = remus_wake_open();
    check(wake >= 0, "open");
    check(!remus_wake_clear(wake), "nothing was told");
    remus_wake(wake);
    remus_wake(wake);
    check(remus_wake_clear(wake), "it was told");
    check(!remus_wake_clear(wake), "once is enough");
    remus_wake_close(wake);
    remus_wake(-1);
    remus_wake_close(-1);
}

int main(void)
{
    test_arithmetic();
    test_waiting();
    test_wake();
    return 0;
}
