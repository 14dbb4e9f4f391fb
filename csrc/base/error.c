/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The thread-local text behind the last error. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "remus.h"

#define TEXT_MAX 512

static _Thread_local char last_error[TEXT_MAX];
static _Thread_local char errno_text[128];

/* Characters that are not seen, but change what is: separators of lines, what
 * turns the direction of text or joins it, what has no width. */
static const struct {
    unsigned int from, to;
} unseen[] = {{0xad, 0xad},       {0x61c, 0x61c},   {0x180e, 0x180e},
              {0x200b, 0x200f},   {0x2028, 0x202e}, {0x2060, 0x206f},
              {0xfeff, 0xfeff},   {0xfff9, 0xfffb}, {0xe000, 0xf8ff},
              {0xe0000, 0x10ffff}};

/* Is it one of them?  `p`: a character of `n` bytes. */
static int is_unseen(const unsigned char *p, size_t n)
{
    unsigned int c = n == 2 ? *p & 0x1fu : n == 3 ? *p & 0xfu : *p & 7u;
    for (size_t i = 1; i < n; i++)
        c = c << 6 | (p[i] & 0x3fu);
    for (size_t i = 0; n > 1 && i < sizeof unseen / sizeof *unseen; i++)
        if (c >= unseen[i].from && c <= unseen[i].to)
            return 1;
    return 0;
}

/* Bytes of the UTF-8 character that `p` begins with; 0: none. */
static size_t utf8(const unsigned char *p)
{
    if (*p < 0x80)
        return *p >= 0x20 && *p != 0x7f;
    size_t n = *p < 0xc2   ? 0
               : *p < 0xe0 ? 2
               : *p < 0xf0 ? 3
               : *p < 0xf5 ? 4
                           : 0;
    for (size_t i = 1; i < n; i++)
        if (p[i] < 0x80 || p[i] > 0xbf)
            return 0; /* the end of the text, too */
    /* Written too long, half a pair, beyond the last one; control (C1). */
    if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) ||
        (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] > 0x8f) ||
        (*p == 0xc2 && p[1] < 0xa0))
        return 0;
    return is_unseen(p, n) ? 0 : n;
}

void remus_text_clean(char *text)
{
    for (unsigned char *p = (unsigned char *)text; *p;) {
        size_t n = utf8(p);
        if (!n)
            *p = '?';
        p += n ? n : 1;
    }
}

int remus_fail(int err, const char *format, ...)
{
    /* Formatted aside first: an argument may be the last text itself. */
    char text[TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    remus_text_clean(text);
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
    remus_text_clean(text);
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
