/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Every public call on a primary and its backup beside every other one, on
 * the same handles at the same time: for the sanitizers, and for locks that
 * two of them take in different orders.  What ends a handle is not among
 * them: that one has to be the last.
 *
 * Each may fail as its declaration says; none may hang, and at the end both
 * sides still follow each other and hold the same bytes.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "pair.h"

#define SIZE (256u << 10)
#define ROUNDS 4
#define SHORT_MS 2
#define HANG_S 60

static struct pair t;
static atomic_ullong newest; /* epoch that a postsuspend gave */

/* ---- the calls ------------------------------------------------------------- */

static void p_wait_protected(void)
{
    (void)remus_primary_wait_protected(t.p, SHORT_MS);
}

static void p_pread(void)
{
    char buf[4096];
    CHECK(remus_primary_pread(t.p, 0, buf, sizeof buf, 512));
}

static void p_pwrite(void)
{
    char buf[5000];
    memset(buf, 'w', sizeof buf);
    CHECK(remus_primary_pwrite(t.p, 1, buf, sizeof buf, 1000));
}

static void p_preadv(void)
{
    char a[512], b[700];
    struct iovec v[] = {{a, sizeof a}, {b, sizeof b}};
    CHECK(remus_primary_preadv(t.p, 0, v, 2, 900));
}

static void p_pwritev(void)
{
    char a[512], b[700];
    memset(a, 'a', sizeof a);
    memset(b, 'b', sizeof b);
    struct iovec v[] = {{a, sizeof a}, {b, sizeof b}};
    CHECK(remus_primary_pwritev(t.p, 1, v, 2, 900));
}

static void p_log(void)
{
    struct remus_log_entry list[4] = {REMUS_INIT(remus_log_entry)};
    uint64_t next, lost;
    EXPECT(remus_primary_log(t.p, 0, list, 4, &next, &lost) >= 0);
}

static void b_log(void)
{
    struct remus_log_entry list[4] = {REMUS_INIT(remus_log_entry)};
    uint64_t next, lost;
    EXPECT(remus_backup_log(t.b, 0, list, 4, &next, &lost) >= 0);
}

static void p_discard(void)
{
    CHECK(remus_primary_discard(t.p, 0, 8192, 20000));
}

static void p_write_zeroes(void)
{
    CHECK(remus_primary_write_zeroes(t.p, 1, 100, 9000));
}

static void p_flush(void)
{
    CHECK(remus_primary_flush(t.p, 0));
}

static void p_size(void)
{
    EXPECT(remus_primary_size(t.p, 1) == SIZE);
}

static void p_postsuspend(void)
{
    uint64_t epoch;
    if (remus_primary_postsuspend(t.p, "tag", 3, &epoch) >= 0)
        atomic_store(&newest, epoch);
}

static void p_preresume(void)
{
    (void)remus_primary_preresume(t.p, atomic_load(&newest), SHORT_MS);
}

static void p_commit(void)
{
    (void)remus_primary_commit(t.p, atomic_load(&newest));
}

static void p_session_begin(void)
{
    CHECK(remus_primary_session_begin(t.p));
}

static void p_reload_keys(void)
{
    CHECK(remus_primary_reload_keys(t.p));
}

static void b_reload_keys(void)
{
    CHECK(remus_backup_reload_keys(t.b));
}

static void p_session_end(void)
{
    CHECK(remus_primary_session_end(t.p));
}

static void p_writer(void)
{
    CHECK(remus_primary_writer_opens(t.p));
    remus_primary_writer_closes(t.p);
}

static void p_resume(void)
{
    CHECK(remus_primary_resume(t.p));
}

static void p_go_alone(void)
{
    CHECK(remus_primary_go_alone(t.p));
}

static void p_refuse_alone(void)
{
    CHECK(remus_primary_refuse_alone(t.p));
}

static void p_verify(void)
{
    struct remus_verify v = REMUS_INIT(remus_verify);
    (void)remus_primary_verify(t.p, 1, 0, &v);
}

static void p_verify_status(void)
{
    struct remus_verify v = REMUS_INIT(remus_verify);
    remus_primary_verify_status(t.p, &v);
}

static void p_verify_cancel(void)
{
    remus_primary_verify_cancel(t.p);
}

static void p_status(void)
{
    struct remus_status s = REMUS_INIT(remus_status);
    char text[4096];
    CHECK(remus_primary_status(t.p, &s));
    CHECK(remus_status_format(&s, 1, text, sizeof text));
}

static void p_name_split(void)
{
    CHECK(remus_primary_name_split(t.p, "a test says so"));
}

static void p_epochs(void)
{
    struct remus_epoch_sample sample;
    EXPECT(remus_primary_epochs(t.p));
    (void)remus_primary_epoch(t.p, atomic_load(&newest), &sample);
}

static void b_serve(void)
{
    EXPECT(remus_backup_serve(t.b, t.address, 0, 0) == -EALREADY);
}

static void b_commit(void)
{
    (void)remus_backup_commit(t.b, atomic_load(&newest));
}

