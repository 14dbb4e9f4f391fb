/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From the name of a host to its addresses; see resolve.h. */
#include "link/resolve.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/error.h"
#include "base/wake.h"

struct remus_lookup {
    struct remus_address address; /* constant */
    int wake;                     /* constant: eventfd, set when it is over */
    _Atomic int users;          /* the asker and the thread: the last frees */
    int rc;                     /* of getaddrinfo; the thread's until then */
    struct remus_places places; /* ... as this */
};

static int ask(const struct remus_address *a, int flags,
               struct remus_places *out)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_NUMERICSERV | flags};
    struct addrinfo *list;
    int rc = getaddrinfo(a->host, a->port, &hints, &list);
    if (rc)
        return rc;
    out->count = 0;
    for (const struct addrinfo *at = list; at && out->count < REMUS_PLACES_MAX;
         at = at->ai_next) {
        struct remus_place *place = &out->place[out->count++];
        memcpy(&place->sa, at->ai_addr, at->ai_addrlen);
        place->len = at->ai_addrlen;
    }
    freeaddrinfo(list);
    return 0;
}

static int not_resolved(const struct remus_address *a, const char *why)
{
    return remus_fail(-EHOSTUNREACH,
                      "address %s: not reachable: the name was not "
                      "resolved: %s",
                      a->text, why);
}

/* Without a name server: 1; 0: it is a name. */
static int known(const struct remus_address *a, struct remus_places *out)
{
    if (a->is_tcp)
        return ask(a, AI_NUMERICHOST, out) == 0;
    out->count = 1;
    out->place[0] = a->local;
    return 1;
}

int remus_resolve_here(const struct remus_address *a, struct remus_places *out)
{
    int rc = known(a, out) ? 0 : ask(a, 0, out);
    return rc ? not_resolved(a, gai_strerror(rc)) : 0;
}

/* ---- with a thread -------------------------------------------------------- */

static void let_go(struct remus_lookup *l)
{
    if (atomic_fetch_sub(&l->users, 1) > 1)
        return;
    remus_wake_close(l->wake);
    free(l);
}

static void *lookup_main(void *arg)
{
    struct remus_lookup *l = arg;
    l->rc = ask(&l->address, 0, &l->places);
    remus_wake(l->wake);
    let_go(l);
    return NULL;
}

static int start(struct remus_resolver *r, const struct remus_address *a)
{
    struct remus_lookup *l = calloc(1, sizeof *l);
    int wake = remus_wake_open();
    pthread_t id;
    pthread_attr_t detached;
    sigset_t all, before;
    if (!l || wake < 0) {
        free(l);
        remus_wake_close(wake);
        return remus_fail(-ENOMEM, "address %s: out of memory", a->text);
    }
    l->address = *a;
    l->wake = wake;
    l->users = 2;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = pthread_create(&id, &detached, lookup_main, l);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&detached);
    if (err) {
        l->users = 1;
        let_go(l);
        return remus_fail(-err, "address %s: start a thread: %s", a->text,
                          remus_errno_text(err));
    }
    r->lookup = l;
    return 0;
}

int remus_resolve(struct remus_resolver *r, const struct remus_address *a,
                  remus_io *io, struct remus_deadline end, int wake,
                  struct remus_places *out)
{
    if (known(a, out))
        return 0;
    int err = r->lookup ? 0 : start(r, a);
    if (err)
        return err;
    struct remus_lookup *l = r->lookup;
    struct pollfd p[2] = {{.fd = l->wake, .events = POLLIN},
                          {.fd = wake, .events = POLLIN}};
    int n;
    do
        n = poll(p, 2, remus_deadline_poll_ms(end, io->now_ns(io)));
    while (n < 0 && errno == EINTR);
    if (p[1].revents)
        return remus_fail(-EINTR, "interrupted");
    if (!p[0].revents)
        return not_resolved(a, "no name server answers");
    int rc = l->rc;
    *out = l->places;
    remus_resolver_free(r);
    return rc ? not_resolved(a, gai_strerror(rc)) : 0;
}

void remus_resolver_free(struct remus_resolver *r)
{
    if (r->lookup)
        let_go(r->lookup);
    r->lookup = NULL;
}
