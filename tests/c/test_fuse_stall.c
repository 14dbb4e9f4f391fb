/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One local disk stalls under more requests than the node has workers: the
 * checkpoint ioctls, the status and the other disk are answered all the same,
 * and once the disk goes on every request is, each with its own bytes.  All
 * that is not answered is in the slots meanwhile, and what may have changed
 * the disk is marked there with its range.  Exit 77: no FUSE here.
 */
#include <errno.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <time.h>

#include "node/fuse_int.h"
#include "pair.h"

#define BLOCK 4096u
#define READERS 40u /* more than there are workers */
#define SIZE ((uint64_t)BLOCK * (READERS + 8u))

static remus_io table;
static remus_io *real;
static atomic_int disk = -1; /* the first volume's file */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int stalled;        /* lock */
static unsigned int stuck; /* lock: calls that wait for the disk */

static void wait_for_disk(int file)
{
    if (file != atomic_load(&disk))
        return;
    pthread_mutex_lock(&lock);
    stuck++;
    pthread_cond_broadcast(&changed);
    while (stalled)
        pthread_cond_wait(&changed, &lock);
    stuck--;
    pthread_mutex_unlock(&lock);
}

static int watching_open(remus_io *io, const char *path, int flags)
{
    (void)io;
    int file = real->open(real, path, flags);
    if (strstr(path, "/primary.a"))
        atomic_store(&disk, file);
    return file;
}

static ssize_t stalling_pread(remus_io *io, int file, void *buf, size_t len,
                              uint64_t offset)
{
    (void)io;
    wait_for_disk(file);
    return real->pread(real, file, buf, len, offset);
}

static ssize_t stalling_pwrite(remus_io *io, int file, const void *buf,
                               size_t len, uint64_t offset)
{
    (void)io;
    wait_for_disk(file);
    return real->pwrite(real, file, buf, len, offset);
}

static int stalling_sync(remus_io *io, int file)
{
    (void)io;
    wait_for_disk(file);
    return real->fdatasync(real, file);
}

static void stall(int on)
{
    pthread_mutex_lock(&lock);
    stalled = on;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void wait_until_stuck(unsigned int calls)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 20;
    pthread_mutex_lock(&lock);
    int rc = 0;
    while (stuck < calls && !rc)
        rc = pthread_cond_timedwait(&changed, &lock, &until);
    EXPECT(stuck == calls);
    pthread_mutex_unlock(&lock);
}

static char mounted[128], node[256];

/* Whatever fails, nothing stays mounted. */
static void unmount(void)
{
    umount2(mounted, MNT_DETACH);
}

static void *read_block(void *arg)
{
    unsigned int i = (unsigned int)(uintptr_t)arg;
    unsigned char buf[BLOCK];
    int fd = open(node, O_RDONLY | O_CLOEXEC);
    CHECK(fd);
    EXPECT(pread(fd, buf, BLOCK, (off_t)i * BLOCK) == (ssize_t)BLOCK);
    for (unsigned int at = 0; at < BLOCK; at++)
        EXPECT(buf[at] == (unsigned char)(i + 1));
    close(fd);
    return NULL;
}

static void *write_and_sync(void *arg)
{
    (void)arg;
    int fd = open(node, O_RDWR | O_CLOEXEC);
    CHECK(fd);
    EXPECT(pwrite(fd, "written", 7, (off_t)(SIZE - BLOCK)) == 7);
    CHECK(fsync(fd));
    close(fd);
    return NULL;
}

/* What needs no disk, or another one: by somebody who can't wait long. */
static void *checkpoint(void *arg)
{
    atomic_int *done = arg;
    static const char *const names[] = {"status", "status.json", "b"};
    for (int i = 0; i < 3; i++) {
        char path[256], buf[512];
        snprintf(path, sizeof path, "%s/%s", mounted, names[i]);
        int other = open(path, O_RDONLY | O_CLOEXEC);
        CHECK(other);
        EXPECT(read(other, buf, sizeof buf) == (ssize_t)sizeof buf);
        close(other);
    }
    int fd = open(node, O_RDONLY | O_CLOEXEC);
    CHECK(fd);
    CHECK(ioctl(fd, REMUS_IOCTL_SEND_CHECKPOINT, 0));
    CHECK(ioctl(fd, REMUS_IOCTL_WAIT_CHECKPOINT_ACK, 0));
    CHECK(ioctl(fd, REMUS_IOCTL_COMMIT_CHECKPOINT, 0));
    close(fd);
    atomic_store(done, 1);
    return NULL;
}

