# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel's protocol D device: nothing is called safe that is not.

The driver has one ack bit, one flag and no numbers; `tests/c/protocol_d.c`
stands in for it, with the backup behind it, so that "safe" can be held
against what the backup has.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from remus_native import (
    CheckpointDevices,
    Checkpointer,
    CheckpointTimeout,
    DeviceNotReady,
    NotProtocolD,
    NullGuest,
    PhaseError,
    ReplicationLost,
    StateError,
)
from remus_native._binding import last_error
from remus_native.errors import CheckpointUnknown
from support.ioctl_node import IoctlNode, KernelDisk, Raw

pytestmark = pytest.mark.fuse

EPROTO, ETIMEDOUT, ETIME, ENOTCONN, EBUSY = (
    errno.EPROTO,
    errno.ETIMEDOUT,
    errno.ETIME,
    errno.ENOTCONN,
    errno.EBUSY,
)


@pytest.fixture
def minor(node: IoctlNode) -> IoctlNode:
    """A minor of a protocol D driver, Connected and Primary/Primary."""
    node.driver("on")
    return node


def kernel(node: IoctlNode) -> Raw:
    return Raw(node, is_node=False)


def sent(node: IoctlNode) -> int:
    return [number for number, _ in node.log()].count(20)


def later(seconds: float, work: Callable[[], Any]) -> threading.Timer:
    timer = threading.Timer(seconds, work)
    timer.start()
    return timer


def safe(node: IoctlNode, dev: Raw, ms: int = 300) -> bool:
    """Does preresume say safe?  Then the backup must have every write."""
    rc = dev.preresume(ms)
    if rc == 0:
        written, held = node.held()
        assert held == written, f"safe, and the backup has {held} of {written}"
    return rc == 0


# ---- an old barrier ------------------------------------------------------------


def test_an_old_barriers_late_ack_is_not_the_new_ones(minor):
    """Teardown between 20 and 30, setup, a write, 20, 30."""
    minor.driver("ack_ms", 90)
    minor.driver("done_ms", 5)
    minor.driver("write")
    old = kernel(minor)
    assert old.postsuspend() == 0
    old.close()
    new = kernel(minor)
    later(0.01, lambda: minor.driver("ack_ms", -1))
    minor.driver("write")
    assert new.postsuspend() == 0
    assert not safe(minor, new)  # the link is down: no ack can come
    minor.driver("ack")
    assert safe(minor, new)


