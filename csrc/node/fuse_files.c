/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The table of open files.  An entry is named by its index and by a serial
 * that no other opening ever had, so that a request for one that is closed
 * never meets the next one in its place; `fh` is both.  There is no pointer
 * in it, and its key is the request that opened it: it is in memory that can
 * outlive the process.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "node/fuse_int.h"

int remus_files_init(remus_export *e)
{
    struct remus_files *t = &e->files;
    t->v = e->kept.files;
    t->text = calloc(REMUS_FILES_MAX, sizeof *t->text);
    return t->text ? 0 : -ENOMEM;
}

void remus_files_free(remus_export *e)
{
    struct remus_files *t = &e->files;
    for (uint32_t i = 0; t->v && i < e->kept.head->files_used; i++) {
        if (t->v[i].serial && t->v[i].pidfd >= 0)
            close(t->v[i].pidfd);
        if (t->text)
            free(t->text[i].bytes);
    }
    free(t->text);
}

struct remus_file *remus_file_open(remus_export *e, fuse_req_t req, int volume,
                                   int writes, uint64_t unique)
{
    int32_t opener =
        writes ? remus_process_of((int32_t)fuse_req_ctx(req)->pid, 0) : 0;
    struct remus_files *t = &e->files;
    struct remus_kept_head *head = e->kept.head;
    struct remus_file *f = NULL;
    pthread_mutex_lock(&e->lock);
    if (t->free) {
        f = &t->v[t->free - 1];
        t->free = f->next_free;
    } else if (head->files_used < REMUS_FILES_MAX) {
        f = &t->v[head->files_used++];
    }
    if (f) {
        if (++head->file_serials == 0) /* 0 is nobody's */
            head->file_serials = 1;
        *f = (struct remus_file){.volume = volume,
                                 .writes = writes,
                                 .opened = unique,
                                 .opener = opener,
                                 .pidfd = -1};
        /* Whoever finds it finds all of it. */
        atomic_signal_fence(memory_order_seq_cst);
        f->serial = head->file_serials;
    }
    pthread_mutex_unlock(&e->lock);
    return f;
}

uint64_t remus_file_handle(const remus_export *e, const struct remus_file *f)
{
    return (uint64_t)f->serial << 32 | (uint64_t)(f - e->files.v);
}

struct remus_file *remus_file_of(remus_export *e,
                                 const struct fuse_file_info *fi)
{
    uint32_t index = (uint32_t)fi->fh, serial = (uint32_t)(fi->fh >> 32);
    if (index >= REMUS_FILES_MAX || !serial)
        return NULL;
    pthread_mutex_lock(&e->lock);
    int open = e->files.v[index].serial == serial;
    pthread_mutex_unlock(&e->lock);
    return open ? &e->files.v[index] : NULL;
}

void remus_file_set_text(remus_export *e, const struct remus_file *f,
                         char *bytes, size_t len)
{
    pthread_mutex_lock(&e->lock);
    e->files.text[f - e->files.v] = (struct remus_text){bytes, len};
    pthread_mutex_unlock(&e->lock);
}

size_t remus_file_read_text(remus_export *e, const struct remus_file *f,
                            void *buf, size_t len, uint64_t at)
{
    pthread_mutex_lock(&e->lock);
    const struct remus_text *text = &e->files.text[f - e->files.v];
    uint64_t left = at < text->len ? text->len - at : 0;
    size_t n = left < len ? (size_t)left : len;
    if (n)
        memcpy(buf, text->bytes + at, n);
    pthread_mutex_unlock(&e->lock);
    return n;
}

void remus_file_close(remus_export *e, struct remus_file *f)
{
    struct remus_files *t = &e->files;
    pthread_mutex_lock(&e->lock);
    struct remus_text *text = &t->text[f - t->v];
    char *bytes = text->bytes;
    *text = (struct remus_text){NULL, 0};
    int pidfd = f->pidfd;
    f->serial = 0;
    atomic_signal_fence(memory_order_seq_cst);
    *f = (struct remus_file){.next_free = t->free, .pidfd = -1};
    t->free = (uint32_t)(f - t->v) + 1;
    pthread_mutex_unlock(&e->lock);
    free(bytes);
    if (pidfd >= 0)
        close(pidfd);
}

