# SPDX-License-Identifier: LGPL-2.1-or-later
"""A promote with a primary that lives: whether it steps down, and with what."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import subprocess
import sys
import time

import pytest

from remus_native import Backup, Export, State, StateError
from remus_native._binding import lib
from support.pair import MIB, checkpoint
from support.two_hosts import fill
from support.waiting import until

# ---- promote with a primary that lives ---------------------------------------


def test_an_idle_primary_steps_down_with_all_that_it_has(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    fill(a, 1)
    before = a.status().committed_epoch
    m = b.promote()
    assert m > before  # a last checkpoint
    assert a.status().state is State.FENCED
    assert "stepped down" in a.status().reason
    assert hosts.data("a") == hosts.data("b")
    with pytest.raises(StateError, match="Fenced"):
        a.pwrite(0, b"x", 0)
    a.close()
    with pytest.raises(StateError, match="fenced"):
        hosts.primary("a", wait=False)


def test_a_session_is_reason_to_stay(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    m = checkpoint(a)
    a.session_begin()
    with pytest.raises(StateError, match="toolstack") as caught:
        b.promote()
    assert caught.value.errno == errno.EBUSY
    a.pwrite(0, b"goes on", 0)
    assert checkpoint(a) > m
    assert a.status().state is State.PROTECTED
    a.session_end()
    b.promote()


def test_a_writer_is_reason_to_stay(hosts):
    """Who uses the library itself has no file that is open."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    with a.writer(), a.writer():
        with pytest.raises(StateError, match="open for writing") as caught:
            b.promote()
        assert caught.value.errno == errno.EBUSY
        fill(a, 1)
    b.promote()
    assert hosts.data("a") == hosts.data("b")
    with pytest.raises(StateError, match="Fenced") as caught, a.writer():
        pass
    assert caught.value.errno == errno.EROFS


