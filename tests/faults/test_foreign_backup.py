# SPDX-License-Identifier: LGPL-2.1-or-later
"""Somebody writes to a backup's image while no backup has it.

The next backup must notice, and be compared with its primary: whose dirty map
tells only what the primary wrote.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remus_native import Backup, Primary, RemusError, Volume
from support.disks import run, usable
from support.pair import QUIET, SMALL, checkpoint
from support.side_process import Side
from support.waiting import until

MIB = 1 << 20
SIZE = 6 * MIB
BLOCK = 16384
DATA = random.Random(7).randbytes(2 * MIB)
SLOT = 4096
STAMPS = 840


class Hosts:
    """A primary that stays, and backups that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = folder / "b.img"
        for side in "pb":
            (folder / side).mkdir()
            (folder / f"{side}.img").write_bytes(bytes(SIZE))
        self.killed: Any = None

    def begin(self) -> None:
        """Both sides have 2 MiB of data, in their disks."""
        self.open_backup()
        self.primary = Primary(
            "guest0",
            state_dir=self.folder / "p",
            volumes=[Volume("xvda", self.folder / "p.img")],
            address=f"unix:{self.folder}/sock",
            connect_ms=10,
            **QUIET,
        )
        self.primary.wait_protected(timeout_s=30)
        self.primary.pwrite(0, DATA, 0)
        self.checkpoint()

    def options(self) -> dict[str, Any]:
        return {
            "state_dir": str(self.folder / "b"),
            "volumes": [Volume("xvda", str(self.disk))],
            **(SMALL | {"journal_bytes": 16 * MIB}),
        }

    def open_backup(self) -> None:
        self.killed = side = Side("Backup", "guest0", **self.options())
        self.serve(side)

    def serve(self, backup: Any) -> None:
        backup.serve(f"unix:{self.folder}/sock")

    def checkpoint(self) -> None:
        checkpoint(self.primary)
        until(
            lambda: (
                self.primary.status().stable_epoch
                == self.primary.status().committed_epoch
            )
        )

    def caught_up(self) -> bool:
        try:
            checkpoint(self.primary)
        except RemusError:
            return False
        return True

    def at_rest(self) -> None:
        """Until the backup has noted how its disk looks."""
        state = self.folder / "b" / "backup.state"
        until(lambda: stamped(state.read_bytes()))

    def lacks_a_block(self) -> None:
        """The same bytes again, so that both sides still are equal."""
        until(lambda: not self.primary.status().connected)
        self.primary.pwrite(0, DATA[:BLOCK], 0)

    def write(self, at: int = 3 * MIB, data: bytes = b"foreign") -> None:
        with self.disk.open("r+b") as image:
            image.seek(at)
            image.write(data)

    def next(self) -> tuple[Backup, bool]:
        """The backup after that; was it compared?

        Then the block that was written again is none that differs.
        """
        backup = Backup("guest0", **self.options())
        self.serve(backup)
        until(self.caught_up)
        return backup, self.primary.status().resync_total != BLOCK

    def equal(self, backup: Backup) -> None:
        self.checkpoint()
        self.primary.close()
        backup.promote()
        backup.close()
        assert self.disk.read_bytes() == (self.folder / "p.img").read_bytes()

    def close(self) -> None:
        self.primary.close()
        self.killed.kill()


def stamped(state: bytes) -> bool:
    newest = max(
        (state[at : at + SLOT] for at in (0, SLOT)),
        key=lambda slot: int.from_bytes(slot[8:16], "little"),
    )
    return any(newest[STAMPS : STAMPS + 8])


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    made.begin()
    yield made
    made.close()


@pytest.fixture
def blocks(tmp_path: Path) -> Iterator[Hosts]:
    """The backup's image is a loop device."""
    if why := usable():
        pytest.skip(why)
    made = Hosts(tmp_path)
    made.disk = Path(run("losetup", "--find", "--show", tmp_path / "b.img").strip())
    try:
        made.begin()
        yield made
        made.close()
    finally:
        run("losetup", "--detach", str(made.disk))


@pytest.fixture(params=["file", "block device"])
def either(request: pytest.FixtureRequest) -> Hosts:
    name = "hosts" if request.param == "file" else "blocks"
    made: Hosts = request.getfixturevalue(name)
    return made


ENDS = pytest.mark.parametrize("clean", [True, False], ids=["closed", "killed"])


def end(hosts: Hosts, clean: bool) -> None:
    if clean:
        hosts.killed.close()
    else:
        hosts.at_rest()
    hosts.killed.kill()
    hosts.lacks_a_block()


@ENDS
def test_a_disk_that_nobody_wrote_to_is_not_compared(either: Hosts, clean: bool):
    end(either, clean)
    backup, compared = either.next()
    assert not compared
    either.equal(backup)


@ENDS
def test_a_foreign_write_is_noticed(either: Hosts, clean: bool):
    end(either, clean)
    either.write()
    backup, compared = either.next()
    assert compared
    said = [entry.text for entry in backup.log().entries]
    assert any("was written to by somebody else" in text for text in said), said
    either.equal(backup)


def test_so_is_one_that_puts_the_time_back(hosts: Hosts):
    end(hosts, clean=True)
    before = hosts.disk.stat()
    hosts.write()
    os.utime(hosts.disk, ns=(before.st_atime_ns, before.st_mtime_ns))
    backup, compared = hosts.next()
    assert compared
    hosts.equal(backup)


def test_and_an_image_that_was_exchanged(hosts: Hosts):
    """An old one from somewhere, of the same size and time."""
    end(hosts, clean=True)
    before = hosts.disk.stat()
    other = hosts.folder / "other.img"
    other.write_bytes(bytes(SIZE))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(hosts.disk)
    backup, compared = hosts.next()
    assert compared
    hosts.equal(backup)


def test_the_doubt_outlives_a_backup_that_no_primary_reached(hosts: Hosts):
    end(hosts, clean=True)
    hosts.write()
    for clean in (False, True):
        side = Side("Backup", "guest0", **hosts.options())
        if clean:
            side.close()
        side.kill()
    backup, compared = hosts.next()
    assert compared
    hosts.equal(backup)


def test_what_was_compared_is_trusted_again(hosts: Hosts):
    end(hosts, clean=True)
    hosts.write()
    backup, compared = hosts.next()
    assert compared
    hosts.checkpoint()
    backup.close()
    hosts.lacks_a_block()
    backup, compared = hosts.next()
    assert not compared
    hosts.equal(backup)
