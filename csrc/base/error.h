/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The thread-local text behind the last error (remus_last_error). */
#ifndef REMUS_ERROR_H
#define REMUS_ERROR_H

/*
 * Keep a text for remus_last_error() and return `err` (a negative errno) as
 * it is, so that a failing function can say `return remus_fail(-EIO, ...)`.
 * Say which operation on what, why, and what to do.
 */
int remus_fail(int err, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Put "prefix: " before the text of the last error; returns `err`. */
int remus_fail_in(int err, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* What is no printable UTF-8 in it, or turns or hides what is, becomes '?':
 * others may have written it. */
void remus_text_clean(char *text);

/* The system's words for a (positive or negative) errno, thread-safe. */
const char *remus_errno_text(int err);

#endif
