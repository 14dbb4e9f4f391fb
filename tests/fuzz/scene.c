/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A backup in each of its states, as a real one on a simulated disk left it. */
#include <string.h>

#include "fuzz.h"

const struct remus_volume fuzz_volume = {sizeof fuzz_volume, "a", "/d/0",
                                         FUZZ_DISK};
const struct remus_backup_config fuzz_backup_config = {
    .struct_size = sizeof fuzz_backup_config,
    .resource = "guest0",
    .state_dir = "/state",
    .volumes = &fuzz_volume,
    .volume_count = 1,
    .ack = REMUS_ACK_DURABLE,
    .journal_bytes = 4 * 65536,
    .segment_bytes = 65536,
};

static remus_backup *opened(remus_sim *sim)
{
    remus_backup *b;
    MUST(remus_test_backup_open(&fuzz_backup_config, sim, &b) == 0);
    return b;
}

/* Some records and a barrier. */
static uint64_t epoch_of(remus_backup *b, unsigned int stamp)
{
    unsigned char block[4096];
    uint64_t epoch;
    memset(block, (int)stamp, sizeof block);
    MUST(remus_test_backup_write(b, 0, block, sizeof block, stamp * 512) == 0);
    MUST(remus_test_backup_write(b, 0, block, 100, 3) == 0);
    MUST(remus_test_backup_zero(b, 0, 1000 * stamp, 5000) == 0);
    MUST(remus_test_backup_barrier(b, "tag", 3, 0, &epoch) == 0);
    return epoch;
}

static void committed(remus_backup *b)
{
    MUST(remus_test_backup_begin(b) == 0);
    uint64_t epoch = epoch_of(b, 1);
    MUST(remus_test_backup_commit(b, epoch) == 0);
    MUST(remus_test_backup_apply(b) == 0);
}

static void copying(remus_backup *b)
{
    uint32_t content;
    uint64_t held;
    MUST(remus_test_backup_greet(b, &content, &held) == 0);
    MUST(remus_test_backup_copy_begin(b, 0) == 0);
    MUST(remus_test_backup_copy_write(b, 0, "copied", 6, 4096) == 0);
}

/* Stop it behind its decision. */
static void promoting(remus_sim *sim, remus_backup *b)
{
    uint64_t epoch;
    for (uint64_t ops = 0; b->super.role != REMUS_SUPER_PROMOTING; ops++) {
        MUST(ops < 1000);
        remus_sim_stop_after(sim, ops);
        (void)remus_backup_promote(b, REMUS_PROMOTE_DEFAULT, 0, NULL, 0, 0,
                                   &epoch);
        remus_test_backup_abandon(b);
        remus_sim_kill(sim);
        remus_sim_stop_after(sim, UINT64_MAX);
        b = opened(sim);
    }
    remus_test_backup_abandon(b);
    remus_sim_kill(sim);
}

static remus_backup *next_life(remus_sim *sim, remus_backup *b)
{
    remus_test_backup_abandon(b);
    remus_sim_kill(sim);
    return opened(sim);
}

static void make(remus_sim *sim, unsigned int scene)
{
    uint64_t epoch;
    unsigned char byte = 7;
    remus_backup *b = opened(sim);
    if (scene == FUZZ_COPYING)
        copying(b);
    if (scene >= FUZZ_COMMITTED)
        committed(b);
    if (scene >= FUZZ_UNCOMMITTED) {
        epoch_of(b, 2);
        epoch_of(b, 3);
    }
    if (scene >= FUZZ_OPEN)
        MUST(remus_test_backup_write(b, 0, &byte, 1, 9) == 0);
    for (int i = 0; scene >= FUZZ_RESTARTED && i < 2; i++) {
        b = next_life(sim, b);
        MUST(remus_test_backup_begin(b) == 0);
        epoch_of(b, 4);
    }
    if (scene == FUZZ_PROMOTED)
        MUST(remus_backup_promote(b, REMUS_PROMOTE_DEFAULT, 0, NULL, 0, 0,
                                  &epoch) == 0);
    if (scene == FUZZ_PROMOTING) {
        promoting(sim, next_life(sim, b));
        return;
    }
    remus_test_backup_abandon(b);
    remus_sim_kill(sim);
}

remus_sim *fuzz_scene(unsigned int scene)
{
    static remus_sim *made[FUZZ_SCENES];
    remus_sim *copy;
    scene %= FUZZ_SCENES;
    if (!made[scene]) {
        MUST(remus_sim_new(&made[scene]) == 0);
        MUST(remus_sim_create(made[scene], fuzz_volume.path, FUZZ_DISK) == 0);
        make(made[scene], scene);
    }
    MUST(remus_sim_clone(made[scene], &copy) == 0);
    return copy;
}
