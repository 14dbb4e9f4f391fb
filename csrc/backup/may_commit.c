/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Who may commit what: the table of may_commit.h. */
#include "backup/may_commit.h"

/* [word][commit_by = "backup"][with memory] */
static const unsigned char counts[REMUS_WORDS][2][2] = {
    [REMUS_WORD_PRIMARY] = {{1, 1}, {1, 0}},
    [REMUS_WORD_OVER] = {{1, 1}, {1, 1}},
    [REMUS_WORD_BACKUP] = {{1, 1}, {1, 1}},
};

enum remus_commit_answer
remus_backup_may_commit(const struct remus_commit_case *c)
{
    if (c->word >= REMUS_WORDS ||
        !counts[c->word][c->by_backup != 0][c->memory != 0])
        return REMUS_COMMIT_NOT_ITS_WORD;
    return c->pin && c->epoch > c->pin ? REMUS_COMMIT_PINNED
                                       : REMUS_COMMIT_YES;
}
