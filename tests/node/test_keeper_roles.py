# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that serves a node dies, whatever its host is at that moment."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from remus_native import role_of
from remus_native.cli import main
from support.host import Host, is_now, mounts_of, node, status
from support.keeping import Kept
from support.mounted import close_quietly, fails_with
from support.waiting import wait_for

pytestmark = pytest.mark.fuse


@pytest.fixture(autouse=True)
def nodes(host: Host) -> None:
    """The backup has nodes, and an open for writing promotes it."""
    text = host.file.read_text()
    swapped = f'address_swapped = "unix:{host.folder}/sock2"'
    more = f'{swapped}\nauto_promote = true\nfence = "none"\n[primary]'
    text = text.replace("[primary]", more)
    text = text.replace("[backup]\n", f'[backup]\nmount = "{host.folder}/b/mount"\n')
    text = text.replace('journal = "1MiB"', 'journal = "16MiB"')
    host.file.write_text(text.replace('"64KiB"', '"1MiB"'))
    mounts_of(host, "p", "b")


def both(host: Host) -> tuple[Kept, Kept]:
    backup = Kept(host, "--create", side="b")
    primary = Kept(host)
    wait_for("Protected", lambda: is_now(host, "p", "primary", "Protected"))
    return primary, backup


def reads(path: Path, text: bytes, at: int = 0) -> bool:
    with path.open("rb", buffering=0) as disk:
        disk.seek(at)
        return disk.read(len(text)) == text


def test_a_standby_node_outlives_its_server(host: Host) -> None:
    """Who has it open for reading goes on, and sees what is applied; also over
    a planned restart."""
    _, backup = both(host)
    fd = os.open(node(host, "b"), os.O_RDONLY)
    host.stack.callback(close_quietly, fd)
    for i in range(2):
        text = b"written %d" % i
        with node(host).open("r+b", buffering=0) as disk:
            disk.write(text)
        wait_for("it", lambda t=text: os.pread(fd, len(t), 0) == t)
        before = backup.server()
        if i:
            assert host.run("restart", "--host", "backup") == (0, "", "")
            backup.is_another(before)
        else:
            backup.restart_by_kill()
        assert os.pread(fd, len(text), 0) == text
        wait_for("Protected", lambda: is_now(host, "p", "primary", "Protected"))
    assert is_now(host, "b", "backup", "Protected")


@pytest.mark.slow
def test_a_promoted_node_outlives_its_server(host: Host) -> None:
    """The guest that was failed over has the same safety as before."""
    primary, backup = both(host)
    with node(host).open("r+b", buffering=0) as disk:
        disk.write(b"before")
    wait_for("it", lambda: reads(node(host, "b"), b"before"))
    primary.kill_both()
    with node(host, "b").open("r+b", buffering=0) as disk:
        assert disk.read(6) == b"before"
        for i in range(2):
            disk.seek(4096 * i)
            disk.write(b"after %d" % i)
            backup.kill_server()
            disk.seek(4096 * i)
            assert disk.read(7) == b"after %d" % i
            assert role_of("guest0", host.folder / "b") == "primary"
        # The old host comes back, by the same command, as the backup.
        old = Kept(host)
        wait_for("Protected", lambda: is_now(host, "b", "primary", "Protected"))
        assert is_now(host, "p", "backup", "Protected")
        disk.seek(0)
        disk.write(b"replicated")
        wait_for("it there", lambda: reads(node(host), b"replicated"))
        backup.kill_server()
        old.restart_by_kill()
        disk.seek(0)
        assert disk.read(10) == b"replicated"
        wait_for("Protected", lambda: is_now(host, "b", "primary", "Protected"))


@pytest.mark.slow
def test_an_open_waits_for_a_promote_over_the_servers_death(host: Host) -> None:
    primary, backup = both(host)
    with node(host).open("r+b", buffering=0) as disk:
        disk.write(b"kept")
    wait_for("it", lambda: reads(node(host, "b"), b"kept"))
    primary.kill_both()
    server = backup.server()
    os.kill(server, signal.SIGSTOP)
    opened: list[int] = []
    thread = threading.Thread(
        target=lambda: opened.append(os.open(node(host, "b"), os.O_RDWR))
    )
    thread.start()
    time.sleep(0.2)
    os.kill(server, signal.SIGKILL)
    thread.join(30)
    assert opened
    host.stack.callback(close_quietly, opened[0])
    assert os.pread(opened[0], 4, 0) == b"kept"
    assert os.pwrite(opened[0], b"x", 0) == 1


