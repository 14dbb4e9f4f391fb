# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sessions of ioctls: what was joined and heard belongs to the open file."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time

import pytest

pytestmark = pytest.mark.fuse


def test_a_close_takes_nothing_from_another_open_file(lab):
    """The 30 of one said "safe" without an ack when the other was closed."""
    here = lab()
    tool = here.toolstack()
    first, second = tool.open(here.node(0)), tool.open(here.node(0))
    here.backup.pause()
    here.write()
    assert tool.send(first) == 0
    assert tool.send(second) in (0, 1)
    here.closed(tool, first)
    assert tool.wait(second, 300) == -errno.ETIMEDOUT
    here.backup.go_on()
    assert tool.wait(second) == 0


@pytest.mark.parametrize("whose", ["its own process", "another process"])
def test_a_close_between_the_20s_of_two_disks_does_not_split_them(lab, whose):
    here = lab()
    tool = here.toolstack()
    other = tool if whose == "its own process" else here.toolstack()
    a, b = tool.open(here.node(0)), tool.open(here.node(1))
    third = other.open(here.node(0))
    for owner, fd in ((other, third), (tool, a), (tool, b)):
        assert owner.send(fd) == 1
        assert owner.wait(fd) == 0
    for _ in range(2):  # the second time nothing is left of `third`
        before = here.barriers
        here.write()
        assert tool.send(a) == 0
        if third >= 0:
            here.closed(other, third)
            third = -1
        here.write()
        assert tool.send(b) == 0  # what was written since is of the next epoch
        assert here.barriers == before + 1
        assert [tool.wait(a), tool.wait(b)] == [0, 0]


def test_each_process_is_a_session_of_its_own(lab):
    """Nobody joins the barrier of somebody else."""
    here = lab()
    one, two = here.toolstack(), here.toolstack()
    a, b = one.open(here.node(0)), two.open(here.node(1))
    before = here.barriers
    here.write()
    assert one.send(a) == 0
    assert two.send(b) == 1
    assert here.barriers == before + 2


def test_only_the_same_number_is_joined(lab):
    """A disk that missed one does not join the barrier of the next."""
    here = lab()
    tool = here.toolstack()
    a, b = tool.open(here.node(0)), tool.open(here.node(1))
    assert tool.send(a) == 1
    assert tool.send(a) == 1  # number 2
    before = here.barriers
    here.write()
    assert tool.send(b) == 0  # number 1
    assert here.barriers == before + 1
    # A 20 that failed has its number, too.
    assert tool.send(b) == 1
    here.lose()
    assert tool.send(a) == -errno.EPROTO  # 3
    here.comes_back()
    before = here.barriers
    assert tool.send(b) >= 0  # 3
    assert tool.send(a) >= 0  # 4
    assert tool.send(b) >= 0  # 4: joins
    assert here.barriers == before + 2


def test_a_file_that_was_opened_again_joins_no_barrier_of_before(lab):
    """Its numbers begin again: 20 and 30 said "safe" of what was not sent."""
    here = lab()
    tool = here.toolstack()
    a, b = tool.open(here.node(0)), tool.open(here.node(1))
    here.write()
    assert [tool.send(a), tool.send(b)] == [0, 0]
    assert [tool.wait(a), tool.wait(b)] == [0, 0]
    here.closed(tool, a)
    a = tool.open(here.node(0))  # its process is still a session
    before = here.barriers
    here.write()
    assert tool.send(a) == 0  # number 1 again
    assert here.barriers == before + 1
    assert tool.send(b) == 1  # 2
    assert [tool.wait(a), tool.wait(b)] == [0, 0]
    here.write()
    assert tool.send(a) == 0  # 2: b's was that of the round before
    assert here.barriers == before + 3


def test_an_empty_barrier_of_before_is_not_joined_either(lab):
    """After a 1 nobody sends a 30."""
    here = lab()
    tool = here.toolstack()
    a, b = tool.open(here.node(0)), tool.open(here.node(1))
    assert [tool.send(a), tool.send(b)] == [1, 1]
    here.closed(tool, a)
    a = tool.open(here.node(0))
    here.write()
    assert tool.send(a) == 0


