/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the C tests share: checks, and a primary and backup in a folder. */
#ifndef REMUS_TEST_PAIR_H
#define REMUS_TEST_PAIR_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/backup.h"
#include "primary/primary.h"
#include "remus.h"
#include "expect.h"

#define PAIR_VOLUMES 2

struct pair {
    char dir[64];
    char disk[2][PAIR_VOLUMES][128]; /* primary's, backup's */
    char state[2][128];
    char address[128];
    uint64_t size[PAIR_VOLUMES];
    enum remus_ack ack; /* durable, unless it is set before they are opened */
    uint64_t continues; /* ditto: as in remus_primary_config */
    enum remus_on_loss on_loss;
    remus_primary *p;
    remus_backup *b;
};

static inline void pair_disk(const char *name, uint64_t size)
{
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd);
    CHECK(ftruncate(fd, (off_t)size));
    close(fd);
}

static inline void pair_volumes(struct pair *t, int s,
                                struct remus_volume v[PAIR_VOLUMES])
{
    for (int i = 0; i < PAIR_VOLUMES; i++)
        v[i] = (struct remus_volume){sizeof *v, i ? "b" : "a", t->disk[s][i],
                                     t->size[i]};
}

/* The backup, open and serving. */
static inline void pair_open_backup(struct pair *t, remus_io *io)
{
    struct remus_volume v[PAIR_VOLUMES];
    pair_volumes(t, 1, v);
    const struct remus_backup_config bc = {.struct_size = sizeof bc,
                                           .resource = "guest0",
                                           .state_dir = t->state[1],
                                           .volumes = v,
                                           .volume_count = PAIR_VOLUMES,
                                           .ack = t->ack,
                                           .journal_bytes = 8u << 20,
                                           .segment_bytes = 256u << 10};
    CHECK(remus_backup_open_io(&bc, io ? io : remus_io_system(), &t->b));
    CHECK(remus_backup_serve(t->b, t->address, 0, 0));
}

/* A folder with images and state directories; nothing is open. */
static inline void pair_make(struct pair *t, uint64_t size_a, uint64_t size_b)
{
    static const char *const side[2] = {"primary", "backup"};
    memset(t, 0, sizeof *t);
    t->size[0] = size_a;
    t->size[1] = size_b;
    char dir[] = "/tmp/remus-test-XXXXXX";
    EXPECT(mkdtemp(dir));
    strcpy(t->dir, dir);
    snprintf(t->address, sizeof t->address, "unix:%s/sock", dir);
    for (int s = 0; s < 2; s++) {
        snprintf(t->state[s], sizeof t->state[s], "%s/%s", dir, side[s]);
        CHECK(mkdir(t->state[s], 0700));
        for (int i = 0; i < PAIR_VOLUMES; i++) {
            snprintf(t->disk[s][i], sizeof t->disk[s][i], "%s/%s.%c", dir,
                     side[s], 'a' + i);
            pair_disk(t->disk[s][i], t->size[i]);
        }
    }
}

/* The primary, open; `io` NULL: the system's. */
static inline void pair_start_primary(struct pair *t, remus_io *io)
{
    struct remus_volume v[PAIR_VOLUMES];
    pair_volumes(t, 0, v);
    const struct remus_primary_config pc = {.struct_size = sizeof pc,
                                            .resource = "guest0",
                                            .state_dir = t->state[0],
                                            .volumes = v,
                                            .volume_count = PAIR_VOLUMES,
                                            .address = t->address,
                                            .ack = t->ack,
                                            .on_loss = t->on_loss,
                                            .continues = t->continues,
                                            .loss_ms = 1000,
                                            .connect_ms = 20,
                                            .idle_ms = 3600000,
                                            .queue_bytes = 4u << 20};
    CHECK(remus_primary_open_io(&pc, io ? io : remus_io_system(), &t->p));
}

/* ... and Protected. */
static inline void pair_open_primary(struct pair *t, remus_io *io)
{
    pair_start_primary(t, io);
    CHECK(remus_primary_wait_protected(t->p, 20000));
}

/* Both sides open and Protected. */
static inline void pair_open(struct pair *t, uint64_t size_a, uint64_t size_b,
                             remus_io *io)
{
    pair_make(t, size_a, size_b);
    pair_open_backup(t, NULL);
    pair_open_primary(t, io);
}

/* One committed checkpoint; its number. */
static inline uint64_t pair_checkpoint(struct pair *t)
{
    uint64_t epoch;
    CHECK(remus_primary_postsuspend(t->p, NULL, 0, &epoch));
    CHECK(remus_primary_preresume(t->p, epoch, 20000));
    CHECK(remus_primary_commit(t->p, epoch));
    return epoch;
}

/* The session's first checkpoint after a return completes the catch-up. */
static inline uint64_t pair_next_checkpoint(struct pair *t)
{
    for (int i = 0; i < 20000; i++) {
        uint64_t epoch;
        int rc = remus_primary_postsuspend(t->p, NULL, 0, &epoch);
        if (rc >= 0)
            rc = remus_primary_preresume(t->p, epoch, 20000);
        if (rc >= 0)
            rc = remus_primary_commit(t->p, epoch);
        if (rc >= 0)
            return epoch;
        EXPECT(rc == -EPROTO || rc == -EAGAIN);
        usleep(1000);
    }
    EXPECT(!"the backup came back");
    return 0;
}

static inline void pair_same(const char *a, const char *b, uint64_t size)
{
    unsigned char *x = malloc(size), *y = malloc(size);
    int fa = open(a, O_RDONLY | O_CLOEXEC), fb = open(b, O_RDONLY | O_CLOEXEC);
    EXPECT(x && y);
    EXPECT(read(fa, x, size) == (ssize_t)size);
    EXPECT(read(fb, y, size) == (ssize_t)size);
    for (uint64_t i = 0; i < size; i++)
        if (x[i] != y[i]) {
            fprintf(stderr, "%s and %s differ at %llu: %02x %02x\n", a, b,
                    (unsigned long long)i, x[i], y[i]);
            exit(1);
        }
    close(fa);
    close(fb);
    free(x);
    free(y);
}

static inline void pair_remove(const struct pair *t)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", t->dir);
    EXPECT(system(command) == 0);
}

/* Close the primary, promote to `epoch`, compare every byte, clean up. */
static inline void pair_prove_and_close(struct pair *t, uint64_t epoch)
{
    uint64_t promoted;
    remus_primary_close(t->p);
    CHECK(remus_backup_promote(t->b, REMUS_PROMOTE_EPOCH, epoch, NULL, 0, 0,
                               &promoted));
    EXPECT(promoted == epoch);
    remus_backup_close(t->b);
    for (int i = 0; i < PAIR_VOLUMES; i++)
        pair_same(t->disk[0][i], t->disk[1][i], t->size[i]);
    pair_remove(t);
}

#endif
