/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A backup: open, close, and what it tells.  The parts are in backup.h. */
#include "backup/backup.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "link/config.h"
#include "base/error.h"
#include "base/sized.h"
#include "base/entry.h"
#include "base/random.h"
#include "format/primary_state.h"

#define DEFAULT_JOURNAL (512ull << 20)
#define DEFAULT_SEGMENT (16ull << 20)
#define DEFAULT_STALE_S 60u

/* ---- open and close ------------------------------------------------ */

static int make_super(remus_backup *b,
                      const struct remus_primary_state *primary)
{
    struct remus_super *s = &b->super;
    uint64_t serial = s->serial;
    uint32_t role = s->role;
    memset(s, 0, sizeof *s);
    s->serial = serial;
    if (primary) {
        s->role = role; /* what was there, if anything was */
        int no = remus_super_change(s, REMUS_ROLE_FIND);
        if (no)
            return no;
        s->lineage = primary->lineage;
        /* Every number below the limit may have been used. */
        s->applied = s->base = s->last_epoch = primary->limit - 1;
        s->committed = s->applied;
        s->cp.epoch = s->applied;
    }
    /* A journal directory may hold segments of an earlier life: start the
     * sequence where they can't be. */
    uint32_t start;
    int err = remus_random(b->io, &start, sizeof start, "segments");
    if (err)
        return err;
    s->tail = ((uint64_t)start << 16) + 1;
    s->next_number = 1;
    s->segment_bytes = b->journal.segment_bytes;
    s->segments = b->journal.segments;
    /* Both slots, so that later ones need no room on a disk that is full. */
    return remus_super_store(b->io, b->super_file, b->super_path, b->resource,
                             REMUS_STORE_DECISION, s);
}

/* Is there a superblock?  1; 0: the state is being made; -errno. */
static int load_super(remus_backup *b)
{
    b->super_file = b->io->open(b->io, b->super_path, O_RDWR | O_CREAT);
    if (b->super_file < 0)
        return remus_fail(b->super_file, "open %s: %s", b->super_path,
                          remus_errno_text(b->super_file));
    int err = remus_super_load(b->io, b->super_file, b->super_path,
                               b->resource, &b->super);
    return err == -ENOENT ? 0 : err ? err : 1;
}

/*
 * Was this side a primary since the superblock was stored?  1: then its disks
 * are what `primary` says; 0 no; -errno.
 */
static int was_primary(remus_backup *b, int there,
                       struct remus_primary_state *primary)
{
    if (b->read_only && there && b->super.role != REMUS_SUPER_LEFT)
        return 0;
    if (b->read_only)
        return remus_fail(-EROFS, there ? "this side was promoted and is the "
                                          "primary now"
                                        : "there is no state of a backup");
    if (there && b->super.role == REMUS_SUPER_PROMOTED && b->discard_local) {
        /* A guest ran on the plain images. */
        remus_super_descend(&b->super, &primary->lineage);
        primary->limit = b->super.last_epoch + 1;
        return 1;
    }
    if (there && b->super.role != REMUS_SUPER_LEFT)
        return 0;
    int err =
        remus_primary_state_read(b->io, b->state_dir, b->resource, primary);
    if (err == -ENOENT && there)
        return remus_fail(err,
                          "%s says that a primary took this side over, but "
                          "its primary.state is missing: restore it, or "
                          "empty the state directory and let the other side "
                          "copy its disks again",
                          b->super_path);
    return err == -ENOENT ? 0 : err ? err : 1;
}

/* The journal is open: make the superblock, or see that they fit. */
static int check_super(remus_backup *b, int there,
                       const struct remus_primary_state *primary)
{
    int err = there ? 0 : make_super(b, primary);
    if (err)
        return err;
    /* Also if it was there: who made it may have been killed before this.
     * The journal directory's own name may stand in it, too. */
    err = b->io->sync_dir(b->io, b->state_dir);
    if (err)
        return remus_fail(err, "sync directory %s: %s", b->state_dir,
                          remus_errno_text(err));
    return 0;
}

