/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* When a primary's generation changes, and may it go on alone? */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/error.h"
#include "base/entry.h"
#include "base/random.h"
#include "primary/internal.h"

#define RETRY_MS 1000u /* after a failure to store a new generation */

/* Make `s` durable and only then ours.  state_lock held, lock not. */
static int store(remus_primary *p, struct remus_primary_state *s)
{
    int err = remus_primary_state_write(p->io, p->state_dir, p->resource, s);
    if (err)
        return err;
    remus_primary_lock(p);
    p->kept = *s;
    remus_primary_unlock(p);
    return 0;
}

static int change(remus_primary *p, uint64_t limit, uint32_t flags)
{
    pthread_mutex_lock(&p->state_lock);
    remus_primary_lock(p);
    struct remus_primary_state s = p->kept;
    remus_primary_unlock(p);
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

int remus_primary_state_map(remus_primary *p, uint64_t id)
{
    pthread_mutex_lock(&p->state_lock);
    remus_primary_lock(p);
    struct remus_primary_state s = p->kept;
    remus_primary_unlock(p);
    s.map = id;
    int err = id != p->kept.map ? store(p, &s) : 0;
    pthread_mutex_unlock(&p->state_lock);
    return err;
}

int remus_primary_state_session(remus_primary *p, uint64_t session)
{
    pthread_mutex_lock(&p->state_lock);
    remus_primary_lock(p);
    struct remus_primary_state s = p->kept;
    remus_primary_unlock(p);
    int err = 0;
    if (memcmp(p->greeted, s.lineage.id, REMUS_ID_BYTES))
        err = remus_fail(-EAGAIN, "a new generation has just begun");
    s.flags |= REMUS_PRIMARY_SHARED;
    s.sessions++;
    s.session = session;
    if (!err)
        err = store(p, &s);
    pthread_mutex_unlock(&p->state_lock);
    return err;
}

/*
 * Leave is a process's: while it was down the other side may have been
 * promoted, with a fence of its own.  Who never had a backup needs none, and
 * the one start that follows a promote has that one's.
 */
static int load_leave(remus_primary *p, struct remus_primary_state *s)
{
    int own = !(s->flags & REMUS_PRIMARY_SHARED);
    int granted = own && !(s->flags & REMUS_PRIMARY_UNASKED);
    p->alone.generation = own ? REMUS_GENERATION_OWN : REMUS_GENERATION_SHARED;
    p->alone.word = granted ? REMUS_ALONE_WORD_GRANTED : REMUS_ALONE_WORD_NONE;
    if (!granted || !s->lineage.count)
        return 0;
    s->flags |= REMUS_PRIMARY_UNASKED;
    return remus_primary_state_write(p->io, p->state_dir, p->resource, s);
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
        err = remus_random(p->io, s.lineage.id, REMUS_ID_BYTES, "generation");
        if (err)
            return err;
        err = remus_primary_state_write(p->io, p->state_dir, p->resource, &s);
        if (err)
            return err;
    }
    char id[9];
    if (s.flags & REMUS_PRIMARY_FENCED)
        return remus_fail(
            -EROFS,
            "this side is fenced (generation %s...): it stepped down for the "
            "other one, or the other one was promoted, and what this one "
            "wrote now would be lost; "
            "start it as the backup of the other one",
            remus_id_text(s.lineage.id, id));
    *next_epoch = s.limit;
    err = load_leave(p, &s);
    p->kept = s;
    return err;
}

/* ---- may a write pass that no backup takes? ----------------------------- */

/* lock held */
static struct remus_alone_facts facts(const remus_primary *p)
{
    uint64_t since = remus_primary_now(p) - p->answered_ns;
    return (struct remus_alone_facts){
        .ask = p->ask_alone,
        .connected = remus_link_up(p),
        .answers = p->answered_ns && since < p->loss_ms * 1000000ull};
}

/* lock held */
enum remus_leave remus_primary_leave(const remus_primary *p)
{
    const struct remus_alone_facts f = facts(p);
    return remus_leave(&p->alone, &f);
}

/* lock held */
static unsigned int event(remus_primary *p, enum remus_alone_event what)
{
    const struct remus_alone_facts f = facts(p);
    unsigned int effects = remus_alone_step(&p->alone, what, &f);
    (void)REMUS_CHECK(!(effects & REMUS_DO_FORBIDDEN));
    return effects;
}

void remus_primary_shared(remus_primary *p)
{
    event(p, REMUS_ALONE_SHARED);
    p->alone_error = 0;
}

void remus_primary_answers(remus_primary *p)
{
    p->answered_ns = remus_primary_now(p);
    remus_primary_wake_parked(p);
}

/*
 * A generation is shared from when a backup may have stored it to when the
 * backup says that it did not.  What it says is believed if it holds an
 * ancestor of ours: of another one, or an empty one, the backup that has
 * stored it may not even hear of us.
 */
