/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary's disk I/O as calls that wait: what remus.h offers to a program,
 * and what a copy and a comparison read with.  A request that is parked is
 * waited for by its own `done`.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/entry.h"
#include "base/vector.h"
#include "primary/internal.h"

struct completion {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    int done;   /* completion.lock */
    int result; /* completion.lock */
};

static void complete(void *opaque, int result)
{
    struct completion *c = opaque;
    pthread_mutex_lock(&c->lock);
    c->done = 1;
    c->result = result;
    pthread_cond_signal(&c->cond);
    pthread_mutex_unlock(&c->lock);
}

static int submit_and_wait(remus_primary *p, struct remus_request *q)
{
    struct completion c = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER,
                           0, 0};
    q->who = (struct remus_asker){.done = complete, .opaque = &c};
    int result = remus_primary_submit(p, q, 1);
    if (result == REMUS_PARKED) {
        pthread_mutex_lock(&c.lock);
        while (!c.done)
            pthread_cond_wait(&c.cond, &c.lock);
        result = c.result;
        pthread_mutex_unlock(&c.lock);
    }
    pthread_cond_destroy(&c.cond);
    pthread_mutex_destroy(&c.lock);
    return result;
}

static int io_result(remus_primary *p, unsigned int volume, const char *what,
                     int err)
{
    if (!err)
        return 0;
    if (err == -EROFS && atomic_load(&p->no_writes))
        return remus_primary_fenced(p, &p->volumes[volume]);
    char why[REMUS_REASON_MAX];
    remus_primary_lock(p);
    int kept_back = !remus_streaming(p) && p->alone_error == err;
    memcpy(why, p->alone_why, sizeof why);
    remus_primary_unlock(p);
    if (kept_back)
        return remus_fail(err, "volume %s: %s it: no write passes alone: %s",
                          p->volumes[volume].name, what, why);
    return remus_fail(err, "volume %s: %s %s: %s", p->volumes[volume].name,
                      what, p->volumes[volume].path, remus_errno_text(err));
}

int remus_primary_pwrite(remus_primary *p, unsigned int volume,
                         const void *buf, size_t len, uint64_t offset)
{
    int no = remus_enter(p, "primary_pwrite");
    if (!no && len)
        no = remus_given(buf, "primary_pwrite", "buf");
    if (no)
        return no;
    int err = remus_primary_check_io(p, volume, offset, len, -ENOSPC);
    if (err || !len)
        return err;
    struct remus_request q = {.kind = REMUS_REQ_WRITE,
                              .volume = volume,
                              .range = {offset, offset + len, NULL},
                              .data = buf};
    return io_result(p, volume, "write to", submit_and_wait(p, &q));
}

/* What both forms of vectored I/O ask first; `beyond` is the error for a range
 * that ends behind the volume. */
static int vector_enters(remus_primary *p, unsigned int volume,
                         const struct iovec *vector, unsigned int count,
                         uint64_t offset, const char *call, int beyond,
                         size_t *len)
{
    int no = remus_enter(p, call);
    if (!no && count)
        no = remus_given(vector, call, "vector");
    if (!no)
        no = remus_vector_length(vector, count, REMUS_VECTOR_MAX, len);
    return no ? no : remus_primary_check_io(p, volume, offset, *len, beyond);
}

int remus_primary_pwritev(remus_primary *p, unsigned int volume,
                          const struct iovec *vector, unsigned int count,
                          uint64_t offset)
{
    size_t len;
    int err = vector_enters(p, volume, vector, count, offset,
                            "primary_pwritev", -ENOSPC, &len);
    if (err || !len)
        return err;
    struct remus_request q = {.kind = REMUS_REQ_WRITE,
                              .volume = volume,
                              .range = {offset, offset + len, NULL},
                              .vector = vector,
                              .pieces = count};
    return io_result(p, volume, "write to", submit_and_wait(p, &q));
}

int remus_primary_preadv(remus_primary *p, unsigned int volume,
                         const struct iovec *vector, unsigned int count,
                         uint64_t offset)
{
    size_t len;
    int err = vector_enters(p, volume, vector, count, offset, "primary_preadv",
                            -EINVAL, &len);
    if (err || !len)
        return err;
    return io_result(
        p, volume, "read",
        remus_io_readv(p->io, p->volumes[volume].file, vector, count, offset));
}

int remus_primary_write_zeroes(remus_primary *p, unsigned int volume,
                               uint64_t offset, uint64_t len)
{
    int no = remus_enter(p, "primary_write_zeroes");
    if (no)
        return no;
    int err = remus_primary_check_io(p, volume, offset, len, -ENOSPC);
    if (err || !len)
        return err;
    struct remus_request q = {.kind = REMUS_REQ_ZERO,
                              .volume = volume,
                              .range = {offset, offset + len, NULL}};
    return io_result(p, volume, "write zeroes to", submit_and_wait(p, &q));
}

