# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names of hosts: asked for anew at each try, with all their addresses; a name
server that is away; a port that nobody listens at."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from support import netfault
from support.netfault import BACKUP_IP, PORT, Hosts, ip

pytestmark = pytest.mark.skipif(bool(netfault.usable()), reason=netfault.usable())


@pytest.fixture
def hosts(namespaces):
    return namespaces


MOVED_IP = "10.77.0.3"
NOBODY = "10.77.0.98"  # of our network, and no host has it
NAME = f"tcp:backup-host:{PORT}"


def says(guest: netfault.Guest, text: str) -> None:
    guest.wait(
        lambda: any(text in reason for _, _, _, reason in guest.states[-1:]),
        f"a reason with {text!r}",
    )


def finish(hosts: Hosts, guest: netfault.Guest) -> None:
    guest.protected()
    guest.kill()
    hosts.kill_backup()
    assert hosts.prove() >= 1


def test_a_name_is_asked_for_anew_and_all_its_addresses_are_tried(hosts):
    etc = hosts.resolver("p")
    hosts.address = NAME
    hosts.start_backup()
    (etc / "nsswitch.conf").write_text("hosts: files\n")
    guest = hosts.start_guest(loss_ms=1000)
    says(guest, "not reachable: the name was not resolved")
    guest.runs_on()
    # The first one leads nowhere: what is left of the time is the second one's.
    (etc / "hosts").write_text(f"{NOBODY} backup-host\n{BACKUP_IP} backup-host\n")
    guest.protected()
    # It moves to another address, and only its name says so.
    hosts.kill_backup()
    b = hosts.names["b"]
    ip("-n", b, "addr", "del", f"{BACKUP_IP}/24", "dev", "ve")
    ip("-n", b, "addr", "add", f"{MOVED_IP}/24", "dev", "ve")
    hosts.listen = f"tcp:{MOVED_IP}:{PORT}"
    (etc / "hosts").write_text(f"{MOVED_IP} backup-host\n")
    hosts.start_backup()
    finish(hosts, guest)


@pytest.mark.slow
def test_a_name_server_that_is_away_holds_nobody_up(hosts):
    """Neither the start, nor the guest, nor the end: resolving takes 20 s."""
    etc = hosts.resolver("p")
    hosts.address = NAME
    hosts.start_backup()
    guest = hosts.start_guest(loss_ms=1000)
    says(guest, "not reachable: the name was not resolved: no name server answers")
    guest.runs_on()
    (etc / "resolv.conf").write_text("nameserver 10.77.0.99\noptions timeout:1\n")
    (etc / "hosts").write_text(f"{BACKUP_IP} backup-host\n")
    finish(hosts, guest)


def test_closing_does_not_wait_for_a_name_server(hosts):
    hosts.resolver("p")
    hosts.address = NAME
    guest = hosts.start_guest(loss_ms=1000, ends=True)
    guest.wait(lambda: bool(guest.states), "a state")
    time.sleep(0.3)  # it asks
    start = time.monotonic()
    guest.process.send_signal(signal.SIGTERM)
    assert guest.process.wait(timeout=20) == 0
    assert time.monotonic() - start < 3


def test_a_primary_never_takes_itself_for_its_backup(hosts):
    """The one port that the kernel may give to who connects is the one that he
    connects to: each connection would be one to itself."""
    subprocess.run(
        ["ip", "netns", "exec", hosts.names["p"], "sysctl", "-q", "-w",
         f"net.ipv4.ip_local_port_range={PORT} {PORT}"], check=True,
    )  # fmt: skip
    hosts.address = f"tcp:127.0.0.1:{PORT}"
    guest = hosts.start_guest(loss_ms=1000)
    says(guest, "nobody listens there")
    guest.runs_on()
    assert {state for _, state, _, _ in guest.states} == {"Connecting"}
    assert not any(up for _, _, up, _ in guest.states)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.7"])
def test_where_a_backup_can_not_listen_now_is_no_wrong_file(host, tmp_path):
    """A name server, or an interface, that is not there yet: tried again."""
    image = tmp_path / "b0"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    resource = tmp_path / "guest0.toml"
    resource.write_text(
        f'name = "guest0"\naddress = "tcp:{host}:7790"\ntls = "off"\n'
        f'[primary]\nstate = "{tmp_path}/p"\n[backup]\nstate = "{tmp_path}/b"\n'
        '[limits]\njournal = "1MiB"\nsegment = "64KiB"\n'
        f'[[volume]]\nname = "root"\nprimary = "{tmp_path}/p0"\nbackup = "{image}"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "remus_native", "backup", str(resource)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert f"address tcp:{host}:7790: " in done.stderr