static void b_pin(void)
{
    (void)remus_backup_pin(t.b, atomic_load(&newest));
    CHECK(remus_backup_pin(t.b, 0));
}

/* A writer is at work all the time, so the answer is no. */
static void b_ask(void)
{
    EXPECT(remus_backup_ask(t.b, 0) == -EBUSY);
}

/* Of what is not there: nothing is changed. */
static void b_promote(void)
{
    uint64_t m;
    EXPECT(remus_backup_promote(t.b, REMUS_PROMOTE_EPOCH, UINT64_MAX / 4, NULL,
                                0, 0, &m) == -EINVAL);
}

static void b_target(void)
{
    uint64_t m;
    (void)remus_backup_target(t.b, REMUS_PROMOTE_DEFAULT, 0, NULL, 0, &m);
}

static void b_checkpoints(void)
{
    struct remus_checkpoint list[4] = {REMUS_INIT(remus_checkpoint)};
    CHECK(remus_backup_checkpoints(t.b, list, 4));
}

static void b_status(void)
{
    struct remus_status s = REMUS_INIT(remus_status);
    CHECK(remus_backup_status(t.b, &s));
}

static void b_refusals(void)
{
    struct remus_refusal list[4] = {REMUS_INIT(remus_refusal)};
    CHECK(remus_backup_refusals(t.b, list, 4));
}

#define CALL(name)                                                            \
    {                                                                         \
#name, name                                                           \
    }

static const struct call {
    const char *name;
    void (*run)(void);
} calls[] = {
    CALL(p_wait_protected),
    CALL(p_pread),
    CALL(p_pwrite),
    CALL(p_preadv),
    CALL(p_pwritev),
    CALL(p_log),
    CALL(b_log),
    CALL(b_reload_keys),
    CALL(p_discard),
    CALL(p_write_zeroes),
    CALL(p_flush),
    CALL(p_size),
    CALL(p_postsuspend),
    CALL(p_preresume),
    CALL(p_commit),
    CALL(p_session_begin),
    CALL(p_session_end),
    CALL(p_reload_keys),
    CALL(p_writer),
    CALL(p_resume),
    CALL(p_go_alone),
    CALL(p_refuse_alone),
    CALL(p_verify),
    CALL(p_verify_status),
    CALL(p_verify_cancel),
    CALL(p_status),
    CALL(p_name_split),
    CALL(p_epochs),
    CALL(b_serve),
    CALL(b_commit),
    CALL(b_pin),
    CALL(b_ask),
    CALL(b_promote),
    CALL(b_target),
    CALL(b_checkpoints),
    CALL(b_status),
    CALL(b_refusals),
};
#define CALLS (sizeof calls / sizeof *calls)

/* ---- two at a time ---------------------------------------------------------- */

static pthread_barrier_t both;
static const struct call *second;
static atomic_int over;

static void *second_main(void *arg)
{
    (void)arg;
    for (;;) {
        pthread_barrier_wait(&both);
        if (atomic_load(&over))
            return NULL;
        for (int i = 0; i < ROUNDS; i++)
            second->run();
        pthread_barrier_wait(&both);
    }
}

/* Names the pair that hangs. */
static atomic_uint at, moves;

static void *watch_main(void *arg)
{
    (void)arg;
    unsigned int seen = 0, still = 0;
    while (!atomic_load(&over)) {
        usleep(100000);
        unsigned int now = atomic_load(&moves);
        still = now == seen ? still + 1 : 0;
        seen = now;
        if (still > HANG_S * 10) {
            unsigned int pair = atomic_load(&at);
            fprintf(stderr, "%s beside %s hangs\n", calls[pair / CALLS].name,
                    calls[pair % CALLS].name);
            abort();
        }
    }
    return NULL;
}

static void beside(size_t i, size_t j)
{
    second = &calls[j];
    atomic_store(&at, (unsigned int)(i * CALLS + j));
    atomic_fetch_add(&moves, 1);
    pthread_barrier_wait(&both);
    for (int k = 0; k < ROUNDS; k++)
        calls[i].run();
    pthread_barrier_wait(&both);
}

int main(void)
{
    pthread_t thread, watch;
    pair_open(&t, SIZE, SIZE, NULL);
    CHECK(remus_primary_writer_opens(t.p));
    atomic_store(&newest, pair_checkpoint(&t));
    pthread_barrier_init(&both, NULL, 2);
    EXPECT(!pthread_create(&thread, NULL, second_main, NULL));
    EXPECT(!pthread_create(&watch, NULL, watch_main, NULL));
    for (size_t i = 0; i < CALLS; i++) {
        for (size_t j = i; j < CALLS; j++)
            beside(i, j);
        /* Epochs that are never committed would fill the journal. */
        CHECK(remus_primary_wait_protected(t.p, 20000));
        atomic_store(&newest, pair_next_checkpoint(&t));
    }
    atomic_store(&over, 1);
    pthread_barrier_wait(&both);
    pthread_join(thread, NULL);
    pthread_join(watch, NULL);
    remus_primary_writer_closes(t.p);
    pair_prove_and_close(&t, pair_checkpoint(&t));
    return 0;
}
