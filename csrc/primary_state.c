/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What survives a primary (the layout is in primary_state.h), and when its
 * generation changes. */
#include "primary_state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "primary_int.h"

#define MAGIC 0x504d4552u
#define VERSION 3u
#define LINEAGE_AT 32u
#define RETRY_MS 1000u /* after a failure to store a new generation */
#define CRC_AT (LINEAGE_AT + REMUS_LINEAGE_BYTES)

_Static_assert(CRC_AT + 4 <= 512, "a slot in one sector");

/* ---- the file ------------------------------------------------------------ */

static uint32_t name_crc(const char *resource)
{
    return remus_crc32c(0, resource, strlen(resource));
}

static int decode(const char *resource, const unsigned char *in,
                  struct remus_primary_state *s)
{
    if (remus_get32(in) != MAGIC || remus_get32(in + 4) != VERSION ||
        remus_get32(in + 28) != name_crc(resource) ||
        remus_get32(in + CRC_AT) != remus_crc32c(0, in, CRC_AT))
        return 0;
    s->sequence = remus_get64(in + 8);
    s->limit = remus_get64(in + 16);
    s->flags = remus_get32(in + 24);
    return remus_lineage_decode(in + LINEAGE_AT, &s->lineage);
}

static int open_file(remus_io *io, const char *state_dir,
                     const char *resource, int flags, char *path, size_t cap)
{
    snprintf(path, cap, "%s/primary.state", state_dir);
    int file = io->open(io, path, flags);
    if (file < 0)
        remus_fail(file, "resource %s: open %s: %s", resource, path,
                   remus_errno_text(file));
    return file;
}

static int load(remus_io *io, int file, const char *path,
                const char *resource, struct remus_primary_state *s)
{
    unsigned char buf[2 * REMUS_PAGE] = {0};
    struct remus_primary_state slot[2];
    /* What a killed process left in the page cache only could still vanish
     * with the power, and its numbers would be used again. */
    int err = io->fdatasync(io, file);
    if (err)
        return remus_fail(err, "resource %s: sync %s: %s", resource, path,
                          remus_errno_text(err));
    ssize_t n = remus_io_read_upto(io, file, buf, sizeof buf, 0);
    if (n < 0)
        return remus_fail((int)n, "resource %s: read %s: %s", resource, path,
                          remus_errno_text((int)n));
    *s = (struct remus_primary_state){.limit = 1};
    if (remus_get32(buf) == 0 && remus_get32(buf + REMUS_PAGE) == 0)
        return -ENOENT;
    int ok0 = decode(resource, buf, &slot[0]);
    int ok1 = decode(resource, buf + REMUS_PAGE, &slot[1]);
    if (!ok0 && !ok1)
        return remus_fail(-EBADMSG,
                          "resource %s: %s is not the state of this "
                          "resource: give another state directory",
                          resource, path);
    *s = ok0 && (!ok1 || slot[0].sequence > slot[1].sequence) ? slot[0]
                                                              : slot[1];
    return 0;
}

int remus_primary_state_read(remus_io *io, const char *state_dir,
                             const char *resource,
                             struct remus_primary_state *s)
{
    char path[4096];
    int file = open_file(io, state_dir, resource, O_RDWR, path, sizeof path);
    if (file < 0)
        return file;
    int err = load(io, file, path, resource, s);
    io->close(io, file);
    return err;
}

int remus_primary_state_write(remus_io *io, const char *state_dir,
                              const char *resource,
                              struct remus_primary_state *s)
{
    char path[4096];
    struct remus_primary_state before;
    unsigned char out[REMUS_PAGE] = {0};
    int file = open_file(io, state_dir, resource, O_RDWR | O_CREAT, path,
                         sizeof path);
    if (file < 0)
        return file;
    int err = load(io, file, path, resource, &before);
    if (err == -ENOENT)
        err = 0;
    if (!err) {
        s->sequence = before.sequence + 1;
        remus_put32(out, MAGIC);
        remus_put32(out + 4, VERSION);
        remus_put64(out + 8, s->sequence);
        remus_put64(out + 16, s->limit);
        remus_put32(out + 24, s->flags);
        remus_put32(out + 28, name_crc(resource));
        remus_lineage_encode(&s->lineage, out + LINEAGE_AT);
        remus_put32(out + CRC_AT, remus_crc32c(0, out, CRC_AT));
        err = remus_io_write(io, file, out, sizeof out,
                             s->sequence % 2 * REMUS_PAGE);
        if (!err)
            err = io->fdatasync(io, file);
        if (!err)
            err = io->sync_dir(io, state_dir);
        if (err)
            remus_fail(err, "resource %s: store %s: %s", resource, path,
                       remus_errno_text(err));
    }
    io->close(io, file);
    return err;
}

/* ---- a primary's own ---------------------------------------------------- */

/* Make `s` durable and only then ours.  state_lock held, lock not. */
static int store(remus_primary *p, struct remus_primary_state *s)
{
    int err = remus_primary_state_write(p->io, p->state_dir, p->resource, s);
    if (err)
        return err;
    pthread_mutex_lock(&p->lock);
    p->kept = *s;
    pthread_mutex_unlock(&p->lock);
    return 0;
}

static int change(remus_primary *p, uint64_t limit, uint32_t flags)
{
    pthread_mutex_lock(&p->state_lock);
    pthread_mutex_lock(&p->lock);
    struct remus_primary_state s = p->kept;
    pthread_mutex_unlock(&p->lock);
    if (limit)
        s.limit = limit;
    s.flags |= flags;
    int err = limit || s.flags != p->kept.flags ? store(p, &s) : 0;
    pthread_mutex_unlock(&p->state_lock);
    return err;
}

