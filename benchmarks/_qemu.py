# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU as a peer: its block replication (two processes) and its FUSE export.

The replication is the one that QEMU's docs/block-replication.txt and COLO
use: a quorum of the local disk and of the other process's NBD export, whose
side keeps what came since the last checkpoint in an overlay.  No guest runs;
writes come in by NBD.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from _common import free_port, make_image

from remus_native import QmpGuest, StateError

MACHINE = ["-machine", "q35", "-accel", "tcg", "-m", "64", "-display", "none",
           "-nodefaults", "-S"]  # fmt: skip


def there() -> bool:
    """Whether QEMU and its tools are installed."""
    needed = ("qemu-system-x86_64", "qemu-img", "qemu-storage-daemon")
    return all(map(shutil.which, needed))


@dataclass
class QemuPair:
    """Both processes; ``uri`` takes the writes that are replicated."""

    primary: QmpGuest
    secondary: QmpGuest
    uri: str

    def checkpoint(self) -> float:
        """Take one; the seconds until the secondary has done it."""
        start = time.perf_counter()
        self.secondary.execute("xen-colo-do-checkpoint")
        return time.perf_counter() - start


def _qmp(path: Path) -> QmpGuest:
    end = time.monotonic() + 20
    while True:
        try:
            return QmpGuest(path, timeout_s=120)
        except StateError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _overlay(path: Path, size: int) -> Path:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)], check=True
    )
    return path


def _secondary_arguments(folder: Path, size: int) -> list[str]:
    active = _overlay(folder / "active.qcow2", size)
    hidden = _overlay(folder / "hidden.qcow2", size)
    disk = make_image(folder / "secondary.img", size)
    return [
        "-drive",
        f"if=none,id=secondary-disk0,file.filename={disk},driver=raw,node-name=node0",
        "-drive",
        "if=none,id=active-disk0,driver=replication,mode=secondary,"
        "file.driver=qcow2,top-id=active-disk0,"
        f"file.file.filename={active},file.backing.driver=qcow2,"
        f"file.backing.file.filename={hidden},file.backing.backing=secondary-disk0",
        "-device",
        "virtio-blk-pci,drive=active-disk0",
    ]


def _primary_arguments(folder: Path, size: int) -> list[str]:
    disk = make_image(folder / "primary.img", size)
    return [
        "-drive",
        "if=none,driver=quorum,read-pattern=fifo,id=colo-disk0,node-name=quorum0,"
        f"vote-threshold=1,children.0.file.filename={disk},children.0.driver=raw",
        "-device",
        "virtio-blk-pci,drive=colo-disk0,share-rw=on",
    ]


@contextlib.contextmanager
def block_replication(folder: Path, size: int) -> Iterator[QemuPair]:
    """Two QEMU processes whose disk of ``size`` bytes is replicated."""
    folder.mkdir()
    arguments = {
        "secondary": _secondary_arguments(folder, size),
        "primary": _primary_arguments(folder, size),
    }
    with contextlib.ExitStack() as stack:
        qmp = {}
        for side, own in arguments.items():
            path = folder / f"{side}.qmp"
            process = subprocess.Popen(
                ["qemu-system-x86_64", *MACHINE, *own,
                 "-qmp", f"unix:{path},server=on,wait=off"],
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            qmp[side] = stack.enter_context(_qmp(path))
        yield _connect(qmp["primary"], qmp["secondary"], folder)


def _connect(primary: QmpGuest, secondary: QmpGuest, folder: Path) -> QemuPair:
    port = str(free_port())
    there = {"type": "inet", "data": {"host": "127.0.0.1", "port": port}}
    secondary.execute("nbd-server-start", addr=there)
    secondary.execute("nbd-server-add", device="secondary-disk0", writable=True)
    secondary.execute("xen-set-replication", enable=True, primary=False)
    primary.execute(
        "blockdev-add",
        **{"driver": "replication", "mode": "primary", "node-name": "rep0"},
        file={
            "driver": "nbd",
            "server": {"type": "inet", "host": "127.0.0.1", "port": port},
            "export": "secondary-disk0",
        },
    )
    primary.execute("x-blockdev-change", parent="quorum0", node="rep0")
    primary.execute("xen-set-replication", enable=True, primary=True)
    path = folder / "primary.nbd"
    primary.execute(
        "nbd-server-start", addr={"type": "unix", "data": {"path": str(path)}}
    )
    primary.execute(
        "block-export-add",
        **{"type": "nbd", "id": "quorum", "node-name": "quorum0", "writable": True},
    )
    return QemuPair(primary, secondary, f"nbd+unix:///quorum0?socket={path}")


def wait_for_size(node: Path, size: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until ``process`` serves ``node``."""
    end = time.monotonic() + 20
    while node.stat().st_size != size:
        if time.monotonic() > end or process.poll() is not None:
            raise RuntimeError(f"{process.args!r}: no export")
        time.sleep(0.02)


@contextlib.contextmanager
def fuse_export(image: Path, node: Path) -> Iterator[Path]:
    """QEMU's plain FUSE export of ``image`` at ``node``; replicates nothing."""
    node.touch()
    process = subprocess.Popen(
        ["qemu-storage-daemon",
         "--blockdev", f"driver=file,node-name=file0,filename={image},cache.direct=on",
         "--blockdev", "driver=raw,node-name=disk0,file=file0",
         "--export",
         f"type=fuse,id=fuse0,node-name=disk0,mountpoint={node},writable=on"],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for_size(node, image.stat().st_size, process)
        yield node
    finally:
        process.terminate()
        process.wait()
