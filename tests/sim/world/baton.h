/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The baton that the threads of a world hand on.
 *
 * A body is a real thread: pthread_create made its stack and its thread-local
 * storage.  Only the one with the baton runs.  There are two ways to hand it
 * on, and a seed runs the same in both, to the last point (world --twice):
 *
 *   by the kernel  each thread waits on a futex for its turn; two system calls
 *                  and a change of tasks each time;
 *   by hand        (x86-64 where FSGSBASE works) one task of the kernel goes
 *                  from stack to stack: it saves the registers that a call
 *                  keeps, and takes the other's stack and the base of its
 *                  thread-local storage.  Every other task sleeps for good,
 *                  with all signals blocked.  A hundred times as fast.
 *
 * Bodies that are done are used again.  One world a process; the baton guards
 * what is here.
 */
#ifndef REMUS_WORLD_BATON_H
#define REMUS_WORLD_BATON_H

#include <stdint.h>

struct body {
    void *sp;            /* by hand: its stack while another runs */
    uint64_t base;       /* by hand: of its thread-local storage */
    _Atomic uint32_t go; /* by the kernel: it has the baton */
    int parked;          /* by hand: its task sleeps */
    int thread;          /* what it runs */
    struct body *next;   /* among those that are free */
};

/* The calling thread has the baton; the result is its body. */
struct body *baton_begin(int by_hand);
/* Can it go by hand here? */
int baton_has_hand(void);

/* A body that runs main(thread) once it has the baton.  NULL: no memory. */
struct body *baton_body(int thread, void (*main)(int thread));
/* Hand it on; returns when `from` has it again. */
void baton_give(struct body *from, struct body *to);
/* As the last thing that `from` runs: it is free.  Returns with a new thread
 * for it to run. */
void baton_done(struct body *from, struct body *to);

#endif
