/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Guest and toolstack; see guest.h. */
#include "guest.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "checks.h"
#include "devices.h"
#include "oracle.h"
#include "reach.h"
#include "sched.h"
#include "shared.h"
#include "sides.h"

static uint32_t stamp;

/* Is it the guest that the oracle watches? */
static int counts(const struct side *s)
{
    return s->branch == the_branch;
}

/* ---- writes ----------------------------------------------------------------- */

static uint64_t some_length(void)
{
    static const uint64_t edges[] = {1,    511,  512,   513,   4032,  4096,
                                     4095, 8128, 12224, 15936, 16384, 3968};
    switch (world_below(4)) {
    case 0:
        return 1 + world_below(600);
    case 1:
        return 512 * (1 + world_below(16));
    case 2:
        return 4096 * (1 + world_below(4));
    default:
        return edges[world_below(sizeof edges / sizeof *edges)];
    }
}

/* A write failed: what does the disk hold?  (As its guest would read it.) */
static void look_again(struct side *s)
{
    static unsigned char buf[ORACLE_BYTES];
    for (unsigned int v = 0; v < program.volumes; v++) {
        remus_sim_read(s->sim, volume_paths[v], buf, program.sizes[v], 0);
        oracle_found(v, buf);
    }
    oracle_found_all();
}

static int write_once(struct reach *r, unsigned char *data)
{
    struct side *s = r->s;
    unsigned int v = (unsigned int)world_below(program.volumes);
    uint64_t len = some_length(), size = program.sizes[v];
    uint64_t offset = world_below(size - len + 1);
    if (world_chance(2))
        offset = offset / 512 * 512;
    if (world_chance(3))
        offset %= 8192; /* the same bytes again and again */
    if (program.writers && v == 0 && offset < SHARED_BYTES)
        offset += SHARED_BYTES; /* others write there */
    int zero = world_chance(10), counted = counts(s), err;
    stamp++;
    for (uint64_t i = 0; i < len; i += 8)
        memset(data + i, (unsigned char)(stamp * 31u + i / 8 * 7u + 1), 8);
    if (counted)
        oracle_write(v, offset, zero ? NULL : data, len);
    if (zero)
        err = reach_zero(r, v, offset, len, world_chance(2));
    else
        err = reach_write(r, v, data, len, offset);
    s->answered++;
    if (!counted || !counts(s))
        return err;
    if (err) {
        world_say("a guest's write failed: %d %s", err, remus_last_error());
        look_again(s);
    } else {
        oracle_answered();
    }
    return err;
}

/* They wake at the same moments: what they write is on its way at once. */
static uint64_t beat(void)
{
    return (1 + program.writer_pause_ms) * (uint64_t)MS;
}

/* One write of some sectors, beside those of other threads. */
static int write_shared(struct reach *r, unsigned char *data)
{
    struct side *s = r->s;
    /* About the same place for all of them, for as long as one beat. */
    uint64_t place = world_now() / beat() * 7 % (SHARED_SECTORS - 8);
    unsigned int first = (unsigned int)(place + world_below(3));
    unsigned int count = 1 + (unsigned int)world_below(6);
    size_t len = (size_t)count * SHARED_SECTOR;
    uint64_t offset = (uint64_t)first * SHARED_SECTOR, write = 0;
    int counted = counts(s);
    stamp++;
    for (size_t i = 0; i < len; i += 4)
        memcpy(data + i, &stamp, 4);
    if (counted)
        write = shared_write(first, count, data);
    int err = reach_write(r, 0, data, len, offset);
    if (!counted || !counts(s))
        return err;
    shared_answered(first, count, write);
    if (err) {
        world_say("a write of shared sectors failed: %d", err);
        remus_sim_read(s->sim, volume_paths[0], data, len, offset);
        shared_found(first, count, data);
    }
    return err;
}

static int goes_on(void *on)
{
    const struct side *s = on;
    return !s->suspended || s->stop;
}

static int stands_still(void *on)
{
    const struct side *s = on;
    return !s->writing;
}

int guest_suspend(struct side *s)
{
    if (!program.writers || world_chance(4))
        return 0;
    s->suspended = 1;
    return !world_wait("suspended writers", stands_still, s,
                       world_now() + 100 * (uint64_t)MS);
}

void guest_resume(struct side *s, uint64_t n, int stood_still)
{
    static unsigned char sectors[SHARED_BYTES];
    if (n && stood_still) {
        remus_sim_read(s->sim, volume_paths[0], sectors, sizeof sectors, 0);
        shared_stood_still(n, sectors);
    }
    s->suspended = 0;
}

