# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fence command, and what a promote does before it and beside it."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from remus_native.cli import main
from support.host import (
    Host,
    a_lost_checkpoint,
    a_lost_primary,
    mounts_of,
    node,
    start_primary,
    status,
    with_fence,
)
from support.waiting import DEADLINE_S, wait_for

# ---- the fence command before a promote ------------------------------------


def test_promote_fences_first(host: Host) -> None:
    notes = with_fence(host, "exit 0")
    a_lost_primary(host)
    assert main(["promote", str(host.file)]) == 0
    said = notes.read_text()
    for line in (
        "REMUS_REASON=promote",
        "REMUS_SIDE=backup",
        "REMUS_RESOURCE=guest0",
        f"REMUS_FILE={host.file}",
    ):
        assert line in said.splitlines()
    assert host.same()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo no power switch answers; exit 7", "exit code 7: no power switch"),
        ("kill -9 $$", "signal 9"),
        ("sleep 600 & sleep 600", "did not end within 0.5 s and was killed"),
    ],
)
def test_without_its_success_nothing_is_promoted(
    host: Host, capsys: pytest.CaptureFixture[str], script: str, words: str
) -> None:
    with_fence(host, script, timeout="500ms")
    a_lost_primary(host)
    start = time.monotonic()
    assert main(["promote", str(host.file)]) == 1
    assert time.monotonic() - start < 5
    assert words in capsys.readouterr().err
    assert status(host, "b")["state"] == "Standby"
    # An operator knows better.
    assert main(["promote", "--fenced", str(host.file)]) == 0


