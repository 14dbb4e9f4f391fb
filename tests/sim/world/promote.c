/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Failover, by force or not, and the exchange of roles. */
#include "promote.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "checks.h"
#include "guest.h"
#include "net.h"
#include "operator.h"
#include "oracle.h"
#include "sched.h"
#include "sides.h"

#define TRIES 8

typedef unsigned long long ull;

static int asked; /* the primary of this branch, to step down */
static int alone; /* the other side may have gone on, without its backup */
static uint64_t died_at; /* the primary, if it is dead for good */
static uint64_t jumped_at;

struct promotion {
    const struct step *step;
    int by, force, last, interrupted, error, count;
    uint64_t epoch, promoted;
    char text[160];
    const struct remus_checkpoint *tagged;
    struct remus_checkpoint cp[256];
};

int stepped_down(void)
{
    return asked;
}

int both_went_on(void)
{
    return alone;
}

static void *list(void *arg)
{
    struct promotion *p = arg;
    p->cp[0].struct_size = sizeof p->cp[0];
    do /* -EAGAIN: the journal's disk stalls */
        p->count =
            remus_backup_checkpoints(side[backup_host].backup, p->cp, 256);
    while (p->count == -EAGAIN);
    return NULL;
}

static void *promote(void *arg)
{
    struct promotion *p = arg;
    const struct remus_checkpoint *t = p->tagged;
    int by_tag = t && p->by == REMUS_PROMOTE_EPOCH;
    p->error = remus_backup_promote(
        side[backup_host].backup, by_tag ? REMUS_PROMOTE_TAG : p->by,
        by_tag ? 0 : p->epoch, by_tag ? t->tag : NULL, by_tag ? t->tag_len : 0,
        p->force, &p->promoted);
    if (p->error)
        snprintf(p->text, sizeof p->text, "%s", remus_last_error());
    return NULL;
}

static void *ask(void *arg)
{
    struct promotion *p = arg;
    p->error = remus_backup_ask(side[backup_host].backup, REMUS_ASK_SWITCH);
    if (p->error < 0)
        snprintf(p->text, sizeof p->text, "%s", remus_last_error());
    return NULL;
}

/* ---- which one ------------------------------------------------------------------- */

/* Are its disks in the middle of a catch-up that went straight to them? */
static int given_up(void)
{
    struct remus_status st;
    int err = program.inconsistent ? backup_status(backup_host, &st) : -1;
    if (!err)
        world_say("nothing is offered: %s: %s", remus_state_name(st.state),
                  st.reason);
    return !err && (st.state == REMUS_STATE_INCONSISTENT ||
                    strstr(st.reason, "is copying its disks") ||
                    strstr(st.reason, "the copy is complete, but for"));
}

/* 1: there is nothing to promote to, rightly. */
static int look_for_checkpoints(struct promotion *p)
{
    struct promises promised = promises_now();
    if (on_host(backup_host, "list", list, p))
        return 0;
    /* It may be at any of them; or it was over before it had begun. */
    if (p->interrupted)
        return p->count <= 0 && given_up();
    if (p->count <= 0 && (!promised.acked || given_up()))
        return 1;
    check_offers(p->cp, p->count, &promised);
    p->by = REMUS_PROMOTE_DEFAULT;
    p->tagged = NULL;
    if (p->step->a % 2 && !p->last && p->count > 0) {
        p->by = REMUS_PROMOTE_EPOCH;
        const struct remus_checkpoint *cp =
            &p->cp[p->step->b % (uint64_t)p->count];
        p->epoch = cp->epoch;
        p->tagged = cp->tag_len && p->step->b / 2 % 4 ? cp : NULL;
    }
    return 0;
}

/* It can't be chosen by itself: the operator says which. */
static int name_newest(struct promotion *p)
{
    if (p->by != REMUS_PROMOTE_DEFAULT || p->count <= 0 ||
        (p->error != -ESTALE && p->error != -EINVAL))
        return 0;
    p->by = REMUS_PROMOTE_EPOCH;
    p->tagged = NULL;
    p->epoch = p->cp[p->count - 1].epoch;
    return 1;
}

/* A default that is old must be refused; 62: whole seconds, and what is
 * stored now and then. */
