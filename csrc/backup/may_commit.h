/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who may commit what, on the backup.  It is decided here and nowhere else;
 * the primary's half is remus_commit_step() in primary/steps.h.
 *
 *                                      commit_by = "primary"  "backup"
 *   PRIMARY, checkpoints with memory   yes                    not its word
 *   PRIMARY, disk-only ones            yes                    yes
 *   OVER, any                          yes                    yes
 *   BACKUP, any                        yes                    yes
 *
 * PRIMARY is the word of a primary: what its toolstack said, or, for what an
 * ioctl 30 was told and for its own checkpoints, what its engine says.  OVER
 * is the engine's word for what no call can name any more: prepared by a
 * session that is over, after its grace, or by an earlier process.  BACKUP is
 * a call on the backup's host.  Whoever it is: nothing newer than a pin.
 */
#ifndef REMUS_BACKUP_MAY_COMMIT_H
#define REMUS_BACKUP_MAY_COMMIT_H

#include <stdint.h>

enum remus_word {
    REMUS_WORD_PRIMARY,
    REMUS_WORD_OVER,
    REMUS_WORD_BACKUP,
    REMUS_WORDS /* how many there are */
};

enum remus_commit_answer {
    REMUS_COMMIT_YES,
    REMUS_COMMIT_NOT_ITS_WORD, /* it does not count */
    REMUS_COMMIT_PINNED        /* somebody holds the memory of an older one */
};

/* What is asked. */
struct remus_commit_case {
    int by_backup; /* commit_by = "backup" */
    enum remus_word word;
    int memory; /* what would be committed is not all disk-only */
    uint64_t epoch;
    uint64_t pin; /* 0: none */
};

enum remus_commit_answer
remus_backup_may_commit(const struct remus_commit_case *c);

#endif
