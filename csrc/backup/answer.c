/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* To whom nothing is taken of; see answer.h. */
#include "backup/answer.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"

/* The newest generation that both descend from. */
static void common(const struct remus_lineage *ours,
                   const struct remus_lineage *theirs,
                   struct remus_hello_reply *reply)
{
    for (uint32_t i = 0; i < ours->count; i++) {
        uint64_t end;
        if (!remus_lineage_has(theirs, ours->ancestor[i].id, &end))
            continue;
        memcpy(reply->origin, ours->ancestor[i].id, REMUS_ID_BYTES);
        reply->held = ours->ancestor[i].end;
        return;
    }
}

int remus_answer_no(const struct remus_lineage *ours, uint64_t held,
                    const struct remus_lineage *theirs,
                    struct remus_hello_reply *reply)
{
    char id[9];
    memcpy(reply->generation, ours->id, REMUS_ID_BYTES);
    switch (remus_lineage_compare(ours, theirs)) {
    case REMUS_RELATION_AHEAD:
        reply->content = REMUS_CONTENT_PROMOTED;
        memcpy(reply->origin, theirs->id, REMUS_ID_BYTES);
        remus_lineage_has(ours, theirs->id, &reply->held);
        return 0;
    case REMUS_RELATION_SPLIT:
        reply->content = REMUS_CONTENT_SPLIT;
        common(ours, theirs, reply);
        return 0;
    case REMUS_RELATION_STRANGERS:
        reply->content = REMUS_CONTENT_PROMOTED;
        if (ours->count) {
            memcpy(reply->origin, ours->ancestor[0].id, REMUS_ID_BYTES);
            reply->held = ours->ancestor[0].end;
        }
        return 0;
    case REMUS_RELATION_BEHIND:
        remus_lineage_has(theirs, ours->id, &reply->held);
        if (held <= reply->held)
            break;
        reply->content = REMUS_CONTENT_SPLIT;
        memcpy(reply->origin, ours->id, REMUS_ID_BYTES);
        return 0;
    case REMUS_RELATION_SAME:
        break;
    }
    return remus_fail(
        -EROFS,
        "this side is a primary, too (generation %s...): start one of the two "
        "as the primary, and the other one as its backup",
        remus_id_text(ours->id, id));
}
