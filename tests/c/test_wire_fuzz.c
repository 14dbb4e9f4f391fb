/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A peer that is let in and means ill, or is broken: records that are well
 * formed (their CRCs are right) and wrong in any other way, records cut short,
 * and plain noise.  First against a backup, then against a primary.  Neither
 * may crash, hang, or be of no use afterwards; a primary's own disk holds what
 * its guest wrote.  And strangers, whose first words of TLS are damaged, while
 * a primary replicates.
 *
 * REMUS_SEED and REMUS_FUZZ_MS (for each part) choose another run.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "pair.h"
#include "tls.h"
#include "transport.h"

#define DISK (256u << 10)
#define SESSION 0x5e55104u

static uint64_t seed;
static unsigned int fuzz_ms;

static uint64_t rnd(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- records --------------------------------------------------------------- */

/* How often something is wrong: once in so many times. */
static __thread uint64_t rarely = 2;

/* `right`, or a number near it, or one of those that break sums. */
static uint64_t odd(uint64_t *s, uint64_t right)
{
    if (rnd(s) % rarely)
        return right;
    switch (rnd(s) % 6) {
    case 0:
        return right + 1;
    case 1:
        return right - 1;
    case 2:
        return UINT64_MAX - rnd(s) % 3;
    case 3:
        return 1ull << (rnd(s) % 64);
    case 4:
        return rnd(s);
    default:
        return 0;
    }
}

struct wire {
    unsigned char data[REMUS_REC_HEADER + REMUS_REC_PAYLOAD_MAX];
    size_t len;
};

static void encode(struct wire *w, struct remus_record *r,
                   const void *payload)
{
    if (r->length && payload != w->data + REMUS_REC_HEADER)
        memcpy(w->data + REMUS_REC_HEADER, payload, r->length);
    r->payload_crc = r->length ? remus_crc32c(0, w->data + REMUS_REC_HEADER,
                                              r->length)
                               : 0;
    remus_record_encode(r, w->data);
    w->len = REMUS_REC_HEADER + r->length;
}

/* Damage it below the CRCs now and then. */
static void maybe_break(uint64_t *s, struct wire *w)
{
    switch (rnd(s) % (20 * rarely)) {
    case 0:
        w->data[rnd(s) % w->len] ^= (unsigned char)(1u << rnd(s) % 8);
        break;
    case 1:
        w->len = 1 + rnd(s) % w->len;
        break;
    case 2:
        for (size_t i = 0; i < w->len; i++)
            w->data[i] = (unsigned char)rnd(s);
        break;
    default:
        break;
    }
}

/* 0, or -1: the other side has closed, or takes nothing for a second. */
static int send_wire(int fd, const struct wire *w)
{
    for (size_t done = 0; done < w->len;) {
        ssize_t n = send(fd, w->data + done, w->len - done,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        struct pollfd p = {.fd = fd, .events = POLLOUT};
        if (n < 0 && errno == EAGAIN && poll(&p, 1, 1000) > 0)
            continue;
        if (n <= 0)
            return -1;
        done += (size_t)n;
    }
    return 0;
}

/* Read until there is a record of `type`: its payload in `out`.  -1: none
 * came in a second. */
static int await(int fd, int type, struct remus_record *r,
                 unsigned char *out, size_t cap)
{
    static __thread unsigned char buf[65536];
    size_t have = 0;
    for (;;) {
        while (have >= REMUS_REC_HEADER) {
            EXPECT(remus_record_decode(buf, r) == 0);
            size_t all = REMUS_REC_HEADER + r->length;
            EXPECT(all <= sizeof buf);
            if (have < all)
                break;
            if (r->type == type) {
                EXPECT(r->length <= cap);
                memcpy(out, buf + REMUS_REC_HEADER, r->length);
                return 0;
            }
            have -= all;
            memmove(buf, buf + all, have);
        }
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 1000) <= 0)
            return -1;
        ssize_t n = recv(fd, buf + have, sizeof buf - have, 0);
        if (n <= 0)
            return -1;
        have += (size_t)n;
    }
}