static char *join_path(const char *dir, const char *name)
{
    size_t n = strlen(dir) + strlen(name) + 2;
    char *path = malloc(n);
    if (path)
        snprintf(path, n, "%s/%s", dir, name);
    return path;
}

/* Are the disks, taken together, as large as they were?  (A larger one may
 * have been given to both sides.) */
static int check_disks(remus_backup *b)
{
    unsigned char id[REMUS_NAME_MAX + 1 + 8];
    uint64_t total = 0;
    uint32_t crc = 0;
    for (unsigned int i = 0; i < b->disk_count; i++) {
        const struct remus_disk *d = &b->disks[i];
        memset(id, 0, sizeof id);
        memcpy(id, d->name, strlen(d->name));
        remus_put64(id + REMUS_NAME_MAX + 1, d->size);
        crc = remus_crc32c(crc, id, sizeof id);
        total += d->size;
    }
    b->journal.volumes = crc ? crc : 1;
    if (b->super.role == REMUS_SUPER_PROMOTED || b->read_only)
        return 0;
    b->disk_bytes = total;
    int counts = remus_super_follows(b->super.role) ||
                 b->super.role == REMUS_SUPER_PROMOTING;
    if (!counts || total >= b->super.bytes)
        return 0;
    return remus_fail(-EINVAL,
                      "the volumes have %llu bytes together, and had %llu "
                      "when the last checkpoint was stored: restore what is "
                      "missing; only if it is lost, empty state and journal "
                      "directory and let the primary copy the disks again",
                      (unsigned long long)total,
                      (unsigned long long)b->super.bytes);
}

static int open_disks(remus_backup *b,
                      const struct remus_backup_config *config)
{
    for (unsigned int i = 0; i < b->disk_count; i++) {
        struct remus_disk *d = &b->disks[i];
        d->name = strdup(config->volumes[i].name);
        d->path = strdup(config->volumes[i].path);
        if (!d->name || !d->path)
            return remus_fail(-ENOMEM, "out of memory");
        /* The guest may own them by now. */
        if (b->super.role == REMUS_SUPER_PROMOTED || b->read_only) {
            d->size = config->volumes[i].size;
            continue;
        }
        d->file = remus_disk_open(b->io, &config->volumes[i], &d->size);
        if (d->file < 0)
            return d->file;
    }
    return check_disks(b);
}

static int allocate(remus_backup *b, const struct remus_backup_config *c,
                    remus_io *io)
{
    remus_entry_init(&b->entry);
    b->io = io;
    b->ack = c->ack;
    b->commit_by = c->commit_by;
    b->discard_local = c->discard_local;
    b->read_only = c->read_only;
    b->stale_s = c->stale_ms == UINT32_MAX ? UINT64_MAX
                 : c->stale_ms             ? (c->stale_ms + 999u) / 1000u
                                           : DEFAULT_STALE_S;
    b->lock_file = b->super_file = b->journal_lock = -1;
    b->events.fd = -1;
    pthread_mutex_init(&b->apply_lock, NULL);
    pthread_mutex_init(&b->view_lock, NULL);
    pthread_mutex_init(&b->lock, NULL);
    pthread_mutex_init(&b->shown_lock, NULL);
    b->disks = calloc(c->volume_count, sizeof *b->disks);
    b->resource = strdup(c->resource);
    b->state_dir = strdup(c->state_dir);
    b->super_path = join_path(c->state_dir, "backup.state");
    b->buffer = aligned_alloc(REMUS_PAGE, REMUS_APPLY_BYTES);
    b->run_dir = c->run_dir ? strdup(c->run_dir) : NULL;
    b->psk_file = c->psk_file ? strdup(c->psk_file) : NULL;
    b->psk_identity = c->psk_identity ? strdup(c->psk_identity) : NULL;
    if (!b->disks || !b->resource || !b->state_dir || !b->super_path ||
        !b->buffer || (c->psk_file && !b->psk_file) ||
        (c->run_dir && !b->run_dir) || (c->psk_identity && !b->psk_identity))
        return remus_fail(-ENOMEM, "out of memory");
    b->disk_count = c->volume_count;
    for (unsigned int i = 0; i < b->disk_count; i++)
        b->disks[i].file = -1;
    return remus_events_open(&b->events);
}

