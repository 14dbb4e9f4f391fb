# SPDX-License-Identifier: LGPL-2.1-or-later
"""Generations over many restarts: a backup stays the own one, a split brain
stays named, and there is always a way out, for once."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from remus_native import RemusError, State
from support.pair import MIB, checkpoint, next_checkpoint
from support.two_hosts import Hosts, fill
from support.waiting import until

MANY = 14  # more than the ancestors that a state holds


def same(hosts: Hosts, a, b) -> None:
    epoch = checkpoint(a)
    a.close()
    assert b.promote() == epoch
    assert hosts.data("a") == hosts.data("b")


def test_a_backup_that_can_not_be_caught_up_stays_the_own_one(hosts):
    b = hosts.backup("b", journal_bytes=MIB)
    a = hosts.primary("a")
    checkpoint(a)
    b.close()
    for at in range(4):  # more than its journal holds
        fill(a, at, at=at * MIB, n=MIB)
    b = hosts.backup("b", journal_bytes=MIB)
    for i in range(MANY):
        a.close()
        a = hosts.primary("a", wait=False)
        until(lambda a=a: "does not fit" in a.status().reason)
        a.pwrite(0, bytes([i]) * 512, i * 4096)
    a.close()
    a = hosts.primary("a", allow_inconsistent=True)
    same(hosts, a, b)


def test_a_backup_that_fails_to_store_a_generation_stays_the_own_one(hosts):
    """It hears of the primary and what it wants, and drops the connection."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    b.close()
    shutil.copytree(hosts.folder / "b", hosts.folder / "kept")
    for i in range(MANY):
        fill(a, i)
        b = hosts.backup("b")
        until(lambda: a.status().state is State.CATCHING_UP)
        until(lambda: "all that changed is sent" in a.status().reason)
        b.close()  # and what it stored is lost
        until(lambda: not a.status().connected)
        shutil.rmtree(hosts.folder / "b")
        shutil.copytree(hosts.folder / "kept", hosts.folder / "b")
    b = hosts.backup("b")
    epoch = next_checkpoint(a)
    a.commit(epoch)
    a.close()
    assert b.promote() == epoch
    assert hosts.data("a") == hosts.data("b")


def test_a_split_brain_stays_named(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    a.close()
    b.promote(force=True)
    b.close()
    a = hosts.primary("a", wait=False)
    fill(a, 1)
    for i in range(MANY):
        b = hosts.backup("b")
        a.close()
        a = hosts.primary("a", wait=False)
        until(lambda a=a: a.status().state is State.SPLIT_BRAIN)
        until(lambda b=b: b.status().state is State.SPLIT_BRAIN)
        a.pwrite(0, bytes([i]) * 512, i * 4096)
        b.close()
    b = hosts.backup("b", discard_local=True)
    a.wait_protected(timeout_s=30)
    same(hosts, a, b)


def stranger(hosts: Hosts):
    """The primary's state is lost: it is one that nobody knows."""
    shutil.rmtree(hosts.folder / "a")
    (hosts.folder / "a").mkdir()
    return hosts.primary("a", wait=False)


def test_a_stranger_is_followed_if_that_is_said_and_once(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    a.close()
    a = stranger(hosts)
    until(lambda: "--discard-local" in a.status().reason)
    fill(a, 3, at=MIB)
    b.close()
    b = hosts.backup("b", discard_local=True)
    a.wait_protected(timeout_s=30)
    checkpoint(a)
    a.close()
    a = stranger(hosts)
    until(lambda: "--discard-local" in a.status().reason)
    a.close()
    b.close()
    b = hosts.backup("b", discard_local=True)
    a = hosts.primary("a")
    same(hosts, a, b)


@pytest.mark.parametrize("clean", [True, False])
def test_a_primary_that_was_rolled_back_is_refused_by_name(hosts, tmp_path, clean):
    """A snapshot of state and disk comes back: the backup is newer."""
    b = hosts.backup("b")
    a = hosts.primary("a")
    fill(a, 1)
    checkpoint(a)
    if clean:
        a.close()
    shutil.copytree(hosts.folder / "a", tmp_path / "state")
    shutil.copy(hosts.image("a"), tmp_path / "image")
    if clean:
        a = hosts.primary("a")
    fill(a, 2, at=MIB)
    a.close()
    a = hosts.primary("a")
    last = checkpoint(a)
    want = hosts.data("a")
    a.close()
    shutil.rmtree(hosts.folder / "a")
    (tmp_path / "state").rename(hosts.folder / "a")
    shutil.copy(tmp_path / "image", hosts.image("a"))
    a = hosts.primary("a", wait=False)
    until(lambda: "rolled back" in a.status().reason)
    assert "--discard-local" in a.status().reason
    fill(a, 4, at=3 * MIB)
    b.close()
    b = hosts.backup("b")
    until(lambda: "rolled back" in a.status().reason)
    b.close()
    # Either side can be chosen.
    shutil.copytree(hosts.folder / "b", tmp_path / "b copy")
    shutil.copy(hosts.image("b"), tmp_path / "b.copy")
    b = hosts.backup("b")
    assert b.promote(last, force=True) == last
    assert hosts.data("b") == want
    b.close()
    shutil.rmtree(hosts.folder / "b")
    (tmp_path / "b copy").rename(hosts.folder / "b")
    shutil.copy(tmp_path / "b.copy", hosts.image("b"))
    b = hosts.backup("b", discard_local=True)
    a.wait_protected(timeout_s=30)
    same(hosts, a, b)


def newest_slot_is_damaged(state: Path) -> None:
    """One bit of the slot with the higher serial, or of the first."""
    data = bytearray(state.read_bytes())
    serials = [struct.unpack_from("<Q", data, at + 8)[0] for at in (0, 4096)]
    data[(4096 if serials[1] > serials[0] else 0) + 40] ^= 1
    state.write_bytes(data)


@pytest.mark.parametrize("force", [False, True])
def test_a_fenced_primary_stays_fenced_if_a_slot_is_lost(hosts, force):
    """Stepped down, or failed away from; then it is killed."""
    state = hosts.folder / "a" / "primary.state"
    b = hosts.backup("b")
    a = hosts.primary("a")
    fill(a, 1)
    checkpoint(a)
    a.session_end()
    b.promote(force=force)
    until(lambda: a.status().state is State.FENCED)
    killed = state.read_bytes()
    a.close()
    state.write_bytes(killed)
    newest_slot_is_damaged(state)
    b.close()
    with pytest.raises(RemusError, match=r"fenced|failed away|stepped down"):
        hosts.primary("a", wait=False)


def test_a_split_brain_is_named_though_a_slot_is_lost(hosts):
    """The primary wrote alone, was killed, and the backup was promoted."""
    state = hosts.folder / "a" / "primary.state"
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    a.session_end()
    b.close()
    until(lambda: not a.status().connected)
    fill(a, 7, at=2 * MIB)
    killed = state.read_bytes()
    a.close()
    state.write_bytes(killed)
    newest_slot_is_damaged(state)
    b = hosts.backup("b")
    b.promote(force=True)
    a = hosts.primary("a", wait=False)
    until(lambda: a.status().state is State.SPLIT_BRAIN)
