/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the fuzz targets share.  Each target is a program of libFuzzer, of one
 * file target_*.c; with --seeds DIR it writes inputs to begin with, taken from
 * a real run of both sides or of the simulated disk.
 *
 *   stream.c  streams of records: a mutator that knows where a record begins
 *             and mends what is summed, so that what is behind the sums is
 *             reached
 *   patch.c   files of a simulated disk, changed in places and mended
 *   scene.c   backups on a simulated disk, each in another state
 */
#ifndef REMUS_FUZZ_H
#define REMUS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "backup/backup.h"
#include "remus_testing.h"

#define MUST(cond)                                                            \
    do {                                                                      \
        if (!(cond)) {                                                        \
            fprintf(stderr, "%s:%d: not true: %s (%s)\n", __FILE__, __LINE__, \
                    #cond, remus_last_error());                               \
            abort();                                                          \
        }                                                                     \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max,
                               unsigned int seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size,
                                 const uint8_t *b, size_t b_size, uint8_t *out,
                                 size_t max, unsigned int seed);

/* xorshift; *s is never 0. */
uint64_t fuzz_rnd(uint64_t *s);

/* If the program was called with --seeds DIR, write this input there. */
void fuzz_seed(const void *data, size_t size);
/* What LLVMFuzzerInitialize() does in every target: with --seeds, let
 * `make_seeds` call fuzz_seed(), and exit. */
void fuzz_begin(int *argc, char ***argv, void (*make_seeds)(void));

/* ---- stream.c ---------------------------------------------------------------- */

/* The first byte of an input says which state is met; records follow. */
#define FUZZ_SESSION 0x5e55104u
#define FUZZ_DISK 65536u
#define FUZZ_STREAM_MAX 65536u

/* Where a well-behaved side would be at the first counted record. */
struct fuzz_at {
    uint64_t number, epoch;
};

/* Of this target: what a state expects, and which types of records make
 * sense. */
extern const uint8_t fuzz_types[];
extern const size_t fuzz_type_count;
extern struct fuzz_at fuzz_expects(unsigned int scene);

/* A stream under construction. */
struct fuzz_stream {
    uint8_t data[FUZZ_STREAM_MAX];
    size_t size;
};
/* One record more; its sums are right. */
void fuzz_add(struct fuzz_stream *s, struct remus_record r,
              const void *payload);

/* ---- scene.c ----------------------------------------------------------------- */

enum fuzz_scene {
    FUZZ_EMPTY,       /* never a primary */
    FUZZ_COPYING,     /* a first copy was cut short */
    FUZZ_COMMITTED,   /* at a checkpoint */
    FUZZ_UNCOMMITTED, /* ... and newer ones that are not committed */
    FUZZ_OPEN,        /* ... and an epoch that was never closed */
    FUZZ_RESTARTED,   /* the same after two more lives */
    FUZZ_PROMOTING,   /* a promote was interrupted */
    FUZZ_PROMOTED,
    FUZZ_SCENES
};

extern const struct remus_volume fuzz_volume;
extern const struct remus_backup_config fuzz_backup_config;

/* A copy of the world in which nothing is open. */
remus_sim *fuzz_scene(unsigned int scene);

/* ---- patch.c ----------------------------------------------------------------- */

/*
 * Files of the world `sim` changed as `data` says: a list of
 *   place (2)  which 64 bytes: counts through all that are not zero, and the
 *              first zeros behind them
 *   byte (1)   of them; bit 7: a copy of another place is put here (2: which);
 *              bit 6: the place counts through records, wherever they stand
 *   count (1)  of bytes that follow, at most 64
 * and `mend` (may be NULL) is called for each file that was changed.
 */
void fuzz_patch(remus_sim *sim, const char *const *files, size_t count,
                const uint8_t *data, size_t size,
                void (*mend)(const char *path, unsigned char *p, size_t size));
/* Sums of a backup's files; of what is no such file nothing. */
void fuzz_mend_file(const char *path, unsigned char *p, size_t size);

#endif
