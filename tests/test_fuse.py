# SPDX-License-Identifier: LGPL-2.1-or-later
"""The FUSE nodes: what toolstacks, file systems and QEMU do with them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from backup_process import BackupProcess
from test_life import until

from remus_native import (
    ConfigError,
    DrbdDisk,
    Export,
    Node,
    Primary,
    StateError,
    Volume,
)

pytestmark = pytest.mark.fuse

MIB = 1 << 20
SEND, WAIT, COMMIT = 20, 30, 40
ROOMY = {"journal_bytes": 32 << 20, "segment_bytes": 1 << 20}
PUNCH_HOLE, KEEP_SIZE, ZERO_RANGE = 2, 1, 16

_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    rc = _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length))
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


# ---- what is there ---------------------------------------------------------------


def test_the_directory(mounted):
    m = mounted([MIB, 3 * 512])
    assert sorted(os.listdir(m.at)) == ["status", "status.json", "xvda", "xvdb"]
    assert m.node(0).stat().st_size == MIB
    assert m.node(1).stat().st_size == 3 * 512
    assert m.node(0).stat().st_mode == 0o100600
    first = (m.at / "status").read_text().splitlines()[0]
    assert first.startswith("remus-native resource=guest0 role=primary state=Protected")
    status = json.loads((m.at / "status.json").read_text())
    assert status["state"] == "Protected"
    assert status["volumes"] == 2
    line = next(
        line
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if str(m.at) in line
    )
    assert line.split()[2] == "fuse.remus-native"
    with fails_with(errno.ENOSYS, errno.EPERM, errno.EACCES):
        (m.at / "new").write_bytes(b"")


def test_nothing_is_left_behind(mounted):
    m = mounted()
    assert m.export.alive
    fd = m.open()
    m.export.close()
    assert not os.path.ismount(m.at)
    assert os.listdir(m.at) == []
    with fails_with(errno.ENOTCONN, errno.ECONNABORTED):
        os.pread(fd, 1, 0)


def test_the_primary_closes_its_exports_first(mounted):
    m = mounted()
    m.pair.primary.close()
    assert m.export.closed
    assert not os.path.ismount(m.at)


def test_a_live_mount_is_not_covered(mounted):
    m = mounted()
    with pytest.raises((ConfigError, StateError)) as caught:
        Export(m.pair.primary, m.at)
    assert caught.value.errno == errno.EBUSY
    with pytest.raises((ConfigError, StateError)) as caught:
        Export(m.pair.primary, m.pair.folder / "primary.xvda")
    assert caught.value.errno == errno.ENOTDIR


DIES = """
import os, sys
from remus_native import Export, Primary, Volume
folder, mount = sys.argv[1:]
primary = Primary("guest0", state_dir=folder, volumes=[Volume("xvda", folder + "/d")],
                  address="unix:" + folder + "/nobody")
export = Export(primary, mount)
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_dead_process_mount_is_replaced(mounted, tmp_path):
    folder = tmp_path / "dead"
    folder.mkdir()
    (folder / "d").write_bytes(bytes(4096))
    mount = tmp_path / "again"
    mount.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", DIES, str(folder), str(mount)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        process.wait()
    with fails_with(errno.ENOTCONN):
        os.listdir(mount)
    m = mounted()
    with Export(m.pair.primary, mount) as export:
        assert os.listdir(mount)
        assert export.path("xvda") == str(mount / "xvda")
    assert os.listdir(mount) == []


def test_owner_and_mode(mounted):
    m = mounted(nodes=[Node(uid=1234, gid=99, mode=0o640)])
    st = m.node().stat()
    assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (1234, 99, 0o640)
    os.chown(m.node(), 4321, 100)
    m.node().chmod(0o600)
    st = m.node().stat()
    assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (4321, 100, 0o600)
    # pytest's own folders are for root alone: hand over the open directory.
    at = os.open(m.at, os.O_RDONLY)
    try:
        for uid, allowed in ((4321, True), (4322, False)):
            done = subprocess.run(
                ["/usr/bin/head", "-c", "1", f"/proc/self/fd/{at}/xvda"],
                pass_fds=[at],
                user=uid,
                group=4321,
                extra_groups=[],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                check=False,
            )
            assert (done.returncode == 0) == allowed, done.stderr
    finally:
        os.close(at)


