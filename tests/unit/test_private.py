# SPDX-License-Identifier: LGPL-2.1-or-later
"""State and journal directories that others can write to are refused."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from remus_native import Backup, Primary, StateError, Volume

NOBODY = 65534
MIB = 1 << 20


def open_side(side: str, folder: Path) -> Backup | Primary:
    image = folder / "image"
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(MIB)
    volumes = [Volume("xvda", image)]
    if side == "primary":
        return Primary(
            "guest0",
            state_dir=folder / "state",
            volumes=volumes,
            address=f"unix:{folder}/sock",
        )
    return Backup(
        "guest0",
        state_dir=folder / "state",
        journal_dir=folder / "journal",
        volumes=volumes,
        journal_bytes=MIB,
        segment_bytes=65536,
    )


CASES = [("primary", "state"), ("backup", "state"), ("backup", "journal")]


@pytest.mark.parametrize(("side", "which"), CASES)
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702, 0o720])
def test_a_directory_that_others_can_write_to_is_refused(tmp_path, side, which, mode):
    for name in ("state", "journal"):
        (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / which).chmod(mode)
    with pytest.raises(StateError, match=f"mode {mode:04o}: .*chmod go-w") as caught:
        open_side(side, tmp_path)
    assert caught.value.errno == errno.EPERM
    assert str(tmp_path / which) in str(caught.value)
    assert not list((tmp_path / "journal").iterdir())
    (tmp_path / which).chmod(0o711)
    open_side(side, tmp_path).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(("side", "which"), CASES)
def test_a_directory_of_another_user_is_refused(tmp_path, side, which):
    for name in ("state", "journal"):
        (tmp_path / name).mkdir(mode=0o700)
    os.chown(tmp_path / which, NOBODY, NOBODY)
    with pytest.raises(StateError, match=f"belongs to uid {NOBODY}") as caught:
        open_side(side, tmp_path)
    assert caught.value.errno == errno.EPERM
    os.chown(tmp_path / which, 0, 0)
    open_side(side, tmp_path).close()


# ---- a journal that does not fit ---------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_journal_that_does_not_fit_leaves_no_segments(tmp_path):
    """The room that it took would be lacking for what comes next."""
    for name in ("state", "journal"):
        (tmp_path / name).mkdir(mode=0o700)
    journal = tmp_path / "journal"
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs", str(journal)],
        check=True,
    )
    try:
        for _ in range(2):
            with pytest.raises(StateError, match="make room, or choose") as caught:
                open_side("backup", tmp_path)
            assert caught.value.errno == errno.ENOSPC
            assert str(journal / "segment.") in str(caught.value)
            assert not list(journal.glob("segment.*"))
        subprocess.run(
            ["mount", "-o", "remount,size=4m", str(journal)],
            check=True,
        )
        open_side("backup", tmp_path).close()
        assert len(list(journal.glob("segment.*"))) == 16
    finally:
        subprocess.run(["umount", str(journal)], check=True)
