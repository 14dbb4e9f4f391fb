/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The send queue; see sendq.h. */
#include "primary/sendq.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"

#define SLOT_BYTES 1024u         /* one slot for so many bytes of ring */
#define SEND_BYTES (256u * 1024) /* at most in one send */
#define LINGER_NS 20000

static unsigned char *map_twice(uint64_t size)
{
    unsigned char *at = NULL;
    int fd = memfd_create("remus-queue", MFD_CLOEXEC);
    if (fd < 0)
        return NULL;
    if (ftruncate(fd, (off_t)size) == 0) {
        void *both = mmap(NULL, 2 * size, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (both != MAP_FAILED) {
            at = both;
            for (int i = 0; i < 2; i++)
                if (mmap(at + (uint64_t)i * size, size, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
                    munmap(both, 2 * size);
                    at = NULL;
                    break;
                }
        }
    }
    close(fd);
    return at;
}

int remus_sendq_init(struct remus_sendq *q, uint64_t bytes)
{
    memset(q, 0, sizeof *q);
    q->size = bytes;
    q->ring = map_twice(bytes);
    q->slot_count = bytes / SLOT_BYTES + 2 * REMUS_QUEUE_CONTROL_SLOTS;
    q->slots = calloc(q->slot_count, sizeof *q->slots);
    pthread_mutex_init(&q->send_lock, NULL);
    pthread_mutex_init(&q->wake_lock, NULL);
    remus_cond_init(&q->wake);
    if (!q->ring || !q->slots)
        return remus_fail(-ENOMEM, "no memory for a send queue of %llu bytes",
                          (unsigned long long)bytes);
    return 0;
}

void remus_sendq_free(struct remus_sendq *q)
{
    if (q->ring)
        munmap(q->ring, 2 * q->size);
    free(q->slots);
    pthread_mutex_destroy(&q->send_lock);
    pthread_mutex_destroy(&q->wake_lock);
    pthread_cond_destroy(&q->wake);
}

void remus_sendq_reset(struct remus_sendq *q)
{
    for (uint64_t i = 0; i < q->slot_count; i++)
        atomic_store(&q->slots[i].ready, 0);
    q->reserved = q->slots_reserved = 0;
    q->next_slot = q->ready_end = q->run_count = 0;
    q->run_crc = 0;
    atomic_store(&q->sent, 0);
    atomic_store(&q->slots_sent, 0);
}

uint64_t remus_sendq_bytes(const struct remus_sendq *q)
{
    return q->reserved - atomic_load(&q->sent);
}

int remus_sendq_fits(const struct remus_sendq *q, uint64_t length, int control)
{
    uint64_t slots = q->slots_reserved - atomic_load(&q->slots_sent) + 1;
    uint64_t bytes = remus_sendq_bytes(q) + length;
    if (!control) {
        slots += REMUS_QUEUE_CONTROL_SLOTS;
        bytes += REMUS_QUEUE_CONTROL;
    }
    return slots <= q->slot_count && bytes <= q->size;
}

struct remus_slot *remus_sendq_reserve(struct remus_sendq *q, uint32_t length)
{
    struct remus_slot *slot = &q->slots[q->slots_reserved++ % q->slot_count];
    slot->start = q->reserved;
    slot->length = length;
    q->reserved += length;
    atomic_fetch_add(&q->publishing, 1);
    return slot;
}

static unsigned char *record_at(const struct remus_sendq *q,
                                const struct remus_slot *slot)
{
    return q->ring + slot->start % q->size;
}

/* The payload is in its place: let the record go. */
static void seal(struct remus_sendq *q, struct remus_slot *slot,
                 struct remus_record *r)
{
    unsigned char *at = record_at(q, slot);
    r->payload_crc = 0;
    if (r->length)
        r->payload_crc = remus_crc32c(0, at + REMUS_REC_HEADER, r->length);
    remus_record_encode(r, at);
    atomic_store(&slot->ready, 1);
    atomic_fetch_sub(&q->publishing, 1);
}

/* Paired with the sender: it says "idle", then looks once more. */
static void wake_if_idle(struct remus_sendq *q)
{
    if (atomic_load(&q->idle))
        remus_sendq_wake(q);
}

void remus_sendq_publish_quietly(struct remus_sendq *q,
                                 struct remus_slot *slot,
                                 struct remus_record *r, const void *payload)
{
    if (r->length)
        memcpy(record_at(q, slot) + REMUS_REC_HEADER, payload, r->length);
    seal(q, slot, r);
}

void remus_sendq_publish(struct remus_sendq *q, struct remus_slot *slot,
                         struct remus_record *r, const void *payload)
{
    remus_sendq_publish_quietly(q, slot, r, payload);
    wake_if_idle(q);
}

void remus_sendq_publish_vector(struct remus_sendq *q, struct remus_slot *slot,
                                struct remus_record *r,
                                const struct iovec *vector, uint64_t at)
{
    remus_vector_copy(record_at(q, slot) + REMUS_REC_HEADER, vector, at,
                      r->length);
    seal(q, slot, r);
    wake_if_idle(q);
}

/* Take a ready record into the epoch's sum; complete a barrier with it.
 * (send_lock held) */
static void account(struct remus_sendq *q, const struct remus_slot *slot)
{
    unsigned char *at = q->ring + slot->start % q->size;
    uint8_t type = at[4];
    if (type == REMUS_REC_BARRIER) {
        remus_put64(at + 16, q->run_count);
        remus_put64(at + 24, q->run_crc);
        remus_put32(at + 60, remus_crc32c(0, at, 60));
        q->run_count = 0;
        q->run_crc = 0;
    } else if ((type == REMUS_REC_WRITE || type == REMUS_REC_ZERO) &&
               !(at[5] & REMUS_REC_DIRECT)) {
        q->run_count++;
        q->run_crc = remus_record_run(q->run_crc, remus_get32(at + 60));
    }
}

/* send_lock held */
static void gather(struct remus_sendq *q)
{
    /* A full lap would find its own, already sent slots: those are cleared
     * below before `slots_sent` frees them. */
    for (;;) {
        struct remus_slot *slot = &q->slots[q->next_slot % q->slot_count];
        if (!atomic_load(&slot->ready) || slot->start != q->ready_end)
            return;
        account(q, slot);
        atomic_store(&slot->ready, 0);
        q->ready_end += slot->length;
        q->next_slot++;
    }
}

/* As remus_sendq_pump(); what comes while `pumping` is set is sent, too.
 * (send_lock held) */
static int send_ready(struct remus_sendq *q, struct remus_conn *conn)
{
    uint64_t sent = atomic_load(&q->sent);
    for (;;) {
        gather(q);
        uint64_t todo = q->ready_end - sent;
        if (!todo) {
            if (atomic_exchange(&q->pumping, 0))
                continue; /* what was left to us is there by now */
            atomic_store(&q->slots_sent, q->next_slot);
            return 0;
        }
        atomic_store(&q->pumping, 1);
        size_t n = todo < SEND_BYTES ? (size_t)todo : SEND_BYTES;
        ssize_t done = remus_conn_send(conn, q->ring + sent % q->size, n);
        if (done < 0)
            return done == -EAGAIN ? 1 : (int)done;
        sent += (uint64_t)done;
        atomic_store(&q->sent, sent);
        /* A slot is done with once it is gathered; its bytes are guarded by
         * `sent`. */
        atomic_store(&q->slots_sent, q->next_slot);
    }
}

int remus_sendq_pump(struct remus_sendq *q, struct remus_conn *conn)
{
    atomic_store(&q->pumping, 1);
    int rc = send_ready(q, conn);
    atomic_store(&q->pumping, 0); /* if it ended early */
    return rc;
}

int remus_sendq_pumped(const struct remus_sendq *q)
{
    return atomic_load(&q->pumping);
}

/* Is there a published record that was not gathered? */
static int something_ready(struct remus_sendq *q)
{
    pthread_mutex_lock(&q->send_lock);
    struct remus_slot *slot = &q->slots[q->next_slot % q->slot_count];
    int ready = (atomic_load(&slot->ready) && slot->start == q->ready_end) ||
                q->ready_end != atomic_load(&q->sent);
    pthread_mutex_unlock(&q->send_lock);
    return ready;
}

int remus_sendq_linger(struct remus_sendq *q)
{
    uint64_t now = remus_clock_now();
    struct remus_deadline end = remus_deadline_in_ns(now, LINGER_NS);
    pthread_mutex_lock(&q->wake_lock);
    while (!q->stop && !q->wanted &&
           !remus_cond_wait(&q->wake, &q->wake_lock, now, end))
        now = remus_clock_now();
    q->wanted = 0;
    int stop = q->stop;
    pthread_mutex_unlock(&q->wake_lock);
    return !stop && something_ready(q);
}

int remus_sendq_wait(struct remus_sendq *q)
{
    pthread_mutex_lock(&q->wake_lock);
    atomic_store(&q->idle, 1);
    if (!q->stop && !something_ready(q))
        pthread_cond_wait(&q->wake, &q->wake_lock);
    q->wanted = 0;
    atomic_store(&q->idle, 0);
    int stop = q->stop;
    pthread_mutex_unlock(&q->wake_lock);
    return stop;
}

void remus_sendq_wake(struct remus_sendq *q)
{
    pthread_mutex_lock(&q->wake_lock);
    q->wanted = 1;
    pthread_cond_signal(&q->wake);
    pthread_mutex_unlock(&q->wake_lock);
}

void remus_sendq_stop(struct remus_sendq *q)
{
    pthread_mutex_lock(&q->wake_lock);
    q->stop = 1;
    pthread_cond_broadcast(&q->wake);
    pthread_mutex_unlock(&q->wake_lock);
}
