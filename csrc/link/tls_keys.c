/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Keys of TLS connections, and reading them again; see tls_keys.h. */
#include "link/tls_keys.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

#define PRIORITY                                                              \
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+ECDHE-PSK"                        \
    ":-CIPHER-ALL:+AES-128-GCM:+CHACHA20-POLY1305:-MAC-ALL:+AEAD"             \
    ":-GROUP-ALL:+GROUP-X25519:+GROUP-SECP256R1"
#define REKEY_AFTER (1u << 23) /* records; AES-GCM's limit is 2^24.5 */

struct remus_tls_keys {
    char *file, *identity; /* constant */
    uint64_t rekey_after;  /* constant; records */
    pthread_mutex_t lock;
    struct remus_keyset *now; /* lock */
};

/* ---- one reading of the file --------------------------------------------- */

/* What a client called its key, for an error; whatever bytes it sent. */
static void note_name(struct remus_tls_asking *a, const gnutls_datum_t *name)
{
    size_t n = name->size < sizeof a->name - 1 ? name->size : 0;
    for (size_t i = 0; i < n; i++)
        if (name->data[i] < ' ' || name->data[i] > '~')
            n = 0;
    if (n)
        memcpy(a->name, name->data, n);
    else
        a->name[n++] = '?';
    a->name[n] = '\0';
}

/* GnuTLS asks for the key of an identity.  One that we don't know gets a
 * random key, so that it looks like a wrong key. */
static int find_key(gnutls_session_t session, const gnutls_datum_t *name,
                    gnutls_datum_t *key)
{
    struct remus_tls_asking *a = gnutls_session_get_ptr(session);
    const struct remus_psk *psk = NULL;
    for (unsigned int i = 0; i < a->set->ring.count; i++) {
        const struct remus_psk *one = &a->set->ring.psk[i];
        if (name->size == strlen(one->identity) &&
            !memcmp(name->data, one->identity, name->size))
            psk = one;
    }
    note_name(a, name);
    a->asked = psk ? REMUS_ASKED_OURS : REMUS_ASKED_UNKNOWN;
    key->size = psk ? (unsigned int)psk->key_len : REMUS_PSK_KEY_MAX;
    key->data = gnutls_malloc(key->size);
    if (!key->data)
        return -1;
    if (psk)
        memcpy(key->data, psk->key, psk->key_len);
    return psk ? 0 : gnutls_rnd(GNUTLS_RND_KEY, key->data, key->size);
}

const struct remus_psk *remus_keyset_newest(const struct remus_keyset *set)
{
    return &set->ring.psk[set->ring.count - 1];
}

static int prepare(struct remus_keyset *set)
{
    const struct remus_psk *psk = remus_keyset_newest(set);
    const gnutls_datum_t name = {(unsigned char *)psk->identity,
                                 (unsigned int)strlen(psk->identity)};
    const gnutls_datum_t key = {(unsigned char *)psk->key,
                                (unsigned int)psk->key_len};
    int rc = gnutls_priority_init(&set->priority, PRIORITY, NULL);
    if (!rc)
        rc = gnutls_psk_allocate_server_credentials(&set->server);
    if (!rc)
        rc = gnutls_psk_allocate_client_credentials(&set->client);
    if (!rc)
        rc = gnutls_psk_set_client_credentials2(set->client, &name, &key,
                                                GNUTLS_PSK_KEY_RAW);
    if (rc)
        return remus_fail(rc == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -ENOSYS,
                          "GnuTLS can't do TLS 1.3 with a pre-shared key "
                          "here: %s",
                          gnutls_strerror(rc));
    gnutls_psk_set_server_credentials_function2(set->server, find_key);
    return 0;
}

static int keyset_load(const char *file, const char *identity,
                       struct remus_keyset **out)
{
    struct remus_keyset *set = calloc(1, sizeof *set);
    if (!set)
        return remus_fail(-ENOMEM, "out of memory");
    atomic_init(&set->users, 1);
    int err = remus_psk_load(file, identity, &set->ring);
    if (!err)
        err = prepare(set);
    if (err) {
        remus_keyset_put(set);
        return err;
    }
    *out = set;
    return 0;
}

void remus_keyset_put(struct remus_keyset *set)
{
    if (!set || atomic_fetch_sub(&set->users, 1) > 1)
        return;
    if (set->server)
        gnutls_psk_free_server_credentials(set->server);
    if (set->client)
        gnutls_psk_free_client_credentials(set->client);
    if (set->priority)
        gnutls_priority_deinit(set->priority);
    remus_psk_wipe(&set->ring);
    free(set);
}

/* ---- the newest reading --------------------------------------------------- */

int remus_tls_keys_load(const char *file, const char *identity,
                        struct remus_tls_keys **out)
{
    *out = NULL;
    struct remus_tls_keys *keys = calloc(1, sizeof *keys);
    if (!keys)
        return remus_fail(-ENOMEM, "out of memory");
    keys->rekey_after = REKEY_AFTER;
    pthread_mutex_init(&keys->lock, NULL);
    keys->file = strdup(file);
    keys->identity = strdup(identity);
    struct remus_keyset *set = NULL;
    int err = keys->file && keys->identity
                  ? keyset_load(file, identity, &set)
                  : remus_fail(-ENOMEM, "out of memory");
    pthread_mutex_lock(&keys->lock);
    keys->now = set;
    pthread_mutex_unlock(&keys->lock);
    if (err) {
        remus_tls_keys_free(keys);
        return err;
    }
    *out = keys;
    return 0;
}

int remus_tls_keys_reload(struct remus_tls_keys *keys)
{
    struct remus_keyset *set = NULL;
    if (!keys)
        return 0;
    int err = keyset_load(keys->file, keys->identity, &set);
    if (err)
        return err;
    pthread_mutex_lock(&keys->lock);
    struct remus_keyset *before = keys->now;
    keys->now = set;
    pthread_mutex_unlock(&keys->lock);
    remus_keyset_put(before);
    return 0;
}

struct remus_keyset *remus_keyset_take(struct remus_tls_keys *keys)
{
    pthread_mutex_lock(&keys->lock);
    struct remus_keyset *set = keys->now;
    atomic_fetch_add(&set->users, 1);
    pthread_mutex_unlock(&keys->lock);
    return set;
}

void remus_tls_keys_free(struct remus_tls_keys *keys)
{
    if (!keys)
        return;
    pthread_mutex_lock(&keys->lock);
    remus_keyset_put(keys->now);
    pthread_mutex_unlock(&keys->lock);
    pthread_mutex_destroy(&keys->lock);
    free(keys->file);
    free(keys->identity);
    free(keys);
}

void remus_tls_keys_rekey_after(struct remus_tls_keys *keys, uint64_t n)
{
    keys->rekey_after = n;
}

uint64_t remus_tls_keys_records(const struct remus_tls_keys *keys)
{
    return keys->rekey_after;
}
