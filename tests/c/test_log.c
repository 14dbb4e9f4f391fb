/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A side's log: what is kept, what is said once, what a late reader hears. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "expect.h"

#define S REMUS_STATE_PROTECTED

static struct remus_log l;
static struct remus_log_entry out[REMUS_LOG_KEPT] = {
    REMUS_INIT(remus_log_entry)};
static uint64_t next, lost;

static int read_from(uint64_t after, unsigned int cap)
{
    return remus_log_read(&l, after, out, cap, &next, &lost);
}

static void what_was_just_said_is_not_said_again(void)
{
    memset(&l, 0, sizeof l);
    remus_log_add(&l, 1, S, 1, "a");
    remus_log_add(&l, 2, S, 1, "a");
    EXPECT(l.added == 1);
    remus_log_add(&l, 3, S, 0, "a");
    remus_log_add(&l, 4, REMUS_STATE_FAILED, 0, "a");
    remus_log_add(&l, 5, REMUS_STATE_FAILED, 0, "b");
    EXPECT(read_from(0, 8) == 4 && next == 4 && lost == 0);
    EXPECT(out[0].time_ns == 1 && out[1].connected == 0);
    EXPECT(out[2].state == REMUS_STATE_FAILED && !strcmp(out[3].text, "b"));
}

static void a_text_completes_a_change_that_nobody_has_read(void)
{
    memset(&l, 0, sizeof l);
    remus_log_add(&l, 1, S, 1, "");
    remus_log_add(&l, 2, S, 1, "why");
    EXPECT(read_from(0, 8) == 1 && !strcmp(out[0].text, "why"));
    remus_log_add(&l, 3, S, 0, "");
    EXPECT(read_from(1, 8) == 1 && !out[0].text[0]);
    remus_log_add(&l, 4, S, 0, "late");
    EXPECT(read_from(next, 8) == 1 && !strcmp(out[0].text, "late"));
}

static void a_late_reader_hears_how_many_it_lost(void)
{
    char text[16];
    memset(&l, 0, sizeof l);
    for (int i = 0; i < 3 * REMUS_LOG_KEPT; i++) {
        snprintf(text, sizeof text, "%d", i);
        remus_log_add(&l, 1, S, 1, text);
    }
    EXPECT(read_from(5, 10) == 10 && lost == 2 * REMUS_LOG_KEPT - 5);
    EXPECT(!strcmp(out[0].text, "128") && next == 138);
    EXPECT(read_from(next, REMUS_LOG_KEPT) == 54 && lost == 0);
    EXPECT(read_from(next, 8) == 0 && next == l.added);
    EXPECT(read_from(UINT64_MAX, 8) == 0 && next == l.added && lost == 0);
    EXPECT(read_from(0, 0) == 0 && next == 2 * REMUS_LOG_KEPT);
}

static void a_long_text_is_cut_and_clean(void)
{
    char text[1000];
    memset(text, 'x', sizeof text);
    text[10] = '\n';
    text[sizeof text - 1] = '\0';
    memset(&l, 0, sizeof l);
    remus_log_add(&l, 1, S, 1, text);
    EXPECT(read_from(0, 1) == 1 && strlen(out[0].text) == 255);
    EXPECT(out[0].text[10] == '?');
}

int main(void)
{
    what_was_just_said_is_not_said_again();
    a_text_completes_a_change_that_nobody_has_read();
    a_late_reader_hears_how_many_it_lost();
    a_long_text_is_cut_and_clean();
    return 0;
}