# ---- I/O ------------------------------------------------------------------


def test_unaligned_io_reaches_both_sides(mounted):
    m = mounted([MIB, 65536 + 512], **ROOMY)
    rng = random.Random(5)
    model = [bytearray(MIB), bytearray(65536 + 512)]
    fds = [m.open(0), m.open(1)]
    for _ in range(300):
        i = rng.randrange(2)
        data = rng.randbytes(rng.randrange(1, 9000))
        at = rng.randrange(len(model[i]) - len(data))
        assert os.pwrite(fds[i], data, at) == len(data)
        model[i][at : at + len(data)] = data
        start = max(0, at - 100)
        assert os.pread(fds[i], 9999, start) == model[i][start : start + 9999]
    assert m.failed_over() == [bytes(data) for data in model]


def test_the_end_of_the_disk(mounted):
    m = mounted([65536])
    fd = m.open()
    with fails_with(errno.ENOSPC):
        os.pwrite(fd, b"x", 65536)
    assert os.pwrite(fd, b"abcdef", 65533) == 3
    assert os.pread(fd, 10, 65530) == b"\0\0\0abc"
    assert os.pread(fd, 10, 65536) == b""
    with fails_with(errno.EINVAL):
        os.ftruncate(fd, 4096)
    os.ftruncate(fd, 65536)
    m.node().open("wb").close()  # O_TRUNC: no effect, as on a disk
    assert m.node().stat().st_size == 65536
    assert os.lseek(fd, 0, os.SEEK_END) == 65536
    assert m.failed_over()[0][-3:] == b"abc"


def test_punch_hole_and_zero_range(mounted):
    m = mounted([MIB], **ROOMY)
    fd = m.open()
    os.pwrite(fd, b"\xff" * MIB, 0)
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 1000, 5000)
    fallocate(fd, ZERO_RANGE, 100000, 1)
    fallocate(fd, ZERO_RANGE | KEEP_SIZE, MIB - 10, 10)
    fallocate(fd, 0, 0, MIB)
    with fails_with(errno.ENOSPC):
        fallocate(fd, 0, 0, MIB + 1)
    with fails_with(errno.EOPNOTSUPP):
        fallocate(fd, 8, 0, 4096)  # collapse range
    os.fsync(fd)
    os.fdatasync(fd)
    want = bytearray(b"\xff" * MIB)
    want[1000:6000] = bytes(5000)
    want[100000] = 0
    want[-10:] = bytes(10)
    assert m.failed_over() == [bytes(want)]


def test_ext4_on_a_loop_device(mounted, tmp_path):
    need("mkfs.ext4")
    m = mounted([48 * MIB], journal_bytes=128 * MIB, segment_bytes=4 * MIB)
    stop, taker = taking_checkpoints(m.pair.primary)
    with ExitStack() as stack:
        stack.callback(taker.join)
        stack.callback(stop.set)
        loop = run("losetup", "-f", "--show", m.node()).strip()
        stack.callback(run, "losetup", "-d", loop)
        run("mkfs.ext4", "-q", loop)
        at = tmp_path / "fs"
        at.mkdir()
        run("mount", loop, at)
        unmount = stack.enter_context(ExitStack())
        unmount.callback(run, "umount", at)
        data = random.Random(1).randbytes(3 * MIB)
        (at / "file").write_bytes(data)
        os.sync()
        assert (at / "file").read_bytes() == data
        unmount.close()
        run("e2fsck", "-fn", loop)
    m.failed_over()
    run("e2fsck", "-fn", m.pair.folder / "backup.xvda")
    found = run("debugfs", "-R", "stat file", m.pair.folder / "backup.xvda")
    assert str(3 * MIB) in found


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


