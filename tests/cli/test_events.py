# SPDX-License-Identifier: LGPL-2.1-or-later
"""``remus-native events`` and the ``notify`` command, with real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remus_native.cli import main
from support import schema
from support.host import Host, a_lost_checkpoint, is_now, start_primary
from support.waiting import DEADLINE_S, wait_for


class Following:
    """``remus-native events`` in a process of its own."""

    def __init__(self, host: Host, *more: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "remus_native", "events", "--json", *more,
             str(host.file)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        host.stack.callback(self.process.wait)
        host.stack.callback(self.process.kill)

    def lines(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            one = json.loads(line)
            schema.check(one, "events")
            yield one

    def until(self, state: str) -> list[dict[str, Any]]:
        """All that is told up to the change to ``state``."""
        found = []
        for one in self.lines():
            found.append(one)
            if one["new"] == state:
                return found
        raise AssertionError(f"no {state}: {found}")


def test_each_change_is_told(host: Host) -> None:
    backup = host.start_backup()
    events = Following(host, "--side", "backup")
    (first,) = events.until("Inconsistent")
    assert first["event"] == "exists" and first["old"] is None
    started = time.time()
    a_lost_checkpoint(host)
    told = events.until("Standby")
    assert [(one["old"], one["new"]) for one in told if one["event"] == "state"] == [
        (old["new"], new["new"])
        for old, new in zip([first, *told], told, strict=False)
        if new["event"] == "state"
    ]
    states = [one["new"] for one in told]
    assert states.index("Protected") < states.index("Standby")
    assert told[-1]["reason"]
    # The times are those of the changes, in UTC.
    floor = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(started - 1))
    assert all(one["time"] >= floor for one in told)
    assert [one["time"] for one in told] == sorted(one["time"] for one in told)
    # A process that ends, and one that comes back.
    backup.terminate()
    assert backup.wait(DEADLINE_S) == 0
    assert events.until("NotRunning")[-1]["old"] == "Standby"
    host.start_backup()
    again = events.until("Standby")
    assert again[0]["old"] == "NotRunning"
    events.process.send_signal(signal.SIGINT)
    assert events.process.wait(DEADLINE_S) == 0


def test_what_is(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.start_backup()
    assert main(["events", "--now", str(host.file)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("event=exists time=")
    assert " role=primary old=- new=NotRunning connected=0 reason=" in first
    assert " role=backup old=- new=Inconsistent connected=0 reason=" in second
    assert main(["events", "--count", "1", str(host.file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_side_that_does_not_answer_ends_nothing(host: Host) -> None:
    backup = host.start_backup()
    backup.send_signal(signal.SIGSTOP)
    events = Following(host, "--side", "backup")
    try:
        (first,) = events.until("?")
    finally:
        backup.send_signal(signal.SIGCONT)
    assert "no answer" in first["reason"]
    assert events.until("Inconsistent")[-1]["old"] == "?"


# ---- notify -------------------------------------------------------------------------


def with_notify(host: Host, script: str, timeout: str = "10s") -> Path:
    """The resource gets a notify command; where it notes how it was called."""
    command, notes = host.folder / "tell", host.folder / "told"
    command.write_text(
        f'#!/bin/sh\necho "$REMUS_SIDE $REMUS_OLD $REMUS_NEW $REMUS_DROPPED" '
        f'>> "{notes}"\n{script}\n'
    )
    command.chmod(0o755)
    text = host.file.read_text()
    text = text.replace("[primary]", f'notify = ["{command}"]\n[primary]', 1)
    text = text.replace("[limits]", f'[limits]\nnotify_timeout = "{timeout}"')
    host.file.write_text(text)
    return notes


def lines(notes: Path) -> list[str]:
    return notes.read_text().splitlines() if notes.exists() else []


def test_the_command_is_run_at_each_change(host: Host) -> None:
    notes = with_notify(host, "exit 0")
    backup = host.start_backup()
    a_lost_checkpoint(host)
    wait_for("the last", lambda: any(
        line.startswith("backup Protected Standby") for line in lines(notes)
    ))  # fmt: skip
    told = [line.split() for line in lines(notes)]
    assert told[0][1] == "Inconsistent"
    # Each begins where the one before ended.
    assert [one[1] for one in told[1:]] == [one[2] for one in told[:-1]]
    assert {one[3] for one in told} == {"0"}
    backup.terminate()
    assert backup.wait(DEADLINE_S) == 0


def test_a_failure_is_said(host: Host) -> None:
    with_notify(host, "echo no mail today >&2; exit 3")
    backup = host.start_backup()
    a_lost_checkpoint(host)
    time.sleep(1)
    backup.terminate()
    _, said = backup.communicate(timeout=DEADLINE_S)
    assert backup.returncode == 0
    assert "the notify command" in said and "exit code 3: no mail today" in said


def test_a_command_that_hangs_is_in_nobodys_way(host: Host) -> None:
    notes = with_notify(host, "exec sleep 600", timeout="500ms")
    backup = host.start_backup()
    a_lost_checkpoint(host)
    # Killed after its time, and the next one has its turn.
    wait_for("the second", lambda: len(lines(notes)) >= 2)
    started = time.monotonic()
    backup.terminate()
    _, said = backup.communicate(timeout=DEADLINE_S)
    assert backup.returncode == 0 and time.monotonic() - started < 20
    assert "did not end within 0.5 s and was killed" in said


def test_the_end_waits_a_moment_only(host: Host) -> None:
    notes = with_notify(host, "exec sleep 600", timeout="10min")
    backup = host.start_backup()
    host.open_primary()
    wait_for("the first", lambda: lines(notes))
    started = time.monotonic()
    backup.terminate()
    backup.communicate(timeout=DEADLINE_S)
    assert backup.returncode == 0 and time.monotonic() - started < 30


@pytest.mark.fuse
def test_a_switch_of_roles_does_not_wait_for_it(host: Host) -> None:
    notes = with_notify(host, "sleep 5")
    host.start_backup()
    start_primary(host)
    host.stack.callback(
        subprocess.run, ["umount", "-l", f"{host.folder}/b/mount"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert main(["swap", str(host.file)]) == 0
    wait_for("the switch", lambda: is_now(host, "b", "primary", "Protected"))
    # The primary that steps down and the backup that is promoted both tell.
    wait_for("both", lambda: {line.split()[0] for line in lines(notes)}
             == {"primary", "backup"})  # fmt: skip
