/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The kernel's side of a mount; see device.h. */
#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "net.h"
#include "node/fuse_int.h"
#include "sched.h"

struct request {
    struct request *next;
    struct fuse_in_header head;
    struct asked *asked; /* of a guest's thread, which waits; INIT: NULL */
    int taken, answered, error;
};

static struct device {
    int lives, descriptor, memory;
    uint64_t uniques;
    struct request *first; /* those without an answer, in order */
    int writers, moving;   /* open for writing; OPEN, RELEASE on their way */
    uint64_t moved;        /* how many of those there were */
} devices[2];

static const struct fuse_init_in init_body = {
    .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION};
static struct asked init_asked = {
    .opcode = FUSE_INIT, .body = &init_body, .body_len = sizeof init_body};

/* At the end of the list. */
static void add(struct device *d, struct request *r, struct asked *a)
{
    struct request **at = &d->first;
    r->asked = a;
    r->head = (struct fuse_in_header){
        .len = (uint32_t)(sizeof r->head + a->body_len + a->data_len),
        .opcode = a->opcode,
        .unique = d->uniques += 2,
        .nodeid = a->node};
    while (*at)
        at = &(*at)->next;
    *at = r;
}

void device_begin(int host, unsigned int volumes)
{
    static struct request init[2];
    struct device *d = &devices[host];
    *d = (struct device){.lives = 1, .uniques = 2};
    d->descriptor = world_device(host);
    d->memory = remus_kept_create(volumes, REMUS_FUSE_BACKGROUND * volumes);
    if (d->memory < 0)
        world_fail("no memory that is kept");
    init[host] = (struct request){.next = NULL};
    add(d, &init[host], &init_asked);
}

void device_end(int host)
{
    struct device *d = &devices[host];
    if (!d->lives)
        return;
    d->lives = 0;
    for (struct request *r = d->first; r; r = r->next) {
        r->answered = 1;
        r->error = ENOTCONN;
    }
    d->first = NULL;
    close(d->memory);
    world_net_host_gone(world_guest_of(host), 0);
}

int device_lives(int host)
{
    return devices[host].lives;
}

int device_descriptor(int host)
{
    return devices[host].descriptor;
}

int device_memory(int host)
{
    return devices[host].memory;
}

/* ---- the server's ----------------------------------------------------------- */

struct reader {
    const struct device *d;
    int thread;
};

static struct request *waiting(const struct device *d)
{
    struct request *r = d->first;
    while (r && r->taken)
        r = r->next;
    return r;
}

static int can_read(void *on)
{
    const struct reader *r = on;
    return !r->d->lives || world_cancelled(r->thread) || waiting(r->d);
}

ssize_t device_read(int host, void *buf, size_t cap)
{
    struct device *d = &devices[host];
    struct reader who = {d, world_self()};
    world_wait("a request", can_read, &who, WORLD_NEVER);
    struct request *r = waiting(d);
    if (!d->lives || world_cancelled(who.thread) || !r) {
        errno = ENODEV;
        return -1;
    }
    const struct asked *a = r->asked;
    unsigned char *to = buf;
    if (r->head.len > cap)
        world_fail("a request of %u bytes", r->head.len);
    r->taken = 1;
    memcpy(to, &r->head, sizeof r->head);
    memcpy(to + sizeof r->head, a->body, a->body_len);
    if (a->data_len)
        memcpy(to + sizeof r->head + a->body_len, a->data, a->data_len);
    /* It has the request, and may die before it knows. */
    world_point("request");
    return r->head.len;
}

/* What it changes of the files that are open. */
static void count(struct device *d, const struct asked *a, int error)
{
    const struct fuse_open_in *open = a->body;
    const struct fuse_release_in *release = a->body;
    if (a->opcode == FUSE_OPEN) {
        d->moving--;
        d->writers += !error && (open->flags & O_ACCMODE) != O_RDONLY;
    } else if (a->opcode == FUSE_RELEASE) {
        d->moving--;
        d->writers -= (release->flags & O_ACCMODE) != O_RDONLY;
    }
}

int device_answer(int host, uint64_t unique, int error, const void *data,
                  size_t len)
{
    struct device *d = &devices[host];
    struct request **at = &d->first;
    while (*at && (*at)->head.unique != unique)
        at = &(*at)->next;
    struct request *r = *at;
    if (!r)
        return -ENOENT;
    if (!r->taken)
        world_fail("contract 10: a request is answered that nobody has read");
    *at = r->next;
    struct asked *a = r->asked;
    if (a->out && !error) {
        a->len = len < a->cap ? len : a->cap;
        memcpy(a->out, data, a->len);
    }
    count(d, a, error);
    r->error = error;
    r->answered = 1;
    return 0;
}

/* ---- the guest's -------------------------------------------------------------- */

static int is_answered(void *on)
{
    const struct request *r = on;
    return r->answered;
}

int device_ask(int host, struct asked *a)
{
    struct device *d = &devices[host];
    struct request r = {.next = NULL};
    if (!d->lives)
        return -ENOTCONN;
    if (a->opcode == FUSE_OPEN || a->opcode == FUSE_RELEASE) {
        d->moving++;
        d->moved++;
    }
    add(d, &r, a);
    world_wait("an answer", is_answered, &r, WORLD_NEVER);
    return -r.error;
}

unsigned int device_taken(int host)
{
    unsigned int n = 0;
    for (const struct request *r = devices[host].first; r; r = r->next)
        n += r->taken && r->head.opcode != FUSE_INIT;
    return n;
}

uint64_t device_moved(int host)
{
    return devices[host].moved;
}

int device_writers(int host)
{
    return devices[host].moving ? -1 : devices[host].writers;
}
