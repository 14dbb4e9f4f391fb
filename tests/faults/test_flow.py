# SPDX-License-Identifier: LGPL-2.1-or-later
"""A path on which connections succeed and data does not get through: what the
guest waits for is bounded over the whole outage."""

from __future__ import annotations

import itertools
import signal
import subprocess
import time

import pytest

from support import netfault
from support.netfault import BACKUP_IP, PRIMARY_IP, Hosts, ip

LOSS_S, STALL_S, OUTAGE_S = 1.0, 3.0, 15.0

pytestmark = pytest.mark.skipif(bool(netfault.usable()), reason=netfault.usable())


class Routed(Hosts):
    """With a router between the two, whose second link can be narrower than
    anybody is told: its own words, "fragmentation needed", are dropped."""

    def link(self) -> None:
        router = self.router = self.names["p"].replace("remp", "remr")
        ip("netns", "add", router)
        self.stack.callback(ip, "netns", "del", router)
        self.sysctl("net.ipv4.ip_forward=1")
        ip("-n", router, "rule", "add", "pref", "1", "ipproto", "icmp", "blackhole")
        for net, side, address in ((1, "p", PRIMARY_IP), (2, "b", BACKUP_IP)):
            name = self.names[side]
            ip("link", "add", "ve", "netns", name, "type", "veth", "peer", "name",
               f"v{side}", "netns", router)  # fmt: skip
            ip("-n", name, "addr", "add", f"10.78.{net}.2/24", "dev", "ve")
            ip("-n", name, "addr", "add", f"{address}/32", "dev", "ve")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "ve", "up")
            ip("-n", name, "route", "add", "default", "via", f"10.78.{net}.1",
               "src", address)  # fmt: skip
            ip("-n", router, "addr", "add", f"10.78.{net}.1/24", "dev", f"v{side}")
            ip("-n", router, "link", "set", f"v{side}", "up")
            ip("-n", router, "route", "add", f"{address}/32", "via", f"10.78.{net}.2")

    def sysctl(self, setting: str) -> None:
        subprocess.run(
            ["ip", "netns", "exec", self.router, "sysctl", "-q", "-w", setting],
            check=True,
        )

    def narrow(self, on: bool) -> None:
        mtu = "600" if on else "1500"
        ip("-n", self.router, "link", "set", "vb", "mtu", mtu)


@pytest.fixture
def routed(tmp_path):
    made = Routed(tmp_path)
    try:
        yield made
    finally:
        made.close()


def begin(hosts: Hosts) -> netfault.Guest:
    hosts.start_backup()
    guest = hosts.start_guest(loss_ms=int(LOSS_S * 1000), stall_ms=int(STALL_S * 1000))
    guest.protected()
    return guest


def finish(hosts: Hosts, guest: netfault.Guest) -> None:
    guest.protected(seconds=60)
    guest.kill()
    hosts.kill_backup()
    assert hosts.prove() >= 1


def connections(guest: netfault.Guest, since: float) -> list[float]:
    """When one began, since then."""
    return [
        t
        for (_, _, before, _), (t, _, up, _) in itertools.pairwise(guest.states)
        if up and not before and t > since
    ]


@pytest.mark.slow
@pytest.mark.alone
def test_a_path_that_swallows_large_packets(routed, record_property):
    guest = begin(routed)
    routed.narrow(True)
    since = time.monotonic()
    guest.noticed(since)
    before, at = guest.waited, guest.at
    end = time.monotonic() + OUTAGE_S
    while time.monotonic() < end:
        guest.runs_on()
    waited = guest.waited - before
    record_property("seconds that writes waited", round(waited, 2))
    print(f"writes waited {waited:.2f} of {OUTAGE_S} s; {guest.at - at} batches")
    assert any("large packets" in reason for _, _, _, reason in guest.states)
    # Once `stall`, and for each further connection a look or two.
    assert waited < STALL_S + 0.2 * len(connections(guest, since)) + 0.3
    assert len(connections(guest, since)) < 12, "no pauses in between"
    routed.narrow(False)
    finish(routed, guest)


@pytest.mark.slow
@pytest.mark.alone
def test_a_host_that_takes_no_more(routed, record_property):
    """Its kernel acks, its process stands still, again and again: it is lost
    for silence, and what the guest waited for stays within `stall`."""
    guest = begin(routed)
    before = guest.waited
    rounds = 3
    for _ in range(rounds):
        routed.backup.send_signal(signal.SIGSTOP)
        guest.runs_on()
        time.sleep(LOSS_S * 1.5)
        routed.backup.send_signal(signal.SIGCONT)
        guest.protected()
    waited = guest.waited - before
    record_property("seconds that writes waited", round(waited, 2))
    assert waited < rounds * (LOSS_S + 0.5)
    finish(routed, guest)
