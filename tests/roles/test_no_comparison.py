# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an exchange of roles and a fail-back send, where maps and generations
prove what differs: that, and no more.
"""

from __future__ import annotations

import random
import time

import pytest

from remus_native import State, Volume
from support.pair import BLOCK, MIB, QUIET, checkpoint
from support.side_process import Side
from support.two_hosts import Hosts, fill
from support.waiting import settled, until

SENT = 256 * 1024  # by one fill()


def filled(hosts: Hosts):
    b = hosts.backup("b")
    a = hosts.primary("a", grace_ms=1)
    fill(a, 1)
    m = checkpoint(a)
    a.session_end()
    until(lambda: a.status().stable_epoch >= m)
    return a, b, m


def write_the_same(hosts: Hosts, host: str, primary, at: int) -> None:
    primary.pwrite(0, hosts.data(host)[at : at + BLOCK], at)


def back_again(hosts: Hosts, *, sent: int | None, compares: bool = False) -> None:
    """B is the primary now, A its backup: ``sent`` bytes make them equal.  At
    1 MiB/s a comparison of the disks takes 4 s."""
    b = hosts.primary("b", wait=False, resync_rate=MIB)
    write_the_same(hosts, "b", b, 3 * MIB)  # before it has a backup
    a = hosts.backup("a")
    start = time.monotonic()
    b.wait_protected(timeout_s=60)
    assert (time.monotonic() - start > 3.5) == compares
    if sent is not None:
        assert b.status().resync_total == sent
    epoch = checkpoint(b)
    b.close()
    assert a.promote() == epoch
    assert hosts.data("a") == hosts.data("b")


def test_a_planned_exchange_of_roles_moves_and_compares_nothing(hosts):
    a, b, _ = filled(hosts)
    b.promote()
    until(lambda: a.status().state is State.FENCED)
    a.close()
    b.close()
    back_again(hosts, sent=BLOCK)


def test_what_the_old_primary_had_more_is_overwritten(hosts):
    a, b, _ = filled(hosts)
    fill(a, 2, at=MIB)  # in the open epoch
    b.promote(force=True)
    until(lambda: a.status().state is State.FENCED)
    a.close()
    b.close()
    back_again(hosts, sent=SENT + BLOCK)


def test_what_a_killed_primary_had_more_is_overwritten(hosts):
    b = hosts.backup("b")
    a = Side(
        "Primary",
        "guest0",
        state_dir=str(hosts.folder / "a"),
        volumes=[Volume("xvda", str(hosts.image("a")))],
        address=f"unix:{hosts.folder}/b.sock",
        connect_ms=10,
        **QUIET,
    )
    try:
        a.wait_protected(timeout_s=30)
        a.pwrite(0, random.Random(1).randbytes(SENT), 0)
        m = checkpoint(a)
        until(lambda: a.status().stable_epoch >= m)
        until(lambda: not a.status().dirty_bytes)
        a.pwrite(0, random.Random(2).randbytes(SENT), MIB)
        settled()
    finally:
        a.kill()
    b.promote(force=True)
    b.close()
    back_again(hosts, sent=SENT + BLOCK)


def test_what_both_sides_wrote_by_themselves(hosts):
    """Split brain, and the word that the old primary's part is lost."""
    a, b, _ = filled(hosts)
    b.close()
    until(lambda: not a.status().connected)
    fill(a, 3, at=2 * MIB)  # in a generation of its own
    a.close()
    b = hosts.backup("b", serve=False)
    b.promote(force=True)
    b.close()
    b = hosts.primary("b", wait=False)
    write_the_same(hosts, "b", b, 3 * MIB)
    a = hosts.backup("a", discard_local=True)
    b.wait_protected(timeout_s=30)
    assert b.status().resync_total == SENT + BLOCK
    epoch = checkpoint(b)
    b.close()
    assert a.promote() == epoch
    assert hosts.data("a") == hosts.data("b")


@pytest.mark.parametrize("whose", ["a", "b"])
def test_a_write_beside_the_maps_is_found(hosts, whose):
    """Into the plain image, after the primary ended, or after the promote."""
    a, b, _ = filled(hosts)
    b.promote()
    until(lambda: a.status().state is State.FENCED)
    a.close()
    b.close()
    with hosts.image(whose).open("r+b") as image:
        image.seek(2 * MIB)
        image.write(b"beside")
    back_again(hosts, sent=2 * BLOCK, compares=True)


def test_a_promote_to_less_than_the_map_tells_is_compared(hosts):
    a, b, old = filled(hosts)
    a.pwrite(0, b"newer" * 1000, MIB)
    epoch = a.postsuspend()
    a.preresume(epoch, timeout_s=20)
    until(lambda: a.status().stable_epoch >= epoch)
    until(lambda: not a.status().dirty_bytes)
    a.close()
    assert b.promote(old, force=True) == old
    b.close()
    back_again(hosts, sent=None, compares=True)
