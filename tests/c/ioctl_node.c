/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A FUSE mount whose file `disk` answers the checkpoint ioctls as told, so
 * that every failure of a protocol D driver can be met through real ioctl(2)
 * calls.  Usage: ioctl_node MOUNTPOINT
 *
 * Written to `control`: "NUMBER=RESULT:DELAY_MS[,RESULT:DELAY_MS...]", e.g.
 * "30=-71:300,0:0": the answers to the next calls of that number; the last
 * one is repeated.  A negative result is -errno; a signal to the caller ends
 * the delay, with EPROTO.  Number 0, which is no ioctl here, stands for
 * opening `disk`.  `log` has a line for each ioctl that arrived: number and
 * argument.
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

#define ANSWERS 16
#define INO_DISK 2
#define INO_CONTROL 3
#define INO_LOG 4

struct script {
    int result[ANSWERS];
    int delay_ms[ANSWERS];
    int n, next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct script scripts[64];
static char log_text[65536];
static size_t log_len;

static const char *const names[] = {"disk", "control", "log"};

static int fill(fuse_ino_t ino, struct stat *st)
{
    memset(st, 0, sizeof *st);
    st->st_ino = ino;
    st->st_nlink = 1;
    if (ino == FUSE_ROOT_ID)
        st->st_mode = S_IFDIR | 0755;
    else if (ino >= INO_DISK && ino <= INO_LOG)
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
    for (unsigned int i = 0; i < 3; i++)
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
static int next_answer(struct script *s, int otherwise, int *delay_ms)
{
    if (!s->n)
        return otherwise;
    int result = s->result[s->next];
    *delay_ms = s->delay_ms[s->next];
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
    size_t at = (size_t)off;
    pthread_mutex_lock(&lock);
    size_t n = ino == INO_LOG && at < log_len ? log_len - at : 0;
    fuse_reply_buf(req, log_text + at, n < size ? n : size);
    pthread_mutex_unlock(&lock);
}

static int parse(char *text)
{
    char *end;
    long number = strtol(text, &end, 10);
    if (number < 0 || number >= 64 || *end != '=')
        return -1;
    struct script s = {.n = 0};
    while (*end == '=' || *end == ',') {
        if (s.n == ANSWERS)
            return -1;
        s.result[s.n] = (int)strtol(end + 1, &end, 10);
        if (*end == ':')
            s.delay_ms[s.n] = (int)strtol(end + 1, &end, 10);
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
    int result = -ENOTTY, delay = 0;
    pthread_mutex_lock(&lock);
    if (ino == INO_DISK && log_len < sizeof log_text - 64)
        log_len += (size_t)snprintf(log_text + log_len, 64, "%u %llu\n", cmd,
                                    (unsigned long long)(uintptr_t)arg);
    if (ino == INO_DISK && cmd > 0 && cmd < 64)
        result = next_answer(&scripts[cmd], result, &delay);
    pthread_mutex_unlock(&lock);
    /* A signal ends a wait in the driver, too, as EPROTO. */
    for (; delay > 0; delay--) {
        nanosleep(&(struct timespec){0, 1000000L}, NULL);
        if (fuse_req_interrupted(req)) {
            result = -EPROTO;
            break;
        }
    }
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
    if (!se || fuse_set_signal_handlers(se) ||
        fuse_session_mount(se, argv[1]))
        return 1;
    puts("ready");
    fflush(stdout);
    struct fuse_loop_config config = {.clone_fd = 0, .max_idle_threads = 10};
    fuse_session_loop_mt(se, &config);
    fuse_session_unmount(se);
    fuse_remove_signal_handlers(se);
    fuse_session_destroy(se);
    return 0;
}
