/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests that send wrong records: numbers by chance, and records that are
 * well formed (their CRCs are right) whatever stands in them.
 *
 * REMUS_SEED and REMUS_FUZZ_MS (for each part) choose another run.
 */
#ifndef REMUS_TEST_WIRE_H
#define REMUS_TEST_WIRE_H

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include "pair.h"
#include "link/address.h"
#include "link/input.h"

#define DISK (256u << 10)

static uint64_t seed;
static unsigned int fuzz_ms;

static inline uint64_t rnd(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static inline int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- records ------------------------------------------------------------ */

/* How often something is wrong: once in so many times. */
static __thread uint64_t rarely = 2;

/* `right`, or a number near it, or one of those that break sums. */
static inline uint64_t odd(uint64_t *s, uint64_t right)
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

/* Its payload is there already, behind the header. */
static inline void encode(struct wire *w, struct remus_record *r)
{
    r->payload_crc =
        r->length ? remus_crc32c(0, w->data + REMUS_REC_HEADER, r->length) : 0;
    remus_record_encode(r, w->data);
    w->len = REMUS_REC_HEADER + r->length;
}

/* Damage it below the CRCs now and then. */
static inline void maybe_break(uint64_t *s, struct wire *w)
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
static inline int send_wire(int fd, const struct wire *w)
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
static inline int await(int fd, int type, struct remus_record *r,
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

static inline uint64_t number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 0) : otherwise;
}

static inline void wire_begin(void)
{
    seed = number("REMUS_SEED", 1);
    EXPECT(seed); /* xorshift stays at 0 */
    fuzz_ms = (unsigned int)number("REMUS_FUZZ_MS", 4000);
    printf("REMUS_SEED=%llu\n", (unsigned long long)seed);
    fflush(stdout);
}

#endif
