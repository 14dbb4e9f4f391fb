/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is done with a backup that answered, and how a connection begins. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "link/full.h"
#include "primary/internal.h"

typedef unsigned long long ull;

#define AGAIN_MS 30000u /* after a catch-up that did not fit */

#define PIECE_BYTES (1u << 20)
#define RUN_BYTES (64u << 20) /* looked at before anybody may stop it */
#define AGAIN_NS 10000000000u

/* A record, the index of it, and the gap before a large one behind it. */
#define RECORD_COST (REMUS_REC_HEADER + REMUS_INDEX_COST + REMUS_PAGE)

/* ---- what a catch-up costs ------------------------------------------------ */

/*
 * Blocks that are marked need not hold anything: a discard, or mkfs, marks a
 * whole disk.  Zeroes travel as one record, however many there are.  So a
 * catch-up that seems not to fit is measured: holes are asked for, the rest is
 * read, until it is more than there is room for.  That is done while nothing
 * is connected.
 */

static uint64_t journal_cost(uint64_t bytes)
{
    /* A record for each block, or the gaps before large ones, which cost
     * more. */
    const uint64_t each = REMUS_REC_HEADER + REMUS_INDEX_COST +
                          REMUS_PAGE / (REMUS_REC_LARGE / REMUS_BLOCK);
    return bytes + bytes / REMUS_BLOCK * each + 8u * REMUS_PAGE;
}

/* (lock held) */
static uint64_t catch_up_cost(const remus_primary *p, uint64_t bytes)
{
    const struct remus_measure *m = &p->measured;
    uint64_t all = journal_cost(bytes);
    if (!m->cost)
        return all;
    uint64_t more = bytes > m->bytes ? bytes - m->bytes : 0;
    uint64_t real = m->cost + journal_cost(more);
    return real < all ? real : all;
}

/* Add what the pieces of [at, end) cost, which may be data.  0 or -errno. */
static int add_data(const remus_primary *p, unsigned int volume, uint64_t at,
                    uint64_t end, unsigned char *buf, uint64_t *cost)
{
    const struct remus_pvolume *v = &p->volumes[volume];
    int was_zero = 0;
    for (size_t n; at < end; at += n) {
        n = end - at < PIECE_BYTES ? (size_t)(end - at) : PIECE_BYTES;
        int err = remus_io_read(p->io, v->file, buf, n, at);
        if (err)
            return err;
        for (size_t i = 0; i < n; i += REMUS_BLOCK) {
            size_t len = n - i < REMUS_BLOCK ? n - i : REMUS_BLOCK;
            int zero = remus_all_zero(buf + i, len);
            /* A run of zeroes ends with the piece. */
            if (!zero)
                *cost += len + RECORD_COST;
            else if (!was_zero || !i)
                *cost += RECORD_COST;
            was_zero = zero;
        }
    }
    return 0;
}

/* The same of a run of blocks, whose holes need not be read. */
static int add_run(const remus_primary *p, unsigned int volume, uint64_t at,
                   uint64_t end, unsigned char *buf, uint64_t *cost)
{
    int err = 0;
    while (!err && at < end) {
        uint64_t next = end;
        uint64_t hole = remus_primary_hole(p, volume, at, end, &next);
        if (hole)
            *cost += RECORD_COST;
        else
            err = add_data(p, volume, at, next, buf, cost);
        at = hole ? at + hole : next;
    }
    return err;
}

uint64_t remus_primary_hole(const remus_primary *p, unsigned int volume,
                            uint64_t at, uint64_t end, uint64_t *next)
{
    const struct remus_pvolume *v = &p->volumes[volume];
    uint64_t start = at, data_end = end;
    int more = p->io->next_data(p->io, v->file, at, &start, &data_end);
    *next = end;
    if (more < 0)
        return 0; /* whoever reads it will say why */
    if (!more || start >= end)
        return end - at;
    uint64_t hole = (start - at) / REMUS_BLOCK * REMUS_BLOCK;
    uint64_t data =
        (data_end - at + REMUS_BLOCK - 1) / REMUS_BLOCK * REMUS_BLOCK;
    if (!hole && data < end - at)
        *next = at + data;
    return hole;
}

