/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A FUSE mount whose file `disk` answers the checkpoint ioctls as told, so
 * that every failure of a protocol D driver can be met through real ioctl(2)
 * calls.  Usage: ioctl_node MOUNTPOINT
 *
 * Written to `control`: "NUMBER=RESULT:DELAY_MS[,RESULT:DELAY_MS...]", e.g.
 * "30=-71:300,0:0.2": the answers to the next calls of that number; the last
 * one is repeated.  A negative result is -errno; a signal to the caller ends
 * the delay, with EPROTO.  Number 0, which is no ioctl here, stands for
 * opening `disk`.  `log` has a line for each ioctl that arrived: number and
 * argument.
 *
 * "driver WORD [NUMBER]" makes `disk` a minor of a protocol D driver instead
 * (protocol_d.h): on; reset; PP, PS (roles); Connected, WFConnection, StandAlone;
 * write, flush (of the guest); ack, done (the oldest answer comes); ack_ms,
 * done_ms, limit_ms (see struct protocol_d).  `proc` reads as /proc/drbd does
 * (scripted answers: Connected, Primary/Primary, pe:1 after a 30 that was not
 * 0), and `held` as two numbers: writes so far, and how many of them the backup has.
 */
#define FUSE_USE_VERSION 35

#include <errno.h>
#include <fuse_lowlevel.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "protocol_d.h"

#define ANSWERS 16
#define INO_DISK 2
#define INO_CONTROL 3
#define INO_LOG 4
#define INO_PROC 5
#define INO_HELD 6

struct script {
    int result[ANSWERS];
    int delay_us[ANSWERS];
    int n, next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct script scripts[64];
static char log_text[65536];
static size_t log_len;

static struct protocol_d driver; /* lock */
static int driven;               /* lock: `driver` answers, no script */
static unsigned int outstanding; /* lock: a scripted barrier is */

static const char *const names[] = {"disk", "control", "log", "proc", "held"};

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int fill(fuse_ino_t ino, struct stat *st)
{
    memset(st, 0, sizeof *st);
    st->st_ino = ino;
    st->st_nlink = 1;
    if (ino == FUSE_ROOT_ID)
        st->st_mode = S_IFDIR | 0755;
    else if (ino >= INO_DISK && ino <= INO_HELD)
        st->st_mode = S_IFREG | 0600;
    else
        return -1;
    if (ino == INO_DISK)
        st->st_size = 1 << 20;
    return 0;
}

static void ll_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    (void)parent;
    struct fuse_entry_param e = {.attr_timeout = 0, .entry_timeout = 0};
    for (unsigned int i = 0; i < 5; i++)
        if (!strcmp(name, names[i]))
            e.ino = INO_DISK + i;
    if (!e.ino || fill(e.ino, &e.attr))
        fuse_reply_err(req, ENOENT);
    else
        fuse_reply_entry(req, &e);
}

static void ll_getattr(fuse_req_t req, fuse_ino_t ino,
                       struct fuse_file_info *fi)
{
    (void)fi;
    struct stat st;
    if (fill(ino, &st))
        fuse_reply_err(req, ENOENT);
    else
        fuse_reply_attr(req, &st, 0);
}

static void ll_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr,
                       int to_set, struct fuse_file_info *fi)
{
    (void)attr;
    (void)to_set;
    ll_getattr(req, ino, fi);
}

/* What the script of this number says next (lock held). */
static int next_answer(struct script *s, int otherwise, int *delay_us)
{
    if (!s->n)
        return otherwise;
    int result = s->result[s->next];
    *delay_us = s->delay_us[s->next];
    if (s->next + 1 < s->n)
        s->next++;
    return result;
}

static void ll_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    int result = 0, delay = 0;
    pthread_mutex_lock(&lock);
    if (ino == INO_DISK)
        result = next_answer(&scripts[0], 0, &delay);
    pthread_mutex_unlock(&lock);
    fi->direct_io = 1;
    if (result < 0)
        fuse_reply_err(req, -result);
    else
        fuse_reply_open(req, fi);
}

static void ll_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
    (void)fi;
    char own[2048];
    const char *text = own;
    size_t at = (size_t)off, len = 0;
    pthread_mutex_lock(&lock);
    pd_settle(&driver, now_ns());
    if (ino == INO_LOG) {
        text = log_text;
        len = log_len;
    } else if (ino == INO_PROC) {
        if (!driven)
            driver.count = outstanding;
        len = pd_proc(&driver, own, sizeof own);
    } else if (ino == INO_HELD) {
        len = (size_t)snprintf(own, sizeof own, "%llu %llu\n",
                               (unsigned long long)driver.written,
                               (unsigned long long)driver.held);
    }
    size_t n = at < len ? len - at : 0;
    fuse_reply_buf(req, text + (n ? at : 0), n < size ? n : size);
    pthread_mutex_unlock(&lock);
}