/* A thread of the guest itself does. */
static void rider_ends(struct side *s)
{
    if (program.node)
        s->riders--;
    else
        s->guests--;
}

static void *sharer_main(void *arg)
{
    struct side *s = arg;
    unsigned char data[SHARED_BYTES];
    struct reach r;
    int writer = reach_open(s, &r) == 0;
    while (writer && !s->stop) {
        world_wait("the guest's suspension", goes_on, s, WORLD_NEVER);
        s->writing++;
        int err = write_shared(&r, data);
        s->writing--;
        if (err == -EROFS)
            break;
        if (err || !world_chance(6))
            pause_for(beat() - world_now() % beat());
    }
    if (writer)
        reach_close(&r);
    rider_ends(s);
    return NULL;
}

static void *guest_main(void *arg)
{
    struct side *s = arg;
    unsigned char data[16384];
    struct reach r;
    int writer = reach_open(s, &r) == 0;
    while (writer && !s->stop) {
        int err = write_once(&r, data);
        if (err == -EROFS)
            break;
        if (err || !world_chance(3))
            pause_for(world_below(program.writer_pause_ms * (uint64_t)MS + 1));
        if (program.node && world_chance(s->reopens ? 2 : 8)) {
            reach_close(&r);
            writer = reach_open(s, &r) == 0;
        }
    }
    if (writer)
        reach_close(&r);
    rider_ends(s);
    return NULL;
}

/* ---- a toolstack that calls --------------------------------------------------- */

int guest_cut_off(const struct side *s, unsigned int branch)
{
    return branch != the_branch || !counts(s);
}

void guest_is_safe(uint64_t n)
{
    if (program.ack == REMUS_ACK_DURABLE || side_up(backup_host))
        oracle_acked(n);
}

static void commit(struct side *s, uint64_t n, unsigned int branch)
{
    if (program.commit_by != REMUS_COMMIT_BY_PRIMARY ||
        (program.late_commits && world_chance(3)))
        return;
    if (!guest_cut_off(s, branch))
        oracle_committed(n);
    uint64_t jumps = world_jumps();
    remus_primary_commit(s->primary, n);
    must_not_wait("commit", jumps);
}

size_t guest_make_tag(char *tag)
{
    static unsigned int count;
    if (!program.tags || world_chance(4))
        return 0;
    memset(tag, 'x', ORACLE_TAG);
    int n = snprintf(tag, ORACLE_TAG, "%u", ++count);
    tag[n] = '-';
    return (size_t)n + 1 + world_below(ORACLE_TAG - (size_t)n);
}

static void checkpoint_by_call(struct side *s)
{
    char tag[ORACLE_TAG];
    size_t tag_len = guest_make_tag(tag);
    int still = guest_suspend(s);
    uint64_t n = 0, from = oracle_answered_state(), jumps = world_jumps();
    unsigned int branch = the_branch;
    int lost = !counts(s);
    int rc = remus_primary_postsuspend(s->primary, tag, tag_len, &n);
    must_not_wait("postsuspend", jumps);
    guest_resume(s, rc < 0 || guest_cut_off(s, branch) ? 0 : n, still);
    if (rc < 0) {
        pause_for(20 * MS);
        return;
    }
    if (!guest_cut_off(s, branch)) {
        oracle_checkpoint(n, from, oracle_begun_state(), ORACLE_CALL);
        oracle_tagged(n, tag, tag_len);
    }
    rc = remus_primary_preresume(s->primary, n, (int64_t)world_below(8000));
    if (rc) {
        world_say("checkpoint %llu: %d %s", (unsigned long long)n, rc,
                  remus_last_error());
        return;
    }
    if (lost)
        world_fail("contract 9: checkpoint %llu of a primary that was failed "
                   "away from is safe",
                   (unsigned long long)n);
    world_say("checkpoint %llu is safe", (unsigned long long)n);
    if (!guest_cut_off(s, branch))
        guest_is_safe(n);
    commit(s, n, branch);
}

/* ---- a toolstack on the volumes' files ------------------------------------------- */

struct waited {
    int over, result;
};

static void wait_is_over(void *opaque, int result)
{
    struct waited *w = opaque;
    w->result = result;
    w->over = 1;
}

static int is_over(void *on)
{
    return ((struct waited *)on)->over;
}

static int it_lives(void *opaque)
{
    (void)opaque;
    return 1;
}

