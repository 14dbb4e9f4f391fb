# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a process logs: its form, its level, where it goes, and how often."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remus_native.cli import main
from remus_native.cli._process import CAUSE_S, Causes
from remus_native.resource_file import LogSettings, ResourceFileError, load
from remus_native.shared.log import Handler, Log, as_standard_error, say, tell, use
from remus_native.shared.log_forms import (
    FIELDS,
    FORMS,
    REPEAT_S,
    Journal,
    Repeats,
    datagram,
)
from support.host import Host, end, mounts_of, node, status
from support.keeping import Kept
from support.tls_pair import free_port, key_file
from support.waiting import DEADLINE_S, wait_for


def record(text: str, level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("remus_native.cli", level, "", 0, "%s", (text,), None)
    if fields:
        setattr(made, FIELDS, fields)
    return made


STATE = {
    "event": "state",
    "resource": "guest0",
    "new": "Protected",
    "connected": 1,
    "reason": 'it said "no"\nand went',
}

# ---- forms ------------------------------------------------------------------


def test_a_text_line_is_as_it_always_was():
    form = FORMS["text"]({"resource": "guest0"})
    assert form.format(record("two\nlines")) == "remus-native: two\\nlines"
    assert form.format(record("state", **STATE)) == (
        "remus-native: event=state resource=guest0 new=Protected connected=1 "
        'reason="it said \\"no\\"\\nand went"'
    )
    assert form.raw("a warning of Python's") == "a warning of Python's"


def test_a_json_line_has_time_level_and_an_events_keys():
    form = FORMS["json"]({"resource": "guest0"})
    found = json.loads(form.format(record("state", logging.WARNING, **STATE)))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])
    assert found["level"] == "warning" and found["logger"] == "remus_native.cli"
    assert (found["event"], found["new"]) == ("state", "Protected")
    assert found["connected"] == 1 and found["pid"] == os.getpid()
    plain = json.loads(form.format(record("ready")))
    assert (plain["message"], plain["resource"]) == ("ready", "guest0")
    raw = json.loads(form.raw("Traceback"))
    assert (raw["message"], raw["level"], raw["logger"]) == (
        "Traceback", "warning", "python",
    )  # fmt: skip


def test_a_logfmt_line_is_pairs():
    form = FORMS["logfmt"]({"resource": "guest0"})
    line = form.format(record("not reachable", logging.ERROR))
    assert " level=error " in line and line.endswith(' msg="not reachable"')
    line = form.format(record("state", **STATE))
    assert " event=state " in line and "msg=" not in line and "\n" not in line


def test_an_error_is_named():
    try:
        raise ValueError("odd\nvalue")
    except ValueError:
        made = logging.LogRecord("x", 40, "", 0, "failed", (), sys.exc_info())
    for form in FORMS.values():
        line = form().format(made)
        assert "ValueError: odd\\" in line and "\n" not in line


# ---- the journal --------------------------------------------------------------


def fields_of(data: bytes) -> dict[str, str]:
    """A reader of the journal's native protocol."""
    found = {}
    while data:
        line, _, rest = data.partition(b"\n")
        key, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + size], rest[9 + size :]
        found[key.decode()] = value.decode()
        data = rest
    return found


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[tuple[Path, socket.socket]]:
    path = tmp_path / "journal.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        server.settimeout(DEADLINE_S)
        yield path, server


def test_the_journal_gets_fields(journald):
    path, server = journald
    journal = Journal(str(path))
    journal.send(datagram(record("state", logging.ERROR, **STATE), {"side": "a\nb"}))
    found = fields_of(server.recv(65536))
    assert found["PRIORITY"] == "3" and found["SYSLOG_IDENTIFIER"] == "remus-native"
    assert found["REMUS_EVENT"] == "state" and found["REMUS_NEW"] == "Protected"
    assert found["REMUS_REASON"] == STATE["reason"] and found["REMUS_SIDE"] == "a\nb"
    assert found["MESSAGE"].startswith("event=state resource=guest0 ")
    journal.close()


def test_a_journal_that_is_started_anew_is_found_again(journald):
    path, server = journald
    journal = Journal(str(path))
    journal.send(b"MESSAGE=1\n")
    server.close()
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(path))
        journal.send(b"MESSAGE=2\n")
        assert again.recv(100) == b"MESSAGE=2\n"
    journal.close()


@pytest.fixture
def piped() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        os.close(fd)


