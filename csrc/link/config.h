/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Checks that both sides make of their configuration. */
#ifndef REMUS_CONFIG_H
#define REMUS_CONFIG_H

#include "base/io.h"
#include "remus.h"
#include "link/tls.h"

/*
 * Volumes that a caller gave, in `room` for REMUS_VOLUMES_MAX as structs of
 * ours; too many of them are left to remus_config_check().  0, -EINVAL or
 * -E2BIG.
 */
int remus_config_volumes(const struct remus_volume **volumes,
                         unsigned int count, struct remus_volume *room,
                         const char *call);
/* 0, or -EINVAL with a text: names, count, sizes, ack, commit_by. */
int remus_config_check(const char *resource, const char *state_dir,
                       const struct remus_volume *volumes, unsigned int count,
                       int ack, int commit_by);
/*
 * Load the key of `psk_identity` (NULL: the resource's name); *keys is NULL
 * if `psk_file` is.  0 or -errno with a text.
 */
int remus_config_keys(const char *resource, const char *psk_file,
                      const char *psk_identity, struct remus_tls_keys **keys);
/* -EINVAL if both a key and "off" were given. */
int remus_config_tls(const struct remus_tls_keys *keys, int tls_off);
/*
 * Open a volume's disk O_RDWR, lock it against other resources and check its
 * size.  Returns the file or -errno with a text; *size is set.
 */
int remus_disk_open(remus_io *io, const struct remus_volume *v,
                    uint64_t *size);
/*
 * Open and lock state_dir/lock.  The file or -errno with a text; -EPERM if
 * others can write to the directory.
 */
int remus_state_lock(remus_io *io, const char *resource,
                     const char *state_dir);

#endif
