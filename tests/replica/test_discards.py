# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was discarded, or is zeroes, costs a catch-up next to nothing.

mkfs and fstrim mark a whole disk as changed, and leave little in it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from remus_native import Backup, Primary, State, Volume
from support.disks import run, usable
from support.waiting import until

MIB = 1 << 20
GIB = 1 << 30
JOURNAL = 64 * MIB
BLOCK = 16384
RANDOM = random.Random(11)


class Hosts:
    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.size = size
        self.disks = {side: folder / f"{side}.img" for side in "pb"}
        for side, disk in self.disks.items():
            (folder / side).mkdir()
            with disk.open("wb") as image:
                image.truncate(size)

    def open_backup(self) -> None:
        self.backup = Backup(
            "guest0",
            state_dir=self.folder / "b",
            volumes=[Volume("xvda", self.disks["b"])],
            journal_bytes=JOURNAL,
            segment_bytes=4 * MIB,
        )
        self.backup.serve(f"unix:{self.folder}/sock")

    def begin(self) -> None:
        self.open_backup()
        self.primary = Primary(
            "guest0",
            state_dir=self.folder / "p",
            volumes=[Volume("xvda", self.disks["p"])],
            address=f"unix:{self.folder}/sock",
            connect_ms=10,
            idle_ms=20,
        )
        self.primary.wait_protected(timeout_s=30)

    def away(self) -> None:
        self.backup.close()
        until(lambda: not self.primary.status().connected)

    def back(self) -> None:
        """It keeps its checkpoint until it has all of the next one."""
        self.open_backup()
        self.primary.wait_protected(timeout_s=60)

    def close(self) -> None:
        self.primary.close()
        self.backup.promote()
        self.backup.close()
        with self.disks["p"].open("rb") as ours, self.disks["b"].open("rb") as theirs:
            for _ in range(0, self.size, MIB):
                assert ours.read(MIB) == theirs.read(MIB)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path, GIB)
    made.begin()
    yield made
    made.close()


@pytest.fixture
def blocks(tmp_path: Path) -> Iterator[Hosts]:
    """Of a block device nobody can say where its holes are."""
    if why := usable():
        pytest.skip(why)
    made = Hosts(tmp_path, 256 * MIB)
    image = str(made.disks["p"])
    made.disks["p"] = Path(run("losetup", "--find", "--show", image).strip())
    try:
        made.begin()
        yield made
        made.close()
    finally:
        run("losetup", "--detach", str(made.disks["p"]))


def mkfs(hosts: Hosts) -> None:
    """A discard over all of it, and then some data here and there: 600 KiB."""
    hosts.primary.discard(0, 0, hosts.size)
    for _ in range(150):
        at = RANDOM.randrange(hosts.size // 4096) * 4096
        hosts.primary.pwrite(0, RANDOM.randbytes(4096), at)


def test_a_disk_that_was_discarded_fits(hosts: Hosts):
    hosts.primary.pwrite(0, RANDOM.randbytes(4 * MIB), 100 * MIB)
    hosts.away()
    mkfs(hosts)
    hosts.back()
    assert hosts.primary.status().resync_done >= GIB


def test_so_does_a_block_device(blocks: Hosts):
    blocks.primary.pwrite(0, RANDOM.randbytes(4 * MIB), 100 * MIB)
    blocks.away()
    mkfs(blocks)
    blocks.back()


def test_zeroes_that_were_written_fit(hosts: Hosts):
    """There is no hole, so they are read."""
    hosts.away()
    for at in range(0, 2 * JOURNAL, MIB):
        hosts.primary.pwrite(0, bytes(MIB), at)
    hosts.primary.pwrite(0, b"data", 5 * MIB)
    hosts.back()


def test_data_that_does_not_fit_is_not_sent(hosts: Hosts):
    """It is looked at, and nothing is given up for it."""
    hosts.away()
    for at in range(0, JOURNAL + 8 * MIB, MIB):
        hosts.primary.pwrite(0, RANDOM.randbytes(MIB), at)
    before = hosts.disks["b"].stat().st_mtime_ns
    hosts.open_backup()
    until(lambda: "does not fit" in hosts.primary.status().reason)
    assert hosts.primary.status().state is State.UNPROTECTED
    assert hosts.disks["b"].stat().st_mtime_ns == before
    # Until most of it is discarded.
    hosts.primary.discard(0, 0, JOURNAL)
    hosts.primary.wait_protected(timeout_s=60)
