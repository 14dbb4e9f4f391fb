/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * remus_testing.h - a simulated disk under the I/O table, and a backup
 * driven record by record without a socket or a thread.  Built into the
 * tests' own extension only (emit.py).
 */
#ifndef REMUS_TESTING_H
#define REMUS_TESTING_H

#include "base/io.h"
#include "remus.h"

/* cffi:begin */

typedef struct remus_sim remus_sim;

/* How a power loss treats writes that were not synced. */
enum remus_sim_loss {
    REMUS_SIM_LOSE,   /* every one is lost */
    REMUS_SIM_KEEP,   /* every one is kept */
    REMUS_SIM_TEAR,   /* each 512 byte sector is kept or lost by chance */
    REMUS_SIM_REORDER /* each write is kept or lost by chance, and kept
                          ones take effect in a random order per sector */
};

/* A world of files in memory, with a clock that advances with each op. */
REMUS_API int remus_sim_new(remus_sim **out);
REMUS_API void remus_sim_free(remus_sim *sim);

/* Operations of the table that were carried out so far. */
REMUS_API uint64_t remus_sim_ops(remus_sim *sim);

/*
 * After `ops` more operations every further one fails with -EIO and changes
 * nothing, until remus_sim_crash() or _kill().  UINT64_MAX: never.
 */
REMUS_API void remus_sim_stop_after(remus_sim *sim, uint64_t ops);

/* The operation that comes `ops` after now fails once with -err. */
REMUS_API void remus_sim_fail_after(remus_sim *sim, uint64_t ops, int err);

/*
 * Power loss: every file becomes what was synced, with the rest treated as
 * `loss` says, by `seed`.  All open files and locks are gone.  A failed or
 * lost fdatasync makes nothing durable.
 */
REMUS_API void remus_sim_crash(remus_sim *sim, int loss, uint64_t seed);

/* The process died, the machine did not: everything written is kept. */
REMUS_API void remus_sim_kill(remus_sim *sim);

/* A copy of the world without its open files: several ways can be tried
 * from one point. */
REMUS_API int remus_sim_clone(remus_sim *sim, remus_sim **out);

/* Make a file of `size` zero bytes, durable (a disk).  Not an operation. */
REMUS_API int remus_sim_create(remus_sim *sim, const char *path,
                               uint64_t size);
/* Look at a file as a new reader would see it now.  Not an operation. */
REMUS_API int remus_sim_read(remus_sim *sim, const char *path, void *buf,
                             size_t len, uint64_t offset);
/* Write into a file as a process does that does not sync it.  Not an
 * operation. */
REMUS_API int remus_sim_write(remus_sim *sim, const char *path,
                              const void *buf, size_t len, uint64_t offset);
/* Change a file behind everybody's back, durably.  Not an operation. */
REMUS_API int remus_sim_poke(remus_sim *sim, const char *path, const void *buf,
                             size_t len, uint64_t offset);
/* The size of a file, or -ENOENT. */
REMUS_API int64_t remus_sim_file_size(remus_sim *sim, const char *path);

/* CRC32C by the table, whatever the CPU has. */
REMUS_API uint32_t remus_crc32c_table(uint32_t crc, const void *data,
                                      size_t len);

/* As remus_backup_open, on simulated files (state_dir may be any path). */
REMUS_API int remus_test_backup_open(const struct remus_backup_config *config,
                                     remus_sim *sim, remus_backup **out);
/*
 * Begin a session as a primary's connection would, without a copy: the
 * disks count as equal.  Sets the first epoch and number.  Ends the session
 * before, as the loss of its connection would.
 */
REMUS_API int remus_test_backup_begin(remus_backup *b);
/*
 * The same step by step.  greet: a hello and its reply; *content (enum
 * remus_content of record.h) and *held are what the reply says.  Then either
 * catch_up, or copy_begin, any copy_write, _zero and _flush, and copy_end; both
 * ways the next epoch opens.  keep: as RESYNC PARTIAL.
 */
