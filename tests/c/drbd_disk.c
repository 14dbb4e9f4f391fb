/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * drbd_disk DEVICE: one checkpoint of a device, through the public interface.
 *
 * Prints a line for each call: its name, its result, the library's text if
 * it failed. After a failed open there are no more lines. Exits with 0 unless
 * it was called wrongly: what failed is the caller's to judge.
 *
 * Linked statically, so that a guest needs nothing but this file.
 */
#include <stdio.h>

#include "remus.h"

static int say(const char *call, int rc)
{
    printf("%s %d%s%s\n", call, rc, rc < 0 ? " " : "",
           rc < 0 ? remus_last_error() : "");
    return rc;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: drbd_disk DEVICE\n");
        return 2;
    }
    remus_drbd *dev;
    if (say("open", remus_drbd_open(argv[1], &dev)) < 0)
        return 0;
    say("is_node", remus_drbd_is_node(dev));
    say("postsuspend", remus_drbd_postsuspend(dev, 0));
    say("preresume", remus_drbd_preresume(dev, 1000));
    say("commit", remus_drbd_commit(dev));
    remus_drbd_close(dev);
    return 0;
}
