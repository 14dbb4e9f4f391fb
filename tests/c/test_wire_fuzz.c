/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary that is let in and means ill, or is broken: records that are well
 * formed and wrong in any other way, records cut short, and plain noise.  The
 * backup may not crash, hang, or be of no use afterwards.  And strangers, whose
 * first words of TLS are damaged, while a primary replicates.
 */
#include <sys/un.h>

#include "link/tls.h"
#include "wire.h"

#define SESSION 0x5e55104u

/* ---- against a backup --------------------------------------------------- */

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
    static uint64_t sessions; /* a primary that knows of all of them */
    struct remus_hello h = {.version = REMUS_WIRE_VERSION,
                            .sessions = ++sessions,
                            .volumes = 1,
                            .next_epoch = 1,
                            .resource = "guest0",
                            .name = {"a"},
                            .size = {DISK}};
    memset(h.lineage.id, 'g', sizeof h.lineage.id);
    size_t n = remus_hello_encode(&h, w->data + REMUS_REC_HEADER);
    /* Not its generation, nor its sessions: whose disks these are stays as it
     * is. */
    size_t at = s ? rnd(s) % n : 0;
    if (s && rnd(s) % 8 == 0 && (at < 16 || at >= 32) &&
        (at < 128 || at >= 144))
        w->data[REMUS_REC_HEADER + at] ^= (unsigned char)rnd(s);
    struct remus_record r = {
        .type = REMUS_REC_HELLO, .session = SESSION, .length = (uint32_t)n};
    if (s && rnd(s) % 20 == 0)
        r.length -= (uint32_t)(rnd(s) % n);
    encode(w, &r);
    send_wire(fd, w);
}

/* Where a well-behaved primary would be. */
struct at {
    uint64_t number, epoch, records, barriers;
    uint32_t run;
};

static void some_record(uint64_t *s, struct at *at, struct wire *w)
{
    static const uint8_t types[] = {REMUS_REC_WRITE,
                                    REMUS_REC_WRITE,
                                    REMUS_REC_ZERO,
                                    REMUS_REC_BARRIER,
                                    REMUS_REC_COMMIT,
                                    REMUS_REC_RESYNC,
                                    REMUS_REC_HASH,
                                    REMUS_REC_PING,
                                    REMUS_REC_WRITE,
                                    REMUS_REC_BARRIER,
                                    0};
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
        r.length =
            (uint32_t)(rnd(s) % rarely ? REMUS_IOCTL_ID_BYTES + rnd(s) % 33
                                       : rnd(s) % 70);
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
    encode(w, &r);
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
    encode(w, &r);
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
    for (;;) {
        int gone = greeted(fd = dial(path), NULL, w, &reply);
        if (!gone && !(reply.flags & REMUS_REPLY_FULL))
            break;
        /* Full of what the others prepared: it takes a commit of that. */
        r = (struct remus_record){
            .type = REMUS_REC_COMMIT, .epoch = reply.held, .session = SESSION};
        encode(w, &r);
        if (!gone)
            send_wire(fd, w);
        close(fd); /* or the one before is not through yet */
        EXPECT(++tries < 500);
        poll(NULL, 0, 10);
    }
    uint64_t epoch = reply.last_epoch + 1;
    EXPECT(epoch < 1ull << 63);
    /* What a copy would throw away is only caught up. */
    if (reply.content == REMUS_CONTENT_NONE ||
        reply.content == REMUS_CONTENT_PARTIAL) {
        step(fd, w, REMUS_RESYNC_BEGIN, 0);
        step(fd, w, REMUS_RESYNC_END, epoch);
    } else {
        step(fd, w, REMUS_RESYNC_CATCH_UP, epoch);
    }
    r = (struct remus_record){.type = REMUS_REC_BARRIER,
                              .epoch = epoch,
                              .session = SESSION,
                              .length = REMUS_IOCTL_ID_BYTES,
                              .number = reply.next_number};
    memset(w->data + REMUS_REC_HEADER, 0, r.length);
    encode(w, &r);
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
    struct remus_volume v = {sizeof v, "a", disk, 0};
    const struct remus_backup_config bc = {.struct_size = sizeof bc,
                                           .resource = "guest0",
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
    struct remus_status st = REMUS_INIT(remus_status);
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

/* ---- strangers ---------------------------------------------------------- */

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
static void fuzz_pending(void)
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
    struct remus_volume v[2] = {{sizeof *v, "a", disk[0], 0},
                                {sizeof *v, "a", disk[1], 0}};
    const struct remus_backup_config bc = {.struct_size = sizeof bc,
                                           .resource = "guest0",
                                           .state_dir = state[1],
                                           .volumes = &v[1],
                                           .volume_count = 1,
                                           .journal_bytes = 1u << 20,
                                           .segment_bytes = 65536,
                                           .psk_file = key};
    const struct remus_primary_config pc = {.struct_size = sizeof pc,
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
    struct remus_status st = REMUS_INIT(remus_status);
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

int main(void)
{
    wire_begin();
    fuzz_backup();
    fuzz_pending();
    return 0;
}