REMUS_API int remus_test_backup_greet(remus_backup *b, uint32_t *content,
                                      uint64_t *held);
REMUS_API int remus_test_backup_catch_up(remus_backup *b);
REMUS_API int remus_test_backup_copy_begin(remus_backup *b, int keep);
REMUS_API int remus_test_backup_copy_write(remus_backup *b,
                                           unsigned int volume,
                                           const void *data, uint32_t len,
                                           uint64_t offset);
REMUS_API int remus_test_backup_copy_zero(remus_backup *b, unsigned int volume,
                                          uint64_t offset, uint64_t len);
REMUS_API int remus_test_backup_copy_flush(remus_backup *b);
REMUS_API int remus_test_backup_copy_end(remus_backup *b);
/* One record into the open epoch. */
REMUS_API int remus_test_backup_write(remus_backup *b, unsigned int volume,
                                      const void *data, uint32_t len,
                                      uint64_t offset);
REMUS_API int remus_test_backup_zero(remus_backup *b, unsigned int volume,
                                     uint64_t offset, uint64_t len);
/* Close the open epoch.  Returns 0 once it is acked (synced if durable). */
REMUS_API int remus_test_backup_barrier(remus_backup *b, const void *tag,
                                        size_t tag_len, int flags,
                                        uint64_t *epoch);
/* A commit as it comes from the primary (not synced by itself). */
REMUS_API int remus_test_backup_commit(remus_backup *b, uint64_t epoch);
/* What the apply thread does: move all that is committed to the disks. */
REMUS_API int remus_test_backup_apply(remus_backup *b);
/* Sync the disks, store the superblock, free segments. */
REMUS_API int remus_test_backup_checkpoint(remus_backup *b);
/* Journal cost that the primary may still spend on writes; < 0: overspent.
 * The other calls here take no record that it does not cover. */
REMUS_API int64_t remus_test_backup_room(remus_backup *b);
/* Bytes in use of the segment that is written to; 0: there is none. */
REMUS_API uint64_t remus_test_backup_head(remus_backup *b);
/* How many blocks of a range differ from `data`, as a comparison finds it. */
REMUS_API int remus_test_backup_differs(remus_backup *b, unsigned int volume,
                                        const void *data, uint32_t len,
                                        uint64_t offset);
/* Free the handle as a dying process would: no I/O at all. */
REMUS_API void remus_test_backup_abandon(remus_backup *b);
/* As if the primary's word, that it steps down, had never arrived. */
REMUS_API void remus_test_backup_forget_answer(remus_backup *b);
/* Store how current its default checkpoint is, as it does now and then. */
REMUS_API void remus_test_backup_store_current(remus_backup *b);

/* What a primary does about its role, after it was opened in `state_dir` (and
 * took a promoted backup over, if that is one). */
enum remus_test_role_what {
    REMUS_TEST_ROLE_OPEN,  /* no more */
    REMUS_TEST_ROLE_FENCE, /* steps down, or is failed away from */
    REMUS_TEST_ROLE_ALONE  /* lets the first write of an outage pass */
};

/* Who it is then. */
struct remus_test_role {
    unsigned char generation[16];
    unsigned char parent[16]; /* newest ancestor, if there are any */
    uint64_t ended;           /* ... and the epoch with which it ended */
    uint32_t ancestors;
    uint64_t next_epoch;
};

/* On simulated files, and the process dies at once.  0, or what failed. */
REMUS_API int remus_test_role(remus_sim *sim, const char *state_dir, int what,
                              struct remus_test_role *out);

/* The name of the operation that fail_after made fail ("pwrite"), or "" as
 * long as it has not. */
REMUS_API const char *remus_sim_failed_op(remus_sim *sim);
/* The path of the file that it was done to; of sync_dir: the name that was
 * opened, made or removed last.  Valid until the next one fails; call it when
 * nothing runs. */
