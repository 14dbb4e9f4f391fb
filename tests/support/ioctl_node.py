# SPDX-License-Identifier: LGPL-2.1-or-later
"""The node that fails as told, and a protocol D driver's stand-in on it.

`tests/c/ioctl_node.c` is a real FUSE file, so every call of a test is a real
ioctl(2).
"""

from __future__ import annotations

import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from remus_native._core import ffi, lib

from remus_native import DrbdDisk
from support.paths import TESTS

SOURCES = [TESTS / "c" / name for name in ("ioctl_node.c", "protocol_d.c")]

OPEN = 0


class IoctlNode:
    """The mounted test node."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        self.disk = mount / "disk"
        self.proc = mount / "proc"

    def answer(self, number: int, *answers: int | tuple[int, int]) -> None:
        """What the next ioctls of ``number`` get: result, or (result, ms).

        ``OPEN`` as the number: what opening the disk gets.
        """
        pairs = [a if isinstance(a, tuple) else (a, 0) for a in answers]
        text = ",".join(f"{result}:{ms}" for result, ms in pairs)
        (self.mount / "control").write_text(f"{number}={text}")

    def log(self) -> list[tuple[int, int]]:
        lines = (self.mount / "log").read_text().splitlines()
        return [tuple(map(int, line.split())) for line in lines]  # type: ignore[misc]

    def driver(self, *words: str | int) -> None:
        """Tell the driver's stand-in: see tests/c/ioctl_node.c."""
        text = " ".join(str(word) for word in words)
        (self.mount / "control").write_text(f"driver {text}")

    def held(self) -> tuple[int, int]:
        """Writes of the guest so far, and how many of them the backup has."""
        written, held = (self.mount / "held").read_text().split()
        return int(written), int(held)


@pytest.fixture(scope="module")
def node_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("node") / "ioctl_node"
    flags = subprocess.check_output(
        ["pkg-config", "--cflags", "--libs", "fuse3"], text=True
    )
    subprocess.run(
        ["gcc", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-pthread",
         *map(str, SOURCES), "-o", str(program), *shlex.split(flags)],
        check=True,
    )  # fmt: skip
    return program


@pytest.fixture
def node(node_program: Path, tmp_path: Path) -> Iterator[IoctlNode]:
    mount = tmp_path / "node"
    mount.mkdir()
    with subprocess.Popen(
        [node_program, mount], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield IoctlNode(mount)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
            subprocess.run(
                ["umount", "-l", mount], stderr=subprocess.DEVNULL, check=False
            )


def open_as(node: IoctlNode, out: Any, *, is_node: bool, ready_ms: int = 500) -> int:
    """``ready_ms``: how long a first postsuspend waits for the device."""
    return int(
        lib.remus_test_drbd_open_as(
            bytes(node.disk), int(is_node), bytes(node.proc), ready_ms, out
        )
    )


class Raw:
    """The C device, opened as a kernel device or as a node."""

    def __init__(self, node: IoctlNode, *, is_node: bool, ready_ms: int = 500) -> None:
        out = ffi.new("remus_drbd **")
        assert open_as(node, out, is_node=is_node, ready_ms=ready_ms) == 0
        self.raw = ffi.gc(out[0], lib.remus_drbd_close)

    def close(self) -> None:
        ffi.release(self.raw)

    def wait_ready(self, ms: int = 5000) -> int:
        return int(lib.remus_drbd_wait_ready(self.raw, ms))

    def postsuspend(self, tag: int = 0) -> int:
        return int(lib.remus_drbd_postsuspend(self.raw, tag))

    def preresume(self, ms: int = 5000) -> int:
        return int(lib.remus_drbd_preresume(self.raw, ms))

    def commit(self) -> int:
        return int(lib.remus_drbd_commit(self.raw))


class KernelDisk(DrbdDisk):
    """The node as a kernel's device."""

    def __init__(self, node: IoctlNode, **options: Any) -> None:
        super().__init__(node.disk, **options)
        self._node = node

    def _open_raw(self, out: Any) -> int:
        return open_as(self._node, out, is_node=False)
