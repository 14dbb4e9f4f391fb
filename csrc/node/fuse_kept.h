/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What must outlive the process that serves a mount, in one piece of shared
 * memory without pointers:
 *
 *   0            struct remus_kept_head
 *   files_at     open files: REMUS_FILES_MAX x struct remus_file
 *   nodes_at     owners and modes: volumes x struct remus_node
 *   slots_at     slot_count x struct remus_kept_slot
 *   bytes_at     slot_count x REMUS_KEPT_STRIDE: the requests, as they came
 *
 * A request is in a slot from the moment in which the kernel hands it out:
 * workers read /dev/fuse straight into one, whose header was cleared before.
 * So a slot holds a request if and only if the `unique` in its header is not
 * 0; it becomes 0 once the answer's write() has returned.
 *
 * A slot is begun from before its local write until after its answer, and the
 * range of the write is held for longer at both ends: so the ranges of those
 * that are begun are disjoint, and what is begun can be done again as long as
 * nothing else was.
 *
 * The pages of a slot that is read into are there before the read: where they
 * are not, and the reader is being killed, the kernel fails the request.
 * Those of a large slot that is only kept are given back behind its request.
 */
#ifndef REMUS_FUSE_KEPT_H
#define REMUS_FUSE_KEPT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct fuse_in_header;

#define REMUS_KEPT_INIT 256u /* bytes of the first request at most */
#define REMUS_KEPT_STRIDE ((1u << 20) + 8192u) /* bytes of a request at most */
#define REMUS_KEPT_SPARE 1024u /* slots beside those of background requests */
#define REMUS_KEPT_FAT 64u     /* of these slots the pages stay */

struct remus_kept_head {
    uint64_t magic;
    uint32_t volumes, slot_count;
    uint64_t files_at, nodes_at, slots_at, bytes_at, size; /* bytes */
    uint32_t file_size; /* of one open file's entry */
    uint32_t mounted;   /* a mount was asked for with its descriptor */
    uint32_t init_len;  /* 0: the first request has not been had */
    unsigned char init[REMUS_KEPT_INIT]; /* ... it */
    uint32_t files_used;   /* export.lock: those beyond were never open */
    uint32_t file_serials; /* export.lock: given out so far */
    _Alignas(64) _Atomic uint64_t orders; /* given out so far */
};

/* Who has the request: a worker, or the primary. */
struct remus_kept_slot {
    _Alignas(64) _Atomic uint64_t
        order;              /* in which the requests came; 0: not yet known */
    _Atomic uint32_t begun; /* its local write may have begun */
    _Atomic uint32_t interrupted; /* who waits for it got a signal */
    uint32_t volume;              /* what it changes */
    uint64_t start, end;          /* ... bytes */
};

/* The memory, mapped.  All of it is constant. */
struct remus_kept {
    int fd; /* -1: it is of this process only */
    struct remus_kept_head *head;
    struct remus_file *files;
    struct remus_node *nodes;
    struct remus_kept_slot *slots;
    unsigned char *bytes;
};

/* Make it, of this process only, for so many volumes and so many requests in
 * the background.  0 or -ENOMEM. */
int remus_kept_make(struct remus_kept *k, uint32_t volumes,
                    uint32_t background);
/* A file of memory for it: a descriptor, or -errno. */
int remus_kept_create(uint32_t volumes, uint32_t background);
/* Can such a file be mapped here?  0; -EINVAL with a text: it is not one for
 * so many volumes, or of another layout. */
int remus_kept_check(int fd, uint32_t volumes, uint32_t background);
/*
 * Map it; it is this struct's from here on.  0; -EINVAL as above; -ENOMEM.
 */
int remus_kept_map(struct remus_kept *k, int fd, uint32_t volumes,
                   uint32_t background);
void remus_kept_free(struct remus_kept *k);
/* Does it hold a request?  Its header, or NULL. */
const struct fuse_in_header *remus_kept_request(const struct remus_kept *k,
                                                uint32_t slot);

static inline unsigned char *remus_kept_bytes(const struct remus_kept *k,
                                              uint32_t slot)
{
    return k->bytes + (size_t)slot * REMUS_KEPT_STRIDE;
}

/* Have all its pages: it is going to be read into. */
void remus_kept_fatten(const struct remus_kept *k, uint32_t slot);
/* Have none but those of its first `len` bytes. */
void remus_kept_thin(const struct remus_kept *k, uint32_t slot, size_t len);

/* There is no request in it from here on, until one is read into it. */
void remus_kept_clear(const struct remus_kept *k, uint32_t slot);

#endif
