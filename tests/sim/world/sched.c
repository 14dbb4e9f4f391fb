/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The baton; see sched.h. */
#include "sched.h"

#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "baton.h"

#define THREADS 4096
#define STEP_NS 500u /* what a point takes */
#define WALL_START 1700000000000000000u
#define NOW_START 1000000000000u /* after 1000 s up */
#define HEAP (64 << 20)          /* bytes */
#define HUGE_PAGE (2u << 20)
#define LINES 400 /* of the trace that a failure shows */

enum state { FREE, RUNNABLE, BLOCKED, OVER, KILLED };

struct thread {
    enum state state;
    int host;
    struct body *body;
    int (*ready)(void *); /* BLOCKED */
    void *on;
    uint64_t deadline;
    int timed_out, cancelled;
    uint64_t priority;
    const char *name, *where;
    void *(*main)(void *);
    void *arg, *result;
};

static struct thread threads[THREADS];
static int thread_count;
static int live[THREADS], live_count; /* those that may run again, in order */
static int hold;                      /* of the current thread */
static uint64_t now = NOW_START, random_state, digest = 1469598103934665603u;
static uint64_t points, host_points[WORLD_HOSTS], kill_at[WORLD_HOSTS];
static int64_t wall_offset;
static int dead[WORLD_HOSTS];
static unsigned int lives[WORLD_HOSTS];
static uint64_t jumps;
static unsigned int stickiness; /* 1 of so many points switches */
static int by_priority;
static uint64_t run_length;
static int tracing;
static uint64_t the_seed;
static char lines[LINES][160];
static uint64_t line_count;
static _Thread_local int self = -1;

void (*world_on_kill)(int host);
void (*world_on_fail)(void);
uint64_t (*world_next_event)(void);

/* ---- chance, time, trace ------------------------------------------------ */

uint64_t world_random(void)
{
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t world_below(uint64_t n)
{
    return n ? world_random() % n : 0;
}

int world_chance(unsigned int n)
{
    return world_below(n) == 0;
}

int world_here(void)
{
    return self >= 0;
}

uint64_t world_now(void)
{
    return now;
}

uint64_t world_jumps(void)
{
    return jumps;
}

uint64_t world_wall(void)
{
    return WALL_START + (now - NOW_START) + (uint64_t)wall_offset;
}

void world_wall_jump(int64_t ns)
{
    wall_offset += ns;
}

void world_mix(uint64_t value)
{
    digest = (digest ^ value) * 1099511628211u;
}

uint64_t world_digest(void)
{
    return digest;
}

uint64_t world_points(void)
{
    return points;
}

static void say(const char *format, va_list args)
{
    char *line = lines[line_count++ % LINES];
    int n = snprintf(line, sizeof lines[0], "%12.6f %-10.10s ",
                     (double)(now - NOW_START) / 1e9,
                     self >= 0 ? threads[self].name : "?");
    vsnprintf(line + n, sizeof lines[0] - (size_t)n, format, args);
    for (const char *c = line; *c; c++)
        world_mix((unsigned char)*c);
    if (tracing)
        puts(line);
}

void world_say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say(format, args);
    va_end(args);
}

static void show_threads(void)
{
    for (int i = 0; i < thread_count; i++)
        if (threads[i].state == RUNNABLE || threads[i].state == BLOCKED)
            printf("  thread %d %s (host %d): %s in %s\n", i, threads[i].name,
                   threads[i].host,
                   threads[i].state == BLOCKED ? "waits" : "runs",
                   threads[i].where);
}

void world_fail(const char *format, ...)
{
    va_list args;
    if (!tracing) {
        uint64_t from = line_count > LINES ? line_count - LINES : 0;
        for (uint64_t i = from; i < line_count; i++)
            puts(lines[i % LINES]);
    }
    printf("FAILED seed %llu at point %llu: ", (unsigned long long)the_seed,
           (unsigned long long)points);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    puts("");
    show_threads();
    if (world_on_fail)
        world_on_fail();
    fflush(stdout);
    _exit(1);
}

/* ---- the baton ------------------------------------------------------------ */

static int can_run(struct thread *t)
{
    if (t->state == RUNNABLE)
        return 1;
    return t->state == BLOCKED &&
           (t->deadline <= now || (t->ready && t->ready(t->on)));
}

static int choose(void)
{
    int can[THREADS], n = 0, best = -1, kept = 0;
    for (int k = 0; k < live_count; k++) {
        int i = live[k];
        if (threads[i].state > BLOCKED)
            continue;
        live[kept++] = i;
        if (!can_run(&threads[i]))
            continue;
        can[n++] = i;
        if (best < 0 || threads[i].priority > threads[best].priority)
            best = i;
    }
    live_count = kept;
    if (!n)
        return -1;
    return by_priority && !world_chance(16) ? best
                                            : can[world_below((uint64_t)n)];
}

/* When could somebody run? */
static uint64_t next_moment(void)
{
    uint64_t at = world_next_event ? world_next_event() : WORLD_NEVER;
    for (int k = 0; k < live_count; k++)
        if (threads[live[k]].deadline < at)
            at = threads[live[k]].deadline;
    return at;
}

static int next_thread(void)
{
    for (;;) {
        int next = choose();
        if (next >= 0)
            return next;
        uint64_t at = next_moment();
        if (at == WORLD_NEVER)
            world_fail("stuck: nobody can ever run again");
        now = at > now ? at : now + 1;
        jumps++;
    }
}

