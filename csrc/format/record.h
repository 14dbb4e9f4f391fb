/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The record: the one framing of wire and journal.  docs/formats.md tells
 * the same with a worked example.  All numbers are little-endian.
 *
 *   offset size
 *    0     4   magic 0x534d4552 ("REMS")
 *    4     1   type (enum remus_record_type)
 *    5     1   flags (REMUS_REC_*; on RESYNC the step)
 *    6     2   volume
 *    8     4   salt: 0 on the wire; in a journal the segment's
 *   12     4   length of the payload that follows
 *   16     8   offset in the volume; BARRIER: records of the epoch
 *   24     8   range: bytes covered; BARRIER: running CRC of the epoch
 *   32     8   epoch
 *   40     8   session
 *   48     8   number of this record in the session's stream; 0: not counted
 *   56     4   CRC32C of the payload (0 if length is 0)
 *   60     4   CRC32C of bytes 0..59
 *
 * A record is valid if and only if the magic, the header CRC, the type and
 * the length's limit are right, and then its payload's CRC.  The header is
 * proven before the length in it is believed.
 *
 * Counted are WRITE and ZERO without the DIRECT flag, and BARRIER.  The
 * running CRC of an epoch is CRC32C over the header CRC fields (4 bytes
 * each, as on the wire, salt 0) of its counted records before the barrier.
 *
 * The payload of a BARRIER: 24 bytes, then a tag of 0 to 32 bytes.
 *
 *   offset size
 *    0    16   session of ioctls that took it; zeros: none (struct
 *              remus_request)
 *   16     8   number of the ioctl 20 in that session, from 1; 0: none
 *   24         tag
 *
 * ACK, APPLIED and PING (backup to primary) carry: epoch = newest acked,
 * offset = newest stable, range = credit (journal cost the primary may have
 * spent in this session), number = newest epoch that the disks durably hold.
 *
 * Their payload: 8 bytes, the newest epoch that the backup took as committed;
 * without it nothing is said of that.  In APPLIED then may follow what epochs
 * came to, 24 bytes each (struct remus_measured).  It is not in ACK: an ack
 * carries nothing that can wait.
 *
 * A type, a flag or a step of a copy that is not listed here is refused by
 * name, and so is a type that is only reserved.
 */
#ifndef REMUS_RECORD_H
#define REMUS_RECORD_H

#include <stddef.h>
#include <stdint.h>

#include "base/le.h"
#include "format/lineage.h"

#include "remus.h"

#define REMUS_REC_MAGIC 0x534d4552u
#define REMUS_REC_HEADER 64u
#define REMUS_REC_PAYLOAD_MAX (1u << 20)
#define REMUS_PAGE 4096u
/* The block of the dirty map and of comparisons (see primary/dirty.h). */
#define REMUS_BLOCK 16384u
#define REMUS_WIRE_VERSION 5u
/* In a journal a payload of so many bytes or more begins at a page. */
#define REMUS_REC_LARGE 65536u
/* What one counted WRITE or ZERO may cost of the backup's memory: two
 * extents of 48 bytes, its own and one that it splits. */
#define REMUS_INDEX_COST 96u
/* Epochs, record numbers and credit beyond it are refused, so that sums of
 * a few of them can't overflow. */
#define REMUS_NUMBER_MAX (1ull << 62)

enum remus_record_type {
    REMUS_REC_HELLO = 1,         /* primary: struct remus_hello */
    REMUS_REC_HELLO_REPLY = 2,   /* backup: struct remus_hello_reply */
    REMUS_REC_WRITE = 3,         /* payload at offset */
    REMUS_REC_ZERO = 4,          /* `range` bytes at offset become zero */
    REMUS_REC_BARRIER = 5,       /* payload: tag; closes `epoch` */
    REMUS_REC_ACK = 6,           /* answer to the barrier of `epoch` */
    REMUS_REC_COMMIT = 7,        /* `epoch` and all before it are complete */
    REMUS_REC_APPLIED = 8,       /* news of applied/stable epochs and credit */
    REMUS_REC_RESYNC = 9,        /* step of a copy, see REMUS_RESYNC_* */
    REMUS_REC_PING = 10,         /* alive */
    REMUS_REC_ERROR = 11,        /* payload: text; the connection ends */
    REMUS_REC_BYE = 12,          /* the sender ends on purpose */
    REMUS_REC_HASH = 13,         /* primary: hashes of the blocks of a range,
                                  or none: which are marked there?
                                  `number` comes back with the answer */
    REMUS_REC_HASH_REPLY = 14,   /* backup: which of them differ here */
    REMUS_REC_STEP_DOWN = 15,    /* backup: may I be promoted?  flags:
                                  REMUS_ASK_* */
    REMUS_REC_STEPPED_DOWN = 16, /* primary: flags 1: yes, fenced for good, and
                                  `epoch` is committed; 0: no; payload: why */
    REMUS_REC_TOLD = 17,         /* primary: an ioctl 30 answered 0 for
                                  `epoch`: it may be a default of a promote;
                                  not counted */
    REMUS_REC_TYPES,             /* one more than the largest in use */
    /* Reserved; refused by name.  MEMORY_* and GROW will be counted. */
    REMUS_REC_MEMORY_PAGES = 32, /* payload: pages of the guest's memory;
                                    offset: the first one's number */
    REMUS_REC_MEMORY_STATE = 33, /* payload: a piece of the device state;
                                    offset: in it, range: bytes of it all */
    REMUS_REC_GROW = 34, /* the volume has `range` bytes from `epoch` */
    REMUS_REC_MAP = 35,  /* backup: blocks that its own map marks:
                                  payload: bits; offset, range: as in HASH */
    REMUS_REC_RESERVED   /* one more than the largest reserved */
};