def test_fio_with_verify(mounted):
    need("fio")
    m = mounted([16 * MIB], journal_bytes=64 * MIB, segment_bytes=4 * MIB)
    stop, taker = taking_checkpoints(m.pair.primary)
    try:
        run(
            "fio", "--name=verify", f"--filename={m.node()}", "--rw=randwrite",
            "--bsrange=512-64k", "--bs_unaligned=0", "--ioengine=libaio",
            "--direct=1", "--iodepth=32", "--size=16m", "--io_size=16m",
            "--verify=crc32c", "--randseed=7", "--verify_fatal=1",
            "--verify_state_save=0", cwd=m.pair.folder,
        )  # fmt: skip
    finally:
        stop.set()
        taker.join()
    m.failed_over()


def test_qemus_raw_driver(mounted):
    need("qemu-io")
    m = mounted([8 * MIB], journal_bytes=64 * MIB, segment_bytes=4 * MIB)
    stop, taker = taking_checkpoints(m.pair.primary)
    try:
        run(
            "qemu-io", "-t", "none", "-f", "raw", m.node(),
            "-c", "write -P 0x41 0 1M", "-c", "write -P 0x42 512k 4k",
            "-c", "write -z 2M 64k", "-c", "discard 3M 64k", "-c", "flush",
            "-c", "read -P 0x41 0 512k", "-c", "read -P 0x42 512k 4k",
            "-c", "read -P 0 2M 64k",
        )  # fmt: skip
        copy = m.pair.folder / "copy"
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", m.node(), copy)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", m.node(), copy)
    finally:
        stop.set()
        taker.join()
    m.failed_over()


# ---- the ioctls -----------------------------------------------------------


def test_send_wait_and_commit(mounted):
    m = mounted()
    fd = m.open(flags=os.O_RDONLY)
    writer = m.open()
    before = m.pair.primary.status()
    assert fcntl.ioctl(fd, WAIT, 0) == 0  # nothing outstanding
    assert fcntl.ioctl(fd, SEND, 0) == 1  # empty, sent all the same
    assert fcntl.ioctl(fd, WAIT, 0) == 0
    os.pwrite(writer, b"epoch", 0)
    assert fcntl.ioctl(fd, SEND, 7) == 0
    assert fcntl.ioctl(fd, WAIT, 0) == 0
    assert fcntl.ioctl(fd, WAIT, 0) == 0
    status = m.pair.primary.status()
    assert status.epochs == before.epochs + 2
    assert status.prepared_epoch == status.open_epoch - 1
    # The second 20 committed the first; 40 commits the second.
    assert status.committed_epoch == status.prepared_epoch - 1
    assert fcntl.ioctl(fd, COMMIT, 0) == 0
    assert fcntl.ioctl(fd, COMMIT, 0) == 0
    status = m.pair.primary.status()
    assert status.committed_epoch == status.prepared_epoch


def test_only_what_the_toolstack_knows_to_be_safe_is_committed_by_the_next(mounted):
    """A 20 whose 30 never came, or came too late, says nothing about memory."""
    m = mounted()
    primary, writer = m.pair.primary, m.open()
    fd = m.open(flags=os.O_RDONLY)

    def acked(epoch):
        until(lambda: primary.status().prepared_epoch >= epoch)

    def send(data):
        if data:
            os.pwrite(writer, data, 0)
        assert fcntl.ioctl(fd, SEND, 0) == (0 if data else 1)
        epoch = primary.status().open_epoch - 1
        acked(epoch)
        return epoch, primary.status().committed_epoch

    first, _ = send(b"first")
    assert fcntl.ioctl(fd, WAIT, 0) == 0
    second, committed = send(b"second")
    assert committed == first
    third, committed = send(b"third")  # nobody waited for the second
    assert committed == first
    assert fcntl.ioctl(fd, WAIT, 0) == 0
    empty, committed = send(b"")
    assert committed == third > second
    _, committed = send(b"more")  # an empty one needs no 30
    assert committed == empty
    assert fcntl.ioctl(fd, WAIT, 0) == 0
    m.failed_over()


