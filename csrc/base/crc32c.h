/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* CRC32C; remus_crc32c() itself is public (remus.h). */
#ifndef REMUS_CRC32C_H
#define REMUS_CRC32C_H

#include "remus.h"

/* CRC32C by the table, whatever the CPU has: the other way's reference. */
uint32_t remus_crc32c_table(uint32_t crc, const void *data, size_t len);

#endif