/* Flags of WRITE and ZERO. */
#define REMUS_REC_DIRECT 1u   /* part of a copy: straight to the disk */
#define REMUS_REC_CATCH_UP 2u /* read from the disk, not written by a guest */
/* Flag of COMMIT: what it names no call can name any more (its session is
 * over, after its grace, or was an earlier process's): whatever commit_by
 * says, it may be committed. */
#define REMUS_COMMIT_OVER 1u
/* Flag of ACK, APPLIED and PING: a checkpoint is pinned there, and newer ones
 * are closed, which nobody can commit for as long. */
#define REMUS_PROGRESS_PINNED 1u
/* Flags of BARRIER: REMUS_CP_IOCTL, REMUS_CP_DISK_ONLY of remus.h. */

/* Steps of a copy, in `flags` of RESYNC. */
enum remus_resync_step {
    REMUS_RESYNC_BEGIN = 1, /* backup: durably Inconsistent from here */
    REMUS_RESYNC_FLUSH = 2, /* backup: sync the disks, answer FLUSHED */
    REMUS_RESYNC_FLUSHED = 3,
    REMUS_RESYNC_END = 4, /* counted records follow, first `epoch` */
    REMUS_RESYNC_DONE = 5,
    REMUS_RESYNC_CATCH_UP = 6, /* counted records follow, first `epoch`;
                                  range: bytes that are to come in it */
    REMUS_RESYNC_PARTIAL = 7,  /* as BEGIN, but the disks count: first move
                                  every closed epoch into them */
    REMUS_RESYNC_ADOPTED = 8   /* backup: the primary's generation is stored
                                  here (answer to BEGIN, PARTIAL, CATCH_UP) */
};

struct remus_record {
    uint8_t type;
    uint8_t flags;
    uint16_t volume;
    uint32_t salt;
    uint32_t length;
    uint64_t offset;
    uint64_t range;
    uint64_t epoch;
    uint64_t session;
    uint64_t number;
    uint32_t payload_crc;
    uint32_t header_crc; /* set by decode and encode */
};

/* An ioctl 20 on a node: the process that sent it, and which one it was. */
struct remus_ioctl_id {
    unsigned char session[REMUS_ID_BYTES]; /* random; zeros: none */
    uint64_t number;                       /* from 1; 0: none */
};

#define REMUS_IOCTL_ID_BYTES 24u
#define REMUS_BARRIER_MAX (REMUS_IOCTL_ID_BYTES + REMUS_TAG_MAX)

/* The payload of a barrier; returns its length.  `by` NULL: no ioctl. */
uint32_t remus_barrier_encode(const struct remus_ioctl_id *by, const void *tag,
                              size_t tag_len,
                              unsigned char out[REMUS_BARRIER_MAX]);
/* The tag is what is behind REMUS_IOCTL_ID_BYTES. */
void remus_ioctl_id_encode(const struct remus_ioctl_id *by,
                           unsigned char out[REMUS_IOCTL_ID_BYTES]);
void remus_ioctl_id_decode(const unsigned char in[REMUS_IOCTL_ID_BYTES],
                           struct remus_ioctl_id *by);
/* Is it one, and the same one? */
int remus_ioctl_id_same(const struct remus_ioctl_id *a,
                        const struct remus_ioctl_id *b);

/* Write the header with its CRC; sets r->header_crc. */
void remus_record_encode(struct remus_record *r,
                         unsigned char out[REMUS_REC_HEADER]);

/* 0; or -EBADMSG with a text.  Proves magic, CRC, type and length. */
int remus_record_decode(const unsigned char in[REMUS_REC_HEADER],
                        struct remus_record *r);

/* Put a salt into an encoded header and redo its CRC. */
void remus_record_salt(unsigned char header[REMUS_REC_HEADER], uint32_t salt);

/* Is this record one that numbers and barriers count? */
int remus_record_counted(const struct remus_record *r);

/* The running CRC of an epoch, one header further. */
uint32_t remus_record_run(uint32_t run, uint32_t wire_header_crc);

/*
 * What a record costs of the journal's credit: the same sum on both sides.
 * A write pays for its place in the backup's index, too, and a large one for
 * the gap before it; a barrier for its padding, its commit and its TOLD.
 */
uint64_t remus_record_cost(const struct remus_record *r);

/*
 * Where a record's header stands in a segment if what is before it ends at
 * `at`: right there, or, if the payload is large, so that the payload begins
 * at a page.
 */
