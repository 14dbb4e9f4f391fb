/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The operator; see operator.h.  promote.c has how roles change. */
#include "operator.h"

#include <errno.h>
#include <string.h>

#include "checks.h"
#include "device.h"
#include "guest.h"
#include "net.h"
#include "oracle.h"
#include "promote.h"
#include "reach.h"
#include "sched.h"
#include "sides.h"

#define PATIENCE_S 300

static int failing[2]; /* a file operation of that host fails or did */

void fail_operation(int host, const struct step *s)
{
    world_say("-- a file operation of host %d fails", host);
    /* What a failed sync leaves in the page cache is clean, and a start asks
     * for it to be dropped (journal/recover.c).  If that did nothing, it could
     * name an end that no medium holds, and later be refused as damaged. */
    remus_sim_drops_cache(side[host].sim, 1);
    remus_sim_fail_after(side[host].sim, s->a % 400, s->b % 3 ? EIO : ENOSPC);
    failing[host] = 1;
    lost_memory(host);
}

void lost_memory(int host)
{
    if (host == backup_host)
        oracle_nothing_said();
    if (program.ack == REMUS_ACK_MEMORY && host == backup_host)
        oracle_nothing_acked();
}

void mend(void)
{
    for (int k = 0; k < 2; k++) {
        world_net_cut(k, 0);
        world_disks_slow(k, 0);
        world_disks_freeze(k, 0);
        remus_sim_fail_after(side[k].sim, UINT64_MAX, 0);
        if (failing[k]) /* acked in memory, until now */
            lost_memory(k);
    }
}

/* ---- restarts ------------------------------------------------------------------ */

/* Did a start fail as it may? */
static void allowed(int host, int err, const char *what)
{
    if (failing[host])
        lost_memory(host);
    if (!err || err == -EINTR || failing[host])
        return;
    world_fail("the %s of host %d does not start: %d", what, host, err);
}

static void restart_primary(int host)
{
    if (side_up(host))
        return;
    if (program.node && device_lives(host))
        oracle_interrupted();
    else
        check_look(host);
    oracle_session_over();
    int err = start_primary(host);
    if (err == -EROFS && stepped_down()) {
        promote_instead();
        return;
    }
    allowed(host, err, "primary");
}

static void restart_backup(int host)
{
    if (side_up(host) && side[host].backup)
        return;
    if (side_up(host)) /* the primary that was failed away from */
        end_host(host, 0, -1);
    allowed(host, start_backup(host, 0), "backup");
}

void restart(int host)
{
    if (host == primary_host)
        restart_primary(host);
    else
        restart_backup(host);
}

/* ---- until it is Protected -------------------------------------------------------- */

static int right_for_ever(const struct remus_status *st)
{
    /* Named states whose remedy is a larger journal, or a commit. */
    uint64_t all = 0;
    for (unsigned int v = 0; v < program.volumes; v++)
        all += program.sizes[v];
    /* What is prepared and committed by nobody keeps its room. */
    struct remus_status backup;
    int keeps = !backup_status(backup_host, &backup) &&
                backup.prepared_epoch > backup.committed_epoch;
    if ((program.segments < 20 || keeps ||
         (uint64_t)program.segments * SEGMENT * 2 / 5 < all + all / 8) &&
        strstr(st->reason, "does not fit"))
        return 1;
    return (program.segments < 20 || program.late_commits ||
            program.commit_by == REMUS_COMMIT_BY_BACKUP) &&
           strstr(st->reason, "full of checkpoints");
}

/* What an administrator does about what a status says. */
static void react(const struct remus_status *primary)
{
    struct remus_status st;
    if (primary->state == REMUS_STATE_FENCED && stepped_down()) {
        promote_instead();
        return;
    }
    if (backup_status(backup_host, &st))
        return;
    if (st.state == REMUS_STATE_FAILED) {
        if (!failing[backup_host])
            world_fail("the backup has failed: %s", st.reason);
        end_host(backup_host, 0, -1);
    } else if (primary->state == REMUS_STATE_SPLIT_BRAIN ||
               st.state == REMUS_STATE_SPLIT_BRAIN) {
        if (!both_went_on())
            world_fail("contract 9: split brain, and nobody else wrote: %s",
                       st.reason);
        end_host(backup_host, 0, -1);
        allowed(backup_host, start_backup(backup_host, 1), "backup");
    }
}

static void writes_go_on(void)
{
    const struct side *s = &side[primary_host];
    uint64_t before = s->answered;
    unsigned int life = s->life;
    for (int i = 0; i < 120; i++) {
        if (s->answered > before || s->life != life || s->stop ||
            !side_up(primary_host))
            return;
        pause_for((uint64_t)S);
    }
    world_fail("contract 1: a write of the guest never ends");
}