int remus_primary_state_store(remus_primary *p, uint64_t limit)
{
    return change(p, limit, 0);
}

int remus_primary_state_flag(remus_primary *p, uint32_t flag)
{
    return change(p, 0, flag);
}

int remus_primary_state_load(remus_primary *p, uint64_t *next_epoch)
{
    struct remus_primary_state s;
    int err = remus_primary_state_read(p->io, p->state_dir, p->resource, &s);
    if (err && err != -ENOENT)
        return err;
    if (err == -ENOENT) {
        /* A new primary.  A backup will know it by this. */
        s = (struct remus_primary_state){.limit = 1};
        err = p->io->random(p->io, s.lineage.id, REMUS_ID_BYTES);
        if (err)
            return remus_fail(err, "random numbers: %s",
                              remus_errno_text(err));
        err = remus_primary_state_write(p->io, p->state_dir, p->resource,
                                        &s);
        if (err)
            return err;
    }
    char id[9];
    if (s.flags & REMUS_PRIMARY_FENCED)
        return remus_fail(-EROFS,
                          "this side is fenced (generation %s...): it gave "
                          "way to the other one, or that was promoted, and "
                          "what this one would write now would be lost; "
                          "start it as the backup of the other one",
                          remus_id_text(s.lineage.id, id));
    *next_epoch = s.limit;
    p->kept = s;
    p->alone = !(s.flags & REMUS_PRIMARY_SHARED);
    /* Who never had a backup needs no leave; who was promoted, or went on
     * alone before, has it. */
    p->alone_granted = p->alone && !(s.flags & REMUS_PRIMARY_UNASKED);
    return 0;
}

/* While a backup is connected (and compared) it is there: what is to be sure
 * of comes with its loss. */
int remus_primary_has_leave(const remus_primary *p)
{
    return !p->ask_alone || p->alone_granted || p->stats.connected;
}

int remus_primary_may_go_alone(const remus_primary *p)
{
    return !p->streaming && !p->alone && !p->fenced &&
           remus_primary_has_leave(p);
}

int remus_primary_asks_alone(const remus_primary *p)
{
    uint64_t ms = (p->io->now_ns(p->io) - p->stats.link_changed_ns) / 1000000u;
    return !p->streaming && !p->fenced && !remus_primary_has_leave(p) &&
           p->state != REMUS_STATE_SPLIT_BRAIN && p->parked_room &&
           ms >= p->loss_ms;
}

int remus_primary_alone_fails(const remus_primary *p)
{
    return p->alone_failed && p->io->now_ns(p->io) - p->alone_failed_ns <
                                  RETRY_MS * 1000000ull;
}

/* The new generation is stored, or not: what that means for writes (lock
 * held). */
static void note_alone(remus_primary *p, int err)
{
    char text[REMUS_REASON_MAX];
    int before = p->alone_failed;
    p->alone_failed = err;
    p->alone_failed_ns = p->io->now_ns(p->io);
    snprintf(p->alone_why, sizeof p->alone_why, "%s",
             err ? remus_last_error() : "");
    if ((!err && !before) || (p->state != REMUS_STATE_UNPROTECTED &&
                              p->state != REMUS_STATE_CONNECTING))
        return;
    if (err)
        snprintf(text, sizeof text,
                 "no write passes while the backup is away: %.200s",
                 p->alone_why);
    else
        snprintf(text, sizeof text, "%.250s",
                 p->lost_reason[0] ? p->lost_reason : "no backup yet");
    remus_primary_set_state(p, p->state, text);
}

void remus_primary_take_generation(remus_primary *p)
{
    unsigned char id[REMUS_ID_BYTES];
    int err = p->io->random(p->io, id, sizeof id);
    if (err)
        remus_fail(err, "random numbers: %s", remus_errno_text(err));
    pthread_mutex_lock(&p->state_lock);
    pthread_mutex_lock(&p->lock);
    struct remus_primary_state s = p->kept;
    int needed = remus_primary_may_go_alone(p);
    int asked = !p->ask_alone || p->alone_granted;
    uint64_t end = p->open_epoch - 1;
    /* No connection begins with a generation that is about to end. */
    p->taking = needed;
    pthread_mutex_unlock(&p->lock);
    if (needed && !err) {
        remus_lineage_push(&s.lineage, id, end);
        s.flags &= ~(REMUS_PRIMARY_SHARED | REMUS_PRIMARY_UNASKED);
        if (!asked)
            s.flags |= REMUS_PRIMARY_UNASKED;
        err = store(p, &s);
    }
    /* A map of another generation is not believed: that costs time, and
     * nothing else. */
    if (needed && !err)
        (void)remus_dirty_generation(&p->dirty, p->resource, id);
    pthread_mutex_lock(&p->lock);
    p->taking = 0;
    if (needed) {
        p->alone = !err;
        note_alone(p, err);
    }
    pthread_mutex_unlock(&p->lock);
    pthread_mutex_unlock(&p->state_lock);
}

static int decide(remus_primary *p, int granted)
{
    pthread_mutex_lock(&p->lock);
    /* While one is connected it is too late for the outage it was about. */
    if (!granted || !p->stats.connected)
        p->alone_granted = granted;
    p->alone_refused = !granted;
    /* Also those that have not been parked yet will find it. */
    p->park_kick = 1;
    pthread_cond_signal(&p->park_changed);
    pthread_mutex_unlock(&p->lock);
    return 0;
}

int remus_primary_go_alone(remus_primary *p)
{
    return decide(p, 1);
}

int remus_primary_refuse_alone(remus_primary *p)
{
    return decide(p, 0);
}
