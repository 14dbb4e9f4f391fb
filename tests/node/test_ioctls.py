# SPDX-License-Identifier: LGPL-2.1-or-later
"""The checkpoint ioctls on a node."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import subprocess
import threading
import time
from contextlib import ExitStack

import pytest

from remus_native import DrbdDisk, Export, Primary, Volume
from support.backup_process import BackupProcess
from support.mounted import (
    COMMIT,
    MIB,
    SEND,
    WAIT,
    fails_with,
    libc,
    need,
    taking_checkpoints,
)
from support.waiting import until

pytestmark = pytest.mark.fuse


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
    # What the backup took as committed is heard a moment later.
    last = status.prepared_epoch
    until(lambda: m.pair.primary.status().committed_epoch == last - 1)
    assert fcntl.ioctl(fd, COMMIT, 0) == 0
    assert fcntl.ioctl(fd, COMMIT, 0) == 0
    until(lambda: m.pair.primary.status().committed_epoch == last)
    assert m.pair.primary.status().prepared_epoch == last


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
    last = m.pair.primary.status().prepared_epoch
    until(lambda: m.pair.primary.status().committed_epoch == last)
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
                    assert libc.ioctl(fd, WAIT, CANCEL) == 0
                    time.sleep(0.01)
                assert not ended
                backup.go_on()
                thread.join(60)
                assert ended == [None]
                disk.commit()
    finally:
        backup.kill()
    assert (tmp_path / "d").read_bytes() == (tmp_path / "e").read_bytes()


@pytest.mark.alone
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
