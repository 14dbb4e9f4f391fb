# SPDX-License-Identifier: LGPL-2.1-or-later
"""A session of one primary whose backup is a process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remus_native import Primary, ReplicaResource, Volume
from support.backup_process import BackupProcess


class Session:
    """A primary here, and its backup in a process that can be stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for side in ("primary", "backup"):
            (folder / side).mkdir()
            for name in ("a", "b"):
                (folder / f"{side}.{name}").write_bytes(bytes(65536))
        address = f"unix:{folder}/sock"
        self.backup = BackupProcess(
            address,
            folder / "backup",
            {name: folder / f"backup.{name}" for name in ("a", "b")},
        )
        self.primary = Primary(
            "guest0",
            state_dir=folder / "primary",
            volumes=[Volume(n, folder / f"primary.{n}") for n in ("a", "b")],
            address=address,
            loss_ms=60000,
        )
        self.primary.wait_protected(30)
        self.resource = ReplicaResource(self.primary)

    def close(self) -> None:
        self.backup.kill()
        self.primary.close()


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = Session(tmp_path)
    try:
        yield made
    finally:
        made.close()


def in_thread(work: Any) -> tuple[threading.Thread, list[BaseException | None]]:
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, ended
