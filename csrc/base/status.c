/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The library's version, names, status texts, and process hardening. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/error.h"
#include "base/entry.h"
#include "base/sized.h"
#include "remus.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

/* A number of the preprocessor as text. */
#define TEXT(number) TEXT_OF(number)
#define TEXT_OF(number) #number

const char *remus_version(void)
{
    return TEXT(REMUS_VERSION_MAJOR) "." TEXT(REMUS_VERSION_MINOR) "." TEXT(
        REMUS_VERSION_PATCH);
}

const char *remus_state_name(enum remus_state state)
{
    switch (state) {
    case REMUS_STATE_CONNECTING:
        return "Connecting";
    case REMUS_STATE_CATCHING_UP:
        return "CatchingUp";
    case REMUS_STATE_PROTECTED:
        return "Protected";
    case REMUS_STATE_UNPROTECTED:
        return "Unprotected";
    case REMUS_STATE_PROMOTING:
        return "Promoting";
    case REMUS_STATE_PROMOTED:
        return "Promoted";
    case REMUS_STATE_SPLIT_BRAIN:
        return "SplitBrain";
    case REMUS_STATE_INCONSISTENT:
        return "Inconsistent";
    case REMUS_STATE_STANDBY:
        return "Standby";
    case REMUS_STATE_FAILED:
        return "Failed";
    case REMUS_STATE_FENCED:
        return "Fenced";
    }
    return "?";
}

static int oom_never(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = write(fd, "-1000", 5);
    close(fd);
    return n == 5;
}

int remus_harden_process(void)
{
    int done = 0;
    done += mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0;
    done += oom_never();
    done += prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0;
    return done;
}

/* ---- status as text ---------------------------------------------------- */

struct out {
    char *buf;
    size_t cap;
    size_t used; /* may pass cap: then it did not fit */
    int json;
    int fields;
};

static void put(struct out *o, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void put(struct out *o, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    size_t left = o->used < o->cap ? o->cap - o->used : 0;
    int n = vsnprintf(left ? o->buf + o->used : NULL, left, format, args);
    va_end(args);
    if (n > 0)
        o->used += (size_t)n;
}

static void put_string(struct out *o, const char *name, const char *value)
{
    /* A reason may be cut in the middle of a character, or hold what the
     * other side said. */
    char text[REMUS_REASON_MAX];
    snprintf(text, sizeof text, "%s", value);
    remus_text_clean(text);
    if (!o->json) {
        put(o, "%s=%s\n", name, text);
        return;
    }
    put(o, "%s\n  \"%s\": \"", o->fields++ ? "," : "{", name);
    for (const char *c = text; *c; c++)
        put(o, *c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
    put(o, "\"");
}

static void put_number(struct out *o, const char *name, uint64_t value)
{
    if (o->json)
        put(o, "%s\n  \"%s\": %llu", o->fields++ ? "," : "{", name,
            (unsigned long long)value);
    else
        put(o, "%s=%llu\n", name, (unsigned long long)value);
}

int remus_status_format(const struct remus_status *status, int json, char *buf,
                        size_t cap)
{
    struct remus_status ours, *s = &ours;
    int no =
        remus_sized_take(s, sizeof ours, status, "status_format", "status");
    if (!no)
        no = remus_given(buf, "status_format", "buf");
    if (no)
        return no;
    struct out o = {.buf = buf, .cap = cap, .json = json};
    const char *role = s->role == REMUS_ROLE_PRIMARY ? "primary" : "backup";
    if (!json)
        put(&o, "remus-native resource=%s role=%s state=%s connected=%d\n",
            s->resource, role, remus_state_name(s->state), s->connected);
    put_string(&o, "resource", s->resource);
    put_string(&o, "role", role);
    put_string(&o, "state", remus_state_name(s->state));
    put_string(&o, "reason", s->reason);
    put_number(&o, "connected", (uint64_t)s->connected);
    put_number(&o, "ioctl_driven", (uint64_t)s->ioctl_driven);
    put_string(&o, "generation", s->generation);
    put_number(&o, "volumes", s->volumes);
    put_number(&o, "open_epoch", s->open_epoch);
    put_number(&o, "prepared_epoch", s->prepared_epoch);
    put_number(&o, "committed_epoch", s->committed_epoch);
    put_number(&o, "applied_epoch", s->applied_epoch);
    put_number(&o, "stable_epoch", s->stable_epoch);
    put_number(&o, "promoted_epoch", s->promoted_epoch);
    put_number(&o, "epochs", s->epochs);
    put_number(&o, "bytes_written", s->bytes_written);
    put_number(&o, "bytes_zeroed", s->bytes_zeroed);
    put_number(&o, "bytes_coalesced", s->bytes_coalesced);
    put_number(&o, "bytes_applied", s->bytes_applied);
    put_number(&o, "records", s->records);
    put_number(&o, "queue_bytes", s->queue_bytes);
    put_number(&o, "queue_limit", s->queue_limit);
    put_number(&o, "journal_bytes", s->journal_bytes);
    put_number(&o, "journal_limit", s->journal_limit);
    put_number(&o, "parked_writes", s->parked_writes);
    put_number(&o, "stalls", s->stalls);
    put_number(&o, "resync_done", s->resync_done);
    put_number(&o, "resync_total", s->resync_total);
    put_number(&o, "link_changed_ns", s->link_changed_ns);
    put_number(&o, "measured_epoch", s->measured_epoch);
    put_number(&o, "epoch_extents", s->epoch_extents);
    put_number(&o, "epoch_coalesced", s->epoch_coalesced);
    put_number(&o, "dirty_bytes", s->dirty_bytes);
    put_number(&o, "asks_alone", (uint64_t)s->asks_alone);
    put_number(&o, "holds", (uint64_t)s->holds);
    put_number(&o, "writers", s->writers);
    put_number(&o, "switches", (uint64_t)s->switches);
    put_number(&o, "refused", s->refused);
    put_string(&o, "security", s->security);
    put_number(&o, "ready", (uint64_t)s->ready);
    put_number(&o, "sessions", s->sessions);
    put_number(&o, "open_bytes", s->open_bytes);
    if (json)
        put(&o, "\n}\n");
    if (o.used >= cap)
        return remus_fail(-ENOSPC, "status needs %zu bytes", o.used + 1);
    return (int)o.used;
}
