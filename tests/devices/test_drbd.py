# SPDX-License-Identifier: LGPL-2.1-or-later
"""DrbdDisk and csrc/group/drbd.c against a node that fails in every way.

The node (tests/c/ioctl_node.c) is a real FUSE file, so every call here is a
real ioctl(2).  `kernel` devices are that same file opened with a kernel
device's rules, which differ: no commit
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from remus_native import (
    CheckpointTimeout,
    ConfigError,
    DeviceNotReady,
    DeviceNotSupported,
    DrbdDisk,
    NotProtocolD,
    PhaseError,
    ReplicationLost,
    StateError,
)
from remus_native._binding import last_error
from support.ioctl_node import OPEN, IoctlNode, Raw

EPROTO, EINVAL, ENOMEM, ENOTTY = (
    errno.EPROTO,
    errno.EINVAL,
    errno.ENOMEM,
    errno.ENOTTY,
)

fuse = pytest.mark.fuse
KINDS = pytest.mark.parametrize("is_node", [False, True], ids=["kernel", "node"])


@fuse
@KINDS
def test_a_checkpoint_is_two_ioctls_and_on_a_node_three(node, is_node):
    node.answer(20, 0)
    node.answer(30, 0)
    node.answer(40, 0)
    dev = Raw(node, is_node=is_node)
    assert node.log() == []  # opening sends none
    assert dev.postsuspend(42) == 0
    assert dev.preresume() == 0
    assert dev.commit() == 0
    # A node keeps to the limit itself; the kernel's argument is always 0.
    want = [(20, 42), (30, 5000), (40, 0)] if is_node else [(20, 42), (30, 0)]
    assert node.log() == want
    del dev
    assert node.log() == want


@fuse
def test_one_means_nothing_to_wait_for_only_on_a_kernel_device(node):
    node.answer(20, 1)
    node.answer(30, 0)
    kernel = Raw(node, is_node=False)
    assert kernel.postsuspend() == 1
    assert kernel.preresume() == 0
    assert node.log() == [(20, 0)]
    ours = Raw(node, is_node=True)
    assert ours.postsuspend() == 1
    assert ours.preresume() == 0
    assert node.log() == [(20, 0), (20, 0), (30, 5000)]


@fuse
@KINDS
@pytest.mark.parametrize(
    ("err", "words"),
    [
        (EPROTO, "not connected"),
        (EINVAL, "does not use protocol D"),
        (ENOTTY, "module with protocol D is needed"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_send_fails(node, is_node, err, words):
    node.answer(20, -err)
    dev = Raw(node, is_node=is_node)
    assert dev.postsuspend() == -err
    assert words in last_error()
    assert str(node.disk) in last_error()
    # An error never counts as sent: no wait for it succeeds.
    assert dev.preresume() == -err
    assert 30 not in [number for number, _ in node.log()]


@fuse
def test_a_lost_connection_is_eproto_at_once_twice(node):
    node.answer(20, 0)
    node.answer(30, -EPROTO)
    dev = Raw(node, is_node=False)
    assert dev.postsuspend() == 0
    start = time.monotonic()
    assert dev.preresume(5000) == -EPROTO
    assert time.monotonic() - start < 1
    assert node.log() == [(20, 0), (30, 0), (30, 0)]
    # Waiting again finds nothing better, and asks nobody.
    assert dev.preresume(5000) == -EPROTO
    # Its ack could still count for the next one: nothing is sent now.
    assert dev.postsuspend() == -errno.ETIMEDOUT
    assert "older barrier" in last_error()
    assert node.log() == [(20, 0), (30, 0), (30, 0)]
    # A node has no such trap.
    ours = Raw(node, is_node=True)
    assert ours.postsuspend() == 0
    assert ours.preresume() == -EPROTO
    assert ours.preresume() == -EPROTO
    assert ours.postsuspend() == 0


@fuse
@KINDS
def test_a_late_ack_is_waited_for(node, is_node):
    """The driver gives up after its ping-timeout; the backup is well."""
    node.answer(20, 0)
    node.answer(30, (-EPROTO, 60), (-EPROTO, 60), (0, 0))
    dev = Raw(node, is_node=is_node)
    assert dev.postsuspend() == 0
    assert dev.preresume(5000) == 0
    assert [number for number, _ in node.log()] == [20, 30, 30, 30]


@fuse
@KINDS
def test_our_deadline_and_a_second_try(node, is_node):
    node.answer(20, 0)
    node.answer(30, (-EPROTO, 60), (-EPROTO, 60), (-EPROTO, 60), (0, 0))
    dev = Raw(node, is_node=is_node)
    assert dev.postsuspend() == 0
    assert dev.preresume(100) == -errno.ETIMEDOUT
    assert "wait again" in last_error()
    # The kernel's driver would clear a late ack; a node numbers its barriers.
    if not is_node:
        assert dev.postsuspend() == -errno.EBUSY
    assert dev.preresume(5000) == 0


@fuse
def test_a_node_goes_on_with_a_new_barrier_after_a_late_one(node):
    node.answer(20, 0)
    node.answer(30, -errno.ETIMEDOUT, 0)
    node.answer(40, 0)
    dev = Raw(node, is_node=True)
    assert dev.postsuspend() == 0
    assert dev.preresume(100) == -errno.ETIMEDOUT
    assert dev.commit() == -errno.EBUSY
    assert dev.postsuspend() == 0
    assert dev.preresume(100) == 0
    assert dev.commit() == 0
    assert node.log() == [(20, 0), (30, 100), (20, 0), (30, 100), (40, 0)]


@fuse
@KINDS
def test_wait_says_einval(node, is_node):
    node.answer(20, 0)
    node.answer(30, -EINVAL)
    dev = Raw(node, is_node=is_node)
    assert dev.postsuspend() == 0
    # The driver says so of StandAlone; a device that has answered before
    # does not lose its protocol.
    assert dev.preresume() == -(EINVAL if is_node else EPROTO)


@fuse
def test_enomem_is_acked_but_the_device_is_done(node):
    node.answer(20, 0)
    node.answer(30, -ENOMEM)
    dev = Raw(node, is_node=False)
    assert dev.postsuspend() == 0
    assert dev.preresume() == 0
    assert dev.postsuspend() == -errno.ESTALE
    ours = Raw(node, is_node=True)
    assert ours.postsuspend() == 0
    assert ours.preresume() == -ENOMEM


@fuse
@KINDS
def test_phases_out_of_order(node, is_node):
    node.answer(20, 0)
    node.answer(30, 0)
    node.answer(40, 0)
    dev = Raw(node, is_node=is_node)
    assert dev.preresume() == 0  # nothing outstanding, as the ioctl says
    assert dev.postsuspend() == 0
    assert dev.postsuspend() == -errno.EBUSY
    assert dev.commit() == (-errno.EBUSY if is_node else 0)
    assert dev.preresume() == 0
    assert [number for number, _ in node.log()] == [20, 30]


STORM = """
import asyncio, os, signal, sys, threading
from remus_native import AsyncCheckpointDevices, CheckpointDevices, DrbdDisk

