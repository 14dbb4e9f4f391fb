/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The threads that read FUSE requests and carry them out.
 *
 * Reads, writes and syncs wait for the local disk in the worker that has
 * them: a hop to another thread would cost each of them more than the page
 * cache does.  But a disk that stalls must not take all workers: at most
 * REMUS_FUSE_AT_DISK carry out such requests at once.  What comes beyond that
 * is copied and put off, and the next worker that is done with its own takes
 * it.  So there is always one that reads the next request, and an ioctl 20
 * is answered whatever the disk does.
 */
#include "fuse_int.h"

#include <errno.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local unsigned char *worker_buffer;

unsigned char *remus_fuse_buffer(void)
{
    return worker_buffer;
}

static int waits_for_disk(const struct fuse_buf *buf)
{
    struct fuse_in_header in;
    if (buf->size < sizeof in)
        return 0;
    memcpy(&in, buf->mem, sizeof in);
    return in.opcode == FUSE_READ || in.opcode == FUSE_WRITE ||
           in.opcode == FUSE_FSYNC || in.opcode == FUSE_FALLOCATE;
}

/* 1: this worker may wait for the disk; 0: another will carry it out. */
static int go_to_disk(remus_export *e, const struct fuse_buf *buf)
{
    pthread_mutex_lock(&e->disk_lock);
    int go = e->at_disk < REMUS_FUSE_AT_DISK;
    if (go)
        e->at_disk++;
    pthread_mutex_unlock(&e->disk_lock);
    if (go)
        return 1;
    struct remus_put_off *later = malloc(sizeof *later + buf->size);
    if (later) {
        later->next = NULL;
        later->len = buf->size;
        memcpy(later->bytes, buf->mem, buf->size);
    }
    pthread_mutex_lock(&e->disk_lock);
    /* Without memory it can't be put off; and one may be done by now. */
    go = !later || e->at_disk < REMUS_FUSE_AT_DISK;
    if (go) {
        e->at_disk++;
    } else {
        *e->put_off_tail = later;
        e->put_off_tail = &later->next;
    }
    pthread_mutex_unlock(&e->disk_lock);
    if (go)
        free(later);
    return go;
}

/* Done with a request: the next one that was put off, or NULL. */
static struct remus_put_off *leave_disk(remus_export *e)
{
    pthread_mutex_lock(&e->disk_lock);
    struct remus_put_off *next = e->put_off;
    if (next) {
        e->put_off = next->next;
        if (!e->put_off)
            e->put_off_tail = &e->put_off;
    } else {
        e->at_disk--;
    }
    pthread_mutex_unlock(&e->disk_lock);
    return next;
}

static void carry_out(remus_export *e, const struct fuse_buf *buf)
{
    int disk = waits_for_disk(buf);
    if (disk && !go_to_disk(e, buf))
        return;
    fuse_session_process_buf(e->se, buf);
    struct remus_put_off *next;
    while (disk && (next = leave_disk(e))) {
        struct fuse_buf again = {.mem = next->bytes, .size = next->len};
        fuse_session_process_buf(e->se, &again);
        free(next);
    }
}

static void free_buffers(void *arg)
{
    struct fuse_buf *buf = arg;
    free(buf->mem);
    free(worker_buffer);
    worker_buffer = NULL;
}

/* Can be cancelled only while it waits for a request: what was put off is
 * carried out before that. */
void *remus_fuse_worker_main(void *arg)
{
    remus_export *e = arg;
    struct fuse_buf buf = {.mem = NULL};
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    worker_buffer = aligned_alloc(4096, REMUS_FUSE_IO);
    pthread_cleanup_push(free_buffers, &buf);
    while (worker_buffer && !fuse_session_exited(e->se)) {
        pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
        int n = fuse_session_receive_buf(e->se, &buf);
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
        if (n == -EINTR)
            continue;
        if (n <= 0)
            break;
        carry_out(e, &buf);
    }
    pthread_cleanup_pop(1);
    return NULL;
}
