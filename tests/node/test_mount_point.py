# SPDX-License-Identifier: LGPL-2.1-or-later
"""The mount point: what is below the mount, and whose a dead mount is."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from remus_native import ConfigError, Export, Primary, StateError, Volume
from remus_native.shared.mounts import detach, unguard

pytestmark = pytest.mark.fuse

SERVES = """
import sys
from remus_native import Export, Primary, Volume
name, folder, mount = sys.argv[1:]
primary = Primary(name, state_dir=folder, volumes=[Volume("xvda", folder + "/d")],
                  address="unix:" + folder + "/nobody")
export = Export(primary, mount)
print("ready", flush=True)
sys.stdin.read()
"""


def state_in(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    if not (folder / "d").exists():
        (folder / "d").write_bytes(bytes(4096))
    return folder


def dies(name: str, state: Path, mount: Path) -> None:
    """A process serves it and is killed: its mount stays."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVES, name, str(state_in(state)), str(mount)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        process.wait()
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mount)


@contextlib.contextmanager
def primary_of(state: Path, name: str = "guest0"):
    with Primary(
        name,
        state_dir=state_in(state),
        volumes=[Volume("xvda", state / "d")],
        address=f"unix:{state}/nobody",
    ) as primary:
        yield primary


@pytest.fixture
def mount(tmp_path):
    folder = tmp_path / "mount point,\\ of guest 0"  # as odd as a name may be
    folder.mkdir()
    yield folder
    while os.path.ismount(folder) or is_dead(folder):
        detach(str(folder))
    unguard(str(folder))


def is_dead(folder: Path) -> bool:
    try:
        os.statvfs(folder)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def nobody_can_write_into(folder: Path) -> None:
    assert folder.stat().st_mode & 0o7777 == 0
    if immutable_works(folder.parent):
        with pytest.raises(OSError, match="not permitted"):
            (folder / "xvda").write_bytes(b"a disk?")


def immutable_works(folder: Path) -> bool:
    probe = folder / "probe"
    probe.mkdir(exist_ok=True)
    done = subprocess.run(["chattr", "+i", probe], capture_output=True, check=False)
    unguard(str(probe))
    return done.returncode == 0


def test_below_the_mount_nobody_makes_a_file(tmp_path, mount):
    dies("guest0", tmp_path / "state", mount)
    detach(str(mount))
    nobody_can_write_into(mount)
    # And it is mounted again all the same.
    with primary_of(tmp_path / "state") as primary, Export(primary, mount):
        assert "xvda" in os.listdir(mount)
    nobody_can_write_into(mount)  # which is what it was before


def test_a_close_restores_what_was(tmp_path, mount):
    mount.chmod(0o711)
    with primary_of(tmp_path / "state") as primary, Export(primary, mount):
        pass
    assert mount.stat().st_mode & 0o7777 == 0o711
    (mount / "file").touch()


def test_unless_it_is_to_stay(tmp_path, mount):
    with (
        primary_of(tmp_path / "state") as primary,
        Export(primary, mount, keep_guarded=True),
    ):
        pass
    nobody_can_write_into(mount)


def test_what_is_not_empty_is_refused(tmp_path, mount):
    (mount / "xvda").write_bytes(b"made while nobody served it")
    with (
        primary_of(tmp_path / "state") as primary,
        pytest.raises((ConfigError, StateError), match='"xvda" in it') as caught,
    ):
        Export(primary, mount)
    assert caught.value.errno == errno.ENOTEMPTY
    assert mount.stat().st_mode & 0o7777 == 0o755


def test_our_own_dead_mount_is_replaced(tmp_path, mount):
    dies("guest0", tmp_path / "state", mount)
    link = tmp_path / "link"  # the same directory by another name
    link.symlink_to(tmp_path / "state")
    with (
        Primary(
            "guest0",
            state_dir=link,
            volumes=[Volume("xvda", tmp_path / "state" / "d")],
            address=f"unix:{tmp_path}/nobody",
        ) as primary,
        Export(primary, mount),
    ):
        assert "xvda" in os.listdir(mount)


@pytest.mark.parametrize(
    ("name", "state"), [("guest1", "state"), ("guest0", "other"), ("guest1", "other")]
)
def test_another_ones_dead_mount_is_named_and_left(tmp_path, mount, name, state):
    dies(name, tmp_path / state, mount)
    with (
        primary_of(tmp_path / "mine") as primary,
        pytest.raises(
            (ConfigError, StateError), match=f"remus-native:{name}:"
        ) as caught,
    ):
        Export(primary, mount)
    assert caught.value.errno == errno.EBUSY
    assert "umount -l" in str(caught.value)
    assert is_dead(mount)


def test_a_dead_mount_of_another_kind_is_named_and_left(tmp_path, mount):
    source = tmp_path / "source"
    source.mkdir()
    binary = build_static(tmp_path)
    with subprocess.Popen(
        [binary, str(mount), "xvda", "text"], stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        server.send_signal(signal.SIGKILL)
        server.wait()
    with (
        primary_of(tmp_path / "state") as primary,
        pytest.raises((ConfigError, StateError), match="static of type fuse") as caught,
    ):
        Export(primary, mount)
    assert caught.value.errno == errno.EBUSY
    assert is_dead(mount)


def build_static(folder: Path) -> Path:
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "fuse3"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    code = Path(__file__).parents[1] / "c" / "fuse_static.c"
    binary = folder / "fuse_static"
    subprocess.run(["gcc", "-o", binary, code, *flags], check=True)
    return binary


def test_the_log_function_of_the_program_stays(tmp_path, mount):
    """libfuse has one for the whole process, and no way to ask for it."""
    fuse = ctypes.CDLL("libfuse3.so.3")
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    heard = []
    mine = kind(lambda level, text, args: heard.append(text))
    fuse.fuse_set_log_func(mine)
    try:
        with primary_of(tmp_path / "state") as primary:
            with Export(primary, mount):
                pass
            with pytest.raises((ConfigError, StateError)):
                Export(primary, tmp_path / "nowhere")
        fuse.fuse_log(3, b"still mine")
    finally:
        fuse.fuse_set_log_func(None)
    assert heard[-1:] == [b"still mine"]
