# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a backup takes, of what age its checkpoints are, who may commit them."""

from __future__ import annotations

import errno
import fcntl
import os
import time

import pytest

from remus_native import Backup, Export, PhaseError, Primary, State, StateError
from support import formats
from support.formats import RESYNC
from support.pair import MIB, checkpoint, next_checkpoint
from support.peer import BEGIN, barrier, one_epoch
from support.side_process import Cable
from support.two_hosts import Hosts, fill, promoted_b
from support.waiting import until

PARTIAL = 7


# ---- a copy in the middle of a session ------------------------------------------


@pytest.mark.parametrize("step", [BEGIN, PARTIAL])
def test_a_copy_can_not_begin_in_a_stream(backup, peer, step):
    """It would throw committed checkpoints away."""
    one_epoch(peer)
    peer.send(RESYNC, flags=step)
    assert "RESYNC" in peer.error()
    assert [cp.epoch for cp in backup.checkpoints()] == [1]
    assert backup.promote() == 1


def test_an_old_commit_does_not_end_a_copy(backup, peer):
    """A toolstack may repeat the commit of a checkpoint that it took before."""
    n = peer.greet()
    peer.send(RESYNC, flags=BEGIN)
    peer.send(formats.COMMIT, epoch=7)
    peer.send(formats.WRITE, b"copied", flags=1, offset=100)
    peer.send(RESYNC, flags=4, epoch=8)
    assert peer.receive().flags == 5
    peer.send(formats.BARRIER, formats.barrier(), **barrier([], 8, n))
    assert peer.receive().type == formats.ACK


# ---- how old a checkpoint is -----------------------------------------------------


def grown_old(hosts: Hosts) -> int:
    """A backup whose checkpoint is older than a second; its primary is gone."""
    b = hosts.backup("b", stale_ms=1000)
    a = hosts.primary("a")
    m = checkpoint(a)
    a.close()
    until(lambda: not b.status().connected)
    time.sleep(2.1)
    return m


def slow_catch_up(hosts: Hosts, host: str) -> Primary:
    """A primary whose catch-up takes a second."""
    other = "b" if host == "a" else "a"
    cable = Cable(hosts.folder / "slow.sock", hosts.folder / f"{other}.sock")
    primary = hosts.primary(
        host, wait=False, resync_rate=MIB, address=f"unix:{cable.front}"
    )
    fill(primary, 5, n=MIB)
    cable.join()
    return primary


def is_stale(b: Backup, m: int) -> bool:
    with pytest.raises(StateError, match="stale_after") as caught:
        b.target()
    assert str(m) in str(caught.value)
    return caught.value.errno == errno.ESTALE


def test_a_catch_up_that_was_cut_makes_nothing_newer(hosts):
    m = grown_old(hosts)
    b = hosts.opened[0]
    a = slow_catch_up(hosts, "a")
    until(lambda: b.status().state is State.CATCHING_UP)
    assert is_stale(b, m)
    a.close()
    until(lambda: not b.status().connected)
    assert is_stale(b, m)
    b.close()
    b = hosts.backup("b", stale_ms=1000, serve=False)
    assert is_stale(b, m)
    assert b.promote(m) == m


def test_a_primary_that_only_calls_makes_nothing_newer(hosts):
    """What it has does not fit; it says hello again and again."""
    b = hosts.backup("b", stale_ms=1000, journal_bytes=512 * 1024)
    a = hosts.primary("a")
    m = checkpoint(a)
    b.close()
    until(lambda: not a.status().connected)
    fill(a, 1, n=2 * MIB)
    b = hosts.backup("b", stale_ms=1000, journal_bytes=512 * 1024)
    until(lambda: "does not fit" in a.status().reason)
    time.sleep(2.1)
    assert is_stale(b, m)
    a.close()
    assert is_stale(b, m)


def test_prepared_and_not_committed_it_grows_old_as_well(hosts):
    """A catch-up that is acked but not committed: the default is the old one."""
    m = grown_old(hosts)
    b = hosts.opened[0]
    a = hosts.primary("a", wait=False)
    a.session_begin()
    epoch = next_checkpoint(a)
    assert b.status().state is State.PROTECTED
    assert is_stale(b, m)
    a.commit(epoch)
    until(lambda: b.status().committed_epoch == epoch)
    assert b.target() == epoch


