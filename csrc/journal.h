/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The backup's journal: a write-ahead log of records in a ring of segment
 * files, all of one size, written with zeros once when they are made and
 * reused ever after.  docs/formats.md tells the same with an example.
 *
 * A segment file: one page of header, then records back to back.
 *
 *   offset size  (header; numbers little-endian)
 *    0     4    magic 0x4a4d4552 ("REMJ")
 *    4     4    format version, 1
 *    8     8    sequence number of this segment (file = seq mod segments)
 *   16     4    salt: random, put into every record of this segment
 *   20     4    salt of segment seq-1 (0 for the first after a drop)
 *   24     8    session id
 *   32     8    number of the first counted record that belongs here
 *   40     8    session start: number of the last barrier that is kept of
 *               what came before; else 0
 *   48     8    epoch that is open at the start of this segment
 *   56     4    flags: 1 = a session starts here
 *   60     4    segment bytes
 *   64     4    CRC32C of the resource's name
 *   68     4    CRC32C of the volumes it was written for: of each its name,
 *               NUL-padded to 64 bytes, and its size (8); 0 told as 1
 *   72     8    zeros
 *   80     4    CRC32C of bytes 0..79
 *
 * A record stands here as it came from the wire, with the segment's salt in
 * its header and the header CRC done anew.  A record never spans segments.
 * After every BARRIER and COMMIT the next record starts at the next multiple
 * of 4096; the bytes between are zero.
 *
 * A segment is valid if and only if its header is, its seq is the one
 * expected, and (but for the first) its previous salt is the salt of the
 * segment before.  What is valid in it ends at the first record that is not:
 * wrong magic, CRC, salt, session, number, epoch, or a barrier whose count or
 * running CRC differs.  The next segment counts only if its first number
 * continues exactly there; at a session start only if the last barrier
 * before it is the one it names, and then the records after that barrier are
 * dropped.
 *
 * Order of syncs: (1) the records of an epoch and its barrier, then the ack;
 * (2) its commit, then any byte of it into a disk; (3) the disks, then the
 * superblock with a new tail, then reuse of the segments before it.
 */
#ifndef REMUS_JOURNAL_H
#define REMUS_JOURNAL_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "io.h"
#include "record.h"

#define REMUS_JOURNAL_MAGIC 0x4a4d4552u
#define REMUS_JOURNAL_VERSION 1u
#define REMUS_SEGMENT_MIN 65536u
#define REMUS_SEGMENTS_MIN 4u
#define REMUS_SEGMENT_SESSION_START 1u

/* What a segment's header holds. */
struct remus_segment {
    uint64_t seq;
    uint32_t salt;
    uint32_t prev_salt;
    uint64_t session;
    uint64_t first_number;
    uint64_t prev_number;
    uint64_t epoch;
    uint32_t flags;
    uint32_t volumes; /* 0: not told */
};

/* Where the newest barrier or commit ends. */
struct remus_mark {
    uint64_t seq;     /* its segment; 0: none is known */
    uint64_t session; /* of that segment */
    uint64_t end;     /* bytes of the segment up to it, padding included */
    uint64_t number;  /* of the last counted record up to it */
};

/*
 * Lock order: sync_lock before the owner's lock.  "owner" is the mutex given
 * to remus_journal_open: functions say whether it must be held.
 */
struct remus_journal {
    remus_io *io;             /* constant after open */
    pthread_mutex_t *owner;   /* constant */
    pthread_mutex_t sync_lock; /* one sync at a time */
    char *dir;                /* constant */
    const char *resource;     /* constant; the owner's string */
    uint64_t segment_bytes;   /* constant */
    unsigned int segments;    /* constant: files in the ring */
    uint32_t max_payload;     /* constant */
    uint32_t volumes;         /* the owner sets it before it begins a segment;
                                 then constant */
    int *files;               /* constant: one open file a segment */
    uint32_t *salts;          /* owner: of the segment in each file, if used */
    struct remus_segment head; /* owner: segment being written; seq 0: none */
    uint64_t head_pos;        /* owner: bytes of it in use, staged ones too */
    uint64_t tail;            /* owner: oldest segment in use */
    uint64_t next_seq;        /* owner: seq of the next new segment */
    uint64_t hinted;          /* owner: bytes of head handed to writeback */
    uint32_t last_salt;       /* owner: salt of segment next_seq-1, or 0 */
    unsigned char *stage;     /* owner: bytes [stage_base, head_pos) */
    size_t stage_cap;         /* constant */
    uint64_t stage_base;      /* owner: a multiple of 4096 */
    uint64_t dirty_from;      /* owner: oldest segment not known synced */
    int failed;               /* owner: -errno of the failure that ended it */
};

