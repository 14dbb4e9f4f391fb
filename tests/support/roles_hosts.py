# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hosts of the roles' model: processes, a cable, and what is known of them."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from hypothesis.stateful import RuleBasedStateMachine

from remus_native import ReplicationLost, State, Volume
from support.side_process import Cable, Side

BLOCK = 16384
SIZES = {"xvda": 10 * BLOCK, "xvdb": 3 * BLOCK + 512}
NAMES = list(SIZES)
JOURNAL, SEGMENT = 6 << 20, 256 << 10

Disks = dict[str, bytes]


def blocks_of(name: str, at: int, length: int) -> set[tuple[str, int]]:
    return {(name, i) for i in range(at // BLOCK, (at + length - 1) // BLOCK + 1)}


def that_differ(one: Disks, other: Disks) -> set[tuple[str, int]]:
    return {
        (name, at // BLOCK)
        for name in NAMES
        for at in range(0, SIZES[name], BLOCK)
        if one[name][at : at + BLOCK] != other[name][at : at + BLOCK]
    }


def until(true: Callable[[], bool], what: Callable[[], object], seconds: float = 30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, str(what())
        time.sleep(0.001)


class TwoHostsMachine(RuleBasedStateMachine):
    """Hosts a and b.  `main` runs the guest, `other` is its backup; from a
    promote (`target` is set) until the fail-back, `other` is the one."""

    did: ClassVar[Counter[tuple[object, ...]]] = Counter()  # in all examples

    def __init__(self) -> None:
        super().__init__()
        shm = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="remus-roles-", dir=shm))
        self.cable: dict[str, Cable] = {}
        for host in "ab":
            (self.folder / host).mkdir()
            for name, size in SIZES.items():
                (self.folder / f"{host}.{name}").write_bytes(bytes(size))
            self.cable[host] = Cable(self.socket("to-" + host), self.socket(host))
        self.side: dict[str, Side | None] = {"a": None, "b": None}
        self.main, self.other = "a", "b"
        self.now = {name: bytearray(size) for name, size in SIZES.items()}
        self.linked = False
        self.forget_pair()

    def forget_pair(self) -> None:
        """No checkpoint of this pair is known yet."""
        self.snapshots: dict[int, Disks] = {}
        self.tags: dict[int, bytes] = {}
        self.acked: list[int] = []
        self.committed = 0
        self.unsure: int | None = None  # closed when the link went
        self.touched: list[tuple[int, set[tuple[str, int]]]] = []  # newest before
        self.alone_after = -1  # newest checkpoint before the guest was alone
        self.discard_local = False  # the backup was told to lose what it has
        # From a promote on:
        self.target: int | None = None
        self.met = False  # the old primary has heard of it
        self.fenced = False

    # -- helpers -----------------------------------------------------------------

    def socket(self, name: str) -> Path:
        return self.folder / f"{name}.sock"

    def common(self, host: str) -> dict[str, Any]:
        volumes = [Volume(name, self.folder / f"{host}.{name}") for name in NAMES]
        return {"state_dir": self.folder / host, "volumes": volumes}

    def image(self, host: str) -> Disks:
        return {name: (self.folder / f"{host}.{name}").read_bytes() for name in NAMES}

    def frozen(self) -> Disks:
        return {name: bytes(data) for name, data in self.now.items()}

    def open_backup(self, host: str, *, serve: bool = True) -> Side:
        self.end(host)
        side = Side(
            "Backup", "guest0", **self.common(host), discard_local=self.discard_local,
            journal_bytes=JOURNAL, segment_bytes=SEGMENT,
        )  # fmt: skip
        self.side[host] = side
        if serve:
            side.serve(f"unix:{self.socket(host)}")
        return side

    def open_primary(self, host: str) -> Side:
        other = "b" if host == "a" else "a"
        self.end(host)
        side = Side(
            "Primary", "guest0", **self.common(host),
            address=f"unix:{self.socket('to-' + other)}",
            idle_ms=3_600_000, grace_ms=3_600_000, connect_ms=5, queue_bytes=4 << 20,
        )  # fmt: skip
        self.side[host] = side
        return side

    def end(self, host: str, *, kill: bool = False) -> None:
        side, self.side[host] = self.side[host], None
        if side is not None:
            side.kill() if kill else side.end()

    @property
    def primary(self) -> Side:
        side = self.side[self.main]
        assert side is not None
        return side

    def disconnected(self) -> None:
        """The cable to the backup is out, and both sides know."""
        self.cable[self.other].cut()
        self.linked = False
        for host in "ab":
            if (side := self.side[host]) is not None:
                until(lambda: not side.status().connected, side.status)

    def newest(self) -> int:
        return max(self.snapshots, default=0)

    def close_epoch(self, tag: bytes) -> int:
        epoch = self.primary.postsuspend(tag)
        assert epoch > self.newest()
        self.snapshots[epoch] = self.frozen()
        self.tags[epoch] = tag
        return int(epoch)

    def catch_up(self) -> int:
        """The session's next checkpoint completes it."""
        epoch = 0

        def checkpoint() -> bool:
            nonlocal epoch
            try:
                epoch = self.close_epoch(b"back")
                # Sent, perhaps, before the loss was noticed.
                self.primary.preresume(epoch, timeout_s=30)
            except ReplicationLost:
                return False
            return True

        until(checkpoint, lambda: self.primary.status())
        assert self.primary.status().state is State.PROTECTED
        self.linked = True
        if self.unsure is not None:
            # It arrived, or it never will: no third.
            with contextlib.suppress(ReplicationLost):
                self.primary.preresume(self.unsure, timeout_s=30)
                self.acked.append(self.unsure)
        self.unsure = None
        self.acked.append(epoch)
        return epoch

    def commit(self, epoch: int) -> None:
        self.primary.commit(epoch)
        self.committed = max(self.committed, epoch)

    def save_room(self) -> None:
        """Each session begins a segment; prepared epochs keep it."""
        if len(self.acked) > 5:
            self.commit(self.acked[-1])
            self.acked = [self.acked[-1]]
