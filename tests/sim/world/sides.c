/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The two hosts; see sides.h. */
#include "sides.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "device.h"
#include "guest.h"
#include "net.h"
#include "sched.h"

struct side side[2];
int primary_host, backup_host;
unsigned int the_branch;
char volume_paths[ORACLE_VOLUMES][8];
static char volume_names[ORACLE_VOLUMES][8];

struct call {
    int host, error, discard_local;
    char text[160];
};

void sides_begin(void)
{
    for (unsigned int v = 0; v < ORACLE_VOLUMES; v++) {
        snprintf(volume_paths[v], sizeof *volume_paths, "/d/%u", v);
        snprintf(volume_names[v], sizeof *volume_names, "disk%u", v);
    }
}

static void fill_volumes(struct remus_volume *v)
{
    for (unsigned int i = 0; i < program.volumes; i++)
        v[i] = (struct remus_volume){sizeof *v, volume_names[i],
                                     volume_paths[i], program.sizes[i]};
}

static const char *address_of(int host)
{
    return host ? "tcp:127.0.0.1:7001" : "tcp:127.0.0.1:7000";
}

static void keep_error(struct call *c, int error)
{
    c->error = error;
    if (error)
        snprintf(c->text, sizeof c->text, "%s", remus_last_error());
}

/* Who looks for its backup where this side was one is told. */
static int open_former(struct side *s)
{
    const struct remus_former_config config = {
        .struct_size = sizeof config,
        .resource = "guest0",
        .state_dir = "/state",
        .address = address_of((int)(s - side)),
        .tls_off = 1,
    };
    return remus_former_open_io(&config, (remus_io *)s->sim, &s->former);
}

static void *open_primary(void *arg)
{
    struct call *c = arg;
    struct remus_volume v[ORACLE_VOLUMES];
    fill_volumes(v);
    struct remus_primary_config config = {
        .struct_size = sizeof config,
        .resource = "guest0",
        .state_dir = "/state",
        .volumes = v,
        .volume_count = program.volumes,
        .address = address_of(!c->host),
        .tls_off = 1,
        .ack = program.ack,
        .commit_by = program.commit_by,
        .on_loss = program.on_loss,
        .ask_alone = program.ask_alone,
        .allow_inconsistent = program.inconsistent,
        .queue_bytes = program.queue_bytes,
        .loss_ms = (uint32_t)program.loss_ms,
        .stall_ms = 5000,
        .idle_ms = (uint32_t)program.idle_ms,
        .grace_ms = (uint32_t)program.grace_ms,
    };
    struct side *s = &side[c->host];
    int err = remus_primary_open_io(&config, (remus_io *)s->sim, &s->primary);
    if (!err && program.former)
        err = open_former(s);
    if (!err && program.node)
        err = remus_export_open_kept(s->primary, "/", NULL,
                                     device_memory(c->host),
                                     device_descriptor(c->host), &s->nodes);
    keep_error(c, err);
    return NULL;
}

static void *open_backup(void *arg)
{
    struct call *c = arg;
    struct side *s = &side[c->host];
    struct remus_volume v[ORACLE_VOLUMES];
    fill_volumes(v);
    struct remus_backup_config config = {
        .struct_size = sizeof config,
        .resource = "guest0",
        .state_dir = "/state",
        .volumes = v,
        .volume_count = program.volumes,
        .ack = program.ack,
        .commit_by = program.commit_by,
        .journal_bytes = (uint64_t)program.segments * SEGMENT,
        .segment_bytes = SEGMENT,
        .discard_local = c->discard_local,
    };
    int err = remus_backup_open_io(&config, (remus_io *)s->sim, &s->backup);
    if (!err)
        err = remus_backup_serve(s->backup, address_of(c->host), 1,
                                 (uint32_t)program.loss_ms);
    keep_error(c, err);
    return NULL;
}

static void *close_either(void *arg)
{
    struct side *s = arg;
    if (s->nodes)
        remus_export_close(s->nodes);
    s->nodes = NULL;
    remus_former_close(s->former);
    s->former = NULL;
    remus_primary_close(s->primary);
    remus_backup_close(s->backup);
    s->primary = NULL;
    s->backup = NULL;
    return NULL;
}

/* ---- start and end ------------------------------------------------------------- */

int side_up(int host)
{
    return !world_killed(host) && (side[host].primary || side[host].backup);
}

int on_host(int host, const char *name, void *(*what)(void *), void *arg)
{
    if (world_killed(host))
        return 1;
    int t = world_spawn(host, name, what, arg);
    world_join(t);
    return world_killed(host);
}

void pause_for(uint64_t ns)
{
    world_wait("pause", NULL, NULL, world_now() + ns);
}

