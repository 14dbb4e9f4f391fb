/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The answer to a primary of which nothing is taken, because this side went
 * on by itself: it was promoted, or is a primary now.  It tells what that one
 * must know to find out what it is: failed away from, or split brain.
 *
 *   ours, compared with theirs      answer
 *   theirs is an ancestor of ours   PROMOTED: at `held`, of its generation
 *   both have a common ancestor     SPLIT: from `origin`
 *   nothing in common               PROMOTED, of a generation it does not know
 *   ours is an ancestor of theirs   SPLIT, if what is held here is more than
 *                                   it went on from
 *   else, and the same              none: -EROFS, one of the two is to become
 *                                   the backup
 */
#ifndef REMUS_BACKUP_ANSWER_H
#define REMUS_BACKUP_ANSWER_H

#include "format/lineage.h"
#include "format/record.h"

/* `held`: the newest epoch of ours that is here; 0: not asked.
 * 0: *reply is the answer; -EROFS, with a text. */
int remus_answer_no(const struct remus_lineage *ours, uint64_t held,
                    const struct remus_lineage *theirs,
                    struct remus_hello_reply *reply);

#endif
