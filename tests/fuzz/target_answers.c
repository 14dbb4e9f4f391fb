/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a primary gets: the answer to its hello, then acks, news, answers to
 * hashes and questions, from whoever has the key.  A real primary with all
 * its threads, on a simulated disk, connects to a socket here; each record of
 * the input follows something that its guest or its toolstack does.
 *
 * The input does not know the primary's session and generation: those of
 * FUZZ_SESSION and of the id FUZZ_GENERATION are put in their places.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "session.h"

#define FUZZ_GENERATION "GGGGGGGGGGGGGGGG"
#define WAIT_MS 20000 /* that long means that it hangs */

const uint8_t fuzz_types[] = {REMUS_REC_ACK,        REMUS_REC_APPLIED,
                              REMUS_REC_PING,       REMUS_REC_RESYNC,
                              REMUS_REC_HASH_REPLY, REMUS_REC_STEP_DOWN,
                              REMUS_REC_ACK,        REMUS_REC_BYE,
                              REMUS_REC_ERROR,      REMUS_REC_HELLO_REPLY};
const size_t fuzz_type_count = sizeof fuzz_types;

struct fuzz_at fuzz_expects(unsigned int scene)
{
    (void)scene;
    return (struct fuzz_at){.number = 1, .epoch = 2};
}

static struct sockaddr_un here;
static int listener = -1;
static char address[128];

static void begin(void)
{
    static char name[64];
    snprintf(name, sizeof name, "/tmp/remus-fuzz-%ld", (long)getpid());
    snprintf(address, sizeof address, "unix:%s", name);
    listener = fuzz_listen(&here, name);
    /* The primary connects to it at once, but finds the name each time. */
}

static void end(void)
{
    unlink(here.sun_path);
}

/* ---- one conversation ------------------------------------------------------- */

/* libFuzzer's alarm interrupts it every so many seconds; then anew. */
static int wait_for(int fd, int ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int n;
    do {
        n = poll(&p, 1, ms);
    } while (n < 0 && errno == EINTR);
    return n > 0;
}

/* Read the hello: its session and its generation. */
static void take_hello(int fd, uint64_t *session, unsigned char *generation)
{
    unsigned char buf[REMUS_REC_HEADER + REMUS_HELLO_MAX];
    struct remus_record r;
    struct remus_hello h;
    size_t have = 0;
    for (;;) {
        MUST(wait_for(fd, WAIT_MS));
        ssize_t n = recv(fd, buf + have, sizeof buf - have, 0);
        MUST(n > 0);
        have += (size_t)n;
        if (have < REMUS_REC_HEADER)
            continue;
        MUST(remus_record_decode(buf, &r) == 0);
        if (have >= REMUS_REC_HEADER + r.length)
            break;
    }
    MUST(remus_hello_decode(buf + REMUS_REC_HEADER, r.length, &h) == 0);
    *session = r.session;
    memcpy(generation, h.lineage.id, REMUS_ID_BYTES);
}

/* A record with the session and generation of this primary.  Its length. */
static size_t adapted(const uint8_t *in, size_t size, uint64_t session,
                      const unsigned char *generation, uint8_t *out)
{
    struct remus_record r;
    size_t len = size;
    memcpy(out, in, size);
    if (size < REMUS_REC_HEADER || remus_record_decode(in, &r))
        return size;
    if (r.length < size - REMUS_REC_HEADER)
        len = REMUS_REC_HEADER + r.length;
    uint8_t *payload = out + REMUS_REC_HEADER;
    size_t have = len - REMUS_REC_HEADER;
    int right = have == r.length &&
                (!have || remus_crc32c(0, payload, have) == r.payload_crc);
    if (r.session == FUZZ_SESSION)
        r.session = session;
    for (size_t i = 0; right && r.type == REMUS_REC_HELLO_REPLY &&
                       i + REMUS_ID_BYTES <= have;
         i++)
        if (!memcmp(payload + i, FUZZ_GENERATION, REMUS_ID_BYTES))
            memcpy(payload + i, generation, REMUS_ID_BYTES);
    if (right)
        r.payload_crc = have ? remus_crc32c(0, payload, have) : 0;
    remus_record_encode(&r, out);
    return len;
}

static void answered(void *opaque, int result)
{
    (void)opaque;
    (void)result;
}

/* What guest and toolstack do meanwhile, by turns; nothing that waits. */
static void act(remus_primary *p, unsigned int turn)
{
    static const unsigned char block[3000];
    const struct remus_asker who = {.done = answered, .id = 1 + turn};
    uint64_t epoch;
    if (turn % 3 == 0)
        (void)remus_primary_postsuspend(p, NULL, 0, &epoch);
    else if (turn % 3 == 1)
        (void)remus_primary_submit_zero(p, 0, turn % 9 * 4096, 5000, &who);
    else
        (void)remus_primary_submit_write(p, 0, block, sizeof block,
                                         turn % 13 * 4000, &who);
    if (turn % 5 == 1)
        (void)remus_primary_commit(p, turn);
    if (turn % 7 == 6) {
        struct remus_status st = REMUS_INIT(remus_status);
        MUST(remus_primary_status(p, &st) == 0);
    }
}

