# SPDX-License-Identifier: LGPL-2.1-or-later
"""hotplug/block-drbd-probe on our own disks: files on a real FUSE mount.

The server is tests/c/fuse_static.c.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.drbd_tools import (
    NOT_DRBD,
    NOT_READY,
    READY,
    UNKNOWN,
    State,
    Tools,
    Utils84,
)
from support.paths import PROBE, TESTS
from support.probe import probe

# ------------------------------------------------------- remus-native disks


@pytest.fixture(scope="module")
def fuse_static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """c/fuse_static.c, built."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if not shutil.which("gcc") or not shutil.which("pkg-config"):
        pytest.skip("gcc and pkg-config are needed to build fuse_static")
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "fuse3"],
        capture_output=True,
        text=True,
        check=False,
    )
    if flags.returncode != 0:
        pytest.skip("libfuse3 is not installed for building")
    binary = tmp_path_factory.mktemp("fuse") / "fuse_static"
    subprocess.run(
        [
            "gcc",
            "-std=c11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-o",
            str(binary),
            str(TESTS / "c" / "fuse_static.c"),
            *flags.stdout.split(),
        ],
        check=True,
    )
    return binary


def is_mounted(path: Path) -> bool:
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return str(path) in (line.split()[1] for line in mounts)


@contextlib.contextmanager
def mounted(
    binary: Path, where: Path, files: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    where.mkdir()
    args = [word for pair in files.items() for word in pair]
    server = subprocess.Popen(
        [str(binary), str(where), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None and server.stderr is not None
        if server.stdout.readline() != "ready\n":
            pytest.skip("cannot mount here: " + server.stderr.read().strip())
        yield server
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGCONT)
            server.terminate()
        try:
            server.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.communicate()
        if is_mounted(where):  # the server was killed
            subprocess.run(["umount", "-l", str(where)], check=True)


def status(
    state: str = "Protected", role: str = "primary", name: str = "guest0"
) -> str:
    return (
        f"remus-native resource={name} role={role} state={state} epoch=812\n"
        "state=Protected\n"  # only the first line counts
        "volumes=xvda\n"
    )


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (status(), READY, ""),
        (status("CatchUp"), NOT_READY, "state CatchUp"),
        (status("Alone"), NOT_READY, "state Alone"),
        (status("NotProtected"), NOT_READY, "state NotProtected"),
        (status("Protected2"), NOT_READY, "state Protected2"),
        (status(""), NOT_READY, "state ;"),
        (status(role="backup"), NOT_READY, "role backup"),
        ("remus-native resource=guest0\n", NOT_READY, "role ?"),
        # Somebody else's filesystem, with a file that happens to be there.
        ("\n" + status(), NOT_DRBD, "plain file"),
        ("remus-native\n", NOT_DRBD, "plain file"),
        ("state=Protected\n", NOT_DRBD, "plain file"),
        ("", NOT_DRBD, "plain file"),
        (None, NOT_DRBD, "plain file"),
    ],
)
def test_remus_native_disk(
    fuse_static: Path,
    tmp_path: Path,
    tools: Tools,
    text: str | None,
    code: int,
    says: str,
) -> None:
    tools.update(Utils84().replies(State()))
    files = {"xvda": "disk"} | ({} if text is None else {"status": text})
    with mounted(fuse_static, tmp_path / "mnt", files):
        verdict = probe(tmp_path / "mnt" / "xvda", tools)
    assert verdict.code == code, verdict.says
    assert says in verdict.says


def test_remus_native_disk_needs_no_drbd_tools(
    fuse_static: Path, tmp_path: Path, tools: Tools
) -> None:
    tools["drbdadm sh-dev all"] = Utils84.bad_configuration
    files = {"xvda": "disk", "status": status()}
    with mounted(fuse_static, tmp_path / "mnt", files):
        assert probe(tmp_path / "mnt" / "xvda", tools).code == READY
    assert tools.calls() == []


def test_status_is_no_pattern(fuse_static: Path, tmp_path: Path, tools: Tools) -> None:
    (tmp_path / "state=Protected").touch()
    files = {"xvda": "disk", "status": status("*")}
    with mounted(fuse_static, tmp_path / "mnt", files):
        verdict = probe(tmp_path / "mnt" / "xvda", tools, cwd=tmp_path)
    assert verdict.code == NOT_READY
    assert "state *;" in verdict.says


def test_remus_native_disk_by_link(
    fuse_static: Path, tmp_path: Path, tools: Tools
) -> None:
    tools.update(Utils84().replies(State()))
    files = {"xvda 1": "disk", "status": status()}
    mount = tmp_path / "mount of guest 0"
    link = tmp_path / "link"
    # A `status` beside the link is not the one that counts.
    (tmp_path / "status").write_text(status("Alone"))
    with mounted(fuse_static, mount, files):
        link.symlink_to(mount / "xvda 1")
        assert probe(link, tools).code == READY
        folder = tmp_path / "folder"
        folder.symlink_to(mount)
        assert probe(folder / "xvda 1", tools).code == READY
        assert probe("xvda 1", tools, cwd=mount).code == READY


def test_status_files_are_no_disks(
    fuse_static: Path, tmp_path: Path, tools: Tools
) -> None:
    tools.update(Utils84().replies(State()))
    mount = tmp_path / "mnt"
    files = {"xvda": "disk", "status": status(), "status.json": "{}"}
    with mounted(fuse_static, mount, files):
        for path in (mount / "status", mount / "status.json", mount):
            assert probe(path, tools).code == NOT_DRBD, path


