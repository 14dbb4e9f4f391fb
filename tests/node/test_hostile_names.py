# SPDX-License-Identifier: LGPL-2.1-or-later
"""What others chose can be printed: names of images, what a backup says.

A path or a peer's words can hold ESC, newlines, C1 controls, characters that
turn the direction of text, or no UTF-8 at all.  Who reads the status of a
disk, or the message of an error, sees them as "?", on one line.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from remus_native import Backup, Export, Primary, RemusError, Volume
from support.waiting import until

MIB = 1 << 20
NAME = (
    b"\x1b[2J\nstate=Protected\r\x7f\xc2\x9b\xe2\x80\xaelive\xe2\x81\xa6\xe2\x80\xa8"
    b"\xe2\x80\x8b\xc2\xad\xef\xbb\xbf\xff\xfe\xc3(\xed\xa0\x80\xc3\xa9"
)


def image(folder: bytes, side: bytes, size: int) -> str:
    path = folder + b"/" + side + NAME
    with open(path, "wb") as file:
        file.truncate(size)
    return os.fsdecode(path)


def is_printable(text: str) -> None:
    for line in text.split("\n"):
        assert line.isprintable(), repr(line)
    assert "live" in text


@pytest.mark.fuse
@pytest.mark.parametrize("pad", range(3))
def test_the_status_files(tmp_path: Path, pad: int) -> None:
    """The backup refuses the primary, and names its own image."""
    with ExitStack() as stack:
        # Short, for a reason is cut, in the middle of a character at worst.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="r")).encode()
        theirs = image(folder, b"b" + b"x" * pad, MIB)
        for name in ("p", "b", "mount"):
            (tmp_path / name).mkdir()
        backup = stack.enter_context(
            Backup("guest0", state_dir=tmp_path / "b", volumes=[Volume("xvda", theirs)])
        )
        address = f"unix:{tmp_path}/sock"
        backup.serve(address)
        primary = stack.enter_context(
            Primary(
                "guest0",
                state_dir=tmp_path / "p",
                volumes=[Volume("xvda", image(folder, b"p", 2 * MIB))],
                address=address,
            )
        )
        stack.enter_context(Export(primary, tmp_path / "mount"))
        until(lambda: "on the backup (" in primary.status().reason)
        is_printable(primary.status().reason)
        text = (tmp_path / "mount" / "status").read_bytes().decode()
        is_printable(text)
        states = [line for line in text.splitlines() if line.startswith("state=")]
        assert states == ["state=Connecting"]
        status = json.loads((tmp_path / "mount" / "status.json").read_bytes())
        is_printable(status["reason"])
        assert status["state"] == "Connecting"


def test_messages_of_errors(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    missing = os.fsdecode(os.fsencode(tmp_path) + b"/" + NAME)
    with pytest.raises(RemusError) as caught:
        Backup("guest0", state_dir=tmp_path / "s", volumes=[Volume("xvda", missing)])
    is_printable(str(caught.value))
    assert "\u00e9" in str(caught.value)  # what can be printed stays
    with pytest.raises(RemusError) as caught:
        Backup(NAME.decode("latin-1"), state_dir=tmp_path / "s", volumes=[])
    text = str(caught.value)
    assert all(line.isprintable() for line in text.splitlines()), repr(text)
