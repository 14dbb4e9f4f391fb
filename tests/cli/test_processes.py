# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command with real processes: backups, primaries, nodes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest

from remus_native import (
    Backup,
    ConfigError,
    ReplicationLost,
    StateError,
)
from remus_native.cli import main
from remus_native.control import NotRunning, call
from remus_native.resource_file import load
from support.host import Host, end, mounted, start_primary
from support.pair import MIB
from support.waiting import DEADLINE_S, wait_for

# ---- processes ------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_backup_ends_cleanly_on_a_signal(host: Host, number: int) -> None:
    backup = host.start_backup()
    assert main(["status", "--side", "backup", str(host.file)]) == 3  # Inconsistent
    backup.send_signal(number)
    _, said = backup.communicate(timeout=DEADLINE_S)
    assert backup.returncode == 0
    starts, ready, event, stops, ends = said.splitlines()
    assert starts.startswith("remus-native: guest0: remus-native ")
    assert starts.endswith(f" starts, process {backup.pid}")
    assert ready == "remus-native: backup of guest0 ready"
    assert stops == f"remus-native: guest0: stopping: {signal.Signals(number).name}"
    assert ends == (f"remus-native: guest0: process {backup.pid} ends with exit code 0")
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
        "here": "nothing",
        "primary": None,
        "backup": None,
        "errors": {},
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
    # The copy itself may be seen, too, by who looks five times a second.
    copied = r" old=(Inconsistent|CatchingUp) new=Protected connected=1 "
    assert re.search(copied, said)
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
    assert "Standby (not running; read from its state directory)" in shown
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
    with (host.folder / "b0").open("r+b") as image:
        image.truncate((host.folder / "b0").stat().st_size + 512)
    assert main(["promote", str(host.file)]) == 2
    assert "volume root" in capsys.readouterr().err


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
    run = host.start("run", "--on-loss", "stop", "--interval", "1ms")
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
    assert "detaching the mount of a process that was killed" in said
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
    from remus_native.cli._serve import backup_of

    end(host.start_backup())
    with backup_of(load(host.file)) as backup:
        assert isinstance(backup, Backup)
        assert backup.status().journal_limit == 1 << 20
        assert backup.status().volumes == 2