static void checkpoint_within(int ms)
{
    static atomic_int done;
    pthread_t thread;
    atomic_store(&done, 0);
    EXPECT(pthread_create(&thread, NULL, checkpoint, &done) == 0);
    for (; !atomic_load(&done) && ms; ms--)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    int in_time = atomic_load(&done);
    if (!in_time)
        stall(0);
    pthread_join(thread, NULL);
    EXPECT(in_time);
}

/* How many slots hold a request of a kind; how many are begun.  It looks as
 * another process would: what it sees may change meanwhile. */
__attribute__((no_sanitize("thread"))) static unsigned int
held(remus_export *e, uint32_t opcode, unsigned int *begun)
{
    unsigned int count = 0;
    *begun = 0;
    for (uint32_t i = 0; i < e->kept.head->slot_count; i++) {
        const struct fuse_in_header *in =
            (const void *)remus_kept_bytes(&e->kept, i);
        const struct remus_kept_slot *s = &e->kept.slots[i];
        if (__atomic_load_n(&in->unique, __ATOMIC_ACQUIRE) == 0)
            continue;
        count += in->opcode == opcode;
        if (!atomic_load(&s->begun))
            continue;
        ++*begun;
        EXPECT(in->opcode == FUSE_WRITE && s->volume == 0);
        EXPECT(s->start == SIZE - BLOCK && s->end == s->start + 7);
        EXPECT(!memcmp((const char *)in + sizeof *in +
                           sizeof(struct fuse_write_in),
                       "written", 7));
    }
    return count;
}

/* The readers come when they come. */
static void check_all_held(remus_export *e)
{
    unsigned int begun;
    for (int ms = 20000; held(e, FUSE_READ, &begun) < READERS && ms; ms--)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    EXPECT(held(e, FUSE_READ, &begun) == READERS && begun == 1);
    EXPECT(held(e, FUSE_WRITE, &begun) == 1);
}

/* An answer may be heard before the slot is clear. */
static void check_none_held(remus_export *e)
{
    unsigned int begun, ms = 20000;
    while ((held(e, FUSE_READ, &begun) || held(e, FUSE_WRITE, &begun) ||
            held(e, FUSE_FSYNC, &begun)) &&
           ms--)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    EXPECT(ms != UINT_MAX && begun == 0);
}

static void fill(struct pair *t)
{
    unsigned char buf[BLOCK];
    for (unsigned int i = 0; i < READERS; i++) {
        memset(buf, (int)(i + 1), BLOCK);
        CHECK(remus_primary_pwrite(t->p, 0, buf, BLOCK, i * (uint64_t)BLOCK));
    }
}

int main(void)
{
    struct pair t;
    remus_export *e;
    pthread_t readers[READERS], writer;
    real = remus_io_system();
    table = *real;
    table.open = watching_open;
    table.pread = stalling_pread;
    table.pwrite = stalling_pwrite;
    table.fdatasync = stalling_sync;
    pair_open(&t, SIZE, SIZE, &table);
    fill(&t);
    snprintf(mounted, sizeof mounted, "%s/mount", t.dir);
    snprintf(node, sizeof node, "%s/a", mounted);
    CHECK(mkdir(mounted, 0700));
    int rc = remus_export_open(t.p, mounted, NULL, &e);
    if (rc == -ENODEV || rc == -EPERM) {
        fprintf(stderr, "skipped: %s\n", remus_last_error());
        pair_prove_and_close(&t, pair_checkpoint(&t));
        return 77;
    }
    CHECK(rc);
    EXPECT(atexit(unmount) == 0);
    stall(1);
    EXPECT(pthread_create(&writer, NULL, write_and_sync, NULL) == 0);
    wait_until_stuck(1);
    for (unsigned int i = 0; i < READERS; i++)
        EXPECT(pthread_create(&readers[i], NULL, read_block,
                              (void *)(uintptr_t)i) == 0);
    wait_until_stuck(remus_fuse_width(PAIR_VOLUMES));
    check_all_held(e);
    for (int i = 0; i < 3; i++)
        checkpoint_within(10000);
    stall(0);
    for (unsigned int i = 0; i < READERS; i++)
        pthread_join(readers[i], NULL);
    pthread_join(writer, NULL);
    check_none_held(e);
    remus_export_close(e);
    pair_prove_and_close(&t, pair_checkpoint(&t));
    return 0;
}