/* It has taken what we sent, or is gone. */
static void drain(int fd)
{
    static uint8_t buf[65536];
    while (recv(fd, buf, sizeof buf, MSG_DONTWAIT) > 0)
        ;
}

static void converse(remus_primary *p, const uint8_t *data, size_t size)
{
    static uint8_t out[FUZZ_STREAM_MAX];
    unsigned char generation[REMUS_ID_BYTES];
    uint64_t session;
    MUST(wait_for(listener, WAIT_MS));
    int fd = accept(listener, NULL, NULL);
    MUST(fd >= 0);
    take_hello(fd, &session, generation);
    unsigned int turn = 0;
    for (size_t at = 0; at < size; turn++) {
        size_t n = adapted(data + at, size - at, session, generation, out);
        if (send(fd, out, n, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)n)
            break;
        at += n;
        drain(fd);
        act(p, turn);
    }
    /* It answers the end of the stream with its own: all is taken. */
    shutdown(fd, SHUT_WR);
    uint8_t buf[4096];
    do {
        MUST(wait_for(fd, WAIT_MS));
    } while (recv(fd, buf, sizeof buf, 0) > 0);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size > FUZZ_STREAM_MAX)
        return 0;
    remus_sim *sim = fuzz_primary_world();
    remus_primary *p;
    const struct remus_primary_config config = fuzz_primary_config(address);
    MUST(remus_primary_open_io(&config, remus_sim_io(sim), &p) == 0);
    converse(p, data + 1, size - 1);
    remus_primary_close(p);
    /* Tries that were made meanwhile. */
    for (int fd;
         wait_for(listener, 0) && (fd = accept(listener, NULL, NULL)) >= 0;)
        close(fd);
    remus_sim_free(sim);
    return 0;
}

/* ---- inputs to begin with ----------------------------------------------------- */

static void reply_with(struct fuzz_stream *s, uint32_t content, uint32_t flags)
{
    struct remus_hello_reply h = {.version = REMUS_WIRE_VERSION,
                                  .max_payload = 16384,
                                  .last_epoch = 1,
                                  .next_number = 1,
                                  .credit = 65536,
                                  .reserve = 65536,
                                  .held = 1,
                                  .committed = 1,
                                  .capacity = 200000,
                                  .flags = flags,
                                  .content = content};
    unsigned char out[REMUS_HELLO_REPLY_BYTES];
    memcpy(h.generation, FUZZ_GENERATION, REMUS_ID_BYTES);
    remus_hello_reply_encode(&h, out);
    s->data[0] = 0;
    s->size = 1;
    fuzz_add(s,
             (struct remus_record){.type = REMUS_REC_HELLO_REPLY,
                                   .session = FUZZ_SESSION,
                                   .length = sizeof out},
             out);
}

static void make_seeds(void)
{
    static struct fuzz_stream s, up, down;
    unsigned char bits[REMUS_HASH_BLOCKS / 8] = {1}, word[32] = {2};
    for (uint32_t content = 0; content <= REMUS_CONTENT_MARKED; content++) {
        reply_with(&s, content, content % 2 ? REMUS_REPLY_FULL : 0);
        for (uint64_t n = 1; n < 4; n++)
            fuzz_add(&s,
                     (struct remus_record){.type = REMUS_REC_HASH_REPLY,
                                           .session = FUZZ_SESSION,
                                           .number = n,
                                           .length = sizeof bits},
                     bits);
        for (uint8_t step = 1; step <= REMUS_RESYNC_ADOPTED; step++)
            fuzz_add(&s,
                     (struct remus_record){.type = REMUS_REC_RESYNC,
                                           .session = FUZZ_SESSION,
                                           .flags = step},
                     NULL);
        for (uint64_t n = 1; n < 4; n++)
            fuzz_add(&s,
                     (struct remus_record){.type = REMUS_REC_APPLIED,
                                           .session = FUZZ_SESSION,
                                           .epoch = n,
                                           .offset = n - 1,
                                           .number = n - 1,
                                           .range = 70000 * n,
                                           .length = sizeof word},
                     word);
        fuzz_add(&s,
                 (struct remus_record){.type = REMUS_REC_STEP_DOWN,
                                       .session = FUZZ_SESSION},
                 NULL);
        fuzz_seed(s.data, s.size);
    }
    fuzz_record(&up, &down);
    s.data[0] = 0;
    MUST(down.size < sizeof s.data);
    memcpy(s.data + 1, down.data, down.size);
    fuzz_seed(s.data, down.size + 1);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    fuzz_begin(argc, argv, make_seeds);
    begin();
    atexit(end);
    return 0;
}
