/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A side that was the backup and is a primary now: who looks for the backup
 * at its old address is told what became of it.  One thread answers one hello
 * after the other, from primary.state as it is at that moment; it takes
 * nothing, and knows no disk.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/answer.h"
#include "backup/backup.h"
#include "base/clock.h"
#include "base/entry.h"
#include "base/error.h"
#include "base/sized.h"
#include "base/fork.h"
#include "base/wake.h"
#include "format/primary_state.h"
#include "link/config.h"
#include "link/pending.h"
#include "link/refusals.h"
#include "remus.h"

#define HELLO_MS 3000

struct remus_former {
    struct remus_entry entry;       /* constant; the first: see entry.h */
    remus_io *io;                   /* constant */
    char *resource;                 /* constant */
    char *state_dir;                /* constant */
    struct remus_address address;   /* constant */
    struct remus_tls_keys *keys;    /* constant; NULL: no TLS */
    int listener;                   /* constant */
    int wake;                       /* constant: eventfd, set to stop */
    struct remus_pending *pending;  /* constant */
    struct remus_refusals refusals; /* its own lock */
    pthread_t thread;
    int started;              /* open/close only */
    struct remus_input input; /* the thread's */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct remus_conn conn;      /* lock; the thread's once it took it */
    int busy;                    /* lock: a connection is being answered */
    int stopping;                /* lock */
    int news;                    /* lock: enum remus_former_news */
    char text[REMUS_REASON_MAX]; /* lock: about it */
};

/* ---- one hello ---------------------------------------------------------------- */

static int wait_hello(struct remus_former *f, struct remus_conn *c,
                      struct remus_hello *hello, uint64_t *session)
{
    struct remus_record r;
    const unsigned char *header, *payload;
    struct remus_deadline end =
        remus_deadline_in(f->io->now_ns(f->io), HELLO_MS);
    int rc;
    remus_input_reset(&f->input);
    while ((rc = remus_input_next(&f->input, &r, &header, &payload)) == 0) {
        struct pollfd p[2] = {{.fd = c->fd, .events = POLLIN},
                              {.fd = f->wake, .events = POLLIN}};
        uint64_t now = f->io->now_ns(f->io);
        if (remus_deadline_over(end, now))
            return remus_fail(-ETIMEDOUT,
                              "a client connected and sent no hello");
        if (poll(p, 2, remus_deadline_poll_ms(end, now)) > 0 && p[1].revents)
            return remus_fail(-ESHUTDOWN, "this process ends");
        ssize_t got = remus_input_fill(&f->input, c);
        if (got < 0 && got != -EAGAIN)
            return (int)got;
    }
    if (rc < 0)
        return rc;
    if (r.type != REMUS_REC_HELLO)
        return remus_fail(-EBADMSG, "record type %u instead of a hello",
                          r.type);
    *session = r.session;
    return remus_hello_decode(payload, r.length, hello);
}

static int find_answer(struct remus_former *f, const struct remus_hello *hello,
                       struct remus_hello_reply *reply)
{
    struct remus_primary_state s;
    *reply = (struct remus_hello_reply){.version = REMUS_WIRE_VERSION,
                                        .next_number = 1,
                                        .max_payload = REMUS_REC_PAYLOAD_MAX};
    if (strcmp(hello->resource, f->resource))
        return remus_fail(-EINVAL,
                          "the primary replicates resource %s, this is %s: "
                          "correct the address",
                          hello->resource, f->resource);
    int err = remus_primary_state_read(f->io, f->state_dir, f->resource, &s);
    return err ? err : remus_answer_no(&s.lineage, 0, &hello->lineage, reply);
}