def test_a_named_checkpoint_is_not_overtaken(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    m = checkpoint(a)
    a.session_end()
    fill(a, 5)
    assert b.promote(m) == m
    assert a.status().state is State.FENCED
    assert hosts.data("b") == bytes(hosts.size)


def test_a_wrong_name_does_not_stop_the_primary(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    a.session_end()
    with pytest.raises(StateError, match="no checkpoint"):
        b.promote(1 << 40)
    assert a.status().state is State.PROTECTED
    a.pwrite(0, b"x", 0)


def test_asking_by_hand(hosts):
    b = hosts.backup("b")
    assert b.ask() is False
    a = hosts.primary("a")
    assert b.ask() is True
    assert b.ask() is True  # its word stands
    a.close()
    b.promote()


def test_a_stopped_primary_counts_as_lost(hosts, tmp_path):
    """It answers nothing: after the loss time a promote does not wait."""
    b = hosts.backup("b")
    code = f"""
import time
from remus_native import Primary, Volume
p = Primary("guest0", state_dir={str(tmp_path / "a")!r},
            volumes=[Volume("xvda", {str(hosts.image("a"))!r})],
            address="unix:{tmp_path}/b.sock")
p.wait_protected(30)
print("ready", flush=True)
time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, 19)
        start = time.monotonic()
        b.promote()
        assert 0.4 < time.monotonic() - start < 6
    finally:
        process.kill()
        process.wait()


# ---- old news ----------------------------------------------------------------


def test_a_link_lost_long_ago_wants_a_number(hosts):
    b = hosts.backup("b", stale_ms=1000)
    a = hosts.primary("a")
    m = checkpoint(a)
    a.close()
    until(lambda: not b.status().connected)
    time.sleep(2.1)
    with pytest.raises(StateError, match="stale_after") as caught:
        b.promote()
    assert caught.value.errno == errno.ESTALE
    assert str(m) in str(caught.value)
    b.close()
    # A process that never saw the primary knows it, too.
    b = hosts.backup("b", stale_ms=1000, serve=False)
    with pytest.raises(StateError, match="stale_after"):
        b.promote(force=True)
    assert b.promote(m) == m


def test_while_connected_it_is_never_stale(hosts):
    b = hosts.backup("b", stale_ms=1000)
    a = hosts.primary("a")
    checkpoint(a)
    a.session_end()
    time.sleep(2.1)
    b.promote()


# ---- what goes with a memory ---------------------------------------------------


@pytest.mark.fuse
def test_stepping_down_keeps_the_disk_that_goes_with_the_memory(hosts, tmp_path):
    """A toolstack's last checkpoint; its guest is destroyed; failover."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    mount = tmp_path / "mount"
    mount.mkdir()
    with Export(a, mount):
        guest = os.open(mount / "xvda", os.O_RDWR)
        toolstack = os.open(mount / "xvda", os.O_RDONLY)
        for i in range(3):
            os.pwrite(guest, b"checkpoint %d" % i, 0)
            fcntl.ioctl(toolstack, 20, 0)
            fcntl.ioctl(toolstack, 30, 0)
        m = a.status().prepared_epoch
        os.pwrite(guest, b"after the memory", 0)
        os.close(guest)
        os.close(toolstack)
        assert promote_once_closed(b) == m
        assert hosts.data("b")[:16] == b"checkpoint 2\0\0\0\0"
        assert a.status().state is State.FENCED


def promote_once_closed(b: Backup) -> int:
    """The kernel tells a node of a close some time after it."""
    end = time.monotonic() + 30
    while True:
        try:
            return b.promote()
        except StateError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)


def steps_down(b: Backup) -> bool:
    try:
        return b.ask(switch=True)
    except StateError as error:
        if error.errno != errno.EBUSY:
            raise
        return False


@pytest.mark.fuse
def test_a_swap_takes_all_of_it_all_the_same(hosts, tmp_path):
    b = hosts.backup("b")
    a = hosts.primary("a")
    mount = tmp_path / "mount"
    mount.mkdir()
    with Export(a, mount):
        with (mount / "xvda").open("r+b", buffering=0) as guest:
            fcntl.ioctl(guest, 20, 0)
            fcntl.ioctl(guest, 30, 0)
            guest.write(b"the last word")
        until(lambda: steps_down(b))
        assert a.status().switches
        b.promote()
        assert hosts.data("b")[:13] == b"the last word"


@pytest.mark.fuse
def test_what_the_engine_prepared_is_no_reason_to_go_further_back(hosts, tmp_path):
    """Through ioctls nobody commits: the last prepared one with a memory."""
    b = hosts.backup("b", commit_by="backup")
    a = hosts.primary("a", commit_by="backup")
    mount = tmp_path / "mount"
    mount.mkdir()
    with Export(a, mount):
        with (mount / "xvda").open("r+b", buffering=0) as guest:
            guest.write(b"with a memory")
            fcntl.ioctl(guest, 20, 0)
            fcntl.ioctl(guest, 30, 0)
            m = a.status().prepared_epoch
            guest.seek(0)
            guest.write(b"and without: ")
        until(lambda: steps_down(b))  # takes one that no backup commits by itself
        until(lambda: len(b.checkpoints()) > 2)
        time.sleep(1.1)  # what is stored counts in seconds
        a.close()
        until(lambda: not b.status().connected)
        lib.remus_test_backup_store_current(b._raw)  # as it does now and then
        b.close()  # its word is gone with the process
        b = hosts.backup("b", commit_by="backup", serve=False)
        assert [cp.epoch for cp in b.checkpoints() if not cp.disk_only][-1] == m
        assert b.promote() == m
        assert hosts.data("b")[:13] == b"with a memory"


def test_nothing_is_lost_where_only_the_backup_commits(hosts):
    b = hosts.backup("b", commit_by="backup")
    a = hosts.primary("a", commit_by="backup")
    epoch = a.postsuspend()
    a.preresume(epoch, timeout_s=30)
    fill(a, 1)
    a.session_end()
    assert b.ask(switch=True)
    b.promote()
    assert hosts.data("a") == hosts.data("b")


def test_a_second_question_gets_the_same_answer(hosts):
    """The first answer may have been lost, or the one who asked."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    fill(a, 1)
    assert b.ask()
    # As if it had not arrived: nothing is noted, and it is asked again.
    lib.remus_test_backup_forget_answer(b._raw)
    assert b.ask(switch=True)
    assert a.status().switches
    assert "with checkpoint" in a.status().reason
    b.promote()
    assert hosts.data("a") == hosts.data("b")


@pytest.mark.alone
def test_busy_at_once_in_a_copy(hosts):
    """No answer of an engine that copies is waited for."""
    hosts.image("a").write_bytes(random.Random(1).randbytes(hosts.size))
    b = hosts.backup("b")
    a = hosts.primary("a", wait=False, resync_rate=MIB)
    until(lambda: a.status().state is State.CATCHING_UP)
    start = time.monotonic()
    with pytest.raises(StateError, match="CatchingUp") as caught:
        b.ask()
    assert caught.value.errno == errno.EBUSY
    assert time.monotonic() - start < 0.9
