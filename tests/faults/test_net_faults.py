# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two hosts and what can happen between them; each ends with a comparison of
every checkpoint, byte for byte."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter

import pytest

from support import netfault
from support.netfault import Hosts

LOSS_S = 1.0

pytestmark = pytest.mark.skipif(bool(netfault.usable()), reason=netfault.usable())


@pytest.fixture
def hosts(namespaces):
    return namespaces


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
    assert hosts.prove() >= 1


def lost(guest: netfault.Guest, since: float, record_property, most: float) -> None:
    seconds = guest.noticed(since)
    record_property("seconds to notice", round(seconds, 3))
    print(f"noticed after {seconds:.3f} s")
    assert seconds < most
    guest.runs_on()


@pytest.mark.slow
def test_a_loss_is_noticed_within_the_default_time(hosts, record_property):
    hosts.start_backup()
    guest = hosts.start_guest()
    guest.protected()
    since = time.monotonic()
    hosts.cut()
    lost(guest, since, record_property, 3.0 + 1)
    hosts.cut(up=True)
    finish(hosts, guest)


def test_a_cable_that_is_pulled_out(hosts, record_property):
    guest = begin(hosts)
    since = time.monotonic()
    hosts.cut()
    lost(guest, since, record_property, LOSS_S + 1)
    # The old checkpoint can be had meanwhile.
    hosts.backup.send_signal(signal.SIGSTOP)
    assert hosts.prove() >= 1
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
    assert hosts.prove() >= 1


@pytest.mark.parametrize("side", ["p", "b"])
@pytest.mark.parametrize("seconds", [0.3, 1.6])
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
    end = time.monotonic() + 2 * LOSS_S
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
    time.sleep(2 * LOSS_S)
    guest.wait(lambda: len(guest.acked) > known + 2, "acks")
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


class Rounds:
    """Kills at random moments, and what became of them."""

    def __init__(self, hosts: Hosts, seed: int) -> None:
        self.hosts, self.rng = hosts, random.Random(seed)
        self.did: Counter[str] = Counter(seed=seed)
        self.guest = begin(hosts)

    def kill_backup(self) -> None:
        self.hosts.kill_backup()
        time.sleep(self.rng.random() * 0.03)
        self.hosts.start_backup()

    def kill_primary(self) -> None:
        self.guest.kill()
        # The batch under way may have been cut short: it is done again,
        # whole, before the next checkpoint.
        self.guest = self.hosts.start_guest(loss_ms=1000, batches=self.guest.at)

    def kill_both(self) -> None:
        self.guest.kill()
        self.kill_backup()
        self.guest = self.hosts.start_guest(loss_ms=1000, batches=self.guest.at)

    def stop_then_kill_backup(self) -> None:
        self.hosts.backup.send_signal(signal.SIGSTOP)
        time.sleep(self.rng.random() * 0.2)
        self.kill_backup()

    def cut_then_kill_primary(self) -> None:
        self.hosts.cut("p")
        time.sleep(self.rng.random() * 0.2)
        self.guest.kill()
        self.hosts.cut("p", up=True)
        self.guest = self.hosts.start_guest(loss_ms=1000, batches=self.guest.at)

    def one(self) -> None:
        what = self.rng.choices(
            (
                self.kill_backup,
                self.kill_primary,
                self.kill_both,
                self.stop_then_kill_backup,
                self.cut_then_kill_primary,
            ),
            (40, 30, 10, 10, 10),
        )[0]
        time.sleep(self.rng.random() * 0.15)
        what()
        self.did["rounds"] += 1
        self.did[what.__name__] += 1
        if self.rng.random() < 0.5:
            self.guest.protected()

    def compare(self) -> None:
        """All that the backup offers, at some moment; the guest runs on."""
        self.guest.protected()
        self.hosts.kill_backup()
        self.guest.runs_on()  # all that it had to tell is told
        self.did["checkpoints compared"] += self.hosts.prove()
        self.hosts.start_backup()

    def end(self) -> None:
        self.guest.protected()
        self.guest.kill()
        self.hosts.kill_backup()
        self.did["checkpoints compared"] += self.hosts.prove()


def kill_rounds(hosts: Hosts, most: int, seconds: float, seed: int,
                record_property) -> None:  # fmt: skip
    rounds = Rounds(hosts, seed)
    end = time.monotonic() + seconds
    while rounds.did["rounds"] < most and time.monotonic() < end:
        rounds.one()
        if rounds.did["rounds"] % 8 == 0:
            rounds.compare()
    rounds.end()
    for what, times in rounds.did.items():
        record_property(what, times)
        print(times, what)


def test_killed_at_random_moments(hosts, record_property):
    kill_rounds(hosts, 8, 20, 1, record_property)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", [11, 12, 13, 14])
def test_killed_hundreds_of_times(hosts, seed, record_property):
    kill_rounds(hosts, 120, 240, seed, record_property)