static void check_stale(const struct promotion *p)
{
    if (p->by == REMUS_PROMOTE_DEFAULT && died_at && !p->interrupted &&
        died_at > jumped_at && world_now() - died_at > 70 * (uint64_t)S)
        world_fail("a checkpoint that is old is the default: the primary "
                   "died %llu s ago",
                   (ull)((world_now() - died_at) / S));
}

static void check_result(const struct promotion *p)
{
    if (p->by == REMUS_PROMOTE_EPOCH && p->promoted != p->epoch)
        world_fail("contract 4: a promote to %llu went to %llu", (ull)p->epoch,
                   (ull)p->promoted);
    if (p->by == REMUS_PROMOTE_DEFAULT && !p->interrupted) {
        check_default(p->promoted);
        check_output(p->promoted);
    }
    check_stale(p);
    check_promoted(backup_host, p->promoted, p->last);
}

/* ---- one promote, with its interruptions ------------------------------------------- */

/* Did the backup still work on what it had received when the checkpoints were
 * listed, because its files stood still?  Then there are newer ones. */
static int went_on(struct promotion *p)
{
    uint64_t newest = p->count > 0 ? p->cp[p->count - 1].epoch : 0;
    return !on_host(backup_host, "list", list, p) && p->count > 0 &&
           p->cp[p->count - 1].epoch > newest;
}

/* One try.  1: done; 0: again; -1: it is not to be. */
static int try_promote(struct promotion *p, int first)
{
    if (!side_up(backup_host))
        restart(backup_host);
    if (!side_up(backup_host))
        return 0;
    if (!p->force && !p->last)
        pause_for(5 * (uint64_t)S);
    if (look_for_checkpoints(p))
        return -1;
    if (first && p->step->a / 2 % 4 == 0)
        world_kill_after(backup_host, 1 + p->step->b / 8 % 3000);
    do {
        if (on_host(backup_host, "promote", promote, p)) {
            world_say("-- a promote was interrupted");
            p->interrupted = 1;
            p->by = REMUS_PROMOTE_DEFAULT;
            end_host(backup_host, 0, p->step->a % 3 ? -1 : 2);
            if (p->step->a % 3 == 0)
                lost_memory(backup_host);
            return 0;
        }
        if (p->error)
            world_say("promote: %d %s", p->error, p->text);
    } while (p->error && name_newest(p));
    world_kill_never(backup_host);
    if (p->error == -EBUSY)
        return -1;
    /* Who is alive may have committed a newer one since it was listed. */
    if (p->error == -EINVAL && p->by == REMUS_PROMOTE_EPOCH &&
        (p->force || program.commit_by == REMUS_COMMIT_BY_BACKUP ||
         went_on(p)))
        return 0;
    if (p->error == -EIO || p->error == -ENOSPC) {
        /* Where it was to be stored that this one is promoted, it may be. */
        p->interrupted = 1;
        p->by = REMUS_PROMOTE_DEFAULT;
        end_host(backup_host, 0, -1);
        return 0;
    }
    if (p->error)
        world_fail("no promote to %llu of %d checkpoints: %d %s",
                   (ull)p->epoch, p->count, p->error, p->text);
    return 1;
}

/* The side that was promoted is the primary from here on. */
static void become_primary(const struct promotion *p)
{
    int host = backup_host;
    world_say("-- host %d was promoted to checkpoint %llu", host,
              (ull)p->promoted);
    the_branch++;
    check_look(host);
    oracle_branch(p->promoted);
    backup_host = primary_host;
    primary_host = host;
    asked = 0;
    alone = !p->last;
    died_at = 0;
    if (p->step->b % 2)
        end_host(host, 0, -1);
    else
        close_side(host);
}

/* 1: roles have changed. */
static int carry_out(struct promotion *p)
{
    for (int i = 0; i < TRIES; i++) {
        int rc = try_promote(p, i == 0);
        if (rc < 0)
            return 0;
        if (rc > 0) {
            check_result(p);
            become_primary(p);
            return 1;
        }
        mend();
        pause_for((uint64_t)S);
    }
    return 0;
}

/* ---- who was failed away from --------------------------------------------------------- */

static void *look_for_news(void *arg)
{
    char text[160];
    *(int *)arg =
        remus_former_news(side[primary_host].former, text, sizeof text);
    return NULL;
}

