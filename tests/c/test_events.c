/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A toolstack's poll loop: it hears of every change of state and link, and of
 * an ack, with no thread of its own and without asking again and again.
 */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/events.h"
#include "pair.h"

static int readable(int fd, int timeout_ms)
{
    struct pollfd f = {.fd = fd, .events = POLLIN};
    int n = poll(&f, 1, timeout_ms);
    CHECK(n);
    return n;
}

/* ---- no change is missed ------------------------------------------------- */

#define ROUNDS 200000u

static struct remus_events events;
static _Atomic unsigned int newest;

static void *changes(void *arg)
{
    (void)arg;
    for (unsigned int i = 1; i <= ROUNDS; i++) {
        atomic_store(&newest, i);
        remus_events_add(&events,
                         i % 2 ? REMUS_CHANGED_STATE : REMUS_CHANGED_LINK);
    }
    return NULL;
}

/*
 * Who takes the events and then looks has seen the last change, or is woken
 * again: one that was lost would leave this poll for ever.
 */
static void a_change_between_look_and_sleep_wakes(void)
{
    pthread_t thread;
    CHECK(remus_events_open(&events));
    CHECK(-pthread_create(&thread, NULL, changes, NULL));
    unsigned int seen = 0, woken = 0;
    while (seen < ROUNDS) {
        EXPECT(readable(events.fd, 20000));
        woken++;
        (void)remus_events_take(&events);
        unsigned int now = atomic_load(&newest);
        EXPECT(now >= seen);
        seen = now;
    }
    pthread_join(thread, NULL);
    EXPECT(woken <= ROUNDS + 1);
    (void)remus_events_take(&events);
    EXPECT(!readable(events.fd, 0));
    remus_events_close(&events);
}

/* How a child ends whose side goes from one state to another. */
static int goes(int role, int from, int to)
{
    int status;
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (!pid) {
        struct remus_events own = {.fd = -1, .state = from};
        EXPECT(freopen("/dev/null", "w", stderr));
        _exit(remus_events_show(&own, role, to, 0) != (from != to));
    }
    EXPECT(waitpid(pid, &status, 0) == pid);
    return status;
}

/* Whatever is logged or told goes through here. */
static void a_state_that_can_not_follow_ends_a_test(void)
{
    for (int role = REMUS_ROLE_PRIMARY; role <= REMUS_ROLE_BACKUP; role++)
        for (int from = 0; from <= REMUS_STATE_FENCED; from++)
            for (int to = 0; to <= REMUS_STATE_FENCED; to++) {
                int first = role == REMUS_ROLE_BACKUP &&
                            from == REMUS_STATE_CONNECTING;
                int may = first || from == to ||
                          remus_state_follows((enum remus_role)role,
                                              (enum remus_state)from,
                                              (enum remus_state)to);
                int status = goes(role, from, to);
                EXPECT(may ? status == 0
                           : WIFSIGNALED(status) &&
                                 WTERMSIG(status) == SIGABRT);
            }
}

static void state_and_link_are_told(void)
{
    struct pair t;
    pair_open(&t, 1 << 20, 1 << 20, NULL);
    int p = remus_primary_event_fd(t.p), b = remus_backup_event_fd(t.b);
    CHECK(p);
    CHECK(b);
    const int both = REMUS_CHANGED_STATE | REMUS_CHANGED_LINK;
    /* Connected and Protected, each since it was opened. */
    EXPECT(remus_primary_events(t.p) == both);
    /* Checkpoints and writes are no changes. */
    static const unsigned char data[4096] = {1};
    for (int i = 0; i < 20; i++) {
        CHECK(remus_primary_pwrite(t.p, 0, data, sizeof data, 0));
        pair_checkpoint(&t);
    }
    struct remus_status s = REMUS_INIT(remus_status);
    EXPECT(!readable(p, 0) && remus_primary_events(t.p) == 0);
    EXPECT(remus_backup_events(t.b) == both && !readable(b, 0));
    CHECK(remus_backup_status(t.b, &s));
    EXPECT(s.state == REMUS_STATE_PROTECTED && s.connected);

    remus_backup_close(t.b);
    EXPECT(readable(p, 20000));
    EXPECT(remus_primary_events(t.p) & REMUS_CHANGED_LINK);
    CHECK(remus_primary_status(t.p, &s));
    EXPECT(!s.connected && s.state == REMUS_STATE_UNPROTECTED);
    pair_open_backup(&t, NULL);
    b = remus_backup_event_fd(t.b);
    while (s.state != REMUS_STATE_PROTECTED) {
        EXPECT(readable(p, 20000));
        (void)remus_primary_events(t.p);
        CHECK(remus_primary_status(t.p, &s));
        /* A session's next checkpoint completes a catch-up. */
        if (s.state == REMUS_STATE_CATCHING_UP)
            pair_next_checkpoint(&t);
    }
    remus_primary_close(t.p);
    do {
        EXPECT(readable(b, 20000));
        (void)remus_backup_events(t.b);
        CHECK(remus_backup_status(t.b, &s));
    } while (s.connected || s.state != REMUS_STATE_STANDBY);
    remus_backup_close(t.b);
    pair_remove(&t);
}