static void revive(int host)
{
    struct side *s = &side[host];
    world_revive(host);
    s->stop = 0;
    s->guests = s->lets_go = s->suspended = 0;
    s->pinned = 0;
    s->life++;
    s->since = world_now();
    s->former = NULL;
    s->primary = NULL;
    s->backup = NULL;
    s->nodes = NULL;
    if (s->soon)
        world_kill_after(host, s->soon);
    s->soon = 0;
}

/* A guest's machine, if there is none that goes on. */
static void begin_guest(int host)
{
    struct side *s = &side[host];
    if (program.node && device_lives(host))
        return;
    s->riders = s->writing = 0;
    if (!program.node)
        return;
    world_revive(world_guest_of(host));
    device_begin(host, program.volumes);
}

static void end_guest(int host)
{
    if (!program.node || !device_lives(host))
        return;
    world_kill_after(world_guest_of(host), 0);
    device_end(host);
}

/* What a failed start leaves has to go, or its locks stay. */
static int started(struct call *c, const char *what)
{
    if (world_killed(c->host))
        return -EINTR;
    if (c->error) {
        world_say("the %s of host %d does not start: %d %s", what, c->host,
                  c->error, c->text);
        end_host(c->host, 0, -1);
    }
    return c->error;
}

int start_primary(int host)
{
    struct call c = {.host = host};
    begin_guest(host);
    revive(host);
    world_say("-- host %d starts as the primary", host);
    on_host(host, "open", open_primary, &c);
    int err = started(&c, "primary");
    if (!err)
        guest_start(host);
    return err;
}

int start_backup(int host, int discard_local)
{
    struct call c = {.host = host, .discard_local = discard_local};
    revive(host);
    world_say("-- host %d starts as the backup%s", host,
              discard_local ? ", to discard what it has" : "");
    on_host(host, "open", open_backup, &c);
    int err = started(&c, "backup");
    if (!err)
        committer_start(host);
    return err;
}

static int is_down(void *on)
{
    return world_killed((int)(intptr_t)on);
}

static void end_processes(int host, uint64_t within)
{
    struct side *s = &side[host];
    if (!world_killed(host)) {
        if (within)
            world_kill_after(host, within);
        if (within)
            world_wait("the end of a process", is_down, (void *)(intptr_t)host,
                       world_now() + 2 * (uint64_t)S);
        if (!world_killed(host))
            world_kill_after(host, 0);
    }
    s->former = NULL;
    s->primary = NULL;
    s->backup = NULL;
    s->nodes = NULL;
}

void end_server(int host, uint64_t within)
{
    end_processes(host, within);
    world_say("-- %u requests were with it", device_taken(host));
    world_net_host_gone(host, 0);
    remus_sim_kill(side[host].sim);
}

void end_host(int host, uint64_t within, int power)
{
    struct side *s = &side[host];
    end_processes(host, within);
    end_guest(host);
    world_disks_slow(host, 0);
    world_net_host_gone(host, power >= 0);
    if (power >= 0) {
        world_say("-- host %d loses its power (%d)", host, power);
        remus_sim_crash(s->sim, power, world_random());
    } else {
        remus_sim_kill(s->sim);
    }
}

void close_side(int host)
{
    world_say("-- host %d ends", host);
    if (!on_host(host, "close", close_either, &side[host]))
        end_host(host, 0, -1);
}

/* ---- status ------------------------------------------------------------------------ */

struct inquiry {
    int host, error;
    struct remus_status *st;
};

void must_not_wait(const char *call, uint64_t jumps)
{
    if (world_jumps() != jumps)
        world_fail("contract 1: %s waited for something that takes time",
                   call);
}

static void *read_primary(void *arg)
{
    struct inquiry *a = arg;
    uint64_t jumps = world_jumps();
    a->error = remus_primary_status(side[a->host].primary, a->st);
    must_not_wait("status", jumps);
    return NULL;
}

static void *read_backup(void *arg)
{
    struct inquiry *a = arg;
    a->error = remus_backup_status(side[a->host].backup, a->st);
    return NULL;
}

int primary_status(int host, struct remus_status *st)
{
    struct inquiry a = {.host = host, .st = st};
    *st = (struct remus_status)REMUS_INIT(remus_status);
    if (world_killed(host) || !side[host].primary ||
        on_host(host, "status", read_primary, &a))
        return -ESRCH;
    return a.error;
}

int backup_status(int host, struct remus_status *st)
{
    struct inquiry a = {.host = host, .st = st};
    *st = (struct remus_status)REMUS_INIT(remus_status);
    if (world_killed(host) || !side[host].backup ||
        on_host(host, "status", read_backup, &a))
        return -ESRCH;
    return a.error;
}
