# SPDX-License-Identifier: LGPL-2.1-or-later
"""Connections whose bytes arrive late: beside a newer one, or after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remus_native import Backup, Primary, ReplicationLost, State, Volume
from support.pair import QUIET, SMALL, checkpoint, next_checkpoint
from support.side_process import Cable, Side
from support.waiting import until

SIZE = 1 << 20
LOSS_MS = 1000


class Late:
    """A primary and a backup joined by a cable that can hold things back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for side in "pb":
            (folder / side).mkdir()
            (folder / f"{side}.img").write_bytes(bytes(SIZE))
        self.cable = Cable(folder / "front", folder / "back")
        self.cable.join()
        self.backup = Backup("guest0", **self.common("b"), **SMALL)
        self.backup.serve(f"unix:{folder}/back", loss_ms=LOSS_MS)
        self.primary: Primary | None = None
        self.model: dict[int, bytes] = {}

    def common(self, side: str) -> dict[str, Any]:
        volume = Volume("xvda", self.folder / f"{side}.img")
        return {"state_dir": self.folder / side, "volumes": [volume]}

    def of_primary(self) -> dict[str, Any]:
        return {
            **self.common("p"), **QUIET, "address": f"unix:{self.folder}/front",
            "loss_ms": LOSS_MS, "connect_ms": 10,
        }  # fmt: skip

    def start(self) -> Primary:
        self.primary = Primary("guest0", **self.of_primary())
        self.primary.wait_protected(timeout_s=30)
        self.primary.session_begin()
        return self.primary

    def note(self, epoch: int) -> int:
        self.model[epoch] = (self.folder / "p.img").read_bytes()
        return epoch

    def prove(self, must: set[int]) -> None:
        """Everything is offered that has to be; the newest byte for byte."""
        assert self.primary is not None
        self.primary.close()
        until(lambda: not self.backup.status().connected)
        offered = [cp.epoch for cp in self.backup.checkpoints()]
        assert {e for e in must if e >= offered[0]} <= set(offered)
        newest = offered[-1]
        assert self.backup.promote(newest) == newest
        assert (self.folder / "b.img").read_bytes() == self.model[newest]

    def close(self) -> None:
        if self.primary is not None:
            self.primary.close()
        self.cable.cut()
        self.backup.close()


@pytest.fixture
def late(tmp_path: Path) -> Iterator[Late]:
    made = Late(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("when", ["beside", "after"])
def test_what_was_sent_arrives_late(late, when):
    """Writes and a barrier on a connection that the primary gave up.

    They arrive while its next connection is still refused (the backup can't
    know yet that the old one is dead): then that epoch is there after all.  Or
    behind all that came through the new one: then they change nothing.
    """
    primary = late.start()
    first = late.note(checkpoint(primary))
    late.cable.hold()
    primary.pwrite(0, b"old" * 1000, 0)
    old = late.note(primary.postsuspend("old"))
    with pytest.raises(ReplicationLost):
        primary.preresume(old, timeout_s=20)
    primary.pwrite(0, b"new" * 1000, 1000)
    if when == "beside":
        until(lambda: "another primary is connected" in primary.status().reason)
        late.cable.let_go()
    new = late.note(next_checkpoint(primary, "new"))
    if when == "after":
        assert late.cable.holds == 1
        late.cable.let_go()
        with pytest.raises(ReplicationLost):
            primary.preresume(old, timeout_s=5)
    else:
        primary.preresume(old, timeout_s=5)
    primary.pwrite(0, b"end" * 1000, 2000)
    end = late.note(checkpoint(primary, commit=False))
    assert primary.status().state is State.PROTECTED
    late.prove({first, new, end} | ({old} if when == "beside" else set()))


@pytest.mark.parametrize("alone", [False, True])
def test_a_hello_that_arrives_late(late, alone):
    """Of a primary that is long dead: beside its successor, or when that has
    ended, too."""
    primary = late.start()
    first = late.note(checkpoint(primary))
    primary.close()
    late.cable.hold_next()
    dead = Side("Primary", "guest0", **late.of_primary())
    until(lambda: late.cable.holds == 1)
    dead.kill()
    primary = late.start()
    primary.pwrite(0, b"by its successor", 4096)
    second = late.note(checkpoint(primary))
    if alone:
        primary.close()
        until(lambda: not late.backup.status().connected)
    refused = late.backup.status().refused
    late.cable.let_go()
    if alone:
        primary = late.start()
    else:
        until(lambda: late.backup.status().refused > refused)
        assert primary.status().state is State.PROTECTED
    primary.pwrite(0, b"and then", 8192)
    third = late.note(checkpoint(primary, commit=False))
    late.prove({first, second, third})
