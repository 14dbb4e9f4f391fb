# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from remus_native import Backup, Primary, Volume
from remus_native._binding import ffi, lib, text

SMALL = {"journal_bytes": 1 << 20, "segment_bytes": 65536}
# No checkpoints but those that a test asks for.
QUIET = {"idle_ms": 3_600_000}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `fuse` where it can't run, and say why."""
    if os.geteuid() == 0 and Path("/dev/fuse").exists():
        return
    skip = pytest.mark.skip(reason="needs root and /dev/fuse")
    for item in items:
        if "fuse" in item.keywords:
            item.add_marker(skip)


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


@pytest.fixture(autouse=True)
def states_follow_the_table() -> Iterator[None]:
    """No primary goes from a state to one that can't follow it."""
    yield
    source, target = ffi.new("int *"), ffi.new("int *")
    if lib.remus_test_odd_transition(source, target):
        names = [text(lib.remus_state_name(one[0])) for one in (source, target)]
        raise AssertionError(f"from {names[0]} to {names[1]}: not in the table")
