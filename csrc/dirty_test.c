/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A dirty map by itself, on simulated files. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dirty.h"
#include "error.h"
#include "hash.h"
#include "remus_testing.h"

_Static_assert(REMUS_TEST_DIRTY_BLOCK == REMUS_DIRTY_BLOCK, "one block size");

struct remus_test_dirty {
    struct remus_dirty d;
};

int remus_test_dirty_open(remus_sim *sim, const char *state_dir,
                          const uint64_t *sizes, unsigned int volumes,
                          unsigned int generation, remus_test_dirty **out)
{
    unsigned char id[REMUS_ID_BYTES];
    static const uint64_t stamps[REMUS_VOLUMES_MAX];
    memset(id, (int)generation, sizeof id);
    *out = calloc(1, sizeof **out);
    if (!*out)
        return remus_fail(-ENOMEM, "out of memory");
    int err = remus_dirty_open(&(*out)->d, remus_sim_io(sim), state_dir,
                               "guest0", id, sizes, stamps, volumes, 0);
    if (err) {
        remus_dirty_close(&(*out)->d, 0);
        free(*out);
        *out = NULL;
    }
    return err;
}

void remus_test_dirty_close(remus_test_dirty *t, int clean)
{
    if (!t)
        return;
    remus_dirty_close(&t->d, clean);
    free(t);
}

int remus_test_dirty_valid(remus_test_dirty *t)
{
    return remus_dirty_valid(&t->d);
}

uint64_t remus_test_dirty_forgotten(remus_test_dirty *t)
{
    return remus_dirty_forgotten(&t->d);
}

void remus_test_dirty_base(remus_test_dirty *t, uint64_t epoch)
{
    remus_dirty_base(&t->d, epoch);
}

int remus_test_dirty_pin(remus_test_dirty *t)
{
    return (int)remus_dirty_pin(&t->d);
}

void remus_test_dirty_unpin(remus_test_dirty *t, int pin)
{
    remus_dirty_unpin(&t->d, (uint32_t)pin);
}

void remus_test_dirty_mark(remus_test_dirty *t, int pin, unsigned int volume,
                           uint64_t offset, uint64_t len)
{
    uint32_t set = pin < 0 ? atomic_load(&t->d.open) : (uint32_t)pin;
    remus_dirty_mark(&t->d, set, volume, offset, len);
}

void remus_test_dirty_roll(remus_test_dirty *t, uint64_t epoch)
{
    remus_dirty_roll(&t->d, epoch);
}

void remus_test_dirty_stable(remus_test_dirty *t, uint64_t epoch)
{
    remus_dirty_stable(&t->d, epoch);
}

void remus_test_dirty_forget(remus_test_dirty *t)
{
    remus_dirty_forget_all(&t->d);
}

uint64_t remus_test_dirty_collect(remus_test_dirty *t, uint64_t has,
                                  uint64_t epoch)
{
    return remus_dirty_collect(&t->d, has, epoch);
}

int remus_test_dirty_next(remus_test_dirty *t, uint64_t max,
                          unsigned int *volume, uint64_t *offset,
                          uint64_t *len)
{
    return remus_dirty_next(&t->d, max, volume, offset, len);
}

int remus_test_dirty_test(remus_test_dirty *t, unsigned int volume,
                          uint64_t block)
{
    return remus_dirty_test(&t->d, volume, block);
}

uint64_t remus_test_dirty_bytes(remus_test_dirty *t)
{
    return remus_dirty_bytes(&t->d);
}

void remus_test_hash(const void *data, size_t len, unsigned char *out)
{
    remus_hash(data, len, out);
}
