/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Do two disks share bytes? */
#ifndef REMUS_DISKS_H
#define REMUS_DISKS_H

#include "remus.h"

/*
 * Is one volume's disk made of another one's: a loop device on its image, a
 * partition of it, a device-mapper or md device on it, however deep?  As far
 * as sysfs tells.  Two parts of one disk are two disks.  0, or -EINVAL with a
 * text.
 */
int remus_disks_check(const struct remus_volume *volumes, unsigned int count);

#endif
