# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that serves a node dies between an ioctl 20 and its ioctl 30.

Only the backup knows then whether the barrier is safe, and what it says is held
against what a promote there then has to offer.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import threading
import time

import pytest

from remus_native.control import NotRunning, call
from support.host import Host, is_now
from support.keeping import Kept, kill
from support.mounted import SEND, WAIT, close_quietly
from support.waiting import DEADLINE_S, wait_for

NAMES = ("root", "data")

pytestmark = pytest.mark.fuse


@pytest.fixture(autouse=True)
def room(host: Host) -> None:
    text = host.file.read_text().replace('journal = "1MiB"', 'journal = "16MiB"')
    host.file.write_text(text.replace('"64KiB"', '"1MiB"'))


def ioctl(fd: int, number: int, argument: int = 0) -> int:
    """Its result, or -errno."""
    try:
        return fcntl.ioctl(fd, number, argument)
    except OSError as error:
        return -(error.errno or 0)


class Toolstack:
    """A process with all disks open, which takes checkpoints with a tag each."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.backup = host.start_backup()
        self.kept = Kept(host)
        wait_for("Protected", lambda: is_now(host, "p", "primary", "Protected"))
        self.fds = [os.open(self.kept.mount / name, os.O_RDWR) for name in NAMES]
        for fd in self.fds:
            host.stack.callback(close_quietly, fd)
        self.tag = 0
        self.disks: dict[int, list[bytes]] = {}  # what they held at each tag

    def send(self) -> bool:
        """All disks' ioctl 20, after a write to each."""
        self.tag += 1
        for fd in self.fds:
            os.pwrite(fd, b"%08d" % self.tag, 4096 * (self.tag % 64))
        self.disks[self.tag] = [os.pread(fd, 65536, 0) for fd in self.fds]
        return [ioctl(fd, SEND, self.tag) for fd in self.fds] == [0, 0]

    def wait(self) -> list[int]:
        return [ioctl(fd, WAIT) for fd in self.fds]

    def offered(self) -> list[int]:
        """The tags of what a promote can have now."""
        try:
            known = call(str(self.host.folder / "b"), "checkpoints")
        except NotRunning:
            return []
        return [int(cp["tag"]) for cp in known if cp["tag"]]

    def has_it(self) -> None:
        wait_for("it there", lambda: self.tag in self.offered())

    def checkpoint(self) -> None:
        """One that is safe, however often it takes."""
        wait_for("checkpoint", lambda: self.send() and self.wait() == [0, 0])

    def stop_backup(self) -> None:
        """It takes nothing from here on."""
        os.kill(self.backup.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.backup.pid, os.WSTOPPED)  # all its threads are

    def kill_backup(self) -> None:
        kill(self.backup.pid)
        self.backup.communicate()

    def fail_over_to(self, tag: int) -> None:
        self.kept.kill_both()
        assert self.host.run("promote", "--tag", str(tag))[0] == 0
        for name, disk in zip(("b0", "b1"), self.disks[tag], strict=True):
            assert (self.host.folder / name).read_bytes()[: len(disk)] == disk


def test_what_the_backup_has_is_safe(host: Host) -> None:
    toolstack = Toolstack(host)
    for _ in range(3):
        toolstack.checkpoint()
        assert toolstack.send()
        toolstack.has_it()
        toolstack.kept.kill_server()
        assert toolstack.wait() == [0, 0]
        assert toolstack.tag in toolstack.offered()
    # The session goes on behind it.
    toolstack.checkpoint()
    toolstack.fail_over_to(toolstack.tag)


@pytest.mark.slow
def test_what_the_backup_lost_is_not_safe(host: Host) -> None:
    """Neither from the server's death on, nor for a 30 that is waiting then."""
    toolstack = Toolstack(host)
    for waits in (False, True):
        toolstack.checkpoint()
        safe = toolstack.tag
        toolstack.stop_backup()
        assert toolstack.send()
        heard: list[int] = []
        waiter = threading.Thread(target=lambda h=heard: h.extend(toolstack.wait()))
        if waits:
            waiter.start()
        toolstack.kept.kill_server()
        toolstack.kill_backup()
        toolstack.backup = host.start_backup()
        if not waits:
            waiter.start()
        waiter.join(DEADLINE_S)
        assert heard == [-errno.EPROTO] * 2
        assert max(toolstack.offered()) == safe
    toolstack.checkpoint()
    toolstack.fail_over_to(toolstack.tag)