def test_of_a_process_that_was_killed(minor):
    minor.driver("ack_ms", 400)
    minor.driver("done_ms", 5)
    minor.driver("write")
    code = f"""
import fcntl, os, time
fd = os.open({str(minor.disk)!r}, os.O_RDONLY)
fcntl.ioctl(fd, 20)
print("sent", flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sent\n"
        process.send_signal(signal.SIGKILL)
    minor.driver("ack_ms", -1)
    minor.driver("write")
    new = kernel(minor)
    assert new.postsuspend() == 0
    assert not safe(minor, new)
    minor.driver("ack")
    assert safe(minor, new)


def test_between_the_two_acks_nothing_is_sent(minor):
    """20 says 0 there, and no 30 can ever succeed."""
    minor.driver("write")
    old = kernel(minor)
    assert old.postsuspend() == 0
    minor.driver("ack")
    old.close()
    new = kernel(minor)
    later(0.05, lambda: minor.driver("done"))
    assert new.postsuspend() == 1
    assert safe(minor, new)
    minor.driver("write")
    assert new.postsuspend() == 0
    minor.driver("ack")
    assert safe(minor, new)


def test_an_old_barrier_that_never_ends_is_said(minor):
    minor.driver("write")
    old = kernel(minor)
    assert old.postsuspend() == 0
    old.close()
    new = kernel(minor)
    assert new.wait_ready(30) == -ETIMEDOUT
    assert "pe:1" in last_error()
    assert new.postsuspend() == -ETIMEDOUT
    assert "pe:1" in last_error()
    assert sent(minor) == 1
    minor.driver("done")
    assert new.postsuspend() == 1


def test_a_left_over_ack_bit_means_nothing(minor):
    """After both acks 30 would say 0 at once; a 1 does not clear the bit."""
    minor.driver("write")
    old = kernel(minor)
    assert old.postsuspend() == 0
    minor.driver("done")
    old.close()
    new = kernel(minor)
    assert new.postsuspend() == 1
    assert safe(minor, new)
    minor.driver("write")
    assert new.postsuspend() == 0
    assert not safe(minor, new)


# ---- roles ---------------------------------------------------------------------


def test_a_one_outside_primary_primary_says_nothing(minor):
    """An ordinary write barrier has closed the object: 20 says 1."""
    minor.driver("PS")
    minor.driver("write")
    minor.driver("flush")
    dev = kernel(minor)
    rc = dev.postsuspend()
    assert not (rc >= 0 and safe(minor, dev))
    assert rc == -ENOTCONN
    assert "Primary/Secondary" in last_error()


def test_a_zero_outside_primary_primary_is_never_acked(minor):
    minor.driver("PS")
    minor.driver("write")
    dev = kernel(minor)
    assert dev.postsuspend() == -ENOTCONN
    assert sent(minor) == 0
    minor.driver("PP")
    assert dev.postsuspend() == 0
    minor.driver("ack")
    assert safe(minor, dev)


def test_the_first_checkpoint_waits_for_both_primaries(minor):
    minor.driver("PS")
    dev = kernel(minor)
    start = time.monotonic()
    assert dev.wait_ready(30) == -ENOTCONN
    assert "Primary/Primary" in last_error()
    later(0.1, lambda: minor.driver("PP"))
    assert dev.wait_ready(5000) == 0
    assert 0.1 <= time.monotonic() - start < 2
    assert sent(minor) == 0


def test_a_role_that_is_lost_in_the_session(minor):
    dev = kernel(minor)
    minor.driver("write")
    assert dev.postsuspend() == 0
    minor.driver("done")
    assert safe(minor, dev)
    minor.driver("PS")
    minor.driver("write")
    minor.driver("flush")
    assert dev.postsuspend() == -ENOTCONN  # the driver's 1
    minor.driver("write")
    minor.driver("PP")
    later(0.05, lambda: minor.driver("done"))
    assert dev.postsuspend() == 0
    assert not safe(minor, dev)
    minor.driver("ack")
    assert safe(minor, dev)


def test_a_barrier_without_a_number_is_said_to_have_no_ack(minor):
    dev = kernel(minor)
    minor.driver("write")
    assert dev.postsuspend() == 0
    minor.driver("done")
    assert safe(minor, dev)
    minor.driver("PS")  # noticed by nobody yet
    minor.driver("write")
    assert dev.postsuspend() == 0
    start = time.monotonic()
    assert dev.preresume(30_000) == -ETIME
    assert time.monotonic() - start < 5
    assert "Primary/Secondary" in last_error()
    assert dev.preresume(100) == -ETIME  # again, and no "nothing to wait for"
    minor.driver("PP")
    later(0.05, lambda: minor.driver("done"))
    assert dev.postsuspend() >= 0
    assert safe(minor, dev)


# ---- acks that can't come ------------------------------------------------------


def stray(node: IoctlNode) -> int:
    """What blkid, a udev rule or Python's open() sends."""
    fd = os.open(node.disk, os.O_RDONLY)
    try:
        return fcntl.ioctl(fd, 20)
    finally:
        os.close(fd)


def test_an_ack_that_somebody_took_is_made_up_for(minor):
    """A stray ioctl between the acks clears the bit.  With the guest still
    suspended one more barrier tells that all is there."""
    dev = kernel(minor)
    minor.driver("write")
    assert dev.postsuspend() == 0
    minor.driver("ack")
    assert stray(minor) == 0
    minor.driver("done")
    start = time.monotonic()
    assert safe(minor, dev, 30_000)
    assert time.monotonic() - start < 5


def test_an_empty_epoch_between_the_acks_is_safe(minor):
    """20 only pretends to send there, and no 30 would ever succeed."""
    dev = kernel(minor)
    minor.driver("write")
    assert dev.postsuspend() == 0
    minor.driver("ack")
    assert safe(minor, dev)
    assert dev.postsuspend() == 0  # nothing was written, nothing is sent
    later(0.1, lambda: minor.driver("done"))
    assert safe(minor, dev, 30_000)


def test_an_ack_that_can_not_come_is_said_and_no_end(minor):
    dev = kernel(minor)
    minor.driver("write")
    assert dev.postsuspend() == 0
    assert dev.preresume(80) == -ETIMEDOUT
    minor.driver("ack")
    assert stray(minor) == 0
    minor.driver("done")
    before = sent(minor)
    start = time.monotonic()
    assert dev.preresume(30_000) == -ETIME
    assert time.monotonic() - start < 5
    assert "postsuspend again" in last_error()
    # The guest runs again by then: nothing may close an epoch of its own.
    assert sent(minor) == before
    assert dev.preresume(100) == -ETIME  # and no "nothing to wait for"
    # Recoverable: no EBUSY for ever, and no reconnecting.
    minor.driver("write")
    assert dev.postsuspend() == 0
    minor.driver("ack")
    assert safe(minor, dev)


