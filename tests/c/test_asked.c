/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A process took ioctl 20s and is gone; the next one goes on with its open
 * files, which are all that it left.  What their ioctl 30 says is what the
 * backup has.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "pair.h"

#define SIZE (256u << 10)
#define NO_ANSWER 1

static int alive(void *opaque)
{
    (void)opaque;
    return 1;
}

static void is_answered(void *opaque, int result)
{
    atomic_store((_Atomic int *)opaque, result);
}

static int ended(_Atomic int *result)
{
    for (int i = 0; i < 20000 && atomic_load(result) == NO_ANSWER; i++)
        usleep(1000);
    return atomic_load(result);
}

/* Ioctl 30 begins: its answer, or NO_ANSWER yet. */
static int begin_30(struct pair *t, struct remus_ioctl_file *f,
                    _Atomic int *result)
{
    atomic_store(result, NO_ANSWER);
    int rc = remus_primary_ioctl_wait(t->p, f, -1, remus_primary_wait_id(t->p),
                                      alive, is_answered, result);
    if (rc != REMUS_PARKED)
        atomic_store(result, rc);
    return atomic_load(result);
}

static int wait_30(struct pair *t, struct remus_ioctl_file *f)
{
    _Atomic int result;
    begin_30(t, f, &result);
    return ended(&result);
}

static int send_20(struct pair *t, struct remus_ioctl_file *f)
{
    return remus_primary_ioctl_send(t->p, f, f->unique + 2, 0);
}

static void begin(struct pair *t, enum remus_on_loss on_loss,
                  struct remus_ioctl_file *f, int count)
{
    memset(f, 0, (size_t)count * sizeof *f);
    for (int i = 0; i < count; i++)
        memset(f[i].session, 7, sizeof f[i].session);
    pair_make(t, SIZE, SIZE);
    t->on_loss = on_loss;
    pair_open_backup(t, NULL);
    pair_open_primary(t, NULL);
    CHECK(remus_primary_pwrite(t->p, 0, "some of it", 10, 4096));
}

/* All that the process before had is these files. */
static void next_process(struct pair *t, struct remus_ioctl_file *f, int count)
{
    remus_primary_close(t->p);
    t->continues = 1;
    pair_start_primary(t, NULL);
    for (int i = 0; i < count; i++)
        remus_primary_ioctl_adopt(t->p, &f[i]);
}

static void backup_ends(struct pair *t)
{
    remus_backup_close(t->b);
    t->b = NULL;
}

static uint64_t held(struct pair *t)
{
    struct remus_status s = REMUS_INIT(remus_status);
    CHECK(remus_backup_status(t->b, &s));
    return s.prepared_epoch;
}

static void until_held(struct pair *t, uint64_t epoch)
{
    for (int i = 0; i < 20000 && held(t) < epoch; i++)
        usleep(1000);
    EXPECT(held(t) == epoch);
}

/* A checkpoint through the nodes, once there is a connection. */
static void checkpoint(struct pair *t, struct remus_ioctl_file *f)
{
    int rc = -EPROTO;
    for (int i = 0; i < 20000 && rc; i++) {
        rc = send_20(t, f);
        if (rc >= 0)
            rc = wait_30(t, f);
        if (rc)
            usleep(1000);
    }
    EXPECT(rc == 0);
}