/* Is there any use in it?  (lock held) */
static int is_due(const remus_primary *p, uint64_t now)
{
    return p->measured.due && !remus_stopping(p) &&
           (!p->measured.ns || now - p->measured.ns >= AGAIN_NS);
}

/* What was found missing when it was due.  0, or -errno: it is not known. */
static int measure(remus_primary *p, uint64_t capacity, uint64_t *cost)
{
    unsigned char *buf = aligned_alloc(REMUS_PAGE, PIECE_BYTES);
    uint64_t at = 0, offset, len;
    unsigned int volume;
    int err = buf ? 0 : -ENOMEM;
    *cost = 8u * REMUS_PAGE;
    while (!err && *cost <= capacity &&
           remus_dirty_look_on(&p->dirty, &at, RUN_BYTES, &volume, &offset,
                               &len)) {
        err = add_run(p, volume, offset, offset + len, buf, cost);
        remus_primary_lock(p);
        if (remus_stopping(p))
            err = -EINTR;
        remus_primary_unlock(p);
    }
    free(buf);
    return err;
}

int remus_primary_measure(remus_primary *p, uint64_t capacity)
{
    uint64_t cost = 0;
    remus_primary_lock(p);
    int due = is_due(p, remus_primary_now(p));
    p->measured.due = 0;
    remus_primary_unlock(p);
    if (!due || measure(p, capacity, &cost))
        return 0;
    remus_primary_lock(p);
    p->measured.ns = remus_primary_now(p);
    p->measured.cost = cost <= capacity ? cost : 0;
    p->measured.bytes = p->measured.asked;
    remus_primary_unlock(p);
    return cost <= capacity;
}

/* ---- what to do ---------------------------------------------------------- */

/* Why there is no catch-up now. */
static void say_no_room(const struct remus_hello_reply *reply, uint64_t bytes)
{
    int pinned = (reply->flags & REMUS_REPLY_PINNED) != 0;
    char text[REMUS_REASON_MAX];
    remus_full_text(text, &(struct remus_full){.role = REMUS_ROLE_PRIMARY,
                                               .pinned = pinned,
                                               .committed = reply->committed,
                                               .newest = reply->held});
    /* What fills it, or leaves no room beside it, can be committed; of what
     * is pinned that must be said. */
    if (reply->flags & REMUS_REPLY_FULL || pinned)
        remus_fail(-ENOSPC, "%s", text);
    else
        remus_fail(-ENOSPC,
                   "the catch-up (%llu KiB changed) does not fit into the "
                   "backup's journal (room for %llu KiB): enlarge the "
                   "journal, or set allow_inconsistent = true",
                   (ull)(bytes >> 10), (ull)(reply->capacity >> 10));
}

/* Does the map tell all that this backup lacks?  (lock held) */
static int map_counts(const remus_primary *p,
                      const struct remus_hello_reply *reply)
{
    uint64_t end;
    return reply->content != REMUS_CONTENT_FOREIGN &&
           remus_dirty_valid(&p->dirty) &&
           remus_lineage_has(&p->kept.lineage, reply->generation, &end) &&
           reply->held <= end &&
           reply->held >= remus_dirty_forgotten(&p->dirty) &&
           reply->held < p->open_epoch;
}

/* Does a catch-up of so many bytes fit?  (lock held) */
static int fits(const remus_primary *p, const struct remus_hello_reply *reply,
                uint64_t bytes)
{
    uint64_t refused = p->wont_fit;
    /* Perhaps the guest writes less by now. */
    if (remus_primary_now(p) - p->wont_fit_ns > AGAIN_MS * 1000000ull)
        refused = 0;
    return catch_up_cost(p, bytes) <= reply->capacity &&
           (!refused || reply->capacity > refused);
}

/* Does it hold a checkpoint of our generation that we never took?  Then we are
 * not what we were: our state was put back (lock held). */
