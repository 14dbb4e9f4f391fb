# SPDX-License-Identifier: LGPL-2.1-or-later
"""Somebody writes to the primary's image while no primary has it.

The next primary must notice, or its backup would be called Protected and
hold something else.  What can't be told from a write of its own counts as
one by somebody else: then both sides are compared.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from remus_native import Backup, Primary, Volume
from support.disks import run, usable
from support.pair import QUIET, SMALL
from support.side_process import Side
from support.waiting import settled, until

MIB = 1 << 20
SIZE = 6 * MIB
BLOCK = 16384
DATA = random.Random(7).randbytes(2 * MIB)


class Hosts:
    """A backup in this process, primaries in processes that are killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.killed: Any = None
        self.disk = folder / "p.img"
        for side in "pb":
            (folder / side).mkdir()
            with (folder / f"{side}.img").open("wb") as image:
                image.truncate(SIZE)
        self.open_backup()

    def open_backup(self) -> None:
        self.backup = Backup(
            "guest0",
            state_dir=self.folder / "b",
            volumes=[Volume("xvda", self.folder / "b.img")],
            **{**SMALL, "journal_bytes": 16 * MIB},
        )
        self.backup.serve(f"unix:{self.folder}/sock")

    def close(self) -> None:
        self.backup.close()
        if self.killed is not None:
            self.killed.kill()

    def options(self) -> dict[str, Any]:
        return {
            "state_dir": str(self.folder / "p"),
            "volumes": [Volume("xvda", str(self.disk))],
            "address": f"unix:{self.folder}/sock",
            "connect_ms": 10,
            **QUIET,
        }

    def primary(self) -> Any:
        """With 2 MiB of data that the backup has."""
        self.killed = side = Side("Primary", "guest0", **self.options())
        side.wait_protected(timeout_s=30)
        side.pwrite(0, DATA, 0)
        checkpoint(side)
        until(lambda: side.status().stable_epoch == side.status().committed_epoch)
        return side

    def write(self, at: int, data: bytes) -> None:
        """Somebody else's."""
        with self.disk.open("r+b") as image:
            image.seek(at)
            image.write(data)

    def next(self) -> Primary:
        """The primary after that, Protected; in this process."""
        primary = Primary("guest0", **self.options())
        primary.wait_protected(timeout_s=30)
        return primary

    def equal(self, primary: Primary) -> None:
        checkpoint(primary)
        primary.close()
        self.backup.promote()
        self.backup.close()
        assert self.disk.read_bytes() == (self.folder / "b.img").read_bytes()


def checkpoint(primary: Any) -> None:
    epoch = primary.postsuspend()
    primary.preresume(epoch, timeout_s=20)
    primary.commit(epoch)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.close()


def keeping_its_time(write: Callable[[], None], image: Path) -> None:
    before = image.stat()
    write()
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_was_killed_in_a_quiet_moment_is_not_compared(hosts):
    """The map tells: also a block that holds the same as before is sent."""
    side = hosts.primary()
    hosts.backup.close()
    side.pwrite(0, DATA[:BLOCK], 0)
    settled()
    side.kill()
    hosts.open_backup()
    primary = hosts.next()
    assert primary.status().resync_total == BLOCK
    hosts.equal(primary)


def test_what_was_killed_after_a_write_is_compared(hosts):
    side = hosts.primary()
    hosts.backup.close()
    side.pwrite(0, DATA[:BLOCK], 0)
    side.kill()
    hosts.open_backup()
    primary = hosts.next()
    assert primary.status().resync_total == 0
    hosts.equal(primary)


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("keep_time", [False, True])
def test_a_write_after_a_kill_is_noticed(hosts, quiet, keep_time):
    side = hosts.primary()
    side.pwrite(0, b"last", 5 * MIB)
    if quiet:
        settled()
    side.kill()
    image = hosts.folder / "p.img"
    if keep_time:
        keeping_its_time(lambda: hosts.write(3 * MIB, b"foreign"), image)
    else:
        hosts.write(3 * MIB, b"foreign")
    hosts.equal(hosts.next())


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_write_right_after_a_clean_end_is_noticed(hosts, keep_time):
    """Within the same tick of the file system's clock, too."""
    hosts.primary().end()
    for i in range(5):
        primary = hosts.next()
        primary.pwrite(0, b"last", 5 * MIB)
        checkpoint(primary)
        primary.close()
        image = hosts.folder / "p.img"
        if keep_time:
            keeping_its_time(partial(hosts.write, 3 * MIB + i, b"f"), image)
        else:
            hosts.write(3 * MIB + i, b"f")
    hosts.equal(hosts.next())


def test_an_image_that_was_exchanged_is_noticed(hosts):
    """With the size and the times of the one before."""
    side = hosts.primary()
    settled()
    side.kill()
    image, other = hosts.folder / "p.img", hosts.folder / "other.img"
    other.write_bytes(random.Random(8).randbytes(SIZE))
    before = image.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(image)
    hosts.equal(hosts.next())


