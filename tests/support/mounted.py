# SPDX-License-Identifier: LGPL-2.1-or-later
"""A pair in this process whose primary's nodes are mounted."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from remus_native import Export, Primary

MIB = 1 << 20
SEND, WAIT, COMMIT = 20, 30, 40
ROOMY = {"journal_bytes": 32 << 20, "segment_bytes": 1 << 20}
PUNCH_HOLE, KEEP_SIZE, ZERO_RANGE = 2, 1, 16

libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    rc = libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length))
    if rc:
        raise OSError(ctypes.get_errno(), "fallocate")


@contextlib.contextmanager
def fails_with(*numbers: int) -> Iterator[None]:
    """The block raises an OSError with one of these errnos."""
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        yield
    assert caught.value.errno in numbers


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
        **options,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}"
    return done.stdout


def need(tool: str) -> None:
    if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip(f"{tool} is not installed")


class Mounted:
    """Both sides in this process, the primary's nodes mounted."""

    def __init__(self, pair: Any, stack: ExitStack, nodes: Any = None) -> None:
        self.pair = pair
        self.stack = stack
        self.at = pair.folder / "mount"
        self.at.mkdir()
        self.export = Export(pair.primary, self.at, nodes=nodes)
        stack.callback(self.export.close)

    def node(self, index: int = 0) -> Path:
        return self.at / self.pair.names[index]

    def open(self, index: int = 0, flags: int = os.O_RDWR) -> int:
        fd = os.open(self.node(index), flags | os.O_CLOEXEC)
        self.stack.callback(close_quietly, fd)
        return fd

    def failed_over(self) -> list[bytes]:
        """Both images after a checkpoint and a promote, compared."""
        epoch = self.pair.primary.postsuspend()
        self.pair.primary.preresume(epoch, timeout_s=20)
        self.pair.primary.commit(epoch)
        self.export.close()
        self.pair.primary.close()
        assert self.pair.backup.promote(epoch) == epoch
        images = []
        for i in range(len(self.pair.sizes)):
            images.append(self.pair.image("backup", i))
            assert images[-1] == self.pair.image("primary", i)
        return images


def close_quietly(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


@pytest.fixture
def mounted(make_pair: Any) -> Iterator[Any]:
    with ExitStack() as stack:

        def make(sizes: list[int] | None = None, nodes: Any = None, **options: Any):
            return Mounted(make_pair(sizes or [MIB], **options), stack, nodes)

        yield make


def taking_checkpoints(
    primary: Primary, pause_s: float = 0.01
) -> tuple[threading.Event, threading.Thread]:
    """A thread that checkpoints until the event is set."""
    stop = threading.Event()

    def take() -> None:
        while not stop.wait(pause_s):
            epoch = primary.postsuspend()
            primary.preresume(epoch, timeout_s=30)
            primary.commit(epoch)

    thread = threading.Thread(target=take)
    thread.start()
    return stop, thread