form, path, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
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

threading.Thread(target=interrupt).start()
signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
signal.setitimer(signal.ITIMER_PROF, 0.0001, 0.0001)

def alone():
    with DrbdDisk(path) as disk:
        for _ in range(times):
            disk.postsuspend()
            disk.preresume(timeout_s=20)
            disk.commit()

def layer(disks):
    with CheckpointDevices(DrbdDisk(path) for _ in range(disks)) as devices:
        for _ in range(times):
            devices.postsuspend()
            devices.preresume(timeout_s=20)
            devices.commit()

async def loop():
    disks = [DrbdDisk(path), DrbdDisk(path)]
    async with AsyncCheckpointDevices(disks) as devices:
        for _ in range(times):
            await devices.postsuspend()
            await devices.preresume(timeout_s=20)
            await devices.commit()

def bare():
    # What comes of it without the care that is tested here.
    import fcntl
    fd = os.open(path, os.O_RDONLY)
    for _ in range(times):
        fcntl.ioctl(fd, 20)
        fcntl.ioctl(fd, 30)

try:
    {
        "alone": alone,
        "one": lambda: layer(1),
        "three": lambda: layer(3),
        "loop": lambda: asyncio.run(loop()),
        "bare": bare,
    }[form]()
    print("fine", count > times)
except OSError as error:
    print("errno", error.errno)
finally:
    stop.set()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.setitimer(signal.ITIMER_PROF, 0)