static struct remus_limits
wanted_limits(const struct remus_backup_config *config)
{
    return (struct remus_limits){
        config->journal_bytes ? config->journal_bytes : DEFAULT_JOURNAL,
        config->segment_bytes ? config->segment_bytes : DEFAULT_SEGMENT};
}

static int open_journal(remus_backup *b,
                        const struct remus_backup_config *config, int there)
{
    char *dir = config->journal_dir ? strdup(config->journal_dir)
                                    : join_path(config->state_dir, "journal");
    if (!dir)
        return remus_fail(-ENOMEM, "out of memory");
    struct remus_limits limits = wanted_limits(config);
    int err = remus_journal_check_limits(limits.total, limits.segment);
    int reshapes = there && b->super.reshape && !b->read_only;
    /* As it was made; see resize.c. */
    if (there && !reshapes)
        limits = remus_backup_limits(&b->super);
    struct remus_journal_name name = {.resource = b->resource,
                                      .segment_bytes = limits.segment};
    /* What was promoted needs nothing of its journal any more. */
    int fresh = !there || b->super.role == REMUS_SUPER_PROMOTED;
    if (!err) {
        b->journal_lock =
            remus_journal_claim(b->io, b->state_dir, dir, fresh, name.id);
        err = b->journal_lock < 0 ? b->journal_lock : 0;
    }
    if (!err)
        err = remus_journal_open(&b->journal, b->io, &b->lock, dir, &name,
                                 limits.total,
                                 reshapes ? REMUS_JOURNAL_REMAKE : fresh);
    free(dir);
    return err;
}

int remus_backup_open_io(const struct remus_backup_config *config,
                         remus_io *io, remus_backup **out)
{
    *out = NULL;
    int err = remus_config_check(config->resource, config->state_dir,
                                 config->volumes, config->volume_count,
                                 config->ack, config->commit_by);
    struct remus_primary_state primary = {0};
    if (err)
        return err;
    remus_backup *b = calloc(1, sizeof *b);
    if (!b)
        return remus_fail(-ENOMEM, "resource %s: out of memory",
                          config->resource);
    err = allocate(b, config, io);
    if (!err && io->boot_id(io, b->boot))
        memset(b->boot, 0, sizeof b->boot); /* the wall clock is there */
    if (!err) {
        b->lock_file = remus_state_lock(io, b->resource, b->state_dir);
        err = b->lock_file < 0 ? b->lock_file : 0;
    }
    int there = err ? err : load_super(b);
    int foreign = there < 0 ? there : was_primary(b, there, &primary);
    if (foreign > 0)
        there = 0;
    err = foreign < 0 ? foreign : open_journal(b, config, there);
    if (!err)
        err = check_super(b, there, foreign ? &primary : NULL);
    if (!err)
        err = open_disks(b, config);
    if (!err)
        err = remus_backup_recover(b);
    b->current = b->super.current;
    if (!err)
        remus_backup_foreign_look(b);
    if (!err)
        err = remus_backup_resize(b, wanted_limits(config));
    if (!err)
        err = remus_backup_marks_open(b);
    if (err) {
        remus_fail_in(err, "backup of %s", config->resource);
        remus_backup_close(b);
        return err;
    }
    pthread_mutex_lock(&b->lock);
    b->opened = 1;
    remus_backup_unlock(b);
    /* To show while it can't be looked at. */
    struct remus_status first = {.struct_size = sizeof first};
    (void)remus_backup_status(b, &first);
    *out = b;
    return 0;
}

int remus_backup_open(const struct remus_backup_config *config,
                      remus_backup **out)
{
    int no = remus_given(out, "backup_open", "out");
    if (no)
        return no;
    *out = NULL;
    struct remus_backup_config ours;
    struct remus_volume volumes[REMUS_VOLUMES_MAX];
    no = remus_sized_take(&ours, sizeof ours, config, "backup_open", "config");
    if (!no)
        no = remus_config_volumes(&ours.volumes, ours.volume_count, volumes,
                                  "backup_open");
    if (no)
        return no;
    return remus_backup_open_io(&ours, remus_io_system(), out);
}