@pytest.mark.parametrize("trouble", ["gone", "full"])
def test_what_the_journal_does_not_take_goes_to_standard_error(
    journald, piped, trouble
):
    path, server = journald
    reader, writer = piped
    if trouble == "gone":
        path.unlink()
    handler = Handler()
    handler.fields = True
    log = Log(writer, handler=handler, journal=Journal(str(path)))
    for i in range(400):  # a socket's queue has room for some of them at most
        log.put(handler.line(record(f"line {i} {'x' * 100}")))
    log.close(DEADLINE_S)
    os.set_blocking(reader, False)
    said = os.read(reader, 1 << 20).decode().splitlines()
    taken = 0
    server.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while server.recv(65536):
            taken += 1
    assert taken + len(said) == 400
    assert (taken == 0) == (trouble == "gone") and said
    assert said[-1].startswith("remus-native: line 399 ")


# ---- what repeats ---------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_warning_that_repeats_is_counted():
    clock = Clock()
    repeats = Repeats(clock)
    a, b = record("a", logging.WARNING), record("b", logging.WARNING)
    assert not repeats.seen(a) and not repeats.seen(b)
    assert [repeats.seen(one) for one in (a, b, a)] == [True] * 3
    assert repeats.due() == []
    clock.now += REPEAT_S
    told = sorted(one.getMessage() for one in repeats.due())
    assert told == ["a (said 2 more times)", "b (said once more)"]
    assert repeats.seen(a)  # a flood is told once a minute
    clock.now += 2 * REPEAT_S
    assert [one.getMessage() for one in repeats.due()] == ["a (said once more)"]
    clock.now += REPEAT_S
    assert not repeats.seen(a) and not repeats.waiting()


def test_of_other_lines_only_the_one_before_repeats():
    repeats = Repeats(Clock())
    one, other = record("one"), record("other")
    assert [repeats.seen(r) for r in (one, one, other, one)] == [
        False, True, False, False,
    ]  # fmt: skip


def test_no_event_is_left_out():
    repeats = Repeats(Clock())
    assert not any(repeats.seen(record("state", 40, **STATE)) for _ in range(5))


def test_what_is_remembered_is_bounded():
    repeats = Repeats(Clock())
    for i in range(10_000):
        for _ in range(2):
            repeats.seen(record(str(i), logging.ERROR))
    assert len(repeats._since) <= 65 and len(repeats._held) <= 65


def test_a_log_tells_what_it_counted(piped):
    reader, writer = piped
    handler = Handler()
    clock = Clock()
    handler.repeats = Repeats(clock)
    log = Log(writer, handler=handler)
    before, sys.stderr = sys.stderr, log  # type: ignore[assignment]
    try:
        for _ in range(5):
            handler.emit(record("again", logging.WARNING))
        wait_for("the first", lambda: log._idle)
        clock.now += REPEAT_S
        wait_for("the count", lambda: not handler.repeats.waiting())
        handler.emit(record("again", logging.WARNING))
    finally:
        sys.stderr = before
    log.close(DEADLINE_S)
    assert os.read(reader, 4096).decode().splitlines() == [
        "remus-native: again",
        "remus-native: again (said 4 more times)",
        "remus-native: again (said once more)",
    ]


def test_a_handler_never_raises():
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("odd")

    Handler().handle(record("state", event="x", value=Odd()))


def test_a_cause_is_told_when_it_changes():
    clock = Clock()
    causes = Causes(clock)
    causes.told("refused")
    assert causes.new("wrong key")
    assert not causes.new("wrong key")
    assert not causes.new("refused") and not causes.new("")  # it was just told
    assert causes.new("next try in 3 s") and not causes.new("next try in 11 s")
    clock.now += CAUSE_S
    assert causes.new("refused")
    for i in range(1000):
        causes.new("x" * i)
    assert len(causes._told) <= 32


# ---- libraries, settings ----------------------------------------------------------


