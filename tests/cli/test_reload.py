# SPDX-License-Identifier: LGPL-2.1-or-later
"""The resource file and its keys are read again under a running guest."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from remus_native import Primary, Volume
from remus_native.cli import main
from remus_native.control import call
from support.host import Host, is_now, node, status
from support.keeping import Kept
from support.pair import MIB, QUIET
from support.tls_pair import free_port, key_file
from support.waiting import DEADLINE_S, wait_for

OLD, NEW = f"guest0:{'11' * 32}", f"guest0+2:{'22' * 32}"
LIMITS = "[limits]"


class Said:
    """What a process has logged so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self._stream = process.stderr
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._stream is not None
        for line in self._stream:
            self.lines.append(line)

    def wait(self, text: str, since: int = 0) -> str:
        def found() -> str:
            return next((one for one in self.lines[since:] if text in one), "")

        return str(wait_for(text, found))


# ---- the file -----------------------------------------------------------------


def test_a_reload_says_what_it_took_and_what_it_could_not(host: Host, capsys):
    process = host.start_backup()
    said = Said(process)
    assert main(["reload", "--host", "backup", str(host.file)]) == 0
    assert capsys.readouterr().out == "guest0: read again: nothing changed\n"
    text = host.file.read_text()
    changed = text.replace(LIMITS, f'{LIMITS}\nstall = "9s"\nnotify_timeout = "5s"')
    host.file.write_text(f'{changed}[log]\nlevel = "warning"\nformat = "json"\n')
    assert main(["reload", "--host", "backup", str(host.file)]) == 0
    assert capsys.readouterr().out == (
        "guest0: read again: log, limits.notify_timeout\n"
        f"guest0: these take effect with `remus-native restart {host.file}`, or the "
        "next start: limits.stall\n"
    )
    host.file.write_text(text.replace(LIMITS, "[limit]"))
    assert main(["reload", "--host", "backup", str(host.file)]) == 2
    host.file.write_text(text)
    assert process.poll() is None and host.runs("b")
    assert main(["reload", "--host", "backup", str(host.file)]) == 0
    said.wait("read again: log")
    assert main(["down", "--host", "backup", str(host.file)]) == 0
    said.wait("ends with exit code 0")
    assert main(["reload", "--host", "backup", str(host.file)]) == 4


def test_a_hang_up_is_a_reload(host: Host):
    process = host.start_backup()
    said = Said(process)
    said.wait("event=state")
    text = host.file.read_text()
    host.file.write_text(text + '[log]\nformat = "json"\n')
    process.send_signal(signal.SIGHUP)
    assert said.wait("guest0: read again: log").startswith("{")
    host.file.write_text("name = 7\n")
    process.send_signal(signal.SIGHUP)
    said.wait("guest0: not read again: ")
    assert process.poll() is None and status(host, "b")["state"]


