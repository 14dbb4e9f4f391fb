/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A backup is asked for its status, checkpoints and refusals while another
 * thread makes it serve: for the thread sanitizer.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "pair.h"

#define ROUNDS 20

static remus_backup *backup;
static atomic_int stop;

static void *ask(void *arg)
{
    (void)arg;
    struct remus_status status = REMUS_INIT(remus_status);
    struct remus_refusal refusals[4] = {REMUS_INIT(remus_refusal)};
    struct remus_checkpoint checkpoints[4] = {REMUS_INIT(remus_checkpoint)};
    while (!atomic_load(&stop)) {
        CHECK(remus_backup_status(backup, &status));
        CHECK(remus_backup_refusals(backup, refusals, 4));
        CHECK(remus_backup_checkpoints(backup, checkpoints, 4));
    }
    return NULL;
}

static atomic_int serving;

static void *serve(void *address)
{
    int rc = remus_backup_serve(backup, address, 0, 0);
    if (!rc)
        atomic_fetch_add(&serving, 1);
    else
        EXPECT(rc == -EALREADY || rc == -EADDRINUSE);
    return NULL;
}

int main(void)
{
    char dir[] = "/tmp/remus-test-XXXXXX", disk[64], state[64], address[64];
    EXPECT(mkdtemp(dir));
    snprintf(disk, sizeof disk, "%s/disk", dir);
    snprintf(state, sizeof state, "%s/state", dir);
    snprintf(address, sizeof address, "unix:%s/sock", dir);
    CHECK(mkdir(state, 0700));
    pair_disk(disk, 1 << 20);
    struct remus_volume volume = {sizeof volume, "a", disk, 1 << 20};
    struct remus_backup_config config = {.struct_size = sizeof config,
                                         .resource = "race",
                                         .state_dir = state,
                                         .volumes = &volume,
                                         .volume_count = 1,
                                         .journal_bytes = 1 << 20,
                                         .segment_bytes = 65536};
    for (int i = 0; i < ROUNDS; i++) {
        CHECK(remus_backup_open(&config, &backup));
        atomic_store(&stop, 0);
        atomic_store(&serving, 0);
        pthread_t asks, serves[2];
        pthread_create(&asks, NULL, ask, NULL);
        for (int k = 0; k < 2; k++)
            pthread_create(&serves[k], NULL, serve, address);
        for (int k = 0; k < 2; k++)
            pthread_join(serves[k], NULL);
        EXPECT(atomic_load(&serving) == 1);
        EXPECT(remus_backup_serve(backup, address, 0, 0) == -EALREADY);
        atomic_store(&stop, 1);
        pthread_join(asks, NULL);
        remus_backup_close(backup);
    }
    char command[96];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}