/* ---- against a backup --------------------------------------------------------- */

static int dial(const char *path)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd);
    snprintf(un.sun_path, sizeof un.sun_path, "%s", path);
    CHECK(connect(fd, (struct sockaddr *)&un, sizeof un));
    return fd;
}

static void send_hello(int fd, uint64_t *s, struct wire *w)
{
    struct remus_hello h = {.version = REMUS_WIRE_VERSION,
                            .volumes = 1,
                            .next_epoch = 1,
                            .resource = "guest0",
                            .name = {"a"},
                            .size = {DISK}};
    memset(h.lineage.id, 'g', sizeof h.lineage.id);
    size_t n = remus_hello_encode(&h, w->data + REMUS_REC_HEADER);
    /* Not its generation: whose disks these are stays as it is. */
    size_t at = s ? rnd(s) % n : 0;
    if (s && rnd(s) % 8 == 0 && (at < 16 || at >= 32))
        w->data[REMUS_REC_HEADER + at] ^= (unsigned char)rnd(s);
    struct remus_record r = {.type = REMUS_REC_HELLO,
                             .session = SESSION,
                             .length = (uint32_t)n};
    if (s && rnd(s) % 20 == 0)
        r.length -= (uint32_t)(rnd(s) % n);
    encode(w, &r, w->data + REMUS_REC_HEADER);
    send_wire(fd, w);
}

/* Where a well-behaved primary would be. */
struct at {
    uint64_t number, epoch, records, barriers;
    uint32_t run;
};

static void some_record(uint64_t *s, struct at *at, struct wire *w)
{
    static const uint8_t types[] = {
        REMUS_REC_WRITE,  REMUS_REC_WRITE,   REMUS_REC_ZERO, REMUS_REC_BARRIER,
        REMUS_REC_COMMIT, REMUS_REC_RESYNC,  REMUS_REC_HASH, REMUS_REC_PING,
        REMUS_REC_WRITE,  REMUS_REC_BARRIER, 0};
    uint8_t type = types[rnd(s) % sizeof types];
    struct remus_record r = {
        .type = type              ? type
                : rnd(s) % rarely ? REMUS_REC_PING
                                  : (uint8_t)(rnd(s) % (REMUS_REC_TYPES + 2)),
        .flags = (uint8_t)(rnd(s) % 4 ? 0 : odd(s, 0)),
        .volume = (uint16_t)odd(s, 0),
        .session = odd(s, SESSION),
        .offset = odd(s, rnd(s) % (DISK - 8192)),
        .range = odd(s, 1 + rnd(s) % 8192),
        .epoch = odd(s, at->epoch),
        .number = odd(s, at->number)};
    if (r.type == REMUS_REC_WRITE) {
        r.length = (uint32_t)(1 + rnd(s) % (rnd(s) % rarely ? 5000 : 70000));
    } else if (r.type == REMUS_REC_RESYNC) {
        if (rnd(s) % rarely)
            r.type = REMUS_REC_PING;
        r.flags = (uint8_t)(rnd(s) % 9);
    } else if (r.type == REMUS_REC_HASH) {
        r.offset = rnd(s) % 16 * 16384;
        r.range = odd(s, 16384);
        r.length = (uint32_t)(rnd(s) % rarely ? 16 : rnd(s) % 2000);
    } else if (r.type == REMUS_REC_BARRIER) {
        r.offset = odd(s, at->records);
        r.range = odd(s, at->run);
        r.length = (uint32_t)(rnd(s) % (rnd(s) % rarely ? 33 : 40));
    } else if (r.type == REMUS_REC_COMMIT) {
        r.epoch -= 1;
        if (!at->barriers && rnd(s) % rarely)
            r.type = REMUS_REC_PING;
    } else if (rnd(s) % rarely == 0) {
        r.length = (uint32_t)(rnd(s) % REMUS_REC_PAYLOAD_MAX);
    }
    if (r.type == REMUS_REC_BARRIER)
        r.flags = (uint8_t)(rnd(s) % 4);
    for (uint32_t i = 0; i < r.length; i += 64)
        w->data[REMUS_REC_HEADER + i] = (unsigned char)rnd(s);
    encode(w, &r, w->data + REMUS_REC_HEADER);
    if (!remus_record_counted(&r))
        return;
    at->number++;
    if (r.type == REMUS_REC_BARRIER) {
        at->epoch++;
        at->barriers++;
        at->records = at->run = 0;
    } else {
        at->records++;
        at->run = remus_record_run(at->run, r.header_crc);
    }
}

