/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Do two disks share bytes?  sysfs says of a block device what it is made of:
 *
 *   /sys/dev/block/MAJOR:MINOR/loop/backing_file, offset, sizelimit
 *                              partition, start, size (then the device is the
 *                              folder above)
 *                              slaves/NAME/dev
 */
#include "link/disks.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/error.h"

#define DEPTH 16 /* devices on devices */

struct disk {
    int block;
    dev_t dev; /* its number; of a file, where it lies */
    ino_t ino; /* of a file */
};

/* 0: there is none. */
static int disk_of(const char *path, struct disk *d)
{
    struct stat st;
    if (stat(path, &st))
        return 0;
    *d = (struct disk){S_ISBLK(st.st_mode) != 0, st.st_dev, st.st_ino};
    if (d->block)
        *d = (struct disk){1, st.st_rdev, 0};
    return d->block || S_ISREG(st.st_mode);
}

static int same(const struct disk *a, const struct disk *b)
{
    return a->block == b->block && a->dev == b->dev && a->ino == b->ino;
}

/* The text of a file of sysfs, without its last newline.  0: there is none. */
static int attribute(dev_t dev, const char *name, char out[PATH_MAX])
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "/sys/dev/block/%u:%u/%s", major(dev),
             minor(dev), name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, out, PATH_MAX - 1);
    if (fd >= 0)
        close(fd);
    if (n < 0)
        return 0;
    out[n] = '\0';
    out[strcspn(out, "\n")] = '\0';
    return 1;
}

static int number(dev_t dev, const char *name, struct disk *d)
{
    char text[PATH_MAX];
    unsigned int ma, mi;
    if (!attribute(dev, name, text) || sscanf(text, "%u:%u", &ma, &mi) != 2)
        return 0;
    *d = (struct disk){1, makedev(ma, mi), 0};
    return 1;
}

/*
 * A part of a disk: the loop devices and partitions that it is seen through
 * are looked through, so what lies below is a file, or a device of another
 * kind.
 */
struct part {
    struct disk of;
    uint64_t start, end; /* bytes of it */
};

static uint64_t value(dev_t dev, const char *name, uint64_t unit)
{
    char text[PATH_MAX];
    uint64_t n = attribute(dev, name, text) ? strtoull(text, NULL, 10) : 0;
    return n < UINT64_MAX / 2 / unit ? n * unit : UINT64_MAX / 2;
}

/* What `p`, of a device, is on the one below it. */
static void move_down(struct part *p, const struct disk *below, uint64_t start,
                      uint64_t size)
{
    uint64_t end = size && p->end > size ? size : p->end;
    p->start = p->start < UINT64_MAX / 2 ? p->start + start : UINT64_MAX / 2;
    p->end = end < UINT64_MAX / 2 ? end + start : UINT64_MAX;
    p->of = *below;
}

static struct part look_through(const struct disk *d)
{
    struct part p = {*d, 0, UINT64_MAX};
    for (int depth = 0; p.of.block && depth < DEPTH; depth++) {
        char text[PATH_MAX];
        struct disk below;
        dev_t dev = p.of.dev;
        if (attribute(dev, "loop/backing_file", text) && disk_of(text, &below))
            move_down(&p, &below, value(dev, "loop/offset", 1),
                      value(dev, "loop/sizelimit", 1));
        else if (attribute(dev, "partition", text) &&
                 number(dev, "../dev", &below))
            move_down(&p, &below, value(dev, "start", 512),
                      value(dev, "size", 512));
        else
            break;
    }
    return p;
}

static int stands_on(const struct disk *d, const struct disk *below,
                     int depth);

static int slave_stands_on(dev_t dev, const struct disk *below, int depth)
{
    char path[64];
    snprintf(path, sizeof path, "/sys/dev/block/%u:%u/slaves", major(dev),
             minor(dev));
    DIR *dir = opendir(path);
    const struct dirent *entry;
    int found = 0;
    while (dir && !found && (entry = readdir(dir))) {
        char name[sizeof entry->d_name + 16];
        struct disk slave;
        snprintf(name, sizeof name, "slaves/%s/dev", entry->d_name);
        found = entry->d_name[0] != '.' && number(dev, name, &slave) &&
                stands_on(&slave, below, depth + 1);
    }
    if (dir)
        closedir(dir);
    return found;
}

/* Does it share bytes with the other one, or with what that is a part of?  Of
 * a device made of others (dm, md) all of them count: sysfs does not say which
 * bytes. */
static int stands_on(const struct disk *d, const struct disk *below, int depth)
{
    struct part a = look_through(d), b = look_through(below);
    if (same(&a.of, &b.of))
        return a.start < b.end && b.start < a.end;
    return a.of.block && depth < DEPTH &&
           slave_stands_on(a.of.dev, below, depth);
}

int remus_disks_check(const struct remus_volume *volumes, unsigned int count)
{
    for (unsigned int i = 1; i < count; i++)
        for (unsigned int k = 0; k < i; k++) {
            const struct remus_volume *v = &volumes[i], *w = &volumes[k];
            struct disk a, b;
            /* One disk by two names: the second one finds it locked. */
            if (!disk_of(v->path, &a) || !disk_of(w->path, &b) || same(&a, &b))
                continue;
            if (stands_on(&a, &b, 0) || stands_on(&b, &a, 0))
                return remus_fail(-EINVAL,
                                  "volumes %s and %s: %s and %s are made of "
                                  "the same bytes: give each its own disk",
                                  w->name, v->name, w->path, v->path);
        }
    return 0;
}
