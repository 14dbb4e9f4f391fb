/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A backup that means ill, or is broken: answers that are well formed and
 * wrong in any other way, cut short, or noise.  The primary may not crash or
 * hang, and its disk holds what its guest wrote.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "wire.h"

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
        .flags = rnd(s) % rarely ? 0 : (uint32_t)odd(s, REMUS_REPLY_FULL),
        .has = odd(s, 0),
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
    encode(w, &r);
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
        REMUS_REC_ACK,  REMUS_REC_ACK,        REMUS_REC_APPLIED,
        REMUS_REC_PING, REMUS_REC_RESYNC,     REMUS_REC_HASH_REPLY,
        REMUS_REC_PING, REMUS_REC_HASH_REPLY, 0};
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
        r.length =
            rnd(s) % rarely ? REMUS_HASH_BLOCKS / 8 : (uint32_t)(rnd(s) % 999);
    else if (r.type == REMUS_REC_APPLIED)
        r.length = (uint32_t)(rnd(s) % 4 * 24 + (rnd(s) % rarely ? 0 : 5));
    else if (rnd(s) % rarely == 0)
        r.length = (uint32_t)(rnd(s) % 3000);
    for (uint32_t i = 0; i < r.length; i++)
        w->data[REMUS_REC_HEADER + i] = (unsigned char)rnd(s);
    encode(w, &r);
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
static void guest(remus_primary *p, const char *disk, uint64_t *s, int64_t end)
{
    static unsigned char model[DISK], buf[9000], found[DISK];
    uint64_t refused = 0, refused_len = 0; /* the one that was cut off */
    memset(model, 0, sizeof model);
    struct remus_status st = REMUS_INIT(remus_status);
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
        struct remus_volume v = {sizeof v, "a", disk, 0};
        const struct remus_primary_config pc = {.struct_size = sizeof pc,
                                                .resource = "guest0",
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

int main(void)
{
    wire_begin();
    fuzz_primary();
    return 0;
}
