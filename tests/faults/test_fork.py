# SPDX-License-Identifier: LGPL-2.1-or-later
"""A forked child: it can use nothing of its parent's, and holds nothing of it.

remus.h states the rule. The parents here are processes of their own, so that
they can be killed.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from remus_native._core import lib

from remus_native import (
    Backup,
    DrbdDisk,
    EpochStatistics,
    Export,
    Primary,
    StateError,
    Volume,
)
from remus_native._binding import last_error, sized
from support.paths import ROOT
from support.waiting import until

PARENT = """
import os, sys, time
from pathlib import Path
from remus_native import *

folder = Path(sys.argv[1])
volumes = lambda side: [Volume("xvda", folder / f"{side}.img", 1 << 20)]
backup = Backup("guest0", state_dir=folder / "backup", volumes=volumes("backup"),
                journal_bytes=1 << 20, segment_bytes=65536)
backup.serve(f"unix:{folder}/sock")
primary = Primary("guest0", state_dir=folder / "primary", volumes=volumes("primary"),
                  address=f"unix:{folder}/sock")
primary.wait_protected(20)
epochs = EpochStatistics("guest0", path=folder / "epochs")
opened = [backup, primary, epochs]
if sys.argv[2] == "mount":
    opened.append(Export(primary, folder / "mount"))
pid = os.fork()
if pid == 0:
    if sys.argv[3] == "close":
        for handle in reversed(opened):
            handle.close()
    print("child", os.getpid(), flush=True)
    time.sleep(120)
    os._exit(0)
if sys.argv[3] == "close":
    time.sleep(0.5)
    primary.pwrite("xvda", b"x" * 4096, 0)
    primary.session_begin()
    for i in range(3):
        number = primary.postsuspend()
        primary.preresume(number, 20)
        primary.commit(number)
    print("goes on", primary.status().state, backup.status().state, flush=True)
time.sleep(120)
"""


def make_folder(folder: Path) -> None:
    for name in ("primary", "backup", "mount"):
        (folder / name).mkdir()
    for side in ("primary", "backup"):
        with (folder / f"{side}.img").open("wb") as image:
            image.truncate(1 << 20)


def start(folder: Path, mount: str, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder), mount, what],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def read_word(parent: subprocess.Popen[str], word: str) -> str:
    assert parent.stdout is not None
    line = parent.stdout.readline()
    assert line.startswith(word), line
    return line.removeprefix(word).strip()


def volumes(folder: Path, side: str) -> list[Volume]:
    return [Volume("xvda", folder / f"{side}.img", 1 << 20)]


@pytest.mark.parametrize("mount", ["no", pytest.param("mount", marks=pytest.mark.fuse)])
def test_a_killed_parent_leaves_no_lock_behind_in_its_child(tmp_path, mount):
    make_folder(tmp_path)
    parent = start(tmp_path, mount, "nothing")
    child = int(read_word(parent, "child"))
    try:
        assert EpochStatistics.attach(tmp_path / "epochs").source().writing
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        os.kill(child, 0)  # it lives
        # The connection ended: no socket of the child's keeps it.
        with Backup(
            "guest0",
            state_dir=tmp_path / "backup",
            volumes=volumes(tmp_path, "backup"),
            journal_bytes=1 << 20,
            segment_bytes=65536,
        ) as backup:
            backup.serve(f"unix:{tmp_path}/sock")
            with Primary(
                "guest0",
                state_dir=tmp_path / "primary",
                volumes=volumes(tmp_path, "primary"),
                address=f"unix:{tmp_path}/sock",
            ) as primary:
                primary.wait_protected(20)
        with EpochStatistics("guest0", path=tmp_path / "new"):
            pass
        if mount == "mount":
            with pytest.raises(OSError, match="not connected"):
                os.listdir(tmp_path / "mount")
    finally:
        os.kill(child, signal.SIGKILL)
        subprocess.run(["umount", "-l", tmp_path / "mount"], stderr=-3, check=False)


def test_a_listening_socket_ends_with_its_process(tmp_path):
    """Over TCP: the address would stay in use."""
    make_folder(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = PARENT.replace(
        'f"unix:{folder}/sock")', f'"tcp:127.0.0.1:{port}", tls="off")'
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), "no", "nothing"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    child = int(read_word(parent, "child"))
    try:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        os.kill(child, 0)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("mount", ["no", pytest.param("mount", marks=pytest.mark.fuse)])
def test_a_child_that_closes_ends_nothing_of_its_parents(tmp_path, mount):
    make_folder(tmp_path)
    parent = start(tmp_path, mount, "close")
    child = int(read_word(parent, "child"))
    try:
        assert read_word(parent, "goes on") == "Protected Protected"
    finally:
        os.kill(child, signal.SIGKILL)
        parent.kill()
        parent.wait()
        subprocess.run(["umount", "-l", tmp_path / "mount"], stderr=-3, check=False)


def in_child(work: Any) -> str:
    """What ``work()`` returns or raises in a forked child."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = str(work())
        except BaseException as error:
            answer = f"{type(error).__name__} {getattr(error, 'errno', None)}"
        os.write(write_end, answer.encode())
        os._exit(0)
    os.close(write_end)
    try:
        with os.fdopen(read_end, "rb") as pipe:
            return pipe.read().decode()
    finally:
        assert os.waitpid(pid, 0)[1] == 0


