/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A backup driven record by record, without a socket or a thread. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/backup.h"
#include "base/error.h"
#include "remus_testing.h"

int remus_test_backup_open(const struct remus_backup_config *config,
                           remus_sim *sim, remus_backup **out)
{
    return remus_backup_open_io(config, remus_sim_io(sim), out);
}

/* Encode and hand over one counted record, as the connection would. */
static int feed(remus_backup *b, struct remus_record *r,
                const unsigned char *payload)
{
    unsigned char header[REMUS_REC_HEADER];
    remus_test_backup_room(b); /* the newest word of credit has come */
    r->session = b->now.id;
    r->number = b->at.number;
    r->epoch = b->now.expect_epoch;
    r->payload_crc = r->length ? remus_crc32c(0, payload, r->length) : 0;
    remus_record_encode(r, header);
    return remus_backup_record(b, header, r, payload);
}

static int barrier(remus_backup *b, const void *tag, size_t tag_len, int flags,
                   uint64_t *epoch)
{
    unsigned char payload[REMUS_BARRIER_MAX];
    struct remus_record r = {
        .type = REMUS_REC_BARRIER,
        .flags = (uint8_t)flags,
        .length = remus_barrier_encode(NULL, tag, tag_len, payload),
        .offset = b->open ? b->open->records : 0,
        .range = b->open ? b->open->run : 0,
    };
    int err = feed(b, &r, payload);
    if (err)
        return err;
    *epoch = r.epoch;
    return remus_backup_ack(b, r.epoch);
}

int remus_test_backup_greet(remus_backup *b, uint32_t *content, uint64_t *held)
{
    struct remus_hello h = {.version = REMUS_WIRE_VERSION,
                            .ack = (uint8_t)b->ack,
                            .commit_by = (uint8_t)b->commit_by,
                            .sessions = b->super.sessions + 1,
                            .volumes = (uint16_t)b->disk_count};
    strcpy(h.resource, b->resource);
    for (unsigned int i = 0; i < b->disk_count; i++) {
        strcpy(h.name[i], b->disks[i].name);
        h.size[i] = b->disks[i].size;
    }
    struct remus_hello_reply reply;
    uint64_t session;
    remus_backup_session_end(b); /* of a link that was lost */
    int err = b->io->random(b->io, &session, sizeof session);
    if (!err)
        err = remus_backup_session_begin(b, &h, session, &reply);
    *content = err ? 0 : reply.content;
    *held = err ? 0 : reply.held;
    return err;
}

int remus_test_backup_catch_up(remus_backup *b)
{
    return remus_backup_catch_up(b, b->last_epoch + 1, 0);
}

int remus_test_backup_copy_begin(remus_backup *b, int keep)
{
    return remus_backup_copy_begin(b, keep);
}

int remus_test_backup_copy_write(remus_backup *b, unsigned int volume,
                                 const void *data, uint32_t len,
                                 uint64_t offset)
{
    const struct remus_record r = {.type = REMUS_REC_WRITE,
                                   .flags = REMUS_REC_DIRECT,
                                   .volume = (uint16_t)volume,
                                   .length = len,
                                   .offset = offset};
    return remus_backup_copy_data(b, &r, data);
}

int remus_test_backup_copy_zero(remus_backup *b, unsigned int volume,
                                uint64_t offset, uint64_t len)
{
    const struct remus_record r = {.type = REMUS_REC_ZERO,
                                   .flags = REMUS_REC_DIRECT,
                                   .volume = (uint16_t)volume,
                                   .range = len,
                                   .offset = offset};
    return remus_backup_copy_data(b, &r, NULL);
}

int remus_test_backup_copy_flush(remus_backup *b)
{
    return remus_backup_copy_flush(b);
}

int remus_test_backup_copy_end(remus_backup *b)
{
    return remus_backup_copy_end(b, b->last_epoch + 1);
}

