# SPDX-License-Identifier: LGPL-2.1-or-later
"""`up --all` and `down --all`: every resource of a host, each by itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from remus_native.cli import main
from remus_native.control import call, is_running
from support.host import end
from support.pair import MIB
from support.waiting import DEADLINE_S, wait_for

NAMES = ("alpha", "beta")


class Machine:
    """A directory with resource files, of which this host is the backup."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.etc = folder / "etc"
        self.etc.mkdir()
        for name in NAMES:
            (folder / f"{name}.img").write_bytes(bytes(MIB))
            self.file(name).write_text(
                f'name = "{name}"\naddress = "unix:{folder}/{name}.sock"\n'
                f'[primary]\nstate = "{folder}/{name}.p"\n'
                f'[backup]\nstate = "{folder}/{name}.b"\n'
                '[limits]\njournal = "1MiB"\nsegment = "64KiB"\n'
                f'[[volume]]\nname = "root"\nprimary = "{folder}/{name}.p0"\n'
                f'backup = "{folder}/{name}.img"\nsize = "1MiB"\n'
            )

    def file(self, name: str) -> Path:
        return self.etc / f"{name}.toml"

    def runs(self, name: str) -> bool:
        return is_running(str(self.folder / f"{name}.b"))

    def up(self, *arguments: str, **options) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "remus_native", "up", "--all", "--directory",
             str(self.etc), "--host", "backup", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, **options,
        )  # fmt: skip
        self.stack.callback(end, process)
        self.stack.callback(self.stop)
        return process

    def stop(self) -> None:
        """Whatever still runs."""
        for name in NAMES:
            if self.runs(name):
                call(str(self.folder / f"{name}.b"), "stop", timeout_s=DEADLINE_S)
                wait_for("its end", lambda n=name: not self.runs(n))

    def down(self) -> int:
        return main(["down", "--all", "--directory", str(self.etc), "--host", "backup"])


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with ExitStack() as stack:
        yield Machine(tmp_path, stack)


def both(machine: Machine) -> Callable[[], bool]:
    return lambda: all(machine.runs(name) for name in NAMES)


def test_all_of_a_host_are_started_and_stopped(machine: Machine, capsys) -> None:
    process = machine.up()
    wait_for("both", both(machine))
    assert machine.down() == 0
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "alpha: stopped", "beta: stopped",
    ]  # fmt: skip
    assert not any(machine.runs(name) for name in NAMES)
    _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert "alpha: ended with exit code 0" in said
    assert machine.down() == 4
    assert "alpha: does not run" in capsys.readouterr().out


def test_a_refused_file_keeps_no_other_from_its_start(machine: Machine, capsys) -> None:
    (machine.etc / "aaa.toml").write_text("name = 7\n")
    (machine.etc / "zzz.toml").write_text(
        machine.file("beta").read_text().replace('"beta"', '"zzz"')
        .replace("beta.img", "none").replace("beta.", "zzz.")
    )  # fmt: skip
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(machine.folder / "notify"))
        manager.settimeout(DEADLINE_S)
        environment = {**os.environ, "NOTIFY_SOCKET": str(machine.folder / "notify")}
        process = machine.up(env=environment)
        ready = manager.recv(1000).decode()
    assert ready.startswith("READY=1\nSTATUS=")
    assert "2 serve, 1 ended, 1 refused" in ready
    assert both(machine)()
    assert machine.down() == 2  # of all the worst, as `status --all`
    said = capsys.readouterr()
    assert "aaa.toml: name: expected" in said.err
    assert "zzz: does not run" in said.out and "beta: stopped" in said.out
    _, said_by_up = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    assert "aaa.toml: name: expected" in said_by_up
    assert "zzz: ended with exit code 2" in said_by_up


def test_a_signal_goes_to_all(machine: Machine) -> None:
    process = machine.up()
    wait_for("both", both(machine))
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert not any(machine.runs(name) for name in NAMES)
    assert "all: " in said and "SIGTERM" in said


def test_what_runs_already_is_left_alone(machine: Machine) -> None:
    first = machine.up()
    wait_for("both", both(machine))
    before = call(str(machine.folder / "beta.b"), "status")["pid"]
    second = machine.up()
    _, said = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 0 and "2 ran before" in said
    assert call(str(machine.folder / "beta.b"), "status")["pid"] == before
    assert first.poll() is None


def test_they_outlive_who_started_them(machine: Machine) -> None:
    process = machine.up()
    wait_for("both", both(machine))
    process.kill()
    process.wait(DEADLINE_S)
    assert both(machine)()
    assert machine.down() == 0


def test_an_empty_directory_has_nothing_to_serve(tmp_path: Path, capsys) -> None:
    for command in ("up", "down"):
        assert main([command, "--all", "--directory", str(tmp_path)]) == 4
        assert f"{tmp_path}: no resource file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["up"], ["up", "--all", "guest0.toml"], ["up", "--all", "--discard-local"],
     ["down", "--all", "--check"]],
)  # fmt: skip
def test_what_is_for_one_file_is_not_for_all(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