static int greeted(int fd, uint64_t *s, struct wire *w,
                   struct remus_hello_reply *reply)
{
    unsigned char payload[65536];
    struct remus_record r;
    send_hello(fd, s, w);
    if (await(fd, REMUS_REC_HELLO_REPLY, &r, payload, sizeof payload))
        return -1;
    CHECK(remus_hello_reply_decode(payload, r.length, reply));
    return 0;
}

static void step(int fd, struct wire *w, int flags, uint64_t epoch)
{
    struct remus_record r = {.type = REMUS_REC_RESYNC,
                             .flags = (uint8_t)flags,
                             .epoch = epoch,
                             .session = SESSION};
    encode(w, &r, NULL);
    send_wire(fd, w);
}

static void ill_primary(const char *path, uint64_t *s, struct wire *w)
{
    struct remus_hello_reply reply;
    int fd = dial(path);
    rarely = rnd(s) % 2 ? 3 : 60;
    if (rnd(s) % 12 == 0) {
        w->len = 1 + rnd(s) % 4000;
        for (size_t i = 0; i < w->len; i++)
            w->data[i] = (unsigned char)rnd(s);
        send_wire(fd, w);
    } else if (greeted(fd, s, w, &reply) == 0) {
        struct at at = {.number = reply.next_number,
                        .epoch = reply.last_epoch + 1};
        if (rnd(s) % 8) {
            int fresh = reply.content < REMUS_CONTENT_COMPLETE;
            step(fd, w, fresh ? REMUS_RESYNC_BEGIN : REMUS_RESYNC_CATCH_UP,
                 at.epoch);
            if (fresh)
                step(fd, w, REMUS_RESYNC_END, at.epoch);
        }
        for (uint64_t n = rnd(s) % 60; n; n--) {
            some_record(s, &at, w);
            maybe_break(s, w);
            if (send_wire(fd, w))
                break;
        }
    }
    /* Until it is through with us: else the next one comes too early. */
    shutdown(fd, SHUT_WR);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    do {
        EXPECT(poll(&p, 1, 5000) == 1);
    } while (recv(fd, w->data, sizeof w->data, 0) > 0);
    close(fd);
}

/* One whole epoch of a primary that does all right. */
static void good_primary(const char *path, struct wire *w)
{
    struct remus_hello_reply reply;
    struct remus_record r;
    unsigned char payload[65536];
    int fd, tries = 0;
    while (greeted(fd = dial(path), NULL, w, &reply)) {
        close(fd); /* the one before is not through yet */
        EXPECT(++tries < 500);
        poll(NULL, 0, 10);
    }
    uint64_t epoch = reply.last_epoch + 1;
    EXPECT(epoch < 1ull << 63);
    step(fd, w, REMUS_RESYNC_BEGIN, 0);
    step(fd, w, REMUS_RESYNC_END, epoch);
    r = (struct remus_record){.type = REMUS_REC_BARRIER,
                              .epoch = epoch,
                              .session = SESSION,
                              .number = reply.next_number};
    encode(w, &r, NULL);
    send_wire(fd, w);
    EXPECT(await(fd, REMUS_REC_ACK, &r, payload, sizeof payload) == 0);
    EXPECT(r.epoch == epoch);
    close(fd);
}