"""


def storm(where: IoctlNode, form: str, times: int = 20) -> list[str]:
    return [sys.executable, "-c", STORM, form, str(where.disk), str(times)]


@fuse
@pytest.mark.parametrize("form", ["alone", "one", "three", "loop"])
def test_signals_are_no_loss(node, form):
    """SIGALRM and SIGPROF at 10 kHz, SIGINT at 1 kHz, and a driver that says
    EPROTO to each that reaches it."""
    node.answer(20, 0)
    node.answer(30, (0, 20))
    node.answer(40, 0)
    out = subprocess.run(
        storm(node, form),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert out.stdout == "fine True\n", out.stderr
    # Not one wait was cut short and asked again.
    disks = {"three": 3, "loop": 2}.get(form, 1)
    assert len([1 for number, _ in node.log() if number == 30]) == 20 * disks


@fuse
def test_the_storm_is_one(node):
    """A program that takes no care sees a lost backup in it."""
    node.answer(20, 0)
    node.answer(30, (0, 20))
    out = subprocess.run(
        storm(node, "bare"), capture_output=True, text=True, timeout=60, check=False
    )
    assert out.stdout == f"errno {EPROTO}\n", out.stderr


@fuse
@pytest.mark.parametrize("form", ["alone", "three", "loop"])
def test_a_stopped_process_has_lost_nothing(node, form):
    """SIGSTOP can't be blocked, and a debugger or a freezer stops so, too."""
    node.answer(20, 0)
    node.answer(30, (0, 50))
    node.answer(40, 0)
    with subprocess.Popen(
        storm(node, form), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            while process.poll() is None:
                process.send_signal(signal.SIGSTOP)
                time.sleep(0.002)
                process.send_signal(signal.SIGCONT)
                time.sleep(0.08)  # longer than a wait, which begins anew
            assert process.stdout is not None
            assert process.stdout.read() == "fine True\n"
        finally:
            process.kill()


@fuse
def test_signals_that_came_meanwhile_are_delivered_after(node):
    node.answer(20, 0)
    node.answer(30, (0, 100))
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        dev = Raw(node, is_node=True)
        assert dev.postsuspend() == 0
        os.kill(os.getpid(), signal.SIGUSR1)
        assert dev.preresume() == 0
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert signal.SIGUSR1 not in mask
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [1]


# ---- the Python device ---------------------------------------------------------


@fuse
def test_the_python_device(node):
    node.answer(20, 1, 0, -EPROTO)
    node.answer(30, 0)
    node.answer(40, 0)
    disk = DrbdDisk(node.disk, name="xvda")
    with pytest.raises(PhaseError):
        disk.postsuspend()
    with disk:
        assert disk.is_node
        with pytest.raises(PhaseError):
            disk.preresume()
        with pytest.raises(PhaseError):
            disk.commit()
        assert disk.postsuspend(7) == 1
        assert disk.empty
        with pytest.raises(PhaseError) as busy:
            disk.postsuspend()
        assert busy.value.errno == errno.EBUSY
        disk.preresume()
        assert disk.postsuspend("8") == 2
        assert not disk.empty
        disk.preresume()
        disk.commit()
        with pytest.raises(ReplicationLost) as caught:
            disk.postsuspend()
        assert caught.value.errno == EPROTO
        assert caught.value.phase == "postsuspend"
        assert caught.value.volume == "xvda"
        with pytest.raises(ConfigError, match="number from 1"):
            disk.postsuspend("not a number")
        with pytest.raises(PhaseError, match="setup twice"):
            disk.setup()
    assert node.log()[0] == (20, 7)


@fuse
def test_the_python_device_times_out_and_goes_on(node):
    node.answer(20, 0)
    node.answer(30, (-EPROTO, 80), (0, 0))
    with DrbdDisk(node.disk) as disk:
        disk.postsuspend()
        with pytest.raises(CheckpointTimeout) as caught:
            disk.preresume(timeout_s=0.05)
        assert isinstance(caught.value, TimeoutError)
        disk.preresume()


@fuse
@pytest.mark.parametrize(
    ("err", "error", "words"),
    [
        (errno.EMEDIUMTYPE, DeviceNotReady, "Secondary here, make it Primary"),
        (errno.ENXIO, DeviceNotReady, "not configured, run drbdadm up"),
        (errno.EACCES, StateError, "Permission denied"),
    ],
)
def test_open_fails(node, err, error, words):
    node.answer(OPEN, -err)
    disk = DrbdDisk(node.disk)
    with pytest.raises(error, match=words) as caught:
        disk.setup()
    assert type(caught.value) is error
    assert caught.value.errno == err
    assert caught.value.phase == "setup"
    assert str(node.disk) in str(caught.value)
    assert node.log() == []
    node.answer(OPEN, 0)  # the same object, once the device is ready
    disk.setup()
    disk.teardown()


def test_what_is_no_such_device(tmp_path):
    plain = tmp_path / "image"
    plain.write_bytes(bytes(4096))
    with pytest.raises(NotProtocolD, match="takes no checkpoints") as caught:
        DrbdDisk(plain).setup()
    assert caught.value.errno == ENOTTY
    with pytest.raises(StateError, match=r"No such file.*run drbdadm up") as missing:
        DrbdDisk(tmp_path / "drbd7").setup()
    assert missing.value.errno == errno.ENOENT
    with pytest.raises(NotProtocolD):
        DrbdDisk(tmp_path).setup()


def test_a_character_device_gets_enotty_from_its_driver():
    with DrbdDisk("/dev/null") as disk:
        assert not disk.is_node
        with pytest.raises(NotProtocolD):
            disk.postsuspend()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (1, DeviceNotSupported),
        (2, StateError),
        (3, NotProtocolD),
        (4, DeviceNotReady),
        (77, StateError),
    ],
)
def test_the_probes_exit_codes(tmp_path, code, error):
    probe = tmp_path / "probe"
    probe.write_text(f'#!/bin/sh\necho "probe of $1: because" >&2\nexit {code}\n')
    probe.chmod(0o755)
    with pytest.raises(error, match="because") as caught:
        DrbdDisk("/dev/null", probe=probe).setup()
    assert type(caught.value) is error
    assert f"exit code {code}" in str(caught.value)


def test_a_probe_that_says_yes_and_one_that_is_missing(tmp_path):
    disk: Any = DrbdDisk("/dev/null", probe="/bin/true")
    disk.setup()
    disk.teardown()
    disk.teardown()
    with pytest.raises(StateError, match="No such file"):
        DrbdDisk("/dev/null", probe=tmp_path / "nothing").setup()
