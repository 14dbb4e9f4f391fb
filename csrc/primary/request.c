/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Requests to a primary's disks: who takes the steps of io.c, and when.
 *
 * A request that can be finished at once is, by whoever brings it.  One that
 * meets a busy range is put into its volume's queue, and that volume's thread
 * carries it out; one that is done with the disk but finds no room in the
 * send queue is put into the list of those, and the resumer, which never
 * touches a disk, finishes it.  So a disk that stalls keeps up nothing of
 * another volume.  Nobody else ever waits for a parked request (FUSE workers
 * least of all), except the synchronous calls, which wait for their own
 * `done`.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "primary/internal.h"

/* ---- parking ------------------------------------------------------------ */

/* lock held */
static void park_for_room(remus_primary *p, struct remus_request *q)
{
    q->step = REMUS_REQ_ROOM;
    q->since_ns = remus_primary_now(p);
    q->next = NULL;
    *p->parked_tail = q;
    p->parked_tail = &q->next;
    p->parked_room++;
    atomic_store(&p->room_wanted, 1);
    pthread_cond_signal(&p->engine_wake); /* a checkpoint makes room */
    /* What it waits for may have come while it was on its way here. */
    p->park_wake = 1;
    pthread_cond_signal(&p->park_changed);
    /* Credit arrives in acks and pings. */
    if (!p->rx_wanted) {
        p->rx_wanted = 1;
        pthread_cond_signal(&p->rx_resume);
    }
}

/* lock held */
static void park_for_range(remus_primary *p, struct remus_request *q)
{
    struct remus_pvolume *v = &p->volumes[q->volume];
    q->step = REMUS_REQ_RANGE;
    q->next = NULL;
    *v->queue_tail = q;
    v->queue_tail = &q->next;
    v->queue_wake = 1; /* as above */
    pthread_cond_signal(&v->queue_changed);
}

/* Off a list, whose end `tail` is (lock held). */
static struct remus_request *unlink_at(struct remus_request **at,
                                       struct remus_request ***tail)
{
    struct remus_request *q = *at;
    *at = q->next;
    if (*tail == &q->next)
        *tail = at;
    return q;
}

static void free_request(remus_primary *p, struct remus_request *q)
{
    free(q->owned);
    q->owned = NULL;
    remus_primary_lock(p);
    q->next = p->free_requests;
    p->free_requests = q;
    remus_primary_unlock(p);
}

/* The range is given back only after the answer: what overlaps it is not
 * begun while nobody knows of this one. */
static void finish(remus_primary *p, struct remus_request *q)
{
    if (q->who.done)
        q->who.done(q->who.opaque, q->result);
    remus_primary_range_release(p, q);
    free_request(p, q);
}

/* ---- those that wait for room: the resumer ---------------------------------- */

/*
 * Look at every one once, in order.  Only this thread takes them off the
 * list, so a pointer into it stays good while the lock is not held.
 */
static void resume_parked(remus_primary *p)
{
    remus_primary_lock(p);
    if (p->parked_room && remus_primary_may_go_alone(p)) {
        remus_primary_unlock(p);
        remus_primary_take_generation(p);
        remus_primary_lock(p);
    }
    struct remus_request **at = &p->parked;
    while (*at) {
        struct remus_request *q = *at;
        remus_primary_unlock(p);
        int ready = remus_primary_queue_range(p, q, 0);
        remus_primary_lock(p);
        if (!ready) /* then there is none for those behind it either */
            break;
        unlink_at(at, &p->parked_tail);
        if (--p->parked_room == 0)
            atomic_store(&p->room_wanted, 0);
        remus_primary_unlock(p);
        finish(p, q);
        remus_primary_lock(p);
    }
    remus_primary_unlock(p);
}

void *remus_primary_resumer_main(void *arg)
{
    remus_primary *p = arg;
    remus_primary_lock(p);
    for (;;) {
        while (!p->park_wake && !remus_stopping(p))
            (void)remus_primary_wait(p, &p->park_changed, REMUS_NEVER);
        if (remus_stopping(p) && !p->parked && !p->volume_threads)
            break;
        if (!p->park_wake) { /* a volume's thread may still bring one */
            (void)remus_primary_wait(p, &p->park_changed, REMUS_NEVER);
            continue;
        }
        p->park_wake = 0;
        remus_primary_unlock(p);
        resume_parked(p);
        remus_primary_lock(p);
    }
    remus_primary_unlock(p);
    return NULL;
}

