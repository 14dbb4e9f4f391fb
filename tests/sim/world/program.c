/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A seed's program; see program.h. */
#include "program.h"

#include <errno.h>
#include <stdio.h>

#include "remus.h"
#include "shared.h"

struct program program;

static uint64_t state;

static uint64_t below(uint64_t n)
{
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % n;
}

static int chance(uint64_t n)
{
    return below(n) == 0;
}

/* ---- the setting ----------------------------------------------------------- */

static void make_setting(struct program *p)
{
    static const unsigned int sizes[] = {65536, 131072, 65536 + 512, 262144};
    p->volumes = 1 + (unsigned int)below(3);
    for (unsigned int v = 0; v < 4; v++)
        p->sizes[v] = sizes[below(4)];
    p->segments = (chance(6) ? 6 : 24) + (unsigned int)below(10);
    p->ack = chance(4) ? REMUS_ACK_MEMORY : REMUS_ACK_DURABLE;
    p->commit_by =
        chance(5) ? REMUS_COMMIT_BY_BACKUP : REMUS_COMMIT_BY_PRIMARY;
    p->writer_pause_ms = 10 + (unsigned int)below(300);
    p->checkpoint_ms = 10 + (unsigned int)below(400);
    p->sessions = chance(3);
    p->late_commits = chance(3);
    p->toolstack = chance(3)   ? TOOLSTACK_IOCTL
                   : chance(8) ? TOOLSTACK_NONE
                               : TOOLSTACK_API;
    p->on_loss = chance(4) ? REMUS_ON_LOSS_HOLD : REMUS_ON_LOSS_CONTINUE;
    p->ask_alone = chance(4);
    p->idle_ms = 100 + (int)below(2000);
    p->grace_ms = 1000 + (int)below(5000);
    p->loss_ms = 1000 + (int)below(2000);
    p->queue_bytes = 4194304u << below(3);
    p->waits_first = !chance(8);
}

/* A guest beside its disks' server: of what else kills that often does. */
static void make_node(struct program *p)
{
    p->node =
        chance(4) && p->volumes <= 3 &&
        (p->toolstack == TOOLSTACK_API || p->toolstack == TOOLSTACK_NONE);
    if (p->node && chance(2) && p->sizes[0] > 2 * SHARED_BYTES + 16384)
        p->writers = 2 + (int)below(2);
    for (unsigned int i = 0; p->node && i < p->steps; i++) {
        enum step_kind *kind = &p->step[i].kind;
        if (*kind == STEP_NOTHING || *kind == STEP_RESET ||
            *kind == STEP_RESUME || *kind == STEP_KILL)
            *kind = STEP_SERVER;
    }
}

/* Drawn last: what is drawn before does not change with it. */
static void make_reach(struct program *p)
{
    if (chance(16)) {
        p->volumes = 4 + (unsigned int)below(ORACLE_VOLUMES - 3);
        for (unsigned int v = 0; v < p->volumes; v++)
            p->sizes[v] = 16384 + 4096 * below(4);
    }
    p->tags = chance(3);
    p->pins = chance(4);
    p->inconsistent = chance(4);
    p->writers = chance(3) && p->sizes[0] > 2 * SHARED_BYTES + 16384
                     ? 1 + (int)below(3)
                     : 0;
    if (p->toolstack == TOOLSTACK_API && chance(4))
        p->toolstack = TOOLSTACK_GROUP;
    p->former = chance(2);
    make_node(p);
}

static void make_plain(struct program *p, unsigned int plain)
{
    if (plain & PLAIN_ONE_VOLUME)
        p->volumes = 1;
    if (plain & PLAIN_API)
        p->toolstack = TOOLSTACK_API;
    if (plain & PLAIN_NO_SESSIONS)
        p->sessions = 0;
    if (plain & PLAIN_COMMITS) {
        p->late_commits = 0;
        p->commit_by = REMUS_COMMIT_BY_PRIMARY;
    }
    if (plain & PLAIN_DURABLE)
        p->ack = REMUS_ACK_DURABLE;
    if (plain & PLAIN_CONTINUE) {
        p->on_loss = REMUS_ON_LOSS_CONTINUE;
        p->ask_alone = 0;
    }
    if (plain & PLAIN_PINS)
        p->tags = p->pins = 0;
    if (plain & PLAIN_COPY)
        p->inconsistent = 0;
    if (plain & PLAIN_DEVICES && p->toolstack == TOOLSTACK_GROUP)
        p->toolstack = TOOLSTACK_API;
    if (plain & PLAIN_WRITERS)
        p->writers = 0;
    if (plain & PLAIN_NODE)
        p->node = 0;
}

/* ---- the steps --------------------------------------------------------------- */

