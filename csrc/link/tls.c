/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* TLS 1.3 with a pre-shared key; see tls.h. */
#include "link/tls.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/error.h"
#include "link/tls_keys.h"

#define BATCH                                                                 \
    (2 * REMUS_TLS_RECORD)       /* data in one send: more of it would
                                         wait, and the other side idle */
#define OUT_BYTES (BATCH + 4096) /* with headers and a key update */
#define IN_BYTES (128u * 1024)   /* of one recv */
#define HANDSHAKE_MAX 16384      /* bytes of one message */
#define HANDSHAKE_ALL 65536u     /* bytes of all of them */

struct remus_tls {
    const struct remus_tls_keys *keys; /* constant */
    struct remus_tls_asking asking;    /* the handshake's thread */
    gnutls_session_t session; /* receiving: rx; sending: tx; keys: both */
    int fd;                   /* constant */
    int server;               /* constant */

    /* The handshake's thread, until it is done. */
    int cause;      /* enum remus_refused */
    size_t greeted; /* bytes received */
    int open;       /* handshake done; constant after it */

    pthread_mutex_t rx;
    int hooked;              /* rx: tx is held for an update of keys */
    int ended;               /* rx: -errno that ended receiving, or 0 */
    char why[128];           /* rx: its text */
    size_t in_start, in_end; /* rx: bytes that GnuTLS did not take yet */
    unsigned char *in;       /* rx: IN_BYTES */

    pthread_mutex_t tx;
    uint64_t tx_records;   /* tx: sent with the present key */
    atomic_int answer_due; /* the next record must update our key, too */

    /* The one sender's thread. */
    size_t out_start, out_end; /* bytes that the socket did not take yet */
    size_t out_plain;          /* bytes of data in them */
    unsigned char *out;        /* OUT_BYTES */
};

/* ---- between GnuTLS and the socket -------------------------------------- */

/* What was received before; in a handshake, exactly what is asked for, so
 * that nothing of what follows it is taken from the socket. */
static ssize_t pull(gnutls_transport_ptr_t ptr, void *buf, size_t len)
{
    struct remus_tls *t = ptr;
    if (!t->open) {
        ssize_t n = recv(t->fd, buf, len, MSG_DONTWAIT);
        t->greeted += n > 0 ? (size_t)n : 0;
        if (t->greeted <= HANDSHAKE_ALL)
            return n;
        errno = EMSGSIZE;
        return -1;
    }
    size_t have = t->in_end - t->in_start;
    if (!have) {
        errno = EAGAIN;
        return -1;
    }
    if (len > have)
        len = have;
    memcpy(buf, t->in + t->in_start, len);
    t->in_start += len;
    return (ssize_t)len;
}

