/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The process before died between an ioctl 20 and its ioctl 30.  Whether the
 * barrier is safe only the backup knows: the first hello asks for the newest
 * one that an open file had joined and not heard of, by its session and
 * number, and whoever has ioctl 30 waits for the answer.  It is safe if the
 * backup has it, and goes on from it by a catch-up.  All else is a 20 that
 * failed: what the backup does not have, an older barrier, one of another
 * session, and one of which no backup says anything until loss is
 * established.
 *
 *   ASKING_FILES   the open files are counted: no hello before that is over
 *   ASKING_BACKUP  a hello has to be answered; ioctl 30 waits
 *   ASKING_OVER    it was, in vain perhaps, or there was nothing to ask
 */
#include <errno.h>
#include <string.h>

#include "primary/internal.h"

/* ---- what the process before has left ------------------------------------ */

/* Its newest 20, unless it had its answer, has failed. */
static void fail_unanswered(struct remus_ioctl_file *f)
{
    if (f->unique)
        f->number = f->before + 1;
    if (f->unique && !f->answered) {
        f->result = -EPROTO;
        f->failed = REMUS_20_FAILED;
        f->answered = 1;
    }
}

/* What it heard of is safe; what is prepared there is the engine's to
 * commit. */
static void forget(struct remus_ioctl_file *f)
{
    if (f->joined != f->heard)
        f->failed = REMUS_20_FAILED;
    f->joined = f->heard = f->since = 0;
    f->empty = 0;
}

void remus_ioctl_adopt_nowhere(struct remus_ioctl_file *f)
{
    fail_unanswered(f);
    forget(f);
    f->attached = 0;
}

/* Has it joined a barrier, the newest so far, and not heard of it?  (lock
 * held) */
static int is_to_ask(const remus_primary *p, const struct remus_ioctl_file *f)
{
    return p->asking == REMUS_ASKING_FILES && f->number && f->joined &&
           f->joined != f->heard && f->failed != REMUS_20_FAILED &&
           f->joined >= p->asked_epoch;
}

void remus_primary_ioctl_adopt(remus_primary *p, struct remus_ioctl_file *f)
{
    remus_primary_lock(p);
    fail_unanswered(f);
    if (is_to_ask(p, f)) {
        p->asked_epoch = f->joined;
        p->asks.number = f->number;
        memcpy(p->asks.session, f->session, REMUS_SESSION_BYTES);
        /* Its epoch stays with it: this process may die, too. */
        f->failed = REMUS_20_ASKED;
        f->heard = f->since = 0;
        f->empty = 0;
    } else {
        forget(f);
    }
    if (f->attached)
        remus_primary_ioctl_attach(p);
    remus_primary_unlock(p);
}

/* lock held */
static void no_more_files(remus_primary *p)
{
    if (p->asking == REMUS_ASKING_FILES)
        p->asking = p->asks.number ? REMUS_ASKING_BACKUP : REMUS_ASKING_OVER;
    pthread_cond_broadcast(&p->engine_wake);
}

void remus_primary_ioctl_adopted(remus_primary *p)
{
    remus_primary_lock(p);
    no_more_files(p);
    remus_primary_unlock(p);
}

void remus_primary_continued(remus_primary *p)
{
    remus_primary_lock(p);
    if (p->continues)
        p->writers--;
    p->continues = 0;
    no_more_files(p); /* nothing was mounted, perhaps */
    remus_primary_unlock(p);
}

/* ---- the question --------------------------------------------------------- */

void remus_primary_asking_begins(remus_primary *p)
{
    remus_primary_lock(p);
    p->asking = p->continues ? REMUS_ASKING_FILES : REMUS_ASKING_OVER;
    remus_primary_unlock(p);
}

void remus_primary_await_files(remus_primary *p)
{
    remus_primary_lock(p);
    while (p->asking == REMUS_ASKING_FILES && !remus_stopping(p))
        (void)remus_primary_wait(p, &p->engine_wake, REMUS_NEVER);
    remus_primary_unlock(p);
}

void remus_primary_question(const remus_primary *p, struct remus_ioctl_id *out)
{
    *out = p->asking == REMUS_ASKING_BACKUP ? p->asks
                                            : (struct remus_ioctl_id){0};
}

/* ---- the answer ----------------------------------------------------------- */

void remus_primary_settle(const remus_primary *p, struct remus_ioctl_file *f)
{
    if (f->failed != REMUS_20_ASKED || p->asking != REMUS_ASKING_OVER)
        return;
    int same = f->number == p->asks.number &&
               !memcmp(f->session, p->asks.session, REMUS_SESSION_BYTES);
    f->failed = REMUS_20_FAILED;
    if (!same || !p->found || f->joined > p->found) {
        f->joined = 0;
        return;
    }
    f->failed = 0;
    f->joined = p->found;
}

/* Those who wait for it, and are answered now: by an error, but where the
 * barrier of a 20 that failed can still be taken.  (lock held) */
static struct remus_waiter *settle_waiters(remus_primary *p)
{
    struct remus_waiter *failed = NULL, **at = &p->waiters;
    while (*at) {
        struct remus_waiter *w = *at;
        int asked = w->later && w->file->failed == REMUS_20_ASKED;
        if (asked)
            remus_primary_settle(p, w->file);
        if (asked && !w->file->failed) {
            w->later = 0;
            w->epoch = w->file->joined;
        }
        if (!asked || !w->later || remus_primary_holds(p)) {
            at = &w->next;
            continue;
        }
        *at = w->next;
        w->next = failed;
        failed = w;
    }
    return failed;
}

struct remus_waiter *
remus_primary_ask_answered(remus_primary *p,
                           const struct remus_hello_reply *reply,
                           enum remus_plan plan)
{
    if (p->asking != REMUS_ASKING_BACKUP)
        return NULL;
    p->asking = REMUS_ASKING_OVER;
    /* All else takes its place there, or knows nothing of it. */
    if (plan == REMUS_PLAN_CATCH_UP && reply->has == p->asked_epoch &&
        reply->has <= reply->held)
        p->found = reply->has;
    if (p->found > p->barrier_epoch)
        p->named_epoch = p->barrier_epoch = p->found;
    return settle_waiters(p);
}

void remus_primary_asked_in_vain(remus_primary *p, int for_good)
{
    struct remus_waiter *w = NULL;
    remus_primary_lock(p);
    uint64_t ms = (remus_primary_now(p) - p->stats.link_changed_ns) / 1000000u;
    if (p->asking == REMUS_ASKING_BACKUP && !remus_link_up(p) &&
        (for_good || (ms > p->loss_ms && !remus_primary_holds(p)))) {
        p->asking = REMUS_ASKING_OVER;
        w = settle_waiters(p);
    }
    remus_primary_unlock(p);
    remus_primary_answer(p, w, -EPROTO);
}
