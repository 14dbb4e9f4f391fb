/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * remus.h - checkpointed disk replication for highly available guests.
 *
 * The public face of libremus_native, in three parts that can be included
 * alone: remus/replica.h (primary and backup), remus/devices.h (DRBD devices,
 * FUSE nodes, groups of devices), remus/statistics.h (what epochs took).
 * remus/common.h holds what they share.
 *
 * Conventions for every function, unless its comment says otherwise:
 *  - Result: 0 (or a count, where said) on success, -errno on failure.
 *    remus_last_error() has the text of the calling thread's last failure: the
 *    object, the operation, the cause, and what to do.
 *  - Errors: a comment names the errors of its function.  Every function with
 *    a handle can also fail with -EINVAL (NULL, see below) and -ECHILD (forks,
 *    see below).  A function that names no error of its own has only the two of
 *    them.
 *  - Sizes and offsets are bytes, times are milliseconds (`_ms`) or
 *    nanoseconds (`_ns`).  A negative timeout waits without a limit; 0 does
 *    not wait.  A timeout that is too long to be added to the clock counts as
 *    no limit.
 *  - Threads: every function may be called from any thread.
 *    Handles may be used from any number of threads at once, except that
 *    nothing else may run on a handle during or after its close.
 *  - Blocking: a comment says whether a function blocks, and for what.  "Never
 *    blocks" means: not on a disk, not on the network, not on another host.
 *  - Nothing prints, installs a signal handler or forks (libfuse may print:
 *    see remus_export_open()).  Threads exist only inside a handle, between
 *    open and close.  The only global state is a list of the library's own
 *    descriptors, for the rule on forks.
 *  - A choice is an enum, as wide as an int with every compiler that follows
 *    the platform's ABI (not with -fshort-enums).  Flags are bits of an enum,
 *    or-ed in an integer.  1 and 0 are yes and no.  A number that the enum does
 *    not have is -EINVAL, or is answered as said.
 *  - NULL for a handle, or for an argument that is not said to be optional,
 *    is -EINVAL.  A function that returns a pointer then returns NULL, one
 *    that returns an unsigned number 0, and one that returns nothing does
 *    nothing.  Every close takes NULL.
 *  - Ownership: what a caller passes in stays the caller's and is not used
 *    after the call, except as said (the devices of a group).
 *    Strings passed in are copied; strings handed out belong to the library.
 *    An open call that fails stores NULL in `out` and leaves nothing behind.
 *    A descriptor that is handed out belongs to its handle.
 *  - A struct that the caller allocates begins with its own size, struct_size
 *    (REMUS_INIT sets it; else -EINVAL), which tells a call how much of the
 *    struct the caller knows.  From a caller that was compiled with an older
 *    header, missing members count as 0, and only the known ones are filled.
 *    From a caller with a newer header, all members that this library does not
 *    know must be 0, else -E2BIG; they stay 0.  In every member 0 is the
 *    default.  In an array each element has the size of the first; in an array
 *    that a call fills, only the first one need be set.  (Epoch samples and
 *    buckets have no size and never change.)
 *  - Forks: a handle belongs to the process that opened it.  In a forked child
 *    every call on it returns -ECHILD (or what it returns for NULL) and does
 *    nothing.  So does a close: it ends nothing of the parent's and frees
 *    nothing.  The child lets go of the library's descriptors by itself
 *    (pthread_atfork), so no lock, connection, listening socket or mount
 *    outlives the parent in it.  It may open handles of its own.  A fork that
 *    does not run those handlers (vfork, posix_spawn, clone) must be followed
 *    by an exec, which closes the descriptors too.
 */
#ifndef REMUS_H
#define REMUS_H

#include "remus/common.h"
#include "remus/devices.h"
#include "remus/replica.h"
#include "remus/statistics.h"

#endif