static ssize_t push(gnutls_transport_ptr_t ptr, const giovec_t *parts,
                    int count)
{
    struct remus_tls *t = ptr;
    if (!t->open) {
        struct msghdr m = {.msg_iov = (struct iovec *)parts,
                           .msg_iovlen = (size_t)count};
        return sendmsg(t->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    size_t len = 0;
    for (int i = 0; i < count; i++)
        len += parts[i].iov_len;
    if (len > OUT_BYTES - t->out_end) {
        errno = ENOBUFS; /* a batch always fits */
        return -1;
    }
    for (int i = 0; i < count; i++) {
        memcpy(t->out + t->out_end, parts[i].iov_base, parts[i].iov_len);
        t->out_end += parts[i].iov_len;
    }
    return (ssize_t)len;
}

/* The other side changes its key (rx is held by who receives): nobody may
 * be sending meanwhile, for GnuTLS makes one new set for both directions. */
static int on_key_update(gnutls_session_t session, unsigned int type,
                         unsigned int when, unsigned int incoming,
                         const gnutls_datum_t *msg)
{
    struct remus_tls *t = gnutls_transport_get_ptr(session);
    (void)type;
    if (!incoming)
        return 0;
    if (when == GNUTLS_HOOK_PRE) {
        pthread_mutex_lock(&t->tx);
        t->hooked = 1;
        if (msg->size == 1 && msg->data[0] == 1)
            atomic_store(&t->answer_due, 1);
    } else if (t->hooked) {
        t->hooked = 0;
        pthread_mutex_unlock(&t->tx);
    }
    return 0;
}

int remus_tls_new(struct remus_tls **out, struct remus_tls_keys *keys,
                  int server, int fd)
{
    *out = NULL;
    struct remus_tls *t = calloc(1, sizeof *t);
    if (!t)
        return remus_fail(-ENOMEM, "TLS: out of memory");
    t->keys = keys;
    struct remus_keyset *set = t->asking.set = remus_keyset_take(keys);
    t->fd = fd;
    t->server = server;
    t->cause = REMUS_REFUSED_CLOSED;
    pthread_mutex_init(&t->rx, NULL);
    pthread_mutex_init(&t->tx, NULL);
    /* We update keys ourselves: GnuTLS would not do it under our locks. */
    unsigned int flags = GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS |
                         GNUTLS_NO_AUTO_REKEY |
                         (server ? GNUTLS_SERVER : GNUTLS_CLIENT);
    int rc = gnutls_init(&t->session, flags);
    if (!rc)
        rc = gnutls_priority_set(t->session, set->priority);
    if (!rc)
        rc = gnutls_credentials_set(t->session, GNUTLS_CRD_PSK,
                                    server ? (void *)set->server
                                           : (void *)set->client);
    if (rc) {
        remus_tls_free(t);
        return remus_fail(-ENOMEM, "TLS: %s", gnutls_strerror(rc));
    }
    gnutls_session_set_ptr(t->session, &t->asking);
    gnutls_handshake_set_max_packet_length(t->session, HANDSHAKE_MAX);
    gnutls_handshake_set_hook_function(t->session, GNUTLS_HANDSHAKE_KEY_UPDATE,
                                       GNUTLS_HOOK_BOTH, on_key_update);
    gnutls_transport_set_ptr(t->session, t);
    gnutls_transport_set_pull_function(t->session, pull);
    gnutls_transport_set_vec_push_function(t->session, push);
    *out = t;
    return 0;
}

/* ---- the handshake ------------------------------------------------------ */

/* Is it what we insist on?  GnuTLS was told to; this is for the day when an
 * option of its own, or of the system, lets something else through. */
static int prove(struct remus_tls *t)
{
    if (gnutls_protocol_get_version(t->session) == GNUTLS_TLS1_3 &&
        gnutls_auth_get_type(t->session) == GNUTLS_CRD_PSK &&
        gnutls_kx_get(t->session) == GNUTLS_KX_ECDHE_PSK &&
        !gnutls_session_is_resumed(t->session) &&
        (!t->server || t->asking.asked == REMUS_ASKED_OURS))
        return 0;
    char text[64];
    remus_tls_describe(t, text, sizeof text);
    return remus_fail(
        -EPROTO, "TLS: %s was agreed on, TLS1.3 ECDHE-PSK is expected", text);
}

static int explain_server(struct remus_tls *t, int rc)
{
    if (t->asking.asked == REMUS_ASKED_UNKNOWN) {
        t->cause = REMUS_REFUSED_KEY;
        return remus_fail(-EPROTO,
                          "TLS: unknown identity %s: this side has the "
                          "key of %s only",
                          t->asking.name,
                          remus_keyset_newest(t->asking.set)->identity);
    }
    if (t->asking.asked == REMUS_ASKED_OURS &&
        rc == GNUTLS_E_RECEIVED_ILLEGAL_PARAMETER) {
        t->cause = REMUS_REFUSED_KEY;
        return remus_fail(-EPROTO,
                          "TLS: wrong key for the identity %s: both hosts "
                          "need the same line in psk_file",
                          t->asking.name);
    }
    t->cause = REMUS_REFUSED_TLS;
    if (rc == GNUTLS_E_DECRYPTION_FAILED)
        return remus_fail(-EPROTO, "TLS: a replayed or damaged handshake");
    if (t->asking.asked == REMUS_ASKED_OURS)
        return remus_fail(-EPROTO, "TLS: the handshake failed: %s",
                          gnutls_strerror(rc));
    return remus_fail(-EPROTO,
                      "TLS: no TLS 1.3 with a pre-shared key was offered: %s",
                      gnutls_strerror(rc));
}

static int explain_client(struct remus_tls *t, int rc)
{
    if (rc != GNUTLS_E_FATAL_ALERT_RECEIVED)
        return remus_fail(
            -EPROTO,
            "TLS: the backup does not speak TLS 1.3 with a pre-shared key: "
            "%s: is tls = \"psk\" set on the backup?",
            gnutls_strerror(rc));
    gnutls_alert_description_t alert = gnutls_alert_get(t->session);
    if (alert == GNUTLS_A_ILLEGAL_PARAMETER ||
        alert == GNUTLS_A_DECRYPT_ERROR ||
        alert == GNUTLS_A_UNKNOWN_PSK_IDENTITY)
        return remus_fail(-EPROTO,
                          "TLS: the backup refuses our key for the identity "
                          "%s: both hosts need the same line in psk_file, "
                          "and the same psk_identity",
                          remus_keyset_newest(t->asking.set)->identity);
    return remus_fail(-EPROTO, "TLS: the other side refuses: %s",
                      gnutls_alert_get_name(alert));
}

static int explain(struct remus_tls *t, int rc)
{
    if (rc == GNUTLS_E_PULL_ERROR || rc == GNUTLS_E_PUSH_ERROR ||
        rc == GNUTLS_E_PREMATURE_TERMINATION) {
        t->cause = t->greeted > HANDSHAKE_ALL ? REMUS_REFUSED_TLS
                                              : REMUS_REFUSED_CLOSED;
        return remus_fail(-ECONNRESET,
                          t->greeted > HANDSHAKE_ALL
                              ? "TLS: a handshake without an end"
                              : "TLS: the other side closed the connection "
                                "in the handshake");
    }
    return t->server ? explain_server(t, rc) : explain_client(t, rc);
}

int remus_tls_handshake(struct remus_tls *t, short *events)
{
    int rc;
    do {
        rc = gnutls_handshake(t->session);
    } while (rc == GNUTLS_E_INTERRUPTED ||
             rc == GNUTLS_E_WARNING_ALERT_RECEIVED);
    if (rc == GNUTLS_E_AGAIN) {
        *events = gnutls_record_get_direction(t->session) ? POLLOUT : POLLIN;
        return -EAGAIN;
    }
    int err = rc ? explain(t, rc) : prove(t);
    if (!err) {
        t->in = malloc(IN_BYTES);
        t->out = malloc(OUT_BYTES);
        if (!t->in || !t->out)
            err = remus_fail(-ENOMEM, "TLS: out of memory");
    }
    if (err) {
        gnutls_alert_send_appropriate(t->session,
                                      rc ? rc : GNUTLS_E_INTERNAL_ERROR);
        return err;
    }
    t->open = 1;
    return 0;
}

int remus_tls_cause(const struct remus_tls *t)
{
    return t->cause;
}

void remus_tls_describe(const struct remus_tls *t, char *buf, size_t cap)
{
    const char *version =
        gnutls_protocol_get_name(gnutls_protocol_get_version(t->session));
    const char *kx = gnutls_kx_get_name(gnutls_kx_get(t->session));
    const char *cipher = gnutls_cipher_get_name(gnutls_cipher_get(t->session));
    snprintf(buf, cap, "%s %s %s", version ? version : "?", kx ? kx : "?",
             cipher ? cipher : "?");
}

/* ---- sending ------------------------------------------------------------ */

static int tls_errno(int rc)
{
    return rc == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EPROTO;
}

/* One record into `out`; bytes of data in it, or an error of GnuTLS. */
static ssize_t encrypt(struct remus_tls *t, const unsigned char *buf,
                       size_t len)
{
    pthread_mutex_lock(&t->tx);
    int update = t->tx_records >= remus_tls_keys_records(t->keys);
    int keys = update || atomic_load(&t->answer_due);
    if (keys) {
        /* In this order; until then the other side may have asked, too. */
        pthread_mutex_unlock(&t->tx);
        pthread_mutex_lock(&t->rx);
        pthread_mutex_lock(&t->tx);
        t->tx_records = 0;
    }
    ssize_t rc = 0;
    if (update && !atomic_load(&t->answer_due))
        rc = gnutls_session_key_update(t->session, 0);
    if (rc >= 0) /* this one answers the other side's update, if it asked */
        rc = gnutls_record_send(t->session, buf, len);
    t->tx_records++;
    if (keys)
        atomic_store(&t->answer_due, 0);
    pthread_mutex_unlock(&t->tx);
    if (keys)
        pthread_mutex_unlock(&t->rx);
    return rc;
}

static int encrypt_batch(struct remus_tls *t, const unsigned char *buf,
                         size_t len)
{
    t->out_start = t->out_end = t->out_plain = 0;
    if (len > BATCH)
        len = BATCH;
    while (t->out_plain < len) {
        size_t n = len - t->out_plain;
        ssize_t rc = encrypt(t, buf + t->out_plain,
                             n < REMUS_TLS_RECORD ? n : REMUS_TLS_RECORD);
        if (rc <= 0)
            return remus_fail(tls_errno((int)rc), "TLS: encrypt: %s",
                              gnutls_strerror((int)rc));
        t->out_plain += (size_t)rc;
    }
    return 0;
}

ssize_t remus_tls_send(struct remus_tls *t, const void *buf, size_t len)
{
    if (t->out_start == t->out_end) {
        int err = len ? encrypt_batch(t, buf, len) : 0;
        if (err)
            return err;
    }
    while (t->out_start < t->out_end) {
        ssize_t n =
            send(t->fd, t->out + t->out_start, t->out_end - t->out_start,
                 MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EWOULDBLOCK ? -EAGAIN : -errno;
        t->out_start += (size_t)n;
    }
    return (ssize_t)t->out_plain;
}

/* ---- receiving ---------------------------------------------------------- */

/* rx held */
static ssize_t end_rx(struct remus_tls *t, int err, const char *why)
{
    t->ended = err;
    snprintf(t->why, sizeof t->why, "%s", why);
    return err;
}

/* rx held */
static ssize_t fill(struct remus_tls *t)
{
    t->in_start = t->in_end = 0;
    ssize_t n;
    do {
        n = recv(t->fd, t->in, IN_BYTES, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n == 0)
        return end_rx(t, -ECONNRESET, "the other side closed the connection");
    if (n < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK
                   ? -EAGAIN
                   : end_rx(t, -errno, remus_errno_text(errno));
    t->in_end = (size_t)n;
    return n;
}

/* One call of GnuTLS, and our lock back if it was taken and kept. */
static ssize_t decrypt(struct remus_tls *t, unsigned char *buf, size_t cap)
{
    ssize_t rc = gnutls_record_recv(t->session, buf, cap);
    if (t->hooked) {
        t->hooked = 0;
        pthread_mutex_unlock(&t->tx);
    }
    return rc;
}

/* All that was received (rx held).  Ends with `in` empty, or receiving. */
static size_t decrypt_all(struct remus_tls *t, unsigned char *buf, size_t cap)
{
    size_t total = 0;
    while (!t->ended) {
        ssize_t rc = decrypt(t, buf + total, cap - total);
        if (rc > 0)
            total += (size_t)rc;
        else if (rc == GNUTLS_E_AGAIN && t->in_start == t->in_end)
            break;
        else if (rc == 0)
            end_rx(t, -ECONNRESET, "the other side closed the connection");
        else if (gnutls_error_is_fatal((int)rc))
            end_rx(t, tls_errno((int)rc), gnutls_strerror((int)rc));
    }
    /* Who polls must come back for the reason. */
    if (t->ended && total)
        shutdown(t->fd, SHUT_RD);
    return total;
}

ssize_t remus_tls_recv(struct remus_tls *t, void *buf, size_t cap)
{
    if (cap < REMUS_TLS_ROOM)
        return remus_fail(-EINVAL, "TLS: receive into %zu bytes", cap);
    pthread_mutex_lock(&t->rx);
    ssize_t n = t->ended ? t->ended : fill(t);
    if (n > 0) {
        size_t got = decrypt_all(t, buf, cap);
        n = got ? (ssize_t)got : t->ended ? t->ended : -EAGAIN;
    }
    if (n < 0 && n != -EAGAIN)
        remus_fail((int)n, "%s%s", n == -EPROTO ? "TLS: receive: " : "",
                   t->why);
    pthread_mutex_unlock(&t->rx);
    return n;
}

void remus_tls_free(struct remus_tls *t)
{
    if (!t)
        return;
    if (t->open && t->out_start == t->out_end) {
        t->out_start = t->out_end = t->out_plain = 0;
        if (gnutls_bye(t->session, GNUTLS_SHUT_WR) == 0)
            remus_tls_send(t, NULL, 0);
    }
    if (t->session)
        gnutls_deinit(t->session);
    remus_keyset_put(t->asking.set);
    pthread_mutex_destroy(&t->rx);
    pthread_mutex_destroy(&t->tx);
    free(t->in);
    free(t->out);
    free(t);
}
