# SPDX-License-Identifier: LGPL-2.1-or-later
"""Strangers without number: what a running replication notices of them."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remus_native import Primary, State
from support.pair import checkpoint
from support.tls_pair import Proxy, Tls
from support.waiting import until

# Silent, half a record, no TLS at all, and the first words of a real primary
# once more: for those the backup has to calculate.
ATTACK = """
import socket, sys
port, count, sources, flight = *map(int, sys.argv[1:4]), bytes.fromhex(sys.argv[4])
words = b"", flight[:6], b"hello?" * 20, flight
kept = []
for i in range(count):
    s = socket.socket()
    s.settimeout(10)
    try:
        s.bind((f"127.1.{i % sources // 250}.{1 + i % sources % 250}", 0))
        s.connect(("127.0.0.1", port))
        s.sendall(words[i % 4])
    except OSError:
        pass
    kept.append(s)
    if len(kept) > 300:
        kept.pop(0).close()
"""


def attack(tls: Tls, count: int, sources: int, flight: bytes) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", ATTACK, str(tls.port), str(count), str(sources),
         flight.hex()]
    )  # fmt: skip


def first_flight(tls: Tls) -> bytes:
    """The ClientHello of a primary that came, and went again."""
    proxy = Proxy(tls.port)
    primary = tls.primary(port=proxy.port)
    primary.wait_protected(30)
    primary.close()
    until(lambda: not tls.backup.status().connected)
    length = int.from_bytes(proxy.sent[3:5], "big")
    return bytes(proxy.sent[: 5 + length])


def resources() -> tuple[int, int]:
    """Resident kilobytes and open files of this process."""
    with open("/proc/self/status", encoding="ascii") as status:
        rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return rss, len(os.listdir("/proc/self/fd"))


def timed(primary: Primary) -> float:
    primary.pwrite(0, os.urandom(4096), 0)
    start = time.monotonic()
    checkpoint(primary)
    return time.monotonic() - start


def crowd(tls: Tls, connections: int) -> None:
    flight = first_flight(tls)
    primary = tls.primary()
    primary.wait_protected(30)
    quiet = sorted(timed(primary) for _ in range(200))
    rss, files = resources()
    most_rss, most_files, busy = rss, files, []
    attackers = attack(tls, connections, 1, flight)
    try:
        while attackers.poll() is None:
            busy.append(timed(primary))
            now_rss, now_files = resources()
            most_rss, most_files = max(most_rss, now_rss), max(most_files, now_files)
    finally:
        attackers.kill()
        attackers.wait()
    busy.sort()
    middle, calm = busy[len(busy) // 2], quiet[len(quiet) // 2]
    print(
        f"{connections} connections: checkpoint {middle * 1e3:.2f} ms "
        f"(max {busy[-1] * 1e3:.1f}), before {calm * 1e3:.2f} ms"
    )
    assert len(busy) > 5
    assert primary.status().state is State.PROTECTED
    assert primary.status().stalls == 0
    assert most_files - files <= 80  # 64 pending ones
    assert most_rss - rss < 40_000  # KiB
    # They share two processors with the attackers, and nothing else.
    assert middle < 10 * calm + 0.02
    assert busy[-1] < 2.0  # of 3 that would count as a loss
    until(lambda: tls.backup.status().refused >= connections * 9 // 10)
    # The attackers' one source, and our own of the primary's tries.
    sources = {one.source for one in tls.backup.refusals()}
    assert "127.1.0.1" in sources and sources <= {"127.1.0.1", "127.0.0.1"}
    epoch = checkpoint(primary)
    primary.close()
    assert tls.backup.promote() == epoch
    assert (tls.folder / "b.img").read_bytes() == (tls.folder / "p.img").read_bytes()


def test_a_crowd_does_not_disturb(tls: Tls) -> None:
    crowd(tls, 1000)


@pytest.mark.slow
def test_ten_thousand_connections(tls: Tls) -> None:
    crowd(tls, 10_000)


def test_a_primary_gets_in_through_a_crowd_of_many_sources(tls: Tls) -> None:
    """Each of 500 addresses has one connection; the primary's is one more."""
    attackers = attack(tls, 100_000, 500, b"\x16\x03\x01\x02\x00\x01")
    try:
        until(lambda: tls.backup.status().refused > 200)
        primary = tls.primary()
        primary.wait_protected(30)
        checkpoint(primary)
        assert attackers.poll() is None
    finally:
        attackers.kill()
        attackers.wait()
    sources = tls.backup.refusals()
    assert len(sources) == 65
    assert sum(one.source == "others" for one in sources) == 1
    assert sum(one.count for one in sources) <= tls.backup.status().refused


@pytest.mark.alone
def test_without_a_file_descriptor_for_them(tls: Tls, tmp_path: Path) -> None:
    """They stay in the kernel's queue, cost no processor time, and are let in
    once there is room; what is connected goes on."""
    primary = tls.primary()
    primary.wait_protected(30)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    held: list[int] = []
    strangers = subprocess.Popen(
        [sys.executable, "-c", f"""
import socket, sys
kept = [socket.create_connection(("127.0.0.1", {tls.port})) for _ in range(100)]
print("there", flush=True)
sys.stdin.read()
"""], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 10, hard))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        for _ in range(4):
            os.close(held.pop())
        assert strangers.stdout is not None
        assert strangers.stdout.readline() == b"there\n"
        until(lambda: any("open files" in one.text for one in tls.backup.refusals()))
        spent, start = time.process_time(), time.monotonic()
        for _ in range(100):
            timed(primary)
            time.sleep(0.01)
        seconds = time.monotonic() - start
        assert time.process_time() - spent < 0.6 * seconds
        assert primary.status().state is State.PROTECTED
    finally:
        for one in held:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        strangers.communicate()
    known = tls.refused("tls")
    with socket.create_connection(("127.0.0.1", tls.port), timeout=20) as late:
        late.sendall(b"hello?" * 20)
        until(lambda: tls.refused("tls") > known or late.recv(1) == b"")
    checkpoint(primary)
