# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a primary makes of a backup that answers, and what it says meanwhile."""

from __future__ import annotations

import random
import shutil
import threading
import time

import pytest

from remus_native import Primary, ReplicationLost, State
from support.pair import MIB, checkpoint, next_checkpoint
from support.two_hosts import Hosts, fill
from support.waiting import until


def too_much(hosts: Hosts, **options):
    """A backup whose journal is too small for what it lacks."""
    b = hosts.backup("b", journal_bytes=512 << 10)
    a = hosts.primary("a", **options)
    checkpoint(a)
    b.close()
    until(lambda: not a.status().connected)
    for at in range(0, 4 * MIB, MIB):
        fill(a, at, at=at, n=MIB)
    return a


def does_not_fit(a: Primary) -> bool:
    return "does not fit" in a.status().reason


def write(primary: Primary) -> threading.Thread:
    thread = threading.Thread(target=lambda: primary.pwrite(0, b"waits", 0))
    thread.start()
    return thread


# ---- what it says ------------------------------------------------------------


def test_a_reason_begins_at_its_beginning(hosts):
    """No connection was lost before, so there is nothing to say of one."""
    too_much(hosts).close()
    b = hosts.backup("b", journal_bytes=512 << 10)
    a = hosts.primary("a", wait=False)
    until(lambda: does_not_fit(a))
    assert a.status().state is State.UNPROTECTED
    b.close()
    until(lambda: not does_not_fit(a))
    reason = a.status().reason
    assert reason[0].isalpha(), reason
    assert a.status().state is State.UNPROTECTED


def test_in_a_split_a_later_start_waits_for_a_word_and_says_so(hosts):
    """Leave to go on alone was the process's before; and the other side, which
    was promoted meanwhile, is not shot."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    b.close()
    until(lambda: not a.status().connected)
    fill(a, 2)
    b = hosts.backup("b", serve=False)
    b.promote()
    b.serve(f"unix:{hosts.folder}/b.sock")
    until(lambda: a.status().state is State.SPLIT_BRAIN)
    assert "wait" not in a.status().reason  # they don't
    a.close()
    a = hosts.primary("a", wait=False, ask_alone=True, loss_ms=1000)
    until(lambda: a.status().state is State.SPLIT_BRAIN)
    thread = write(a)
    until(lambda: a.status().parked_writes == 1)
    assert "until then writes wait here" in a.status().reason
    time.sleep(1.5)
    assert thread.is_alive() and not a.status().asks_alone
    a.resume()
    thread.join(30)
    assert not thread.is_alive()
    a.close()


# ---- leave --------------------------------------------------------------------


def test_nobody_is_asked_beside_a_backup_that_answers(hosts):
    """It can't be caught up, but it is there, and nobody promoted it."""
    too_much(hosts).close()
    b = hosts.backup("b", journal_bytes=512 << 10)
    a = hosts.primary("a", wait=False)
    until(lambda: does_not_fit(a))
    a.close()
    a = hosts.primary("a", wait=False, ask_alone=True, loss_ms=1000)
    until(lambda: does_not_fit(a))
    thread = write(a)
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert not a.status().asks_alone
        time.sleep(0.01)
    thread.join(0)
    assert not thread.is_alive()
    a.close()
    b.close()
    # It went on alone before, but who starts later asks again: the other side
    # may have been promoted meanwhile.
    a = hosts.primary("a", wait=False, ask_alone=True, loss_ms=1000)
    thread = write(a)
    until(lambda: a.status().asks_alone)
    assert thread.is_alive()
    a.go_alone()
    thread.join(30)
    assert not thread.is_alive()


# ---- what is overwritten, and what is not ------------------------------------------


def empty(hosts: Hosts, **options):
    """The backup's host is replaced by a new one."""
    shutil.rmtree(hosts.folder / "b")
    (hosts.folder / "b").mkdir()
    hosts.image("b").write_bytes(bytes(hosts.size))
    return hosts.backup("b", **options)


def test_a_commit_from_before_a_copy_does_not_end_the_copy(hosts):
    hosts.image("a").write_bytes(random.Random(1).randbytes(hosts.size))
    b = hosts.backup("b")
    a = hosts.primary("a", resync_rate=2 * MIB)
    old = checkpoint(a, commit=False)
    b.close()
    until(lambda: not a.status().connected)
    b = empty(hosts)
    until(lambda: a.status().connected)
    since = a.status().link_changed_ns
    with pytest.raises(ReplicationLost, match=r"cop(ied|y)"):
        a.commit(old)
    a.session_end()
    a.wait_protected(60)
    assert a.status().link_changed_ns == since
    epoch = next_checkpoint(a)
    a.commit(epoch)
    a.close()
    assert b.promote() == epoch
    assert hosts.data("a") == hosts.data("b")


@pytest.mark.parametrize("way", ["promote", "empty"])
def test_a_primary_that_was_set_back_overwrites_nothing(hosts, tmp_path, way):
    """Its state is a copy from before the checkpoints that the backup holds."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    a.close()
    shutil.copytree(hosts.folder / "a", tmp_path / "old")
    image = hosts.data("a")
    a = hosts.primary("a")
    for i in range(3):
        fill(a, i, at=i * MIB)
        newest = checkpoint(a)
    a.close()
    wanted = hosts.data("a")
    shutil.rmtree(hosts.folder / "a")
    (tmp_path / "old").rename(hosts.folder / "a")
    hosts.image("a").write_bytes(image)
    a = hosts.primary("a", wait=False)
    until(
        lambda: "rolled back" in a.status().reason,
        what=lambda: f"{a.status().state} {a.status().reason}",
    )
    assert f"checkpoint {newest}" in a.status().reason
    assert "promote this backup" in a.status().reason
    if way == "promote":
        assert b.promote() == newest
        assert hosts.data("b") == wanted
        until(lambda: a.status().state is State.FENCED)
        return
    b.close()
    shutil.rmtree(hosts.folder / "b")
    (hosts.folder / "b").mkdir()
    b = hosts.backup("b")
    a.wait_protected(30)
    epoch = checkpoint(a)
    a.close()
    assert b.promote() == epoch
    assert hosts.data("b") == hosts.data("a") == image


# ---- who may commit ---------------------------------------------------------------


def test_committed_is_what_the_backup_accepted(hosts):
    b = hosts.backup("b", commit_by="backup")
    a = hosts.primary("a", commit_by="backup")
    before = a.status().committed_epoch
    fill(a, 1)
    epoch = checkpoint(a)
    assert b.status().committed_epoch < epoch
    assert a.status().committed_epoch == before
    b.commit(epoch)
    until(lambda: a.status().applied_epoch >= epoch)
    assert a.status().committed_epoch == epoch


def test_a_copy_ends_though_a_session_is_open_and_only_the_backup_commits(hosts):
    """What the session had prepared went with the old backup."""
    b = hosts.backup("b", commit_by="backup")
    a = hosts.primary("a", commit_by="backup")
    fill(a, 1)
    checkpoint(a)
    b.close()
    until(lambda: not a.status().connected)
    b = empty(hosts, commit_by="backup")
    a.wait_protected(30)
    epoch = checkpoint(a)
    a.close()
    assert b.promote(epoch) == epoch
    assert hosts.data("a") == hosts.data("b")
