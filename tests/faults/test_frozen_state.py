# SPDX-License-Identifier: LGPL-2.1-or-later
"""The file system of the primary's state stands still; nothing waits for it.

A snapshot freezes it (``fsfreeze``), a full journal or a slow disk stalls it.
The dirty map is in memory, and what the state directory must hold is stored
by threads that nobody waits for.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from remus_native import Export, RemusError, ReplicationLost, State
from support.disks import MIB, Disk, Rig, exactly, fill, next_checkpoint, usable
from support.waiting import until

FREEZE, THAW = 0xC0045877, 0xC0045878  # FIFREEZE, FITHAW
PATIENCE_S = 0.5  # a busy machine's; the file system stands for longer

pytestmark = pytest.mark.skipif(bool(usable()), reason=usable())


@contextmanager
def frozen(disk: Disk) -> Iterator[None]:
    """Thawed after 8 s, whatever the process that it holds up can do."""
    path = str(disk.path)
    rescue = subprocess.Popen(
        ["sh", "-c", "sleep 8; exec fsfreeze --unfreeze $0", path],
        stderr=subprocess.DEVNULL,
    )
    directory = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(directory, FREEZE, 0)
        try:
            yield
        finally:
            if rescue.poll() is None:
                fcntl.ioctl(directory, THAW, 0)
    finally:
        os.close(directory)
        rescue.kill()
        rescue.wait()


class Ticker(threading.Thread):
    """How long this process's other threads were held up, at most."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.worst_s = 0.0
        self._stop_now = threading.Event()

    def run(self) -> None:
        before = time.monotonic()
        while not self._stop_now.wait(0.002):
            now = time.monotonic()
            self.worst_s = max(self.worst_s, now - before)
            before = now

    def __enter__(self) -> Ticker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_now.set()
        self.join()


class Worst(dict[str, float]):
    """The longest that each kind of call took."""

    def timed(self, name, call, *args, **names):
        start = time.monotonic()
        out = call(*args, **names)
        self[name] = max(self.get(name, 0.0), time.monotonic() - start)
        return out

    def too_long(self) -> dict[str, float]:
        return {name: s for name, s in self.items() if s > PATIENCE_S}


@pytest.fixture
def rig(tmp_path) -> Iterator[Rig]:
    made = Rig(tmp_path, 6 * MIB)
    yield made
    made.close()


def test_a_frozen_state_directory_holds_nothing_up(rig):
    disk = rig.disk("p.state", 24 * MIB)
    rig.open()
    fill(rig.primary, 1)
    next_checkpoint(rig.primary)
    primary, worst = rig.primary, Worst()
    timed = worst.timed

    with frozen(disk), Ticker() as ticker:
        end = time.monotonic() + 2.5  # more than twice what counts as loss
        at = 0
        while time.monotonic() < end:
            timed("pwrite", primary.pwrite, 0, b"x" * 512, at)
            at = (at + MIB + 16384) % (5 * MIB)
            epoch = timed("postsuspend", primary.postsuspend)
            timed("preresume", primary.preresume, epoch, timeout_s=5)
            timed("commit", primary.commit, epoch)
            assert timed("status", primary.status).state is State.PROTECTED
    assert worst.too_long() == {}
    assert ticker.worst_s < PATIENCE_S
    want = rig.data("p")
    exactly(rig, next_checkpoint(primary), want)


@pytest.mark.fuse
def test_a_frozen_state_directory_holds_no_node_up(rig, tmp_path):
    """ioctl 20, 30 with and without a limit, opens, writes, the status file."""
    disk = rig.disk("p.state", 24 * MIB)
    rig.open()
    mount, worst = tmp_path / "mount", Worst()
    mount.mkdir()
    export = Export(rig.primary, mount)
    try:
        node = os.open(mount / "xvda", os.O_RDWR)
        try:
            with frozen(disk), Ticker() as ticker:
                end, at = time.monotonic() + 2.5, 0
                while time.monotonic() < end:
                    worst.timed("write", os.pwrite, node, b"n" * 4096, at)
                    at = (at + MIB + 16384) % (5 * MIB)
                    worst.timed("ioctl 20", fcntl.ioctl, node, 20, 0)
                    worst.timed("ioctl 30", fcntl.ioctl, node, 30, 0)
                    text = worst.timed("status", (mount / "status").read_text)
                    assert "Protected" in text
                    other = worst.timed("open", os.open, mount / "xvda", os.O_RDONLY)
                    os.close(other)
            assert worst.too_long() == {}
            assert ticker.worst_s < PATIENCE_S
        finally:
            os.close(node)
    finally:
        export.close()
    want = rig.data("p")
    exactly(rig, next_checkpoint(rig.primary), want)


def test_an_outage_while_it_is_frozen_holds_only_writes_up(rig):
    """A new generation must be durable first; nothing else waits for that."""
    disk = rig.disk("p.state", 24 * MIB)
    rig.open()
    next_checkpoint(rig.primary)
    primary, worst = rig.primary, Worst()
    with frozen(disk), Ticker() as ticker:
        rig.close_backup()
        until(lambda: primary.status().state is State.UNPROTECTED)
        writer = threading.Thread(target=primary.pwrite, args=(0, b"alone", 5 * MIB))
        writer.start()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            worst.timed("status", primary.status)
            worst.timed("pread", primary.pread, 0, 512, 0)
            with pytest.raises(ReplicationLost):
                worst.timed("postsuspend", primary.postsuspend)
        assert writer.is_alive()
    writer.join(10)
    assert not writer.is_alive()
    assert worst.too_long() == {}
    assert ticker.worst_s < PATIENCE_S
    rig.open_backup()
    want = rig.data("p")
    exactly(rig, next_checkpoint(primary), want)


def test_a_frozen_journal_hides_no_backup(rig, tmp_path):
    """What a backup is can be asked while its journal can't be written."""
    disk = rig.disk("b.state", 40 * MIB)
    rig.open()
    fill(rig.primary, 1)
    epoch = next_checkpoint(rig.primary)
    time.sleep(1.2)  # what it shows while nobody can look is as old at most
    worst = Worst()
    with frozen(disk):
        for at in range(40):  # more than sockets hold
            rig.primary.pwrite(0, bytes(65536), at * 65536)
        until(lambda: "journal's disk" in rig.backup.status().reason)
        status = worst.timed("status", rig.backup.status)
        assert status.prepared_epoch == epoch
        for name, call in (
            ("checkpoints", rig.backup.checkpoints),
            ("target", rig.backup.target),
        ):
            with pytest.raises(RemusError, match="journal's disk"):
                worst.timed(name, call)
    assert max(worst.values()) < 1 + PATIENCE_S, worst  # it stands for 8 s
    until(lambda: rig.backup.status().reason == "following the primary")
    assert rig.backup.checkpoints()
