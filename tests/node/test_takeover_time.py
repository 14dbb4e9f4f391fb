# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long a toolstack's open waits on the backup's host: libxl gives its
device model 10 s.  Two hosts with the file as it would be, and real commands."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import netfault
from support.host import Host, end, mounts_of, node, status
from support.netfault import BACKUP_IP, PRIMARY_IP
from support.waiting import wait_for

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(bool(netfault.usable()), reason=netfault.usable()),
]

MOST_S = 8.0


class TwoHosts(Host):
    """`p` and `b` are two hosts: each side's process has its own network."""

    def __init__(self, folder: Path, stack: object) -> None:
        super().__init__(folder, stack)  # type: ignore[arg-type]
        (folder / "net").mkdir()
        self.net = netfault.Hosts(folder / "net")
        text = self.file.read_text().replace(
            f'address = "unix:{folder}/sock"',
            f'address = "tcp:{BACKUP_IP}:7790"\ntls = "off"\n'
            f'address_swapped = "tcp:{PRIMARY_IP}:7790"\n'
            'auto_promote = true\nfence = "none"',
        )
        self.file.write_text(
            text.replace("[backup]\n", f'[backup]\nmount = "{folder}/b/mount"\n')
        )
        mounts_of(self, "p", "b")

    def serve(self, side: str, *arguments: str) -> subprocess.Popen[str]:
        """Like `start`, on that host (but with this one's mounts)."""
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.net.names[side]}", sys.executable,
             "-m", "remus_native", *arguments, str(self.file)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.stack.callback(end, process)
        wait_for("it", lambda: process.poll() is not None or self.runs(side))
        assert process.poll() is None, process.communicate()[1]
        return process


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        made = TwoHosts(tmp_path, stack)
        try:
            yield made
        finally:
            stack.close()
            made.net.close()


def begin(hosts: TwoHosts) -> subprocess.Popen[str]:
    """Both up; something was written and is there on the backup."""
    hosts.serve("b", "backup", "--create")
    wait_for("nodes", lambda: os.path.ismount(hosts.folder / "b/mount"))
    primary = hosts.serve("p", "primary")
    wait_for("Protected", lambda: status(hosts, "p")["state"] == "Protected")
    with node(hosts).open("r+b", buffering=0) as disk:
        disk.write(b"before")
    wait_for("it", lambda: node(hosts, "b").read_bytes()[:6] == b"before")
    wait_for("its close", lambda: not status(hosts, "p")["writers"])
    return primary


def opens(hosts: TwoHosts) -> float:
    """A toolstack opens its disk, reads and writes; how long the open took."""
    start = time.monotonic()
    with node(hosts, "b").open("r+b", buffering=0) as disk:
        seconds = time.monotonic() - start
        assert disk.read(6) == b"before"
        disk.seek(4096)
        disk.write(b"and after")
    assert status(hosts, "b")["role"] == "primary"
    return seconds


def test_the_primary_is_dead(hosts, record_property):
    begin(hosts).kill()
    seconds = opens(hosts)
    record_property("seconds", round(seconds, 2))
    assert seconds < MOST_S


@pytest.mark.parametrize("what", ["cable", "process"])
def test_the_primary_is_silent(hosts, what, record_property):
    """No FIN and no RST: its host lost its power, or it stands still."""
    primary = begin(hosts)
    if what == "cable":
        hosts.net.cut("p")
    else:
        primary.send_signal(19)
    seconds = opens(hosts)
    record_property("seconds", round(seconds, 2))
    assert seconds < MOST_S
    hosts.net.cut("p", up=True)
    primary.kill()


def test_the_primary_lives_and_is_busy(hosts, record_property):
    begin(hosts)
    with node(hosts).open("r+b", buffering=0) as disk:
        start = time.monotonic()
        with pytest.raises(OSError, match="busy") as caught:
            os.open(node(hosts, "b"), os.O_RDWR)
        seconds = time.monotonic() - start
        assert caught.value.errno == errno.EBUSY
        assert disk.write(b"before") == 6
    record_property("seconds", round(seconds, 2))
    assert seconds < 2
    assert status(hosts, "b")["state"] == "Protected"


def test_the_primary_lives_and_is_idle(hosts, record_property):
    begin(hosts)
    seconds = opens(hosts)
    record_property("seconds", round(seconds, 2))
    assert seconds < MOST_S
    # It stays what it is, fenced, and tells so.
    assert status(hosts, "p")["state"] == "Fenced"
    with pytest.raises(OSError, match="Read-only"):
        os.open(node(hosts), os.O_RDWR)