int wait_protected(void)
{
    struct remus_status st = {0};
    for (int i = 0; i < PATIENCE_S; i++) {
        restart(primary_host);
        restart(backup_host);
        if (primary_status(primary_host, &st)) {
            pause_for((uint64_t)S);
            continue;
        }
        if (st.state == REMUS_STATE_PROTECTED) {
            failing[0] = failing[1] = 0;
            writes_go_on();
            check_files(primary_host);
            return 0;
        }
        if (right_for_ever(&st))
            return 1;
        react(&st);
        pause_for((uint64_t)S);
    }
    world_fail("never Protected again: %s: %s", remus_state_name(st.state),
               st.reason);
}

/* ---- calls --------------------------------------------------------------------------- */

struct comparison {
    int repair, error;
    struct remus_verify out;
};

static void *verify(void *arg)
{
    struct comparison *c = arg;
    c->error = remus_primary_verify(side[primary_host].primary, c->repair, 0,
                                    &c->out);
    return NULL;
}

void compare_sides(const struct step *s)
{
    struct comparison c = {.repair = (int)(s->a & 1),
                           .out = REMUS_INIT(remus_verify)};
    if (!side_up(primary_host) || on_host(primary_host, "verify", verify, &c))
        return;
    world_say("verify: %d, %llu blocks differ", c.error,
              (unsigned long long)c.out.blocks_different);
    if (!c.error && c.out.blocks_different)
        world_fail("contract 6: %llu blocks of both sides differ",
                   (unsigned long long)c.out.blocks_different);
}

static int some_taken(void *on)
{
    return device_taken((int)(intptr_t)on) > 0;
}

static int many_taken(void *on)
{
    return device_taken((int)(intptr_t)on) > (unsigned int)program.writers;
}

/* Requests are on their way for long, and so are those that follow. */
static void lose_slow_server(int host)
{
    world_disks_drip(host, (1 + world_below(40)) * (uint64_t)MS);
    side[host].watched = 1;
    world_wait("requests", many_taken, (void *)(intptr_t)host,
               world_now() + (uint64_t)S);
    pause_for(world_below(8) * (uint64_t)MS);
    end_server(host, 1 + world_below(100));
}

static int some_open(void *on)
{
    return device_writers((int)(intptr_t)on) < 0;
}

/* While a file is opened, or closed. */
static void lose_opening_server(int host)
{
    side[host].reopens = 1;
    world_wait("an open", some_open, (void *)(intptr_t)host,
               world_now() + (uint64_t)S);
    side[host].reopens = 0;
    end_server(host, 1 + world_below(40));
}

static void lose_any_server(int host)
{
    if (!world_chance(4))
        world_wait("a request", some_taken, (void *)(intptr_t)host,
                   world_now() + (uint64_t)S);
    end_server(host, 1 + world_below(world_chance(3) ? 3000 : 100));
}

/* Those that come after it die as well, in the middle of what they find. */
static void lose_more(int host)
{
    for (uint64_t more = world_below(3); more; more--) {
        side[host].soon = 1 + world_below(world_chance(2) ? 300 : 2000);
        restart(host);
        end_server(host, side[host].soon);
    }
    side[host].soon = 0;
}

static int may_lose_server(int host)
{
    return program.node && side_up(host) && device_lives(host);
}

void lose_server(const struct step *s)
{
    int host = primary_host;
    for (uint64_t n = 1 + s->a % 4; n && may_lose_server(host); n--) {
        world_say("-- the server of host %d's disks dies", host);
        if (world_chance(2))
            lose_slow_server(host);
        else if (world_chance(2))
            lose_opening_server(host);
        else
            lose_any_server(host);
        lose_more(host);
        restart(host);
        if (side[host].watched)
            pause_for(50 * (uint64_t)MS);
        side[host].watched = 0;
        world_disks_slow(host, 0);
        check_files(host);
    }
}

static void *resume(void *arg)
{
    (void)arg;
    remus_primary_resume(side[primary_host].primary);
    return NULL;
}

void resume_waits(void)
{
    if (side_up(primary_host))
        on_host(primary_host, "resume", resume, NULL);
}

void look_at_status(void)
{
    struct remus_status st;
    if (primary_status(primary_host, &st) ||
        program.ack != REMUS_ACK_DURABLE || st.state != REMUS_STATE_PROTECTED)
        return;
    /* What it says of a backup that is no more can be lost. */
    if (!side_up(backup_host) || st.link_changed_ns <= side[backup_host].since)
        return;
    world_say("status: %llu is committed",
              (unsigned long long)st.committed_epoch);
    oracle_said_committed(st.committed_epoch);
}
