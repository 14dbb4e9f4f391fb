/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a backup finds at its start: superblock, journal, their ids, in each
 * of its states.  The first byte says which, and whether sums are mended; the
 * rest changes the files (fuzz_patch).  What starts is used like any backup,
 * and must be able to start again.
 */
#include <string.h>

#include "fuzz.h"

static const char *const files[] = {
    "/state/backup.state",         "/state/journal.id",
    "/state/journal/journal.id",   "/state/journal/segment.0000",
    "/state/journal/segment.0001", "/state/journal/segment.0002",
    "/state/journal/segment.0003"};
#define FILES (sizeof files / sizeof *files)

/* A primary comes, and then there is a promote. */
static void use(remus_backup *b)
{
    uint32_t content;
    uint64_t held, epoch;
    if (remus_test_backup_greet(b, &content, &held) == 0 &&
        remus_test_backup_catch_up(b) == 0 &&
        remus_test_backup_write(b, 0, "after", 5, 5) == 0 &&
        remus_test_backup_barrier(b, NULL, 0, 0, &epoch) == 0 &&
        remus_test_backup_commit(b, epoch) == 0 &&
        remus_test_backup_apply(b) == 0)
        (void)remus_test_backup_checkpoint(b);
    struct remus_status st = REMUS_INIT(remus_status);
    MUST(remus_backup_status(b, &st) == 0);
    (void)remus_backup_promote(b, REMUS_PROMOTE_DEFAULT, 0, NULL, 0, 1,
                               &epoch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    remus_sim *sim = fuzz_scene(data[0] & 7);
    fuzz_patch(sim, files, FILES, data + 1, size - 1,
               data[0] & 8 ? NULL : fuzz_mend_file);
    struct remus_backup_config config = fuzz_backup_config;
    config.discard_local = data[0] >> 4 & 1;
    remus_backup *b;
    int rc = remus_test_backup_open(&config, sim, &b);
    MUST(rc == 0 || *remus_last_error());
    if (rc == 0) {
        if (data[0] & 32) {
            remus_test_backup_abandon(b);
            remus_sim_kill(sim);
            MUST(remus_test_backup_open(&config, sim, &b) == 0);
        }
        use(b);
        remus_backup_close(b);
    }
    remus_sim_free(sim);
    return 0;
}

static void make_seeds(void)
{
    for (uint8_t scene = 0; scene < FUZZ_SCENES; scene++) {
        const uint8_t as_it_is[] = {scene};
        fuzz_seed(as_it_is, sizeof as_it_is);
        /* One byte of each of the first places, and one place put in another's
         * room. */
        for (uint8_t i = 0; i < 8; i++) {
            const uint8_t byte[] = {(uint8_t)(scene | (i & 1) << 5),
                                    (uint8_t)(9 * i),
                                    0,
                                    i,
                                    1,
                                    0xff};
            const uint8_t copy[] = {scene, (uint8_t)(5 * i), 0, 0x80,
                                    (uint8_t)(i + 1)};
            const uint8_t field[] = {scene, i, 0, (uint8_t)(0x40 | 8 * i | 4),
                                     2,     1, i};
            /* A record that is longer than what is left of its file. */
            const uint8_t length[] = {scene, i,    0, 0x40 | 12, 4,
                                      0,     0xf0, 0, 0};
            fuzz_seed(byte, sizeof byte);
            fuzz_seed(length, sizeof length);
            fuzz_seed(field, sizeof field);
            fuzz_seed(copy, sizeof copy);
        }
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    fuzz_begin(argc, argv, make_seeds);
    return 0;
}