static void what_the_backup_has_is_safe(void)
{
    struct pair t;
    struct remus_ioctl_file f[3];
    begin(&t, REMUS_ON_LOSS_CONTINUE, f, 3);
    f[2].session[0] = 8; /* another process's, which took the one before */
    EXPECT(send_20(&t, &f[2]) == 0);
    CHECK(remus_primary_pwrite(t.p, 0, "more", 4, 0));
    EXPECT(send_20(&t, &f[0]) == 0 && send_20(&t, &f[1]) == 0);
    uint64_t epoch = f[0].joined;
    EXPECT(f[1].joined == epoch && f[2].joined == epoch - 1);
    until_held(&t, epoch);
    /* Two processes in a row: the first did not even get as far as a hello. */
    next_process(&t, f, 3);
    next_process(&t, f, 3);
    _Atomic int result;
    EXPECT(begin_30(&t, &f[0], &result) == NO_ANSWER);
    usleep(50000); /* nothing is asked before all files are known */
    EXPECT(atomic_load(&result) == NO_ANSWER);
    remus_primary_ioctl_adopted(t.p);
    EXPECT(ended(&result) == 0);
    EXPECT(wait_30(&t, &f[1]) == 0); /* later, of the same */
    EXPECT(wait_30(&t, &f[2]) == -EPROTO);
    EXPECT(held(&t) == epoch);
    /* The next 20 says that it is complete. */
    checkpoint(&t, &f[0]);
    struct remus_status s = REMUS_INIT(remus_status);
    CHECK(remus_backup_status(t.b, &s));
    EXPECT(s.committed_epoch == epoch);
    pair_prove_and_close(&t, f[0].joined);
}

static void what_it_has_not_is_not(void)
{
    struct pair t;
    struct remus_ioctl_file f[2];
    begin(&t, REMUS_ON_LOSS_CONTINUE, f, 2);
    checkpoint(&t, &f[0]);
    uint64_t heard = f[0].joined;
    backup_ends(&t);
    EXPECT(send_20(&t, &f[1]) >= 0 || f[1].failed);
    next_process(&t, f, 2);
    remus_primary_ioctl_adopted(t.p);
    EXPECT(wait_30(&t, &f[0]) == 0); /* it had heard */
    EXPECT(wait_30(&t, &f[1]) == -EPROTO);
    pair_open_backup(&t, NULL);
    EXPECT(wait_30(&t, &f[1]) == -EPROTO);
    EXPECT(held(&t) == heard);
    checkpoint(&t, &f[1]);
    pair_prove_and_close(&t, f[1].joined);
}

/* Its barrier never left this host. */
static void it_never_arrived(void)
{
    struct pair t;
    struct remus_ioctl_file f;
    begin(&t, REMUS_ON_LOSS_CONTINUE, &f, 1);
    checkpoint(&t, &f);
    f.number++;
    f.joined++;
    next_process(&t, &f, 1);
    remus_primary_ioctl_adopted(t.p);
    EXPECT(wait_30(&t, &f) == -EPROTO);
    EXPECT(wait_30(&t, &f) == -EPROTO);
    checkpoint(&t, &f);
    pair_prove_and_close(&t, f.joined);
}

/* A barrier that the backup never had, under a number that it does not know:
 * for as long as nobody answers it is waited for. */
static void nobody_answers(enum remus_on_loss on_loss)
{
    struct pair t;
    struct remus_ioctl_file f;
    begin(&t, on_loss, &f, 1);
    checkpoint(&t, &f);
    backup_ends(&t);
    f.number++;
    f.joined++;
    next_process(&t, &f, 1);
    remus_primary_ioctl_adopted(t.p);
    _Atomic int result;
    EXPECT(begin_30(&t, &f, &result) == NO_ANSWER);
    if (on_loss == REMUS_ON_LOSS_CONTINUE) {
        EXPECT(ended(&result) == -EPROTO); /* loss is established */
        pair_open_backup(&t, NULL);
    } else {
        usleep(1500000);
        EXPECT(atomic_load(&result) == NO_ANSWER);
        /* Its process lives: the barrier is taken with the number that it
         * had, once it is known that it is not there. */
        uint64_t number = f.number;
        pair_open_backup(&t, NULL);
        EXPECT(ended(&result) == 0);
        EXPECT(f.number == number && !f.failed && f.joined == f.heard);
    }
    checkpoint(&t, &f);
    pair_prove_and_close(&t, f.joined);
}

