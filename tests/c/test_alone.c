/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The backup is lost and the new generation, without which no write may pass,
 * can't be stored: the guest is told and the reason says so; once the disk is
 * well again writes pass, in this outage and in later ones.
 */
#include <errno.h>
#include <stdatomic.h>
#include <time.h>

#include "pair.h"

#define SIZE (256u << 10)

static remus_io table;
static remus_io *real;
static atomic_int fail_state; /* 1: nobody can store primary.state */

static int failing_open(remus_io *io, const char *path, int flags)
{
    (void)io;
    if (atomic_load(&fail_state) && strstr(path, "/primary.state"))
        return -ENOSPC;
    return real->open(real, path, flags);
}

static void lose(struct pair *t)
{
    struct remus_status s = REMUS_INIT(remus_status);
    remus_backup_close(t->b);
    do
        CHECK(remus_primary_status(t->p, &s));
    while (s.connected);
}

/* One that leaves no session open, so that the engine ends catch-ups. */
static uint64_t checkpoint(struct pair *t)
{
    uint64_t epoch = pair_checkpoint(t);
    CHECK(remus_primary_session_end(t->p));
    return epoch;
}

/* Until it succeeds, or 20 s are over. */
static void write_at_last(struct pair *t, const char *data, uint64_t at)
{
    for (int i = 0; i < 20000; i++) {
        if (remus_primary_pwrite(t->p, 0, data, strlen(data), at) == 0)
            return;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    EXPECT(!"a write passes again");
}

int main(void)
{
    struct pair t;
    struct remus_status s = REMUS_INIT(remus_status);
    real = remus_io_system();
    table = *real;
    table.open = failing_open;
    pair_open(&t, SIZE, SIZE, &table);
    CHECK(remus_primary_pwrite(t.p, 0, "protected", 9, 0));
    checkpoint(&t);
    for (int outage = 0; outage < 2; outage++) {
        lose(&t);
        atomic_store(&fail_state, 1);
        EXPECT(remus_primary_pwrite(t.p, 0, "refused", 7, 4096) == -ENOSPC);
        CHECK(remus_primary_status(t.p, &s));
        EXPECT(s.state == REMUS_STATE_UNPROTECTED);
        EXPECT(strstr(s.reason, "no write passes"));
        EXPECT(strstr(s.reason, "No space left"));
        atomic_store(&fail_state, 0);
        write_at_last(&t, "alone", 8192);
        CHECK(remus_primary_status(t.p, &s));
        EXPECT(!strstr(s.reason, "no write passes"));
        pair_open_backup(&t, NULL);
        CHECK(remus_primary_wait_protected(t.p, 20000));
        CHECK(remus_primary_pwrite(t.p, 0, "both", 4, 16384));
        checkpoint(&t);
    }
    /* It fails, nobody writes before the backup is back: no trace is left. */
    lose(&t);
    atomic_store(&fail_state, 1);
    EXPECT(remus_primary_pwrite(t.p, 0, "refused", 7, 4096) == -ENOSPC);
    atomic_store(&fail_state, 0);
    pair_open_backup(&t, NULL);
    CHECK(remus_primary_wait_protected(t.p, 20000));
    lose(&t);
    CHECK(remus_primary_pwrite(t.p, 0, "at once", 7, 12288));
    pair_open_backup(&t, NULL);
    CHECK(remus_primary_wait_protected(t.p, 20000));
    pair_prove_and_close(&t, checkpoint(&t));
    return 0;
}
