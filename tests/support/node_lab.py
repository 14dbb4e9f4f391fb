# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two nodes of a primary in this process; backup and toolstacks are others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from remus_native import Export, Primary, State, Volume
from support.backup_process import BackupProcess
from support.toolstack_process import Toolstack
from support.waiting import until

DISK = 65536


class Lab:
    """A primary with two nodes here, its backup and toolstacks elsewhere."""

    def __init__(self, folder: Path, stack: ExitStack, **options: Any) -> None:
        self.folder = folder
        self.stack = stack
        options = {"loss_ms": 60_000, "stall_ms": 60_000, **options}
        names = ("xvda", "xvdb")
        for side in "pb":
            (folder / side).mkdir()
            for name in names:
                (folder / f"{side}.{name}").write_bytes(bytes(DISK))
        (folder / "mount").mkdir()
        self.address = f"unix:{folder}/sock"
        self.start_backup()
        stack.callback(lambda: self.backup.kill())
        self.primary = stack.enter_context(
            Primary(
                "guest0",
                state_dir=folder / "p",
                volumes=[Volume(name, folder / f"p.{name}") for name in names],
                address=self.address,
                idle_ms=3_600_000,
                connect_ms=10,
                **options,
            )
        )
        self.primary.wait_protected(30)
        self.export = Export(self.primary, folder / "mount")
        stack.callback(self.export.close)
        self.writes = 0

    def start_backup(self) -> None:
        disks = {name: self.folder / f"b.{name}" for name in ("xvda", "xvdb")}
        self.backup = BackupProcess(self.address, self.folder / "b", disks)

    def node(self, index: int) -> Path:
        return self.folder / "mount" / ("xvda", "xvdb")[index]

    def toolstack(self) -> Toolstack:
        made = Toolstack()
        self.stack.callback(made.kill)
        return made

    def write(self) -> None:
        """The epoch is not empty any more."""
        self.writes += 1
        self.primary.pwrite(0, b"%8d" % self.writes, 4096)

    @property
    def barriers(self) -> int:
        return self.primary.status().epochs

    def lose(self) -> None:
        self.backup.kill()
        until(
            lambda: not self.primary.status().connected,
            what=lambda: str(self.primary.status()),
        )

    def comes_back(self) -> None:
        """Connected, and ready for the next checkpoint."""
        self.start_backup()
        until(self.ready, 60)

    def ready(self) -> bool:
        status = self.primary.status()
        return status.state is State.PROTECTED or (
            "the next checkpoint completes it" in status.reason
        )

    def closed(self, tool: Toolstack, fd: int) -> None:
        """Close, and wait until the node has heard of it."""
        before = self.primary.status().writers
        tool.close(fd)
        until(lambda: self.primary.status().writers < before)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Any]:
    """``lab(**options)``: a `Lab` whose primary has these options."""
    with ExitStack() as stack:
        yield lambda **options: Lab(tmp_path, stack, **options)
