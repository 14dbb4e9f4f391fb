/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the code relies on, said where it relies on it.
 *
 *     int err = REMUS_CHECK(at >= mark);
 *     if (err)
 *         return err;
 *
 * 0 if it holds.  If it does not, this is our own mistake, and going on could
 * cost data: a build with -DREMUS_CHECKED (all our tests) writes what failed
 * to stderr and aborts; any other build returns -ENOTRECOVERABLE with a text
 * that names the condition and its place, and the caller fails as after an
 * I/O error.
 */
#ifndef REMUS_CHECK_H
#define REMUS_CHECK_H

#define REMUS_CHECK(holds)                                                    \
    ((holds) ? 0 : remus_check_failed(#holds, __FILE__, __LINE__))

int remus_check_failed(const char *what, const char *file, int line);

#endif
