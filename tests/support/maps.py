# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dirty maps that primaries of a test run left, in memory or as a copy."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

# docs/formats.md
SETS_AT, SET_BYTES_AT, SIZES_AT, STATE_DIR_AT, STATE_DIR_END = 12, 24, 80, 2144, 3168
BLOCK, PAGE = 16384, 4096


def folders() -> list[Path]:
    uid = os.geteuid()
    if uid == 0:
        return [Path("/run/remus-native"), Path("/dev/shm/remus-native")]
    return [Path(f"/run/user/{uid}/remus-native"), Path(f"/dev/shm/remus-native-{uid}")]


@pytest.fixture(scope="session", autouse=True)
def no_map_stays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of state directories of this run; others may be running beside it."""
    yield
    ours = os.fsencode(tmp_path_factory.getbasetemp().resolve()) + b"/"
    for folder in folders():
        for path in folder.glob("*.dirty.map"):
            state = path.read_bytes()[STATE_DIR_AT:STATE_DIR_END]
            if state.startswith(ours):
                path.unlink()


def marked(state_dir: Path, volumes: int) -> list[set[int]]:
    """The blocks of each volume that are marked in what a primary of this
    state directory left, whether that would be believed or not."""
    name = os.fsencode(state_dir.resolve()) + b"\0"
    left = [state_dir / "dirty.map", *(m for f in folders() for m in f.glob("*.map"))]
    found: list[set[int]] = [set() for _ in range(volumes)]
    for path in left:
        data = path.read_bytes() if path.exists() else b""
        if not data[STATE_DIR_AT:STATE_DIR_END].startswith(name):
            continue
        sets, each = data[SETS_AT], struct.unpack_from("<Q", data, SET_BYTES_AT)[0]
        for at in range(PAGE, PAGE + sets * each, each):
            for volume, blocks in enumerate(found):
                size = struct.unpack_from("<Q", data, SIZES_AT + 8 * volume)[0]
                part = data[at : at + (size // BLOCK // 64 + 1) * 8]
                blocks |= {
                    8 * j + k
                    for j, byte in enumerate(part)
                    for k in range(8)
                    if byte >> k & 1
                }
                at += (size // BLOCK // 64 + 1) * 8
    return found