@pytest.mark.parametrize("number", [0, 19, 21, 31, 41, 0x80081272, 0x5401])
def test_any_other_number_is_enotty(mounted, number):
    m = mounted()
    fd = m.open()
    with fails_with(errno.ENOTTY):
        fcntl.ioctl(fd, number, bytes(8) if number > 1000 else 0)
    for name in ("status", "status.json", "."):
        other = os.open(m.at / name, os.O_RDONLY)
        with fails_with(errno.ENOTTY):
            fcntl.ioctl(other, SEND, 0)
        os.close(other)


def test_volumes_join_one_barrier(mounted):
    m = mounted([65536] * 3)
    fds = [m.open(i, os.O_RDONLY) for i in range(3)]
    start = m.pair.primary.status().epochs
    for round_ in range(1, 4):
        os.pwrite(m.open(2), b"only this one wrote", 0)
        assert [fcntl.ioctl(fd, SEND, 0) for fd in fds] == [0, 0, 0]
        assert [fcntl.ioctl(fd, WAIT, 0) for fd in fds] == [0, 0, 0]
        assert m.pair.primary.status().epochs == start + round_
    assert [fcntl.ioctl(fd, SEND, 0) for fd in fds] == [1, 1, 1]


def test_a_session_that_ended_leaves_no_barrier_to_join(mounted):
    m = mounted([65536, 65536])
    a, b = m.open(0, os.O_RDONLY), m.open(1, os.O_RDONLY)
    assert fcntl.ioctl(a, SEND, 0) == 1
    os.close(a)
    deadline = time.monotonic() + 10
    os.pwrite(m.open(1), b"after the first session", 0)
    # The kernel sends the release a moment after close.
    while True:
        start = m.pair.primary.status().epochs
        result = fcntl.ioctl(b, SEND, 0)
        if m.pair.primary.status().epochs == start + 1:
            break
        assert time.monotonic() < deadline
    assert result == 0


def test_eproto_without_a_backup(mounted):
    m = mounted()
    fd = m.open(flags=os.O_RDONLY)
    os.pwrite(m.open(), b"x", 0)
    assert fcntl.ioctl(fd, SEND, 0) == 0
    assert fcntl.ioctl(fd, WAIT, 0) == 0
    m.pair.backup.close()
    deadline = time.monotonic() + 10
    while m.pair.primary.status().connected:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert fcntl.ioctl(fd, WAIT, 0) == 0  # that one was acked before
    with fails_with(errno.EPROTO):
        fcntl.ioctl(fd, SEND, 0)
    os.pwrite(m.open(), b"the guest goes on", 0)
    assert "state=Unprotected" in (m.at / "status").read_text().splitlines()[0]


def test_tags_and_the_default_of_an_ioctl_driven_resource(mounted):
    m = mounted()
    fd, writer = m.open(flags=os.O_RDONLY), m.open()
    for tag in (11, 12, 13):
        os.pwrite(writer, b"%d" % tag, 0)
        assert fcntl.ioctl(fd, SEND, tag) == 0
        assert fcntl.ioctl(fd, WAIT, 0) == 0
    os.pwrite(writer, b"never", 0)
    m.export.close()
    m.pair.primary.close()
    offered = m.pair.backup.checkpoints()
    # 20 committed the one before: the last committed and one prepared.
    assert [(cp.tag, cp.committed) for cp in offered] == [
        (b"12", True),
        (b"13", False),
    ]
    m.pair.backup.promote()
    assert m.pair.image("backup", 0)[:5] == b"13\0\0\0"


def test_drbd_disk_drives_a_node(mounted):
    m = mounted([65536, 65536])
    writer = m.open(1)
    with DrbdDisk(m.node(0)) as a, DrbdDisk(m.node(1)) as b:
        assert a.is_node
        for i in range(1, 5):
            os.pwrite(writer, b"%d" % i, 0)
            a.postsuspend(i)
            b.postsuspend(i)
            a.preresume()
            b.preresume()
            a.commit()
            b.commit()
    status = m.pair.primary.status()
    assert status.committed_epoch == status.prepared_epoch
    m.export.close()
    m.pair.primary.close()
    m.pair.backup.promote(tag=4)
    assert m.pair.image("backup", 1)[:1] == b"4"