static int set_back(const remus_primary *p,
                    const struct remus_hello_reply *reply)
{
    return !memcmp(reply->generation, p->kept.lineage.id, REMUS_ID_BYTES) &&
           reply->held >= p->open_epoch;
}

/* Whose generation a promoted backup went on from (lock held). */
static enum remus_origin origin(const remus_primary *p,
                                const struct remus_hello_reply *reply)
{
    uint64_t end;
    if (!memcmp(reply->origin, p->kept.lineage.id, REMUS_ID_BYTES))
        return REMUS_ORIGIN_OURS;
    return remus_lineage_has(&p->kept.lineage, reply->origin, &end)
               ? REMUS_ORIGIN_RELATED
               : REMUS_ORIGIN_OTHER;
}

enum remus_plan remus_primary_plan(remus_primary *p,
                                   const struct remus_hello_reply *reply,
                                   int compared)
{
    remus_primary_lock(p);
    uint64_t bytes = remus_dirty_lacking(&p->dirty, reply->held);
    const struct remus_offer offer = {
        .content = (int)reply->content,
        .origin = origin(p, reply),
        .set_back = set_back(p, reply),
        .map_counts = compared || map_counts(p, reply),
        .known = compared,
        .full = (reply->flags & REMUS_REPLY_FULL) != 0,
        .fits = fits(p, reply, bytes),
        /* What is pinned there is not to be given up. */
        .allow = p->allow_inconsistent && !(reply->flags & REMUS_REPLY_PINNED),
        .storing = p->alone.generation == REMUS_GENERATION_STORING,
        .fenced = remus_authority_fenced(p->authority)};
    enum remus_plan plan = remus_plan_step(&offer);
    p->measured.due = plan == REMUS_PLAN_WAIT && !offer.fits && !offer.full;
    p->measured.asked = bytes;
    if (plan == REMUS_PLAN_WAIT)
        say_no_room(reply, bytes);
    if (remus_plan_connects(plan) && !compared &&
        remus_primary_flow_waits(p)) {
        remus_primary_flow_text(p, remus_primary_now(p));
        plan = REMUS_PLAN_WAIT;
    }
    remus_primary_unlock(p);
    return plan;
}

/* ---- how it begins ------------------------------------------------------- */

/*
 * Barriers that the last connection took with it: the backup has those up to
 * `held`, and the others will never be there under their number (lock held).
 */
static void note_outage(remus_primary *p, uint64_t held)
{
    p->acked = held < p->barrier_epoch ? held : p->barrier_epoch;
    if (p->barrier_epoch <= p->acked ||
        remus_primary_epoch_lost(p, p->barrier_epoch))
        return;
    unsigned int i = p->outages % REMUS_OUTAGES;
    if (p->outages++ >= REMUS_OUTAGES)
        p->outage_floor = p->outage[i].to;
    p->outage[i].from = p->acked + 1;
    p->outage[i].to = p->barrier_epoch;
}

/* A commit that was given may have been lost with the link (lock held). */
struct remus_slot *remus_primary_commit_again(remus_primary *p,
                                              struct remus_record *r)
{
    uint64_t epoch = p->commit_given < p->acked ? p->commit_given : p->acked;
    int ignored;
    return epoch > p->c.committed && !remus_primary_epoch_lost(p, epoch)
               ? remus_primary_reserve_commit(p, r, REMUS_COMMITTER_CALL,
                                              epoch, &ignored)
               : NULL;
}

void remus_primary_begin_connection(remus_primary *p, int fd, uint64_t id,
                                    const struct remus_hello_reply *reply)
{
    uint64_t now = remus_primary_now(p);
    p->c = (struct remus_connection){
        .id = id,
        .first = p->open_epoch,
        .next_number = reply->next_number,
        .max_payload = reply->max_payload,
        .credit = reply->credit,
        .reserve = reply->reserve,
        .capacity = reply->capacity,
        .pinned = (reply->flags & REMUS_REPLY_PINNED) != 0,
        .progress_ns = now,
        .rx_ns = now,
        .moved_ns = now,
        .on_its_way_ns = now};
    p->fd = fd;
    p->idle_ns = now;
    remus_primary_authority_connected(p);
}