int remus_primary_discard(remus_primary *p, unsigned int volume,
                          uint64_t offset, uint64_t len)
{
    int no = remus_enter(p, "primary_discard");
    if (no)
        return no;
    return remus_primary_write_zeroes(p, volume, offset, len);
}

int remus_primary_copy_range(remus_primary *p, unsigned int volume,
                             uint64_t offset, size_t len, unsigned char *buf)
{
    struct remus_request q = {.kind = REMUS_REQ_COPY,
                              .copy = 1,
                              .volume = volume,
                              .range = {offset, offset + len, NULL},
                              .into = buf};
    return io_result(p, volume, "read", submit_and_wait(p, &q));
}

int remus_primary_repair_range(remus_primary *p, unsigned int volume,
                               uint64_t offset, size_t len, unsigned char *buf)
{
    struct remus_request q = {.kind = REMUS_REQ_COPY,
                              .copy = 1,
                              .repair = 1,
                              .volume = volume,
                              .range = {offset, offset + len, NULL},
                              .into = buf};
    return io_result(p, volume, "read", submit_and_wait(p, &q));
}

int remus_primary_hash_range(remus_primary *p, unsigned int volume,
                             uint64_t offset, size_t len, unsigned char *buf,
                             unsigned char *hashes, uint64_t session,
                             int64_t *question)
{
    struct remus_request q = {.kind = REMUS_REQ_HASH,
                              .copy = 1,
                              .volume = volume,
                              .range = {offset, offset + len, NULL},
                              .into = buf,
                              .hashes = hashes,
                              .session = session,
                              .asked = question};
    int err = submit_and_wait(p, &q);
    return err == -EPROTO ? err : io_result(p, volume, "read", err);
}

int remus_primary_copy_hole(remus_primary *p, unsigned int volume,
                            uint64_t offset, uint64_t len)
{
    struct remus_request q = {.kind = REMUS_REQ_HOLE,
                              .copy = 1,
                              .volume = volume,
                              .range = {offset, offset + len, NULL}};
    int err = submit_and_wait(p, &q);
    return err == -EAGAIN ? err : io_result(p, volume, "look for holes", err);
}

int remus_primary_pread(remus_primary *p, unsigned int volume, void *buf,
                        size_t len, uint64_t offset)
{
    int no = remus_enter(p, "primary_pread");
    if (!no && len)
        no = remus_given(buf, "primary_pread", "buf");
    if (no)
        return no;
    int err = remus_primary_check_io(p, volume, offset, len, -EINVAL);
    if (err || !len)
        return err;
    return io_result(
        p, volume, "read",
        remus_io_read(p->io, p->volumes[volume].file, buf, len, offset));
}

/*
 * Which writes did not reach the disk nobody knows.  Let reads show what it
 * holds, as far as the kernel does, and let both sides compare that: so they
 * agree again with the next checkpoint.
 */
static void after_sync_error(remus_primary *p, struct remus_pvolume *v,
                             int err)
{
    (void)p->io->drop_cache(p->io, v->file); /* a hint */
    char text[REMUS_REASON_MAX];
    snprintf(text, sizeof text,
             "volume %s: sync of %s: %s: its contents are uncertain: check "
             "that disk; the backup keeps its last checkpoint "
             "until both sides have been compared",
             v->name, v->path, remus_errno_text(err));
    remus_primary_lock(p);
    /* Both at once: whoever finds the link up may believe the map. */
    struct remus_waiter *w = remus_primary_lose(p, text);
    remus_dirty_doubt(&p->dirty);
    remus_primary_unlock(p);
    remus_primary_answer(p, w, -EPROTO);
}

int remus_primary_flush(remus_primary *p, unsigned int volume)
{
    int no = remus_enter(p, "primary_flush");
    if (no)
        return no;
    int err = remus_primary_check_io(p, volume, 0, 0, -EINVAL);
    if (err)
        return err;
    err = p->io->fdatasync(p->io, p->volumes[volume].file);
    if (err)
        after_sync_error(p, &p->volumes[volume], err);
    return io_result(p, volume, "sync", err);
}

int remus_primary_see_disk(remus_primary *p, unsigned int volume)
{
    int err = remus_primary_flush(p, volume);
    if (!err) /* a hint */
        (void)p->io->drop_cache(p->io, p->volumes[volume].file);
    return err;
}

uint64_t remus_primary_size(remus_primary *p, unsigned int volume)
{
    if (remus_enter(p, "primary_size"))
        return 0;
    return volume < p->volume_count ? p->volumes[volume].size : 0;
}
