# SPDX-License-Identifier: LGPL-2.1-or-later
"""A primary and a backup in one process, and how checkpoints are taken."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from remus_native import Backup, Primary, ReplicationLost, Volume
from support.waiting import until

BLOCK = 16384
MIB = 1 << 20
SMALL = {"journal_bytes": 1 << 20, "segment_bytes": 65536}
# No checkpoints but those that a test asks for.
QUIET = {"idle_ms": 3_600_000}


class Pair:
    """A primary and a backup in this process, over a Unix socket."""

    def __init__(self, folder: Path, sizes: list[int], **options: Any) -> None:
        self.folder = folder
        self.sizes = sizes
        letters = "abcdefghijklmnopqrstuvwxyz"
        self.names = [
            f"xvd{letters[i]}" if i < 26 else f"disk{i}" for i in range(len(sizes))
        ]
        self.address = f"unix:{folder}/sock"
        self.options = options
        self.shared = {
            key: options.pop(key) for key in ("ack", "commit_by") if key in options
        }
        for side in ("primary", "backup"):
            (folder / side).mkdir()
            for name, size in zip(self.names, sizes, strict=True):
                with (folder / f"{side}.{name}").open("wb") as image:
                    image.truncate(size)
        self.primary: Primary | None = None
        self.backup: Backup | None = None

    def volumes(self, side: str) -> list[Volume]:
        return [
            Volume(name, self.folder / f"{side}.{name}", size)
            for name, size in zip(self.names, self.sizes, strict=True)
        ]

    def open_backup(self, *, serve: bool = True) -> Backup:
        self.backup = Backup(
            "guest0",
            state_dir=self.folder / "backup",
            volumes=self.volumes("backup"),
            **self.shared,
            **{key: self.options.get(key, value) for key, value in SMALL.items()},
        )
        if serve:
            self.backup.serve(self.address)
        return self.backup

    def open_primary(self, *, wait: bool = True) -> Primary:
        mine = {k: v for k, v in self.options.items() if k not in SMALL}
        self.primary = Primary(
            "guest0",
            state_dir=self.folder / "primary",
            volumes=self.volumes("primary"),
            address=self.address,
            **self.shared,
            **{**QUIET, **mine},
        )
        if wait:
            self.primary.wait_protected(timeout_s=30)
        return self.primary

    def image(self, side: str, index: int) -> bytes:
        return (self.folder / f"{side}.{self.names[index]}").read_bytes()

    def close(self) -> None:
        if self.primary is not None:
            self.primary.close()
        if self.backup is not None:
            self.backup.close()


@pytest.fixture
def make_pair(tmp_path: Path) -> Iterator[Any]:
    """``make_pair(sizes=[...], **options)``: both sides open and Protected."""
    with ExitStack() as stack:

        def make(sizes: list[int] | None = None, **options: Any) -> Pair:
            pair = Pair(tmp_path, sizes or [1 << 20], **options)
            stack.callback(pair.close)
            pair.open_backup()
            pair.open_primary()
            return pair

        yield make


def checkpoint(primary, tag=None, *, commit=True):
    epoch = primary.postsuspend(tag)
    primary.preresume(epoch, timeout_s=20)
    if commit:
        primary.commit(epoch)
    return epoch


def next_checkpoint(primary, tag=None):
    """The first checkpoint that a session can take again."""
    end = time.monotonic() + 30
    while True:
        try:
            epoch = primary.postsuspend(tag)
        except ReplicationLost:
            if time.monotonic() > end:
                raise
            time.sleep(0.002)
            continue
        primary.preresume(epoch, timeout_s=30)
        return epoch


def lose(pair):
    """The backup ends, and the primary has noticed."""
    pair.backup.close()
    until(lambda: not pair.primary.status().connected)


def same(pair):
    for i in range(len(pair.sizes)):
        assert pair.image("backup", i) == pair.image("primary", i)


def fill_disk(primary, length, seed=2):
    data = random.Random(seed).randbytes(length)
    for at in range(0, length, 65536):
        primary.pwrite(0, data[at : at + 65536], at)
