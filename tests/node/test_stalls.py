# SPDX-License-Identifier: LGPL-2.1-or-later
"""A disk that stalls stalls its own volume, and nothing else.

The disks lie on a file system that is frozen (fsfreeze): reading goes on,
each write waits in the kernel until the thaw.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from remus_native import Export, Primary, Volume
from support.backup_process import BackupProcess
from support.paths import PROBE
from support.waiting import until

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(
        not all(map(shutil.which, ("mkfs.ext4", "losetup", "fsfreeze"))),
        reason="needs mkfs.ext4, losetup and fsfreeze",
    ),
]

SIZE = 4 << 20
AT_ONCE_S = 5.0  # on a machine that does much else; before, it was never


class Freezer:
    """A folder on a file system of its own that can be frozen."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.at = folder / "frozen"
        self.at.mkdir()
        image = folder / "frozen.ext4"
        with image.open("wb") as file:
            file.truncate(128 << 20)
        self.run("mkfs.ext4", "-q", image)
        self.run("mount", "-o", "loop", image, self.at)
        stack.callback(self.run, "umount", "-l", self.at)
        stack.callback(self.thaw)
        self.frozen = False

    def run(self, *command: object) -> None:
        subprocess.run([str(word) for word in command], check=True)

    def freeze(self) -> None:
        self.run("fsfreeze", "-f", self.at)
        self.frozen = True

    def thaw(self) -> None:
        if self.frozen:
            self.frozen = False
            self.run("fsfreeze", "-u", self.at)


class Lab:
    """``slow`` volumes that can stall, and after them those that can't."""

    def __init__(self, folder: Path, stack: ExitStack, slow: int, fast: int, **more):
        self.stack = stack
        self.freezer = Freezer(folder, stack)
        (folder / "fast").mkdir()
        self.names = [f"disk{i}" for i in range(slow + fast)]
        places = [self.freezer.at] * slow + [folder / "fast"] * fast
        disks = {}
        for name, place in zip(self.names, places, strict=True):
            disks[name] = place / name
            disks[name].write_bytes(bytes(SIZE))
            (folder / f"b.{name}").write_bytes(bytes(SIZE))
        for name in ("p", "b", "mount"):
            (folder / name).mkdir()
        self.backup = BackupProcess(
            f"unix:{folder}/sock",
            folder / "b",
            {name: folder / f"b.{name}" for name in self.names},
        )
        stack.callback(self.backup.kill)
        self.primary = Primary(
            "guest0",
            state_dir=folder / "p",
            volumes=[Volume(name, path) for name, path in disks.items()],
            address=f"unix:{folder}/sock",
            idle_ms=3_600_000,
            connect_ms=10,
            loss_ms=60_000,
            stall_ms=60_000,
            **more,
        )
        stack.callback(self.primary.close)
        self.primary.wait_protected(60)
        export = Export(self.primary, folder / "mount")
        stack.callback(export.close)
        self.mount = folder / "mount"
        stack.callback(self.freezer.thaw)  # first of all

    def open(self, index: int, flags: int = os.O_RDWR) -> int:
        fd = os.open(self.mount / self.names[index], flags)
        self.stack.callback(os.close, fd)
        return fd

    def later(self, call, *args) -> threading.Thread:
        """A thread that does it; the thaw ends it."""
        thread = threading.Thread(target=call, args=args)
        thread.start()
        return thread


@contextlib.contextmanager
def lab_of(folder: Path, slow: int, fast: int, **more):
    with ExitStack() as stack:
        yield Lab(folder, stack, slow, fast, **more)


def at_once(call, *args):
    """Its result; it must come at once, whatever else happens."""
    got: list = []

    def run() -> None:
        try:
            got.append(call(*args))
        except OSError as error:
            got.append(error)

    thread = threading.Thread(target=run, daemon=True)
    start = time.monotonic()
    thread.start()
    thread.join(AT_ONCE_S)
    assert got, f"no answer in {time.monotonic() - start:.1f} s"
    if isinstance(got[0], OSError):
        raise got[0]
    return got[0]


def test_sixteen_volumes_with_a_stalled_write_each(tmp_path):
    with lab_of(tmp_path, slow=16, fast=1) as here:
        files = [here.open(i) for i in range(17)]
        here.freezer.freeze()
        writers = [here.later(os.pwrite, fd, b"stalled", 0) for fd in files[:16]]
        time.sleep(0.5)
        assert all(thread.is_alive() for thread in writers)
        for name in ("status", "status.json"):
            text = at_once((here.mount / name).read_text)
            assert "Protected" in text
        for i in range(17):
            assert at_once(os.pread, files[i], 4096, 8192) == bytes(4096)
        assert at_once(os.pwrite, files[16], b"fast", 0) == 4
        sender = here.open(0, os.O_RDONLY)
        for _ in range(3):
            assert at_once(fcntl.ioctl, sender, 20, 0) in (0, 1)
            assert at_once(fcntl.ioctl, sender, 30, 0) == 0
        node = here.mount / here.names[0]
        done = at_once(
            lambda: subprocess.run([PROBE, node], capture_output=True, check=False)
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert all(thread.is_alive() for thread in writers)
        here.freezer.thaw()
        for thread in writers:
            thread.join(30)
        assert os.pread(files[3], 7, 0) == b"stalled"


@pytest.mark.skipif(not shutil.which("fio"), reason="needs fio")
def test_more_asynchronous_writes_than_the_kernel_hands_out(tmp_path):
    """400 of them wait in one volume: another one's go through all the same."""
    with lab_of(tmp_path, slow=1, fast=1) as here:
        here.freezer.freeze()

        def fio(index: int, depth: int, **options):
            return subprocess.Popen(
                [
                    "fio", "--name=x", f"--filename={here.mount}/{here.names[index]}",
                    "--rw=write", "--bs=4k", "--ioengine=libaio", "--direct=1",
                    f"--iodepth={depth}", f"--size={depth * 4}k", "--thread",
                ],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip

        slow = fio(0, 400)
        here.stack.callback(slow.kill)
        time.sleep(1)
        assert slow.poll() is None
        fast = fio(1, 16)
        here.stack.callback(fast.kill)
        assert fast.wait(30) == 0
        assert at_once((here.mount / "status").read_text)
        here.freezer.thaw()
        assert slow.wait(60) == 0


def test_a_parked_write_does_not_wait_for_the_disk_of_another(tmp_path):
    """One waits for the range of another, on a disk that then stalls; a third,
    of another volume, came after both."""
    with lab_of(tmp_path, slow=1, fast=1, ask_alone=True) as here:
        here.backup.kill()
        until(lambda: not here.primary.status().connected)

        def parked(n: int) -> None:
            until(lambda: here.primary.status().parked_writes == n)

        first = here.later(here.primary.pwrite, 0, b"a" * 4096, 0)
        parked(1)
        behind = here.later(here.primary.pwrite, 0, b"b" * 4096, 0)
        parked(2)
        other = here.later(here.primary.pwrite, 1, b"c" * 4096, 0)
        parked(3)
        here.freezer.freeze()
        here.primary.go_alone()
        other.join(10)
        assert not other.is_alive()
        first.join(10)
        assert behind.is_alive()
        here.freezer.thaw()
        behind.join(30)
        assert here.primary.pread(0, 1, 0) == b"b"
