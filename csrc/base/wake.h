/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Waking a thread that is in poll(2): an eventfd. */
#ifndef REMUS_WAKE_H
#define REMUS_WAKE_H

/* A descriptor to poll for POLLIN, or -errno (with a text). */
int remus_wake_open(void);

/* Make it readable; stays so until it is cleared.  Never blocks; -1: a
 * no-op. */
void remus_wake(int wake);

/* Forget what was told; 1 if there was something.  Never blocks. */
int remus_wake_clear(int wake);

/* -1 is allowed. */
void remus_wake_close(int wake);

#endif
