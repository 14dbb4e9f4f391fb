/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The keys of TLS connections: what each reading of the key file gave.  A
 * connection keeps the set that it began with, so that a file that is read
 * again counts from the next connection on and the present one stays.
 */
#ifndef REMUS_TLS_KEYS_H
#define REMUS_TLS_KEYS_H

#include <gnutls/gnutls.h>
#include <stdatomic.h>
#include <stdint.h>

#include "link/psk.h"
#include "link/tls.h"

/* One reading of the file: constant, but for the count. */
struct remus_keyset {
    atomic_uint users;
    struct remus_psk_ring ring;
    gnutls_priority_t priority;
    gnutls_psk_server_credentials_t server;
    gnutls_psk_client_credentials_t client;
};

/* Which key a client said it has. */
enum remus_asked {
    REMUS_ASKED_NOTHING,
    REMUS_ASKED_OURS,
    REMUS_ASKED_UNKNOWN
};

/* What a handshake asked for; a session's pointer leads to it. */
struct remus_tls_asking {
    struct remus_keyset *set; /* constant */
    enum remus_asked asked;
    char name[REMUS_PSK_IDENTITY_MAX + 1]; /* "?": can't be printed */
};

/* The present set; give it back with remus_keyset_put() (NULL: nothing). */
struct remus_keyset *remus_keyset_take(struct remus_tls_keys *keys);
void remus_keyset_put(struct remus_keyset *set);
/* What to offer as a client: the newest. */
const struct remus_psk *remus_keyset_newest(const struct remus_keyset *set);
/* After how many records sent a key is changed. */
uint64_t remus_tls_keys_records(const struct remus_tls_keys *keys);

#endif
