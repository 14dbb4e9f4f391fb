/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The header of a dirty map's file, and when a map is believed; the layout
 * is in dirty_file.h. */
#ifndef REMUS_DIRTY_HEADER_H
#define REMUS_DIRTY_HEADER_H

#include "format/dirty_file.h"
#include "format/record.h"

#define AT_SETS 12u
#define AT_GENERATION 32u
#define AT_RUN 48u
#define AT_CLEAN 64u
#define AT_VALID 68u
#define AT_STABLE 72u
#define AT_SIZES 80u
#define AT_CRC 592u
#define AT_ID 600u
#define AT_STAMPS 608u
#define AT_BEGUN 1120u
#define AT_STAMPED 1632u
#define AT_STATE_DIR 2144u
#define REMUS_DIRTY_PATH 4352 /* of the longest path, with its zero */
#define REMUS_DIRTY_PAGE_WORDS (REMUS_PAGE / 8u)

/* Where everything lies, of these volumes. */
void remus_dirty_lay_out(struct remus_dirty_file *f,
                         const struct remus_dirty_of *of);
/* The names of file and copy; nothing is made.  0 or -errno with a text. */
int remus_dirty_find_names(struct remus_dirty_file *f, remus_io *io,
                           const struct remus_dirty_of *of);
void remus_dirty_free_names(struct remus_dirty_file *f);
/* Make the directory in memory and look whether it is one, and ours. */
int remus_dirty_check_dir(remus_io *io, const char *dir);

uint32_t remus_dirty_fixed_crc(const unsigned char *h);
uint32_t remus_dirty_clean_crc(const unsigned char *h);
/* A page. */
void remus_dirty_make_header(const struct remus_dirty_file *f,
                             const struct remus_dirty_of *of, uint32_t sets,
                             uint64_t id, unsigned char *h);
/* What tells this run of the machine, with everything still mounted, from
 * every other. */
int remus_dirty_run_id(remus_io *io, int file, uint64_t where,
                       unsigned char *id);

/*
 * The map in memory, or the copy and its header: the file, if it can be
 * believed; else -ENOENT or another -errno.  write: to go on in it, locked;
 * -EBUSY somebody else has it.
 */
int remus_dirty_find_map(const struct remus_dirty_file *f,
                         const struct remus_dirty_of *of, int write);
int remus_dirty_find_copy(const struct remus_dirty_file *f,
                          const struct remus_dirty_of *of, unsigned char *h);
/* Add `sets` sets of a file to `bits`.  0 or -errno. */
int remus_dirty_read_sets(const struct remus_dirty_file *f, int file,
                          unsigned int sets, uint64_t *bits);
/* Write the copy durably; `header`: all of it but the clean mark.  No file
 * is open: an empty one.  0 or -errno. */
int remus_dirty_write_copy(struct remus_dirty_file *f, unsigned char *header);
/* Stamps of images that any later write changes; -EAGAIN if it takes longer
 * than `soon_ms` to be sure of it. */
int remus_dirty_final_stamps(remus_io *io, const int *files,
                             unsigned int volumes, uint32_t soon_ms,
                             uint64_t *stamps);

#endif
