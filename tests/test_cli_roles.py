# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command when roles change: fences, swaps, the way back."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
from test_cli import DEADLINE_S, Host, host, start_primary, wait_for

from remus_native.cli import main
from remus_native.control import NotRunning, call
from remus_native.resource_file import ResourceFileError, load

__all__ = ["host"]  # a fixture


def with_fence(host: Host, script: str, timeout: str = "10s") -> Path:
    """The resource gets a fence command; where it notes how it was called."""
    command, notes = host.folder / "fence", host.folder / "notes"
    command.write_text(f'#!/bin/sh\nenv | grep ^REMUS_ >> "{notes}"\n{script}\n')
    command.chmod(0o755)
    fence = f'fence = ["{command}"]\n[primary]'
    text = host.file.read_text().replace("[primary]", fence)
    text = text.replace("[limits]", f'[limits]\nfence_timeout = "{timeout}"')
    host.file.write_text(text)
    return notes


def status(host: Host, side: str) -> dict:
    return call(str(host.folder / side), "status")


def is_now(host: Host, side: str, role: str, state: str) -> bool:
    try:
        now = status(host, side)
    except NotRunning:  # it turns round just now
        return False
    return (now["role"], now["state"]) == (role, state)


def node(host: Host, side: str = "p") -> Path:
    return host.folder / side / "mount/root"


def mounts_of(host: Host, *sides: str) -> None:
    for side in sides:
        host.stack.callback(
            subprocess.run,
            ["umount", "-l", f"{host.folder}/{side}/mount"],
            capture_output=True,
            check=False,
        )


# ---- the fence command before a promote ------------------------------------


def a_lost_primary(host: Host) -> subprocess.Popen[str]:
    backup = host.start_backup()
    primary = host.open_primary()
    primary.pwrite("root", b"x" * 1000, 0)
    epoch = primary.postsuspend()
    primary.preresume(epoch, 30)
    primary.commit(epoch)
    primary.close()
    wait_for("its end", lambda: not status(host, "b")["connected"])
    return backup


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


@pytest.mark.fuse
def test_a_guest_goes_on_alone_after_the_fence(host: Host) -> None:
    gate = host.folder / "gate"
    notes = with_fence(host, f'test -e "{gate}"')
    backup = host.start_backup()
    start_primary(host)
    backup.kill()
    backup.wait()
    wait_for("the question", lambda: status(host, "p")["asks_alone"])
    writer = subprocess.Popen(
        ["dd", "if=/dev/zero", f"of={node(host)}", "bs=4096", "count=1",
         "conv=notrunc"], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for("its write", lambda: status(host, "p")["parked_writes"] == 1)
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
    wait_for("the question", lambda: status(host, "p")["asks_alone"])
    assert main(["resume", str(host.file)]) == 0
    assert "goes on without its backup" in capsys.readouterr().out
    with node(host).open("r+b", buffering=0) as disk:
        assert disk.write(b"alone") == 5
    primary.send_signal(signal.SIGTERM)
    assert primary.wait(DEADLINE_S) == 0


def test_resume_without_a_primary(host: Host) -> None:
    assert main(["resume", str(host.file)]) == 4


# ---- swap ---------------------------------------------------------------------


@pytest.mark.fuse
def test_swap_there_and_back(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.start_backup()
    start_primary(host)
    mounts_of(host, "b")
    with node(host).open("r+b", buffering=0) as disk:
        disk.write(b"first")
        assert main(["swap", str(host.file)]) == 1
        assert "open for writing" in capsys.readouterr().err
        disk.write(b" went on")
    for turn, (old, new, option) in enumerate(
        [("p", "b", []), ("b", "p", ["--swapped"]), ("p", "b", [])]
    ):
        assert main(["swap", *option, str(host.file)]) == 0
        wait_for(
            "the turn",
            lambda new=new: is_now(host, new, "primary", "Protected"),
        )
        assert is_now(host, old, "backup", "Protected")
        with node(host, new).open("r+b", buffering=0) as disk:
            assert disk.read(13) == b"first went on"
            disk.seek(4096)
            disk.write(f"turn {turn}".encode())
    assert "this host is the primary now" in capsys.readouterr().out
    code = main(["status", "--swapped", "--json", str(host.file)])
    assert code == 0


def test_swap_needs_both_sides(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    backup = host.start_backup()
    assert main(["swap", str(host.file)]) == 1
    assert "no primary is connected" in capsys.readouterr().err
    assert backup.poll() is None
    backup.terminate()
    assert backup.wait(DEADLINE_S) == 0
    assert main(["swap", str(host.file)]) == 4


# ---- looking ------------------------------------------------------------------


def test_status_of_a_stopped_backup_changes_nothing(host: Host) -> None:
    backup = a_lost_primary(host)
    backup.terminate()
    assert backup.wait(DEADLINE_S) == 0
    files = [*sorted((host.folder / "b").rglob("*")), host.folder / "b0"]

    def picture() -> list[tuple[str, int, bytes]]:
        return [
            (str(f), f.stat().st_mtime_ns, f.read_bytes())
            for f in files
            if stat.S_ISREG(os.lstat(f).st_mode)
        ]

    before = picture()
    assert main(["status", "--side", "backup", str(host.file)]) == 4
    assert picture() == before


def test_status_does_not_take_a_side_over(host: Host) -> None:
    backup = a_lost_primary(host)
    assert main(["promote", str(host.file)]) == 0
    backup.terminate()
    assert backup.wait(DEADLINE_S) == 0
    resource = load(host.file).swapped()
    from remus_native import Primary

    Primary(
        resource.name, state_dir=resource.primary.state,
        volumes=resource.volumes_of("primary"), address=resource.address,
    ).close()  # fmt: skip
    assert main(["status", "--side", "backup", str(host.file)]) == 1
    # It is the primary still.
    Primary(
        resource.name, state_dir=resource.primary.state,
        volumes=resource.volumes_of("primary"), address=resource.address,
    ).close()  # fmt: skip


def test_a_tcp_address_needs_a_second_one_to_be_swapped(host: Host) -> None:
    text = host.file.read_text().replace(
        f'address = "unix:{host.folder}/sock"',
        'address = "tcp:127.0.0.1:7799"\ntls = "off"',
    )
    host.file.write_text(text)
    with pytest.raises(ResourceFileError, match="address_swapped"):
        load(host.file).swapped()
    assert main(["swap", str(host.file)]) == 2
    host.file.write_text('address_swapped = "tcp:127.0.0.1:7798"\n' + text)
    swapped = load(host.file).swapped()
    assert swapped.address == "tcp:127.0.0.1:7798"
    assert swapped.swapped() == load(host.file)
