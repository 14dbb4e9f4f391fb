/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Pending connections; see pending.h. */
#include "link/pending.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/wake.h"

#define ACCEPT_ROUND 16 /* accepted before those who wait have their turn */
#define NICE 10         /* strangers come after who is served */
#define PAUSE_MS 100    /* after an accept that failed for want of fds */

enum step {              /* the further, the later it has to leave */
            STEP_SILENT, /* not a byte yet */
            STEP_HANDSHAKE,
            STEP_PROVEN /* shook hands; its first record is awaited */
};

struct guest {
    struct remus_conn conn;
    enum step step;
    short events; /* polled for */
    uint64_t since_ns;
};

/* All but `config` and `wake` is the thread's own. */
struct remus_pending {
    struct remus_pending_config config; /* constant */
    int wake;                           /* constant: eventfd, set to stop */
    pthread_t thread;
    uint64_t paused_ns; /* until then nobody is accepted; 0 */
    unsigned int count;
    struct guest guest[REMUS_PENDING_MAX]; /* oldest first */
};

static uint64_t now_ns(const struct remus_pending *l)
{
    return l->config.io->now_ns(l->config.io);
}

/* ---- leaving ------------------------------------------------------------ */

static void note(struct remus_pending *l, const char *source, int cause,
                 const char *text)
{
    remus_refusals_note(l->config.refusals, source, cause, text, now_ns(l));
}

/* Take a guest off the list; its connection is the caller's. */
static struct remus_conn take(struct remus_pending *l, unsigned int i)
{
    struct remus_conn conn = l->guest[i].conn;
    l->count--;
    memmove(&l->guest[i], &l->guest[i + 1], (l->count - i) * sizeof *l->guest);
    return conn;
}

static void drop(struct remus_pending *l, unsigned int i, int cause,
                 const char *text)
{
    /* Who may speak with us may hear why; a stranger got TLS's alert. */
    int tell = !l->config.keys || l->guest[i].step == STEP_PROVEN;
    struct remus_conn conn = take(l, i);
    note(l, conn.peer, cause, text);
    if (tell)
        remus_tell_error(&conn, text);
    remus_conn_close(&conn);
}

/* How many guests this source has. */
static unsigned int guests_of(const struct remus_pending *l,
                              const char *source)
{
    unsigned int n = 0;
    for (unsigned int i = 0; i < l->count; i++)
        n += !strcmp(l->guest[i].conn.peer, source);
    return n;
}

/* Who leaves, of the guests of `source` (NULL: of the sources that have most
 * guests): who got least far, of those the oldest. */
static unsigned int weakest(const struct remus_pending *l, const char *source)
{
    unsigned int most = 0, leaves = l->count;
    for (unsigned int i = 0; i < l->count; i++) {
        const struct guest *g = &l->guest[i];
        unsigned int n = source ? !strcmp(g->conn.peer, source)
                                : guests_of(l, g->conn.peer);
        if (n > most || (n && n == most && g->step < l->guest[leaves].step)) {
            most = n;
            leaves = i;
        }
    }
    return leaves;
}

/* Make room for one more of `source`: see pending.h for who leaves. */
static void make_room(struct remus_pending *l, const char *source)
{
    unsigned int leaves;
    if (guests_of(l, source) >= REMUS_PENDING_SOURCE)
        leaves = weakest(l, source);
    else if (l->count >= REMUS_PENDING_MAX)
        leaves = weakest(l, NULL);
    else
        return;
    drop(l, leaves, REMUS_REFUSED_FULL,
         "too many connections at once: it made room for another");
}

/* ---- one guest's next step ---------------------------------------------- */

/* It did what its step waits for: 1: admit it; 0: it waits on; < 0: drop it,
 * for *cause, with a text. */