@pytest.mark.slow
def test_roles_are_exchanged_and_both_are_kept(host: Host) -> None:
    primary, backup = both(host)
    with node(host).open("r+b", buffering=0) as disk:
        disk.write(b"first")
    for now, then, name in (("b", "p", "second"), ("p", "b", "third")):
        swapped = ["--swapped"] if now == "p" else []
        code, _, said = host.run("swap", *swapped)
        assert code == 0, said
        wait_for("roles", lambda n=now: is_now(host, n, "primary", "Protected"))
        wait_for("roles", lambda n=then: is_now(host, n, "backup", "Protected"))
        fd = os.open(node(host, now), os.O_RDWR)
        for kept in (primary, backup):
            kept.restart_by_kill()
        os.pwrite(fd, name.encode(), 0)
        os.close(fd)
        wait_for("it", lambda n=then, t=name: reads(node(host, n), t.encode()))
        wait_for("Protected", lambda n=now: is_now(host, n, "primary", "Protected"))


@pytest.mark.slow
def test_up_after_a_restart_of_both_hosts(host: Host) -> None:
    """The same command on both, in any order, after roles were exchanged."""
    primary, backup = both(host)
    with node(host).open("r+b", buffering=0) as disk:
        disk.write(b"first")
    assert host.run("swap")[0] == 0
    wait_for("roles", lambda: is_now(host, "b", "primary", "Protected"))
    primary.kill_both()
    backup.kill_both()
    assert host.run("role", "--host", "primary")[1] == "backup\n"
    assert host.run("role", "--host", "backup")[1] == "primary\n"
    again = Kept(host), Kept(host, side="b")
    wait_for("Protected", lambda: is_now(host, "b", "primary", "Protected"))
    assert is_now(host, "p", "backup", "Protected")
    assert reads(node(host, "b"), b"first")
    for name, kept in zip(("backup", "primary"), again[::-1], strict=True):
        assert host.run("down", "--host", name)[0] == 0
        assert kept.keeper.wait(10) == 0
        assert not os.path.ismount(kept.mount)


def test_a_server_that_dies_after_it_stepped_down(host: Host) -> None:
    """Who still has its node open reads on, and can't write."""
    primary, _ = both(host)
    fd = os.open(node(host), os.O_RDONLY)
    host.stack.callback(close_quietly, fd)
    assert host.run("swap")[0] == 0
    wait_for("roles", lambda: is_now(host, "p", "backup", "Protected"))
    primary.restart_by_kill()
    wait_for("roles", lambda: is_now(host, "p", "backup", "Protected"))
    with node(host, "b").open("r+b", buffering=0), fails_with(errno.EBUSY):
        os.open(node(host), os.O_RDWR)  # it is in use there


def test_which_host_this_is(host: Host) -> None:
    code, _, said = host.run("up")
    assert code == 2
    assert "say --host primary or --host backup" in said
    host.start_backup()
    wait_for("its state", lambda: role_of("guest0", host.folder / "b") == "backup")
    assert host.run("role") == (0, "backup\n", "")  # the only state here
    assert status(host, "b")["role"] == "backup"


def test_check_looks_at_what_this_host_is(host: Host) -> None:
    host.start_backup()
    wait_for("its state", lambda: role_of("guest0", host.folder / "b") == "backup")
    code, out, _ = host.run("up", "--check", "--host", "backup")
    assert code in (0, 1)
    assert "backup: " in out
    assert "primary: " not in out


def on_its_host(host: Host, side: str) -> Path:
    """The file as the host of that side has it: with its own name in it."""
    names = {side: socket.gethostname(), {"p": "b", "b": "p"}[side]: "elsewhere"}
    text = host.file.read_text()
    for section, letter in (("primary", "p"), ("backup", "b")):
        text = text.replace(
            f"[{section}]\n", f'[{section}]\nhost = "{names[letter]}"\n', 1
        )
    file = host.folder / f"on-{side}.toml"
    file.write_text(text)
    return file


def test_no_command_needs_to_be_told_that_roles_were_exchanged(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    primary, _ = both(host)
    with node(host).open("r+b", buffering=0) as disk:
        disk.write(b"first")
    wait_for("it", lambda: reads(node(host, "b"), b"first"))
    a, b = (str(on_its_host(host, side)) for side in ("p", "b"))
    assert main(["swap", b]) == 0
    assert "swapped" in capsys.readouterr().out
    wait_for("roles", lambda: is_now(host, "b", "primary", "Protected"))
    assert main(["role", a]) == 0
    assert main(["role", b]) == 0
    assert capsys.readouterr().out == "backup\nprimary\n"
    assert main(["status", "--side", "primary", b]) == 0
    assert "primary: Protected" in capsys.readouterr().out
    assert main(["verify", b]) == 0
    # The way back is the same command, on the host that is the backup now.
    assert main(["swap", a]) == 0
    wait_for("roles", lambda: is_now(host, "p", "primary", "Protected"))
    assert main(["verify", a]) == 0
    primary.kill_both()
    assert main(["role", a]) == 0
    assert capsys.readouterr().out.endswith("primary\n")