# ---- the way back ------------------------------------------------------------------


def as_left(back: Backup) -> int:
    """The number of the disks as the primary left them; it is in the reason."""
    status = back.status()
    assert f"promote checkpoint {status.applied_epoch}" in status.reason
    return status.applied_epoch


def test_the_way_back_is_open_until_a_byte_is_written(hosts):
    """The new primary dies in its first catch-up, and its host with it."""
    a, b, _ = promoted_b(hosts)
    a.close()
    b.close()
    before = hosts.data("a")
    back = hosts.backup("a")
    new = slow_catch_up(hosts, "b")
    until(lambda: back.status().state is State.CATCHING_UP)
    new.close()
    until(lambda: not back.status().connected)
    with pytest.raises(StateError, match="as the primary left them") as caught:
        back.promote()
    left = as_left(back)
    assert str(left) in str(caught.value)
    assert back.checkpoints() == ()  # it is none
    assert back.promote(left) == left
    back.close()
    assert hosts.data("a") == before
    again = hosts.primary("a", wait=False)
    again.pwrite(0, b"goes on", 0)
    again.close()


def test_the_way_back_before_anybody_called(hosts):
    a, b, _ = promoted_b(hosts)
    a.close()
    b.close()
    back = hosts.backup("a")
    left = as_left(back)
    back.close()
    back = hosts.backup("a", serve=False)
    assert back.promote(left) == left


def test_who_went_that_way_is_split_from_the_other(hosts):
    a, b, _ = promoted_b(hosts)
    a.close()
    b.close()
    back = hosts.backup("a")
    new = slow_catch_up(hosts, "b")
    until(lambda: back.status().state is State.CATCHING_UP)
    new.close()
    until(lambda: not back.status().connected)
    back.promote(as_left(back))
    new = hosts.primary("b", wait=False)
    until(lambda: new.status().state is State.SPLIT_BRAIN)
    until(lambda: back.status().state is State.SPLIT_BRAIN)


def test_after_the_first_commit_there_is_no_way_back(hosts):
    a, b, _ = promoted_b(hosts)
    a.close()
    b.close()
    back = hosts.backup("a")
    left = as_left(back)
    new = hosts.primary("b")
    epoch = checkpoint(new)
    new.close()
    assert [cp.epoch for cp in back.checkpoints()] == [epoch]
    with pytest.raises(StateError, match="no checkpoint"):
        back.promote(left)


# ---- who may commit ------------------------------------------------------------------


def test_what_nobody_can_name_any_more_is_committed(hosts):
    """Else the journal would fill, and the guest with it, for good."""
    b = hosts.backup("b", commit_by="backup")
    a = hosts.primary("a", commit_by="backup", idle_ms=50, grace_ms=100)
    n = a.postsuspend()
    a.preresume(n, timeout_s=30)
    a.pwrite(0, b"more", 0)
    until(lambda: b.status().prepared_epoch >= n)
    time.sleep(0.3)
    assert b.status().committed_epoch < n  # its session goes on
    a.session_end()
    a.pwrite(0, b"and more", 0)
    until(lambda: b.status().committed_epoch > n)


def test_what_an_earlier_process_left_is_committed(hosts):
    b = hosts.backup("b", commit_by="backup")
    a = hosts.primary("a", commit_by="backup", grace_ms=3_600_000)
    n = a.postsuspend()
    a.preresume(n, timeout_s=30)
    b.close()
    a.close()
    b = hosts.backup("b", commit_by="backup")
    assert b.status().committed_epoch < n
    a = hosts.primary("a", commit_by="backup", idle_ms=50)
    a.pwrite(0, b"more", 0)
    until(lambda: b.status().committed_epoch > n)


def test_committed_is_said_only_of_what_the_backup_took(hosts):
    b = hosts.backup("b", commit_by="backup")
    a = hosts.primary("a", commit_by="backup")
    n = a.postsuspend()
    a.preresume(n, timeout_s=30)
    a.commit(n)
    time.sleep(0.7)  # a ping came
    assert b.status().committed_epoch < n
    assert a.status().committed_epoch < n
    b.commit(n)
    until(lambda: a.status().committed_epoch == n)


