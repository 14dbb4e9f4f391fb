# SPDX-License-Identifier: LGPL-2.1-or-later
"""csrc/group/group.c over devices whose wait is inside a kernel driver, or hangs.

The driver is the test node, opened with a kernel device's rules (its ioctl
30 can't be cut short but by a signal) or with those of a node of ours, which
here is a server that does not answer.  (tests/c/test_group*.c have the rest.)
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from remus_native._core import ffi, lib

from remus_native._binding import last_error
from support.ioctl_node import IoctlNode, open_as
from support.paths import ROOT

pytestmark = pytest.mark.fuse


class Group:
    """Some kernel devices, or nodes, in one group."""

    def __init__(
        self,
        where: IoctlNode,
        count: int,
        *,
        begins: bool = False,
        nodes: bool = False,
    ) -> None:
        self.disks = []
        out = ffi.new("remus_group **")
        assert lib.remus_group_open(b"guest0", out) == 0
        self.raw = out[0]
        for i in range(count):
            disk = ffi.new("remus_drbd **")
            assert open_as(where, disk, is_node=nodes) == 0
            assert lib.remus_group_add_drbd(self.raw, b"disk%d" % i, disk[0]) == i
            self.disks.append(disk[0])
        assert lib.remus_group_start(self.raw, int(begins)) == 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *args: getattr(lib, f"remus_group_{name}")(self.raw, *args)

    def close(self) -> None:
        lib.remus_group_close(self.raw)
        for disk in self.disks:
            lib.remus_drbd_close(disk)


def in_thread(work: Callable[[], int]) -> tuple[threading.Thread, list[int]]:
    result: list[int] = []
    thread = threading.Thread(target=lambda: result.append(work()))
    thread.start()
    return thread, result


def until(condition: Callable[[], Any], limit_s: float = 20) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def waits(where: IoctlNode) -> int:
    return len([1 for number, _ in where.log() if number == 30])


@pytest.mark.alone
def test_a_begun_wait_is_left_at_once_and_taken_up_again(node):
    node.answer(20, 0)
    node.answer(30, (0, 700))
    group = Group(node, 1, begins=True)
    try:
        assert group.postsuspend(ffi.NULL, 0) == 0
        assert group.preresume_begin(20000) == 0
        until(lambda: waits(node) == 1)
        start = time.monotonic()
        assert group.cancel() == 0
        assert group.preresume_finish() == -errno.ECANCELED
        assert time.monotonic() - start < 0.3
        # The call is still in the driver: no new barrier, and no second call.
        assert group.postsuspend(ffi.NULL, 0) == -errno.EBADFD
        assert "preresume comes first" in last_error()
        # That changed nothing.
        assert group.preresume(20000) == 0
        assert [number for number, _ in node.log()] == [20, 30]
    finally:
        group.close()


def test_what_was_cancelled_in_the_driver_counts_when_it_comes(node):
    node.answer(20, 0)
    node.answer(30, (0, 400))
    group = Group(node, 2, begins=True)
    try:
        assert group.postsuspend(ffi.NULL, 0) == 0
        assert group.preresume_begin(20000) == 0
        until(lambda: waits(node) == 2)
        assert group.cancel() == 0
        assert group.preresume_finish() == -errno.ECANCELED
        assert group.preresume(20000) == 0
        assert waits(node) == 2
        assert group.commit() == 0
    finally:
        group.close()


@pytest.mark.alone
def test_stop_leaves_a_thread_in_the_driver_behind(node):
    node.answer(20, 0)
    node.answer(30, (0, 700))
    threads = len(os.listdir("/proc/self/task"))
    files = len(os.listdir("/proc/self/fd"))
    group = Group(node, 2, begins=True)
    assert group.postsuspend(ffi.NULL, 0) == 0
    assert group.preresume_begin(20000) == 0
    until(lambda: waits(node) == 2)
    start = time.monotonic()
    group.close()
    assert time.monotonic() - start < 0.5
    # It has what it needs until the driver lets it go, and then all is gone.
    assert len(os.listdir("/proc/self/task")) == threads + 2
    until(lambda: len(os.listdir("/proc/self/task")) == threads)
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.alone
def test_a_deadline_is_kept_though_the_driver_is_slow(node):
    node.answer(20, 0)
    node.answer(30, (0, 3000))
    group = Group(node, 1, begins=True)
    try:
        assert group.postsuspend(ffi.NULL, 0) == 0
        start = time.monotonic()
        assert group.preresume_begin(50) == 0
        until(lambda: group.preresume_finish() != -errno.EAGAIN)
        assert time.monotonic() - start < 1.5
        # Waited for further, by the same call.
        assert group.preresume(20000) == 0
        assert waits(node) == 1
    finally:
        group.close()


@pytest.mark.alone
def test_a_signal_of_the_program_ends_a_wait_in_the_caller(node):
    """Without it the caller stays for the driver's limit; with it, no time."""
    node.answer(20, 0)
    node.answer(30, (0, 20000))
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    # Python's handlers have no SA_RESTART.
    group = Group(node, 1)
    try:
        (disk,) = group.disks
        assert lib.remus_drbd_cancel_signal(disk, signal.SIGUSR2) == 0
        assert group.postsuspend(ffi.NULL, 0) == 0
        thread, result = in_thread(lambda: group.preresume(20000))
        until(lambda: waits(node) == 1)
        start = time.monotonic()
        assert group.cancel() == 0
        thread.join(20)
        assert time.monotonic() - start < 0.5
        assert result == [-errno.ECANCELED]
        # It was no loss: the same barrier is waited for again.
        node.answer(30, 0)
        assert group.preresume(20000) == 0
        assert group.commit() == 0
    finally:
        signal.signal(signal.SIGUSR2, before)
        group.close()


