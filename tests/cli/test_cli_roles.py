# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command when roles change: swaps, the way back, who is asked."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import time

import pytest

from remus_native import Primary
from remus_native.cli import main
from remus_native.resource_file import ResourceFileError, load
from remus_native.shared.mounts import detach
from support.host import (
    Host,
    a_lost_primary,
    is_now,
    mounts_of,
    node,
    start_primary,
    status,
    with_fence,
)
from support.waiting import DEADLINE_S, wait_for

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
            "the switch",
            lambda new=new: is_now(host, new, "primary", "Protected"),
        )
        assert is_now(host, old, "backup", "Protected")
        with node(host, new).open("r+b", buffering=0) as disk:
            assert disk.read(13) == b"first went on"
            disk.seek(4096)
            disk.write(f"turn {turn}".encode())
    assert "this host is the primary now" in capsys.readouterr().out
    # Without the word the sides are taken for each other: they say so.
    for words in (["promote"], ["commit"], ["resume"], ["status"], ["swap"]):
        number = ["7"] if words == ["commit"] else []
        assert main([*words, str(host.file), *number]) == 1
        assert "say --swapped" in capsys.readouterr().err
    code = main(["status", "--swapped", "--json", str(host.file)])
    assert code == 0
    capsys.readouterr()
    # ... and what they show stands under the role that it belongs to.
    assert main(["status", str(host.file)]) == 1
    shown = capsys.readouterr().out
    assert "guest0 primary: Protected" in shown and "guest0 backup: Protected" in shown
    for part in shown.split("guest0 ")[1:]:
        assert part.startswith("backup") == ("following the primary" in part)
    assert main(["status", "--side", "primary", str(host.file)]) == 1
    assert "guest0 primary: not running on this host" in capsys.readouterr().out


