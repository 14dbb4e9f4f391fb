/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A real session, recorded; and the real primary of the target that answers
 * it. */
#ifndef REMUS_FUZZ_SESSION_H
#define REMUS_FUZZ_SESSION_H

#include <sys/un.h>

#include "fuzz.h"
#include "primary/primary.h"

/* What went to the backup, and what to the primary, whole records only, of
 * the session FUZZ_SESSION. */
void fuzz_record(struct fuzz_stream *up, struct fuzz_stream *down);

struct remus_primary_config fuzz_primary_config(const char *address);
/* A copy of the world of a primary that was never started. */
remus_sim *fuzz_primary_world(void);
int fuzz_listen(struct sockaddr_un *un, const char *name);

#endif