static int advance(struct remus_pending *l, struct guest *g, int *cause)
{
    char byte;
    *cause = REMUS_REFUSED_CLOSED;
    if (g->step != STEP_HANDSHAKE) {
        ssize_t n = recv(g->conn.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return 0;
        if (n <= 0)
            return remus_fail(
                -ECONNRESET, "closed the connection without sending anything");
        if (g->step == STEP_PROVEN || !l->config.keys)
            return 1;
        g->step = STEP_HANDSHAKE;
        int err = remus_tls_new(&g->conn.tls, l->config.keys, 1, g->conn.fd);
        if (err)
            return err;
    }
    int err = remus_tls_handshake(g->conn.tls, &g->events);
    if (err == -EAGAIN)
        return 0;
    if (err) {
        *cause = remus_tls_cause(g->conn.tls);
        return err;
    }
    g->step = STEP_PROVEN;
    g->events = POLLIN;
    return 0;
}

/* Returns 1 if the guest left. */
static int serve(struct remus_pending *l, unsigned int i)
{
    int cause;
    int rc = advance(l, &l->guest[i], &cause);
    if (rc == 0)
        return 0;
    if (rc < 0) {
        drop(l, i, cause, remus_last_error());
        return 1;
    }
    struct remus_conn conn = take(l, i);
    remus_conn_describe(&conn, l->config.address);
    l->config.admit(l->config.opaque, &conn);
    return 1;
}

static void expire(struct remus_pending *l, uint64_t now)
{
    while (l->count &&
           now - l->guest[0].since_ns >= REMUS_PENDING_MS * 1000000ull) {
        int silent = l->guest[0].step == STEP_SILENT;
        drop(l, 0, REMUS_REFUSED_SILENT,
             silent ? "connected and sent nothing"
             : l->guest[0].step == STEP_PROVEN
                 ? "completed the handshake and sent nothing"
                 : "began a handshake and did not complete it");
    }
}

/* ---- accepting ---------------------------------------------------------- */

/* 0; 1: nobody else is there now. */
static int accept_one(struct remus_pending *l)
{
    struct remus_conn conn = REMUS_CONN_NONE;
    conn.fd = remus_accept(l->config.listener, l->config.address, conn.peer);
    if (conn.fd == -EPERM) {
        note(l, conn.peer, REMUS_REFUSED_PEER, remus_last_error());
        return 0;
    }
    if (conn.fd == -ECONNABORTED || conn.fd == -EINTR)
        return 0;
    if (conn.fd < 0) {
        /* Without a file descriptor for it, it stays in the kernel's queue:
         * polling at once would find it there again, and again. */
        if (conn.fd != -EAGAIN) {
            l->paused_ns = remus_deadline_in(now_ns(l), PAUSE_MS).ns;
            note(l, "accept", REMUS_REFUSED_FULL, remus_last_error());
        }
        return 1;
    }
    make_room(l, conn.peer);
    l->guest[l->count++] =
        (struct guest){.conn = conn, .events = POLLIN, .since_ns = now_ns(l)};
    return 0;
}

static int milliseconds(const struct remus_pending *l, uint64_t now)
{
    uint64_t end = l->paused_ns;
    if (l->count) {
        uint64_t oldest =
            remus_deadline_in(l->guest[0].since_ns, REMUS_PENDING_MS).ns;
        end = end && end < oldest ? end : oldest;
    }
    if (!end)
        return -1;
    return remus_deadline_poll_ms((struct remus_deadline){end}, now);
}

static void *pending_main(void *arg)
{
    struct remus_pending *l = arg;
    /* What it is for has to come first; refused, it is merely not polite. */
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICE);
    for (;;) {
        struct pollfd p[2 + REMUS_PENDING_MAX];
        uint64_t now = now_ns(l);
        if (l->paused_ns && now >= l->paused_ns)
            l->paused_ns = 0;
        unsigned int n = l->count;
        p[0] = (struct pollfd){.fd = l->wake, .events = POLLIN};
        p[1] = (struct pollfd){.fd = l->paused_ns ? -1 : l->config.listener,
                               .events = POLLIN};
        for (unsigned int i = 0; i < n; i++)
            p[2 + i] = (struct pollfd){.fd = l->guest[i].conn.fd,
                                       .events = l->guest[i].events};
        if (poll(p, 2 + n, milliseconds(l, now)) < 0)
            continue; /* EINTR: every other cause is a fault of ours */
        if (p[0].revents)
            return NULL;
        for (unsigned int i = n; i-- > 0;) /* who leaves moves later ones */
            if (p[2 + i].revents)
                serve(l, i);
        expire(l, now_ns(l));
        if (p[1].revents)
            for (int i = 0; i < ACCEPT_ROUND && !accept_one(l); i++)
                ;
    }
}

int remus_pending_start(const struct remus_pending_config *config,
                        struct remus_pending **out)
{
    *out = NULL;
    struct remus_pending *l = calloc(1, sizeof *l);
    if (!l)
        return remus_fail(-ENOMEM, "out of memory");
    l->config = *config;
    l->wake = remus_wake_open();
    int err = l->wake < 0 ? l->wake
                          : -pthread_create(&l->thread, NULL, pending_main, l);
    if (err) {
        remus_wake_close(l->wake);
        free(l);
        return remus_fail(err, "start a thread: %s", remus_errno_text(err));
    }
    *out = l;
    return 0;
}

void remus_pending_stop(struct remus_pending *l)
{
    if (!l)
        return;
    remus_wake(l->wake);
    pthread_join(l->thread, NULL);
    while (l->count) {
        struct remus_conn conn = take(l, l->count - 1);
        remus_conn_close(&conn);
    }
    remus_wake_close(l->wake);
    free(l);
}
