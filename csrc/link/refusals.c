/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Who was refused; see refusals.h. */
#include "link/refusals.h"

#include <stdio.h>
#include <string.h>

#include "base/sized.h"

#define OTHERS (REMUS_REFUSALS_MAX - 1)

const char *remus_refused_name(enum remus_refused cause)
{
    switch (cause) {
    case REMUS_REFUSED_SILENT:
        return "silent";
    case REMUS_REFUSED_CLOSED:
        return "closed";
    case REMUS_REFUSED_TLS:
        return "tls";
    case REMUS_REFUSED_KEY:
        return "key";
    case REMUS_REFUSED_FULL:
        return "full";
    case REMUS_REFUSED_PEER:
        return "peer";
    case REMUS_REFUSED_HELLO:
        return "hello";
    case REMUS_REFUSED_BUSY:
        return "busy";
    }
    return "?";
}

void remus_refusals_init(struct remus_refusals *r)
{
    memset(r, 0, sizeof *r);
    pthread_mutex_init(&r->lock, NULL);
    strcpy(r->entry[OTHERS].source, "others");
}

void remus_refusals_destroy(struct remus_refusals *r)
{
    pthread_mutex_destroy(&r->lock);
}

/* The entry of a source, emptied if it is a new one (lock held). */
static struct remus_refusal *entry_of(struct remus_refusals *r,
                                      const char *source, uint64_t now_ns)
{
    struct remus_refusal *quiet = NULL;
    for (unsigned int i = 0; i < r->used; i++) {
        struct remus_refusal *e = &r->entry[i];
        if (!strcmp(e->source, source))
            return e;
        if (!quiet || e->last_ns < quiet->last_ns)
            quiet = e;
    }
    if (r->used < OTHERS)
        quiet = &r->entry[r->used++];
    else if (now_ns - quiet->last_ns <
             REMUS_REFUSALS_QUIET_MS * (uint64_t)1000000)
        return &r->entry[OTHERS];
    memset(quiet, 0, sizeof *quiet);
    snprintf(quiet->source, sizeof quiet->source, "%s", source);
    return quiet;
}

void remus_refusals_note(struct remus_refusals *r, const char *source,
                         int cause, const char *text, uint64_t now_ns)
{
    pthread_mutex_lock(&r->lock);
    struct remus_refusal *e = entry_of(r, source, now_ns);
    if (!e->count)
        e->first_ns = now_ns;
    e->last_ns = now_ns;
    e->cause = cause;
    e->count++;
    snprintf(e->text, sizeof e->text, "%s", text);
    r->total++;
    pthread_mutex_unlock(&r->lock);
}

uint64_t remus_refusals_total(struct remus_refusals *r)
{
    pthread_mutex_lock(&r->lock);
    uint64_t total = r->total;
    pthread_mutex_unlock(&r->lock);
    return total;
}

int remus_refusals_read(struct remus_refusals *r, struct remus_refusal *out,
                        unsigned int cap)
{
    pthread_mutex_lock(&r->lock);
    unsigned int n = 0;
    for (unsigned int i = 0; i < REMUS_REFUSALS_MAX; i++)
        if (r->entry[i].count && n++ < cap)
            remus_sized_put(out, n - 1, &r->entry[i], sizeof *out);
    pthread_mutex_unlock(&r->lock);
    return (int)n;
}