/* ---- those that wait for a range: a thread for each volume ------------------ */

static void carry_out(remus_primary *p, struct remus_request *q)
{
    remus_primary_do_local(p, q);
    if (remus_primary_queue_range(p, q, 1)) {
        finish(p, q);
        return;
    }
    remus_primary_lock(p);
    park_for_room(p, q);
    remus_primary_unlock(p);
}

/*
 * Look at every one once, in order.  Only this thread takes them off the
 * list.  A request that was abandoned is only thrown away.  (lock held; let
 * go of meanwhile)
 */
static void work_off(remus_primary *p, struct remus_pvolume *v)
{
    struct remus_request **at = &v->queue;
    while (*at) {
        struct remus_request *q = *at;
        int gone = q->abandoned;
        remus_primary_unlock(p);
        int taken = !gone && remus_primary_range_take(v, &q->range, 0);
        remus_primary_lock(p);
        if (taken && q->abandoned) {
            remus_primary_unlock(p);
            remus_primary_range_give(p, v, &q->range);
            remus_primary_lock(p);
            taken = 0;
        }
        if (!taken && !q->abandoned) {
            at = &q->next;
            continue;
        }
        unlink_at(at, &v->queue_tail);
        remus_primary_unlock(p);
        remus_primary_range_stop_waiting(v);
        if (taken)
            carry_out(p, q);
        else
            free_request(p, q);
        remus_primary_lock(p);
    }
}

void *remus_primary_volume_main(void *arg)
{
    struct remus_pvolume *v = arg;
    remus_primary *p = v->primary;
    remus_primary_lock(p);
    while (!remus_stopping(p) || p->engine_runs || v->queue) {
        if (!v->queue_wake) {
            (void)remus_primary_wait(p, &v->queue_changed, REMUS_NEVER);
            continue;
        }
        v->queue_wake = 0;
        work_off(p, v);
    }
    if (--p->volume_threads == 0)
        pthread_cond_signal(&p->park_changed);
    remus_primary_unlock(p);
    return NULL;
}

/* ---- who is killed while it waits -------------------------------------------- */

/* lock held */
static struct remus_request *first_of(struct remus_request *q,
                                      const void *owner)
{
    while (q && (q->who.owner != owner || q->abandoned))
        q = q->next;
    return q;
}

/* lock held */
static unsigned int list_those_of(struct remus_request *q, const void *owner,
                                  struct remus_parked *out, unsigned int n,
                                  unsigned int max)
{
    for (q = first_of(q, owner); q && n < max; q = first_of(q->next, owner))
        out[n++] =
            (struct remus_parked){q->who.id, q->who.thread, q->who.process};
    return n;
}

unsigned int remus_primary_parked(remus_primary *p, const void *owner,
                                  struct remus_parked *out, unsigned int max)
{
    remus_primary_lock(p);
    unsigned int n = list_those_of(p->parked, owner, out, 0, max);
    for (unsigned int i = 0; i < p->volume_count; i++)
        n = list_those_of(p->volumes[i].queue, owner, out, n, max);
    remus_primary_unlock(p);
    return n;
}

/* lock held */
static struct remus_request *find(struct remus_request *q, const void *owner,
                                  uint64_t id)
{
    for (q = first_of(q, owner); q && q->who.id != id;
         q = first_of(q->next, owner))
        ;
    return q;
}

void remus_primary_abandon(remus_primary *p, const void *owner, uint64_t id)
{
    struct remus_asker who = {.done = NULL};
    remus_primary_lock(p);
    struct remus_request *q = find(p->parked, owner, id);
    for (unsigned int i = 0; !q && i < p->volume_count; i++) {
        q = find(p->volumes[i].queue, owner, id);
        if (q) {
            q->abandoned = 1;
            remus_primary_wake_volume(&p->volumes[i]);
        }
    }
    if (q) {
        who = q->who;
        q->who = (struct remus_asker){.done = NULL};
    }
    remus_primary_unlock(p);
    if (who.done)
        who.done(who.opaque, -EINTR);
}

/* ---- requests ---------------------------------------------------------- */

