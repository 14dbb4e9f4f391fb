/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One seed: its program, step by step, and a failover at its end. */
#include "run.h"

#include "net.h"
#include "operator.h"
#include "oracle.h"
#include "promote.h"
#include "sched.h"
#include "shared.h"
#include "sides.h"

static void cut(const struct step *s)
{
    world_say("-- nothing comes from host %d", s->host);
    world_net_cut(s->host, 1);
    if (s->a % 2)
        world_net_cut(!s->host, 1);
}

static void power(int host, uint64_t how)
{
    end_host(host, 1 + how % 3000, (int)(how / 3000 % 4));
    lost_memory(host);
}

static void carry_out(const struct step *s)
{
    switch (s->kind) {
    case STEP_KILL:
        end_host(s->host, 1 + s->a % 3000, -1);
        break;
    case STEP_POWER:
        power(s->host, s->a);
        break;
    case STEP_POWER_BOTH:
        power(0, s->a);
        power(1, s->b);
        break;
    case STEP_CUT:
        cut(s);
        break;
    case STEP_RESET:
        world_say("-- connections are reset");
        world_net_reset();
        break;
    case STEP_SLOW:
        world_say("-- the disks of host %d are slow", s->host);
        world_disks_slow(s->host, (1 + s->a % 300) * (uint64_t)MS);
        break;
    case STEP_FREEZE:
        world_say("-- the state's file system of host %d stands still",
                  s->host);
        world_disks_freeze(s->host, s->a % 8000 * (uint64_t)MS);
        break;
    case STEP_FAIL:
        fail_operation(s->host, s);
        break;
    case STEP_JUMP:
        world_say("-- the wall clock jumps");
        world_wall_jump(((int64_t)(s->a % 7200) - 3600) * (int64_t)S);
        note_jump();
        break;
    case STEP_FAIL_OVER:
        fail_over(s);
        break;
    case STEP_FORCE:
        promote_by_force(s);
        break;
    case STEP_SWAP:
        switch_roles(s);
        break;
    case STEP_VERIFY:
        compare_sides(s);
        break;
    case STEP_RESUME:
        resume_waits();
        break;
    case STEP_SERVER:
        lose_server(s);
        break;
    case STEP_NOTHING:
    case STEP_KINDS:
        break;
    }
}

/* A long time is for what takes long when little happens; where much happens
 * it would cost minutes, and show what a shorter one shows. */
static void linger(uint64_t ns)
{
    uint64_t end = world_now() + ns, points = world_points() + 2000000;
    while (world_now() < end && world_points() < points) {
        uint64_t left = end - world_now();
        pause_for(left < (uint64_t)S ? left : (uint64_t)S);
    }
}

static void take_step(const struct step *s)
{
    linger(s->pause / 4);
    carry_out(s);
    linger(s->pause);
    look_at_status();
    if (s->heals)
        mend();
    for (int k = 0; k < 2; k++)
        if (s->restarts >> k & 1)
            restart(k);
}

static void begin(uint64_t seed, int trace, int by_kernel,
                  const struct reduction *less)
{
    world_begin(seed, trace, by_kernel);
    program_make(seed, less);
    world_on_fail = program_print;
    if (trace)
        program_print();
    if (less->plain & PLAIN_THREADS)
        world_calm();
    world_net_begin((less->plain & PLAIN_LINK) != 0);
    sides_begin();
    oracle_begin(program.volumes, program.sizes);
    if (program.writers)
        oracle_without(SHARED_BYTES);
    for (int host = 0; host < 2; host++) {
        side[host].sim = world_disks_new(host);
        for (unsigned int v = 0; v < program.volumes; v++)
            if (remus_sim_create(side[host].sim, volume_paths[v],
                                 program.sizes[v]))
                world_fail("no disk");
    }
    primary_host = 0;
    backup_host = 1;
}

void world_run(uint64_t seed, int trace, int by_kernel,
               const struct reduction *less)
{
    static const struct step last = {.kind = STEP_FAIL_OVER};
    begin(seed, trace, by_kernel, less);
    restart(backup_host);
    restart(primary_host);
    if (program.waits_first)
        wait_protected();
    for (unsigned int i = 0; i < program.steps; i++)
        if (program.step[i].kind != STEP_KINDS)
            take_step(&program.step[i]);
    if (world_chance(2)) {
        mend();
        if (!wait_protected())
            pause_for(world_below(2 * (uint64_t)S));
        look_at_status();
    }
    struct step end = last;
    end.a = world_random() & 0xffffff;
    end.b = world_random() & 0xffffff;
    fail_over(&end);
}
