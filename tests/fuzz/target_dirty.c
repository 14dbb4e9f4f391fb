/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The dirty map that a primary left: in memory after a kill, or the copy of a
 * clean end.  The first byte says which, and whether sums are mended; the
 * rest changes the file.
 */
#include <string.h>

#include "format/dirty_header.h"
#include "fuzz.h"

static const uint64_t sizes[] = {1u << 20, 300000};
static char map_path[REMUS_DIRTY_PATH];

/* Whose map it is, to have its names. */
static void find_name(remus_sim *sim)
{
    static const unsigned char id[REMUS_ID_BYTES];
    const struct remus_dirty_of of = {.resource = "guest0",
                                      .state_dir = "/state",
                                      .generation = id,
                                      .volumes = 2,
                                      .size = {sizes[0], sizes[1]}};
    struct remus_dirty_file f;
    memset(&f, 0, sizeof f);
    MUST(remus_dirty_find_names(&f, remus_sim_io(sim), &of) == 0);
    snprintf(map_path, sizeof map_path, "%s", f.path);
    remus_dirty_free_names(&f);
}

static remus_sim *world(int clean)
{
    static remus_sim *made[2];
    remus_sim *copy;
    if (!made[clean]) {
        remus_test_dirty *t;
        MUST(remus_sim_new(&made[clean]) == 0);
        MUST(remus_test_dirty_open(made[clean], "/state", sizes, 2, 1, &t) ==
             0);
        remus_test_dirty_renew(t);
        remus_test_dirty_base(t, 3);
        remus_test_dirty_mark(t, -1, 0, 100000, 50000);
        remus_test_dirty_roll(t, 4);
        remus_test_dirty_mark(t, -1, 1, 0, 1);
        remus_test_dirty_close(t, clean);
        remus_sim_kill(made[clean]);
        find_name(made[clean]);
    }
    MUST(remus_sim_clone(made[clean], &copy) == 0);
    return copy;
}

static void mend(const char *path, unsigned char *p, size_t size)
{
    (void)path;
    if (size < REMUS_PAGE)
        return;
    remus_put32(p + AT_CRC, remus_dirty_fixed_crc(p));
    if (remus_get32(p + AT_CLEAN))
        remus_put32(p + AT_CLEAN, remus_dirty_clean_crc(p));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    remus_sim *sim = world(data[0] & 1);
    const char *const files[] = {map_path, "/state/dirty.map"};
    fuzz_patch(sim, files, 2, data + 1, size - 1, data[0] & 2 ? NULL : mend);
    remus_test_dirty *t;
    if (remus_test_dirty_open(sim, "/state", sizes, 2, data[0] & 4 ? 2 : 1,
                              &t) == 0) {
        unsigned int volume;
        uint64_t offset, len, total = 0;
        MUST(remus_test_dirty_bytes(t) <= 2u << 20);
        remus_test_dirty_collect(t, remus_test_dirty_forgotten(t), 9);
        while (remus_test_dirty_next(t, 1u << 20, &volume, &offset, &len)) {
            MUST(volume < 2 && len && offset + len <= sizes[volume]);
            total += len;
        }
        MUST(total <= sizes[0] + sizes[1]);
        remus_test_dirty_close(t, data[0] & 8);
    }
    remus_sim_free(sim);
    return 0;
}

static void make_seeds(void)
{
    for (uint8_t i = 0; i < 16; i++) {
        const uint8_t input[] = {i, (uint8_t)(3 * i), 0, i, 2, 0xff, 1};
        fuzz_seed(input, 1);
        fuzz_seed(input, sizeof input);
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    fuzz_begin(argc, argv, make_seeds);
    return 0;
}