static void fuzz_backup(void)
{
    char dir[] = "/tmp/remus-fuzz-XXXXXX", disk[64], state[64], address[64];
    EXPECT(mkdtemp(dir));
    snprintf(disk, sizeof disk, "%s/disk", dir);
    snprintf(state, sizeof state, "%s/state", dir);
    snprintf(address, sizeof address, "unix:%s/sock", dir);
    pair_disk(disk, DISK);
    CHECK(mkdir(state, 0700));
    struct remus_volume v = {"a", disk, 0};
    const struct remus_backup_config bc = {.resource = "guest0",
                                           .state_dir = state,
                                           .volumes = &v,
                                           .volume_count = 1,
                                           .ack = REMUS_ACK_DURABLE,
                                           .journal_bytes = 1u << 20,
                                           .segment_bytes = 65536,
                                           .discard_local = 1};
    remus_backup *b;
    CHECK(remus_backup_open(&bc, &b));
    CHECK(remus_backup_serve(b, address, 0, 1000));
    struct wire *w = malloc(sizeof *w);
    EXPECT(w);
    uint64_t s = seed;
    unsigned int rounds = 0;
    for (int64_t end = now_ms() + fuzz_ms; now_ms() < end; rounds++) {
        ill_primary(address + 5, &s, w);
        if (rounds % 64 == 63)
            good_primary(address + 5, w);
    }
    good_primary(address + 5, w);
    struct remus_status st;
    CHECK(remus_backup_status(b, &st));
    EXPECT(st.state != REMUS_STATE_FAILED);
    printf("%u connections to a backup, %llu records taken\n", rounds,
           (unsigned long long)st.records);
    remus_backup_close(b);
    /* What is left must be good for a restart, too. */
    CHECK(remus_backup_open(&bc, &b));
    CHECK(remus_backup_serve(b, address, 0, 1000));
    good_primary(address + 5, w);
    remus_backup_close(b);
    free(w);
    char command[80];
    snprintf(command, sizeof command, "rm -r %s", dir);
    EXPECT(system(command) == 0);
}

/* ---- strangers ------------------------------------------------------------------ */

/* The first words of a client that has the key, into `out`. */
static size_t first_flight(const char *key, unsigned char *out, size_t cap)
{
    struct remus_tls_keys *keys;
    struct remus_tls *t;
    int fd[2];
    short events;
    CHECK(remus_tls_keys_load(key, "guest0", &keys));
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
                     fd));
    CHECK(remus_tls_new(&t, keys, 0, fd[0]));
    EXPECT(remus_tls_handshake(t, &events) == -EAGAIN);
    ssize_t n = recv(fd[1], out, cap, 0);
    CHECK(n);
    remus_tls_free(t);
    remus_tls_keys_free(keys);
    close(fd[0]);
    close(fd[1]);
    return (size_t)n;
}

static void stranger(const char *path, uint64_t *s, const unsigned char *hello,
                     size_t len, struct wire *w)
{
    memcpy(w->data, hello, len);
    w->len = len;
    for (uint64_t n = 1 + rnd(s) % 3; n; n--)
        w->data[rnd(s) % len] = (unsigned char)(rnd(s) % 4 ? rnd(s) : 255);
    if (rnd(s) % 8 == 0)
        w->len = 1 + rnd(s) % len;
    for (; rnd(s) % 8 == 0 && w->len + 500 < sizeof w->data; w->len += 500)
        memset(w->data + w->len, (int)rnd(s), 500);
    int fd = dial(path);
    send_wire(fd, w);
    if (rnd(s) % 2)
        shutdown(fd, SHUT_WR);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    while (poll(&p, 1, 20) > 0 && recv(fd, w->data, sizeof w->data, 0) > 0)
        ;
    close(fd);
}