static struct remus_request *new_request(remus_primary *p)
{
    remus_primary_lock(p);
    struct remus_request *q = p->free_requests;
    if (q)
        p->free_requests = q->next;
    remus_primary_unlock(p);
    return q ? q : malloc(sizeof *q);
}

/* Nothing was changed, or what was changed can't be sent. */
static int no_memory(remus_primary *p, struct remus_request *q, int local)
{
    struct remus_pvolume *v = &p->volumes[q->volume];
    if (local) {
        remus_primary_link_lost(p,
                                "volume %s: out of memory for a "
                                "waiting write",
                                v->name);
        /* Marks it: nothing is sent any more. */
        remus_primary_queue_range(p, q, 0);
        remus_primary_range_release(p, q);
    } else {
        remus_primary_range_stop_waiting(v);
    }
    return remus_fail(-ENOMEM, "volume %s: out of memory", v->name);
}

/* Off the caller's stack, and to where it waits. */
static int park(remus_primary *p, struct remus_request *q, int local,
                int borrow)
{
    struct remus_pvolume *v = &p->volumes[q->volume];
    struct remus_request *parked = new_request(p);
    size_t len = (size_t)(q->range.end - q->range.start);
    int copies = q->kind == REMUS_REQ_WRITE && !borrow && !q->owned;
    unsigned char *copy = parked && copies ? malloc(len) : NULL;
    if (copy)
        memcpy(copy, q->data, len);
    if (!parked || (copies && !copy)) {
        free(parked);
        return no_memory(p, q, local);
    }
    pthread_mutex_lock(&v->lock);
    *parked = *q;
    if (local) {
        /* The range on the stack is in the list: put ours in its place. */
        struct remus_range **at = &v->busy;
        while (*at != &q->range)
            at = &(*at)->next;
        *at = &parked->range;
        parked->range.next = q->range.next;
    }
    pthread_mutex_unlock(&v->lock);
    if (copy) {
        parked->owned = copy;
        parked->data = copy;
    }
    remus_primary_lock(p);
    p->stats.stalls++;
    if (local)
        park_for_room(p, parked);
    else
        park_for_range(p, parked);
    remus_primary_unlock(p);
    return REMUS_PARKED;
}

/*
 * The fast path lives on the caller's stack; a request object and a copy of
 * the data are made only to be parked.
 */
int remus_primary_submit(remus_primary *p, struct remus_request *q, int borrow)
{
    struct remus_pvolume *v = &p->volumes[q->volume];
    if (atomic_load_explicit(&p->no_writes, memory_order_relaxed) && !q->copy)
        return remus_primary_fenced(p, v);
    if (!remus_primary_range_take(v, &q->range, 1))
        return park(p, q, 0, borrow);
    remus_primary_do_local(p, q);
    if (!remus_primary_queue_range(p, q, 1))
        return park(p, q, 1, borrow);
    int result = q->result;
    if (!borrow) {
        q->who.done(q->who.opaque, result);
        result = REMUS_PARKED;
    }
    remus_primary_range_release(p, q);
    free(q->owned);
    return result;
}

static int submit(remus_primary *p, struct remus_request *q,
                  const struct remus_asker *who)
{
    uint64_t len = q->range.end - q->range.start;
    int err =
        remus_primary_check_io(p, q->volume, q->range.start, len, -ENOSPC);
    if (err)
        return err;
    q->who = *who;
    if (len)
        return remus_primary_submit(p, q, 0);
    who->done(who->opaque, 0);
    return REMUS_PARKED;
}

int remus_primary_submit_write(remus_primary *p, unsigned int volume,
                               const void *buf, size_t len, uint64_t offset,
                               const struct remus_asker *who)
{
    struct remus_request q = {.kind = REMUS_REQ_WRITE,
                              .volume = volume,
                              .range = {offset, offset + len, NULL},
                              .data = buf};
    return submit(p, &q, who);
}

int remus_primary_submit_zero(remus_primary *p, unsigned int volume,
                              uint64_t offset, uint64_t len,
                              const struct remus_asker *who)
{
    struct remus_request q = {.kind = REMUS_REQ_ZERO,
                              .volume = volume,
                              .range = {offset, offset + len, NULL}};
    return submit(p, &q, who);
}