def test_the_library_prints_nothing_by_itself():
    code = (
        "import logging, remus_native\n"
        "logging.getLogger('remus_native.x').error('not to be seen')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_settings_of_the_file(host: Host):
    assert load(host.file).log == LogSettings()
    text = host.file.read_text()
    host.file.write_text(text + '[log]\nlevel = "error"\nformat = "json"\n')
    assert load(host.file).log == LogSettings("error", "json", "auto")
    host.file.write_text(text + '[log]\nlevel = "loud"\n')
    with pytest.raises(
        ResourceFileError, match=r'log\.level: expected one of "debug", '
    ):
        load(host.file)


def test_levels_and_loggers(capsys):
    with as_standard_error(LogSettings(level="warning")):
        say("information")
        say("a warning", logging.WARNING)
        tell("state", level=logging.ERROR, new="Failed")
        logging.getLogger("remus_native.mine").warning("of a plug-in")
    use(LogSettings())
    say("information again")
    assert capsys.readouterr().err.splitlines() == [
        "remus-native: a warning",
        "remus-native: event=state new=Failed",
        "remus-native: of a plug-in",
        "remus-native: information again",
    ]


# ---- processes ------------------------------------------------------------------


def test_every_line_of_a_process_is_json(host: Host, tmp_path: Path):
    """Its own, and what Python writes by itself."""
    said = tmp_path / "said"
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-m", "remus_native", "backup", "--create",
             "--log-format", "json", str(host.file)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
    host.stack.callback(end, process)
    wait_for("backup", lambda: process.poll() is not None or host.runs("b"))
    host.open_primary().close()
    wait_for("its end", lambda: not status(host, "b")["connected"])
    time.sleep(0.4)  # the main thread looks at it and logs
    process.terminate()
    assert process.wait(DEADLINE_S) == 0
    lines = [json.loads(line) for line in said.read_text().splitlines()]
    assert {line["resource"] for line in lines} == {"guest0"}
    messages = [line["message"] for line in lines]
    assert f"starts, process {process.pid}" in messages[0]
    assert "guest0: stopping: SIGTERM" in messages
    assert messages[-1].endswith("ends with exit code 0")
    states = [line["new"] for line in lines if line.get("event") == "state"]
    assert states[0] == "Inconsistent" and states[-1] == "Standby"


def test_options_come_before_the_file(host: Host):
    host.file.write_text(host.file.read_text() + '[log]\nformat = "json"\n')
    process = host.start(
        "backup", "--create", "--log-format", "logfmt", "--log-level", "warning"
    )
    wait_for("backup", lambda: process.poll() is not None or host.runs("b"))
    assert main(["down", "--host", "backup", str(host.file)]) == 0
    _, said = process.communicate(timeout=DEADLINE_S)
    assert " ready" not in said  # that is information
    first = said.splitlines()[0]
    assert first.startswith("time=") and " level=warning " in first


def test_who_asked_is_said(host: Host):
    process = host.start_backup()
    assert main(["down", "--host", "backup", str(host.file)]) == 0
    _, said = process.communicate(timeout=DEADLINE_S)
    comm = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    who = f"process {os.getpid()} ({comm}), user {os.geteuid()}"
    assert f"remus-native: guest0: asked to stop by {who}\n" in said


@pytest.mark.fuse
def test_the_true_cause_is_told_when_it_changes(host: Host):
    """First nobody is there, then one with another key."""
    wrong = key_file(host.folder, "wrong", f"guest0:{'77' * 32}")
    right = key_file(host.folder)
    text = host.file.read_text().replace(
        f"unix:{host.folder}/sock", f"tcp:127.0.0.1:{free_port()}"
    )
    keyed = 'tls = "psk"\npsk_file = "{}"\n[primary]'
    host.file.write_text(text.replace("[primary]", keyed.format(right)))
    mounts_of(host, "p")
    said = host.folder / "said"
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "remus_native", "primary", str(host.file)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
    host.stack.callback(end, process)
    wait_for("refused", lambda: "Connection refused" in said.read_text())
    host.file.write_text(text.replace("[primary]", keyed.format(wrong)))
    host.start_backup()
    wait_for(
        "the key",
        lambda: re.search(r"event=reason .*refuses our key", said.read_text()),
    )
    lines = [line for line in said.read_text().splitlines() if "event=" in line]
    assert len(lines) == 2, lines


def stalled() -> tuple[int, int]:
    """A pipe that nobody reads, and that takes nothing more."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"-" * 4096)
    return reader, writer


@pytest.mark.fuse
@pytest.mark.parametrize("trouble", ["stalls", "full", "gone"])
def test_a_keeper_does_not_wait_for_its_log(host: Host, trouble: str):
    """Its server dies; the next one comes, and the guest's I/O goes on."""
    reader = -1
    if trouble == "full":
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = stalled()
        if trouble == "gone":
            os.close(reader)
    host.start_backup()
    mounts_of(host, "p")
    keeper = subprocess.Popen(
        [sys.executable, "-m", "remus_native", "up", "--host", "primary",
         "--log-format", "json", str(host.file)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=writer,
    )  # fmt: skip
    os.close(writer)
    host.stack.callback(end, keeper)
    wait_for("start", lambda: keeper.poll() is not None or host.runs("p"))
    with node(host).open("r+b", buffering=0) as disk:
        for i in range(3):
            disk.seek(0)
            disk.write(b"before %d" % i)
            (server,) = Kept.children(keeper.pid)
            os.kill(server, signal.SIGKILL)
            disk.seek(0)
            assert disk.read(8) == b"before %d" % i
            disk.seek(8192)
            disk.write(b"after %d" % i)
        wait_for("control", lambda: host.runs("p"))
    assert main(["down", "--host", "primary", str(host.file)]) == 0
    assert keeper.wait(DEADLINE_S) == 0
    if trouble == "stalls":
        os.close(reader)


def test_the_last_words_have_the_form_too(host: Host):
    code, out, said = host.run("backup", "--log-format", "json")
    assert (code, out) == (2, "")  # its images are missing
    assert [json.loads(line)["level"] for line in said.splitlines()][-1] == "error"
