/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a primary finds at its start: primary.state and the superblock of a
 * backup that was promoted here, two-slot files both.  The first byte says
 * which of them, and what the primary does then; the rest changes the files.
 */
#include <string.h>

#include "format/primary_state.h"
#include "fuzz.h"

static const char *const files[] = {"/state/primary.state",
                                    "/state/backup.state"};

/* A world whose primary has been fenced, has gone on alone, or neither; or
 * one that takes a backup over. */
static remus_sim *world(unsigned int which)
{
    static remus_sim *made[4];
    remus_sim *copy;
    if (!made[which] && which == 3)
        made[which] = fuzz_scene(FUZZ_PROMOTED);
    if (!made[which]) {
        struct remus_test_role role;
        MUST(remus_sim_new(&made[which]) == 0);
        MUST(remus_sim_create(made[which], fuzz_volume.path, FUZZ_DISK) == 0);
        MUST(remus_test_role(made[which], "/state", (int)which, &role) == 0);
        remus_sim_kill(made[which]);
    }
    MUST(remus_sim_clone(made[which], &copy) == 0);
    return copy;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    remus_sim *sim = world(data[0] & 3);
    fuzz_patch(sim, files, 2, data + 1, size - 1,
               data[0] & 4 ? NULL : fuzz_mend_file);
    struct remus_test_role role;
    if (remus_test_role(sim, "/state", data[0] >> 3 & 3, &role) == 0) {
        /* What it stored it can read. */
        struct remus_primary_state s;
        remus_sim_kill(sim);
        MUST(remus_primary_state_read(remus_sim_io(sim), "/state", "guest0",
                                      &s) == 0);
        MUST(s.lineage.count <= REMUS_ANCESTORS_MAX);
    } else {
        MUST(*remus_last_error());
    }
    remus_sim_free(sim);
    return 0;
}

static void make_seeds(void)
{
    for (uint8_t which = 0; which < 32; which++) {
        const uint8_t input[] = {which, (uint8_t)(which * 3), 0, 8, 1, which};
        fuzz_seed(input, 1);
        fuzz_seed(input, sizeof input);
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    fuzz_begin(argc, argv, make_seeds);
    return 0;
}