REFUSED = f"StateError {errno.ECHILD}"


def test_every_kind_of_handle_is_refused_in_a_child(make_pair):
    pair = make_pair([1 << 20])
    disk = DrbdDisk("/dev/null")
    disk.setup()
    epochs = EpochStatistics("guest0")
    for work in (
        pair.primary.status,
        pair.primary.session_begin,
        lambda: pair.primary.pread(0, 512, 0),
        pair.backup.status,
        pair.backup.checkpoints,
        disk.postsuspend,
        epochs.source,
        pair.primary.epochs.source,
    ):
        assert in_child(work) == REFUSED
    for work in (pair.primary.close, pair.backup.close, disk.teardown, epochs.close):
        assert in_child(work) == "None"
    # Nothing of it happened here.
    assert pair.primary.status().connected
    pair.primary.pwrite(0, b"x" * 512, 0)
    disk.teardown()
    epochs.close()


def test_no_call_asks_the_kernel_whether_it_is_in_a_child(make_pair, monkeypatch):
    pair = make_pair([1 << 20])

    def asked() -> int:
        raise AssertionError("os.getpid() in a call")

    monkeypatch.setattr(os, "getpid", asked)
    pair.primary.pwrite(0, b"x" * 512, 0)
    epoch = pair.primary.postsuspend()
    pair.primary.preresume(epoch, timeout_s=20)
    pair.primary.commit(epoch)


def test_each_call_of_c_is_refused_in_a_child_by_name(make_pair):
    pair = make_pair([1 << 20])
    raw = pair.primary._raw
    out = sized("status")

    def call() -> str:
        rc = lib.remus_primary_status(raw, out)
        lib.remus_primary_close(raw)
        return f"{rc} {last_error()}"

    said = in_child(call)
    assert said.startswith(f"{-errno.ECHILD} primary_close: this process is a fork")
    assert pair.primary.status().connected


def test_a_child_may_open_its_own(tmp_path, make_pair):
    make_pair([1 << 20])  # the library is in use here
    own = tmp_path / "own"
    own.mkdir()
    make_folder(own)

    def work() -> str:
        with Backup(
            "guest1",
            state_dir=own / "backup",
            volumes=volumes(own, "backup"),
            journal_bytes=1 << 20,
            segment_bytes=65536,
        ) as backup:
            backup.serve(f"unix:{own}/sock")
            with Primary(
                "guest1",
                state_dir=own / "primary",
                volumes=volumes(own, "primary"),
                address=f"unix:{own}/sock",
            ) as primary:
                primary.wait_protected(20)
                return str(primary.status().state)

    assert in_child(work) == "Protected"


def use(handle: Any) -> str:
    try:
        return str(handle.status().state)
    except StateError as error:
        return f"{type(error).__name__} {error.errno}"


def _worker(queue: Any, handle: Any) -> None:
    queue.put(use(handle))


def test_multiprocessing_fork_gets_a_handle_that_refuses(make_pair):
    pair = make_pair([1 << 20])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_worker, args=(queue, pair.primary))
    process.start()
    assert queue.get(timeout=20) == REFUSED
    process.join(20)
    assert process.exitcode == 0
    assert pair.primary.status().connected


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_multiprocessing_spawn_and_forkserver_take_no_handle(make_pair, method):
    pair = make_pair([1 << 20])
    context = multiprocessing.get_context(method)
    process = context.Process(target=print, args=(pair.primary,))
    with pytest.raises(TypeError, match="can't be copied or sent"):
        process.start()
    assert pair.primary.status().connected


def test_threads_that_fork_all_the_time_leave_no_lock(tmp_path):
    """Opening and forking at once: a child must not get a lock's descriptor
    before it is registered."""
    code = """
import os, signal, sys, threading
from pathlib import Path
from remus_native import *
folder = Path(sys.argv[1])
children = []
stop = False
def fork():
    while not stop and len(children) < 300:
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        children.append(pid)
thread = threading.Thread(target=fork)
thread.start()
busy = 0
for i in range(40):
    try:
        Backup("guest0", state_dir=folder / "backup",
               volumes=[Volume("xvda", folder / "backup.img", 1 << 20)],
               journal_bytes=1 << 20, segment_bytes=65536).close()
    except StateError as error:
        busy += 1
stop = True
thread.join()
for pid in children:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print("busy", busy, "children", len(children) > 5)
"""
    make_folder(tmp_path)
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert out.stdout == "busy 0 children True\n", out.stderr[-1000:]


@pytest.mark.fuse
def test_a_node_of_the_parents_is_served_by_it_alone(tmp_path, make_pair):
    pair = make_pair([1 << 20])
    mount = tmp_path / "nodes"
    mount.mkdir()
    with Export(pair.primary, mount) as export:
        assert in_child(lambda: export.alive) == REFUSED
        assert in_child(export.close) == "None"
        assert export.alive
        data = (mount / "status").read_text()
        assert "Protected" in data
    until(lambda: not os.path.ismount(mount))
