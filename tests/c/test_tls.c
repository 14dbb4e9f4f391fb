/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One TLS connection, both ways at once, while both sides change their keys
 * every few records; and a pair that replicates over it.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>

#include "pair.h"
#include "link/tls.h"

#define BYTES (6u << 20)

static void make_key(const char *dir, char path[160])
{
    snprintf(path, 160, "%s/key", dir);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd);
    const char line[] = "guest0:00112233445566778899aabbccddeeff"
                        "00112233445566778899aabbccddeeff\n";
    EXPECT(write(fd, line, sizeof line - 1) == sizeof line - 1);
    close(fd);
}

static void shake(struct remus_tls *t, int fd)
{
    short events = 0;
    int rc;
    while ((rc = remus_tls_handshake(t, &events)) == -EAGAIN) {
        struct pollfd p = {.fd = fd, .events = events};
        CHECK(poll(&p, 1, 10000));
    }
    CHECK(rc);
}

struct end {
    struct remus_tls *t;
    int fd;
    unsigned int seed;
};

static unsigned char byte_at(unsigned int seed, size_t at)
{
    return (unsigned char)((at * 2654435761u >> 7) ^ seed);
}

static void *send_main(void *arg)
{
    struct end *e = arg;
    static __thread unsigned char buf[50000];
    unsigned int rng = e->seed;
    for (size_t at = 0; at < BYTES;) {
        size_t n = 1 + (size_t)rand_r(&rng) % sizeof buf;
        if (n > BYTES - at)
            n = BYTES - at;
        for (size_t i = 0; i < n; i++)
            buf[i] = byte_at(e->seed, at + i);
        for (size_t done = 0; done < n;) {
            ssize_t sent = remus_tls_send(e->t, buf + done, n - done);
            if (sent == -EAGAIN) {
                struct pollfd p = {.fd = e->fd, .events = POLLOUT};
                CHECK(poll(&p, 1, 10000));
                continue;
            }
            CHECK(sent);
            done += (size_t)sent;
        }
        at += n;
    }
    return NULL;
}

static void *recv_main(void *arg)
{
    struct end *e = arg;
    unsigned char *buf = malloc(REMUS_TLS_ROOM);
    EXPECT(buf);
    for (size_t at = 0; at < BYTES;) {
        ssize_t n = remus_tls_recv(e->t, buf, REMUS_TLS_ROOM);
        if (n == -EAGAIN) {
            struct pollfd p = {.fd = e->fd, .events = POLLIN};
            CHECK(poll(&p, 1, 10000));
            continue;
        }
        CHECK(n);
        for (ssize_t i = 0; i < n; i++)
            EXPECT(buf[i] == byte_at(!e->seed, at + (size_t)i));
        at += (size_t)n;
    }
    free(buf);
    return NULL;
}

static void *shake_main(void *arg)
{
    struct end *e = arg;
    shake(e->t, e->fd);
    return NULL;
}

/* rekey: records between changes of keys; 0: as it is. */
static void both_ways(const char *key, uint64_t rekey)
{
    struct remus_tls_keys *keys;
    int pair[2];
    CHECK(remus_tls_keys_load(key, "guest0", &keys));
    if (rekey)
        remus_tls_keys_rekey_after(keys, rekey);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
                     pair));
    struct end end[2] = {{NULL, pair[0], 0}, {NULL, pair[1], 1}};
    pthread_t t[4];
    for (int i = 0; i < 2; i++)
        CHECK(remus_tls_new(&end[i].t, keys, i, pair[i]));
    for (int i = 0; i < 2; i++)
        CHECK(-pthread_create(&t[i], NULL, shake_main, &end[i]));
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], NULL);
    for (int i = 0; i < 2; i++) {
        CHECK(-pthread_create(&t[i], NULL, send_main, &end[i]));
        CHECK(-pthread_create(&t[2 + i], NULL, recv_main, &end[i]));
    }
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    for (int i = 0; i < 2; i++) {
        remus_tls_free(end[i].t);
        close(pair[i]);
    }
    remus_tls_keys_free(keys);
}

static void replicate(const char *dir, const char *key)
{
    char disk[2][160], state[2][160], address[160];
    snprintf(address, sizeof address, "unix:%s/tls.sock", dir);
    for (int i = 0; i < 2; i++) {
        snprintf(disk[i], sizeof disk[i], "%s/tls%d.img", dir, i);
        snprintf(state[i], sizeof state[i], "%s/tls%d", dir, i);
        pair_disk(disk[i], 1 << 20);
        CHECK(mkdir(state[i], 0700));
    }
    struct remus_volume v[2] = {{sizeof *v, "a", disk[0], 0},
                                {sizeof *v, "a", disk[1], 0}};
    struct remus_backup_config bc = {.struct_size = sizeof bc,
                                     .resource = "guest0",
                                     .state_dir = state[1],
                                     .volumes = &v[1],
                                     .volume_count = 1,
                                     .journal_bytes = 4 << 20,
                                     .segment_bytes = 1 << 18,
                                     .psk_file = key};
    struct remus_primary_config pc = {.struct_size = sizeof pc,
                                      .resource = "guest0",
                                      .state_dir = state[0],
                                      .volumes = &v[0],
                                      .volume_count = 1,
                                      .address = address,
                                      .connect_ms = 10,
                                      .psk_file = key};
    remus_backup *b;
    remus_primary *p;
    CHECK(remus_backup_open(&bc, &b));
    CHECK(remus_backup_serve(b, address, 0, 0));
    CHECK(remus_primary_open(&pc, &p));
    CHECK(remus_primary_wait_protected(p, 20000));
    unsigned char buf[5000];
    uint64_t epoch = 0, promoted;
    for (int i = 0; i < 200; i++) {
        memset(buf, i, sizeof buf);
        CHECK(remus_primary_pwrite(p, 0, buf, sizeof buf, (uint64_t)i * 4096));
        CHECK(remus_primary_postsuspend(p, NULL, 0, &epoch));
        CHECK(remus_primary_preresume(p, epoch, 20000));
        CHECK(remus_primary_commit(p, epoch));
    }
    remus_primary_close(p);
    CHECK(remus_backup_promote(b, REMUS_PROMOTE_DEFAULT, 0, NULL, 0, 0,
                               &promoted));
    EXPECT(promoted == epoch);
    remus_backup_close(b);
}

int main(void)
{
    char dir[] = "/tmp/remus-tls-XXXXXX", key[160], command[80];
    EXPECT(mkdtemp(dir));
    make_key(dir, key);
    both_ways(key, 0);
    /* GnuTLS takes at most 8 changes a second from the other side. */
    both_ways(key, 130);
    replicate(dir, key);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command) != 0;
}
