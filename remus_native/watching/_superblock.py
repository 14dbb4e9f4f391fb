# SPDX-License-Identifier: LGPL-2.1-or-later
"""How current the checkpoint of a backup is whose process does not run.

Reads ``backup.state`` (csrc/format/super.h, two_slots.h) and nothing else.
"""

from __future__ import annotations

import os
import struct
import time

from .._binding import ffi, lib

__all__ = ["promotable_age_s"]

SLOT, MAGIC, VERSION, CRC_AT = 4096, 0x424D4552, 3, 4092
HEAD = struct.Struct("<IIQ")  # magic, version, serial
CURRENT = struct.Struct("<QQQ16s")  # epoch, wall s, boot ns, boot id
CURRENT_AT = 200


def promotable_age_s(state_dir: str) -> float | None:
    """Since its checkpoint was last the newest state there was; None: unknown."""
    try:
        with open(os.path.join(state_dir, "backup.state"), "rb") as file:
            data = file.read(2 * SLOT)
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = bytes.fromhex(file.read().strip().replace("-", ""))
    except (OSError, ValueError):
        return None
    valid = []
    for start in (0, SLOT):
        slot = data[start : start + SLOT]
        if len(slot) < SLOT:
            continue
        magic, version, serial = HEAD.unpack_from(slot)
        (crc,) = struct.unpack_from("<I", slot, CRC_AT)
        if (magic, version) == (MAGIC, VERSION) and crc == lib.remus_crc32c(
            0, ffi.from_buffer(slot), CRC_AT
        ):
            valid.append((serial, slot))
    if not valid:
        return None
    _, wall_s, boot_ns, boot_id = CURRENT.unpack_from(max(valid)[1], CURRENT_AT)
    if not wall_s:
        return None
    if boot_id == boot:
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - boot_ns / 1e9
    else:
        age = time.time() - wall_s
    return age if age >= 0 else None