/* Damaged first words of TLS, while a primary replicates. */
static void fuzz_lobby(void)
{
    char dir[] = "/tmp/remus-fuzz-XXXXXX", disk[2][64], state[2][64];
    char address[64], key[64], command[80];
    EXPECT(mkdtemp(dir));
    snprintf(address, sizeof address, "unix:%s/sock", dir);
    snprintf(key, sizeof key, "%s/key", dir);
    int fd = open(key, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    const char line[] = "guest0:00112233445566778899aabbccddeeff\n";
    EXPECT(write(fd, line, sizeof line - 1) == sizeof line - 1);
    close(fd);
    for (int i = 0; i < 2; i++) {
        snprintf(disk[i], sizeof disk[i], "%s/disk%d", dir, i);
        snprintf(state[i], sizeof state[i], "%s/state%d", dir, i);
        pair_disk(disk[i], DISK);
        CHECK(mkdir(state[i], 0700));
    }
    struct remus_volume v[2] = {{"a", disk[0], 0}, {"a", disk[1], 0}};
    const struct remus_backup_config bc = {.resource = "guest0",
                                           .state_dir = state[1],
                                           .volumes = &v[1],
                                           .volume_count = 1,
                                           .journal_bytes = 1u << 20,
                                           .segment_bytes = 65536,
                                           .psk_file = key};
    const struct remus_primary_config pc = {.resource = "guest0",
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
    struct wire *w = malloc(sizeof *w);
    EXPECT(w);
    unsigned char hello[4096];
    size_t len = first_flight(key, hello, sizeof hello);
    uint64_t s = seed, epoch;
    unsigned int rounds = 0;
    for (int64_t end = now_ms() + fuzz_ms / 2; now_ms() < end; rounds++) {
        stranger(address + 5, &s, hello, len, w);
        CHECK(remus_primary_pwrite(p, 0, &rounds, sizeof rounds, rounds % 9));
        CHECK(remus_primary_postsuspend(p, NULL, 0, &epoch));
        CHECK(remus_primary_preresume(p, epoch, 20000));
        CHECK(remus_primary_commit(p, epoch));
    }
    struct remus_status st;
    CHECK(remus_backup_status(b, &st));
    printf("%u strangers, %llu refused\n", rounds,
           (unsigned long long)st.refused);
    EXPECT(st.connected && st.refused >= rounds / 2);
    remus_primary_close(p);
    remus_backup_close(b);
    free(w);
    snprintf(command, sizeof command, "rm -r %s", dir);
    EXPECT(system(command) == 0);
}

/* ---- against a primary ---------------------------------------------------------- */

struct ill_backup {
    int listener;
    uint64_t s;
    atomic_int stop;
    unsigned int served;
};

static void send_reply(int fd, uint64_t *s, struct wire *w,
                       const struct remus_record *hello)
{
    struct remus_hello_reply h = {
        .version = REMUS_WIRE_VERSION,
        .max_payload = (uint32_t)odd(s, 60000),
        .last_epoch = odd(s, rnd(s) % 1000),
        .next_number = odd(s, 1),
        .credit = odd(s, 1u << 20),
        .reserve = odd(s, 1u << 16),
        .held = odd(s, rnd(s) % 1000),
        .committed = odd(s, rnd(s) % 1000),
        .capacity = odd(s, 1u << 20),
        .content = (uint32_t)(rnd(s) % rarely ? rnd(s) % 4 : rnd(s) % 9)};
    if (rnd(s) % 2)
        memcpy(h.generation, w->data + REMUS_REC_HEADER + 16,
               REMUS_ID_BYTES); /* of the hello that lies there */
    if (rnd(s) % rarely == 0)
        memcpy(h.origin, w->data + REMUS_REC_HEADER + 16, REMUS_ID_BYTES);
    struct remus_record r = {.type = REMUS_REC_HELLO_REPLY,
                             .session = hello->session,
                             .length = REMUS_HELLO_REPLY_BYTES};
    remus_hello_reply_encode(&h, w->data + REMUS_REC_HEADER);
    encode(w, &r, w->data + REMUS_REC_HEADER);
    maybe_break(s, w);
    send_wire(fd, w);
}

/* Take what comes; the newest barrier and question in *seen. */
static int drain(int fd, struct remus_input *in, struct remus_record seen[2])
{
    struct remus_conn conn = {.fd = fd};
    struct remus_record r;
    const unsigned char *header, *payload;
    ssize_t n = remus_input_fill(in, &conn);
    if (n < 0)
        return -1;
    while (remus_input_next(in, &r, &header, &payload) == 1)
        if (r.type == REMUS_REC_BARRIER)
            seen[0] = r;
        else if (r.type == REMUS_REC_HASH || r.type == REMUS_REC_RESYNC)
            seen[1] = r;
    return 0;
}

static void some_answer(uint64_t *s, uint64_t session,
                        const struct remus_record seen[2], struct wire *w)
{
    static const uint8_t types[] = {
        REMUS_REC_ACK,     REMUS_REC_ACK,        REMUS_REC_APPLIED,
        REMUS_REC_PING,    REMUS_REC_RESYNC,     REMUS_REC_HASH_REPLY,
        REMUS_REC_PING,    REMUS_REC_HASH_REPLY, 0};
    uint8_t type = types[rnd(s) % sizeof types];
    struct remus_record r = {
        .type = type              ? type
                : rnd(s) % rarely ? REMUS_REC_PING
                                  : (uint8_t)(rnd(s) % (REMUS_REC_TYPES + 2)),
        .flags = (uint8_t)(rnd(s) % 9),
        .session = odd(s, session),
        .epoch = odd(s, seen[0].epoch),
        .offset = odd(s, seen[0].epoch),
        .range = odd(s, 1u << 20),
        .number = odd(s, type == REMUS_REC_HASH_REPLY ? seen[1].number : 0)};
    if (type == REMUS_REC_HASH_REPLY)
        r.length = rnd(s) % rarely ? REMUS_HASH_BLOCKS / 8
                                   : (uint32_t)(rnd(s) % 999);
    else if (r.type == REMUS_REC_APPLIED)
        r.length = (uint32_t)(rnd(s) % 4 * 24 + (rnd(s) % rarely ? 0 : 5));
    else if (rnd(s) % rarely == 0)
        r.length = (uint32_t)(rnd(s) % 3000);
    for (uint32_t i = 0; i < r.length; i++)
        w->data[REMUS_REC_HEADER + i] = (unsigned char)rnd(s);
    encode(w, &r, w->data + REMUS_REC_HEADER);
    maybe_break(s, w);
}

static void serve_ill(struct ill_backup *b, int fd, struct wire *w)
{
    struct remus_record hello, seen[2] = {{0}};
    struct remus_input in;
    CHECK(remus_input_init(&in));
    if (await(fd, REMUS_REC_HELLO, &hello, w->data + REMUS_REC_HEADER,
              REMUS_HELLO_MAX) == 0) {
        rarely = rnd(&b->s) % 2 ? 3 : 60;
        send_reply(fd, &b->s, w, &hello);
        for (uint64_t n = rnd(&b->s) % 50; n && !b->stop; n--) {
            struct pollfd p = {.fd = fd, .events = POLLIN};
            if (poll(&p, 1, 2) > 0 && drain(fd, &in, seen))
                break;
            some_answer(&b->s, hello.session, seen, w);
            if (send_wire(fd, w))
                break;
        }
        b->served++;
    }
    remus_input_free(&in);
    close(fd);
}

static void *ill_backup_main(void *arg)
{
    struct ill_backup *b = arg;
    struct wire *w = malloc(sizeof *w);
    EXPECT(w);
    while (!b->stop) {
        struct pollfd p = {.fd = b->listener, .events = POLLIN};
        if (poll(&p, 1, 20) <= 0)
            continue;
        int fd = accept4(b->listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0)
            serve_ill(b, fd, w);
    }
    free(w);
    return NULL;
}

static void *verify_main(void *arg)
{
    remus_primary *p = arg;
    (void)remus_primary_verify(p, 1, 0, NULL); /* it may say anything */
    return NULL;
}

/* A guest on it, until it is fenced or the time is over.  Every call must
 * return, and its disk must hold what was written. */
static void guest(remus_primary *p, const char *disk, uint64_t *s,
                  int64_t end)
{
    static unsigned char model[DISK], buf[9000], found[DISK];
    uint64_t refused = 0, refused_len = 0; /* the one that was cut off */
    memset(model, 0, sizeof model);
    struct remus_status st;
    pthread_t verify;
    CHECK(-pthread_create(&verify, NULL, verify_main, p));
    do {
        uint64_t at = rnd(s) % (DISK - sizeof buf), epoch;
        size_t n = 1 + rnd(s) % sizeof buf;
        memset(buf, (int)rnd(s), n);
        int64_t start = now_ms();
        int err = remus_primary_pwrite(p, 0, buf, n, at);
        EXPECT(!err || err == -EROFS);
        if (!err) {
            memcpy(model + at, buf, n);
        } else if (!refused_len) {
            refused = at;
            refused_len = n;
        }
        if (remus_primary_postsuspend(p, NULL, 0, &epoch) >= 0 &&
            remus_primary_preresume(p, epoch, 20) == 0)
            (void)remus_primary_commit(p, epoch); /* the link may be gone */
        EXPECT(now_ms() - start < 8000);
        CHECK(remus_primary_status(p, &st));
    } while (st.state != REMUS_STATE_FENCED && now_ms() < end);
    remus_primary_verify_cancel(p);
    pthread_join(verify, NULL);
    int64_t start = now_ms();
    remus_primary_close(p);
    EXPECT(now_ms() - start < 12000);
    int fd = open(disk, O_RDONLY | O_CLOEXEC);
    CHECK(fd);
    EXPECT(read(fd, found, sizeof found) == (ssize_t)sizeof found);
    close(fd);
    /* Fenced in the middle of a write: it failed, and may have taken effect. */
    memcpy(model + refused, found + refused, refused_len);
    EXPECT(!memcmp(found, model, sizeof model));
}

static void fuzz_primary(void)
{
    char dir[] = "/tmp/remus-fuzz-XXXXXX", disk[64], state[64], address[64];
    EXPECT(mkdtemp(dir));
    snprintf(disk, sizeof disk, "%s/disk", dir);
    snprintf(state, sizeof state, "%s/state", dir);
    snprintf(address, sizeof address, "unix:%s/sock", dir);
    struct remus_address parsed;
    CHECK(remus_address_parse(address, 0, 0, &parsed));
    struct ill_backup b = {.s = seed ^ 0x9e3779b97f4a7c15u};
    CHECK(b.listener = remus_listen(&parsed));
    pthread_t thread;
    CHECK(-pthread_create(&thread, NULL, ill_backup_main, &b));
    uint64_t s = seed;
    unsigned int guests = 0;
    for (int64_t end = now_ms() + fuzz_ms; now_ms() < end; guests++) {
        char command[80];
        snprintf(command, sizeof command, "rm -rf %s", state);
        EXPECT(system(command) == 0);
        CHECK(mkdir(state, 0700));
        pair_disk(disk, DISK);
        struct remus_volume v = {"a", disk, 0};
        const struct remus_primary_config pc = {.resource = "guest0",
                                                .state_dir = state,
                                                .volumes = &v,
                                                .volume_count = 1,
                                                .address = address,
                                                .loss_ms = 1000,
                                                .stall_ms = 500,
                                                .connect_ms = 1,
                                                .queue_bytes = 4u << 20};
        remus_primary *p;
        CHECK(remus_primary_open(&pc, &p));
        guest(p, disk, &s, end < now_ms() + 1000 ? end : now_ms() + 1000);
    }
    b.stop = 1;
    pthread_join(thread, NULL);
    printf("%u primaries, %u connections to an ill backup\n", guests,
           b.served);
    EXPECT(b.served > 2);
    close(b.listener);
    char command[80];
    snprintf(command, sizeof command, "rm -r %s", dir);
    EXPECT(system(command) == 0);
}

static uint64_t number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 0) : otherwise;
}

int main(void)
{
    seed = number("REMUS_SEED", 1);
    EXPECT(seed); /* xorshift stays at 0 */
    fuzz_ms = (unsigned int)number("REMUS_FUZZ_MS", 4000);
    printf("REMUS_SEED=%llu\n", (unsigned long long)seed);
    fflush(stdout);
    fuzz_backup();
    fuzz_lobby();
    fuzz_primary();
    return 0;
}