def test_after_a_20_that_failed_30_does_not_say_safe(lab):
    here = lab()
    tool = here.toolstack()
    a, b = tool.open(here.node(0)), tool.open(here.node(1))
    here.write()
    assert tool.send(a) == 0
    assert tool.wait(a) == 0
    here.lose()
    assert tool.wait(a) == 0  # that one was acked, and stays so
    assert tool.send(a) == -errno.EPROTO
    assert tool.wait(a) == -errno.EPROTO
    assert tool.wait(a, 100) == -errno.EPROTO
    assert tool.wait(b) == 0  # nothing is outstanding there
    here.comes_back()
    assert tool.wait(a) == -errno.EPROTO
    assert tool.send(a) >= 0
    assert tool.wait(a) == 0


def test_a_session_that_ends_before_the_ack_leaves_the_catch_up_to_the_engine(lab):
    """Its barrier ended the catch-up, and nobody was left to commit it."""
    here = lab(grace_ms=100)
    tool = here.toolstack()
    a = tool.open(here.node(0))
    assert tool.send(a) == 1
    here.lose()
    here.write()
    here.comes_back()
    here.backup.pause()
    assert tool.send(a) == 0
    here.closed(tool, a)
    here.backup.go_on()
    here.primary.wait_protected(30)


# ---- hold ------------------------------------------------------------------------


def test_a_30_after_a_failed_20_takes_its_barrier_when_the_backup_is_back(lab):
    here = lab(on_loss="hold")
    tool = here.toolstack()
    a, b = tool.open(here.node(0)), tool.open(here.node(1))
    for fd in (a, b):
        assert tool.send(fd) in (0, 1)
        assert tool.wait(fd) == 0
    here.lose()
    here.write()
    assert tool.send(a) == tool.send(b) == -errno.EPROTO
    waits = [tool.wait_in_child(fd)[0] for fd in (a, b)]
    assert tool.result(waits[0], 0.3) is None
    before = here.barriers
    prepared = here.primary.status().prepared_epoch
    here.start_backup()
    assert [tool.result(tag) for tag in waits] == [0, 0]
    assert here.barriers == before + 1
    assert here.primary.status().prepared_epoch > prepared
    # Both go on in step.
    here.write()
    assert [tool.send(a), tool.send(b)] == [0, 0]
    assert [tool.wait(a), tool.wait(b)] == [0, 0]
    assert here.barriers == before + 2


def test_a_30_whose_toolstack_is_gone_takes_no_barrier(lab):
    here = lab(on_loss="hold")
    tool = here.toolstack()
    a = tool.open(here.node(0))
    assert tool.send(a) == 1
    here.lose()
    assert tool.send(a) == -errno.EPROTO
    tag, child = tool.wait_in_child(a)
    assert tool.result(tag, 0.3) is None
    os.kill(tool.process.pid, signal.SIGKILL)
    tool.process.wait()
    before = here.barriers
    here.start_backup()
    assert tool.result(tag) == -errno.EINTR
    assert here.barriers <= before + 1  # one of the engine's, if any
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def test_a_30_that_did_not_wait_while_the_backup_was_away(lab):
    here = lab(on_loss="hold")
    tool = here.toolstack()
    a = tool.open(here.node(0))
    assert tool.send(a) == 1
    here.lose()
    assert tool.send(a) == -errno.EPROTO
    here.comes_back()
    assert tool.wait(a) == -errno.EINTR


def test_an_operators_word_ends_a_30_after_a_failed_20(lab):
    here = lab(on_loss="hold")
    tool = here.toolstack()
    a = tool.open(here.node(0))
    assert tool.send(a) == 1
    here.lose()
    assert tool.send(a) == -errno.EPROTO
    tag = tool.wait_later(a)
    assert tool.result(tag, 0.3) is None
    here.primary.resume()
    assert tool.result(tag) == -errno.EPROTO
    assert tool.wait(a) == -errno.EPROTO


def test_a_limit_ends_a_30_after_a_failed_20(lab):
    here = lab(on_loss="hold")
    tool = here.toolstack()
    a = tool.open(here.node(0))
    assert tool.send(a) == 1
    here.lose()
    assert tool.send(a) == -errno.EPROTO
    start = time.monotonic()
    assert tool.wait(a, 300) == -errno.ETIMEDOUT
    assert 0.2 < time.monotonic() - start < 10