uint64_t remus_record_place(uint64_t at, uint32_t length);

/* BARRIER, COMMIT, TOLD: what is before it is complete.  In a journal the
 * next record begins at a page, so that a torn write never holds it. */
int remus_record_marks(const struct remus_record *r);

/* What a backup's disks and journal hold together. */
enum remus_content {
    REMUS_CONTENT_NONE,       /* never a copy */
    REMUS_CONTENT_PARTIAL,    /* a copy was begun and cut short */
    REMUS_CONTENT_COMPLETE,   /* all up to `held`, but no checkpoint */
    REMUS_CONTENT_CONSISTENT, /* all up to `held`, and a checkpoint */
    /* No writes of this primary are taken as yet: */
    REMUS_CONTENT_PROMOTED, /* it went on by itself from `held`, an epoch of
                                generation `origin` */
    REMUS_CONTENT_FOREIGN,  /* what another primary's disks were: compare */
    REMUS_CONTENT_SPLIT,    /* both sides went on from `origin` */
    REMUS_CONTENT_MARKED    /* as FOREIGN, but what differs from epoch `held`
                               of `generation` is known: it can be asked by
                               HASH records without hashes */
};

/* Does a backup that answers so take nothing? */
static inline int remus_content_refuses(uint32_t content)
{
    return content == REMUS_CONTENT_PROMOTED || content == REMUS_CONTENT_SPLIT;
}

/* The first words of both sides; the layout is in docs/formats.md. */
struct remus_hello {
    uint32_t version;
    uint8_t ack;
    uint8_t commit_by;
    uint16_t volumes;
    uint64_t next_epoch; /* the primary's lower bound */
    struct remus_lineage lineage;
    uint32_t flags;             /* none are known */
    struct remus_ioctl_id asks; /* is the barrier of this one here? */
    uint64_t sessions; /* in which it had something to send, before this */
    uint64_t session;  /* the newest of them */
    char resource[REMUS_NAME_MAX + 1];
    char name[REMUS_VOLUMES_MAX][REMUS_NAME_MAX + 1];
    uint64_t size[REMUS_VOLUMES_MAX];
};

struct remus_hello_reply {
    uint32_t version;
    uint32_t max_payload; /* of a counted record */
    uint64_t last_epoch;  /* the highest that the backup ever saw */
    uint64_t next_number; /* number of the first counted record */
    uint64_t credit;
    uint64_t reserve; /* credit beyond the limit, for barriers */
    unsigned char generation[REMUS_ID_BYTES]; /* whose disks it holds */
    uint64_t held; /* newest closed epoch that is here */
    uint64_t committed;
    uint64_t capacity; /* credit that one epoch can have at most */
    uint32_t content;  /* enum remus_content */
    uint32_t flags;    /* REMUS_REPLY_* */
    unsigned char origin[REMUS_ID_BYTES];
    uint64_t has; /* epoch of the barrier that the hello asked for, acked or
                     found at a start; 0: it is not here */
};

/* The journal has no segment to begin a session with: commits are taken, a
 * catch-up is not. */
#define REMUS_REPLY_FULL 1u
#define REMUS_REPLY_PINNED 2u /* as REMUS_PROGRESS_PINNED */
#define REMUS_REPLY_FLAGS (REMUS_REPLY_FULL | REMUS_REPLY_PINNED)

/* What an epoch came to, found out by the backup when it applied it. */
struct remus_measured {
    uint64_t epoch;
    uint64_t extents;   /* ranges of consecutive bytes, > 0 */
    uint64_t coalesced; /* bytes overwritten within the epoch */
};

#define REMUS_PROGRESS_BYTES 8u
#define REMUS_MEASURED_BYTES 24u
#define REMUS_MEASURED_RECORD 64u /* epochs in one record, at most */

void remus_measured_encode(const struct remus_measured *m,
                           unsigned char out[REMUS_MEASURED_BYTES]);
void remus_measured_decode(const unsigned char in[REMUS_MEASURED_BYTES],
                           struct remus_measured *m);

#define REMUS_HELLO_FIXED 144u
#define REMUS_HELLO_VOLUME 72u
#define REMUS_HELLO_ANCESTOR 24u
#define REMUS_HELLO_MAX                                                       \
    (REMUS_HELLO_FIXED + REMUS_HELLO_VOLUME * REMUS_VOLUMES_MAX +             \
     REMUS_HELLO_ANCESTOR * REMUS_ANCESTORS_MAX)
#define REMUS_HELLO_REPLY_BYTES 112u

/* Returns the length written (at most REMUS_HELLO_MAX). */
size_t remus_hello_encode(const struct remus_hello *h, unsigned char *out);
/* 0, or -EBADMSG with a text. */
int remus_hello_decode(const unsigned char *in, size_t len,
                       struct remus_hello *h);
void remus_hello_reply_encode(const struct remus_hello_reply *h,
                              unsigned char out[REMUS_HELLO_REPLY_BYTES]);
int remus_hello_reply_decode(const unsigned char *in, size_t len,
                             struct remus_hello_reply *h);

#endif