def test_a_late_ack_is_waited_for_and_not_given_up(minor):
    dev = kernel(minor)
    minor.driver("write")
    assert dev.postsuspend() == 0
    assert dev.preresume(80) == -ETIMEDOUT
    assert "wait again" in last_error()
    assert dev.postsuspend() == -EBUSY
    minor.driver("done")  # both acks, between two waits
    assert safe(minor, dev)


def test_after_a_timeout_the_next_barrier_may_follow_at_pe_0(minor):
    dev = kernel(minor)
    minor.driver("write")
    assert dev.postsuspend() == 0
    assert dev.preresume(80) == -ETIMEDOUT
    minor.driver("done")
    minor.driver("write")
    assert dev.postsuspend() == 0
    assert not safe(minor, dev)  # not by the bit of the one before
    minor.driver("ack")
    assert safe(minor, dev)


def test_a_group_goes_on_after_an_ack_that_can_not_come(minor):
    with CheckpointDevices([KernelDisk(minor)]) as devices:
        minor.driver("write")
        devices.postsuspend()
        with pytest.raises(CheckpointTimeout):
            devices.preresume(timeout_s=0.08)
        minor.driver("ack")
        assert stray(minor) == 0
        minor.driver("done")
        for _ in range(2):
            with pytest.raises(CheckpointUnknown) as caught:
                devices.preresume(timeout_s=20)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.errno == ETIME
        minor.driver("ack_ms", 5)
        minor.driver("done_ms", 5)
        minor.driver("write")
        devices.postsuspend()
        devices.preresume(timeout_s=20)
        assert minor.held() == (2, 2)


def test_a_group_is_refused_while_the_ack_may_come(minor):
    with CheckpointDevices([KernelDisk(minor)]) as devices:
        minor.driver("write")
        devices.postsuspend()
        with pytest.raises(CheckpointTimeout):
            devices.preresume(timeout_s=0.08)
        with pytest.raises(PhaseError, match="preresume comes first"):
            devices.postsuspend()
        minor.driver("done")
        devices.preresume(timeout_s=5)


class Broken:
    kind = "disk"
    name = "broken"

    def __init__(self) -> None:
        self.fail = True

    def postsuspend(self, tag: Any = None) -> int:
        if self.fail:
            raise OSError(errno.EIO, "broken")
        return 1


def test_a_barrier_that_is_not_waited_for_needs_no_reconnect(minor):
    """Another device failed in postsuspend."""
    broken = Broken()
    with CheckpointDevices([KernelDisk(minor), broken]) as devices:
        minor.driver("write")
        with pytest.raises(OSError, match="broken"):
            devices.postsuspend()
        broken.fail = False
        minor.driver("write")
        later(0.05, lambda: minor.driver("done"))
        devices.postsuspend()
        with pytest.raises(CheckpointTimeout):
            devices.preresume(timeout_s=0.1)
        minor.driver("ack")
        devices.preresume(timeout_s=5)
        assert minor.held() == (2, 2)


# ---- loss ----------------------------------------------------------------------


@pytest.mark.parametrize("state", ["StandAlone", "WFConnection"])
def test_a_loss_is_one_whatever_the_driver_calls_it(minor, state):
    dev = kernel(minor)
    minor.driver("write")
    assert dev.postsuspend() == 0
    minor.driver(state)
    assert dev.preresume() == -EPROTO
    assert dev.preresume() == -EPROTO
    assert dev.postsuspend() == -EPROTO
    assert state in last_error()
    # Back again: the same handle goes on.
    minor.driver("Connected")
    minor.driver("write")
    assert dev.postsuspend() == 0
    minor.driver("ack")
    assert safe(minor, dev)


def test_stand_alone_from_the_start_says_how_to_connect(minor):
    minor.driver("StandAlone")
    dev = kernel(minor)
    assert dev.postsuspend() == -EPROTO
    assert "StandAlone" in last_error()
    assert dev.wait_ready(30) == -EPROTO
    assert "secondary on the other host first" in last_error()


def after_three(minor, **options):
    """A loop whose device is StandAlone after its third checkpoint."""
    minor.driver("ack_ms", 1)
    minor.driver("done_ms", 1)
    return Checkpointer(
        CheckpointDevices([KernelDisk(minor)]),
        NullGuest(),
        interval_s=0,
        on_loss="continue",
        on_checkpoint=lambda stats: (
            minor.driver("StandAlone") if stats.number == 3 else minor.driver("write")
        ),
        **options,
    )