static int send_answer(struct remus_conn *c, uint64_t session,
                       const struct remus_hello_reply *reply)
{
    unsigned char out[REMUS_REC_HEADER + REMUS_HELLO_REPLY_BYTES];
    struct remus_record r = {.type = REMUS_REC_HELLO_REPLY,
                             .length = REMUS_HELLO_REPLY_BYTES,
                             .session = session};
    remus_hello_reply_encode(reply, out + REMUS_REC_HEADER);
    r.payload_crc = remus_crc32c(0, out + REMUS_REC_HEADER, r.length);
    remus_record_encode(&r, out);
    /* Nothing was sent before it: it fits into the socket. */
    ssize_t n = remus_conn_send(c, out, sizeof out);
    return n < 0 ? remus_fail((int)n, "send an answer: %s",
                              remus_errno_text((int)n))
                 : 0;
}

static void note_news(struct remus_former *f, const struct remus_conn *c,
                      const struct remus_hello_reply *reply)
{
    int split = reply->content == REMUS_CONTENT_SPLIT;
    pthread_mutex_lock(&f->lock);
    f->news = split ? REMUS_FORMER_SPLIT : REMUS_FORMER_TOLD;
    if (split)
        snprintf(
            f->text, sizeof f->text,
            "both sides went on from one checkpoint (a primary at %s "
            "looks for its backup here): decide which side to discard, stop "
            "its guest, and start it as the backup with --discard-local",
            c->peer);
    else
        snprintf(f->text, sizeof f->text,
                 "a primary at %s looked for its backup here, and was told "
                 "that this side went on: it is fenced; start it as the "
                 "backup of this side",
                 c->peer);
    pthread_mutex_unlock(&f->lock);
}

static void answer(struct remus_former *f, struct remus_conn *c)
{
    struct remus_hello hello;
    struct remus_hello_reply reply;
    uint64_t session = 0;
    int err = wait_hello(f, c, &hello, &session);
    if (!err)
        err = find_answer(f, &hello, &reply);
    if (!err)
        err = send_answer(c, session, &reply);
    if (!err) {
        note_news(f, c, &reply);
        return;
    }
    char text[REMUS_REASON_MAX];
    snprintf(text, sizeof text, "%s", remus_last_error());
    remus_refusals_note(&f->refusals, c->peer, REMUS_REFUSED_HELLO, text,
                        f->io->now_ns(f->io));
    remus_tell_error(c, text);
}

static void *former_main(void *arg)
{
    struct remus_former *f = arg;
    pthread_mutex_lock(&f->lock);
    while (!f->stopping) {
        if (!f->busy) {
            pthread_cond_wait(&f->changed, &f->lock);
            continue;
        }
        struct remus_conn c = f->conn;
        f->conn = REMUS_CONN_NONE;
        pthread_mutex_unlock(&f->lock);
        answer(f, &c);
        remus_conn_close(&c);
        pthread_mutex_lock(&f->lock);
        f->busy = 0;
    }
    pthread_mutex_unlock(&f->lock);
    return NULL;
}

/* In the waiting room's thread: must not block. */
static void admit(void *opaque, struct remus_conn *conn)
{
    struct remus_former *f = opaque;
    pthread_mutex_lock(&f->lock);
    int taken = !f->busy && !f->stopping;
    if (taken) {
        f->busy = 1;
        f->conn = *conn;
        *conn = REMUS_CONN_NONE;
        pthread_cond_signal(&f->changed);
    }
    pthread_mutex_unlock(&f->lock);
    if (!taken) {
        remus_tell_error(conn, "another primary is being answered: try again");
        remus_conn_close(conn);
    }
}

/* ---- open, news, close ---------------------------------------------------------- */

static int prepare(struct remus_former *f,
                   const struct remus_former_config *config)
{
    f->resource = strdup(config->resource);
    f->state_dir = strdup(config->state_dir);
    if (!f->resource || !f->state_dir)
        return remus_fail(-ENOMEM, "out of memory");
    int err = remus_config_keys(config->resource, config->psk_file,
                                config->psk_identity, &f->keys);
    if (!err)
        err = remus_config_tls(f->keys, config->tls_off);
    if (!err)
        err = remus_address_parse(config->address, f->keys != NULL,
                                  config->tls_off, &f->address);
    if (!err)
        err = remus_input_init(&f->input);
    if (!err) {
        f->wake = remus_wake_open();
        err = f->wake < 0 ? f->wake : 0;
    }
    if (!err) {
        f->listener = remus_listen(&f->address);
        err = f->listener < 0 ? f->listener : 0;
    }
    return err;
}