/* "driver WORD [NUMBER]" (lock held). */
static int command(const char *text)
{
    char word[32] = "";
    int number = 0;
    if (sscanf(text, "driver %31s %d", word, &number) < 1)
        return -1;
    pd_settle(&driver, now_ns());
    if (!strcmp(word, "on"))
        driven = 1;
    else if (!strcmp(word, "reset"))
        pd_init(&driver);
    else if (!strcmp(word, "PP") || !strcmp(word, "PS"))
        driver.both_primary = word[1] == 'P';
    else if (!strcmp(word, "Connected"))
        pd_connect(&driver, PD_CONNECTED);
    else if (!strcmp(word, "WFConnection"))
        pd_connect(&driver, PD_WF_CONNECTION);
    else if (!strcmp(word, "StandAlone"))
        pd_connect(&driver, PD_STAND_ALONE);
    else if (!strcmp(word, "write"))
        pd_write(&driver);
    else if (!strcmp(word, "flush"))
        pd_flush(&driver, now_ns());
    else if (!strcmp(word, "ack"))
        pd_ack(&driver);
    else if (!strcmp(word, "done"))
        pd_done(&driver);
    else if (!strcmp(word, "ack_ms"))
        driver.ack_ms = number;
    else if (!strcmp(word, "done_ms"))
        driver.done_ms = number;
    else if (!strcmp(word, "limit_ms"))
        driver.limit_ms = number;
    else
        return -1;
    return 0;
}

static int parse(char *text)
{
    char *end;
    if (!strncmp(text, "driver ", 7))
        return command(text);
    long number = strtol(text, &end, 10);
    if (number < 0 || number >= 64 || *end != '=')
        return -1;
    struct script s = {.n = 0};
    while (*end == '=' || *end == ',') {
        if (s.n == ANSWERS)
            return -1;
        s.result[s.n] = (int)strtol(end + 1, &end, 10);
        if (*end == ':')
            s.delay_us[s.n] = (int)(strtod(end + 1, &end) * 1000);
        s.n++;
    }
    scripts[number] = s;
    return 0;
}

static void ll_write(fuse_req_t req, fuse_ino_t ino, const char *buf,
                     size_t size, off_t off, struct fuse_file_info *fi)
{
    (void)off;
    (void)fi;
    char text[512];
    size_t n = size < sizeof text ? size : sizeof text - 1;
    memcpy(text, buf, n);
    text[n] = '\0';
    pthread_mutex_lock(&lock);
    int bad = ino != INO_CONTROL || parse(text);
    pthread_mutex_unlock(&lock);
    if (bad)
        fuse_reply_err(req, EINVAL);
    else
        fuse_reply_write(req, size);
}

static void ll_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int cmd,
                     void *arg, struct fuse_file_info *fi, unsigned int flags,
                     const void *in, size_t in_size, size_t out_size)
{
    (void)fi;
    (void)flags;
    (void)in;
    (void)in_size;
    (void)out_size;
    int result = -ENOTTY, delay = 0, waits = 0;
    pthread_mutex_lock(&lock);
    if (ino == INO_DISK && log_len < sizeof log_text - 64)
        log_len += (size_t)snprintf(log_text + log_len, 64, "%u %llu\n", cmd,
                                    (unsigned long long)(uintptr_t)arg);
    if (ino == INO_DISK && driven) {
        pd_settle(&driver, now_ns());
        waits = cmd == 30;
        delay = waits ? driver.limit_ms * 1000 : 0;
        /* Any other number is a barrier, too. */
        result = waits ? pd_wait(&driver) : pd_send(&driver, now_ns());
    } else if (ino == INO_DISK && cmd > 0 && cmd < 64) {
        result = next_answer(&scripts[cmd], result, &delay);
    }
    pthread_mutex_unlock(&lock);
    /* A signal ends a wait in the driver, too, as EPROTO. */
    for (; delay > 0 && (!waits || result == -EAGAIN); delay -= 1000) {
        long us = delay < 1000 ? delay : 1000;
        nanosleep(&(struct timespec){0, us * 1000}, NULL);
        if (waits) {
            pthread_mutex_lock(&lock);
            pd_settle(&driver, now_ns());
            result = pd_wait(&driver);
            pthread_mutex_unlock(&lock);
            if (result != -EAGAIN)
                break;
        }
        if (fuse_req_interrupted(req)) {
            result = -EPROTO;
            break;
        }
    }
    if (waits && result == -EAGAIN)
        result = -EPROTO;
    pthread_mutex_lock(&lock);
    if (cmd == 30)
        outstanding = result != 0;
    pthread_mutex_unlock(&lock);
    if (result < 0)
        fuse_reply_err(req, -result);
    else
        fuse_reply_ioctl(req, result, NULL, 0);
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = ll_lookup,
    .getattr = ll_getattr,
    .setattr = ll_setattr,
    .open = ll_open,
    .read = ll_read,
    .write = ll_write,
    .ioctl = ll_ioctl,
};

int main(int argc, char **argv)
{
    char name[] = "ioctl_node";
    char *fuse_argv[] = {name, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(1, fuse_argv);
    if (argc != 2) {
        fprintf(stderr, "usage: ioctl_node MOUNTPOINT\n");
        return 2;
    }
    struct fuse_session *se =
        fuse_session_new(&args, &operations, sizeof operations, NULL);
    if (!se || fuse_set_signal_handlers(se) || fuse_session_mount(se, argv[1]))
        return 1;
    pd_init(&driver);
    puts("ready");
    fflush(stdout);
    struct fuse_loop_config config = {.clone_fd = 0, .max_idle_threads = 10};
    fuse_session_loop_mt(se, &config);
    fuse_session_unmount(se);
    fuse_remove_signal_handlers(se);
    fuse_session_destroy(se);
    return 0;
}