int remus_test_backup_begin(remus_backup *b)
{
    uint32_t content;
    uint64_t held, epoch;
    int err = remus_test_backup_greet(b, &content, &held);
    if (err)
        return err;
    if (b->super.role == REMUS_SUPER_BACKUP)
        return remus_test_backup_catch_up(b);
    err = remus_backup_copy_begin(b, 0);
    if (!err)
        err = remus_backup_copy_end(b, b->last_epoch + 1);
    if (!err)
        err = barrier(b, NULL, 0, REMUS_CP_DISK_ONLY, &epoch);
    if (!err)
        err = remus_backup_commit_record(b, epoch, REMUS_WORD_PRIMARY);
    if (!err)
        err = remus_backup_apply(b);
    return err ? err : remus_backup_checkpoint(b);
}

int remus_test_backup_write(remus_backup *b, unsigned int volume,
                            const void *data, uint32_t len, uint64_t offset)
{
    struct remus_record r = {.type = REMUS_REC_WRITE,
                             .volume = (uint16_t)volume,
                             .length = len,
                             .offset = offset};
    return feed(b, &r, data);
}

int remus_test_backup_zero(remus_backup *b, unsigned int volume,
                           uint64_t offset, uint64_t len)
{
    struct remus_record r = {.type = REMUS_REC_ZERO,
                             .volume = (uint16_t)volume,
                             .range = len,
                             .offset = offset};
    return feed(b, &r, NULL);
}

int remus_test_backup_barrier(remus_backup *b, const void *tag, size_t tag_len,
                              int flags, uint64_t *epoch)
{
    if (tag_len > REMUS_TAG_MAX)
        return remus_fail(-EINVAL, "tag of %zu bytes", tag_len);
    return barrier(b, tag, tag_len, flags, epoch);
}

int remus_test_backup_commit(remus_backup *b, uint64_t epoch)
{
    return remus_backup_commit_record(b, epoch, REMUS_WORD_PRIMARY);
}

int remus_test_backup_apply(remus_backup *b)
{
    return remus_backup_apply(b);
}

int remus_test_backup_checkpoint(remus_backup *b)
{
    return remus_backup_checkpoint(b);
}

int64_t remus_test_backup_room(remus_backup *b)
{
    struct remus_news news;
    remus_backup_progress(b, &news); /* which announces it */
    return (int64_t)news.r.range - (int64_t)b->now.cost;
}

uint64_t remus_test_backup_head(remus_backup *b)
{
    return b->journal.head.seq ? b->journal.head_pos : 0;
}

int remus_test_backup_differs(remus_backup *b, unsigned int volume,
                              const void *data, uint32_t len, uint64_t offset)
{
    unsigned char hashes[REMUS_HASH_BLOCKS * REMUS_HASH_BYTES] = {0};
    unsigned char bits[REMUS_HASH_BLOCKS / 8];
    uint32_t blocks = (len + REMUS_BLOCK - 1) / REMUS_BLOCK;
    int differ = 0, err = remus_hash_blocks(data, len, REMUS_BLOCK, hashes);
    if (err)
        return err;
    const struct remus_record r = {.type = REMUS_REC_HASH,
                                   .volume = (uint16_t)volume,
                                   .offset = offset,
                                   .range = len,
                                   .length = blocks * REMUS_HASH_BYTES};
    err = remus_backup_compare(b, &r, hashes, bits);
    for (uint32_t i = 0; !err && i < blocks; i++)
        differ += bits[i / 8] >> i % 8 & 1;
    return err ? err : differ;
}

void remus_test_backup_abandon(remus_backup *b)
{
    if (b)
        remus_backup_free(b);
}

void remus_test_backup_store_current(remus_backup *b)
{
    remus_backup_store_current(b, 0);
}

void remus_test_backup_forget_answer(remus_backup *b)
{
    pthread_mutex_lock(&b->lock);
    b->authority = (struct remus_claim){.stepped_down = 0};
    b->given_epoch = 0;
    pthread_mutex_unlock(&b->lock);
}
