/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One whole session of a real primary and a real backup, over a wire that
 * keeps what goes along it. */
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "session.h"

struct wire {
    struct fuzz_stream *up, *down;
    int listener;
    struct sockaddr_un backup;
};

int fuzz_listen(struct sockaddr_un *un, const char *name)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *un = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(un->sun_path, sizeof un->sun_path, "%s", name);
    MUST(fd >= 0);
    unlink(name);
    MUST(bind(fd, (struct sockaddr *)un, sizeof *un) == 0);
    MUST(listen(fd, 8) == 0);
    return fd;
}

/* Pass on what came; 0 at the end. */
static int pass(int from, int to, struct fuzz_stream *keep)
{
    uint8_t buf[65536];
    ssize_t n = recv(from, buf, sizeof buf, 0);
    if (n <= 0)
        return 0;
    size_t room = sizeof keep->data - keep->size;
    size_t kept = (size_t)n < room ? (size_t)n : room;
    memcpy(keep->data + keep->size, buf, kept);
    keep->size += kept;
    return send(to, buf, (size_t)n, MSG_NOSIGNAL) == n;
}

static void *wire_main(void *arg)
{
    struct wire *w = arg;
    int a = accept(w->listener, NULL, NULL);
    int b = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(a >= 0 && b >= 0);
    MUST(connect(b, (struct sockaddr *)&w->backup, sizeof w->backup) == 0);
    struct pollfd p[2] = {{.fd = a, .events = POLLIN},
                          {.fd = b, .events = POLLIN}};
    for (int on = 1; on;) {
        poll(p, 2, -1);
        if (p[0].revents)
            on = pass(a, b, w->up);
        if (on && p[1].revents)
            on = pass(b, a, w->down);
    }
    close(a);
    close(b);
    return NULL;
}

/* Records of the real session, as those of FUZZ_SESSION. */
static void renamed(struct fuzz_stream *s)
{
    size_t at = 0;
    struct remus_record r;
    while (at + REMUS_REC_HEADER <= s->size &&
           remus_record_decode(s->data + at, &r) == 0 &&
           r.length <= s->size - at - REMUS_REC_HEADER) {
        if (r.session)
            r.session = FUZZ_SESSION;
        remus_record_encode(&r, s->data + at);
        at += REMUS_REC_HEADER + r.length;
    }
    s->size = at;
}

static uint64_t checkpoint(remus_primary *p, const char *tag)
{
    uint64_t epoch;
    MUST(remus_primary_postsuspend(p, tag, strlen(tag), &epoch) >= 0);
    MUST(remus_primary_preresume(p, epoch, 20000) == 0);
    MUST(remus_primary_commit(p, epoch) >= 0);
    return epoch;
}

static void use(remus_primary *p)
{
    unsigned char block[4096];
    memset(block, 0x5a, sizeof block);
    MUST(remus_primary_wait_protected(p, 20000) == 0);
    MUST(remus_primary_pwrite(p, 0, block, 4096, 4096) == 0);
    MUST(remus_primary_pwrite(p, 0, block, 1, 65535) == 0);
    checkpoint(p, "one");
    MUST(remus_primary_write_zeroes(p, 0, 0, 8192) == 0);
    MUST(remus_primary_pwrite(p, 0, block, 600, 511) == 0);
    checkpoint(p, "");
    MUST(remus_primary_verify(p, 1, 0, NULL) >= 0);
    checkpoint(p, "three");
}

struct remus_primary_config fuzz_primary_config(const char *address)
{
    return (struct remus_primary_config){
        .struct_size = sizeof(struct remus_primary_config),
        .resource = "guest0",
        .state_dir = "/state",
        .volumes = &fuzz_volume,
        .volume_count = 1,
        .address = address,
        .connect_ms = 10,
        .loss_ms = 2000,
        .idle_ms = 1,
        .queue_bytes = 4u << 20};
}

remus_sim *fuzz_primary_world(void)
{
    static remus_sim *made;
    remus_sim *copy;
    if (!made) {
        MUST(remus_sim_new(&made) == 0);
        MUST(remus_sim_create(made, fuzz_volume.path, FUZZ_DISK) == 0);
    }
    MUST(remus_sim_clone(made, &copy) == 0);
    /* Its threads really wait. */
    remus_sim_io(copy)->now_ns = remus_io_system()->now_ns;
    return copy;
}

void fuzz_record(struct fuzz_stream *up, struct fuzz_stream *down)
{
    char dir[] = "/tmp/remus-fuzz-XXXXXX", name[64], address[2][96];
    MUST(mkdtemp(dir));
    struct wire w = {.up = up, .down = down};
    struct sockaddr_un un;
    snprintf(name, sizeof name, "%s/wire", dir);
    snprintf(address[0], sizeof address[0], "unix:%s", name);
    w.listener = fuzz_listen(&un, name);
    snprintf(address[1], sizeof address[1], "unix:%s/backup", dir);
    w.backup.sun_family = AF_UNIX;
    snprintf(w.backup.sun_path, sizeof w.backup.sun_path, "%s",
             address[1] + 5);
    remus_sim *there = fuzz_scene(FUZZ_EMPTY), *here = fuzz_primary_world();
    remus_backup *b;
    remus_primary *p;
    pthread_t thread;
    remus_sim_io(there)->now_ns = remus_io_system()->now_ns;
    MUST(remus_test_backup_open(&fuzz_backup_config, there, &b) == 0);
    MUST(remus_backup_serve(b, address[1], 0, 0) == 0);
    MUST(pthread_create(&thread, NULL, wire_main, &w) == 0);
    const struct remus_primary_config config = fuzz_primary_config(address[0]);
    MUST(remus_primary_open_io(&config, remus_sim_io(here), &p) == 0);
    use(p);
    remus_primary_close(p);
    pthread_join(thread, NULL);
    remus_backup_close(b);
    close(w.listener);
    unlink(name);
    MUST(rmdir(dir) == 0);
    remus_sim_free(here);
    remus_sim_free(there);
    renamed(up);
    renamed(down);
}
