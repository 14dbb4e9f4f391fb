/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The threads that read FUSE requests and carry them out.
 *
 * Reads, writes and syncs wait for the local disk in the worker that has
 * them: a hop to another thread would cost each of them more than the page
 * cache does.  But a disk that stalls must hold neither all workers nor those
 * of another volume: each volume is a lane that so many may be in at once.
 * What comes beyond that is put off in its slot, and the next worker that is
 * done with its own in that lane takes it.  There are more workers than all
 * lanes hold, so there is always one that reads the next request, and an
 * ioctl 20 is answered whatever the disks do.
 */
#include "node/fuse_int.h"

#include <errno.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Thread_local unsigned char *worker_buffer;

unsigned char *remus_fuse_buffer(void)
{
    return worker_buffer;
}

/* It is found with the request that it is for. */
static void note_interrupt(remus_export *e, const struct fuse_buf *buf)
{
    struct fuse_interrupt_in in;
    if (buf->size < sizeof(struct fuse_in_header) + sizeof in)
        return;
    memcpy(&in, (char *)buf->mem + sizeof(struct fuse_in_header), sizeof in);
    remus_fuse_slot_interrupted(e, in.unique);
}

/* 1: the slot is this worker's again; 0: whoever will answer has it. */
static int process(struct remus_fuse_slot *w)
{
    remus_export *e = w->e;
    struct fuse_in_header in = {0};
    struct fuse_buf buf = {.mem = remus_fuse_slot_bytes(w), .size = w->size};
    if (buf.size >= sizeof in)
        memcpy(&in, buf.mem, sizeof in);
    remus_fuse_slot_do(w);
    if (in.opcode == FUSE_INIT && buf.size <= REMUS_KEPT_INIT) {
        memcpy(e->kept.head->init, buf.mem, buf.size);
        e->kept.head->init_len = (uint32_t)buf.size;
    } else if (in.opcode == FUSE_INTERRUPT) {
        note_interrupt(e, &buf);
    }
    fuse_session_process_buf(e->se, &buf);
    if (in.opcode == FUSE_INTERRUPT)
        remus_fuse_watch_wake(e);
    return remus_fuse_slot_done(w);
}

/* The lane of a request; NULL: it waits for no disk.  Reading a status does
 * not, nor does anything else but these. */
static struct remus_lane *lane_of(const struct remus_fuse_slot *w)
{
    struct fuse_in_header in;
    if (w->size < sizeof in)
        return NULL;
    memcpy(&in, remus_fuse_slot_bytes(w), sizeof in);
    int volume = remus_node_volume(w->e, in.nodeid);
    int waits = in.opcode == FUSE_READ || in.opcode == FUSE_WRITE ||
                in.opcode == FUSE_FSYNC || in.opcode == FUSE_FALLOCATE;
    return volume >= 0 && waits ? &w->e->lanes[volume] : NULL;
}

/* May this worker wait for the disk? */
static int enter_disk(remus_export *e, struct remus_lane *lane)
{
    pthread_mutex_lock(&e->disk_lock);
    int go = lane->at_disk < e->width;
    if (go)
        lane->at_disk++;
    pthread_mutex_unlock(&e->disk_lock);
    return go;
}

/* 1: this worker may wait for the disk; 0: another will carry it out. */
static int go_to_disk(struct remus_lane *lane, struct remus_fuse_slot *w)
{
    remus_export *e = w->e;
    if (enter_disk(e, lane))
        return 1;
    remus_fuse_slot_trim(w);
    pthread_mutex_lock(&e->disk_lock);
    /* One may be done by now. */
    int go = lane->at_disk < e->width;
    if (go) {
        lane->at_disk++;
    } else {
        w->next = NULL;
        *lane->tail = w;
        lane->tail = &w->next;
    }
    pthread_mutex_unlock(&e->disk_lock);
    return go;
}

/* Done with a request: the next one that was put off, or NULL. */
static struct remus_fuse_slot *leave_disk(remus_export *e,
                                          struct remus_lane *lane)
{
    pthread_mutex_lock(&e->disk_lock);
    struct remus_fuse_slot *next = lane->put_off;
    if (next) {
        lane->put_off = next->next;
        if (!lane->put_off)
            lane->tail = &lane->put_off;
    } else {
        lane->at_disk--;
    }
    pthread_mutex_unlock(&e->disk_lock);
    return next;
}

/* As process(). */
static int carry_out(struct remus_fuse_slot *w)
{
    remus_export *e = w->e;
    struct remus_lane *lane = lane_of(w);
    if (lane && !go_to_disk(lane, w))
        return 0;
    int own = process(w);
    struct remus_fuse_slot *next;
    while (lane && (next = leave_disk(e, lane)))
        if (process(next))
            remus_fuse_slot_leave(next);
    return own;
}

/* The next request, into a slot.  0: there will be none. */
static int receive(struct remus_fuse_slot *w)
{
    remus_export *e = w->e;
    ssize_t n;
    remus_fuse_slot_fatten(w);
    do /* ENOENT: it was aborted while it was on its way */
        n = read(fuse_session_fd(e->se), remus_fuse_slot_bytes(w),
                 REMUS_KEPT_STRIDE);
    while (n < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN) &&
           !fuse_session_exited(e->se));
    if (n > 0) {
        remus_fuse_slot_came(w, (size_t)n);
        return 1;
    }
    if (n < 0 && errno == ENODEV) /* unmounted */
        fuse_session_exit(e->se);
    return 0;
}

static void free_buffer(void *arg)
{
    (void)arg;
    free(worker_buffer);
    worker_buffer = NULL;
}

/* Can be cancelled only while it waits for a request, or for a slot to read
 * it into: what was put off is carried out before that. */
static void serve(remus_export *e)
{
    struct remus_fuse_slot *w = NULL;
    while ((w = remus_adopt_next(e)))
        if (carry_out(w))
            remus_fuse_slot_leave(w);
    while (!fuse_session_exited(e->se)) {
        pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
        if (!w)
            w = remus_fuse_slot_get(e);
        int got = receive(w);
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
        if (!got)
            break;
        if (!carry_out(w))
            w = NULL;
    }
}

void *remus_fuse_worker_main(void *arg)
{
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    worker_buffer = aligned_alloc(4096, REMUS_FUSE_IO);
    pthread_cleanup_push(free_buffer, NULL);
    if (worker_buffer)
        serve(arg);
    pthread_cleanup_pop(1);
    return NULL;
}
