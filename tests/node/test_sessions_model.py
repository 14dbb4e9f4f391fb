# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ioctls of a node against a plain model of what is promised of them.

Two toolstacks (processes) open the two nodes several times, send their
ioctls, and close them between, while the backup stalls, is lost and comes
back.  The model knows of each open file how many 20s it sent and what the
newest one came to; and of each barrier whose it is, by which number, and what
became of it.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from support.node_lab import Lab
from support.toolstack_process import Toolstack
from support.waiting import until

pytestmark = pytest.mark.fuse

PARKED_MS = 60  # so long a wait is looked at that must not end


@dataclass
class Barrier:
    session: int
    number: int
    empty: bool | None  # None: nobody has said
    fate: str = "sent"  # sent, acked, lost
    waited: bool = False  # a 30 has asked for it


@dataclass(eq=False)
class File:
    tool: int
    fd: int
    session: int | None = None  # from its first 20 on
    number: int = 0
    failed: bool = False
    since: int = 0  # barriers before its newest 20
    joined: Barrier | None = None
    waiting: int | None = None  # the tag of a 30 that goes on (hold)


@dataclass
class Model:
    hold: bool
    up: bool = True  # connected
    stalled: bool = False
    dirty: bool | None = False  # the open epoch is not empty; None: perhaps
    barriers: list[Barrier] = field(default_factory=list)
    sessions: int = 0
    files: list[File] = field(default_factory=list)

    def session_of(self, tool: int) -> int:
        for file in self.files:
            if file.tool == tool and file.session is not None:
                return file.session
        self.sessions += 1
        return self.sessions

    def newest_is(self, file: File) -> bool:
        newest = self.barriers[-1] if self.barriers else None
        return newest is not None and (
            (newest.session, newest.number) == (file.session, file.number)
        )

    def is_late(self, file: File) -> bool:
        """For a 20 that failed: the barrier was opened after it."""
        return self.newest_is(file) and len(self.barriers) > file.since

    def goes_on(self, file: File, result: int) -> bool:
        """The round of the newest barrier is this file's, and is not over."""
        if not self.newest_is(file) or self.barriers[-1].waited:
            return False
        written = self.dirty if self.dirty is not None else result == 0
        return not (self.barriers[-1].empty and written)

    def take(self, file: File, joins: bool, late: bool = False) -> None:
        """Join the newest barrier, or open one."""
        if not joins:
            assert file.session is not None
            fate = "sent" if self.stalled else "acked"
            empty = None if self.dirty is None else not self.dirty
            self.barriers.append(
                Barrier(file.session, file.number, empty, fate, waited=late)
            )
            self.dirty = False
        file.failed = False
        file.joined = self.barriers[-1]

    def engine_may_take_it(self) -> None:
        """Without a session, if the journal wants it."""
        if self.dirty and not any(one.joined for one in self.files):
            self.dirty = None

    def send(self, file: File, result: int) -> bool:
        """Is this what a 20 may answer?"""
        if file.session is None:
            file.session = self.session_of(file.tool)
        file.number += 1
        file.since = len(self.barriers)
        if not self.up:
            file.failed = True
            return result == -errno.EPROTO
        self.take(file, self.goes_on(file, result))
        assert file.joined is not None
        if file.joined.empty is None:
            file.joined.empty = bool(result)
        return result == int(file.joined.empty)

    def wait(self, file: File) -> int | None:
        """What a 30 ends with; None: it waits."""
        if file.failed and self.hold and self.is_late(file):
            file.failed, file.joined = False, self.barriers[-1]
        if file.joined is not None:
            file.joined.waited = True
        if file.failed:
            if not self.hold:
                return -errno.EPROTO
            return -errno.EINTR if self.up else None
        if file.joined is None or file.joined.fate == "acked":
            return 0
        return -errno.EPROTO if file.joined.fate == "lost" else None

    def stall(self) -> None:
        self.stalled = True

    def acked(self) -> None:
        self.stalled = False
        for barrier in self.barriers:
            if barrier.fate == "sent":
                barrier.fate = "acked"

    def lost(self) -> None:
        """For good: the backup did not get them."""
        self.up = self.stalled = False
        if not self.hold:
            self.nothing_comes()

    def nothing_comes(self) -> None:
        for barrier in self.barriers:
            if barrier.fate == "sent":
                barrier.fate = "lost"