/* How often each is drawn, of 32. */
static const struct {
    enum step_kind kind;
    unsigned int weight;
} kinds[] = {{STEP_NOTHING, 2}, {STEP_KILL, 5},       {STEP_POWER, 3},
             {STEP_CUT, 3},     {STEP_POWER_BOTH, 2}, {STEP_RESET, 2},
             {STEP_SLOW, 2},    {STEP_FREEZE, 1},     {STEP_FAIL, 2},
             {STEP_JUMP, 1},    {STEP_FAIL_OVER, 3},  {STEP_FORCE, 1},
             {STEP_SWAP, 2},    {STEP_VERIFY, 2},     {STEP_RESUME, 1}};

static enum step_kind draw_kind(void)
{
    unsigned int sum = 0, n;
    for (unsigned int i = 0; i < sizeof kinds / sizeof *kinds; i++)
        sum += kinds[i].weight;
    n = (unsigned int)below(sum);
    for (unsigned int i = 0;; i++) {
        if (n < kinds[i].weight)
            return kinds[i].kind;
        n -= kinds[i].weight;
    }
}

static void draw_step(struct step *s)
{
    s->kind = draw_kind();
    s->host = (int)below(2);
    s->a = below(1u << 30);
    s->b = below(1u << 30);
    s->pause = below(chance(3)    ? 8 * (uint64_t)S
                     : chance(20) ? 100 * (uint64_t)S
                                  : 300 * (uint64_t)MS);
    s->heals = chance(2);
    s->restarts = chance(3) | chance(3) << 1;
}

void program_make(uint64_t seed, const struct reduction *less)
{
    state = seed * 0x9e3779b97f4a7c15u + 7;
    make_setting(&program);
    program.steps = 1 + (unsigned int)below(PROGRAM_STEPS / 2);
    for (unsigned int i = 0; i < program.steps; i++) {
        draw_step(&program.step[i]);
        if (less->skip >> i & 1)
            program.step[i] = (struct step){.kind = STEP_KINDS};
    }
    make_reach(&program);
    make_plain(&program, less->plain);
}

/* ---- in words ---------------------------------------------------------------------- */

const char *step_text(const struct step *s, char *buf, unsigned int cap)
{
    static const char *const names[STEP_KINDS] = {
        [STEP_NOTHING] = "nothing happens",
        [STEP_KILL] = "the processes of host %d are killed",
        [STEP_POWER] = "host %d loses its power",
        [STEP_POWER_BOTH] = "both hosts lose their power",
        [STEP_CUT] = "nothing comes from host %d",
        [STEP_RESET] = "connections are reset",
        [STEP_SLOW] = "the disks of host %d are slow",
        [STEP_FREEZE] = "the state's file system of host %d stands still",
        [STEP_FAIL] = "a file operation of host %d fails",
        [STEP_JUMP] = "the wall clock jumps",
        [STEP_FAIL_OVER] = "the primary dies, the backup is promoted",
        [STEP_FORCE] = "the backup is promoted by force",
        [STEP_SWAP] = "both sides switch roles",
        [STEP_VERIFY] = "both sides are compared",
        [STEP_RESUME] = "who waits for the backup goes on",
        [STEP_SERVER] = "the disks' server dies under its guest"};
    char text[96];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(text, sizeof text, names[s->kind], s->host);
#pragma GCC diagnostic pop
    snprintf(buf, cap, "%s; %.3f s%s%s%s", text, (double)s->pause / 1e9,
             s->heals ? "; links and disks are mended" : "",
             s->restarts & 1 ? "; host 0 starts" : "",
             s->restarts & 2 ? "; host 1 starts" : "");
    return buf;
}

void program_print(void)
{
    static const char *const toolstacks[] = {"calls", "ioctls", "no toolstack",
                                             "a group"};
    const struct program *p = &program;
    char text[200];
    printf("program: %u volumes, %u segments, ack %s, commit by %s, %s%s%s%s, "
           "on loss %s%s%s%s%s%s%s%s\n",
           p->volumes, p->segments,
           p->ack == REMUS_ACK_MEMORY ? "memory" : "durable",
           p->commit_by == REMUS_COMMIT_BY_BACKUP ? "backup" : "primary",
           toolstacks[p->toolstack], p->sessions ? ", sessions end" : "",
           p->late_commits ? ", late commits" : "",
           p->waits_first ? "" : ", begins at once",
           p->on_loss == REMUS_ON_LOSS_HOLD ? "hold" : "continue",
           p->ask_alone ? ", asks before it goes on alone" : "",
           p->tags ? ", tags" : "", p->pins ? ", pins" : "",
           p->inconsistent ? ", allow_inconsistent" : "",
           p->writers ? ", several writers" : "",
           p->former ? ", answers at old addresses" : "",
           p->node ? ", nodes" : "");
    for (unsigned int i = 0; i < p->steps; i++)
        if (p->step[i].kind != STEP_KINDS)
            printf("  step %u: %s\n", i,
                   step_text(&p->step[i], text, sizeof text));
}