REMUS_API const char *remus_sim_failed_path(remus_sim *sim);
/* Shall drop_cache take effect?  At first it does nothing, as a hint may. */
REMUS_API void remus_sim_drops_cache(remus_sim *sim, int on);

/* Shall reads and writes be interrupted, and be short, by chance? */
REMUS_API void remus_sim_interrupts(remus_sim *sim, int on);

/*
 * A dirty map on simulated files, without a primary (dirty.h).  mark:
 * pin >= 0 marks in the set of an earlier pin, else in the
 * open one.  forget: what the primary's thread does.
 */
typedef struct remus_test_dirty remus_test_dirty;
REMUS_API int remus_test_dirty_open(remus_sim *sim, const char *state_dir,
                                    const uint64_t *sizes,
                                    unsigned int volumes,
                                    unsigned int generation,
                                    remus_test_dirty **out);
REMUS_API void remus_test_dirty_close(remus_test_dirty *t, int clean);
/* A write to image /images/VOLUME begins and is carried out; done: it has
 * ended.  settle: what the primary's upkeep does. */
REMUS_API int remus_test_dirty_write(remus_test_dirty *t, unsigned int volume,
                                     int done);
REMUS_API void remus_test_dirty_settle(remus_test_dirty *t);
REMUS_API int remus_test_dirty_valid(remus_test_dirty *t);
REMUS_API uint64_t remus_test_dirty_forgotten(remus_test_dirty *t);
REMUS_API void remus_test_dirty_renew(remus_test_dirty *t);
REMUS_API void remus_test_dirty_doubt(remus_test_dirty *t);
REMUS_API void remus_test_dirty_base(remus_test_dirty *t, uint64_t epoch);
REMUS_API int remus_test_dirty_pin(remus_test_dirty *t);
REMUS_API void remus_test_dirty_unpin(remus_test_dirty *t, int pin);
REMUS_API void remus_test_dirty_mark(remus_test_dirty *t, int pin,
                                     unsigned int volume, uint64_t offset,
                                     uint64_t len);
REMUS_API void remus_test_dirty_roll(remus_test_dirty *t, uint64_t epoch);
REMUS_API void remus_test_dirty_stable(remus_test_dirty *t, uint64_t epoch);
REMUS_API void remus_test_dirty_forget(remus_test_dirty *t);
REMUS_API uint64_t remus_test_dirty_collect(remus_test_dirty *t, uint64_t has,
                                            uint64_t epoch);
REMUS_API int remus_test_dirty_next(remus_test_dirty *t, uint64_t max,
                                    unsigned int *volume, uint64_t *offset,
                                    uint64_t *len);
REMUS_API int remus_test_dirty_test(remus_test_dirty *t, unsigned int volume,
                                    uint64_t block);
REMUS_API uint64_t remus_test_dirty_bytes(remus_test_dirty *t);
#define REMUS_TEST_DIRTY_BLOCK 16384

/* The first 16 bytes of SHA-256. */
REMUS_API int remus_test_hash(const void *data, size_t len,
                              unsigned char *out);

/* remus_drbd_open with the kind given: 1 our node, 0 a kernel device, whose
 * /proc/drbd is `proc`; a first barrier waits for it at most `ready_ms`. */
REMUS_API int remus_test_drbd_open_as(const char *path, int is_node,
                                      const char *proc, int ready_ms,
                                      remus_drbd **out);

/* A device of a group whose phases return at once. */
REMUS_API const struct remus_device_ops *remus_test_null_ops(void);

/* Nanoseconds of `epochs` times postsuspend, preresume and commit, called
 * from C; 0 if one fails. */
REMUS_API uint64_t remus_test_group_ns(remus_group *g, unsigned int epochs);

/* Has a primary of this process ever gone from a state to one that can't
 * follow it?  1 and the newest such pair. */
int remus_test_odd_transition(int *from, int *to);

/* cffi:end */

/* The table of a simulated disk. */
remus_io *remus_sim_io(remus_sim *sim);

#endif