class Ioctls(RuleBasedStateMachine):
    """Set by the test: the lab, and whether its primary holds."""

    lab: Lab
    hold: bool
    tools: list[Toolstack]
    files = Bundle("files")

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(self.hold)
        self.start = self.lab.barriers
        # Nothing of the run before is in the open epoch.
        epoch = self.lab.primary.postsuspend()
        self.lab.primary.preresume(epoch, timeout_s=30)
        self.lab.primary.commit(epoch)
        self.lab.primary.session_end()
        self.start = self.lab.barriers

    @rule(target=files, tool=st.integers(0, 1), volume=st.integers(0, 1))
    def open(self, tool: int, volume: int) -> File:
        fd = self.tools[tool].open(self.lab.node(volume))
        file = File(tool, fd)
        self.model.files.append(file)
        return file

    @rule(file=consumes(files))
    def close(self, file: File) -> None:
        if file.waiting is not None:
            self.end_wait(file)
        self.lab.closed(self.tools[file.tool], file.fd)
        self.model.files.remove(file)
        self.model.engine_may_take_it()

    def end_wait(self, file: File) -> None:
        """A 30 that goes on is ended as a debugger would, by a cancel."""
        assert file.waiting is not None
        tool = self.tools[file.tool]
        assert tool.wait(file.fd, 0xFFFFFFFF) == 0
        assert tool.result(file.waiting) == -errno.ECANCELED
        file.waiting = None

    @rule()
    def write(self) -> None:
        self.lab.write()
        self.model.dirty = True
        self.model.engine_may_take_it()

    @rule(file=files)
    def send(self, file: File) -> None:
        if file.waiting is not None:
            self.end_wait(file)
        result = self.tools[file.tool].send(file.fd)
        assert self.model.send(file, result), result
        if self.model.up and not self.model.stalled:
            until(self.all_acked)  # so that no loss comes before it

    def all_acked(self) -> bool:
        status = self.lab.primary.status()
        return status.prepared_epoch >= status.open_epoch - 1

    @rule(tool=st.integers(0, 1))
    def send_all(self, tool: int) -> None:
        """As a toolstack does: on each of its disks in turn."""
        for file in [one for one in self.model.files if one.tool == tool]:
            self.send(file)

    @rule(file=files)
    def wait(self, file: File) -> None:
        if file.waiting is not None:
            self.end_wait(file)
        want = self.model.wait(file)
        tool = self.tools[file.tool]
        if want is not None:
            assert tool.wait(file.fd) == want
        elif self.model.up or not self.hold:
            assert tool.wait(file.fd, PARKED_MS) == -errno.ETIMEDOUT
        else:
            file.waiting = tool.wait_later(file.fd)
            assert tool.result(file.waiting, PARKED_MS / 1000) is None

    @precondition(lambda self: self.model.up and not self.model.stalled)
    @rule()
    def stall(self) -> None:
        self.lab.backup.pause()
        self.model.stall()

    @precondition(lambda self: self.model.stalled)
    @rule()
    def goes_on(self) -> None:
        self.lab.backup.go_on()
        self.model.acked()

    @precondition(lambda self: self.model.up)
    @rule()
    def lose(self) -> None:
        self.lab.lose()
        self.model.lost()

    @precondition(lambda self: not self.model.up)
    @rule()
    def comes_back(self) -> None:
        model = self.model
        self.lab.start_backup()
        model.up = True
        model.dirty = None  # what the backup lacks is in the open epoch
        model.nothing_comes()
        waiting = [one for one in model.files if one.waiting is not None]
        # Who waits for the barrier of a failed 20 takes it, in the order in
        # which they began to wait; who waited for a lost one hears of that.
        for file in sorted(waiting, key=lambda one: one.waiting or 0):
            if file.failed:
                model.take(file, model.is_late(file), late=True)
        for file in waiting:
            assert file.waiting is not None
            want = model.wait(file)
            assert self.tools[file.tool].result(file.waiting) == want
            file.waiting = None
        until(self.lab.ready, 60)

    @invariant()
    def as_many_barriers(self) -> None:
        engine = self.lab.primary.status().epochs - self.start
        assert engine >= len(self.model.barriers)

    def teardown(self) -> None:
        for file in self.model.files:
            if file.waiting is not None:
                self.end_wait(file)
        if self.model.stalled:
            self.lab.backup.go_on()
        if not self.model.up:
            self.lab.start_backup()
        for file in self.model.files:
            self.tools[file.tool].close(file.fd)
        until(lambda: self.lab.primary.status().writers == 0)
        self.lab.primary.session_begin()
        self.lab.primary.session_end()
        self.lab.primary.wait_protected(60)


@pytest.fixture(params=["continue", "hold"])
def machine(request: pytest.FixtureRequest) -> Iterator[type[Ioctls]]:
    folder = Path(tempfile.mkdtemp(prefix="remus-ioctls-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        made = Lab(folder, stack, on_loss=request.param)

        class Machine(Ioctls):
            lab = made
            hold = request.param == "hold"
            tools = [made.toolstack() for _ in range(2)]  # noqa: RUF012

        yield Machine


@pytest.mark.parametrize(
    "examples",
    [4, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_as_the_model_says(machine: type[Ioctls], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            database=None,
            print_blob=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
