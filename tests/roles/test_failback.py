# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fail-back: the old primary comes back as the backup; one role at a time."""

from __future__ import annotations

import errno
import random

import pytest

from remus_native import State, StateError
from support.pair import BLOCK, MIB, checkpoint, next_checkpoint
from support.two_hosts import Hosts, fill, promoted_b
from support.waiting import until


def test_the_old_primary_comes_back_as_the_backup(hosts):
    a, b, m = promoted_b(hosts)
    a.close()
    b.close()
    at_m = hosts.data("b")
    back = hosts.backup("a")
    assert back.status().state is State.INCONSISTENT
    assert "was the primary" in back.status().reason
    with pytest.raises(StateError, match="was the primary"):
        back.promote()
    new = hosts.primary("b")
    # What A had written after m, in whole blocks, and nothing else.
    assert new.status().resync_total <= 256 * 1024 + BLOCK
    assert new.pread(0, hosts.size, 0) == at_m
    fill(new, 3, at=2 * MIB)
    epoch = checkpoint(new)
    assert epoch > m
    new.close()
    assert back.promote() == epoch
    assert hosts.data("a") == hosts.data("b")


def test_what_a_plain_guest_wrote_travels_too(hosts):
    """After a promote a guest may run on the images without any engine."""
    a, b, _ = promoted_b(hosts)
    a.close()
    b.close()
    with hosts.image("b").open("r+b") as image:
        image.seek(3 * MIB)
        image.write(b"by a guest on plain images")
    back = hosts.backup("a")
    new = hosts.primary("b")
    epoch = checkpoint(new)
    new.close()
    assert back.promote() == epoch
    assert hosts.data("a") == hosts.data("b")
    assert b"plain images" in hosts.data("a")


def test_until_it_is_committed_the_old_disks_stay_whole(hosts):
    a, b, _ = promoted_b(hosts)
    a.close()
    b.close()
    before = hosts.data("a")
    back = hosts.backup("a")
    new = hosts.primary("b", wait=False, grace_ms=3_600_000)
    new.session_begin()
    next_checkpoint(new)  # prepared, never committed
    new.close()
    back.close()
    assert hosts.data("a") == before


@pytest.mark.parametrize("named", [True, False])
def test_the_first_acked_checkpoint_can_be_failed_over_to(hosts, named):
    """Before its commit: an ack that nobody could use would be none."""
    a, b, _ = promoted_b(hosts)
    a.close()
    b.close()
    back = hosts.backup("a")
    new = hosts.primary("b", wait=False, grace_ms=3_600_000)
    new.session_begin()
    epoch = next_checkpoint(new, "first")
    at_first = hosts.data("b")
    assert new.status().state is State.PROTECTED
    assert back.status().state is State.PROTECTED
    new.pwrite(0, b"and then it died", 0)
    new.close()
    assert [(cp.epoch, cp.committed) for cp in back.checkpoints()] == [(epoch, False)]
    with pytest.raises(StateError, match=f"none is committed.*{epoch}"):
        back.promote()
    back.close()
    back = hosts.backup("a")  # a new process knows it, too
    assert (back.promote(epoch) if named else back.promote(tag="first")) == epoch
    assert hosts.data("a") == at_first


def test_who_steps_down_before_the_first_commit_commits(hosts):
    a, b, _ = promoted_b(hosts)
    a.close()
    b.close()
    back = hosts.backup("a")
    new = hosts.primary("b", wait=False, grace_ms=3_600_000)
    new.session_begin()
    epoch = next_checkpoint(new)
    fill(new, 4, at=3 * MIB)
    new.session_end()
    assert back.promote() > epoch
    assert hosts.data("a") == hosts.data("b")


def test_there_and_back_again(hosts):
    """Roles are switched ten times; each side ends with the same bytes."""
    model = bytearray(hosts.size)
    host, other = "a", "b"
    rng = random.Random(7)
    backup = hosts.backup(other)
    for turn in range(10):
        primary = hosts.primary(host)
        data, at = rng.randbytes(3000), rng.randrange(hosts.size - 3000)
        primary.pwrite(0, data, at)
        model[at : at + 3000] = data
        epoch = checkpoint(primary, f"turn {turn}")
        primary.close()
        assert backup.promote() == epoch
        backup.close()
        host, other = other, host
        backup = hosts.backup(other)
    assert hosts.data(host) == model


def test_a_side_has_one_role_at_a_time(hosts):
    hosts.backup("b").close()
    with pytest.raises(StateError, match="this side is the backup") as caught:
        hosts.primary("b", wait=False)
    assert caught.value.errno == errno.EROFS
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    a.close()
    b.promote()
    b.close()
    hosts.primary("b", wait=False).close()
    # A primary since: as a backup it is what that primary left.
    again = hosts.backup("b", serve=False)
    assert "was the primary" in again.status().reason
    with pytest.raises(StateError, match="another process"):
        hosts.primary("b", wait=False)
    again.close()
    # No other primary has brought it up to date: it is what it was.
    generation = again_is_primary(hosts, "b")
    assert again_is_primary(hosts, "b") == generation
    # Once one has, it is not.
    hosts.backup("b", discard_local=True)
    a = hosts.primary("a")
    checkpoint(a)
    hosts.close()
    with pytest.raises(StateError, match="this side is the backup"):
        hosts.primary("b", wait=False)


def test_a_promoted_side_that_restarts_still_fences(hosts):
    b = hosts.backup("b")
    a = hosts.primary("a")
    checkpoint(a)
    b.close()
    until(lambda: not a.status().connected)
    b = hosts.backup("b", serve=False)
    b.promote()
    b.close()
    promoted = hosts.data("b")
    hosts.backup("b")
    until(lambda: a.status().state is State.FENCED)
    with pytest.raises(StateError, match="Fenced"):
        a.pwrite(0, b"x", 0)
    assert hosts.data("b") == promoted


def again_is_primary(hosts: Hosts, host: str) -> str:
    primary = hosts.primary(host, wait=False)
    assert primary.status().state is State.CONNECTING
    generation = primary.status().generation
    primary.close()
    return generation


def test_a_fenced_primary_stays_fenced(hosts):
    a, _, _ = promoted_b(hosts)
    assert a.pread(0, 4, 0)
    a.close()
    with pytest.raises(StateError, match="fenced") as caught:
        hosts.primary("a", wait=False)
    assert caught.value.errno == errno.EROFS
