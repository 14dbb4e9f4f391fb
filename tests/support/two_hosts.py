# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two hosts in one process, each of which can have either role."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from remus_native import Backup, Primary, State
from support.pair import MIB, QUIET, SMALL, checkpoint
from support.waiting import until


class Hosts:
    """Two hosts, each with one image and one state directory for any role."""

    def __init__(self, folder: Path, size: int = 4 * MIB) -> None:
        self.folder, self.size = folder, size
        self.opened: list[Primary | Backup] = []
        for host in "ab":
            (folder / host).mkdir()
            with self.image(host).open("wb") as image:
                image.truncate(size)

    def image(self, host: str) -> Path:
        return self.folder / f"{host}.img"

    def data(self, host: str) -> bytes:
        return self.image(host).read_bytes()

    def common(self, host: str) -> dict:
        from remus_native import Volume

        return {
            "state_dir": self.folder / host,
            "volumes": [Volume("xvda", self.image(host))],
        }

    def backup(self, host: str, *, serve: bool = True, **options) -> Backup:
        backup = Backup(
            "guest0",
            **self.common(host),
            **{**SMALL, "journal_bytes": 4 * MIB, **options},
        )
        self.opened.append(backup)
        if serve:
            backup.serve(f"unix:{self.folder}/{host}.sock", loss_ms=1000)
        return backup

    def primary(self, host: str, *, wait: bool = True, **options) -> Primary:
        other = "b" if host == "a" else "a"
        primary = Primary(
            "guest0",
            **self.common(host),
            **{
                "address": f"unix:{self.folder}/{other}.sock",
                "connect_ms": 10,
                **QUIET,
                **options,
            },
        )
        self.opened.append(primary)
        if wait:
            primary.wait_protected(timeout_s=30)
        return primary

    def close(self) -> None:
        for side in reversed(self.opened):
            side.close()


@pytest.fixture
def hosts(tmp_path):
    made = Hosts(tmp_path)
    yield made
    made.close()


def fill(primary: Primary, seed: int, at: int = 0, n: int = 256 * 1024) -> None:
    primary.pwrite(0, random.Random(seed).randbytes(n), at)


def promoted_b(hosts: Hosts) -> tuple[Primary, Backup, int]:
    """A ran, B was promoted; A has more than the checkpoint, never alone."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    fill(a, 1)
    m = checkpoint(a)
    fill(a, 2, at=MIB)  # in the open epoch
    b.promote(force=True)
    until(lambda: a.status().state is State.FENCED)
    return a, b, m
