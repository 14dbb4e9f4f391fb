# SPDX-License-Identifier: LGPL-2.1-or-later
"""The named ends of a server that dies, or is to be restarted: each is seen at
once, and none takes the guest's disk away that need not."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.host import Host, is_now
from support.keeping import Kept
from support.mounted import close_quietly, fails_with, run
from support.waiting import DEADLINE_S, wait_for

pytestmark = pytest.mark.fuse

TGKILL = 234 if os.uname().machine == "x86_64" else 131
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(autouse=True)
def room(host: Host) -> None:
    text = host.file.read_text().replace('journal = "1MiB"', 'journal = "16MiB"')
    host.file.write_text(text.replace('"64KiB"', '"1MiB"'))


def a_disk(host: Host, kept: Kept) -> int:
    """Open, and written to."""
    fd = os.open(kept.mount / "root", os.O_RDWR)
    host.stack.callback(close_quietly, fd)
    assert os.pwrite(fd, b"before", 0) == 6
    return fd


def goes_on(fd: int) -> None:
    assert os.pread(fd, 6, 0) == b"before"
    assert os.pwrite(fd, b"after", 4096) == 5
    assert os.pread(fd, 5, 4096) == b"after"


# ---- one thread of the server crashes ---------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
def test_a_crash_in_one_thread_is_a_crash_of_the_server(
    host: Host, number: signal.Signals
) -> None:
    """No thread goes on without the others: the next server does."""
    host.start_backup()
    kept = Kept(host)
    fd = a_disk(host, kept)
    server = kept.server()
    threads = sorted(int(name) for name in os.listdir(f"/proc/{server}/task"))
    assert threads[-1] != server
    assert libc.syscall(TGKILL, server, threads[-1], int(number)) == 0
    kept.is_another(server)
    goes_on(fd)
    wait_for("Protected", lambda: is_now(host, "p", "primary", "Protected"))


# ---- the next version can't go on with what this one keeps --------------------------


@contextlib.contextmanager
def other_layout(server: int, at: int, form: str, value: int) -> Iterator[None]:
    """What is kept says something else at this place of its head."""
    folder = Path(f"/proc/{server}/fd")
    name, *_ = (n for n in folder.iterdir() if "memfd:remus-native" in os.readlink(n))
    fd = os.open(name, os.O_RDWR)
    try:
        before = os.pread(fd, struct.calcsize(form), at)
        os.pwrite(fd, struct.pack(form, value), at)
        yield
        os.pwrite(fd, before, at)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("at", "form", "value", "words"),
    [
        (0, "<Q", 0x3230747065, "has the layout 0000003230747065"),
        pytest.param(
            *(8, "<I", 7, "is of 7 volumes, and there are 2"), marks=pytest.mark.slow
        ),
        pytest.param(
            *(56, "<I", 4000, "4000 bytes for an open file"), marks=pytest.mark.slow
        ),
    ],
)
def test_another_layout_is_refused_while_the_server_still_serves(
    host: Host, at: int, form: str, value: int, words: str
) -> None:
    """As an upgrade may bring it."""
    host.start_backup()
    kept = Kept(host)
    wait_for("Protected", lambda: is_now(host, "p", "primary", "Protected"))
    fd = a_disk(host, kept)
    server = kept.server()
    with other_layout(server, at, form, value):
        code, _, said = host.run("restart", "--host", "primary")
        assert code == 1
        assert words in said
        assert "the disks are served as before" in said
        assert "Install the version before again" in said
        assert kept.children(kept.keepers[-1]) == [server]
        goes_on(fd)
        assert is_now(host, "p", "primary", "Protected")
    # The version before is installed again.
    assert host.run("restart", "--host", "primary") == (0, "", "")
    assert kept.server() != server
    goes_on(fd)


# ---- nothing is left to start with -------------------------------------------------


@contextlib.contextmanager
def small(folder: Path) -> Iterator[None]:
    """A file system of its own, of 2 MiB."""
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "none", folder)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(folder: Path) -> None:
    with (folder / "full").open("wb", buffering=0) as file, fails_with(errno.ENOSPC):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_for_the_state(host: Host) -> None:
    """The guest goes on all the same, and what it writes is replicated."""
    host.stack.enter_context(small(host.folder / "p"))
    host.start_backup()
    kept = Kept(host)
    wait_for("Protected", lambda: is_now(host, "p", "primary", "Protected"))
    fd = a_disk(host, kept)
    fill(host.folder / "p")
    kept.kill_server()
    goes_on(fd)
    wait_for("Protected", lambda: is_now(host, "p", "primary", "Protected"))
    disk = host.folder / "b0"
    wait_for("it there", lambda: disk.read_bytes()[4096:4101] == b"after")
    kept.keeper.terminate()
    _, said = kept.keeper.communicate(timeout=DEADLINE_S)
    assert kept.keeper.returncode == 0, said


def test_a_full_run_directory(host: Host) -> None:
    """What the map needs it has since the start; without it there is none."""
    folder = host.folder / "run"
    host.stack.enter_context(small(folder))
    host.file.write_text(f'run_dir = "{folder}"\n{host.file.read_text()}')
    host.start_backup()
    kept = Kept(host)
    wait_for("Protected", lambda: is_now(host, "p", "primary", "Protected"))
    fd = a_disk(host, kept)
    fill(folder)
    kept.kill_server()
    goes_on(fd)
    wait_for("Protected", lambda: is_now(host, "p", "primary", "Protected"))
    os.close(fd)
    kept.keeper.terminate()
    _, said = kept.keeper.communicate(timeout=DEADLINE_S)
    assert kept.keeper.returncode == 0, said
    (folder / "full").unlink()
    fill(folder)  # also what the map has left
    keeper = host.start("up", "--host", "primary")
    _, said = keeper.communicate(timeout=DEADLINE_S)
    assert keeper.returncode == 1
    assert "No space left on device" in said
    assert not os.path.ismount(kept.mount)
