/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The header of a journal segment, of which the rules are in
 * journal/journal.h.
 *
 * A segment file: one page of header, then records.
 *
 *   offset size  (header; numbers little-endian)
 *    0     4    magic 0x4a4d4552 ("REMJ")
 *    4     4    format version, 2
 *    8     8    sequence number of this segment (file = seq mod segments)
 *   16     4    salt: random, never 0; in every record of this segment
 *   20     4    salt of segment seq-1; 0: the first of a log
 *   24     8    where the log ended in segment seq-1, in bytes; 0: the first
 *   32     4    kind: 1 start, 2 continue
 *   36     4    flags: 1 = `epoch` is still open here
 *   40     8    session of the connection
 *   48     8    number of the next counted record
 *   56     8    epoch of the newest counted record before this segment
 *   64     8    counted records of that epoch so far, its barrier not counted
 *   72     4    their running CRC
 *   76     4    bytes of a segment
 *   80     8    serial of the superblock when this was begun
 *   88    16    id of the journal (journal.id)
 *  104     4    CRC32C of the resource's name
 *  108     4    CRC32C of the volumes it was written for: of each its name,
 *               NUL-padded to 64 bytes, and its size (8); 0 told as 1
 *  112    12    zeros
 *  124     4    CRC32C of bytes 0..123
 *
 * A header is valid if and only if magic and CRC are right and it names this
 * resource and this journal.  Another version, kind or flag in a header that
 * is valid otherwise is refused by name.
 */
#ifndef REMUS_SEGMENT_H
#define REMUS_SEGMENT_H

#include <stdint.h>

#include "format/record.h"
#include "remus.h"

#define REMUS_JOURNAL_MAGIC 0x4a4d4552u
#define REMUS_JOURNAL_VERSION 2u
#define REMUS_SEGMENT_HEADER 128u

enum remus_segment_kind {
    REMUS_SEGMENT_START = 1,   /* names an end that was synced */
    REMUS_SEGMENT_CONTINUE = 2 /* goes on where the one before is full */
};

#define REMUS_SEGMENT_OPEN 1u /* flag: `epoch` is not closed */

/* How far the log is: all that a reader carries from record to record. */
struct remus_progress {
    uint64_t number;  /* of the next counted record */
    uint64_t epoch;   /* of the newest counted record; 0: none is known */
    uint64_t records; /* of it, counted, without its barrier */
    uint32_t run;     /* their running CRC */
    int open;         /* its barrier has not come */
};

/* One counted record further.  0; 1: it does not continue what came. */
int remus_progress_take(struct remus_progress *at,
                        const struct remus_record *r);

/* What a segment's header holds. */
struct remus_segment {
    uint64_t seq;
    uint32_t salt;
    uint32_t prev_salt;
    uint64_t prev_end;
    uint32_t kind;
    uint64_t session;
    struct remus_progress at; /* before its first record */
    uint64_t serial;
    uint32_t volumes;
};

/* Whose journal it is. */
struct remus_journal_name {
    const char *resource;
    uint64_t segment_bytes;
    unsigned char id[REMUS_ID_BYTES];
};

void remus_segment_encode(const struct remus_segment *seg,
                          const struct remus_journal_name *name,
                          unsigned char out[REMUS_SEGMENT_HEADER]);
/*
 * 1: valid; 0: it is not, or another journal's; -EPROTONOSUPPORT with a text:
 * it is this journal's, and of a version, kind or flag that is not known.
 */
int remus_segment_decode(const unsigned char in[REMUS_SEGMENT_HEADER],
                         const struct remus_journal_name *name,
                         struct remus_segment *seg);

#endif
