# SPDX-License-Identifier: LGPL-2.1-or-later
"""The FUSE nodes: what toolstacks, file systems and QEMU do with them."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from remus_native import (
    ConfigError,
    DrbdDisk,
    Export,
    Node,
    Primary,
    StateError,
    Volume,
)
from support.backup_process import BackupProcess
from support.mounted import (
    KEEP_SIZE,
    MIB,
    PUNCH_HOLE,
    ROOMY,
    ZERO_RANGE,
    fails_with,
    fallocate,
    need,
    run,
    taking_checkpoints,
)
from support.paths import PROBE

pytestmark = pytest.mark.fuse

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


def test_the_probe_knows_our_nodes(mounted):
    """block-drbd-probe: 0 for a protected node, 4 once the backup is lost."""
    m = mounted()
    asked = [str(PROBE), str(m.node())]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with DrbdDisk(m.node(), probe=PROBE) as disk:
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
    with fails_with(errno.ENOSPC):
        fallocate(fd, ZERO_RANGE, 0, MIB + 1)
    # As a block device: there is nothing to reserve, nor to move.
    for mode in (0, KEEP_SIZE, 8, 32):  # 8: collapse, 32: insert range
        with fails_with(errno.EOPNOTSUPP):
            fallocate(fd, mode, 0, 4096)
    os.posix_fallocate(fd, MIB - 8192, 8192)  # which then writes, and keeps
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
