/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Requests that the primary will answer, in slots; and who is the last to use
 * an export, and frees it; see fuse_int.h. */
#include "node/fuse_int.h"

#include <errno.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/fork.h"

static _Thread_local struct remus_fuse_slot *current;

static uint32_t index_of(const struct remus_fuse_slot *w)
{
    return (uint32_t)(w - w->e->slots);
}

unsigned char *remus_fuse_slot_bytes(const struct remus_fuse_slot *w)
{
    return remus_kept_bytes(&w->e->kept, index_of(w));
}

int remus_slots_init(remus_export *e)
{
    uint32_t count = e->kept.head->slot_count;
    e->slots = aligned_alloc(64, count * sizeof *e->slots);
    if (!e->slots)
        return -ENOMEM;
    memset(e->slots, 0, count * sizeof *e->slots);
    for (uint32_t i = count; i-- > 0;) {
        e->slots[i].e = e;
        e->slots[i].next = e->free;
        e->free = &e->slots[i];
    }
    return 0;
}

void remus_export_forget(remus_export *e)
{
    free(e->slots);
    free(e->lanes);
    free(e->threads);
    remus_files_free(e);
    remus_kept_free(&e->kept);
    pthread_mutex_destroy(&e->lock);
    pthread_mutex_destroy(&e->disk_lock);
    pthread_mutex_destroy(&e->interrupt_lock);
    pthread_cond_destroy(&e->drained);
    pthread_cond_destroy(&e->slot_free);
    pthread_cond_destroy(&e->watch_wake);
    pthread_rwlock_destroy(&e->source);
    remus_standby_free(e);
    free(e->mountpoint);
    free(e);
}

void remus_export_free(remus_export *e)
{
    remus_fd_disown(fuse_session_fd(e->se)); /* of one that was cut */
    fuse_session_destroy(e->se);
    remus_export_forget(e);
}

/* ---- a worker's ----------------------------------------------------------- */

/* Cancelled while it waits. */
static void unlock(void *opaque)
{
    remus_export *e = opaque;
    pthread_mutex_unlock(&e->lock);
}

struct remus_fuse_slot *remus_fuse_slot_get(remus_export *e)
{
    struct remus_fuse_slot *w;
    pthread_mutex_lock(&e->lock);
    pthread_cleanup_push(unlock, e);
    while (!e->free)
        (void)remus_cond_wait(&e->slot_free, &e->lock, remus_clock_now(),
                              REMUS_NEVER);
    w = e->free;
    e->free = w->next;
    pthread_cleanup_pop(0);
    pthread_mutex_unlock(&e->lock);
    atomic_store(&w->users, 1);
    return w;
}

void remus_fuse_slot_fatten(struct remus_fuse_slot *w)
{
    if (!w->fat)
        remus_kept_fatten(&w->e->kept, index_of(w));
    w->fat = 1;
}

void remus_fuse_slot_unfree(struct remus_fuse_slot *w)
{
    remus_export *e = w->e;
    pthread_mutex_lock(&e->lock);
    struct remus_fuse_slot **at = &e->free;
    while (*at && *at != w)
        at = &(*at)->next;
    if (*at)
        *at = w->next;
    pthread_mutex_unlock(&e->lock);
    atomic_store(&w->users, 1);
}

void remus_fuse_slot_interrupted(remus_export *e, uint64_t unique)
{
    for (uint32_t i = 0; i < e->kept.head->slot_count; i++) {
        if (__atomic_load_n(&e->slots[i].unique, __ATOMIC_RELAXED) == unique)
            atomic_store(&e->kept.slots[i].interrupted, 1);
    }
}

static void set_free(struct remus_fuse_slot *w)
{
    remus_export *e = w->e;
    pthread_mutex_lock(&e->lock);
    w->next = e->free;
    e->free = w;
    pthread_cond_signal(&e->slot_free);
    pthread_mutex_unlock(&e->lock);
}

void remus_fuse_slot_leave(struct remus_fuse_slot *w)
{
    atomic_store(&w->users, 0);
    set_free(w);
}

void remus_fuse_slot_trim(struct remus_fuse_slot *w)
{
    if (index_of(w) < REMUS_KEPT_FAT)
        return;
    remus_kept_thin(&w->e->kept, index_of(w), w->size);
    w->fat = 0;
}

void remus_fuse_slot_came(struct remus_fuse_slot *w, size_t size)
{
    const struct remus_kept *k = &w->e->kept;
    w->size = size;
    atomic_store_explicit(
        &k->slots[index_of(w)].order,
        atomic_fetch_add_explicit(&k->head->orders, 1, memory_order_relaxed) +
            1,
        memory_order_release);
}

void remus_fuse_slot_do(struct remus_fuse_slot *w)
{
    struct fuse_in_header in = {0};
    if (w->size >= sizeof in)
        memcpy(&in, remus_fuse_slot_bytes(w), sizeof in);
    __atomic_store_n(&w->unique, in.unique, __ATOMIC_RELAXED);
    w->taken = 0;
    current = w;
}

uint64_t remus_fuse_unique(void)
{
    return current ? current->unique : 0;
}

int remus_fuse_slot_done(struct remus_fuse_slot *w)
{
    current = NULL;
    if (!w->taken) {
        remus_kept_clear(&w->e->kept, index_of(w));
        return 1;
    }
    if (atomic_load(&w->users) > 1)
        remus_fuse_slot_trim(w);
    if (atomic_fetch_sub(&w->users, 1) > 1)
        return 0;
    atomic_store(&w->users, 1);
    return 1;
}

/* ---- who will answer ------------------------------------------------------- */

struct remus_fuse_slot *remus_fuse_slot_take(remus_export *e, fuse_req_t req,
                                             size_t len)
{
    struct remus_fuse_slot *w = current;
    w->req = req;
    w->len = len;
    w->taken = 1;
    atomic_fetch_add(&w->users, 1);
    pthread_mutex_lock(&e->lock);
    e->parked++;
    pthread_mutex_unlock(&e->lock);
    return w;
}

void remus_fuse_slot_range(const struct remus_fuse_slot *w,
                           unsigned int volume, uint64_t start, uint64_t len)
{
    struct remus_kept_slot *s = &w->e->kept.slots[index_of(w)];
    s->volume = volume;
    s->start = start;
    s->end = start + len;
}

void remus_fuse_slot_begins(void *opaque)
{
    const struct remus_fuse_slot *w = opaque;
    atomic_store_explicit(&w->e->kept.slots[index_of(w)].begun, 1,
                          memory_order_release);
}

void remus_fuse_slot_give(remus_export *e, struct remus_fuse_slot *w)
{
    remus_kept_clear(&e->kept, index_of(w));
    int mine = atomic_fetch_sub(&w->users, 1) == 1;
    pthread_mutex_lock(&e->lock);
    if (mine) {
        w->next = e->free;
        e->free = w;
        pthread_cond_signal(&e->slot_free);
    }
    int last = --e->parked == 0;
    int abandoned = e->abandoned;
    if (last)
        pthread_cond_broadcast(&e->drained);
    pthread_mutex_unlock(&e->lock);
    if (last && abandoned)
        remus_export_free(e);
}