# ---- block devices ----------------------------------------------------------------


@pytest.fixture
def blocks(tmp_path: Path) -> Iterator[Hosts]:
    """The primary's image is a loop device."""
    if why := usable():
        pytest.skip(why)
    made = Hosts(tmp_path)
    image = str(tmp_path / "p.img")
    made.disk = Path(run("losetup", "--find", "--show", image).strip())
    try:
        yield made
        made.close()
    finally:
        run("losetup", "--detach", str(made.disk))


def lacking(hosts: Hosts) -> Any:
    """A primary that was killed, at rest, and whose backup lacks a block."""
    side = hosts.primary()
    hosts.backup.close()
    side.pwrite(0, DATA[:BLOCK], 0)
    side.flush(0)
    settled()
    side.kill()
    hosts.open_backup()
    return side


def was_compared(primary: Primary) -> bool:
    """The block that was written again holds the same as before."""
    assert primary.status().resync_total in (0, BLOCK)
    return primary.status().resync_total == 0


def test_a_block_device_at_rest_is_not_compared(blocks):
    lacking(blocks)
    primary = blocks.next()
    assert not was_compared(primary)
    blocks.equal(primary)


def test_nor_is_it_after_a_clean_end(blocks):
    blocks.primary().end()
    primary = blocks.next()
    blocks.backup.close()
    primary.pwrite(0, DATA[:BLOCK], 0)
    primary.close()
    blocks.open_backup()
    primary = blocks.next()
    assert not was_compared(primary)
    blocks.equal(primary)


def test_a_write_to_a_block_device_after_a_kill_is_noticed(blocks):
    lacking(blocks)
    blocks.write(3 * MIB, b"foreign")
    blocks.equal(blocks.next())


def test_so_is_one_that_only_the_page_cache_has(blocks):
    """Somebody has the device open still: nothing was written out."""
    lacking(blocks)
    file = os.open(blocks.disk, os.O_RDWR)
    os.pwrite(file, b"foreign", 3 * MIB)
    primary = blocks.next()
    os.close(file)
    blocks.equal(primary)


def test_so_is_a_discard_and_a_write_after_a_clean_end(blocks):
    for foreign in (
        lambda: run("blkdiscard", "--offset", "0", "--length", "65536", blocks.disk),
        lambda: blocks.write(3 * MIB, b"foreign"),
    ):
        blocks.primary().end()
        foreign()
        primary = blocks.next()
        checkpoint(primary)
        primary.close()
        # The backup applies in the background.
        image = blocks.folder / "b.img"
        until(lambda image=image: blocks.disk.read_bytes() == image.read_bytes())
    blocks.equal(blocks.next())


def test_what_had_not_reached_the_device_is_compared(blocks):
    """Nobody can tell it from a write of somebody else."""
    side = blocks.primary()
    blocks.backup.close()
    side.pwrite(0, DATA[:BLOCK], 0)
    settled()
    side.kill()
    blocks.open_backup()
    primary = blocks.next()
    assert was_compared(primary)
    blocks.equal(primary)


def test_where_nothing_is_counted_all_is_compared(blocks):
    switch = Path("/sys/block", blocks.disk.name, "queue/iostats")
    switch.write_text("0")
    try:
        lacking(blocks)
        primary = blocks.next()
        assert was_compared(primary)
        blocks.equal(primary)
    finally:
        switch.write_text("1")


AFTER_A_BOOT = """
import sys
from remus_native import Primary, Volume
state, disk, address = sys.argv[1:]
with Primary(
    "guest0", state_dir=state, volumes=[Volume("xvda", disk)], address=address,
    connect_ms=10, idle_ms=3_600_000,
) as primary:
    primary.wait_protected(timeout_s=30)
    print("lacks", primary.status().resync_total)
"""


@pytest.mark.parametrize("boots", [False, True])
def test_after_a_boot_a_block_device_is_compared(blocks, tmp_path, boots):
    """Its counts began anew; the map itself was left by a clean end."""
    blocks.primary().end()
    primary = blocks.next()
    blocks.backup.close()
    primary.pwrite(0, DATA[:BLOCK], 0)
    primary.close()
    blocks.open_backup()
    boot = tmp_path / "boot"
    real = Path("/proc/sys/kernel/random/boot_id").read_text()
    boot.write_text(str(uuid.UUID(int=7)) + "\n" if boots else real)
    done = subprocess.run(
        [
            "unshare", "--mount", "sh", "-c",
            'mount --bind "$1" /proc/sys/kernel/random/boot_id && shift && exec "$@"',
            "sh", boot, sys.executable, "-c", AFTER_A_BOOT,
            tmp_path / "p", blocks.disk, f"unix:{tmp_path}/sock",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == f"lacks {0 if boots else BLOCK}\n", done.stderr
    blocks.equal(blocks.next())