CANCEL = ctypes.c_ulong(0xFFFFFFFF)  # REMUS_WAIT_CANCEL


def test_a_cancel_that_comes_late_does_not_end_the_next_wait(tmp_path):
    """Sent for a wait that was over by the time it arrived."""
    (tmp_path / "d").write_bytes(bytes(MIB))
    (tmp_path / "e").write_bytes(bytes(MIB))
    for name in ("ps", "bs", "mnt"):
        (tmp_path / name).mkdir()
    address = f"unix:{tmp_path}/sock"
    backup = BackupProcess(address, tmp_path / "bs", {"xvda": tmp_path / "e"})
    volumes = [Volume("xvda", tmp_path / "d")]
    try:
        with (
            Primary("guest0", state_dir=tmp_path / "ps", volumes=volumes,
                    address=address) as primary,
            Export(primary, tmp_path / "mnt"),
        ):  # fmt: skip
            primary.wait_protected(timeout_s=20)
            with DrbdDisk(tmp_path / "mnt" / "xvda") as disk:
                [fd] = [
                    int(name)
                    for name in os.listdir("/proc/self/fd")
                    if os.path.exists(f"/proc/self/fd/{name}")
                    and os.readlink(f"/proc/self/fd/{name}").endswith("/mnt/xvda")
                ]
                backup.pause()
                disk.postsuspend(1)
                ended = []
                thread = threading.Thread(
                    target=lambda: ended.append(disk.preresume(60))
                )
                thread.start()
                # Each is heard by a wait that is parked by then.
                end = time.monotonic() + 0.3
                while time.monotonic() < end:
                    assert _libc.ioctl(fd, WAIT, CANCEL) == 0
                    time.sleep(0.01)
                assert not ended
                backup.go_on()
                thread.join(60)
                assert ended == [None]
                disk.commit()
    finally:
        backup.kill()
    assert (tmp_path / "d").read_bytes() == (tmp_path / "e").read_bytes()


