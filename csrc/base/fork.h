/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a fork of the host program leaves in the child.
 *
 * A child has the handles' memory and descriptors, but none of their
 * threads.  So it lets go of the descriptors, at once and by itself: a lock
 * (flock and OFD locks belong to the open file, which both share), a
 * connection, a listening socket or a mount would else outlive its parent.
 * Closing them takes nothing from the parent.  Its calls on an inherited
 * handle answer -ECHILD (entry.h).  An exec closes them anyway.
 *
 * Every descriptor that a handle keeps is registered from its creation on
 * and closed through remus_fd_close(), or forgotten before somebody else
 * closes it: the child would close a stranger's that got the same number.
 */
#ifndef REMUS_FORK_H
#define REMUS_FORK_H

/* Register; returns `fd`, also a negative one, with errno as it was. */
int remus_fd_own(int fd);

/* It belongs to somebody else from here on. */
void remus_fd_disown(int fd);

/* Forget it and close(2) it. */
int remus_fd_close(int fd);

/* Which process is this?  The number grows in each forked child. */
unsigned int remus_fork_generation(void);

/*
 * For who must know that no child has a descriptor unregistered: take a
 * number, which waits for a fork under way in another thread; make the
 * descriptor and register it; and if a fork has begun since, close it and
 * make another one.
 */
unsigned int remus_fork_quiet(void);
int remus_fork_since(unsigned int number);

#endif