def test_status_beside_an_ordinary_file(tmp_path: Path, tools: Tools) -> None:
    """Anyone can write such a file; only a FUSE mount makes it count."""
    tools.update(Utils84().replies(State()))
    (tmp_path / "xvda").touch()
    (tmp_path / "status").write_text(status())
    assert probe(tmp_path / "xvda", tools).code == NOT_DRBD


def test_remus_native_server_died(
    fuse_static: Path, tmp_path: Path, tools: Tools
) -> None:
    tools.update(Utils84().replies(State()))
    files = {"xvda": "disk", "status": status()}
    with mounted(fuse_static, tmp_path / "mnt", files) as server:
        server.kill()
        server.wait()
        verdict = probe(tmp_path / "mnt" / "xvda", tools)
    assert verdict.code == UNKNOWN
    assert "not connected" in verdict.says


def test_remus_native_server_hangs(
    fuse_static: Path, tmp_path: Path, tools: Tools
) -> None:
    tools.update(Utils84().replies(State()))
    files = {"xvda": "disk", "status": status()}
    with mounted(fuse_static, tmp_path / "mnt", files) as server:
        server.send_signal(signal.SIGSTOP)
        verdict = probe(tmp_path / "mnt" / "xvda", tools, limit_s=1)
    assert verdict.code == UNKNOWN
    assert "no answer within 1 s" in verdict.says


def test_remus_native_read_that_nobody_can_kill(
    fuse_static: Path, tmp_path: Path, tools: Tools
) -> None:
    """The server took the read of the status and sits in it: no signal ends it.

    So the child that reads is given up; `probe` waits for the end of both
    streams, so it holds neither of them.
    """
    files = {"xvda": "disk", "status": "@stall"}
    with mounted(fuse_static, tmp_path / "mnt", files) as server:
        started = time.monotonic()
        verdict = probe(tmp_path / "mnt" / "xvda", tools, limit_s=2)
        assert time.monotonic() - started < 5
        assert server.poll() is None
        server.kill()  # which ends the read
    assert verdict.code == UNKNOWN
    assert "no answer within 2 s" in verdict.says


def test_remus_native_status_hangs(
    fuse_static: Path, tmp_path: Path, tools: Tools
) -> None:
    """The server stops between the look at the disk and at its status."""
    files = {"xvda": "disk", "status": status()}
    tools.script("head", "exec sleep 60\n")
    with mounted(fuse_static, tmp_path / "mnt", files):
        verdict = probe(tmp_path / "mnt" / "xvda", tools, limit_s=1)
    assert verdict.code == UNKNOWN
    assert "no answer within 1 s" in verdict.says


def test_remus_native_server_dies_between_two_questions(
    fuse_static: Path, tmp_path: Path, tools: Tools
) -> None:
    """The kernel still knows the disk's attributes, so the first look works."""
    files = {"xvda": "disk", "status": status()}
    for tool in ("head", "stat"):
        tools.script(
            tool,
            'case "$*" in *-L*) exec /usr/bin/stat "$@" ;; esac\n'
            f"echo '{tool}: Transport endpoint is not connected' >&2\nexit 1\n",
        )
        where = tmp_path / f"mnt-{tool}"
        with mounted(fuse_static, where, files):
            verdict = probe(where / "xvda", tools)
        assert verdict.code == UNKNOWN, verdict.says
        assert "not connected" in verdict.says


# ---- what is printed -------------------------------------------------------------

HOSTILE = (
    b"a\x1b[2J\nb\r\t\x7f\xc2\x9b5m\xe2\x80\xaelive\xe2\x81\xa6\xe2\x80\xa8"
    b"\xef\xbb\xbf\xff\xfe\xc3("
)


def printed(done: subprocess.CompletedProcess[bytes]) -> bytes:
    """What it said: one line of printable ASCII."""
    line, end = done.stderr[:-1], done.stderr[-1:]
    assert end == b"\n"
    assert all(0x20 <= byte < 0x7F for byte in line), line
    return line


@pytest.mark.parametrize("kind", ["missing", "plain"])
def test_hostile_names_are_printed_printable(tmp_path: Path, kind: str) -> None:
    device = os.fsencode(tmp_path) + b"/" + HOSTILE
    if kind == "plain":
        os.close(os.open(device, os.O_CREAT | os.O_WRONLY))
    done = subprocess.run([PROBE, device], capture_output=True, timeout=30, check=False)
    assert done.returncode in (UNKNOWN, NOT_DRBD)
    assert b"live" in printed(done)


def test_what_hostile_tools_say_is_printed_printable(
    tools: Tools, tmp_path: Path
) -> None:
    drbdadm = tools.path / "drbdadm"
    tools.path.mkdir(exist_ok=True)
    (tmp_path / "says").write_bytes(HOSTILE)
    drbdadm.write_text(f"#!/bin/sh\ncat {tmp_path}/says >&2\nexit 1\n")
    drbdadm.chmod(0o755)
    done = subprocess.run(
        [PROBE, "/dev/drbd0"],
        env={"PATH": f"{tools.path}:/usr/bin:/bin"},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == UNKNOWN
    assert b"a [2J" in printed(done)


def test_a_hostile_status_is_printed_printable(
    fuse_static: Path, tmp_path: Path
) -> None:
    words = b"\x1b]0;x\x07\xe2\x80\xaelive\xff\xc2\x9b"
    line = b"remus-native resource=r" + words + b" role=primary state=s" + words
    files = {"xvda": "disk", "status": os.fsdecode(line + b"\n")}
    with mounted(fuse_static, tmp_path / "mnt", files):
        done = subprocess.run(
            [PROBE, tmp_path / "mnt" / "xvda"],
            capture_output=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == NOT_READY
    assert printed(done).count(b"live") == 2
