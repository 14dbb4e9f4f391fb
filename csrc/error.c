/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The thread-local text behind the last error. */
#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "remus.h"

#define TEXT_MAX 512

static _Thread_local char last_error[TEXT_MAX];
static _Thread_local char errno_text[128];

int remus_fail(int err, const char *format, ...)
{
    /* Formatted aside first: an argument may be the last text itself. */
    char text[TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    memcpy(last_error, text, sizeof text);
    return err;
}

int remus_fail_in(int err, const char *format, ...)
{
    char text[TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t used = strlen(text);
    if (snprintf(text + used, sizeof text - used, ": %s", last_error) < 0)
        text[used] = '\0';
    memcpy(last_error, text, sizeof text);
    return err;
}

const char *remus_errno_text(int err)
{
    return strerror_r(err < 0 ? -err : err, errno_text, sizeof errno_text);
}

const char *remus_last_error(void)
{
    return last_error;
}