def test_only_a_signal_that_can_end_a_wait_is_taken(node):
    group = Group(node, 1)
    try:
        (disk,) = group.disks
        before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        assert lib.remus_drbd_cancel_signal(disk, signal.SIGUSR2) == -errno.EINVAL
        assert "install a handler" in last_error()
        signal.signal(signal.SIGUSR2, lambda *_: None)
        signal.siginterrupt(signal.SIGUSR2, False)
        assert lib.remus_drbd_cancel_signal(disk, signal.SIGUSR2) == -errno.EINVAL
        assert "SA_RESTART" in last_error()
        signal.signal(signal.SIGUSR2, before)
        assert lib.remus_drbd_cancel_signal(disk, 1000) == -errno.EINVAL
        assert lib.remus_drbd_cancel_signal(disk, 0) == 0
    finally:
        group.close()


def test_a_barrier_that_is_late_is_waited_for_first(node):
    """The kernel's driver has one barrier: refused, and the group goes on."""
    node.answer(20, 0)
    node.answer(30, (-errno.EPROTO, 60), (-errno.EPROTO, 60), (0, 0))
    group = Group(node, 1)
    try:
        assert group.postsuspend(ffi.NULL, 0) == 0
        assert group.preresume(50) == -errno.ETIMEDOUT
        assert group.postsuspend(ffi.NULL, 0) == -errno.EBADFD
        assert group.preresume(20000) == 0
        assert group.postsuspend(ffi.NULL, 0) == 0
        assert group.preresume(20000) == 0
        assert group.commit() == 0
    finally:
        group.close()


def test_a_barrier_that_only_some_have_is_given_up(node):
    """A node takes the next one, a kernel's driver once nothing is on its way."""
    for nodes in (True, False):
        node.answer(20, 0, -errno.EPROTO, 0)
        node.answer(30, 0)
        node.answer(40, 0)
        group = Group(node, 2, nodes=nodes)
        try:
            assert group.postsuspend(ffi.NULL, 0) == -errno.EPROTO
            assert group.postsuspend(ffi.NULL, 0) == 0
            assert group.preresume(20000) == 0
            assert group.commit() == 0
        finally:
            group.close()


@pytest.mark.alone
@pytest.mark.parametrize("begun", [True, False])
def test_a_node_that_hangs_holds_nobody_up(node, begun):
    """Its server answers nothing, so an ioctl that says "cancel" hangs, too."""
    node.answer(20, 0)
    node.answer(30, (0, 2000))
    threads = len(os.listdir("/proc/self/task"))
    files = len(os.listdir("/proc/self/fd"))
    group = Group(node, 3, begins=True, nodes=True)
    assert group.postsuspend(ffi.NULL, 0) == 0
    waiter, result = None, []
    if begun:
        assert group.preresume_begin(20000) == 0
    else:
        waiter, result = in_thread(lambda: group.preresume(300))
    until(lambda: waits(node) == 3)
    start = time.monotonic()
    if begun:
        assert group.cancel() == 0
        assert group.preresume_finish() == -errno.ECANCELED
    else:
        # The caller is in one of the calls himself, and stays there.
        assert group.cancel() == 0
    assert time.monotonic() - start < 0.5
    start = time.monotonic()
    lib.remus_group_stop(group.raw)
    assert time.monotonic() - start < 0.5
    if waiter is not None:
        waiter.join(20)
        assert result == [-errno.ECANCELED]
    group.close()
    until(lambda: len(os.listdir("/proc/self/task")) == threads)
    assert len(os.listdir("/proc/self/fd")) == files


def test_an_epoch_of_nodes_makes_nothing(node):
    """No memory, thread, process or file: tests/c/test_group_costs.c."""
    program = "build/checked/test_group_costs"
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("MAKEFLAGS", "MFLAGS")
    }
    subprocess.run(["make", "-s", program], cwd=ROOT, env=environment, check=True)
    for number in (20, 30, 40):
        node.answer(number, 0)
    subprocess.run([ROOT / program, *[node.disk] * 4], check=True, timeout=100)


def test_a_tag_must_be_a_number(node):
    node.answer(20, 0)
    group = Group(node, 1)
    try:
        for tag in (b"x", b"0", b"-1", b"9223372036854775808"):
            assert group.postsuspend(tag, len(tag)) == -errno.EINVAL
            assert "number from 1 to 2^63-1" in last_error()
        assert node.log() == []
        for tag in (b"7", b"9223372036854775807"):
            assert group.postsuspend(tag, len(tag)) == 0
            node.answer(30, 0)
            assert group.preresume(1000) == 0
        sent = [value for number, value in node.log() if number == 20]
        assert sent == [7, 9223372036854775807]
    finally:
        group.close()