/* It looks for its backup at the old address, and hears what became of it. */
static void must_be_told(void)
{
    struct remus_status st = {0};
    int old = backup_host, news = REMUS_FORMER_NOBODY;
    for (int i = 0; i < 60; i++) {
        if (!side_up(primary_host) || !side[primary_host].former ||
            !side_up(old) || primary_status(old, &st))
            return;
        if (st.state == REMUS_STATE_FENCED ||
            st.state == REMUS_STATE_SPLIT_BRAIN) {
            on_host(primary_host, "news", look_for_news, &news);
            world_say("-- host %d was told: %s (%d)", old,
                      remus_state_name(st.state), news);
            return;
        }
        pause_for((uint64_t)S);
    }
    world_fail("contract 9: a primary that was failed away from is not told: "
               "%s: %s",
               remus_state_name(st.state), st.reason);
}

/* The operator starts it as what it was, by mistake. */
static void start_old_primary(const struct step *s)
{
    if (!program.former || s->b / 16 % 3 || !side_up(primary_host))
        return;
    world_say("-- by mistake");
    mend();
    if (!start_primary(backup_host))
        must_be_told();
}

/* ---- the steps ------------------------------------------------------------------------ */

void note_jump(void)
{
    jumped_at = world_now();
}

void fail_over(const struct step *s)
{
    struct promotion p = {.step = s};
    if (!died_at && !side_up(primary_host))
        died_at = world_now();
    end_host(primary_host, s->b % 3000, s->b % 2 ? -1 : (int)(s->b / 2 % 4));
    if (!died_at)
        died_at = world_now();
    world_net_cut(0, 0);
    world_net_cut(1, 0);
    if (s->a % 8 == 7)
        pause_for(100 * (uint64_t)S);
    if (carry_out(&p)) {
        restart(primary_host);
        start_old_primary(s);
    }
    died_at = 0;
}

void promote_by_force(const struct step *s)
{
    struct promotion p = {.step = s, .force = 1};
    if (!side_up(backup_host) || !side_up(primary_host))
        return;
    world_say("-- the backup is promoted by force");
    if (!carry_out(&p))
        return;
    restart(primary_host);
    if (!program.former || s->b / 4 % 2)
        return;
    mend();
    must_be_told();
}

void promote_instead(void)
{
    static const struct step plain = {.kind = STEP_FAIL_OVER, .a = 2, .b = 1};
    struct promotion p = {.step = &plain};
    world_say("-- the primary stepped down: the backup is promoted");
    end_host(primary_host, 0, -1);
    if (carry_out(&p))
        restart(primary_host);
}

static void *unpin(void *arg)
{
    struct side *s = arg;
    s->pinned = 0;
    remus_backup_pin(s->backup, 0);
    return NULL;
}

static void let_go(int host)
{
    side[host].lets_go = 1;
    on_host(host, "unpin", unpin, &side[host]);
}

/* Refused while somebody there holds a memory: what the switch ends with could
 * not be committed, and an interrupted one would have the pinned one by
 * default. */
static void ask_to_switch(struct promotion *p)
{
    uint64_t pinned = side[backup_host].pinned;
    if (on_host(backup_host, "ask", ask, p))
        p->error = -EINTR;
    world_say("asked to step down: %d %s", p->error, p->text);
    if (p->error == 1 && pinned && side[backup_host].pinned == pinned)
        world_fail("contract 4: both sides switch roles, and checkpoint %llu "
                   "is pinned",
                   (ull)pinned);
}

void switch_roles(const struct step *s)
{
    struct promotion p = {.step = s, .last = 1};
    struct remus_status st;
    if (!side_up(backup_host) || primary_status(primary_host, &st) ||
        st.state != REMUS_STATE_PROTECTED)
        return;
    world_say("-- both sides switch roles");
    int old = primary_host, stopped = guest_stop(old);
    if (stopped && side_up(backup_host)) {
        asked = 1;
        ask_to_switch(&p);
        if (p.error == -EBUSY && side_up(backup_host)) {
            let_go(backup_host);
            ask_to_switch(&p);
        }
        if (p.error == 1 && carry_out(&p)) {
            if (side_up(old))
                close_side(old);
            restart(backup_host);
            restart(primary_host);
            return;
        }
    }
    /* It did not come to that: the guest is started again. */
    end_host(old, 0, -1);
}
