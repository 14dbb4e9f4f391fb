/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The simulated disk, inside.
 *   io_sim.c        the I/O table, and what it simulates
 *   io_sim_node.c   files and directories, and their names
 *   io_sim_power.c  what a power loss leaves
 *   io_sim_world.c  worlds as a test sees them
 * All functions here are called with the lock held, but for the last.
 */
#ifndef REMUS_IO_SIM_H
#define REMUS_IO_SIM_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "remus_testing.h"

#define SECTOR 512u    /* the unit that is torn and reordered */
#define HANDLES 512    /* open files at once */
#define LIVES 0x3fffff /* of processes, before numbers come again */
#define FILE_MAX ((uint64_t)1 << 30) /* bytes of a file */
#define CLOCK_START 1000000000u      /* 1 s */
#define CLOCK_STEP 1000u             /* 1 us */

/* A write that is not durable yet. */
struct sim_dirty {
    uint64_t offset;        /* bytes */
    size_t len;             /* bytes, > 0 */
    struct sim_dirty *next; /* the next younger one */
    unsigned char *data;    /* `bytes`, or its own; NULL: zeroes */
    unsigned char bytes[];
};

/* A file or a directory, whatever its name. */
struct sim_node {
    unsigned char *now;      /* what readers see; zeroes from `size` on */
    unsigned char *stable;   /* what survives; zeroes from `stable_size` on */
    size_t size;             /* bytes of `now` that count */
    size_t stable_size;      /* bytes of `stable` that count */
    size_t cap;              /* bytes of each buffer */
    size_t from, to;         /* `now` and `stable` are equal outside of this */
    struct sim_dirty *dirty; /* oldest first */
    struct sim_dirty **tail; /* where the next one goes */
    int forgotten;           /* a sync failed: dirty does not tell all */
    int is_dir;
    int mapped;      /* `now` may differ without an entry in dirty */
    uint64_t writes; /* so far, by anybody: its stamp */
    int locked;
    unsigned int refs;     /* names (each of the two) and handles */
    struct sim_node *twin; /* while cloning: its copy */
};

/* A path that has, had, or after a power loss may have a node. */
struct sim_name {
    char *path;
    struct sim_node *now;    /* NULL: there is none now */
    struct sim_node *stable; /* NULL: none after a power loss */
    struct sim_name *next;
};

struct sim_handle {
    struct sim_node *node; /* NULL: not open */
    int writable;
    int locks; /* holds the node's lock */
};

struct remus_sim {
    remus_io io;          /* first: the table is the handle; constant */
    pthread_mutex_t lock; /* guards everything below */
    struct sim_name *names;
    struct sim_handle handles[HANDLES];
    int life;              /* crashes and kills so far, at most LIVES */
    uint64_t ops;          /* operations carried out */
    uint64_t stop_at;      /* `ops` at which all begin to fail */
    uint64_t fail_at;      /* the operation that fails once */
    int fail_err;          /* with this errno, > 0 */
    const char *failed_op; /* what that one was; "": none yet */
    char failed_path[128]; /* on what; of sync_dir: the name it is for */
    char named[128];       /* opened, made or removed last */
    int drops_cache;       /* drop_cache takes effect */
    uint32_t boot;         /* crashes so far */
    uint64_t clock_ns;
    uint64_t random; /* state of the generator */
    int interrupts;  /* reads and writes are short or interrupted */
    uint64_t chance; /* state of the generator for that */
};

/* io_sim_node.c */
struct sim_node *remus_node_new(int is_dir);
struct sim_node *remus_node_take(struct sim_node *n);
void remus_node_give(struct sim_node *n);
/* Let `*at` be `n`. */
void remus_node_point(struct sim_node **at, struct sim_node *n);
int remus_node_reserve(struct sim_node *n, size_t size);
/* `now` and `stable` may differ in this range. */
void remus_node_mark(struct sim_node *n, size_t from, size_t to);
void remus_node_drop_dirty(struct sim_node *n);
/* A write that is not durable yet; data NULL: of zeroes.  NULL: no memory. */
struct sim_dirty *remus_dirty_new(uint64_t offset, const void *data,
                                  size_t len);
/* The youngest of the node's. */
void remus_node_add_dirty(struct sim_node *n, struct sim_dirty *d);
/* Readers see what is stable, and nothing is dirty. */
void remus_node_revert(struct sim_node *n);
/* Bytes of a write (data NULL: zeroes) become durable. */
void remus_node_settle(struct sim_node *n, uint64_t offset, const void *data,
                       size_t len);
/* Every write of the list becomes durable. */
void remus_node_settle_all(struct sim_node *n);
/* A write of `len` bytes, or of zeroes (data NULL). */
int remus_node_write(struct sim_node *n, const void *data, size_t len,
                     uint64_t offset);
/* Forget the clean pages: readers see the medium and what is dirty. */
void remus_node_forget_clean(struct sim_node *n);
struct sim_name *remus_name_find(remus_sim *sim, const char *path, size_t len);
struct sim_node *remus_name_node(remus_sim *sim, const char *path);
/* Was the directory of `path` made, and is it not there? */
int remus_name_orphan(remus_sim *sim, const char *path);
/* Give `path`, which has none, a new node. */
int remus_name_add(remus_sim *sim, const char *path, int is_dir,
                   struct sim_node **out);
/* Is this path in memory, gone with the power whatever was synced? */
int remus_name_in_memory(const char *path);
/* Is `path` directly in `dir`? */
int remus_name_is_in(const char *path, const char *dir);
void remus_names_free(remus_sim *sim);

/* io_sim_power.c: files are closed, locks are gone. */
void remus_sim_end_process(remus_sim *sim);

/* io_sim.c */
uint64_t remus_sim_draw(uint64_t *state);
void remus_sim_close(struct sim_handle *h);
/* The table for a new world. */
extern const remus_io remus_sim_table;

#endif