int remus_primary_state_heard(remus_primary *p,
                              const struct remus_hello_reply *reply)
{
    uint64_t end;
    pthread_mutex_lock(&p->state_lock);
    remus_primary_lock(p);
    struct remus_primary_state s = p->kept;
    remus_primary_unlock(p);
    int never = s.flags & REMUS_PRIMARY_SHARED &&
                reply->content != REMUS_CONTENT_NONE &&
                !memcmp(p->greeted, s.lineage.id, REMUS_ID_BYTES) &&
                memcmp(reply->generation, s.lineage.id, REMUS_ID_BYTES) &&
                remus_lineage_has(&s.lineage, reply->generation, &end);
    uint32_t pruned = remus_lineage_prune(&s.lineage, reply->generation);
    if (never) {
        s.flags &= ~REMUS_PRIMARY_SHARED;
        s.flags |= REMUS_PRIMARY_UNASKED;
    }
    int err = never || pruned ? store(p, &s) : 0;
    if (never && !err) {
        remus_primary_lock(p);
        event(p, REMUS_ALONE_NEVER);
        remus_primary_unlock(p);
    }
    pthread_mutex_unlock(&p->state_lock);
    return err;
}

/* lock held */
static int failed_now(const remus_primary *p)
{
    return p->alone_error &&
           remus_primary_now(p) - p->alone_error_ns < RETRY_MS * 1000000ull;
}

/* lock held */
enum remus_verdict remus_primary_verdict(const remus_primary *p)
{
    return remus_write_verdict(p->authority, remus_primary_leave(p),
                               remus_stopping(p), failed_now(p));
}

int remus_primary_may_go_alone(const remus_primary *p)
{
    enum remus_leave leave = remus_primary_leave(p);
    return !remus_streaming(p) && !remus_authority_fenced(p->authority) &&
           (leave == REMUS_LEAVE_GRANTED || leave == REMUS_LEAVE_FAILED);
}

int remus_primary_asks_alone(const remus_primary *p)
{
    uint64_t ms = (remus_primary_now(p) - p->stats.link_changed_ns) / 1000000u;
    return !remus_streaming(p) &&
           remus_leave_asks(p->authority, remus_primary_leave(p)) &&
           p->parked_room && ms >= p->loss_ms;
}

/* ---- a new generation ---------------------------------------------------- */

/* The new generation is stored, or not: what that means for writes (lock
 * held). */
static void note_alone(remus_primary *p, int err)
{
    char text[REMUS_REASON_MAX];
    int before = p->alone_error, state = remus_primary_state(p);
    p->alone_error = err;
    p->alone_error_ns = remus_primary_now(p);
    snprintf(p->alone_why, sizeof p->alone_why, "%s",
             err ? remus_last_error() : "");
    if ((!err && !before) ||
        (state != REMUS_STATE_UNPROTECTED && state != REMUS_STATE_CONNECTING))
        return;
    if (err)
        snprintf(text, sizeof text,
                 "no write passes while the backup is away: %.200s",
                 p->alone_why);
    else
        snprintf(text, sizeof text, "%.250s",
                 p->lost_reason[0] ? p->lost_reason : "no backup yet");
    remus_primary_say(p, text);
}

void remus_primary_take_generation(remus_primary *p)
{
    unsigned char id[REMUS_ID_BYTES];
    int err = remus_random(p->io, id, sizeof id, "generation");
    pthread_mutex_lock(&p->state_lock);
    remus_primary_lock(p);
    struct remus_primary_state s = p->kept;
    int needed = remus_primary_may_go_alone(p);
    uint64_t end = p->open_epoch - 1;
    if (needed)
        event(p, REMUS_ALONE_WRITE);
    remus_primary_unlock(p);
    if (needed && !err) {
        remus_lineage_push(&s.lineage, id, end);
        s.flags &= ~REMUS_PRIMARY_SHARED;
        s.flags |= REMUS_PRIMARY_UNASKED;
        err = store(p, &s);
    }
    /* A map of another generation is not believed: that costs time, and
     * nothing else. */
    if (needed && !err)
        remus_dirty_file_generation(&p->dirty.f, id);
    remus_primary_lock(p);
    if (needed) {
        event(p, err ? REMUS_ALONE_NOT_STORED : REMUS_ALONE_STORED);
        note_alone(p, err);
    }
    remus_primary_unlock(p);
    pthread_mutex_unlock(&p->state_lock);
}

static int decide(remus_primary *p, enum remus_alone_event word)
{
    remus_primary_lock(p);
    event(p, word);
    /* Also those that have not been parked yet will find it. */
    p->park_wake = 1;
    pthread_cond_signal(&p->park_changed);
    remus_primary_unlock(p);
    return 0;
}

int remus_primary_go_alone(remus_primary *p)
{
    int no = remus_enter(p, "primary_go_alone");
    if (no)
        return no;
    return decide(p, REMUS_ALONE_GRANT);
}

int remus_primary_refuse_alone(remus_primary *p)
{
    int no = remus_enter(p, "primary_refuse_alone");
    if (no)
        return no;
    return decide(p, REMUS_ALONE_REFUSE);
}