def test_nothing_newer_than_a_pin_is_committed(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    first, second = (next_checkpoint(a) for _ in range(2))
    b.pin(first)
    a.commit(second)
    time.sleep(0.7)
    assert a.status().committed_epoch < second
    with pytest.raises(PhaseError, match="pinned"):
        b.commit(second)
    b.commit(first)
    b.pin(None)
    b.commit(second)
    until(lambda: a.status().committed_epoch == second)


def test_a_promote_ends_a_pin(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    first, second = (next_checkpoint(a) for _ in range(2))
    b.pin(first)
    assert b.promote(checkpoint=second, force=True) == second
    assert "pinned" not in b.status().reason
    assert b.status().committed_epoch == second


def test_a_switch_is_refused_while_a_checkpoint_is_pinned(hosts):
    """Its last checkpoint could not be committed: the pinned one would be the
    default of whoever goes on after a switch that was interrupted."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    first, second = (next_checkpoint(a) for _ in range(2))
    b.pin(first)
    with pytest.raises(StateError, match=f"checkpoint {first} is pinned"):
        b.ask(switch=True)
    a.pwrite("xvda", b"not fenced", 0)
    a.session_end()
    with pytest.raises(StateError, match=f"checkpoint {first} is pinned"):
        b.ask(switch=True)
    b.pin(None)
    assert b.ask(switch=True)
    with pytest.raises(StateError, match="switch"):
        b.pin(second)
    assert b.promote() >= second


def test_a_switch_that_was_refused_leaves_pins_as_they_are(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    first = next_checkpoint(a)
    with pytest.raises(StateError, match="takes checkpoints"):
        b.ask(switch=True)
    b.pin(first)


# ---- an ioctl 30 that failed ------------------------------------------------------


def wait_ack(file: int) -> int:
    try:
        return fcntl.ioctl(file, 30, 0)
    except OSError as error:
        return -(error.errno or 0)


@pytest.mark.fuse
@pytest.mark.parametrize("restart", [False, True])
def test_what_no_ioctl_30_was_told_is_no_default(hosts, tmp_path, restart):
    """The ack was lost with the link; the backup has the checkpoint."""
    b = hosts.backup("b")
    cable = Cable(hosts.folder / "cable.sock", hosts.folder / "b.sock")
    cable.join()
    a = hosts.primary("a", address=f"unix:{hosts.folder}/cable.sock", loss_ms=60_000)
    mount = tmp_path / "mount"
    mount.mkdir()
    with Export(a, mount):
        disk = os.open(mount / "xvda", os.O_RDWR)
        os.pwrite(disk, b"first", 0)
        fcntl.ioctl(disk, 20, 0)
        fcntl.ioctl(disk, 30, 0)
        m = b.status().prepared_epoch
        until(lambda: b.target() == m)
        os.pwrite(disk, b"second", 0)
        cable.hold_answers()
        fcntl.ioctl(disk, 20, 0)
        until(lambda: b.status().prepared_epoch > m)
        n = b.status().prepared_epoch
        cable.cut()
        assert wait_ack(disk) == -errno.EPROTO
        until(lambda: not b.status().connected)
        assert b.target() == m
        assert [cp.epoch for cp in b.checkpoints()][-1] == n
        if restart:
            b.close()
            b = hosts.backup("b", serve=False)
        assert b.target() == m
        os.close(disk)
        a.close()
    assert b.promote() == m
    assert hosts.data("b")[:6] == b"first\0"


@pytest.mark.fuse
def test_an_empty_checkpoint_needs_no_ioctl_30(hosts, tmp_path):
    b = hosts.backup("b")
    a = hosts.primary("a")
    mount = tmp_path / "mount"
    mount.mkdir()
    with Export(a, mount):
        disk = os.open(mount / "xvda", os.O_RDWR)
        assert fcntl.ioctl(disk, 20, 0) == 1
        until(lambda: b.target() == a.status().prepared_epoch)
        os.close(disk)
