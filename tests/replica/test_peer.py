# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may speak on a Unix socket: its owner and root, as the kernel tells."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from remus_native import Backup, Primary, RemusError, State, Volume
from support.pair import Pair, checkpoint
from support.waiting import until

OTHER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def as_other(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Python that becomes another user, who may not start it himself."""
    become = (
        "import os, socket, sys; "
        f"os.setgroups([]); os.setgid({OTHER}); os.setuid({OTHER})\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", become + code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="remus-peer-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_the_socket_is_its_owners(make_pair):
    pair = make_pair()
    mode = os.stat(pair.folder / "sock").st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    assert pair.primary.status().security == "unix socket"


@as_root
def test_another_user_is_refused(open_folder: Path) -> None:
    """Also where somebody has opened the socket to all."""
    pair = Pair(open_folder, [1 << 20])
    try:
        pair.open_backup()
        pair.open_primary()
        path = str(open_folder / "sock")
        code = """s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1])
    s.sendall(b"x" * 1000)
    print(len(s.recv(1000)))
except PermissionError:
    print("no permission")
except OSError:
    print(0)
"""
        shut = as_other(code, path).communicate(timeout=30)[0]
        assert shut == "no permission\n"
        os.chmod(path, 0o666)
        for _ in range(3):
            assert as_other(code, path).communicate(timeout=30)[0] == "0\n"
        (refusal,) = pair.backup.refusals()
        assert (refusal.source, refusal.cause) == (f"uid {OTHER}", "peer")
        assert refusal.count == 3
        assert pair.primary.status().state is State.PROTECTED
        checkpoint(pair.primary)
    finally:
        pair.close()


@as_root
def test_a_server_of_another_user_gets_nothing(open_folder: Path) -> None:
    """It took the backup's place: the primary does not even say hello."""
    (open_folder / "taken").mkdir()
    os.chown(open_folder / "taken", OTHER, OTHER)
    path = str(open_folder / "taken" / "sock")
    server = as_other(
        """
l = socket.socket(socket.AF_UNIX)
l.bind(sys.argv[1])
l.listen()
print("there", flush=True)
for _ in range(3):
    s, _ = l.accept()
    print(len(s.recv(1000)), flush=True)
sys.stdin.read()
""",
        path,
    )
    assert server.stdout is not None and server.stdout.readline() == "there\n"
    (open_folder / "state").mkdir()
    (open_folder / "disk").write_bytes(bytes(65536))
    primary = Primary(
        "guest0", state_dir=open_folder / "state", connect_ms=5,
        volumes=[Volume("xvda", open_folder / "disk")], address=f"unix:{path}",
    )  # fmt: skip
    try:
        for _ in range(3):
            assert server.stdout.readline() == "0\n"
        until(lambda: f"peer has uid {OTHER}" in primary.status().reason)
        assert primary.status().state is State.CONNECTING
    finally:
        primary.close()
        server.communicate(timeout=30)


@pytest.fixture
def second(make_pair) -> Iterator[tuple[Pair, Backup]]:
    """A pair, and another resource's backup that does not serve yet."""
    pair = make_pair()
    (pair.folder / "other").mkdir()
    (pair.folder / "image").write_bytes(bytes(65536))
    with Backup(
        "guest1", state_dir=pair.folder / "other",
        volumes=[Volume("xvda", pair.folder / "image")],
        journal_bytes=1 << 20, segment_bytes=65536,
    ) as backup:  # fmt: skip
        yield pair, backup


def test_a_socket_in_use_is_not_taken(second):
    pair, backup = second
    with pytest.raises(RemusError, match="another process listens there"):
        backup.serve(pair.address)
    checkpoint(pair.primary)


def test_a_file_that_is_no_socket_is_not_removed(second):
    pair, backup = second
    with pytest.raises(RemusError, match="a file that is not a socket"):
        backup.serve(f"unix:{pair.folder}/image")
    assert (pair.folder / "image").stat().st_size == 65536


def test_a_socket_left_over_is_taken(second):
    pair, backup = second
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(pair.folder / "left"))
        dead.listen()
    backup.serve(f"unix:{pair.folder}/left")
