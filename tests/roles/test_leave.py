# SPDX-License-Identifier: LGPL-2.1-or-later
"""A primary that lost its backup: leave to go on alone, and when it is lost."""

from __future__ import annotations

import errno
import threading
import time

import pytest

from remus_native import State, StateError
from support.pair import MIB, checkpoint, next_checkpoint
from support.waiting import until

# ---- going on alone, with leave ----------------------------------------------


def test_writes_wait_for_leave_to_go_on_alone(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a", ask_alone=True, loss_ms=1000)
    checkpoint(a)
    assert not a.status().asks_alone
    b.close()
    until(lambda: not a.status().connected)
    done = threading.Event()

    def write():
        a.pwrite(0, b"waits", 0)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    until(lambda: a.status().parked_writes == 1)
    assert not a.status().asks_alone  # it may be back at once
    until(lambda: a.status().asks_alone)
    assert not done.wait(0.2)
    assert a.pread(0, 1, 0)  # reads never wait
    a.go_alone()
    assert done.wait(10)
    thread.join()
    assert not a.status().asks_alone
    # The next outage asks again.
    b = hosts.backup("b")
    epoch = next_checkpoint(a)
    a.commit(epoch)
    b.close()
    until(lambda: not a.status().connected)
    done.clear()
    thread = threading.Thread(target=write)
    thread.start()
    until(lambda: a.status().asks_alone)
    assert not done.is_set()
    a.go_alone()
    thread.join()


def test_a_backup_that_returns_ends_the_wait(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a", ask_alone=True)
    checkpoint(a)
    b.close()
    until(lambda: not a.status().connected)
    thread = threading.Thread(target=lambda: a.pwrite(0, b"waits", 0))
    thread.start()
    until(lambda: a.status().parked_writes == 1)
    b = hosts.backup("b")
    thread.join(30)
    assert not thread.is_alive()
    epoch = next_checkpoint(a)
    a.commit(epoch)
    a.close()
    assert b.promote() == epoch
    assert hosts.data("b")[:5] == b"waits"


def test_close_ends_the_wait_with_an_error(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a", ask_alone=True)
    checkpoint(a)
    b.close()
    until(lambda: not a.status().connected)
    errors = []

    def write():
        try:
            a.pwrite(0, b"waits", 0)
        except StateError as error:
            errors.append(error.errno)

    thread = threading.Thread(target=write)
    thread.start()
    until(lambda: a.status().parked_writes == 1)
    a.close()
    thread.join(10)
    assert errors == [errno.EIO]


# ---- leave, once more ------------------------------------------------------------


def test_no_leave_is_asked_for_while_the_backup_is_there(hosts):
    """It compares its disks for long; the guest writes, nothing is fenced."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    a.close()
    (hosts.folder / "a" / "dirty.map").unlink()
    a = hosts.primary("a", wait=False, ask_alone=True, resync_rate=MIB, loss_ms=1000)
    until(lambda: a.status().state is State.CATCHING_UP)
    start = time.monotonic()
    a.pwrite(0, b"goes on", 0)
    assert time.monotonic() - start < 2  # it compares for 4 s
    while a.status().state is State.CATCHING_UP:
        assert not a.status().asks_alone
        time.sleep(0.01)
    a.wait_protected(timeout_s=60)
    epoch = next_checkpoint(a)
    a.commit(epoch)
    # What passed then gives no leave for a later outage.
    b.close()
    until(lambda: not a.status().connected)
    a.go_alone()
    until(lambda: a.status().parked_writes == 0)


def test_leave_that_comes_too_late_is_none(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a", ask_alone=True, loss_ms=1000)
    checkpoint(a)
    a.go_alone()  # the outage that it was about is over
    b.close()
    until(lambda: not a.status().connected)
    thread = threading.Thread(target=lambda: a.pwrite(0, b"waits", 0))
    thread.start()
    until(lambda: a.status().asks_alone)
    assert thread.is_alive()
    a.go_alone()
    thread.join(30)
    assert not thread.is_alive()


# ---- when a link is lost --------------------------------------------------------


def test_a_link_that_is_down_for_a_moment_is_no_loss(hosts):
    """Its primary is asked when it is back; nobody is promoted beside it."""
    b = hosts.backup("b")
    a = hosts.primary("a", loss_ms=1000)
    checkpoint(a)
    b.close()
    until(lambda: not a.status().connected)
    # The backup's process has just begun: the primary had no time to come.
    b = hosts.backup("b")
    with pytest.raises(StateError) as caught:
        b.ask()
    assert caught.value.errno == errno.EBUSY
    assert a.status().state is not State.FENCED


@pytest.mark.alone
def test_who_ended_on_purpose_is_not_waited_for(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    a.close()
    until(lambda: not b.status().connected)
    start = time.monotonic()
    assert not b.ask()
    assert time.monotonic() - start < 0.5
