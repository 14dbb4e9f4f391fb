# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a service manager hears, and the unit for it."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remus_native.cli._process import Pulse
from support.host import Host, status
from support.paths import ROOT
from support.waiting import DEADLINE_S, wait_for

ANALYZE = "systemd-analyze"
UNIT = ROOT / "docs" / "remus@.service"
#: What gives a service a mount namespace of its own (systemd.exec(5)): mounts in
#: it do not reach the host.
UNSHARES = re.compile(
    r"(Protect(System|Home|Kernel\w+|ControlGroups|Proc)|Private\w+|Read\w+Paths|"
    r"Inaccessible\w+|Bind\w+|RootDirectory|RootImage|TemporaryFileSystem|"
    r"DynamicUser|MountFlags|ProcSubset|MountAPIVFS|\w+Paths)="
)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "notify"))
        server.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield server


def heard(manager: socket.socket) -> list[str]:
    """All that came since."""
    found = []
    try:
        while True:
            found.append(manager.recv(4096).decode())
    except BlockingIOError:
        return found


# ---- the watchdog ------------------------------------------------------------------


def test_a_process_that_serves_is_heard(host: Host, manager, monkeypatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    process = host.start_backup()
    said: list[str] = []

    def hears(word: str) -> bool:
        said.extend(heard(manager))
        return any(word in one for one in said)

    wait_for("ready", lambda: hears("READY=1"))
    wait_for("state", lambda: hears("STATUS=backup: Inconsistent: no complete copy"))
    for _ in range(3):
        said.clear()
        wait_for("a beat", lambda: hears("WATCHDOG=1"))
    process.send_signal(signal.SIGSTOP)  # it answers nobody
    wait_for("its stop", lambda: is_stopped(process.pid))
    heard(manager)
    time.sleep(1)
    assert heard(manager) == []
    process.send_signal(signal.SIGCONT)
    wait_for("a beat", lambda: hears("WATCHDOG=1"))
    process.terminate()
    assert process.wait(DEADLINE_S) == 0
    said.clear()
    assert hears("STOPPING=1")


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def test_nobody_watches_without_a_word(host: Host, manager, monkeypatch) -> None:
    for wrong in ("", "0", "-5", "soon"):
        monkeypatch.setenv("WATCHDOG_USEC", wrong)
        with Pulse(lambda _: None, lambda: math.inf) as pulse:
            assert pulse._thread is None
    assert heard(manager) == []


def test_what_does_not_answer_does_not_beat(manager, monkeypatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    asked: list[float] = []

    def fails(timeout_s: float) -> None:
        asked.append(timeout_s)
        raise TimeoutError("nobody is there")

    Pulse(fails, time.monotonic).beat()
    assert asked == [10.0] and heard(manager) == []
    # The control socket answers, and the main thread stands still.
    Pulse(lambda _: None, lambda: time.monotonic() - 11).beat()
    assert heard(manager) == []
    for when in (time.monotonic(), math.inf):
        Pulse(lambda _: None, lambda w=when: w).beat()
        assert heard(manager) == ["WATCHDOG=1"]


# ---- the unit ----------------------------------------------------------------------


def test_the_unit_shares_the_hosts_mounts() -> None:
    lines = UNIT.read_text().splitlines()
    assert [line for line in lines if UNSHARES.match(line)] == []


def test_the_units_commands_are_ours() -> None:
    from remus_native import cli

    found = re.findall(r"^Exec\w+=(\S+) (.*)$", UNIT.read_text(), re.MULTILINE)
    assert [Path(path).name for path, _ in found] == ["remus-native"] * len(found)
    for _, words in found:
        cli._parser().parse_args(words.replace("%i", "guest0").split())
    assert {words.split()[0] for _, words in found} == {"up", "reload"}


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    tool = shutil.which(ANALYZE)
    if tool is None:
        pytest.skip("allowed: systemd-analyze is not installed (Debian's systemd)")
    command = tmp_path / "remus-native"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    text = UNIT.read_text().replace("/usr/local/sbin/remus-native", str(command))
    unit = tmp_path / "remus@guest0.service"
    unit.write_text(text)
    done = subprocess.run(
        [tool, "verify", "--man=no", "--recursive-errors=no", str(unit)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "remus@" in line]
    assert ours == [], done.stderr
    (tmp_path / "x.service").write_text(text.replace("KillMode=mixed", "KillMod=mixed"))
    done = subprocess.run(
        [tool, "verify", "--man=no", str(tmp_path / "x.service")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "KillMod" in done.stderr  # it does look


def test_a_status_line_is_one_line(host: Host, manager) -> None:
    host.start_backup()
    wait_for("it", lambda: status(host, "b"))
    time.sleep(0.4)
    for one in heard(manager):
        assert re.fullmatch(r"(READY=1|STATUS=.+)", one), one
