/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The link is lost: the guest goes on, everybody who waits is told. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/error.h"
#include "primary/internal.h"

struct remus_waiter *remus_primary_lose(remus_primary *p, const char *text)
{
    if (!remus_link_up(p))
        return NULL;
    unsigned int effects = remus_primary_link_event(p, REMUS_LINK_LOST, text);
    shutdown(p->fd, SHUT_RDWR);
    remus_primary_epochs_lost(p);
    remus_primary_wake_parked(p);
    pthread_cond_signal(&p->engine_wake);
    pthread_cond_signal(&p->rx_resume);
    return effects & REMUS_DO_END_WAITS ? remus_primary_take_all_waiters(p)
                                        : NULL;
}

void remus_primary_link_lost(remus_primary *p, const char *format, ...)
{
    char text[REMUS_REASON_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    remus_primary_lock(p);
    struct remus_waiter *w = remus_primary_lose(p, text);
    remus_primary_unlock(p);
    remus_primary_answer(p, w, -EPROTO);
}