/* Ioctl 30 of one file. */
static int wait_30(struct side *s, struct remus_ioctl_file *f)
{
    struct waited w = {0};
    uint64_t jumps = world_jumps();
    remus_primary_look_out(s->primary);
    int rc = remus_primary_ioctl_wait(
        s->primary, f, (int64_t)world_below(8000) + 1,
        remus_primary_wait_id(s->primary), it_lives, wait_is_over, &w);
    must_not_wait("the begin of an ioctl 30", jumps);
    if (rc != REMUS_PARKED)
        return rc;
    world_wait("ioctl 30", is_over, &w, WORLD_NEVER);
    return w.result;
}

/* The barrier that this file has joined is news to the oracle. */
static void note_joined(const struct remus_ioctl_file *f, uint64_t from,
                        int failed)
{
    if (!failed && f->joined > oracle_newest_taken())
        oracle_checkpoint(f->joined, from, oracle_begun_state(),
                          f->empty ? ORACLE_EMPTY : ORACLE_IOCTL);
}

static void wait_for_file(struct side *s, struct remus_ioctl_file *f,
                          int failed, uint64_t from, unsigned int branch)
{
    int lost = guest_cut_off(s, branch);
    uint64_t before = f->joined;
    oracle_asks(before, 1);
    int rc = wait_30(s, f);
    oracle_asks(before, 0);
    if (rc)
        world_say("ioctl 30: %d", rc);
    if (rc || !f->joined)
        return;
    if (failed && f->failed)
        world_fail("contract 2: an ioctl 30 after an ioctl 20 that failed "
                   "answers 0");
    if (lost && f->joined > before)
        world_fail("contract 9: an ioctl 30 of a primary that was failed "
                   "away from answers 0");
    if (guest_cut_off(s, branch))
        return;
    note_joined(f, from, 0);
    world_say("checkpoint %llu is safe, says an ioctl 30",
              (unsigned long long)f->joined);
    guest_is_safe(f->joined);
    oracle_heard(f->joined);
}

static void checkpoint_by_ioctl(struct side *s, struct remus_ioctl_file *files)
{
    int result[ORACLE_VOLUMES];
    uint64_t from = oracle_answered_state();
    unsigned int branch = the_branch;
    for (unsigned int v = 0; v < program.volumes; v++) {
        uint64_t jumps = world_jumps();
        result[v] = remus_primary_ioctl_send(s->primary, &files[v], 0, 0);
        must_not_wait("ioctl 20", jumps);
        world_say("ioctl 20 of %u: %d, number %llu, joined %llu", v, result[v],
                  (unsigned long long)files[v].number,
                  (unsigned long long)files[v].joined);
        if (!guest_cut_off(s, branch))
            note_joined(&files[v], from, result[v] < 0);
        if (world_chance(40)) { /* closed between the disks' 20s */
            oracle_session_over();
            remus_primary_ioctl_release(s->primary, &files[v]);
            memset(&files[v], 0, sizeof files[v]);
            memset(files[v].session, (int)(s->life & 127) + 1,
                   sizeof files[v].session);
        }
    }
    for (unsigned int v = 0; v < program.volumes; v++)
        if (result[v] != 1 || world_chance(4)) /* 1: libxl asks no more */
            wait_for_file(s, &files[v], result[v] < 0, from, branch);
    if (world_chance(10)) {
        if (!guest_cut_off(s, branch))
            oracle_committed(UINT64_MAX);
        remus_primary_ioctl_commit(s->primary);
    }
}

static void ioctl_toolstack(struct side *s)
{
    struct remus_ioctl_file files[ORACLE_VOLUMES];
    memset(files, 0, sizeof files);
    for (unsigned int v = 0; v < ORACLE_VOLUMES; v++)
        memset(files[v].session, (int)(s->life & 127) + 1,
               sizeof files[v].session);
    while (!s->stop) {
        checkpoint_by_ioctl(s, files);
        pause_for(world_below(program.checkpoint_ms * (uint64_t)MS + 1));
        if (program.sessions && world_chance(10))
            break;
    }
    oracle_session_over();
    for (unsigned int v = 0; v < program.volumes; v++)
        remus_primary_ioctl_release(s->primary, &files[v]);
}

static void *toolstack_main(void *arg)
{
    struct side *s = arg;
    while (!s->stop) {
        if (program.toolstack == TOOLSTACK_IOCTL) {
            ioctl_toolstack(s);
            pause_for(world_below(3 * (uint64_t)S));
            continue;
        }
        if (program.toolstack == TOOLSTACK_GROUP) {
            devices_toolstack(s);
            oracle_session_over();
            remus_primary_session_end(s->primary);
            pause_for(world_below(3 * (uint64_t)S));
            continue;
        }
        checkpoint_by_call(s);
        pause_for(world_below(program.checkpoint_ms * (uint64_t)MS + 1));
        if (program.sessions && world_chance(10)) {
            oracle_session_over();
            remus_primary_session_end(s->primary);
            pause_for(world_below(3 * (uint64_t)S));
        }
    }
    oracle_session_over();
    remus_primary_session_end(s->primary);
    s->guests--;
    return NULL;
}