struct remus_file *remus_file_opened_by(remus_export *e, uint64_t unique)
{
    struct remus_file *found = NULL;
    pthread_mutex_lock(&e->lock);
    for (uint32_t i = 0; i < e->kept.head->files_used && unique; i++)
        if (e->files.v[i].serial && e->files.v[i].opened == unique)
            found = &e->files.v[i];
    pthread_mutex_unlock(&e->lock);
    return found;
}

int remus_file_has_text(remus_export *e, const struct remus_file *f)
{
    pthread_mutex_lock(&e->lock);
    int has = e->files.text[f - e->files.v].bytes != NULL;
    pthread_mutex_unlock(&e->lock);
    return has;
}

void remus_files_adopt(remus_export *e)
{
    struct remus_files *t = &e->files;
    pthread_mutex_lock(&e->lock);
    t->free = 0;
    for (uint32_t i = e->kept.head->files_used; i-- > 0;) {
        struct remus_file *f = &t->v[i];
        f->pidfd = -1; /* of a process that is gone */
        f->tid = 0;
        if (f->serial)
            continue;
        f->next_free = t->free;
        t->free = i + 1;
    }
    pthread_mutex_unlock(&e->lock);
}

void remus_file_waits(remus_export *e, struct remus_file *f, int32_t tid)
{
    pthread_mutex_lock(&e->lock);
    int32_t pid = f->pid;
    int known = f->pidfd >= 0 || !f->bound;
    pthread_mutex_unlock(&e->lock);
    /* Who waits lives: its process has not been another's meanwhile. */
    if (known || !pid || remus_process_of(tid, pid) != pid)
        return;
    int pidfd = remus_process_open(pid);
    pthread_mutex_lock(&e->lock);
    int unused = f->pidfd >= 0 || f->pid != pid ? pidfd : -1;
    if (unused < 0)
        f->pidfd = pidfd;
    pthread_mutex_unlock(&e->lock);
    if (unused >= 0)
        close(unused);
}

/* ---- whose 20 it is ---------------------------------------------------------- */

/* The id of the session of a process; 0: it has none (export.lock held). */
static int find_session(const remus_export *e, int32_t pid,
                        unsigned char id[REMUS_SESSION_BYTES])
{
    const struct remus_files *t = &e->files;
    for (uint32_t i = 0; i < e->kept.head->files_used; i++)
        if (t->v[i].serial && t->v[i].bound && t->v[i].pid == pid) {
            memcpy(id, t->v[i].ioctl.session, REMUS_SESSION_BYTES);
            return 1;
        }
    return 0;
}

int remus_file_sent_by(remus_export *e, struct remus_file *f, int32_t tid)
{
    pthread_mutex_lock(&e->lock);
    int32_t before = f->pid;
    int known = f->bound && tid && f->tid == tid;
    pthread_mutex_unlock(&e->lock);
    if (known)
        return 0;
    unsigned char fresh[REMUS_SESSION_BYTES];
    remus_io *io = remus_io_system();
    int err = io->random(io, fresh, sizeof fresh);
    if (err)
        return err;
    int32_t pid = remus_process_of(tid, before);
    int pidfd = remus_process_open(pid);
    pthread_mutex_lock(&e->lock);
    /* Another process goes on with this open file: the session is the same,
     * but this one's life is what counts now. */
    int old = f->pidfd;
    f->pidfd = pidfd;
    f->pid = pid;
    f->tid = tid;
    if (!f->bound && !find_session(e, pid, f->ioctl.session))
        memcpy(f->ioctl.session, fresh, sizeof fresh);
    atomic_signal_fence(memory_order_seq_cst);
    f->bound = 1;
    pthread_mutex_unlock(&e->lock);
    if (old >= 0)
        close(old);
    return 0;
}

int remus_file_lives(remus_export *e, const struct remus_file *f)
{
    pthread_mutex_lock(&e->lock);
    int lives = remus_process_lives(f->pidfd);
    pthread_mutex_unlock(&e->lock);
    return lives;
}