/* Whoever may run next does; this thread goes on when it is its turn. */
static void switch_from(struct thread *me)
{
    int next = next_thread();
    struct thread *t = &threads[next];
    if (t->state == BLOCKED) {
        t->timed_out = !(t->ready && t->ready(t->on));
        t->state = RUNNABLE;
    }
    world_mix((uint64_t)next << 32 | (points & 0xffffffffu));
    run_length = 0;
    if (t == me)
        return;
    if (me->state == OVER)
        baton_done(me->body, t->body);
    else
        baton_give(me->body, t->body);
}

static void end_host(int host)
{
    kill_at[host] = 0;
    dead[host] = 1;
    world_say("-- the processes of host %d end", host);
    for (int i = 0; i < thread_count; i++)
        if (threads[i].host == host && threads[i].state != OVER)
            threads[i].state = KILLED;
    if (world_on_kill)
        world_on_kill(host);
}

void world_point(const char *what)
{
    if (self < 0)
        return;
    struct thread *me = &threads[self];
    me->where = what;
    if (hold)
        return;
    now += STEP_NS;
    points++;
    if (++host_points[me->host] == kill_at[me->host] &&
        me->host != WORLD_OPERATOR)
        end_host(me->host);
    if (points > 40000000u)
        world_fail("it goes on for ever");
    /* A thread of high priority that only spins must not do so for ever. */
    if (++run_length > 2000)
        me->priority = world_random() >> 8;
    if (me->state == KILLED || run_length > 2000 || world_chance(stickiness))
        switch_from(me);
}

int world_wait(const char *what, int (*ready)(void *), void *on,
               uint64_t deadline)
{
    struct thread *me = &threads[self];
    if (hold)
        world_fail("a wait in %s where nobody may wait", what);
    world_point(what);
    me->where = what;
    me->ready = ready;
    me->on = on;
    me->deadline = deadline;
    me->state = BLOCKED;
    switch_from(me);
    return me->timed_out;
}

void world_hold(void)
{
    hold++;
}

void world_release(void)
{
    hold--;
}

/* ---- threads, hosts --------------------------------------------------------- */

static void thread_main(int thread)
{
    self = thread;
    struct thread *me = &threads[self];
    me->result = me->main(me->arg);
    me->state = OVER;
    me->where = "its end";
    switch_from(me);
}

int world_spawn(int host, const char *name, void *(*main)(void *), void *arg)
{
    if (thread_count == THREADS)
        world_fail("more than %d threads", THREADS);
    int i = thread_count++;
    live[live_count++] = i;
    threads[i] = (struct thread){.state = RUNNABLE,
                                 .host = host,
                                 .name = name,
                                 .where = "its start",
                                 .priority = world_random() >> 4,
                                 .main = main,
                                 .arg = arg};
    threads[i].body = baton_body(i, thread_main);
    if (!threads[i].body)
        world_fail("no thread");
    world_point("create");
    return i;
}

static int is_over(void *on)
{
    return ((struct thread *)on)->state >= OVER;
}

void world_join(int thread)
{
    world_wait("join", is_over, &threads[thread], WORLD_NEVER);
}

void *world_result(int thread)
{
    return threads[thread].result;
}

void world_cancel(int thread)
{
    threads[thread].cancelled = 1;
}

int world_cancelled(int thread)
{
    return threads[thread].cancelled;
}

int world_self(void)
{
    return self;
}

int world_thread_host(void)
{
    return threads[self].host;
}

void world_kill_after(int host, uint64_t after)
{
    if (after)
        kill_at[host] = host_points[host] + after;
    else
        end_host(host);
}

void world_kill_never(int host)
{
    kill_at[host] = 0;
}

int world_killed(int host)
{
    return dead[host];
}

unsigned int world_life(int host)
{
    return lives[host];
}

void world_revive(int host)
{
    lives[host]++;
    dead[host] = 0;
    kill_at[host] = 0;
}

/* What the code relies on did not hold, or worse. */
static void on_signal(int sig)
{
    signal(sig, SIG_DFL);
    world_fail("signal %d", sig);
}

/* Only one thread runs, so there is one heap; its pages are large, or to have
 * them took a third of the time of a seed. */
static void *volatile unused;

static void prepare_heap(void)
{
    mallopt(M_ARENA_MAX, 1);
    mallopt(M_MMAP_THRESHOLD, HEAP);
    mallopt(M_TRIM_THRESHOLD, HEAP);
    mallopt(M_TOP_PAD, HEAP);
    /* What lies before the first large page is left alone. */
    unused = malloc(HUGE_PAGE);
    uintptr_t end = (uintptr_t)sbrk(0), at = end - HEAP;
    at += HUGE_PAGE - at % HUGE_PAGE;
    madvise((void *)at, end - at, MADV_HUGEPAGE);
}

void world_begin(uint64_t seed, int trace, int by_kernel)
{
    prepare_heap();
    signal(SIGABRT, on_signal);
    signal(SIGSEGV, on_signal);
    the_seed = seed;
    random_state = seed * 0x2545f4914f6cdd1du + 1;
    tracing = trace;
    self = 0;
    thread_count = live_count = 1;
    threads[0] = (struct thread){.state = RUNNABLE,
                                 .host = WORLD_OPERATOR,
                                 .name = "operator",
                                 .where = "",
                                 .body = baton_begin(!by_kernel),
                                 .priority = UINT64_MAX >> 5};
    static const unsigned int sticky[] = {1, 2, 4, 16, 64};
    stickiness = sticky[world_below(5)];
    by_priority = world_chance(3);
}

void world_calm(void)
{
    stickiness = 64;
    by_priority = 0;
}
