/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The baton; see baton.h. */
#include "baton.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STACK (256u * 1024) /* bytes, of a thread */

int __real_pthread_create(pthread_t *, const pthread_attr_t *,
                          void *(*)(void *), void *);
int __real_sched_yield(void);

static int by_hand;
static struct body first;
static struct body *free_bodies;
static void (*run)(int thread);

/* ---- by hand ------------------------------------------------------------ */

#ifdef __x86_64__

/* from->sp, to->sp, to->base: what a call keeps goes onto the stack. */
void baton_switch(void **from, void *to, uint64_t base);
/* Saves the registers in *sp, says so in *parked, and sleeps for ever: the
 * task touches its stack no more.  Returns in the task that has the baton. */
void baton_park(void **sp, int *parked);

__asm__(".text\n"
        ".type baton_switch, @function\n"
        "baton_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n"
        "    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    wrfsbase %rdx\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n"
        "    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size baton_switch, . - baton_switch\n"
        ".type baton_park, @function\n"
        "baton_park:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n"
        "    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movl $1, (%rsi)\n"
        "1:  movl $34, %eax\n" /* pause */
        "    syscall\n"
        "    jmp 1b\n"
        ".size baton_park, . - baton_park\n");

static uint64_t this_base(void)
{
    uint64_t base;
    __asm__ volatile("rdfsbase %0" : "=r"(base));
    return base;
}

#define HWCAP2_FSGSBASE 2u /* the kernel allows it */

int baton_has_hand(void)
{
    return (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE) != 0;
}

#else

static void baton_switch(void **from, void *to, uint64_t base)
{
    (void)from, (void)to, (void)base;
}

static void baton_park(void **sp, int *parked)
{
    (void)sp, (void)parked;
}

static uint64_t this_base(void)
{
    return 0;
}

int baton_has_hand(void)
{
    return 0;
}

#endif

/* ---- by the kernel -------------------------------------------------------- */

static void sleep_on(struct body *b)
{
    while (!b->go)
        syscall(SYS_futex, &b->go, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    b->go = 0;
}

static void wake(struct body *b)
{
    b->go = 1;
    syscall(SYS_futex, &b->go, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* ---- bodies ---------------------------------------------------------------- */

void baton_give(struct body *from, struct body *to)
{
    if (by_hand) {
        baton_switch(&from->sp, to->sp, to->base);
        return;
    }
    wake(to);
    sleep_on(from);
}

static void *body_main(void *arg)
{
    struct body *me = arg;
    if (by_hand) {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, NULL);
        me->base = this_base();
        baton_park(&me->sp, &me->parked);
    } else {
        sleep_on(me);
    }
    for (;;)
        run(me->thread);
    return NULL;
}

static struct body *new_body(void)
{
    pthread_t real;
    pthread_attr_t attr;
    struct body *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    int err = __real_pthread_create(&real, &attr, body_main, b);
    pthread_attr_destroy(&attr);
    if (err) {
        free(b);
        return NULL;
    }
    while (by_hand && !__atomic_load_n(&b->parked, __ATOMIC_ACQUIRE))
        __real_sched_yield();
    return b;
}

struct body *baton_body(int thread, void (*main)(int thread))
{
    struct body *b = free_bodies;
    if (b)
        free_bodies = b->next;
    else
        b = new_body();
    if (b)
        b->thread = thread;
    run = main;
    return b;
}

void baton_done(struct body *from, struct body *to)
{
    from->next = free_bodies;
    free_bodies = from;
    baton_give(from, to);
}

struct body *baton_begin(int hand)
{
    by_hand = hand && baton_has_hand();
    first = (struct body){.base = by_hand ? this_base() : 0};
    return &first;
}
