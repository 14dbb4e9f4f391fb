/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a side has to say, for a host program to read (remus_primary_log): the
 * newest REMUS_LOG_KEPT entries in memory of the handle, so that saying
 * something never allocates, waits or fails.  Guard: the owner's lock.
 */
#ifndef REMUS_LOG_H
#define REMUS_LOG_H

#include "remus.h"

struct remus_log {
    uint64_t added;       /* entries ever */
    uint64_t unread_from; /* ... those from here on nobody has seen */
    struct remus_log_entry kept[REMUS_LOG_KEPT]; /* number n is at n % KEPT */
};

/*
 * Say it, unless the newest entry has said the same.  A text completes the
 * newest entry if that has the same state and none, and was not read yet.
 */
void remus_log_add(struct remus_log *l, uint64_t now_ns,
                   enum remus_state state, int connected, const char *text);

/* What both calls ask of their arguments: 0 or -errno with a text. */
int remus_log_given(const struct remus_log_entry *out, unsigned int cap,
                    const uint64_t *next, const uint64_t *lost,
                    const char *call);

/* As remus_primary_log(); `out` was checked. */
int remus_log_read(struct remus_log *l, uint64_t after,
                   struct remus_log_entry *out, unsigned int cap,
                   uint64_t *next, uint64_t *lost);

#endif