def test_ioctl_20_answers_at_once_while_writes_and_a_wait_are_held(tmp_path):
    """A stopped backup: the queue is full, 64 writes wait, an ack is missing.

    The writes are asynchronous, as QEMU's and a loop device's are: the
    kernel lets synchronous writers into a file one at a time.
    """
    need("fio")
    size = 96 * MIB // 4
    for name in ("d", "e"):
        (tmp_path / name).write_bytes(bytes(size))
    for name in ("ps", "bs", "mnt"):
        (tmp_path / name).mkdir()
    address = f"unix:{tmp_path}/held"
    backup = BackupProcess(address, tmp_path / "bs", {"xvda": tmp_path / "e"})
    with ExitStack() as stack:
        stack.callback(backup.kill)
        primary = stack.enter_context(
            Primary(
                "guest0",
                state_dir=tmp_path / "ps",
                volumes=[Volume("xvda", tmp_path / "d")],
                address=address,
                queue_bytes=4 * MIB,
                loss_ms=60000,
                stall_ms=60000,
            )
        )
        primary.wait_protected(timeout_s=30)
        stack.enter_context(Export(primary, tmp_path / "mnt"))
        fd = os.open(tmp_path / "mnt" / "xvda", os.O_RDONLY)
        stack.callback(os.close, fd)
        stack.callback(backup.go_on)
        backup.pause()
        assert fcntl.ioctl(fd, SEND, 0) == 1
        answers: list[int] = []
        waiter = threading.Thread(
            target=lambda: answers.append(fcntl.ioctl(fd, WAIT, 0))
        )
        waiter.start()
        writers = stack.enter_context(
            subprocess.Popen(
                [
                    "fio", "--name=held", f"--filename={tmp_path}/mnt/xvda",
                    "--rw=write", "--bs=256k", "--ioengine=libaio", "--direct=1",
                    "--iodepth=96", f"--size={size}", "--thread",
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while primary.status().parked_writes < 64:
            assert time.monotonic() < deadline, primary.status()
            time.sleep(0.01)
        times = []
        for _ in range(3):
            start = time.monotonic()
            assert fcntl.ioctl(fd, SEND, 0) in (0, 1)
            times.append(time.monotonic() - start)
        assert max(times) < 0.1
        assert not answers
        assert primary.status().parked_writes >= 64
        # With the backup back, checkpoints make room and all are answered.
        backup.go_on()
        stop, taker = taking_checkpoints(primary)
        try:
            assert writers.wait(timeout=60) == 0
            waiter.join(timeout=60)
        finally:
            stop.set()
            taker.join()
        assert answers == [0]


def test_the_probe_knows_our_nodes(mounted):
    """block-drbd-probe: 0 for a protected node, 4 once the backup is lost."""
    probe = Path(__file__).parent.parent / "hotplug" / "block-drbd-probe"
    m = mounted()
    asked = [str(probe), str(m.node())]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with DrbdDisk(m.node(), probe=probe) as disk:
        disk.postsuspend()
        disk.preresume()
    m.pair.backup.close()
    deadline = time.monotonic() + 10
    while m.pair.primary.status().connected:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "Unprotected" in done.stderr


# ---- disks that are somebody else's ------------------------------------------------


@contextlib.contextmanager
def loop_device(image: Path) -> Iterator[str]:
    device = run("losetup", "--find", "--show", image).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


def test_a_mounted_block_device_is_refused(tmp_path):
    need("losetup")
    need("mkfs.ext4")
    image, mount = tmp_path / "image", tmp_path / "mount"
    image.write_bytes(bytes(8 << 20))
    mount.mkdir()
    (tmp_path / "state").mkdir()

    def open_it() -> Any:
        return Primary(
            "guest0",
            state_dir=tmp_path / "state",
            volumes=[Volume("xvda", device)],
            address=f"unix:{tmp_path}/sock",
        )

    with loop_device(image) as device:
        run("mkfs.ext4", "-q", device)
        run("mount", device, mount)
        try:
            with pytest.raises(StateError, match="in use: mounted") as caught:
                open_it()
            assert caught.value.errno == errno.EBUSY
        finally:
            run("umount", mount)
        with open_it():
            # And nobody mounts it under us.
            done = subprocess.run(
                ["mount", device, mount], capture_output=True, check=False
            )
            assert done.returncode != 0


# ---- a close that can't wait ---------------------------------------------------------

HELD = """
import fcntl, os, sys, threading
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.ioctl(fd, 20)
def wait():
    try:
        fcntl.ioctl(fd, 30)
        print("acked", flush=True)
    except OSError as error:
        print("failed", flush=True)
threading.Thread(target=wait).start()
print("ready", flush=True)
sys.stdin.readline()
try:
    os.pread(fd, 4096, 0)
    print("read", flush=True)
except OSError as error:
    print("gone", flush=True)
"""


def test_a_close_with_a_request_parked_leaves_nobody_hanging(tmp_path):
    """The backup is stopped, so the request can't be answered."""
    for side in ("primary", "backup"):
        (tmp_path / side).mkdir()
        (tmp_path / f"{side}.img").write_bytes(bytes(65536))
    (tmp_path / "mount").mkdir()
    address = f"unix:{tmp_path}/sock"
    backup = BackupProcess(
        address, tmp_path / "backup", {"xvda": tmp_path / "backup.img"}
    )
    with ExitStack() as stack:
        stack.callback(backup.kill)
        primary = stack.enter_context(
            Primary(
                "guest0",
                state_dir=tmp_path / "primary",
                volumes=[Volume("xvda", tmp_path / "primary.img")],
                address=address,
                loss_ms=60000,
            )
        )
        primary.wait_protected(30)
        export = Export(primary, tmp_path / "mount")
        stack.callback(export.close)
        backup.pause()
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", HELD, export.path("xvda")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        export.close()
        assert not os.path.ismount(tmp_path / "mount")
        assert process.stdout.readline() == "failed\n"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "gone\n"
        assert process.wait(10) == 0
        # The place can be used again while the old request is still out.
        with Export(primary, tmp_path / "mount") as again:
            assert os.path.exists(again.path("xvda"))
        backup.go_on()
