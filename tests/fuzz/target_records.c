/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a backup gets: a hello and records, from whoever has the key.  The
 * session thread's own code, without threads: it runs here, reads a socket
 * into which the whole input was written, and ends with it.
 *
 * The backup may refuse whatever it likes.  It may not crash, hang, leak or
 * allocate by what is only claimed; and afterwards a new process must be able
 * to start from its files.
 */
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backup/net.h"
#include "base/wake.h"
#include "session.h"

const uint8_t fuzz_types[] = {
    REMUS_REC_WRITE, REMUS_REC_ZERO,   REMUS_REC_BARRIER,
    REMUS_REC_WRITE, REMUS_REC_COMMIT, REMUS_REC_RESYNC,
    REMUS_REC_PING,  REMUS_REC_HASH,   REMUS_REC_STEPPED_DOWN,
    REMUS_REC_TOLD,  REMUS_REC_BYE,    REMUS_REC_ERROR};
const size_t fuzz_type_count = sizeof fuzz_types;

static remus_backup *opened(remus_sim *sim)
{
    remus_backup *b;
    MUST(remus_test_backup_open(&fuzz_backup_config, sim, &b) == 0);
    return b;
}

struct fuzz_at fuzz_expects(unsigned int scene)
{
    static struct fuzz_at known[FUZZ_SCENES];
    scene %= FUZZ_SCENES;
    if (!known[scene].number) {
        remus_sim *sim = fuzz_scene(scene);
        remus_backup *b = opened(sim);
        known[scene] = (struct fuzz_at){.number = b->at.number,
                                        .epoch = b->last_epoch + 1};
        remus_test_backup_abandon(b);
        remus_sim_free(sim);
    }
    return known[scene];
}

/* The session thread waits for the next connection: there is none. */
static struct remus_backup_net *running;

int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock);
int __real_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock);
int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock)
{
    if (!running)
        return __real_pthread_cond_wait(cond, lock);
    MUST(cond == &running->changed); /* else nobody would ever wake it */
    running->stopping = 1;
    return 0;
}

static struct remus_backup_net *net_of(remus_backup *b, int fd)
{
    struct remus_backup_net *net = calloc(1, sizeof *net);
    MUST(net);
    net->b = b;
    net->loss_ms = 1000;
    net->listener = -1;
    net->conn = fd;
    net->link = REMUS_CONN_NONE;
    net->link.fd = fd;
    net->wake = remus_wake_open();
    remus_refusals_init(&net->refusals);
    MUST(remus_input_init(&net->input) == 0);
    return net;
}

static void free_net(struct remus_backup_net *net)
{
    remus_wake_close(net->wake);
    remus_input_free(&net->input);
    remus_refusals_destroy(&net->refusals);
    free(net);
}

static void converse(remus_backup *b, const uint8_t *data, size_t size)
{
    int fd[2], room = 4 << 20;
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
                    fd) == 0);
    setsockopt(fd[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    setsockopt(fd[1], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    MUST(send(fd[1], data, size, MSG_NOSIGNAL) == (ssize_t)size);
    MUST(shutdown(fd[1], SHUT_WR) == 0);
    running = net_of(b, fd[0]);
    remus_backup_session_main(running);
    free_net(running);
    running = NULL;
    close(fd[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size > FUZZ_STREAM_MAX)
        return 0;
    remus_sim *sim = fuzz_scene(data[0]);
    remus_backup *b = opened(sim);
    converse(b, data + 1, size - 1);
    remus_test_backup_abandon(b);
    remus_sim_kill(sim);
    remus_backup_close(opened(sim));
    remus_sim_free(sim);
    return 0;
}

/* ---- inputs to begin with ----------------------------------------------------- */

static void hello(struct fuzz_stream *s, unsigned int scene)
{
    struct remus_hello h = {.version = REMUS_WIRE_VERSION,
                            .sessions = 1000,
                            .session = FUZZ_SESSION,
                            .volumes = 1,
                            .next_epoch = 1,
                            .resource = "guest0",
                            .name = {"a"},
                            .size = {FUZZ_DISK}};
    unsigned char payload[REMUS_HELLO_MAX];
    size_t n = remus_hello_encode(&h, payload);
    s->data[0] = (uint8_t)scene;
    s->size = 1;
    fuzz_add(s,
             (struct remus_record){.type = REMUS_REC_HELLO,
                                   .session = FUZZ_SESSION,
                                   .length = (uint32_t)n},
             payload);
}

static void plain(struct fuzz_stream *s, uint8_t type, uint8_t flags,
                  uint64_t epoch)
{
    fuzz_add(s,
             (struct remus_record){.type = type,
                                   .flags = flags,
                                   .epoch = epoch,
                                   .session = FUZZ_SESSION},
             NULL);
}

/* A session of one epoch, of a primary that finds this state. */
static void one_epoch(struct fuzz_stream *s, unsigned int scene)
{
    struct fuzz_at at = fuzz_expects(scene);
    unsigned char tag[REMUS_IOCTL_ID_BYTES] = {0}, hash[16] = {0};
    hello(s, scene);
    if (scene <= FUZZ_COPYING) {
        plain(s, REMUS_REC_RESYNC, REMUS_RESYNC_BEGIN, 0);
        plain(s, REMUS_REC_RESYNC, REMUS_RESYNC_FLUSH, 0);
        plain(s, REMUS_REC_RESYNC, REMUS_RESYNC_END, at.epoch);
    } else {
        plain(s, REMUS_REC_RESYNC, REMUS_RESYNC_CATCH_UP, at.epoch);
    }
    struct remus_record w = {.type = REMUS_REC_WRITE,
                             .session = FUZZ_SESSION,
                             .length = 5,
                             .range = 5,
                             .offset = 77,
                             .epoch = at.epoch,
                             .number = at.number};
    fuzz_add(s, w, "bytes");
    remus_record_decode(s->data + s->size - 5 - REMUS_REC_HEADER, &w);
    fuzz_add(s,
             (struct remus_record){.type = REMUS_REC_BARRIER,
                                   .session = FUZZ_SESSION,
                                   .offset = 1,
                                   .range = remus_record_run(0, w.header_crc),
                                   .length = sizeof tag,
                                   .epoch = at.epoch,
                                   .number = at.number + 1},
             tag);
    fuzz_add(s,
             (struct remus_record){.type = REMUS_REC_HASH,
                                   .session = FUZZ_SESSION,
                                   .length = sizeof hash,
                                   .range = REMUS_BLOCK,
                                   .number = 1},
             hash);
    plain(s, REMUS_REC_TOLD, 0, at.epoch);
    plain(s, REMUS_REC_COMMIT, 0, at.epoch);
    plain(s, REMUS_REC_BYE, 0, 0);
}

static void make_seeds(void)
{
    static struct fuzz_stream s, up, down;
    for (unsigned int i = 0; i < FUZZ_SCENES; i++) {
        one_epoch(&s, i);
        fuzz_seed(s.data, s.size);
    }
    fuzz_record(&up, &down);
    s.data[0] = FUZZ_EMPTY;
    MUST(up.size < sizeof s.data);
    memcpy(s.data + 1, up.data, up.size);
    fuzz_seed(s.data, up.size + 1);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    fuzz_begin(argc, argv, make_seeds);
    return 0;
}
