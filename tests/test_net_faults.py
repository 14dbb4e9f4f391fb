# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two hosts and what can happen between them; each ends with a comparison of
every checkpoint, byte for byte."""

from __future__ import annotations

import random
import signal
import time

import netfault
import pytest
from netfault import Hosts

LOSS_S = 1.0

pytestmark = pytest.mark.skipif(bool(netfault.usable()), reason=netfault.usable())


@pytest.fixture
def hosts(tmp_path):
    made = Hosts(tmp_path)
    try:
        yield made
    finally:
        made.close()


def begin(hosts: Hosts, **options) -> netfault.Guest:
    hosts.start_backup()
    guest = hosts.start_guest(loss_ms=int(LOSS_S * 1000), **options)
    guest.protected()
    guest.lost = 0  # what it said before the first connection
    return guest


def finish(hosts: Hosts, guest: netfault.Guest) -> None:
    """Back to normal, then both die at once; what is there is compared."""
    guest.protected()
    guest.kill()
    hosts.kill_backup()
    assert hosts.prove(guest.batches, guest.acked, guest.at) >= 1


def lost(guest: netfault.Guest, since: float, record_property, most: float) -> None:
    seconds = guest.noticed(since)
    record_property("seconds to notice", round(seconds, 3))
    assert seconds < most
    guest.runs_on()


def test_a_cable_that_is_pulled_out(hosts, record_property):
    guest = begin(hosts)
    since = time.monotonic()
    hosts.cut()
    lost(guest, since, record_property, LOSS_S + 1)
    # The old checkpoint can be had meanwhile.
    hosts.backup.send_signal(signal.SIGSTOP)
    assert hosts.prove(guest.batches, [], guest.at) >= 1
    hosts.backup.send_signal(signal.SIGCONT)
    hosts.cut(up=True)
    finish(hosts, guest)


def test_a_short_break_is_no_loss(hosts):
    guest = begin(hosts, pause=0.02)
    hosts.cut()
    time.sleep(LOSS_S / 4)
    hosts.cut(up=True)
    guest.protected()
    assert guest.lost == 0
    finish(hosts, guest)


@pytest.mark.parametrize("side", ["p", "b"])
def test_packets_that_vanish_in_one_direction(hosts, side, record_property):
    guest = begin(hosts)
    since = time.monotonic()
    hosts.blackhole(side)
    lost(guest, since, record_property, LOSS_S + 1)
    hosts.blackhole(side, on=False)
    finish(hosts, guest)


def test_a_host_that_is_gone_without_a_word(hosts, record_property):
    """No FIN, no RST; then it is back, with a new process."""
    guest = begin(hosts)
    since = time.monotonic()
    hosts.cut("p")
    hosts.kill_backup()
    lost(guest, since, record_property, LOSS_S + 1)
    hosts.start_backup()
    hosts.cut("p", up=True)
    finish(hosts, guest)


def test_a_primary_that_is_gone_without_a_word(hosts):
    """The backup still has its old, half-open connection when it is back."""
    guest = begin(hosts)
    hosts.cut("b")
    guest.runs_on()
    guest.kill()
    hosts.cut("b", up=True)
    # Its first batch is the one that may have been cut short.
    again = hosts.start_guest(loss_ms=1000, batches=guest.at)
    again.protected()
    again.kill()
    hosts.kill_backup()
    assert hosts.prove(again.batches, again.acked, again.at) >= 1


@pytest.mark.parametrize("side", ["p", "b"])
@pytest.mark.parametrize("seconds", [0.3, 2.5])
def test_a_process_that_stands_still(hosts, side, seconds):
    guest = begin(hosts)
    process = guest.process if side == "p" else hosts.backup
    process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    process.send_signal(signal.SIGCONT)
    guest.protected()
    if seconds < LOSS_S:
        assert guest.lost == 0
    finish(hosts, guest)


def test_a_slow_reader(hosts):
    """The backup runs a tenth of the time: writes slow down, acks go on."""
    guest = begin(hosts)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        hosts.backup.send_signal(signal.SIGSTOP)
        time.sleep(0.09)
        hosts.backup.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    assert guest.lost == 0
    finish(hosts, guest)


def test_a_slow_link(hosts):
    guest = begin(hosts)
    hosts.slow("8mbit")
    known = len(guest.acked)
    time.sleep(3)
    assert len(guest.acked) > known + 2
    assert guest.lost == 0
    hosts.slow(None)
    finish(hosts, guest)


def test_a_link_that_comes_and_goes(hosts):
    """Reconnects overtake the end of the connections before them."""
    guest = begin(hosts)
    rng = random.Random(5)
    for _ in range(6):
        hosts.cut(rng.choice("pb"))
        time.sleep(rng.choice((0.05, 0.4, 1.3)))
        for side in "pb":
            hosts.cut(side, up=True)
        time.sleep(rng.choice((0.02, 0.3)))
    finish(hosts, guest)


def kill_rounds(hosts: Hosts, rounds: int, seed: int) -> None:
    guest = begin(hosts)
    rng = random.Random(seed)
    batches, acked = dict(guest.batches), []
    for _ in range(rounds):
        time.sleep(rng.random() * 0.15)
        if rng.random() < 0.6:
            hosts.kill_backup()
            time.sleep(rng.random() * 0.03)
            hosts.start_backup()
        else:
            guest.kill()
            batches.update(guest.batches)
            # The batch under way may have been cut short: it is done again,
            # whole, before the next checkpoint.
            guest = hosts.start_guest(loss_ms=1000, batches=guest.at)
        if rng.random() < 0.5:
            guest.protected()
    guest.protected()
    guest.kill()
    hosts.kill_backup()
    batches.update(guest.batches)
    acked = guest.acked
    assert hosts.prove(batches, acked, guest.at) >= 1


def test_killed_at_random_moments(hosts):
    kill_rounds(hosts, 8, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 12, 13, 14])
def test_killed_hundreds_of_times(hosts, seed):
    kill_rounds(hosts, 60, seed)
