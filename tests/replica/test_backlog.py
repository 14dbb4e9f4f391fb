# SPDX-License-Identifier: LGPL-2.1-or-later
"""A backup that is too slow: writes slow down, memory and journal stay within
their bounds, and acks and checkpoints go on."""

from __future__ import annotations

import random
import signal
import threading
import time
from pathlib import Path

import pytest

from remus_native import Primary, State, Volume
from support.pair import checkpoint
from support.side_process import Side

MIB = 1 << 20
SIZE, JOURNAL, SEGMENT, QUEUE = 32 * MIB, 16 * MIB, MIB, 8 * MIB
SLACK = 24 * MIB  # of memory: extents, buffers, what malloc keeps


def resident(pid: int | str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


class Slow:
    """SIGSTOP and SIGCONT in turn: it runs for a part of the time."""

    def __init__(self, side: Side, runs_s: float, stands_s: float) -> None:
        self.side, self.times = side, (runs_s, stands_s)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.main)
        self.thread.start()

    def main(self) -> None:
        while not self.stop.wait(self.times[0]):
            self.side.send_signal(signal.SIGSTOP)
            self.stop.wait(self.times[1])
            self.side.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.stop.set()
        self.thread.join()
        self.side.send_signal(signal.SIGCONT)


class Writers:
    """A guest that writes as fast as it may."""

    def __init__(self, primary: Primary, count: int = 4) -> None:
        self.primary = primary
        self.bytes = [0] * count
        self.longest = [0.0] * count
        self.stop = threading.Event()
        self.threads = [
            threading.Thread(target=self.main, args=(i,)) for i in range(count)
        ]
        for thread in self.threads:
            thread.start()

    def main(self, i: int) -> None:
        rng = random.Random(i)
        data = rng.randbytes(MIB)
        while not self.stop.is_set():
            length = rng.choice((4096, 65536, 65536))
            at = rng.randrange((SIZE - length) // 512) * 512
            start = time.monotonic()
            self.primary.pwrite(0, memoryview(data)[at % 4096 :][:length], at)
            self.longest[i] = max(self.longest[i], time.monotonic() - start)
            self.bytes[i] += length

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_backup_that_falls_behind(tmp_path, seconds, record_property):
    for side in "pb":
        (tmp_path / side).mkdir()
        with (tmp_path / f"{side}.img").open("wb") as image:
            image.truncate(SIZE)
    address = f"unix:{tmp_path}/sock"
    backup = Side(
        "Backup", "guest0", state_dir=tmp_path / "b",
        volumes=[Volume("xvda", tmp_path / "b.img")],
        journal_bytes=JOURNAL, segment_bytes=SEGMENT,
    )  # fmt: skip
    try:
        backup.serve(address)
        journal = sum(f.stat().st_size for f in (tmp_path / "b").glob("journal/*"))
        with Primary(
            "guest0", state_dir=tmp_path / "p", address=address,
            volumes=[Volume("xvda", tmp_path / "p.img")],
            queue_bytes=QUEUE, idle_ms=3_600_000,
        ) as primary:  # fmt: skip
            primary.wait_protected(timeout_s=30)
            checkpoint(primary)
            before = {pid: resident(pid) for pid in (backup.pid, "self")}
            most = dict.fromkeys(before, 0)
            slow, writers = Slow(backup, 0.01, 0.06), Writers(primary)
            waits = []
            try:
                start = time.monotonic()
                while time.monotonic() - start < seconds:
                    began = time.monotonic()
                    checkpoint(primary)
                    waits.append(time.monotonic() - began)
                    status = primary.status()
                    assert status.state is State.PROTECTED
                    assert status.queue_bytes <= QUEUE
                    most = {pid: max(most[pid], resident(pid)) for pid in most}
            finally:
                writers.end()
                slow.end()
            status = backup.status()
            assert 0 < status.journal_bytes <= status.journal_limit <= JOURNAL
            written = sum(writers.bytes)
            grown = {pid: most[pid] - before[pid] for pid in most}
            for name, value in (
                ("checkpoints", len(waits)),
                ("longest wait for an ack, s", round(max(waits), 3)),
                ("longest write, s", round(max(writers.longest), 3)),
                ("MiB written", written // MIB),
                ("backup's memory grew, MiB", grown[backup.pid] // MIB),
                ("primary's memory grew, MiB", grown["self"] // MIB),
            ):
                record_property(name, value)
                print(name, value)
            # Far more than would fit: it was the guest that had to wait.
            assert written > 3 * JOURNAL
            assert primary.status().stalls > 0
            assert len(waits) > 3 * seconds
            assert max(waits) < 3
            assert grown[backup.pid] < SLACK
            assert grown["self"] < QUEUE + SLACK
            # The journal's files were made once.
            files = (tmp_path / "b").glob("journal/*")
            assert sum(f.stat().st_size for f in files) == journal
            epoch = checkpoint(primary)
        assert backup.promote(epoch) == epoch
        backup.end()
        p, b = ((tmp_path / f"{side}.img").read_bytes() for side in "pb")
        assert p == b
    finally:
        backup.kill()
