/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The backup's journal: a write-ahead log of records in a ring of segment
 * files, all of one size, written with zeros once when they are made and
 * reused ever after.  docs/formats.md tells the same with an example.
 *
 * A segment file: one page of header (format/segment.h), then records back
 * to back.
 *
 * A record stands here as it came from the wire, with the segment's salt in
 * its header and the header CRC done anew.  A record never spans segments.
 * It follows the one before without a gap; but a payload of 64 KiB or more
 * begins at a page (remus_record_place), and after a mark, that is, a
 * BARRIER, COMMIT or TOLD, the next record begins at the next multiple of
 * 4096.  The bytes between are zero.
 *
 * NOTHING IS EVER WRITTEN WHERE SOMETHING WAS BEFORE A START.  A start is
 * that of a process or of a session.  The log ends there at its last valid
 * mark; what is behind that was never promised, and the segments behind the
 * mark's are free.  Up to the mark all is synced before anything follows it.
 * What follows begins in a fresh segment, of the kind `start`, whose header
 * names the end: the segment before, by its sequence and salt, the offset in
 * it, and the progress (number, epoch, its records and their running CRC) up
 * to it.  A segment that is begun because the one before is full is of the
 * kind `continue` and names the same of the place where that one ended.
 *
 * Between a start and the first counted record there is no segment to write
 * to: commits go into the superblock (`committed`).
 *
 * The superblock names the first segment to read (tail) and its salt; that
 * header is synced before the superblock names it.  Each header carries the
 * superblock's serial as of when it was begun.
 *
 * Recovery reads from the tail on.  The tail must be there with its salt,
 * else the journal is damaged.  Then, segment by segment:
 *
 *   - it counts if its header is valid, its sequence is the next one and it
 *     names the salt of the one before; else the log ends;
 *   - of the kind `continue` it counts if the log, read so far, ends exactly
 *     where it says and has come as far as it says; else records before it
 *     were never synced, and the log ends;
 *   - of the kind `start`: the log must be readable up to the end that it
 *     names, a mark must be there, and have come as far as it says.  Else the
 *     journal is damaged: it was synced.  What lies behind that end does not
 *     count;
 *   - records count as long as each is valid, with the segment's salt and
 *     session, and continues number, epoch and running CRC.
 *
 * A valid header of the kind `start` that names one before it, behind what
 * was reached, is damage, too: it was begun behind an end that was synced.
 * A header with a higher serial than the superblock's means that the
 * superblock is too old.  Damage is refused by name: nothing is offered that
 * might be less than what was promised.
 *
 * Order of syncs: (1) the records of an epoch and its barrier, then the ack;
 * (2) its commit, then any byte of it into a disk; (3) the disks, then the
 * superblock with a new tail, then reuse of the segments before it; (4) the
 * log up to its last mark, then a start; (5) the first segment's header, then
 * the superblock that names it, then an ack of what is in it.
 */
#ifndef REMUS_JOURNAL_H
#define REMUS_JOURNAL_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "base/io.h"
#include "format/record.h"
#include "format/segment.h"

#define REMUS_SEGMENT_MIN 65536u
#define REMUS_SEGMENTS_MIN 4u

/* Where the newest mark ends. */
struct remus_mark {
    uint64_t seq; /* its segment; 0: there is none */
    uint64_t end; /* bytes of the segment up to it, padding included */
    struct remus_progress at;
};

/*
 * Lock order: sync_lock before the owner's lock.  "owner" is the mutex given
 * to remus_journal_open: functions say whether it must be held.
 */
struct remus_journal {
    remus_io *io;                   /* constant after open */
    pthread_mutex_t *owner;         /* constant */
    pthread_mutex_t sync_lock;      /* one sync at a time */
    char *dir;                      /* constant */
    struct remus_journal_name name; /* constant; the owner's string in it */
    uint64_t segment_bytes;         /* constant */
    unsigned int segments;          /* constant: files in the ring */
    uint32_t max_payload;           /* constant */
    uint32_t volumes; /* the owner sets it before it begins a segment;
                                 then constant */
    int *files;       /* constant: one open file a segment */
    uint32_t *salts;  /* owner: of the segment in each file, if used */
    struct remus_segment head; /* owner: segment being written; seq 0: none */
    uint64_t head_pos;         /* owner: bytes of it in use, staged ones too */
    uint64_t tail;             /* owner: oldest segment in use */
    uint64_t next_seq;         /* owner: seq of the next new segment */
    struct remus_mark mark;    /* owner: where a start would go on */
    uint64_t hinted;           /* owner: bytes of head handed to writeback */
    unsigned char *stage;      /* owner: bytes [stage_base, head_pos) */
    size_t stage_cap;          /* constant */
    uint64_t stage_base;       /* owner: a multiple of 4096 */
    uint64_t dirty_from;       /* owner: oldest segment not known synced */
    uint64_t written;          /* owner: bytes of head that are in its file */
    uint64_t writes;           /* owner: so many ever */
    uint64_t marked;           /* owner: ... when the mark was written */
    uint64_t synced;           /* owner: so many are surely synced */
    int failed;                /* owner: -errno of the failure that ended it */
};

