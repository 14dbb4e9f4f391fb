# SPDX-License-Identifier: LGPL-2.1-or-later
"""QmpGuest against a real QEMU, and against servers that misbehave."""

from __future__ import annotations

import contextlib
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


@pytest.fixture
def qmp(tmp_path: Path) -> Iterator[Path]:
    """A server that answers commands in order, with ids, when it is told to."""
    path = tmp_path / "qmp"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            held: list[object] = []
            with client, client.makefile("rb") as lines:
                client.sendall(encode(GREETING))
                for line in lines:
                    command = json.loads(line)
                    name = command["execute"]
                    held.append({"return": {"of": name}, "id": command["id"]})
                    if not name.startswith("slow"):
                        event = {"event": "X", "timestamp": {}}
                        client.sendall(b"".join(map(encode, [event, *held])))
                        held.clear()

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        thread.join()


def test_a_late_answer_is_not_the_next_ones(qmp):
    with QmpGuest(qmp, timeout_s=0.1) as guest:
        for name in ("slow-a", "slow-b"):
            with pytest.raises(CheckpointTimeout):
                guest.execute(name)
        guest.timeout_s = 30.0
        assert guest.execute("query-status") == {"of": "query-status"}
        assert guest.execute("cont") == {"of": "cont"}
        assert not guest._owed


def test_events_without_end_are_no_answer(tmp_path):
    path = tmp_path / "qmp"
    ended = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):
                client.sendall(encode(GREETING) + encode({"return": {}, "id": 1}))
                while not ended.wait(0.01):
                    client.sendall(encode({"event": "X"}))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                QmpGuest(path, timeout_s=0.3) as guest,
                pytest.raises(CheckpointTimeout),
            ):
                guest.suspend()
        finally:
            ended.set()
            thread.join()


def test_a_command_that_was_taken_in_part_is_finished_first(qmp):
    """Else the next one would be the end of it, and neither would be done."""
    with QmpGuest(qmp, timeout_s=30) as guest:
        number = guest._number + 1
        whole = json.dumps({"execute": "stop", "id": number}).encode() + b"\n"
        guest._socket.sendall(whole[:10])
        guest._output += whole[10:]
        guest._number, guest._owed = number, {number}
        assert guest.execute("cont") == {"of": "cont"}


def test_nobody_there(tmp_path):
    with pytest.raises(StateError, match="start QEMU with"):
        QmpGuest(tmp_path / "nothing")