def test_a_wait_goes_on_over_the_servers_death(host: Host) -> None:
    """The new one hears of the backup that it has it."""
    toolstack = Toolstack(host)
    toolstack.checkpoint()
    toolstack.stop_backup()
    assert toolstack.send()
    heard: list[int] = []
    waiter = threading.Thread(target=lambda: heard.extend(toolstack.wait()))
    waiter.start()
    toolstack.kept.kill_server()
    assert not heard
    os.kill(toolstack.backup.pid, signal.SIGCONT)
    waiter.join(DEADLINE_S)
    assert heard == [0, 0]
    assert toolstack.tag in toolstack.offered()
    toolstack.fail_over_to(toolstack.tag)


@pytest.mark.slow
def test_a_wait_ends_once_loss_is_established(host: Host) -> None:
    toolstack = Toolstack(host)
    toolstack.checkpoint()
    assert toolstack.send()
    toolstack.has_it()
    toolstack.stop_backup()
    toolstack.kept.kill_server()
    start = time.monotonic()
    assert toolstack.wait() == [-errno.EPROTO] * 2
    assert time.monotonic() - start < 30
    os.kill(toolstack.backup.pid, signal.SIGCONT)
    # It is there all the same: to be named, never a default.
    assert toolstack.tag in toolstack.offered()
    toolstack.checkpoint()


@pytest.mark.slow
def test_a_20_that_the_server_died_in_has_one_number_and_one_barrier(
    host: Host,
) -> None:
    """Whatever became of it, the other disk's 20 of that number is of the same
    checkpoint, and the next one is the next."""
    toolstack = Toolstack(host)
    sent: list[int] = []
    for i in range(6):
        toolstack.checkpoint()
        before = toolstack.offered()
        sender = threading.Thread(target=lambda: sent.append(int(toolstack.send())))
        sender.start()
        time.sleep(0.0005 * i)
        toolstack.kept.kill_server()
        sender.join(DEADLINE_S)
        safe = toolstack.wait() == [0, 0]
        there = toolstack.offered()
        assert there.count(toolstack.tag) <= 2  # the disks' own, or one
        assert toolstack.tag in there or not safe
        assert set(before) - set(there) <= set(range(toolstack.tag))
    assert len(sent) == 6
    toolstack.checkpoint()
    toolstack.fail_over_to(toolstack.tag)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_never_safe_falsely(host: Host) -> None:
    """Servers die on either side, or both, at any moment between 20 and 30."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    toolstack = Toolstack(host)
    outcomes = {True: 0, False: 0}
    for i in range(60):
        toolstack.checkpoint()
        frozen = choose.random() < 0.5
        if frozen:
            toolstack.stop_backup()
        toolstack.send()
        heard: list[int] = []
        waiter = threading.Thread(target=lambda h=heard: h.extend(toolstack.wait()))
        waiter.start()
        time.sleep(choose.choice((0, 0.001, 0.01)))
        toolstack.kept.kill_server()
        if frozen and choose.random() < 0.5:
            toolstack.kill_backup()
            toolstack.backup = host.start_backup()
        elif frozen:
            os.kill(toolstack.backup.pid, signal.SIGCONT)
        waiter.join(DEADLINE_S)
        assert set(heard) <= {0, -errno.EPROTO}
        safe = heard == [0, 0]
        outcomes[safe] += 1
        assert toolstack.tag in toolstack.offered() or 0 not in heard, i
        if i % 10 == 9:  # not twenty that were short-lived in a row
            time.sleep(2.0)
    print(outcomes)
    assert min(outcomes.values()) > 5
    toolstack.checkpoint()
    toolstack.fail_over_to(toolstack.tag)