def test_a_fence_that_is_missing_is_a_failure(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    with_fence(host, "exit 0")
    (host.folder / "fence").unlink()
    a_lost_primary(host)
    assert main(["promote", str(host.file)]) == 1
    assert "could not be started: No such file" in capsys.readouterr().err


def test_with_the_primarys_word_no_fence_is_needed(host: Host) -> None:
    notes = with_fence(host, "exit 1")
    host.start_backup()
    primary = host.open_primary()
    primary.pwrite("root", b"idle", 0)
    assert main(["promote", str(host.file)]) == 0
    assert not notes.exists()
    assert primary.status().state == "Fenced"
    assert host.same()


def test_a_wrong_name_neither_fences_nor_stops_the_primary(host: Host) -> None:
    notes = with_fence(host, "exit 0")
    host.start_backup()
    primary = host.open_primary()
    assert main(["promote", "--checkpoint", "999999", str(host.file)]) == 1
    assert main(["promote", "--tag", "nobody", str(host.file)]) == 1
    assert not notes.exists()
    assert primary.status().state == "Protected"


# ---- the fence command before going on alone --------------------------------


@pytest.mark.slow
@pytest.mark.fuse
def test_a_guest_goes_on_alone_after_the_fence(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = host.folder / "gate"
    notes = with_fence(host, f'test -e "{gate}"')
    backup = host.start_backup()
    start_primary(host)
    backup.kill()
    backup.wait()
    writer = subprocess.Popen(
        ["dd", "if=/dev/zero", f"of={node(host)}", "bs=4096", "count=1",
         "conv=notrunc"], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for("its write", lambda: status(host, "p")["parked_writes"] == 1)
        assert not notes.exists()  # nobody is shot for a short absence
        assert main(["status", "--side", "primary", str(host.file)]) == 3
        assert "1 writes of the guest, for leave" in capsys.readouterr().out
        wait_for("a failure", notes.exists)
        wait_for("its reason", lambda: "REMUS_REASON=alone" in notes.read_text())
        assert writer.poll() is None
        with node(host).open("rb", buffering=0) as disk:
            assert disk.read(4096)  # reads go on
        gate.touch()
        assert writer.wait(DEADLINE_S) == 0  # it was tried again
    finally:
        gate.touch()  # or it could not even be killed
        writer.kill()
        writer.wait()


@pytest.mark.fuse
def test_an_operators_word_lets_the_guest_go_on(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    with_fence(host, "exit 1")
    backup = host.start_backup()
    primary = start_primary(host)
    backup.kill()
    backup.wait()
    wait_for("the loss", lambda: not status(host, "p")["connected"])
    assert main(["resume", str(host.file)]) == 0
    assert "goes on without its backup" in capsys.readouterr().out
    with node(host).open("r+b", buffering=0) as disk:
        assert disk.write(b"alone") == 5
    primary.send_signal(signal.SIGTERM)
    assert primary.wait(DEADLINE_S) == 0


def test_resume_without_a_primary(host: Host) -> None:
    assert main(["resume", str(host.file)]) == 4


# ---- what must not happen on the way ------------------------------------------


def test_what_cannot_be_promoted_to_fences_nobody(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too old, or no copy at all: said before the other host is shot."""
    notes = with_fence(host, "exit 0")
    text = host.file.read_text()
    host.file.write_text(text.replace("[limits]", '[limits]\nstale_after = "1s"'))
    backup = host.start_backup()
    assert main(["promote", str(host.file)]) == 1
    assert "Inconsistent" in capsys.readouterr().err
    epoch = a_lost_checkpoint(host)
    time.sleep(2.1)
    assert main(["promote", str(host.file)]) == 1
    assert "stale_after" in capsys.readouterr().err
    assert main(["promote", "--force", str(host.file)]) == 1
    assert not notes.exists()
    assert main(["promote", "--checkpoint", str(epoch), str(host.file)]) == 0
    assert f"REMUS_CHECKPOINT={epoch}" in notes.read_text()
    assert backup.poll() is None


def test_force_says_what_it_costs_before_it_acts(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = host.folder / "gate"
    with_fence(host, f'while ! test -e "{gate}"; do sleep 0.01; done')
    host.start_backup()
    primary = host.open_primary()
    primary.session_begin()
    epochs = []
    for i in range(3):
        primary.pwrite("root", b"%d" % i, 0)
        epochs.append(primary.postsuspend())
        primary.preresume(epochs[-1], 30)
        if i == 0:
            primary.commit(epochs[-1])
    assert main(["promote", str(host.file)]) == 1
    assert "a toolstack takes checkpoints" in capsys.readouterr().err
    promote = host.start("promote", "--force")
    assert promote.stderr is not None
    said = promote.stderr.readline() + promote.stderr.readline()
    # It was said, and nothing has been done yet.
    assert "a primary is connected and is not asked" in said
    assert f"after checkpoint {epochs[0]} is lost" in said
    assert f"what 2 newer checkpoints hold (up to {epochs[2]})" in said
    assert "split brain" in said
    assert primary.status().state == "Protected"
    gate.touch()
    assert promote.wait(DEADLINE_S) == 0
    wait_for("its fence", lambda: primary.status().state == "Fenced")


def test_force_without_a_primary_says_so(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    backup = a_lost_primary(host)
    backup.terminate()
    assert backup.wait(DEADLINE_S) == 0
    assert main(["promote", "--force", str(host.file)]) == 0
    assert "no primary is connected that could be asked" in capsys.readouterr().err


def test_a_fence_that_talks_for_ever(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its end decides, and memory does not: only the last words are kept."""
    with_fence(host, "yes a word | head -c 200000000; echo the last one; exit 3")
    backup = a_lost_primary(host)
    assert main(["promote", str(host.file)]) == 1
    error = capsys.readouterr().err
    assert "exit code 3" in error and "the last one" in error
    assert len(error) < 1000
    grown = Path(f"/proc/{backup.pid}/status").read_text()
    peak = next(line for line in grown.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 150_000  # KiB


def test_a_fence_ends_with_its_process(host: Host) -> None:
    """What it leaves behind may hold its output open, and lives on."""
    mark = host.folder / "mark"
    with_fence(host, f'(sleep 1; touch "{mark}") & exit 0')
    a_lost_primary(host)
    start = time.monotonic()
    assert main(["promote", str(host.file)]) == 0
    assert time.monotonic() - start < 1
    wait_for("what it left behind", mark.exists)


def test_a_fence_that_hangs_is_killed_with_its_children(host: Host) -> None:
    pids = host.folder / "pids"
    with_fence(host, f'sleep 600 & echo $! >> "{pids}"; sleep 600', timeout="500ms")
    a_lost_primary(host)
    assert main(["promote", str(host.file)]) == 1
    child = int(pids.read_text())
    wait_for("its end", lambda: not running(child))


def running(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except FileNotFoundError:
        return False


def test_a_backup_that_is_told_to_stop_does_not_wait_for_its_fence(
    host: Host,
) -> None:
    notes = with_fence(host, "sleep 600", timeout="10min")
    backup = a_lost_primary(host)
    promote = host.start("promote")
    wait_for("the fence", notes.exists)
    backup.terminate()
    assert backup.wait(DEADLINE_S) == 0
    _, said = promote.communicate(timeout=DEADLINE_S)
    assert promote.returncode == 1
    assert "told to stop" in said
    assert main(["status", "--side", "backup", str(host.file)]) == 4  # Standby


@pytest.mark.fuse
def test_a_primary_that_is_told_to_stop_ends_its_fence(host: Host) -> None:
    pids = host.folder / "pids"
    with_fence(host, f'echo $$ >> "{pids}"; sleep 600', timeout="10min")
    text = host.file.read_text()
    host.file.write_text(text.replace("[limits]", '[limits]\nloss = "1s"'))
    backup = host.start_backup()
    primary = start_primary(host)
    backup.kill()
    backup.wait()
    wait_for("the loss", lambda: not status(host, "p")["connected"])
    writer = subprocess.Popen(
        ["dd", "if=/dev/zero", f"of={node(host)}", "bs=4096", "count=1",
         "conv=notrunc"], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for("the fence", pids.exists)
        wait_for("its number", lambda: pids.read_text().endswith("\n"))
        primary.terminate()
        assert primary.wait(DEADLINE_S) == 0
        assert writer.wait(DEADLINE_S) != 0
        assert not running(int(pids.read_text()))
    finally:
        primary.kill()
        writer.kill()
        writer.wait()


@pytest.mark.fuse
def test_a_signal_that_comes_during_a_switch_is_not_lost(host: Host) -> None:
    backup = host.start_backup()
    primary = start_primary(host)
    mounts_of(host, "b")
    swap = host.start("swap")
    primary.terminate()
    backup.terminate()
    assert backup.wait(DEADLINE_S) == 0
    assert primary.wait(DEADLINE_S) == 0
    swap.wait(DEADLINE_S)