/*
 * Make sure that `dir` is the journal of this state directory and nobody
 * else's, and hold it (journal_owner.c).  `fresh`: there is no state yet, so
 * an empty or absent directory is taken.  The lock file (>= 0), or -errno
 * with a text: -EBUSY in use; -EEXIST another state's; -ENOENT not there.
 */
int remus_journal_claim(remus_io *io, const char *state_dir, const char *dir,
                        int fresh);

/*
 * Open the segment files; `fresh`: make those that are not there (zero-filled
 * and synced; blocks for that).  0 or -errno with a text.  No lock needed.
 */
int remus_journal_open(struct remus_journal *j, remus_io *io,
                       pthread_mutex_t *owner, const char *dir,
                       const char *resource, uint64_t total_bytes,
                       uint64_t segment_bytes, int fresh);
void remus_journal_close(struct remus_journal *j);
/* Free memory only: as a dying process would.  No I/O. */
void remus_journal_abandon(struct remus_journal *j);

/* Largest payload of a record for a segment size. */
uint32_t remus_journal_max_payload(uint64_t segment_bytes);

/*
 * Begin a new segment after the head (owner held).  seg: session,
 * first_number, prev_number, epoch, flags are given; the rest is set here.
 * -ENOSPC if no segment is free.
 */
int remus_journal_begin_segment(struct remus_journal *j,
                                const struct remus_segment *seg);
/* Room left in the head for one more record of `length` payload bytes? */
int remus_journal_fits(const struct remus_journal *j, uint32_t length);
/*
 * Append a record (owner held; it must fit).  `header` is salted in place.
 * *pos: linear position of the payload.  Pads and writes out after BARRIER
 * and COMMIT.  A failure is final.
 */
int remus_journal_append(struct remus_journal *j,
                         unsigned char header[REMUS_REC_HEADER], int pad,
                         const unsigned char *payload, uint32_t length,
                         uint64_t *pos);
/* Make everything appended and flushed so far durable (owner NOT held). */
int remus_journal_sync(struct remus_journal *j);
/* Segments before `tail` may be reused (owner held). */
void remus_journal_free(struct remus_journal *j, uint64_t tail);
/* Forget everything: the next segment is `next_seq`, the first of a new
 * chain (owner held). */
void remus_journal_drop(struct remus_journal *j, uint64_t next_seq);
/*
 * Forget what comes after a mark, whose segment is in use: nothing but
 * records of an epoch that was never closed.  Only commits may be appended
 * behind it; the next counted record needs a segment that starts a session.
 * Both locks held: a sync under way would take what comes for synced.
 * What was there is dropped by the rule at a session start, or, once the new
 * segment is written, by its salt, which is not the one that is looked for;
 * what is left of it behind a new commit has not the number that is expected.
 */
void remus_journal_rewind(struct remus_journal *j,
                          const struct remus_mark *mark);
/* Segments in use / not in use (owner held). */
unsigned int remus_journal_used(const struct remus_journal *j);
unsigned int remus_journal_unused(const struct remus_journal *j);
/* Credit that an unused segment is surely worth. */
uint64_t remus_journal_segment_worth(const struct remus_journal *j);
/*
 * Read payload bytes at a linear position: index of the segment's file times
 * segment_bytes, plus the offset in it (flushed bytes only; any thread).
 */
int remus_journal_read(struct remus_journal *j, uint64_t pos, void *buf,
                       size_t len);

/*
 * Recovery.  The visitor sees every record that is valid by itself, in
 * order, and says whether the log goes on: 0 yes, 1 the log ends before this
 * record, <0 error.  segment() sees each segment first, same results.
 */
struct remus_journal_visitor {
    int (*segment)(void *ctx, const struct remus_segment *seg, int first);
    int (*record)(void *ctx, const struct remus_record *r,
                  const unsigned char *payload, uint64_t pos);
    void *ctx;
};
/*
 * Sync the segment files, then scan from segment `tail`.  Sets next_seq so
 * that the next segment follows what was valid.  No lock needed.
 */
int remus_journal_recover(struct remus_journal *j, uint64_t tail,
                          const struct remus_journal_visitor *v);

#endif