/* ---- acks ------------------------------------------------------------------ */

static uint64_t barrier(struct pair *t)
{
    uint64_t epoch;
    CHECK(remus_primary_postsuspend(t->p, NULL, 0, &epoch));
    return epoch;
}

static void an_ack_wakes_a_poll_loop(void)
{
    struct pair t;
    pair_open(&t, 1 << 20, 1 << 20, NULL);
    int fd = remus_primary_preresume_fd(t.p);
    CHECK(fd);
    EXPECT(remus_primary_preresume_finish(t.p) == -EBADFD);
    EXPECT(remus_primary_preresume_cancel(t.p) == 1);
    uint64_t epoch = 0;
    for (int i = 0; i < 200; i++) {
        epoch = barrier(&t);
        CHECK(remus_primary_preresume_begin(t.p, epoch, 20000));
        EXPECT(remus_primary_preresume_begin(t.p, epoch, 0) == -EINPROGRESS);
        EXPECT(readable(fd, 20000));
        CHECK(remus_primary_preresume_finish(t.p));
        EXPECT(!readable(fd, 0));
        CHECK(remus_primary_commit(t.p, epoch));
    }
    /* An epoch that was acked long ago; one that never had a barrier. */
    CHECK(remus_primary_preresume_begin(t.p, epoch, 20000));
    EXPECT(readable(fd, 0) && !remus_primary_preresume_finish(t.p));
    CHECK(remus_primary_preresume_begin(t.p, epoch + 5, 20000));
    EXPECT(readable(fd, 0));
    EXPECT(remus_primary_preresume_finish(t.p) == -EINVAL);
    EXPECT(strstr(remus_last_error(), "no barrier was sent for epoch"));
    pair_prove_and_close(&t, epoch);
}

/* Every write of the backup's journal waits while this is set. */
static _Atomic int stalled;
static remus_io *real;

static int slow_fdatasync(remus_io *io, int file)
{
    (void)io;
    while (atomic_load(&stalled))
        usleep(1000);
    return real->fdatasync(real, file);
}

static void a_wait_ends_by_time_cancel_or_loss(void)
{
    struct pair t;
    real = remus_io_system();
    remus_io slow = *real;
    slow.fdatasync = slow_fdatasync;
    pair_make(&t, 1 << 20, 1 << 20);
    pair_open_backup(&t, &slow);
    pair_open_primary(&t, NULL);
    uint64_t epoch = pair_checkpoint(&t);
    int fd = remus_primary_preresume_fd(t.p);

    atomic_store(&stalled, 1);
    epoch = barrier(&t);
    CHECK(remus_primary_preresume_begin(t.p, epoch, 20));
    EXPECT(remus_primary_preresume_finish(t.p) == -EAGAIN);
    EXPECT(readable(fd, 20000));
    EXPECT(remus_primary_preresume_finish(t.p) == -ETIMEDOUT);
    CHECK(remus_primary_preresume_begin(t.p, epoch, -1));
    EXPECT(!readable(fd, 20));
    EXPECT(remus_primary_preresume_cancel(t.p) == 0 && readable(fd, 0));
    EXPECT(remus_primary_preresume_finish(t.p) == -ECANCELED);
    /* The same epoch again, whose ack comes late. */
    CHECK(remus_primary_preresume_begin(t.p, epoch, -1));
    atomic_store(&stalled, 0);
    EXPECT(readable(fd, 20000));
    CHECK(remus_primary_preresume_finish(t.p));
    CHECK(remus_primary_commit(t.p, epoch));

    /* A journal that stalls for loss_ms is a loss, under the wait. */
    atomic_store(&stalled, 1);
    uint64_t never = barrier(&t);
    CHECK(remus_primary_preresume_begin(t.p, never, -1));
    EXPECT(!readable(fd, 20));
    EXPECT(readable(fd, 20000));
    EXPECT(remus_primary_preresume_finish(t.p) == -EPROTO);
    EXPECT(strstr(remus_last_error(), "no ack will come"));
    atomic_store(&stalled, 0);
    /* Closing ends one that nobody finished. */
    (void)remus_primary_preresume_begin(t.p, never + 1, -1);
    remus_primary_close(t.p);
    remus_backup_close(t.b);
    pair_remove(&t);
}

int main(void)
{
    a_change_between_look_and_sleep_wakes();
    a_state_that_can_not_follow_ends_a_test();
    state_and_link_are_told();
    an_ack_wakes_a_poll_loop();
    a_wait_ends_by_time_cancel_or_loss();
    return 0;
}
