/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A mount outlives the process that serves it, if somebody else has its
 * descriptor, too, and the kept memory: this is how the next process goes on.
 * What it finds there, in the order in which it deals with it:
 *
 *   the INIT request   replayed to libfuse, its answer swallowed: the kernel
 *                      has it.  One without an answer is answered.
 *   open files         counted with the primary, if there is one.  Of what
 *                      one had joined and not heard of the backup is asked.
 *   begun writes       done again, one by one.  Nothing that overlaps one was
 *                      begun, or read, after it.
 *   other requests     in the order in which they came, by the workers.  An
 *                      OPEN that has its file already counts as open, whether
 *                      its answer was heard or not.
 *
 * An answer that the process before had sent already is refused by the
 * kernel, which is what we want of it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork.h"
#include "node/fuse_int.h"

/* ---- the session ------------------------------------------------------------ */

/* Until it has the kernel's descriptor, what the session answers goes
 * nowhere. */
static int new_session(remus_export *e,
                       const struct fuse_lowlevel_ops *operations)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0)
        return remus_fail(-errno, "mount %s: open /dev/null: %s",
                          e->mountpoint, remus_errno_text(errno));
    int err = remus_mount_again(e, null, operations);
    if (err)
        close(null);
    return err;
}

static void replay_init(remus_export *e)
{
    struct remus_kept_head *h = e->kept.head;
    struct fuse_buf buf = {.mem = h->init, .size = h->init_len};
    if (h->init_len)
        fuse_session_process_buf(e->se, &buf);
}

/* ---- open files --------------------------------------------------------------- */

/* The process before had it open for writing, and stepped down: what is
 * written to it now is refused. */
static void count_nowhere(struct remus_file *f)
{
    f->writes = 0;
    remus_ioctl_adopt_nowhere(&f->ioctl);
}

static void count_files(remus_export *e)
{
    remus_primary *p = remus_node_primary(e);
    remus_files_adopt(e);
    pthread_mutex_lock(&e->lock);
    uint32_t used = e->kept.head->files_used;
    pthread_mutex_unlock(&e->lock);
    for (uint32_t i = 0; i < used; i++) {
        struct remus_file *f = &e->files.v[i];
        if (!f->serial)
            continue;
        if (!p) {
            count_nowhere(f);
            continue;
        }
        if (f->writes && remus_primary_writer_opens(p))
            f->writes = 0; /* what it writes is refused, too */
        remus_primary_ioctl_adopt(p, &f->ioctl);
    }
    if (p)
        remus_primary_ioctl_adopted(p);
}

/* ---- requests ------------------------------------------------------------------ */

static uint64_t order_of(const struct remus_fuse_slot *w)
{
    uint64_t order = atomic_load(&w->e->kept.slots[w - w->e->slots].order);
    return order ? order : UINT64_MAX; /* it was just being read */
}

/* Into the list, by order. */
static void insert(struct remus_fuse_slot **at, struct remus_fuse_slot *w)
{
    while (*at && order_of(*at) <= order_of(w))
        at = &(*at)->next;
    w->next = *at;
    *at = w;
}

/* An interrupt that the process before had for it. */
static void interrupt_again(remus_export *e, uint64_t unique)
{
    struct {
        struct fuse_in_header head;
        struct fuse_interrupt_in body;
    } message = {.head = {.len = sizeof message,
                          .opcode = FUSE_INTERRUPT,
                          .unique = unique | 1},
                 .body = {.unique = unique}};
    struct fuse_buf buf = {.mem = &message, .size = sizeof message};
    fuse_session_process_buf(e->se, &buf);
}

static void prepare(struct remus_fuse_slot *w)
{
    struct remus_kept_slot *s = &w->e->kept.slots[w - w->e->slots];
    if (atomic_load(&s->interrupted))
        interrupt_again(w->e, w->unique);
}

static void do_again(struct remus_fuse_slot *w)
{
    struct fuse_buf buf = {.mem = remus_fuse_slot_bytes(w), .size = w->size};
    prepare(w);
    remus_fuse_slot_do(w);
    fuse_session_process_buf(w->e->se, &buf);
    if (remus_fuse_slot_done(w))
        remus_fuse_slot_leave(w);
}

/* All requests that are there: those begun are done again, the others left
 * for the workers. */
static void find_requests(remus_export *e, struct remus_fuse_slot **begun,
                          struct remus_fuse_slot **init)
{
    for (uint32_t i = 0; i < e->kept.head->slot_count; i++) {
        const struct fuse_in_header *in = remus_kept_request(&e->kept, i);
        struct remus_fuse_slot *w = &e->slots[i];
        if (!in || in->len < sizeof *in || in->len > REMUS_KEPT_STRIDE) {
            remus_kept_clear(&e->kept, i);
            continue;
        }
        remus_fuse_slot_unfree(w);
        w->size = in->len;
        w->unique = in->unique;
        if (in->opcode == FUSE_INIT && in->len <= REMUS_KEPT_INIT)
            *init = w;
        else if (atomic_load(&e->kept.slots[i].begun))
            insert(begun, w);
        else
            insert(&e->left, w);
    }
}

struct remus_fuse_slot *remus_adopt_next(remus_export *e)
{
    if (!e->adopted)
        return NULL;
    pthread_mutex_lock(&e->lock);
    struct remus_fuse_slot *w = e->left;
    if (w)
        e->left = w->next;
    pthread_mutex_unlock(&e->lock);
    if (w)
        prepare(w);
    return w;
}

int remus_adopt(remus_export *e, int device,
                const struct fuse_lowlevel_ops *operations)
{
    struct pollfd pf = {.fd = device};
    if (poll(&pf, 1, 0) < 0 || pf.revents & POLLERR)
        return remus_fail(-ENOTCONN, "mount %s: it was unmounted meanwhile",
                          e->mountpoint);
    int err = new_session(e, operations);
    if (err)
        return err;
    struct remus_fuse_slot *begun = NULL, *init = NULL;
    e->adopted = 1;
    find_requests(e, &begun, &init);
    if (!init)
        replay_init(e);
    if (dup3(device, fuse_session_fd(e->se), O_CLOEXEC) < 0) {
        err = remus_fail(-errno, "mount %s: %s", e->mountpoint,
                         remus_errno_text(errno));
        fuse_session_destroy(e->se);
        e->se = NULL;
        return err;
    }
    close(device);
    if (init) {
        e->kept.head->init_len = (uint32_t)init->size;
        memcpy(e->kept.head->init, remus_fuse_slot_bytes(init), init->size);
        do_again(init);
    }
    count_files(e);
    while (begun) {
        struct remus_fuse_slot *w = begun;
        begun = w->next;
        do_again(w);
    }
    return 0;
}
