/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Files of a simulated disk, changed in places, with their sums mended. */
#include <string.h>

#include "fuzz.h"
#include "journal/journal.h"

#define LINE 64u
#define FILES 16
#define LINES 65536u

static unsigned char *content[FILES];
static size_t sizes[FILES];

static struct line {
    unsigned int file;
    size_t at;
} lines[LINES], records[LINES];
static size_t line_count, record_count;

/* Records stand anywhere; their headers are as long as a line. */
static void find_records(unsigned int file)
{
    for (size_t at = 0; at + REMUS_REC_HEADER <= sizes[file]; at++)
        if (remus_get32(content[file] + at) == REMUS_REC_MAGIC &&
            record_count < LINES)
            records[record_count++] = (struct line){file, at};
}

static void load(remus_sim *sim, const char *const *files, size_t count)
{
    MUST(count <= FILES);
    line_count = record_count = 0;
    for (unsigned int i = 0; i < count; i++) {
        int64_t size = remus_sim_file_size(sim, files[i]);
        sizes[i] = size > 0 ? (size_t)size : 0;
        content[i] = calloc(1, sizes[i] + 1);
        MUST(content[i]);
        if (sizes[i])
            MUST(remus_sim_read(sim, files[i], content[i], sizes[i], 0) >= 0);
        static const unsigned char zeros[LINE];
        int before = 1;
        for (size_t at = 0; at + LINE <= sizes[i]; at += LINE) {
            int empty = !memcmp(content[i] + at, zeros, LINE);
            if ((!empty || before) && line_count < LINES)
                lines[line_count++] = (struct line){i, at};
            before = !empty;
        }
        find_records(i);
    }
}

/* One change; the bytes of `data` that it took, 0: no more. */
static size_t change(const uint8_t *data, size_t size, int changed[FILES])
{
    if (size < 4 || !line_count)
        return 0;
    const struct line *l = &lines[remus_get16(data) % line_count];
    if ((data[2] & 0xc0) == 0x40 && record_count)
        l = &records[remus_get16(data) % record_count];
    unsigned char *to = content[l->file] + l->at;
    changed[l->file] = 1;
    if (data[2] & 0x80) {
        const struct line *from = &lines[remus_get16(data + 2) % line_count];
        memmove(to, content[from->file] + from->at, LINE);
        return 4;
    }
    size_t byte = data[2] % LINE, count = data[3] % (LINE + 1);
    if (count > size - 4)
        count = size - 4;
    memcpy(to + byte, data + 4, count < LINE - byte ? count : LINE - byte);
    return 4 + count;
}

void fuzz_patch(remus_sim *sim, const char *const *files, size_t count,
                const uint8_t *data, size_t size,
                void (*mend)(const char *path, unsigned char *p, size_t size))
{
    int changed[FILES] = {0};
    load(sim, files, count);
    for (size_t n; (n = change(data, size, changed)); size -= n)
        data += n;
    for (size_t i = 0; i < count; i++) {
        if (changed[i] && mend)
            mend(files[i], content[i], sizes[i]);
        if (changed[i])
            MUST(remus_sim_poke(sim, files[i], content[i], sizes[i], 0) >= 0);
        free(content[i]);
    }
}

/* ---- sums of a backup's and a primary's files ---------------------------------- */

static int is_named(const char *path, const char *name)
{
    return strstr(path, name) != NULL;
}

static void mend_slots(unsigned char *p, size_t size, size_t name_at,
                       size_t crc_at)
{
    for (size_t at = 0; at + REMUS_PAGE <= size; at += REMUS_PAGE) {
        remus_put32(p + at + name_at, remus_crc32c(0, "guest0", 6));
        remus_put32(p + at + crc_at, remus_crc32c(0, p + at, crc_at));
    }
}

/* The next record's header as recovery looks for it; 0: there is none. */
static size_t next_header(const unsigned char *p, size_t size, size_t end)
{
    size_t large = remus_record_place(end, REMUS_REC_LARGE);
    if (end + REMUS_REC_HEADER <= size &&
        remus_get32(p + end) == REMUS_REC_MAGIC)
        return end;
    return large + REMUS_REC_HEADER <= size &&
                   remus_get32(p + large) == REMUS_REC_MAGIC
               ? large
               : 0;
}

static void mend_segment(unsigned char *p, size_t size)
{
    remus_put32(p + 124, remus_crc32c(0, p, 124));
    size_t end = REMUS_PAGE, h;
    uint32_t run = remus_get32(p + 72);
    while ((h = next_header(p, size, end))) {
        size_t length = remus_get32(p + h + 12);
        int whole = length <= size - h - REMUS_REC_HEADER;
        struct remus_record r;
        unsigned char *payload = p + h + REMUS_REC_HEADER;
        if (p[h + 4] == REMUS_REC_BARRIER)
            remus_put64(p + h + 24, run);
        if (whole)
            remus_put32(p + h + 56,
                        length ? remus_crc32c(0, payload, length) : 0);
        remus_put32(p + h + 60, remus_crc32c(0, p + h, 60));
        if (!whole || remus_record_decode(p + h, &r))
            return;
        end = h + REMUS_REC_HEADER + length;
        if (remus_record_marks(&r))
            end = (end + REMUS_PAGE - 1) / REMUS_PAGE * REMUS_PAGE;
        unsigned char wire[REMUS_REC_HEADER];
        r.salt = 0;
        remus_record_encode(&r, wire);
        if (remus_record_counted(&r))
            run = r.type == REMUS_REC_BARRIER
                      ? 0
                      : remus_record_run(run, r.header_crc);
    }
}

void fuzz_mend_file(const char *path, unsigned char *p, size_t size)
{
    if (is_named(path, "backup.state"))
        mend_slots(p, size, 20, 4092);
    else if (is_named(path, "primary.state"))
        mend_slots(p, size, 28, 368);
    else if (is_named(path, "journal.id") && size >= 32)
        remus_put32(p + 28, remus_crc32c(0, p, 28));
    else if (is_named(path, "segment.") && size > REMUS_PAGE)
        mend_segment(p, size);
}