def test_where_a_hang_up_is_ignored_it_stays_so(host: Host):
    """As nohup sets it: a terminal that goes is no word to anybody."""
    process = host.start(
        "backup", "--create",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    said = Said(process)
    wait_for("backup", lambda: process.poll() is not None or host.runs("b"))
    process.send_signal(signal.SIGHUP)
    assert main(["down", "--host", "backup", str(host.file)]) == 0
    said.wait("ends with exit code 0")
    assert not any("SIGHUP" in line for line in said.lines)


@pytest.mark.fuse
def test_a_keeper_passes_a_hang_up_on(host: Host):
    """Also right at the start of a server, which it must not end."""
    backup = Kept(host, "--create", side="b")
    primary = Kept(host)
    said = Said(primary.keeper)
    wait_for("Protected", lambda: is_now(host, "p", "primary", "Protected"))
    with node(host).open("r+b", buffering=0) as disk:
        first = primary.server()
        primary.keeper.send_signal(signal.SIGHUP)
        said.wait("guest0: SIGHUP")
        assert primary.server() == first
        os.kill(first, signal.SIGKILL)
        second = wait_for(
            "another",
            lambda: next(
                (p for p in primary.children(primary.keeper.pid) if p != first), 0
            ),
        )
        for _ in range(50):
            os.kill(second, signal.SIGHUP)
            time.sleep(0.01)
        disk.write(b"goes on")
        disk.seek(0)
        assert disk.read(7) == b"goes on"
        assert primary.server() == second
    wait_for("Protected", lambda: is_now(host, "p", "primary", "Protected"))
    assert backup.keeper.poll() is None


# ---- keys -------------------------------------------------------------------------


class Hosts:
    """Two hosts that have the same file, each with a key file of its own."""

    def __init__(self, host: Host) -> None:
        self.host = host
        port = free_port()
        text = host.file.read_text().replace(
            f"unix:{host.folder}/sock", f"tcp:127.0.0.1:{port}"
        )
        self.files: dict[str, Path] = {}
        for side in "pb":
            (host.folder / f"host-{side}").mkdir()
            self.files[side] = host.folder / f"host-{side}" / "guest0.toml"
            self.keys(side, OLD)
            keyed = f'tls = "psk"\npsk_file = "{self.key(side)}"\n[primary]'
            self.files[side].write_text(text.replace("[primary]", keyed))
        self.port = port
        host.file = self.files["b"]
        Kept(host, "--create", side="b")
        host.file = self.files["p"]
        Kept(host)

    def restart_backup(self) -> None:
        """Its next connection is another one."""
        before = self.connection()
        assert main(["down", "--host", "backup", str(self.files["b"])]) == 0
        self.host.file = self.files["b"]
        Kept(self.host, side="b")
        self.host.file = self.files["p"]
        wait_for("another link", lambda: self.connection() != before)
        wait_for("it", lambda: is_now(self.host, "p", "primary", "Protected"))

    def key(self, side: str) -> Path:
        return self.host.folder / f"host-{side}" / "guest0.psk"

    def keys(self, side: str, *lines: str) -> None:
        key_file(self.files[side].parent, "guest0.psk", *lines)

    def reload(self, side: str) -> None:
        name = {"p": "primary", "b": "backup"}[side]
        code = main(["reload", "--host", name, str(self.files[side])])
        assert code == 0

    def epoch(self) -> int:
        return int(status(self.host, "p")["prepared_epoch"])

    def connection(self) -> tuple[Any, ...]:
        now = status(self.host, "p")
        return now["connected"], now["link_changed_ns"]

    def refusals(self) -> str:
        """The newest text of each source."""
        told = call(str(self.host.folder / "b"), "refusals")
        return " ".join(one["text"] for one in told)

    def checkpoints_go_on(self) -> None:
        last = self.epoch()
        wait_for("checkpoints", lambda: self.epoch() > last + 3)
        assert is_now(self.host, "p", "primary", "Protected")


class Guest:
    """Writes, one block after the other, and waits for each."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_DSYNC)
        self.slowest_s, self.count = 0.0, 0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self.blocks: dict[int, bytes] = {}
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for i in itertools.count(1):
                if self._stop.is_set():
                    return
                data = i.to_bytes(8, "little") * 512
                start = time.monotonic()
                os.pwrite(self.fd, data, i % 64 * 4096)
                self.slowest_s = max(self.slowest_s, time.monotonic() - start)
                self.blocks[i % 64] = data
                self.count = i
                time.sleep(0.002)
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)
        os.close(self.fd)


@pytest.mark.fuse
def test_a_key_is_replaced_under_a_running_guest(host: Host):
    """As docs/operations.md has it, step by step."""
    hosts = Hosts(host)
    wait_for("Protected", lambda: is_now(host, "p", "primary", "Protected"))
    run = host.start("run", "--interval", "20ms")
    guest = Guest(node(host))
    try:
        hosts.checkpoints_go_on()
        linked = hosts.connection()
        # The new key is added, on the host that listens first.
        for side in "bp":
            hosts.keys(side, OLD, NEW)
            hosts.reload(side)
            hosts.checkpoints_go_on()
        assert hosts.connection() == linked
        # The next connection takes it.
        hosts.restart_backup()
        hosts.checkpoints_go_on()
        linked = hosts.connection()
        # The old one is dropped.
        for side in "pb":
            hosts.keys(side, NEW)
            hosts.reload(side)
        hosts.checkpoints_go_on()
        assert hosts.connection() == linked
        # Who still has it is refused, by its name.
        (host.folder / "late").mkdir()
        (host.folder / "late.img").write_bytes(bytes(MIB))
        late = Primary(
            "guest0", state_dir=host.folder / "late",
            volumes=[Volume("root", host.folder / "late.img")],
            address=f"tcp:127.0.0.1:{hosts.port}", connect_ms=10,
            psk_file=key_file(host.folder, "late.psk", OLD), **QUIET,
        )  # fmt: skip
        with late:
            wait_for("a refusal", lambda: "refuses our key" in late.status().reason)
            assert "for the identity guest0:" in late.status().reason
            text = "unknown identity guest0: this side has the key of guest0+2"
            wait_for("its name", lambda: text in hosts.refusals())
        # And the new one alone connects.
        hosts.restart_backup()
        hosts.checkpoints_go_on()
        assert run.poll() is None
    finally:
        guest.end()
    assert guest.error is None and guest.count > 100
    assert guest.slowest_s < 5
    run.send_signal(signal.SIGINT)
    assert run.wait(DEADLINE_S) == 0
    for at, data in guest.blocks.items():
        with (host.folder / "p0").open("rb") as image:
            image.seek(at * 4096)
            assert image.read(4096) == data
    wait_for("both equal", host.same)  # by the engine's own checkpoints
