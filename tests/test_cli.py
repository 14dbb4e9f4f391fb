# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line and the control socket, with real processes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from remus_native import (
    Backup,
    CheckpointTimeout,
    ConfigError,
    Primary,
    ReplicationLost,
    StateError,
)
from remus_native._process import notify_systemd
from remus_native._progress import (
    LiveLine,
    LiveTable,
    bytes_text,
    quoted,
    seconds_text,
    table,
)
from remus_native.cli import main
from remus_native.control import ControlServer, NotRunning, call, is_running
from remus_native.resource_file import load

COMMANDS = (
    "backup", "primary", "run", "status", "promote", "commit", "verify",
    "swap", "resume", "demo",
)  # fmt: skip
DEADLINE_S = 60.0
MIB = 1 << 20


def wait_for(what: str, ready: Callable[[], Any]) -> Any:
    """The first true value of ``ready``; fails after a minute."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        value = ready()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"no {what} in {DEADLINE_S} s")


# ---- usage ----------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_exit_codes(
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "example:\n  remus-native " + command in text
    assert "exit codes:" in text and "130  interrupted" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {c}\s+\w", text, flags=re.M) for c in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND"),
        (["explode"], "invalid choice"),
        (["status"], "required: FILE"),
        (["run", "--interval", "50", "f"], 'such as "50ms" or "3s", got "50"'),
        (["run", "--count", "0", "f"], "a number from 1 on"),
        (["promote", "--checkpoint", "1", "--tag", "x", "f"], "not allowed with"),
        (["commit", "f", "x"], "a number from 1 on"),
        (["status", "--side", "left", "f"], "invalid choice"),
        (["demo", "--seconds", "0"], "0.1 to 3600"),
        (["demo", "--size", "1MiB"], "64MiB"),
        (["demo", "--interval", "fast"], '"25ms", got "fast"'),
    ],
)
def test_usage(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert words in error and "usage: remus-native" in error


def test_a_wrong_file_is_told_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "guest0.toml"
    file.write_text('name = "x"\nack = 3\n')
    assert main(["status", str(file)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert all(line.startswith(f"remus-native: {file}: ") for line in lines)


# ---- the control socket ---------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., ControlServer]]:
    with ExitStack() as stack:

        def make(**handlers: Any) -> ControlServer:
            made = ControlServer(str(tmp_path), **handlers)
            stack.callback(made.close)
            return made

        yield make


def test_control_answers(tmp_path: Path, server: Callable[..., ControlServer]) -> None:
    server(quick={"echo": lambda **words: words})
    mode = (tmp_path / "control.sock").stat().st_mode
    assert mode & 0o777 == 0o600
    assert call(str(tmp_path), "echo", a=1, b="ä") == {"a": 1, "b": "ä"}
    assert is_running(str(tmp_path))


def test_control_raises_what_the_handler_raised(
    tmp_path: Path, server: Callable[..., ControlServer]
) -> None:
    def lost() -> None:
        raise ReplicationLost("gone", errno=71)

    def broken() -> None:
        raise ZeroDivisionError("by zero")

    server(quick={"lost": lost, "broken": broken})
    with pytest.raises(ReplicationLost, match="gone") as caught:
        call(str(tmp_path), "lost")
    assert caught.value.errno == 71
    with pytest.raises(StateError, match="by zero"):
        call(str(tmp_path), "broken")
    with pytest.raises(StateError, match="unexpected keyword"):
        call(str(tmp_path), "lost", extra=1)
    with pytest.raises(StateError, match="unknown request 'x'; there are broken, l"):
        call(str(tmp_path), "x")


def test_control_defers_to_its_owner(
    tmp_path: Path, server: Callable[..., ControlServer]
) -> None:
    threads: list[int] = []

    def slow(value: int) -> int:
        threads.append(threading.get_ident())
        # The quick one is answered while this one runs.
        assert call(str(tmp_path), "status") == "fine"
        return value * 2

    made = server(quick={"status": lambda: "fine"}, deferred={"slow": slow})
    results: list[int] = []
    client = threading.Thread(
        target=lambda: results.append(call(str(tmp_path), "slow", value=21))
    )
    client.start()

    def run() -> bool:
        made.run_pending()
        return bool(results)

    wait_for("answer", run)
    client.join()
    assert results == [42] and threads == [threading.get_ident()]


def test_control_keeps_the_order_of_one_client(
    tmp_path: Path, server: Callable[..., ControlServer]
) -> None:
    made = server(quick={"a": lambda: "a"}, deferred={"b": lambda: "b"})
    with connect(tmp_path) as client:
        client.sendall(b'{"request": "b"}\n{"request": "a"}\n{"request": "a"}\n')
        client.setblocking(False)
        received = b""

        def run() -> bool:
            nonlocal received
            made.run_pending()
            with contextlib.suppress(BlockingIOError):
                received += client.recv(4096)
            return received.count(b"\n") == 3

        wait_for("three answers", run)
    answers = [json.loads(line)["result"] for line in received.splitlines()]
    assert answers == ["b", "a", "a"]


def connect(folder: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE_S)
    client.connect(f"{folder}/control.sock")
    return client


@pytest.mark.parametrize("line", [b"x", b"[]", b"3", b'{"a": 1}', b"\xff"])
def test_control_survives_nonsense(
    tmp_path: Path, server: Callable[..., ControlServer], line: bytes
) -> None:
    server(quick={"a": lambda: "a"})
    with connect(tmp_path) as client:
        client.sendall(line + b"\n")
        answer = json.loads(client.recv(4096))
    assert answer["ok"] is False and "expected one line" in answer["error"]
    assert call(str(tmp_path), "a") == "a"


def test_control_bounds_a_request(
    tmp_path: Path, server: Callable[..., ControlServer]
) -> None:
    server(quick={"a": lambda: "a"})
    with connect(tmp_path) as client:
        with contextlib.suppress(OSError):
            client.sendall(b"x" * (1 << 18))
        with contextlib.suppress(ConnectionError):
            assert b"more than" in client.recv(4096)
    assert call(str(tmp_path), "a") == "a"


def test_control_answers_what_waits_when_it_closes(
    tmp_path: Path, server: Callable[..., ControlServer]
) -> None:
    made = server(quick={}, deferred={"b": lambda: "b"})
    with connect(tmp_path) as client:
        client.sendall(b'{"request": "b"}\n')
        wait_for("request", lambda: made._jobs.qsize())
        made.close()
        assert b"is stopping" in client.recv(4096)
    with pytest.raises(NotRunning, match="no process answers"):
        call(str(tmp_path), "b")


def test_control_replaces_a_dead_socket(
    tmp_path: Path, server: Callable[..., ControlServer]
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/control.sock")
    assert not is_running(str(tmp_path))
    server(quick={"a": lambda: "a"})
    assert call(str(tmp_path), "a") == "a"


def test_control_in_a_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with ControlServer(str(folder), quick={"a": lambda: "a"}):
        assert call(str(folder), "a") == "a"
    assert not list(folder.iterdir())


def test_control_times_out(
    tmp_path: Path, server: Callable[..., ControlServer]
) -> None:
    server(quick={}, deferred={"b": lambda: "b"})
    with pytest.raises(CheckpointTimeout, match=r"no answer in 0\.05 s"):
        call(str(tmp_path), "b", timeout_s=0.05)


# ---- what a person sees ---------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_live_line() -> None:
    stream = Terminal()
    with LiveLine(stream, delay_s=0) as live:
        live.update("half")
        live.update("not drawn: too soon")
        live.note("stays")
    shown = stream.getvalue()
    assert "half" in shown and "too soon" not in shown
    assert shown.endswith("\x1b[Kstays\n")


def test_live_line_is_silent_at_first_and_without_a_terminal() -> None:
    for stream, delay_s in ((Terminal(), 60.0), (io.StringIO(), 0.0)):
        with LiveLine(stream, delay_s=delay_s) as live:
            assert not live.due()
            live.update("nothing")
        assert stream.getvalue() == ""


ROWS = [("checkpoints", "12"), ("pause", "p50 1 ms [not markup], max 2 ms")]


def test_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with LiveTable(stream, delay_s=0) as live:
        live.show("guest0", ROWS)
        live.show("not drawn: too soon", ROWS)
        live.note("stays")
        live.show("guest0 again", ROWS)
    shown = stream.getvalue()
    for words in ("guest0", "checkpoints", "p50 1 ms [not markup]", "guest0 again"):
        assert words in shown
    assert "too soon" not in shown and "stays\n" in shown
    # The second one is drawn below what stays, and nothing is left of it.
    assert shown.index("stays") < shown.index("guest0 again")
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 2  # the cursor
    assert shown.rstrip().endswith("\x1b[2K")


def test_live_table_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal()
    with LiveTable(stream, delay_s=0) as live:
        live.show("guest0", ROWS)
    assert (
        "guest0: checkpoints 12, pause p50 1 ms [not markup], max 2 ms"
        in stream.getvalue()
    )


def test_live_table_is_silent_without_a_terminal() -> None:
    stream = io.StringIO()
    with LiveTable(stream, delay_s=0) as live:
        live.show("guest0", ROWS)
    assert stream.getvalue() == ""


def test_words() -> None:
    assert [bytes_text(n) for n in (0, 1023, 1536, 8 << 20, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "8.0 MiB",
        "3.0 TiB",
    ]
    assert [seconds_text(s) for s in (0.00042, 0.025, 0.9999, 1.26, 60)] == [
        "0.42 ms",
        "25 ms",
        "1.0 s",
        "1.3 s",
        "60 s",
    ]
    assert quoted("plain") == "plain"
    assert quoted('a "b" \\ c\n') == '"a \\"b\\" \\\\ c\\n"'
    assert quoted("") == '""'
    assert table([("a", "1"), ("bbb", "2")]) == "  a    1\n  bbb  2"


def test_sd_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{tmp_path}/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
        notify_systemd("READY=1")
        assert manager.recv(100) == b"READY=1"
    notify_systemd("READY=1")  # nobody listens: no error
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify_systemd("READY=1")


# ---- processes ------------------------------------------------------------


class Host:
    """A resource file in a folder, and the processes that serve it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.file = folder / "guest0.toml"
        self.file.write_text(
            f'name = "guest0"\naddress = "unix:{folder}/sock"\n'
            f'[primary]\nstate = "{folder}/p"\n[backup]\nstate = "{folder}/b"\n'
            '[limits]\njournal = "1MiB"\nsegment = "64KiB"\n'
            f'[[volume]]\nname = "root"\nsize = "1MiB"\nmode = "0640"\n'
            f'primary = "{folder}/p0"\nbackup = "{folder}/b0"\n'
            f'[[volume]]\nname = "data"\nprimary = "{folder}/p1"\n'
            f'backup = "{folder}/b1"\n'
        )
        for name in ("p0", "p1"):
            with (folder / name).open("wb") as image:
                image.truncate(MIB)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "remus_native", *arguments, str(self.file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self.stack.callback(end, process)
        return process

    def start_backup(self) -> subprocess.Popen[str]:
        process = self.start("backup", "--create")
        wait_for("backup", lambda: process.poll() is not None or self.runs("b"))
        return process

    def runs(self, side: str) -> bool:
        return is_running(str(self.folder / side))

    def open_primary(self, *, wait: bool = True) -> Primary:
        """The other side in this process, on the same file."""
        resource = load(self.file)
        os.makedirs(resource.primary.state, exist_ok=True)
        primary = Primary(
            resource.name,
            state_dir=resource.primary.state,
            volumes=resource.volumes_of("primary"),
            address=resource.address,
        )
        self.stack.callback(primary.close)
        if wait:
            primary.wait_protected(timeout_s=30)
        return primary

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """A command in a process of its own: code, output, errors."""
        process = self.start(*arguments[:1], *arguments[1:])
        out, err = process.communicate(timeout=DEADLINE_S)
        return process.returncode, out, err

    def commit(self, number: int) -> int:
        return main(["commit", str(self.file), str(number)])

    def same(self) -> bool:
        return all(
            (self.folder / f"p{i}").read_bytes() == (self.folder / f"b{i}").read_bytes()
            for i in range(2)
        )


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with ExitStack() as stack:
        yield Host(tmp_path, stack)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_backup_ends_cleanly_on_a_signal(host: Host, number: int) -> None:
    backup = host.start_backup()
    assert main(["status", "--side", "backup", str(host.file)]) == 3  # Inconsistent
    backup.send_signal(number)
    _, said = backup.communicate(timeout=DEADLINE_S)
    assert backup.returncode == 0
    ready, event = said.splitlines()
    assert ready == "remus-native: backup of guest0 ready"
    assert event.startswith(
        "remus-native: event=state resource=guest0 role=backup old=- "
        'new=Inconsistent connected=0 reason="'
    )
    left = sorted(path.name for path in (host.folder / "b").iterdir())
    assert left == ["backup.state", "journal", "journal.id", "lock"]
    assert not (host.folder / "sock").exists()


def test_a_backup_stops_when_asked(host: Host) -> None:
    backup = host.start_backup()
    assert call(str(host.folder / "b"), "stop") == {}
    backup.communicate(timeout=DEADLINE_S)
    assert backup.returncode == 0


def test_a_second_backup_is_refused(host: Host) -> None:
    host.start_backup()
    code, _, said = host.run("backup")
    assert code == 1 and "another process" in said
    assert host.runs("b")  # the first one still has its control socket


def test_nothing_runs(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(host.file)
    for arguments in (
        ["status", file],
        ["status", "--json", file],
        ["promote", file],
        ["commit", file, "3"],
        ["run", file],
    ):
        assert main(arguments) == 4, arguments
    capsys.readouterr()
    assert main(["status", "--json", file]) == 4
    assert json.loads(capsys.readouterr().out) == {
        "resource": "guest0",
        "primary": None,
        "backup": None,
    }
    assert not (host.folder / "b").exists()  # asking makes no state


def test_a_backup_without_images_is_refused(host: Host) -> None:
    code, _, said = host.run("backup")
    assert code == 2
    assert "volume[0].backup" in said and "--create" in said


def test_commit_and_promote_through_the_process(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    backup = host.start_backup()
    primary = host.open_primary()
    primary.pwrite("root", b"a" * 5000, 100)
    first = primary.postsuspend("first")
    primary.preresume(first, 30)
    primary.pwrite("data", b"b" * 5000, 4096)
    second = primary.postsuspend("second")
    primary.preresume(second, 30)
    assert host.commit(first) == 0
    assert host.commit(first) == 0  # again is fine
    assert host.commit(second + 5) == 1
    assert "not prepared" in capsys.readouterr().err

    assert main(["status", str(host.file), "--side", "backup"]) == 0
    shown = capsys.readouterr().out
    assert "guest0 backup: Protected" in shown
    assert f"{first} (tag first) committed, {second} (tag second)" in shown

    assert main(["promote", str(host.file)]) == 1
    assert "the primary is alive" in capsys.readouterr().err
    primary.close()
    wait_for(
        "loss",
        lambda: not call(str(host.folder / "b"), "status")["connected"],
    )
    assert main(["promote", "--tag", "third", str(host.file)]) == 1
    capsys.readouterr()
    assert main(["promote", "--tag", "second", "--json", str(host.file)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["checkpoint"], answer["tag"]) == (second, "second")
    assert host.same()
    assert main(["status", "--json", str(host.file)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["primary"] is None
    assert answer["backup"]["state"] == "Promoted"
    backup.send_signal(signal.SIGTERM)
    _, said = backup.communicate(timeout=DEADLINE_S)
    assert backup.returncode == 0
    assert " old=Inconsistent new=Protected connected=1 " in said
    assert " new=Promoted connected=0 " in said


def test_promote_without_a_process(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    backup = host.start_backup()
    primary = host.open_primary()
    primary.pwrite("root", b"a" * 70000, 100)
    number = primary.postsuspend(7)
    primary.preresume(number, 30)
    primary.commit(number)
    wait_for(
        "commit",
        lambda: call(str(host.folder / "b"), "status")["committed_epoch"] == number,
    )
    backup.kill()
    backup.wait()
    primary.close()
    assert main(["status", str(host.file)]) == 4
    shown = capsys.readouterr().out
    assert "Standby (not running; as its state directory has it)" in shown
    assert main(["promote", str(host.file)]) == 0
    shown = capsys.readouterr().out
    assert f"promoted to checkpoint {number} (tag 7) in" in shown
    assert f"  root: {host.folder}/b0" in shown
    assert host.same()
    assert main(["promote", str(host.file)]) == 0  # the same one again
    assert main(["promote", "--checkpoint", str(number + 1), str(host.file)]) == 1


def test_a_promoted_backup_starts_and_tells(host: Host) -> None:
    backup = host.start_backup()
    host.open_primary().close()
    wait_for(
        "standby",
        lambda: call(str(host.folder / "b"), "status")["state"] == "Standby",
    )
    assert main(["promote", str(host.file)]) == 0
    end(backup)
    backup = host.start_backup()
    assert backup.poll() is None
    assert call(str(host.folder / "b"), "status")["state"] == "Promoted"


def test_configuration_errors_of_the_library_have_code_2(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    end(host.start_backup())
    text = host.file.read_text().replace('"1MiB"\nsegment', '"2MiB"\nsegment')
    host.file.write_text(text)
    assert main(["promote", str(host.file)]) == 2
    assert "the journal was made with 16 segments" in capsys.readouterr().err


def test_progress_on_a_terminal(host: Host) -> None:
    """The journal's making is quick: only the events are there, one a line."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "remus_native", "backup", "--create", str(host.file)],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    try:
        wait_for("backup", lambda: host.runs("b"))
        process.terminate()
        process.wait(DEADLINE_S)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while data := os.read(master, 4096):
                shown += data
    finally:
        os.close(master)
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert b"backup of guest0 ready\r\n" in shown


# ---- with nodes -----------------------------------------------------------


def start_primary(host: Host) -> subprocess.Popen[str]:
    primary = host.start("primary")
    host.stack.callback(
        subprocess.run,
        ["umount", "-l", f"{host.folder}/p/mount"],
        capture_output=True,
        check=False,
    )
    wait_for(
        "Protected",
        lambda: (
            primary.poll() is not None
            or (
                host.runs("p")
                and call(str(host.folder / "p"), "status")["state"] == "Protected"
            )
        ),
    )
    assert primary.poll() is None, primary.communicate()
    return primary


def mounted(host: Host) -> bool:
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        return f" {host.folder}/p/mount " in mounts.read()


@pytest.mark.fuse
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_primary_leaves_nothing_behind(host: Host, number: int) -> None:
    host.start_backup()
    primary = start_primary(host)
    node = host.folder / "p/mount/root"
    assert mounted(host)
    assert node.stat().st_mode & 0o777 == 0o640 and node.stat().st_size == MIB
    assert (host.folder / "p/mount/data").stat().st_mode & 0o777 == 0o600
    primary.send_signal(number)
    _, said = primary.communicate(timeout=DEADLINE_S)
    assert primary.returncode == 0, said
    assert "primary of guest0 ready" in said
    assert not mounted(host)
    assert not (host.folder / "p/control.sock").exists()


@pytest.mark.fuse
def test_run_takes_checkpoints_and_a_failover_follows(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.start_backup()
    primary = start_primary(host)
    assert main(["status", str(host.file)]) == 0
    for name in ("root", "data"):
        with (host.folder / "p/mount" / name).open("r+b", buffering=0) as node:
            node.write(name.encode() * 1024)
    capsys.readouterr()
    code = main(["run", "--interval", "5ms", "--count", "20", str(host.file)])
    shown = capsys.readouterr()
    assert code == 0
    assert "a crash-consistent cut" in shown.err
    assert re.search(r"^checkpoints +20, \d+ late", shown.out, flags=re.M)
    for row in ("pause median", "pause p99", "pause max", "wait for ack p99"):
        assert re.search(rf"^{row} +[\d.e+]+ m?s$", shown.out, flags=re.M), shown.out
    assert re.search(r"^replicated +8\.0 KiB$", shown.out, flags=re.M)
    assert re.search(r"^coalesced +(0 B|not known yet)", shown.out, flags=re.M)
    assert re.search(r"^errors +0$", shown.out, flags=re.M)
    check_statistics(host, capsys)
    primary.kill()
    primary.wait()
    wait_for(
        "loss",
        lambda: not call(str(host.folder / "b"), "status")["connected"],
    )
    assert main(["promote", "--json", str(host.file)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["tag"] == "20"
    assert host.same()


def check_statistics(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """What `status` tells after 20 checkpoints of `run`, as both saw them."""
    assert main(["status", "--side", "primary", "--json", str(host.file)]) == 0
    status = json.loads(capsys.readouterr().out)["primary"]
    mine, runs = status["statistics"]["primary"], status["statistics"]["run"]
    assert (mine["epochs"], mine["failed"], mine["writing"]) == (20, 0, True)
    assert (runs["epochs"], runs["failed"], runs["writing"]) == (20, 0, False)
    assert mine["bytes"]["total"] == 8192 and runs["commit_ns"]["count"] == 20
    for found in (mine, runs):
        for name in ("barrier_ns", "ack_ns", "pause_ns"):
            assert found[name]["count"] == 20
            assert 0 < found[name]["p50"] <= found[name]["p99"] <= found[name]["max"]
    # The ioctl and its answer take longer outside than inside.
    assert runs["pause_ns"]["min"] > mine["barrier_ns"]["min"]
    assert main(["status", "--side", "primary", str(host.file)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  primary's epochs +20, 0 failed$", text, flags=re.M)
    assert re.search(r"^  run's epochs +20, 0 failed \(that run has ended\)", text,
                     flags=re.M)  # fmt: skip
    for row in ("pause", "barrier", "wait for ack"):
        assert len(re.findall(rf"^    {row} +p50 .* max ", text, flags=re.M)) == 2
    assert re.search(r"^    bytes +p50 .* in all 8\.0 KiB$", text, flags=re.M)
    assert len(re.findall(r"^    commit +p50 ", text, flags=re.M)) in (1, 2)
    # What can't be read does not stand in the way.
    (host.folder / "p/epochs.run").write_bytes(b"not statistics")
    assert main(["status", "--side", "primary", str(host.file)]) == 0
    assert "14 bytes, expected 544768" in capsys.readouterr().out


@pytest.mark.fuse
def test_run_on_a_terminal_shows_what_it_does(host: Host) -> None:
    host.start_backup()
    start_primary(host)
    master, slave = pty.openpty()
    run = subprocess.Popen(
        [sys.executable, "-m", "remus_native", "run", "--interval", "5ms",
         str(host.file)],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
    )  # fmt: skip
    os.close(slave)
    try:
        shown = b""
        while b"wait for ack" not in shown or b"errors" not in shown:
            shown += os.read(master, 4096)
        for words in (b"guest0, a checkpoint every 5 ms", b"replicated", b"p99 "):
            assert words in shown
        assert main(["status", "--side", "primary", str(host.file)]) == 0
        run.terminate()
        out, _ = run.communicate(timeout=DEADLINE_S)
    finally:
        os.close(master)
        run.kill()
        run.wait()
    assert run.returncode == 0
    assert out.startswith(b"checkpoints ") and b"\x1b" not in out


@pytest.mark.fuse
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_with_a_summary_on_a_signal(host: Host, number: int) -> None:
    host.start_backup()
    start_primary(host)
    run = host.start("run", "--interval", "1ms")
    wait_for(
        "checkpoints",
        lambda: (
            run.poll() is not None
            or call(str(host.folder / "p"), "status")["epochs"] > 20
        ),
    )
    run.send_signal(number)
    out, err = run.communicate(timeout=DEADLINE_S)
    assert run.returncode == 0, err
    assert re.search(r"^checkpoints +\d+", out, flags=re.M)


@pytest.mark.fuse
def test_run_says_that_the_backup_is_lost(host: Host) -> None:
    backup = host.start_backup()
    start_primary(host)
    run = host.start("run", "--interval", "1ms")
    wait_for(
        "checkpoints",
        lambda: (
            run.poll() is not None
            or call(str(host.folder / "p"), "status")["epochs"] > 20
        ),
    )
    backup.kill()
    out, err = run.communicate(timeout=DEADLINE_S)
    assert run.returncode == 3, (out, err)
    assert "checkpoints" in out
    # Of both disks, if it was killed between an ack and its commit; of none if
    # the commit itself found out: that epoch was safe.
    [lost] = re.findall(r"^lost +(.*)", out, flags=re.M)
    errors = "0" if ": commit: " in lost else "[12]"
    assert re.search(rf"^errors +{errors}$", out, flags=re.M)
    assert main(["status", "--side", "primary", str(host.file)]) == 3


@pytest.mark.fuse
def test_a_killed_primarys_mount_is_taken_over(host: Host) -> None:
    host.start_backup()
    primary = start_primary(host)
    primary.kill()
    primary.wait()
    assert mounted(host)
    primary = host.start("primary")
    wait_for("primary", lambda: primary.poll() is not None or host.runs("p"))
    assert primary.poll() is None
    assert (host.folder / "p/mount/root").stat().st_size == MIB
    primary.terminate()
    _, said = primary.communicate(timeout=DEADLINE_S)
    assert "detaching the mount of a primary that was killed" in said
    assert primary.returncode == 0 and not mounted(host)


@pytest.mark.fuse
def test_an_unmount_from_outside_ends_the_primary(host: Host) -> None:
    host.start_backup()
    primary = start_primary(host)
    subprocess.run(["umount", f"{host.folder}/p/mount"], check=True)
    _, said = primary.communicate(timeout=DEADLINE_S)
    assert primary.returncode == 1
    assert "was unmounted by somebody else" in said


def test_errors_have_codes() -> None:
    from remus_native import DeviceErrors
    from remus_native.cli import _code_of

    lost, other = ReplicationLost("lost"), StateError("other")
    assert _code_of(lost) == 3 and _code_of(other) == 1
    assert _code_of(ConfigError("x")) == 2 and _code_of(NotRunning("x")) == 4
    assert _code_of(DeviceErrors("both", [other, lost])) == 3
    assert _code_of(DeviceErrors("both", [other, other])) == 1
    assert _code_of(OSError(5, "x")) == 1


def test_backup_of_the_file_is_the_files(host: Host) -> None:
    """What `_serve.backup_of` opens is what the file says."""
    from remus_native._serve import backup_of

    end(host.start_backup())
    with backup_of(load(host.file)) as backup:
        assert isinstance(backup, Backup)
        assert backup.status().journal_limit == 1 << 20
        assert backup.status().volumes == 2
