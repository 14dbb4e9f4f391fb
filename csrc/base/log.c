/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a side has to say; see log.h. */
#include "base/log.h"

#include <stdio.h>
#include <string.h>

#include "base/entry.h"
#include "base/error.h"
#include "base/sized.h"

void remus_log_add(struct remus_log *l, uint64_t now_ns,
                   enum remus_state state, int connected, const char *text)
{
    struct remus_log_entry new = {.struct_size = sizeof new,
                                  .state = state,
                                  .connected = connected,
                                  .time_ns = now_ns};
    snprintf(new.text, sizeof new.text, "%s", text);
    remus_text_clean(new.text); /* it may have been cut */
    struct remus_log_entry *last =
        l->added ? &l->kept[(l->added - 1) % REMUS_LOG_KEPT] : NULL;
    if (last && last->state == state && last->connected == connected) {
        if (!strcmp(last->text, new.text))
            return;
        if (!last->text[0] && l->added > l->unread_from) {
            memcpy(last->text, new.text, sizeof last->text);
            return;
        }
    }
    l->kept[l->added++ % REMUS_LOG_KEPT] = new;
}

int remus_log_given(const struct remus_log_entry *out, unsigned int cap,
                    const uint64_t *next, const uint64_t *lost,
                    const char *call)
{
    int no = remus_given(next, call, "next");
    if (!no)
        no = remus_given(lost, call, "lost");
    if (!no && cap)
        no = remus_sized_check(out, sizeof *out, call, "out");
    return no;
}

int remus_log_read(struct remus_log *l, uint64_t after,
                   struct remus_log_entry *out, unsigned int cap,
                   uint64_t *next, uint64_t *lost)
{
    uint64_t first = l->added > REMUS_LOG_KEPT ? l->added - REMUS_LOG_KEPT : 0;
    uint64_t from = after < first ? first : after;
    if (from > l->added)
        from = l->added;
    uint64_t n = l->added - from < cap ? l->added - from : cap;
    for (uint64_t i = 0; i < n; i++)
        remus_sized_put(out, i, &l->kept[(from + i) % REMUS_LOG_KEPT],
                        sizeof *out);
    *next = from + n;
    *lost = after < first ? first - after : 0;
    if (*next > l->unread_from)
        l->unread_from = *next;
    return (int)n;
}