def test_a_checkpointer_goes_on_unprotected_after_a_split_brain(minor):
    checkpointer = after_three(minor)
    assert checkpointer.run(count=10, duration_s=1.0) == 3
    lost = checkpointer.summary().lost
    assert lost is not None and "StandAlone" in lost


def test_a_checkpointer_goes_on_when_the_sides_have_met_again(minor):
    checkpointer = after_three(
        minor,
        loss_callback=lambda error: later(0.3, lambda: minor.driver("Connected")),
    )
    assert checkpointer.run(count=6, duration_s=30) == 6
    summary = checkpointer.summary()
    assert (summary.losses, summary.lost) == (1, None)


def test_a_checkpointer_waits_for_both_primaries_with_the_guest_running(minor):
    suspended = []

    class Guest(NullGuest):
        def suspend(self) -> None:
            suspended.append(time.monotonic())

    minor.driver("PS")
    start = time.monotonic()
    later(0.2, lambda: minor.driver("PP"))
    Checkpointer(CheckpointDevices([KernelDisk(minor)]), Guest()).run(count=1)
    assert suspended[0] - start >= 0.2


def test_the_python_device_says_it_in_classes(minor):
    with KernelDisk(minor) as disk:
        minor.driver("PS")
        with pytest.raises(DeviceNotReady, match="Primary/Secondary"):
            disk.wait_ready(0.02)
        with pytest.raises(DeviceNotReady):
            disk.postsuspend()
        minor.driver("StandAlone")
        with pytest.raises(ReplicationLost, match="StandAlone"):
            disk.wait_ready(0.02)
        with pytest.raises(ReplicationLost):
            disk.postsuspend()
        minor.driver("Connected")
        minor.driver("PP")
        disk.wait_ready()
        assert disk.postsuspend() == 1


# ---- /proc/drbd ----------------------------------------------------------------


def test_what_can_not_be_told_is_not_safe(node):
    """A driver that answers, and no /proc/drbd to say what that means."""
    node.proc = node.mount / "nothing"
    node.answer(20, 0, 1)
    node.answer(30, 0)
    dev = kernel(node)
    for _ in range(2):
        assert dev.postsuspend() == -errno.ENODATA
        assert "nothing" in last_error()
        assert dev.preresume() < 0
    assert dev.wait_ready(10) == -errno.ENODATA
    with KernelDisk(node) as disk, pytest.raises(StateError, match="nothing"):
        disk.postsuspend()


def test_a_driver_without_the_ioctls_says_so_itself(node):
    node.proc = node.mount / "nothing"
    node.answer(20, -errno.ENOTTY)
    with KernelDisk(node) as disk, pytest.raises(NotProtocolD):
        disk.postsuspend()


def test_a_cancel_ends_the_wait_for_both_primaries(minor):
    minor.driver("PS")
    disk = KernelDisk(minor)
    disk.setup()
    later(0.05, disk.cancel)
    start = time.monotonic()
    with pytest.raises(Exception, match="cancelled"):
        disk.wait_ready(30)
    assert time.monotonic() - start < 5
    disk.teardown()


# ---- any order -----------------------------------------------------------------

STEPS = st.sampled_from(
    [
        ["write"],
        ["flush"],
        ["ack"],
        ["done"],
        ["write", "postsuspend"],
        ["postsuspend"],
        ["preresume"],
        ["write", "postsuspend", "ack", "preresume", "done"],
        ["reopen"],
        ["write", "postsuspend", "reopen"],
        ["ack", "preresume"],
        ["done", "preresume"],
        ["PS"],
        ["PP"],
        ["StandAlone", "preresume"],
        ["WFConnection"],
        ["Connected"],
    ]
)


@settings(
    max_examples=50,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(STEPS, min_size=6, max_size=16))
def test_in_any_order_what_is_called_safe_is_there(node, steps):
    for word in ("reset", "on"):
        node.driver(word)
    node.driver("limit_ms", 7)
    dev = Raw(node, is_node=False, ready_ms=15)
    closed = 0  # writes that the newest barrier closed
    for step in (step for some in steps for step in some):
        if step == "reopen":
            dev.close()
            dev = Raw(node, is_node=False, ready_ms=15)
            closed = 0
        elif step == "postsuspend":
            if dev.postsuspend() >= 0:
                closed = node.held()[0]
        elif step == "preresume":
            if dev.preresume(10) == 0:
                assert node.held()[1] >= closed
        else:
            node.driver(step)
    dev.close()
