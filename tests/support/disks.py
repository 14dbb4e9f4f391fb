# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sides whose states and disks lie on small file systems of their own."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from remus_native import Backup, Primary, ReplicationLost, Volume
from support.pair import QUIET, checkpoint
from support.waiting import until

MIB = 1 << 20
SIZE = 6 * MIB
SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN


class Disk:
    """A file system of its own, in a file."""

    def __init__(self, folder: Path, name: str, size: int) -> None:
        self.image, self.path = folder / f"{name}.fs", folder / name
        with self.image.open("wb") as image:
            image.truncate(size)
        run("mkfs.ext4", "-q", "-m", "0", "-b", "4096", str(self.image))
        self.path.mkdir()
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", "loop", str(self.image), str(self.path))

    def unmount(self) -> None:
        if self.path.is_mount():
            run("umount", str(self.path))

    def again(self) -> None:
        """As after the disk was mended: its journal is replayed."""
        self.unmount()
        self.mount()

    def disappear(self) -> None:
        """Nothing reaches it any more; what was not synced is lost."""
        directory = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, SHUTDOWN, struct.pack("I", 2))
        finally:
            os.close(directory)

    def fill_up(self) -> None:
        """Not one block is left."""
        with (self.path / "ballast").open("wb", buffering=0) as ballast:
            for step in (MIB, 4096):
                with suppress(OSError):
                    while ballast.write(b"\xbb" * step) == step:
                        pass
        assert os.statvfs(self.path).f_bavail == 0

    def make_room(self) -> None:
        (self.path / "ballast").unlink()


def run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout


def usable() -> str:
    if os.geteuid() or not Path("/dev/loop-control").exists():
        return "needs root and loop devices"
    return "" if shutil.which("mkfs.ext4") else "mkfs.ext4 is missing"


class Rig:
    """A primary and a backup; each part of each side on a disk of its own if
    it was asked for ("p.state", "p.disk", "b.state", "b.disk")."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.stack = ExitStack()
        self.disks: dict[str, Disk] = {}
        self.devices: dict[str, str] = {}  # block devices on the images
        self.primary: Any = None
        self.backup: Any = None

    def disk(self, part: str, size: int) -> Disk:
        disk = self.disks[part] = Disk(self.folder, part, size)
        self.stack.callback(disk.unmount)
        return disk

    def place(self, part: str) -> Path:
        path = self.folder / part
        path.mkdir(exist_ok=True)
        return path

    def image(self, side: str) -> Path:
        path = self.place(f"{side}.disk") / "image"
        if not path.exists():
            with path.open("wb") as image:
                image.truncate(self.size)
        return path

    def path(self, side: str) -> Path:
        return Path(self.devices.get(side, self.image(side)))

    def data(self, side: str) -> bytes:
        return self.path(side).read_bytes()

    def detach(self, side: str) -> None:
        run("losetup", "--detach", self.devices.pop(side))

    def common(self, side: str) -> dict[str, Any]:
        return {
            "state_dir": self.place(f"{side}.state"),
            "volumes": [Volume("xvda", self.path(side))],
        }

    def open_backup(self, *, serve: bool = True) -> Any:
        self.backup = Backup(
            "guest0",
            **self.common("b"),
            journal_bytes=16 * MIB,
            segment_bytes=MIB // 2,
        )
        if serve:
            self.backup.serve(f"unix:{self.folder}/sock")
        return self.backup

    def open_primary(self, *, wait: bool = True) -> Any:
        self.primary = Primary(
            "guest0",
            **self.common("p"),
            address=f"unix:{self.folder}/sock",
            loss_ms=1000,
            connect_ms=10,
            **QUIET,
        )
        if wait:
            self.primary.wait_protected(timeout_s=30)
        return self.primary

    def open(self) -> None:
        self.open_backup()
        self.open_primary()

    def close_backup(self) -> None:
        if self.backup is not None:
            self.backup.close()
        self.backup = None

    def close_primary(self) -> None:
        if self.primary is not None:
            self.primary.close()
        self.primary = None

    def close(self) -> None:
        self.close_primary()
        self.close_backup()
        for side in list(self.devices):
            self.detach(side)
        self.stack.close()


def fill(primary: Primary, seed: int, at: int = 0, n: int = MIB) -> None:
    data = random.Random(seed).randbytes(n)
    for i in range(0, n, 65536):
        primary.pwrite(0, data[i : i + 65536], at + i)


def next_checkpoint(primary: Primary) -> int:
    """The first one that succeeds again; committed."""
    taken = 0

    def one() -> bool:
        nonlocal taken
        try:
            taken = checkpoint(primary)
        except ReplicationLost:
            return False
        return True

    until(one, what=lambda: str(primary.status()))
    return taken


def exactly(rig: Rig, epoch: int, want: bytes) -> None:
    """The backup, mended and started again, fails over to what was acked."""
    rig.close_primary()
    backup = rig.backup or rig.open_backup(serve=False)
    assert backup.promote(epoch) == epoch
    rig.close_backup()
    assert rig.data("b") == want