/* The copy takes the place of all that the backup had. */
static void a_copy_follows(void)
{
    struct pair t;
    struct remus_ioctl_file f;
    begin(&t, REMUS_ON_LOSS_CONTINUE, &f, 1);
    EXPECT(send_20(&t, &f) == 0);
    until_held(&t, f.joined);
    backup_ends(&t);
    char command[256];
    snprintf(command, sizeof command, "rm -r %s/*", t.state[1]);
    EXPECT(system(command) == 0);
    pair_open_backup(&t, NULL);
    next_process(&t, &f, 1);
    remus_primary_ioctl_adopted(t.p);
    EXPECT(wait_30(&t, &f) == -EPROTO);
    checkpoint(&t, &f);
    pair_prove_and_close(&t, f.joined);
}

/* It ended in the middle of a 20: done again, that has failed, and has one
 * number. */
static void a_20_done_again(void)
{
    struct pair t;
    struct remus_ioctl_file f;
    begin(&t, REMUS_ON_LOSS_CONTINUE, &f, 1);
    checkpoint(&t, &f);
    uint64_t number = f.number;
    EXPECT(send_20(&t, &f) >= 0);
    f.answered = 0; /* ... before it was stored */
    next_process(&t, &f, 1);
    remus_primary_ioctl_adopted(t.p);
    for (int i = 0; i < 2; i++) {
        EXPECT(remus_primary_ioctl_send(t.p, &f, f.unique, 0) == -EPROTO);
        EXPECT(f.number == number + 1);
        EXPECT(wait_30(&t, &f) == -EPROTO);
    }
    /* ... and behind it: it gets the same answer, and no second barrier. */
    checkpoint(&t, &f);
    EXPECT(send_20(&t, &f) >= 0);
    number = f.number;
    int result = f.result;
    uint64_t joined = f.joined;
    until_held(&t, joined);
    next_process(&t, &f, 1);
    remus_primary_ioctl_adopted(t.p);
    EXPECT(remus_primary_ioctl_send(t.p, &f, f.unique, 0) == result);
    EXPECT(f.number == number);
    EXPECT(wait_30(&t, &f) == 0);
    EXPECT(held(&t) == joined);
    checkpoint(&t, &f);
    pair_prove_and_close(&t, f.joined);
}

/* It ends while a 30 waits for the answer. */
static void the_primary_ends(void)
{
    struct pair t;
    struct remus_ioctl_file f;
    begin(&t, REMUS_ON_LOSS_CONTINUE, &f, 1);
    EXPECT(send_20(&t, &f) == 0);
    until_held(&t, f.joined);
    next_process(&t, &f, 1);
    _Atomic int result;
    EXPECT(begin_30(&t, &f, &result) == NO_ANSWER);
    remus_primary_close(t.p);
    EXPECT(ended(&result) == -EPROTO);
    t.continues = 0;
    pair_start_primary(&t, NULL);
    pair_prove_and_close(&t, pair_next_checkpoint(&t));
}

/* There is no primary: what was joined has failed, and so has the next. */
static void nowhere(void)
{
    struct remus_ioctl_file f = {
        .number = 3, .unique = 9, .before = 2, .joined = 5, .attached = 1};
    remus_ioctl_adopt_nowhere(&f);
    EXPECT(f.failed && !f.joined && !f.attached && f.number == 3);
    EXPECT(remus_ioctl_send_nowhere(&f, 9) == -EPROTO && f.number == 3);
    EXPECT(remus_ioctl_send_nowhere(&f, 11) == -EPROTO && f.number == 4);
}

int main(void)
{
    what_the_backup_has_is_safe();
    what_it_has_not_is_not();
    it_never_arrived();
    nobody_answers(REMUS_ON_LOSS_CONTINUE);
    nobody_answers(REMUS_ON_LOSS_HOLD);
    a_copy_follows();
    a_20_done_again();
    the_primary_ends();
    nowhere();
    return 0;
}