static const struct {
    uint8_t step; /* of RESYNC; 0: nothing is sent */
    enum remus_link_event event;
    const char *text;
} plans[] = {
    [REMUS_PLAN_COPY] = {REMUS_RESYNC_BEGIN, REMUS_LINK_COPY,
                         "copying the disks to the backup"},
    [REMUS_PLAN_MEND] = {REMUS_RESYNC_BEGIN, REMUS_LINK_COPY,
                         "copying what differs to the backup, whose disks "
                         "hold a copy that was cut short"},
    [REMUS_PLAN_CATCH_UP] = {REMUS_RESYNC_CATCH_UP, REMUS_LINK_CATCH_UP,
                             "sending what changed meanwhile"},
    [REMUS_PLAN_REWRITE] = {REMUS_RESYNC_PARTIAL, REMUS_LINK_COPY,
                            "writing what changed meanwhile straight to the "
                            "backup's disks: Inconsistent until it is done"},
    [REMUS_PLAN_COMPARE] = {0, REMUS_LINK_COMPARE,
                            "comparing the disks of both sides: the dirty "
                            "map does not tell what the backup lacks"},
    [REMUS_PLAN_MARKS] = {0, REMUS_LINK_COMPARE,
                          "asking the backup, which was the primary, what it "
                          "has written that its successor never had"},
};

/* Is the backup talking to the generation that we are?  (lock held) */
int remus_primary_greeted_right(const remus_primary *p)
{
    return p->alone.generation != REMUS_GENERATION_STORING &&
           !memcmp(p->greeted, p->kept.lineage.id, REMUS_ID_BYTES);
}

struct remus_slot *
remus_primary_begin_plan(remus_primary *p,
                         const struct remus_hello_reply *reply,
                         enum remus_plan plan, struct remus_record *r)
{
    int whole = plan == REMUS_PLAN_COPY || plan == REMUS_PLAN_MEND;
    uint64_t end;
    /* Whose checkpoints are not ours has none of our barriers. */
    int other = reply->content == REMUS_CONTENT_FOREIGN ||
                reply->content == REMUS_CONTENT_MARKED ||
                !remus_lineage_has(&p->kept.lineage, reply->generation, &end);
    if (!remus_plan_asks(plan) && !remus_primary_greeted_right(p))
        return NULL;
    *r = (struct remus_record){.type = REMUS_REC_RESYNC,
                               .flags = plans[plan].step,
                               .epoch = p->open_epoch,
                               .session = p->c.id};
    note_outage(p, whole || other ? p->acked : reply->held);
    p->c.committed = p->c.accepted = whole ? 0 : reply->committed;
    /* What is written straight to its disks takes the place of all before. */
    if (remus_plan_direct(plan))
        p->commit_given = 0;
    p->stats.resync_done = 0;
    /* From here on the guest's writes make it another one. */
    p->measured = (struct remus_measure){0};
    if (plan == REMUS_PLAN_CATCH_UP || plan == REMUS_PLAN_REWRITE) {
        r->range = remus_dirty_collect(&p->dirty, reply->held, p->open_epoch);
    } else {
        if (plan != REMUS_PLAN_MARKS)
            remus_dirty_renew(&p->dirty);
        for (unsigned int i = 0; i < p->volume_count; i++)
            r->range += p->volumes[i].size;
    }
    p->stats.resync_total = r->range;
    p->c.plan = plan;
    unsigned int effects =
        remus_primary_link_event(p, plans[plan].event, plans[plan].text);
    /* From here on every write is queued. */
    if (effects & REMUS_DO_SHARE)
        remus_primary_shared(p);
    if (!plans[plan].step)
        return NULL;
    return remus_sendq_reserve(&p->queue, REMUS_REC_HEADER);
}
