/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What every call of remus.h asks first: is there a handle, and is it this
 * process's?  One rule for all:
 *   int               -EINVAL for NULL, -ECHILD in a forked child, with a text
 *   a pointer         NULL
 *   a number          0
 *   nothing           does nothing (a close in a child frees nothing: the
 *                     threads that it would end are the parent's)
 * A pointer argument that is not said to be optional is as the handle.
 */
#ifndef REMUS_ENTRY_H
#define REMUS_ENTRY_H

/* The first member of what a caller's handle points to. */
struct remus_entry {
    unsigned int born; /* constant: generation of the process that opened it */
};

void remus_entry_init(struct remus_entry *entry);

/* 0, -EINVAL (NULL) or -ECHILD.  `call` without the "remus_". */
int remus_enter(const void *handle, const char *call);

/* 0 or -EINVAL for an argument that must be given. */
int remus_given(const void *argument, const char *call, const char *name);

#endif
