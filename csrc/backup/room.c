/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How much of the journal a primary may spend: credit, the reserve for
 * barriers and commits, and whether a session can begin at all (lock held).
 */
#include "backup/backup.h"

/* Segments that only barriers and commits may use: room for as many of them
 * as may be without an ack, but no more than a quarter of the journal. */
static uint64_t reserve(const remus_backup *b)
{
    const struct remus_record barrier = {.type = REMUS_REC_BARRIER};
    uint64_t worth = remus_journal_segment_worth(&b->journal);
    uint64_t want =
        (REMUS_RESERVED_BARRIERS * remus_record_cost(&barrier) + worth - 1) /
        worth;
    uint64_t most = b->journal.segments / 4;
    return want < most ? want : most;
}

int remus_backup_short_of_room(const remus_backup *b)
{
    return remus_journal_unused(&b->journal) <= reserve(b);
}

/* Room that commits still need: each epoch may get one of its own.
 * (lock held) */
static uint64_t commits_to_come(const remus_backup *b)
{
    size_t low = 0, high = b->epoch_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (b->epochs[middle]->number > b->committed)
            high = middle;
        else
            low = middle + 1;
    }
    return (b->epoch_count - low) * REMUS_COMMIT_COST;
}

/*
 * What the primary may spend.  Beyond it, barriers may use the reserve (in
 * the hello reply), so for both together:
 *
 *     credit + reserve = cost so far + room of unused segments
 *                        - room for the commits to come
 *
 * A barrier pays for itself and for its commit: by it the right side does not
 * grow, so what is held back for commits is never given out again, and every
 * prepared epoch can be committed, one by one, in a journal full of them.
 */
uint64_t remus_backup_credit(const remus_backup *b)
{
    uint64_t worth = remus_journal_segment_worth(&b->journal);
    uint64_t all = b->now.cost + remus_journal_unused(&b->journal) * worth;
    uint64_t kept = reserve(b) * worth + commits_to_come(b);
    return all > kept ? all - kept : 0;
}

/* Can no session begin?  It needs a segment of its own beyond the reserve,
 * and room for a record (lock held). */
int remus_backup_is_full(const remus_backup *b)
{
    const struct remus_record r = {.type = REMUS_REC_WRITE,
                                   .length = b->journal.max_payload};
    uint64_t credit = remus_backup_credit(b);
    return remus_backup_short_of_room(b) || credit < b->now.cost ||
           credit - b->now.cost < remus_record_cost(&r);
}

int remus_backup_pin_holds(const remus_backup *b)
{
    return b->pin && b->prepared > b->pin;
}

/* What is left of the reserve when a session begins: barriers of earlier
 * ones may have used it, and the room of commits is never in it.
 * (lock held) */
uint64_t remus_backup_reserve_left(const remus_backup *b)
{
    uint64_t worth = remus_journal_segment_worth(&b->journal);
    uint64_t all = remus_journal_unused(&b->journal) * worth;
    uint64_t commits = commits_to_come(b), want = reserve(b) * worth;
    uint64_t left = all > commits ? all - commits : 0;
    return left < want ? left : want;
}

/* Credit that an epoch can have once all that is committed is applied; what
 * is only prepared keeps its segments (lock held). */
uint64_t remus_backup_capacity(const remus_backup *b)
{
    uint64_t kept = 0;
    for (size_t i = 0; !kept && i < b->epoch_count; i++)
        if (b->epochs[i]->number > b->committed)
            kept = b->journal.next_seq - b->epochs[i]->first_seq;
    kept += reserve(b) + 1; /* and what is written to now */
    return kept < b->journal.segments
               ? (b->journal.segments - kept) *
                     remus_journal_segment_worth(&b->journal)
               : 0;
}