/*
 * Make sure that `dir` is the journal of this state directory and nobody
 * else's, and hold it (owner.c).  `fresh`: there is no state yet, so
 * an empty or absent directory is taken.  The lock file (>= 0), or -errno
 * with a text: -EBUSY in use; -EEXIST another state's; -ENOENT not there.
 * `id`: the journal's id.
 */
int remus_journal_claim(remus_io *io, const char *state_dir, const char *dir,
                        int fresh, unsigned char id[REMUS_ID_BYTES]);

/*
 * Open the segment files; `fresh`: make those that are not there (zero-filled
 * and synced; blocks for that); REMUS_JOURNAL_REMAKE: also in place of larger
 * ones, of a journal that is empty.  0 or -errno with a text.  No lock needed.
 */
#define REMUS_JOURNAL_REMAKE 2
int remus_journal_open(struct remus_journal *j, remus_io *io,
                       pthread_mutex_t *owner, const char *dir,
                       const struct remus_journal_name *name,
                       uint64_t total_bytes, int fresh);
/* 0; -EINVAL, with a text: a journal can't have this size. */
int remus_journal_check_limits(uint64_t total_bytes, uint64_t segment_bytes);
void remus_journal_close(struct remus_journal *j);
/* Free memory only: as a dying process would.  No I/O. */
void remus_journal_abandon(struct remus_journal *j);

/* Largest payload of a record for a segment size. */
uint32_t remus_journal_max_payload(uint64_t segment_bytes);

/*
 * Begin a new segment (owner held): behind the head, or, if there is none, as
 * a start behind the mark; then all up to the mark is synced.  Its header is
 * written, not synced.  -ENOSPC if no segment is free.
 */
int remus_journal_begin_segment(struct remus_journal *j, uint64_t session,
                                uint64_t serial,
                                const struct remus_progress *at);
/* Is nothing in it that a start would name?  (owner held) */
int remus_journal_empty(const struct remus_journal *j);
/* Room left in the head for one more record of `length` payload bytes? */
int remus_journal_fits(const struct remus_journal *j, uint32_t length);
/*
 * Append a record (owner held; it must fit).  `header` is salted in place.
 * *pos: linear position of the payload.  A mark is padded and written out;
 * `at` is the progress up to it.  A failure is final.
 */
int remus_journal_append(struct remus_journal *j,
                         unsigned char header[REMUS_REC_HEADER],
                         const struct remus_record *r,
                         const unsigned char *payload,
                         const struct remus_progress *at, uint64_t *pos);
/* Make everything appended and flushed so far durable (owner NOT held). */
int remus_journal_sync(struct remus_journal *j);
/*
 * Take both locks, and have all up to the mark synced.  Returns with them
 * held also if it could not be: -errno, and the journal has failed.
 */
int remus_journal_settle(struct remus_journal *j);
/* Segments before `tail` may be reused (owner held). */
void remus_journal_free(struct remus_journal *j, uint64_t tail);
/* Forget everything: the next segment is the first of a new log.  Returns its
 * sequence number (owner held). */
uint64_t remus_journal_drop(struct remus_journal *j);
/*
 * A session is over: what comes next is a start (both locks held; all up to
 * the mark is synced).  Segments behind the mark's are free: nothing but
 * records of an epoch that was never closed is in them.
 */
void remus_journal_end_session(struct remus_journal *j);
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
 * Recovery.  The visitor sees every record that is valid by itself, in order,
 * and says whether the log goes on: 0 yes, 1 the log ends before this record,
 * <0 error.  After each record *at is how far the log has come.  segment()
 * sees each segment that counts by the rules above.
 */
struct remus_journal_visitor {
    int (*segment)(void *ctx, const struct remus_segment *seg);
    int (*record)(void *ctx, const struct remus_record *r,
                  const unsigned char *payload, uint64_t pos,
                  struct remus_progress *at);
    void *ctx;
};
/*
 * Sync the segment files, then read what counts: from segment `tail` with
 * `salt` on; 0: nothing does.  Sets the mark, and next_seq behind it.
 * -EBADMSG with a text: damage, or a superblock with this serial is too old.
 * No lock needed.
 */
int remus_journal_recover(struct remus_journal *j, uint64_t tail,
                          uint32_t salt, uint64_t serial,
                          const struct remus_journal_visitor *v);

#endif