/* ---- who fences the backup, who commits there --------------------------------------- */

/* A fence that succeeds, fails, or takes its time. */
static void *fencer_main(void *arg)
{
    struct side *s = arg;
    struct remus_status st = REMUS_INIT(remus_status);
    while (!s->stop) {
        pause_for(500 * (uint64_t)MS);
        if (remus_primary_status(s->primary, &st) || !st.asks_alone)
            continue;
        pause_for(world_below(10 * (uint64_t)S));
        if (world_chance(4))
            remus_primary_refuse_alone(s->primary);
        else if (!world_chance(4))
            remus_primary_go_alone(s->primary);
    }
    remus_primary_refuse_alone(s->primary);
    s->guests--;
    return NULL;
}

static void *committer_main(void *arg)
{
    struct side *s = arg;
    while (!s->stop) {
        struct remus_checkpoint cp[64] = {REMUS_INIT(remus_checkpoint)};
        int n = remus_backup_checkpoints(s->backup, cp, 64);
        if (n > 64)
            n = 64;
        /* A copy is Inconsistent until an epoch on top of it is acked, so
         * nothing is offered then: who has the memory knows the number. */
        uint64_t epoch =
            n > 0 ? cp[world_below((uint64_t)n)].epoch : oracle_newest_acked();
        if (epoch) {
            oracle_committed(epoch);
            remus_backup_commit(s->backup, epoch);
        }
        pause_for(world_below(program.checkpoint_ms * (uint64_t)MS + 1));
    }
    s->guests--;
    return NULL;
}

/* What holds the memory of a checkpoint on the backup: nothing newer is
 * committed until it lets go. */
static void *pinner_main(void *arg)
{
    struct side *s = arg;
    while (!s->stop) {
        struct remus_checkpoint cp[64] = {REMUS_INIT(remus_checkpoint)};
        pause_for(world_below(4 * (uint64_t)S));
        int n = remus_backup_checkpoints(s->backup, cp, 64);
        n = n > 64 ? 64 : n;
        uint64_t pin = n > 0 ? cp[world_below((uint64_t)n)].epoch : 0;
        if (!pin || s->lets_go || remus_backup_pin(s->backup, pin))
            continue;
        s->pinned = pin;
        world_say("checkpoint %llu is pinned", (unsigned long long)pin);
        if (!s->lets_go)
            pause_for(world_below(4 * (uint64_t)S));
        if (!s->lets_go)
            check_pin(s, pin);
        s->pinned = 0;
        remus_backup_pin(s->backup, 0);
    }
    s->guests--;
    return NULL;
}

static void spawn(int host, const char *name, void *(*what)(void *))
{
    side[host].guests++;
    world_spawn(host, name, what, &side[host]);
}

static void ride(int host, const char *name, void *(*what)(void *))
{
    if (!program.node) {
        spawn(host, name, what);
        return;
    }
    side[host].riders++;
    world_spawn(world_guest_of(host), name, what, &side[host]);
}

static void start_riders(int host)
{
    ride(host, "guest", guest_main);
    for (int i = 0; i < program.writers; i++)
        ride(host, "sharer", sharer_main);
    if (program.node)
        ride(host, "reader", reader_main);
}

void guest_start(int host)
{
    side[host].branch = host == primary_host ? the_branch : UINT32_MAX;
    if (!side[host].riders)
        start_riders(host);
    if (program.toolstack != TOOLSTACK_NONE)
        spawn(host, "toolstack", toolstack_main);
    if (program.ask_alone)
        spawn(host, "fencer", fencer_main);
}

void committer_start(int host)
{
    if (program.commit_by == REMUS_COMMIT_BY_BACKUP)
        spawn(host, "committer", committer_main);
    if (program.pins)
        spawn(host, "pinner", pinner_main);
}

static int nobody(void *on)
{
    const struct side *s = on;
    return (s->guests <= 0 && s->riders <= 0) || world_killed((int)(s - side));
}

int guest_stop(int host)
{
    side[host].stop = 1;
    return !world_wait("the end of a guest", nobody, &side[host],
                       world_now() + 30 * (uint64_t)S) &&
           !world_killed(host);
}
