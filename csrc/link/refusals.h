/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who was refused, by source: a table of fixed size.  A source that is not
 * in it takes the place of one that was quiet for REMUS_REFUSALS_QUIET_MS;
 * when there is none, it is counted under "others".  So a log that tells of
 * each new entry once is bounded, whatever is thrown at us.
 */
#ifndef REMUS_REFUSALS_H
#define REMUS_REFUSALS_H

#include <pthread.h>

#include "remus.h"

#define REMUS_REFUSALS_QUIET_MS 600000u

struct remus_refusals {
    pthread_mutex_t lock;
    /* All: lock.  The last entry is "others". */
    uint64_t total;
    unsigned int used;
    struct remus_refusal entry[REMUS_REFUSALS_MAX];
};

void remus_refusals_init(struct remus_refusals *r);
void remus_refusals_destroy(struct remus_refusals *r);
/* Note one.  `now_ns`: CLOCK_MONOTONIC.  Never allocates. */
void remus_refusals_note(struct remus_refusals *r, const char *source,
                         int cause, const char *text, uint64_t now_ns);
uint64_t remus_refusals_total(struct remus_refusals *r);
/* As remus_backup_refusals(); the first of `out` was checked. */
int remus_refusals_read(struct remus_refusals *r, struct remus_refusal *out,
                        unsigned int cap);

#endif
