/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * remus.h - checkpointed disk replication for highly available guests.
 *
 * The public face of libremus_native, in three parts that can be included
 * alone: remus/replica.h (primary and backup), remus/devices.h (DRBD devices,
 * FUSE nodes, groups of devices), remus/statistics.h (what epochs took).
 * What they share stands in remus/common.h.
 *
 * Conventions that hold for every function unless it says otherwise:
 *  - Result: 0 (or a count, where said) on success, -errno on failure.  The
 *    text behind the last failure of the calling thread is
 *    remus_last_error(); it names the object, the operation and what to do.
 *  - Sizes and offsets are bytes, times are milliseconds (`_ms`) or
 *    nanoseconds (`_ns`).  A negative timeout waits without a limit.
 *  - Handles may be used from any number of threads at once, except that
 *    nothing else may run on a handle during or after its close.
 *  - Nothing prints, installs a signal handler or forks.  Threads exist only
 *    inside a handle, between open and close.  The only global state is a
 *    list of the library's own descriptors, for the rule on forks.
 *  - What is one of several is an enum, as wide as an int with every compiler
 *    that follows the platform's ABI (not with -fshort-enums); flags are bits
 *    of an enum, or-ed in an integer; 1 and 0 are yes and no.  A number that
 *    is none of an enum's is -EINVAL, or answered as said.
 *  - Strings passed in are copied; strings handed out belong to the library.
 *  - NULL for a handle, or for an argument that is not said to be optional,
 *    is -EINVAL.  A function that returns a pointer returns NULL then, one
 *    that returns a number 0, and one that returns nothing does nothing.
 *  - Structs that a caller allocates begin with their own size, struct_size
 *    (REMUS_INIT sets it, else -EINVAL), for the call to know how much of it
 *    the caller knows.  From a caller that was compiled with an older header
 *    what it lacks counts as 0, and only what it knows is filled.  From one
 *    with a newer header all that this library does not know must be 0, else
 *    -E2BIG; it stays 0.  In every member 0 is the default.  In an array each
 *    element has the size of the first; of one that a call fills only the
 *    first need be set.  (Epoch samples and buckets are as they are for good.)
 *  - Forks: a handle belongs to the process that opened it.  In a child that
 *    was forked every call on it answers -ECHILD (else as for NULL) and does
 *    nothing, a close too: that ends nothing of the parent's and frees
 *    nothing.  The child lets go of the library's descriptors by itself
 *    (pthread_atfork), so no lock, connection, listening socket or mount
 *    outlives the parent in it.  It may open handles of its own.  A fork that
 *    does not run those handlers (vfork, posix_spawn, clone) must be followed
 *    by an exec, which closes them, too.
 */
#ifndef REMUS_H
#define REMUS_H

#include "remus/common.h"
#include "remus/devices.h"
#include "remus/replica.h"
#include "remus/statistics.h"

#endif
