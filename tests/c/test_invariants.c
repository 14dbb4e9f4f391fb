/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What holds of a primary whenever its lock is free (primary/invariants.c):
 * each of these is broken once, in a child that has to die of it.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "primary/state.h"
#include "expect.h"

static void connected(remus_primary *p)
{
    p->fd = 0;
    p->link.link = REMUS_LINK_CATCHING_UP;
    p->c.plan = REMUS_PLAN_CATCH_UP;
    p->c.first = p->open_epoch;
    p->c.credit = 100;
    p->c.spent = 100;
}

static void no_socket(remus_primary *p)
{
    p->fd = -1;
}

static void stopped(remus_primary *p)
{
    p->life = REMUS_LIFE_STOPPED;
}

static void overspent(remus_primary *p)
{
    p->c.spent++;
}

static void a_plan_without_a_connection(remus_primary *p)
{
    p->c.plan = REMUS_PLAN_WAIT;
}

static void compares_and_streams(remus_primary *p)
{
    p->c.plan = REMUS_PLAN_COMPARE;
}

static void fenced_and_writing(remus_primary *p)
{
    p->authority = REMUS_AUTHORITY_YIELDING;
}

static void split_and_connected(remus_primary *p)
{
    p->authority = REMUS_AUTHORITY_SPLIT;
}

static void asked_nothing(remus_primary *p)
{
    p->authority = REMUS_AUTHORITY_ASKED;
}

static void takes_writes_of_a_generation_it_does_not_know(remus_primary *p)
{
    p->alone.generation = REMUS_GENERATION_OWN;
}

static void failed_without_an_error(remus_primary *p)
{
    p->alone.generation = REMUS_GENERATION_FAILED;
}

static void acked_without_a_barrier(remus_primary *p)
{
    p->acked = p->barrier_epoch + 1;
}

static void nobody_hears_of_room(remus_primary *p)
{
    p->parked_room = 1;
}

static void a_change_that_nobody_was_told(remus_primary *p)
{
    p->events.state = REMUS_STATE_CONNECTING;
}

static void a_link_that_nobody_was_told(remus_primary *p)
{
    p->events.up = 0;
}

static void (*const broken[])(remus_primary *p) = {
    no_socket,
    stopped,
    overspent,
    a_plan_without_a_connection,
    compares_and_streams,
    fenced_and_writing,
    split_and_connected,
    asked_nothing,
    takes_writes_of_a_generation_it_does_not_know,
    failed_without_an_error,
    acked_without_a_barrier,
    nobody_hears_of_room,
    a_change_that_nobody_was_told,
    a_link_that_nobody_was_told,
};

/* How a child ends that looks at it. */
static int looks(void (*breaks)(remus_primary *p))
{
    static remus_primary p;
    int status;
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (!pid) {
        EXPECT(freopen("/dev/null", "w", stderr));
        p.open_epoch = 3;
        p.barrier_epoch = p.acked = 2;
        p.first_epoch = 1;
        connected(&p);
        p.events.up = 1;
        p.events.state = remus_primary_state(&p);
        int was = p.events.state;
        if (breaks)
            breaks(&p);
        /* What is broken must be noticed by itself, not by that. */
        if (p.events.state == was)
            p.events.state = remus_primary_state(&p);
        remus_primary_invariants(&p);
        _exit(0);
    }
    EXPECT(waitpid(pid, &status, 0) == pid);
    return status;
}

int main(void)
{
    size_t n = sizeof broken / sizeof *broken;
    EXPECT(looks(NULL) == 0);
    for (size_t i = 0; i < n; i++) {
        int status = looks(broken[i]);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT) {
            fprintf(stderr, "number %zu is not noticed\n", i);
            return 1;
        }
    }
    printf("%zu broken ones are noticed\n", n);
    return 0;
}