def test_swap_needs_both_sides(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    backup = host.start_backup()
    assert main(["swap", str(host.file)]) == 1
    assert "no primary is connected" in capsys.readouterr().err
    assert backup.poll() is None
    backup.terminate()
    assert backup.wait(DEADLINE_S) == 0
    assert main(["swap", str(host.file)]) == 4


# ---- two hosts with the same paths -----------------------------------------------


@pytest.fixture
def alike(host: Host) -> Host:
    """The file of two hosts on which both sides have the same paths."""
    text = host.file.read_text()
    text = text.replace(f"{host.folder}/b0", f"{host.folder}/p0")
    text = text.replace(f"{host.folder}/b1", f"{host.folder}/p1")
    text = text.replace(f'state = "{host.folder}/b"', f'state = "{host.folder}/p"')
    host.file.write_text(f"same_host = false\n{text}")
    return host


def test_status_on_the_backups_host_of_two_alike(
    alike: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    backup = alike.start("backup")
    wait_for("backup", lambda: backup.poll() is not None or alike.runs("p"))
    assert main(["status", str(alike.file)]) == 3  # Inconsistent
    shown = capsys.readouterr()
    assert "guest0 backup: Inconsistent" in shown.out
    assert "guest0 primary: not running on this host" in shown.out
    assert shown.err == ""
    assert main(["status", "--json", str(alike.file)]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["primary"] is None
    assert answer["backup"]["role"] == "backup"
    assert main(["status", "--side", "primary", str(alike.file)]) == 4


@pytest.mark.fuse
def test_status_on_the_primarys_host_of_two_alike(
    alike: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    alike.stack.callback(detach, str(alike.folder / "p/mount"))
    primary = alike.start("primary")
    wait_for("primary", lambda: primary.poll() is not None or alike.runs("p"))
    assert main(["status", str(alike.file)]) == 3  # Connecting
    shown = capsys.readouterr()
    assert "guest0 primary: Connecting" in shown.out
    assert "guest0 backup: not running on this host" in shown.out
    assert shown.err == ""
    assert main(["status", "--side", "backup", str(alike.file)]) == 4


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


# ---- a promote while the backup's process is down -------------------------------


def without_its_process(host: Host) -> Primary:
    """A primary that lives, and a backup whose process is gone."""
    backup = host.start_backup()
    primary = host.open_primary()
    backup.kill()
    backup.wait()
    wait_for("the loss", lambda: not primary.status().connected)
    return primary


def test_a_primary_that_lives_is_asked_also_without_the_process(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = with_fence(host, "exit 0")
    primary = without_its_process(host)
    with primary.writer():
        primary.pwrite("root", b"goes on", 0)
        assert main(["promote", str(host.file)]) == 1
        assert "open for writing" in capsys.readouterr().err
        primary.pwrite("root", b"still", 0)
    assert not notes.exists()
    assert primary.status().state != "Fenced"


def test_one_that_is_idle_steps_down_also_without_the_process(host: Host) -> None:
    notes = with_fence(host, "exit 1")
    primary = without_its_process(host)
    primary.pwrite("root", b"written alone", 0)
    # While that still travels its word is waited for.
    assert main(["promote", str(host.file)]) == 0
    assert not notes.exists()
    assert primary.status().state == "Fenced"
    assert host.same()


def test_without_a_primary_it_listens_for_loss_and_then_fences(host: Host) -> None:
    notes = with_fence(host, "exit 0")
    text = host.file.read_text()
    host.file.write_text(text.replace("[limits]", '[limits]\nloss = "1200ms"'))
    backup = a_lost_primary(host)
    backup.terminate()
    assert backup.wait(DEADLINE_S) == 0
    start = time.monotonic()
    assert main(["promote", str(host.file)]) == 0
    assert time.monotonic() - start >= 1.2
    assert notes.exists()


def test_a_host_that_lost_its_address_can_be_promoted(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody can be heard there: that is said, and the fence decides."""
    notes = with_fence(host, "exit 0")
    backup = a_lost_primary(host)
    backup.terminate()
    assert backup.wait(DEADLINE_S) == 0
    text = re.sub(
        r"^address = .*$",
        'address = "tcp:192.0.2.77:7790"\ntls = "off"',
        host.file.read_text(),
        flags=re.M,
    )
    host.file.write_text(text)
    assert main(["promote", str(host.file)]) == 0
    assert "can't listen" in capsys.readouterr().err
    assert notes.exists()


@pytest.mark.fuse
def test_one_socket_for_both_sides_is_told(host: Host) -> None:
    """Of an old primary there nobody would hear."""
    text = host.file.read_text()
    mount = f'[backup]\nmount = "{host.folder}/b/mount"'
    host.file.write_text(text.replace("[backup]", mount))
    mounts_of(host, "b")
    backup = host.start_backup()
    with host.open_primary() as primary:
        commit_one(primary)
    assert main(["promote", str(host.file)]) == 0
    wait_for("primary", lambda: is_now(host, "b", "primary", "Connecting"))
    backup.terminate()
    _, said = backup.communicate(timeout=DEADLINE_S)
    assert "give address_swapped a socket of its own" in said


# ---- the old address of a side that is the primary now --------------------------


def commit_one(primary: Primary) -> None:
    epoch = primary.postsuspend()
    primary.preresume(epoch, 30)
    primary.commit(epoch)
    primary.session_end()


def with_mount(host: Host) -> None:
    """The backup's disks are nodes, so a promoted one goes on as the primary."""
    text = host.file.read_text()
    mount = f'[backup]\nmount = "{host.folder}/b/mount"'
    swapped = f'address_swapped = "unix:{host.folder}/swapped.sock"\n'
    host.file.write_text(swapped + text.replace("[backup]", mount))
    mounts_of(host, "b")


@pytest.mark.fuse
def test_an_old_primary_that_comes_back_hears_that_it_was_failed_away(
    host: Host,
) -> None:
    with_mount(host)
    host.start_backup()
    primary = host.open_primary()
    primary.pwrite("root", b"before", 0)
    commit_one(primary)
    assert main(["promote", "--force", str(host.file)]) == 0
    wait_for("the switch", lambda: is_now(host, "b", "primary", "Connecting"))
    wait_for("its fence", lambda: primary.status().state == "Fenced")
    assert is_now(host, "b", "primary", "Connecting")


@pytest.mark.fuse
def test_split_brain_is_named_on_both_sides(host: Host) -> None:
    with_mount(host)
    backup = host.start_backup()
    primary = host.open_primary()
    commit_one(primary)
    backup.kill()
    backup.wait()
    wait_for("the loss", lambda: not primary.status().connected)
    primary.pwrite("root", b"written alone", 0)
    primary.close()
    subprocess.run(["umount", "-l", f"{host.folder}/b/mount"], check=False)
    host.start_backup()
    assert main(["promote", str(host.file)]) == 0
    wait_for("the switch", lambda: is_now(host, "b", "primary", "Connecting"))
    again = host.open_primary(wait=False)
    wait_for("its end", lambda: again.status().state == "SplitBrain")
    wait_for("the other", lambda: is_now(host, "b", "primary", "SplitBrain"))
    assert "--discard-local" in status(host, "b")["reason"]
