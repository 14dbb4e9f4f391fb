# SPDX-License-Identifier: LGPL-2.1-or-later
"""QmpGuest against a real QEMU, and against servers that misbehave."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remus_native import CheckpointTimeout, QmpGuest, StateError

QEMU = shutil.which("qemu-system-x86_64")
GREETING = {"QMP": {"version": {}, "capabilities": []}}


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Path]:
    """A QEMU without a guest in it: its vCPU runs, that is enough."""
    if QEMU is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    path = tmp_path / "qmp"
    with subprocess.Popen(
        [QEMU, "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none",
         "-qmp", f"unix:{path},server=on,wait=off"],
        stdin=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 30
            while not path.exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield path
        finally:
            process.kill()
            process.wait()


def test_a_real_qemu_is_stopped_and_goes_on(qemu):
    with QmpGuest(qemu, timeout_s=30) as guest:
        assert guest.execute("query-status")["running"]
        for _ in range(5):
            guest.suspend()
            assert guest.execute("query-status")["status"] == "paused"
            guest.resume()
            assert guest.execute("query-status")["running"]
        with pytest.raises(StateError, match="QEMU says"):
            guest.execute("no-such-command")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """``server(reply, ...)``: one client; sends each reply in its turn."""
    path = tmp_path / "sock"
    threads = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    done = threading.Event()

    def start(*replies: object) -> Path:
        def serve() -> None:
            client, _ = listener.accept()
            with client:
                for i, reply in enumerate(replies):
                    if i:
                        client.recv(65536)
                    if reply is None:
                        return
                    if reply is ...:
                        done.wait(10)
                        return
                    raw = reply if isinstance(reply, bytes) else encode(reply)
                    client.sendall(raw)
                done.wait(10)

        thread = threading.Thread(target=serve)
        thread.start()
        threads.append(thread)
        return path

    yield start
    done.set()
    listener.close()
    for thread in threads:
        thread.join()


def encode(value: object) -> bytes:
    return json.dumps(value).encode() + b"\r\n"


OK = {"return": {}}


def test_events_are_passed_over(server):
    event = {"event": "STOP", "timestamp": {}}
    path = server(GREETING, OK, encode(event) + encode(OK), encode(OK))
    with QmpGuest(path, timeout_s=10) as guest:
        guest.suspend()
        guest.resume()


@pytest.mark.parametrize(
    ("replies", "match"),
    [
        ([{"hello": 1}], "expected a QMP greeting"),
        ([b"not json\n"], "not JSON"),
        ([b"[1]\n"], "not an object"),
        ([None], "closed the socket"),
        ([GREETING, {"error": {"class": "X", "desc": "no way"}}], "no way"),
        ([GREETING, {"error": "odd"}], "odd"),
    ],
)
def test_what_is_not_qmp(server, replies, match):
    with pytest.raises(StateError, match=match):
        QmpGuest(server(*replies), timeout_s=10)


def test_no_answer_is_a_timeout(server):
    path = server(GREETING, OK, ...)
    with QmpGuest(path, timeout_s=0.1) as guest, pytest.raises(CheckpointTimeout):
        guest.suspend()


def test_nobody_there(tmp_path):
    with pytest.raises(StateError, match="start QEMU with"):
        QmpGuest(tmp_path / "nothing")