static int start(struct remus_former *f)
{
    const struct remus_pending_config config = {.listener = f->listener,
                                                .address = &f->address,
                                                .keys = f->keys,
                                                .refusals = &f->refusals,
                                                .io = f->io,
                                                .admit = admit,
                                                .opaque = f};
    int err = -pthread_create(&f->thread, NULL, former_main, f);
    if (err)
        return remus_fail(err, "start a thread: %s", remus_errno_text(err));
    f->started = 1;
    return remus_pending_start(&config, &f->pending);
}

int remus_former_open_io(const struct remus_former_config *config,
                         remus_io *io, remus_former **out)
{
    int no = remus_given(out, "former_open", "out");
    if (no)
        return no;
    *out = NULL;
    struct remus_former_config ours;
    no = remus_sized_take(&ours, sizeof ours, config, "former_open", "config");
    if (!no)
        no = remus_given(ours.resource, "former_open", "resource");
    if (!no)
        no = remus_given(ours.state_dir, "former_open", "state_dir");
    if (!no)
        no = remus_given(ours.address, "former_open", "address");
    if (no)
        return no;
    struct remus_former *f = calloc(1, sizeof *f);
    if (!f)
        return remus_fail(-ENOMEM, "out of memory");
    remus_entry_init(&f->entry);
    f->io = io;
    f->listener = f->wake = -1;
    f->conn = REMUS_CONN_NONE;
    remus_refusals_init(&f->refusals);
    pthread_mutex_init(&f->lock, NULL);
    remus_cond_init(&f->changed);
    int err = prepare(f, &ours);
    if (!err)
        err = start(f);
    if (err) {
        remus_fail_in(err, "old address of %s", ours.resource);
        remus_former_close(f);
        return err;
    }
    *out = f;
    return 0;
}

int remus_former_open(const struct remus_former_config *config,
                      remus_former **out)
{
    return remus_former_open_io(config, remus_io_system(), out);
}

int remus_former_news(remus_former *f, char *text, size_t cap)
{
    int no = remus_enter(f, "former_news");
    if (!no)
        no = remus_given(text, "former_news", "text");
    if (!no && !cap)
        no = remus_fail(-EINVAL, "former_news: no room for the text");
    if (no)
        return no;
    pthread_mutex_lock(&f->lock);
    int news = f->news;
    snprintf(text, cap, "%s", f->text);
    pthread_mutex_unlock(&f->lock);
    return news;
}

int remus_former_reload_keys(remus_former *f)
{
    int no = remus_enter(f, "former_reload_keys");
    if (no)
        return no;
    int err = remus_tls_keys_reload(f->keys);
    return err ? remus_fail_in(err, "old address of %s", f->resource) : 0;
}

void remus_former_close(remus_former *f)
{
    if (!f || remus_enter(f, "former_close"))
        return;
    char before[REMUS_REASON_MAX];
    snprintf(before, sizeof before, "%s", remus_last_error());
    remus_pending_stop(f->pending); /* from here on nobody is admitted */
    pthread_mutex_lock(&f->lock);
    f->stopping = 1;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
    if (f->wake >= 0)
        remus_wake(f->wake);
    if (f->started)
        pthread_join(f->thread, NULL);
    remus_conn_close(&f->conn);
    if (f->listener >= 0) {
        remus_fd_close(f->listener);
        remus_unlisten(&f->address);
    }
    remus_wake_close(f->wake);
    remus_input_free(&f->input);
    remus_tls_keys_free(f->keys);
    remus_refusals_destroy(&f->refusals);
    pthread_cond_destroy(&f->changed);
    pthread_mutex_destroy(&f->lock);
    free(f->resource);
    free(f->state_dir);
    free(f);
    remus_fail(0, "%s", before);
}
