# SPDX-License-Identifier: LGPL-2.1-or-later
"""The device layer over FUSE nodes, and through a storm of signals."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from remus_native import (
    CheckpointCancelled,
    CheckpointDevices,
    CheckpointTimeout,
    DeviceErrors,
    DrbdDisk,
    Export,
)
from support.paths import TESTS
from support.session import Session, in_thread

# ---- nodes ---------------------------------------------------------------------


@pytest.fixture
def nodes(session: Session) -> Iterator[list[str]]:
    mount = session.folder / "mount"
    mount.mkdir()
    with Export(session.primary, mount) as export:
        yield [export.path(name) for name in ("a", "b")]


def each(error: BaseException) -> list[type[Exception]]:
    """What every device raised."""
    assert isinstance(error.__cause__, DeviceErrors)
    return [type(one) for one in error.__cause__.errors]


@pytest.mark.alone
@pytest.mark.fuse
def test_a_node_keeps_to_the_limit_and_hears_a_cancel(session, nodes):
    with CheckpointDevices(map(DrbdDisk, nodes)) as devices:
        session.backup.pause()
        devices.postsuspend(7)
        start = time.monotonic()
        with pytest.raises(CheckpointTimeout) as late:
            devices.preresume(0.2)
        assert 0.19 < time.monotonic() - start < 2
        assert each(late.value) == [CheckpointTimeout] * 2
        thread, ended = in_thread(lambda: devices.preresume(20))
        time.sleep(0.05)
        start = time.monotonic()
        assert devices.cancel()
        thread.join(20)
        assert time.monotonic() - start < 0.5
        assert isinstance(ended[0], CheckpointCancelled)
        assert each(ended[0]) == [CheckpointCancelled] * 2
        # After a wait that failed a new barrier may follow.
        devices.postsuspend(8)
        session.backup.go_on()
        devices.preresume(20)
        devices.commit()


@pytest.mark.fuse
def test_a_disk_alone_hears_a_cancel(session, nodes):
    with DrbdDisk(nodes[0]) as disk:
        session.backup.pause()
        disk.postsuspend()
        thread, ended = in_thread(lambda: disk.preresume(20))
        time.sleep(0.05)
        disk.cancel()
        thread.join(20)
        assert isinstance(ended[0], CheckpointCancelled)
        session.backup.go_on()
        disk.preresume(20)
        disk.commit()


@pytest.mark.fuse
def test_a_signal_ends_an_ioctl_30_of_somebody_else(session, nodes):
    """What libxl's child would meet; the barrier can be waited for again."""
    program = """
import errno, fcntl, os, signal, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
assert fcntl.ioctl(fd, 20) in (0, 1)
def stop(*_):
    raise InterruptedError
signal.signal(signal.SIGALRM, stop)
print("ready", flush=True)
try:
    fcntl.ioctl(fd, 30)
except InterruptedError:
    print("interrupted", flush=True)
sys.stdin.readline()
fcntl.ioctl(fd, 30)
print("acked", flush=True)
"""
    session.backup.pause()
    with subprocess.Popen(
        [sys.executable, "-c", program, nodes[0]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.1)
            process.send_signal(signal.SIGALRM)
            assert process.stdout.readline() == "interrupted\n"
            session.backup.go_on()
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "acked\n"
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.mark.fuse
def test_a_killed_waiter_goes_away(session, nodes):
    program = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.ioctl(fd, 20)
print("ready", flush=True)
fcntl.ioctl(fd, 30)
"""
    session.backup.pause()
    with subprocess.Popen(
        [sys.executable, "-c", program, nodes[0]], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.1)
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
    session.backup.go_on()


@pytest.mark.fuse
def test_the_limit_in_the_argument_of_ioctl_30(session, nodes):
    fd = os.open(nodes[0], os.O_RDONLY)
    try:
        session.backup.pause()
        assert fcntl.ioctl(fd, 20) in (0, 1)
        with pytest.raises(OSError, match="timed out") as caught:
            fcntl.ioctl(fd, 30, 50)
        assert caught.value.errno == errno.ETIMEDOUT
        session.backup.go_on()
        assert fcntl.ioctl(fd, 30) == 0
    finally:
        os.close(fd)


# ---- signals -------------------------------------------------------------------

STORM = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from support.session import Session
from remus_native import CheckpointDevices, DrbdDisk, Export

session = Session(Path(sys.argv[1]))
mount = Path(sys.argv[1]) / "mount"
mount.mkdir()
count = 0
def on_signal(*_):
    global count
    count += 1
for number in (signal.SIGALRM, signal.SIGPROF, signal.SIGINT):
    signal.signal(number, on_signal)
stop = threading.Event()
def interrupt():
    while not stop.wait(0.001):
        os.kill(os.getpid(), signal.SIGINT)

def epochs(devices, n):
    with devices:
        for i in range(n):
            session.primary.pwrite(0, bytes([i % 256]) * 512, 0)
            devices.postsuspend(i + 1)
            devices.preresume(20)
            devices.commit()

try:
    export = Export(session.primary, mount)
    disks = [DrbdDisk(export.path(name)) for name in ("a", "b")]
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    signal.setitimer(signal.ITIMER_PROF, 0.0001, 0.0001)
    thread = threading.Thread(target=interrupt)
    thread.start()
    epochs(CheckpointDevices([session.resource]), 200)
    epochs(CheckpointDevices(disks[:1]), 200)
    epochs(CheckpointDevices(disks), 200)
finally:
    stop.set()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.setitimer(signal.ITIMER_PROF, 0)
    session.close()
print("fine", count > 100)
"""


@pytest.mark.fuse
def test_a_storm_of_signals_is_no_loss(tmp_path):
    out = subprocess.run(
        [sys.executable, "-c", STORM, str(tmp_path), str(TESTS)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    subprocess.run(
        ["umount", "-l", tmp_path / "mount"], stderr=subprocess.DEVNULL, check=False
    )
    assert out.stdout == "fine True\n", out.stderr