void remus_backup_free(remus_backup *b)
{
    remus_journal_abandon(&b->journal);
    if (b->open)
        remus_epoch_give(b, b->open);
    while (b->epoch_count)
        remus_epoch_give(b, b->epochs[--b->epoch_count]);
    while (b->free_epochs) {
        struct remus_epoch *e = b->free_epochs;
        b->free_epochs = e->next_free;
        remus_extents_free(&e->extents);
        free(e);
    }
    free(b->epochs);
    remus_extents_free(&b->merge);
    for (unsigned int i = 0; i < b->disk_count; i++) {
        free(b->disks[i].name);
        free(b->disks[i].path);
    }
    free(b->disks);
    free(b->resource);
    free(b->state_dir);
    free(b->super_path);
    free(b->run_dir);
    remus_dirty_left_free(&b->left);
    free(b->psk_file);
    free(b->psk_identity);
    free(b->buffer);
    remus_events_close(&b->events);
    pthread_mutex_destroy(&b->lock);
    pthread_mutex_destroy(&b->shown_lock);
    pthread_mutex_destroy(&b->apply_lock);
    pthread_mutex_destroy(&b->view_lock);
    free(b);
}

void remus_backup_close(remus_backup *b)
{
    if (!b || remus_enter(b, "backup_close"))
        return;
    char *text = strdup(remus_last_error());
    remus_backup_net_stop(b);
    /* Nothing depends on this: recovery would do the same.  Of a backup that
     * did not recover nothing may be stored. */
    if (b->opened && !b->read_only && !b->failed &&
        b->authority.who != REMUS_DECIDES_OURS && remus_backup_apply(b) == 0 &&
        remus_backup_checkpoint(b) == 0)
        remus_backup_foreign_rest(b, 1);
    for (unsigned int i = 0; i < b->disk_count; i++)
        if (b->disks[i].file >= 0)
            b->io->close(b->io, b->disks[i].file);
    remus_journal_close(&b->journal);
    if (b->journal_lock >= 0)
        b->io->close(b->io, b->journal_lock);
    if (b->super_file >= 0)
        b->io->close(b->io, b->super_file);
    if (b->lock_file >= 0)
        b->io->close(b->io, b->lock_file);
    remus_backup_free(b);
    remus_fail(0, "%s", text ? text : "");
    free(text);
}

/* ---- what it tells ----------------------------------------------------- */

int remus_backup_event_fd(remus_backup *b)
{
    int no = remus_enter(b, "backup_event_fd");
    return no ? no : b->events.fd;
}

int remus_backup_events(remus_backup *b)
{
    int no = remus_enter(b, "backup_events");
    return no ? no : (int)remus_events_take(&b->events);
}

int remus_backup_log(remus_backup *b, uint64_t after,
                     struct remus_log_entry *out, unsigned int cap,
                     uint64_t *next, uint64_t *lost)
{
    int no = remus_enter(b, "backup_log");
    if (!no)
        no = remus_log_given(out, cap, next, lost, "backup_log");
    if (no)
        return no;
    /* What is held up has not happened yet. */
    if (remus_backup_try_lock(b)) {
        *next = after;
        *lost = 0;
        return 0;
    }
    int n = remus_log_read(&b->log, after, out, cap, next, lost);
    remus_backup_unlock(b);
    return n;
}

int remus_backup_status(remus_backup *b, struct remus_status *status)
{
    int no = remus_enter(b, "backup_status");
    if (!no)
        no = remus_sized_check(status, sizeof *status, "backup_status",
                               "status");
    if (no)
        return no;
    struct remus_status net = {0}, now;
    remus_backup_net_status(b, &net);
    remus_backup_look_at(b, &net, &now);
    remus_sized_give(status, &now, sizeof now);
    return 0;
}
