/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Checks that both sides make of their configuration. */
#include "link/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/sized.h"
#include "link/disks.h"

static int name_ok(const char *name)
{
    size_t n = name ? strlen(name) : 0;
    if (n == 0 || n > REMUS_NAME_MAX || !strcmp(name, ".") ||
        !strcmp(name, ".."))
        return 0;
    for (; *name; name++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                    "0123456789._-",
                    *name))
            return 0;
    return 1;
}

static int check_volume(const struct remus_volume *volumes, unsigned int i)
{
    const struct remus_volume *v = &volumes[i];
    if (!name_ok(v->name))
        return remus_fail(-EINVAL,
                          "volume %u: name \"%s\": give 1 to %d characters "
                          "of A-Z a-z 0-9 . _ -",
                          i, v->name ? v->name : "(null)", REMUS_NAME_MAX);
    if (!strcmp(v->name, "status") || !strcmp(v->name, "status.json"))
        return remus_fail(-EINVAL,
                          "volume %u: the name \"%s\" is taken by the status "
                          "file of the node: choose another",
                          i, v->name);
    if (!v->path || !*v->path)
        return remus_fail(-EINVAL, "volume %s: no path given", v->name);
    if (v->size % 512)
        return remus_fail(-EINVAL,
                          "volume %s: size %llu is not a multiple of 512",
                          v->name, (unsigned long long)v->size);
    for (unsigned int k = 0; k < i; k++) {
        if (!strcmp(volumes[k].name, v->name))
            return remus_fail(-EINVAL, "two volumes are named %s", v->name);
        if (!strcmp(volumes[k].path, v->path))
            return remus_fail(-EINVAL,
                              "volumes %s and %s are both on %s: give each "
                              "its own disk",
                              volumes[k].name, v->name, v->path);
    }
    return 0;
}

int remus_config_check(const char *resource, const char *state_dir,
                       const struct remus_volume *volumes, unsigned int count,
                       int ack, int commit_by)
{
    if (!name_ok(resource))
        return remus_fail(-EINVAL,
                          "resource name \"%s\": give 1 to %d characters of "
                          "A-Z a-z 0-9 . _ -",
                          resource ? resource : "(null)", REMUS_NAME_MAX);
    if (!state_dir || !*state_dir)
        return remus_fail(-EINVAL, "resource %s: no state directory given",
                          resource);
    if (!volumes || count == 0 || count > REMUS_VOLUMES_MAX)
        return remus_fail(-EINVAL, "resource %s: %u volumes; give 1 to %d",
                          resource, count, REMUS_VOLUMES_MAX);
    if (ack != REMUS_ACK_DURABLE && ack != REMUS_ACK_MEMORY)
        return remus_fail(-EINVAL,
                          "resource %s: ack %d is neither durable nor memory",
                          resource, ack);
    if (commit_by != REMUS_COMMIT_BY_PRIMARY &&
        commit_by != REMUS_COMMIT_BY_BACKUP)
        return remus_fail(
            -EINVAL, "resource %s: commit_by %d is neither primary nor backup",
            resource, commit_by);
    for (unsigned int i = 0; i < count; i++) {
        int err = check_volume(volumes, i);
        if (err)
            return remus_fail_in(err, "resource %s", resource);
    }
    int err = remus_disks_check(volumes, count);
    return err ? remus_fail_in(err, "resource %s", resource) : 0;
}

int remus_config_volumes(const struct remus_volume **volumes,
                         unsigned int count, struct remus_volume *room,
                         const char *call)
{
    if (!*volumes || count > REMUS_VOLUMES_MAX)
        return 0;
    int err =
        remus_sized_each(room, sizeof *room, *volumes, count, call, "volumes");
    *volumes = room;
    return err;
}

int remus_config_keys(const char *resource, const char *psk_file,
                      const char *psk_identity, struct remus_tls_keys **keys)
{
    *keys = NULL;
    if (psk_file)
        return remus_tls_keys_load(
            psk_file, psk_identity ? psk_identity : resource, keys);
    return psk_identity ? remus_fail(-EINVAL,
                                     "psk_identity %s: no psk_file "
                                     "given",
                                     psk_identity)
                        : 0;
}

int remus_config_tls(const struct remus_tls_keys *keys, int tls_off)
{
    return keys && tls_off
               ? remus_fail(-EINVAL, "tls: both \"off\" and a psk_file: "
                                     "remove one of them")
               : 0;
}

int remus_disk_open(remus_io *io, const struct remus_volume *v, uint64_t *size)
{
    /* Of a block device that is also the claim that a mount makes; it says
     * nothing on a file. */
    int file = io->open(io, v->path, O_RDWR | O_EXCL);
    if (file == -EBUSY)
        return remus_fail(
            file,
            "volume %s: %s is in use: mounted, or held by "
            "another process: a replica needs its disk for itself",
            v->name, v->path);
    if (file < 0)
        return remus_fail(file, "volume %s: open %s: %s", v->name, v->path,
                          remus_errno_text(file));
    int err = io->claim(io, file);
    if (err == -EBUSY) {
        io->close(io, file);
        return remus_fail(err,
                          "volume %s: %s is in use by QEMU, which has locked "
                          "it: stop the guest or the tool that has it open",
                          v->name, v->path);
    }
    if (err) {
        io->close(io, file);
        return remus_fail(err == -EWOULDBLOCK ? -EBUSY : err,
                          "volume %s: %s is in use by another resource or "
                          "process: %s",
                          v->name, v->path, remus_errno_text(err));
    }
    err = io->size(io, file, size);
    if (err)
        err = remus_fail(err, "volume %s: size of %s: %s", v->name, v->path,
                         err == -ENOTBLK ? "neither a regular file nor a "
                                           "block device"
                                         : remus_errno_text(err));
    else if (v->size && *size != v->size)
        err = remus_fail(-EINVAL,
                         "volume %s: %s has %llu bytes, configured are %llu: "
                         "correct the size or replace the image",
                         v->name, v->path, (unsigned long long)*size,
                         (unsigned long long)v->size);
    else if (*size == 0 || *size % 512)
        err = remus_fail(-EINVAL,
                         "volume %s: %s has %llu bytes: the size of a disk "
                         "must be a multiple of 512 and not 0",
                         v->name, v->path, (unsigned long long)*size);
    if (err) {
        io->close(io, file);
        return err;
    }
    return file;
}

int remus_state_lock(remus_io *io, const char *resource, const char *state_dir)
{
    int err = remus_io_private(io, state_dir);
    if (err)
        return remus_fail_in(err, "resource %s: state directory", resource);
    char path[4096];
    snprintf(path, sizeof path, "%s/lock", state_dir);
    int file = io->open(io, path, O_RDWR | O_CREAT);
    if (file < 0)
        return remus_fail(file, "resource %s: open %s: %s", resource, path,
                          remus_errno_text(file));
    err = io->lock(io, file);
    if (err) {
        io->close(io, file);
        return remus_fail(err == -EWOULDBLOCK ? -EBUSY : err,
                          "resource %s: another process uses the state "
                          "directory %s (lock file %s): %s",
                          resource, state_dir, path, remus_errno_text(err));
    }
    return file;
}
