# SPDX-License-Identifier: LGPL-2.1-or-later
"""A hostile or broken client of the control socket costs its own connection."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remus_native import CheckpointTimeout, StateError
from remus_native.control import ControlServer, NotRunning, _server, call
from remus_native.control._server import BUSY_MAX, CLIENTS_MAX, LINE_MAX
from support.waiting import DEADLINE_S, wait_for

STATUS = b'{"request": "status"}\n'


def connect(folder: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(f"{folder}/control.sock")  # waits where a queue is full
    client.settimeout(DEADLINE_S)
    return client


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """A folder that is served by a thread of its own, as an owner does."""
    done = threading.Event()

    def echo(value: object = None) -> object:
        return value

    with ControlServer(
        str(tmp_path), quick={"status": lambda: "fine"}, deferred={"echo": echo}
    ) as server:

        def own() -> None:
            while not done.is_set():
                select.select([server], [], [], 0.05)
                server.run_pending()

        owner = threading.Thread(target=own)
        owner.start()
        yield tmp_path
        assert server._thread.is_alive()
        assert call(str(tmp_path), "status", timeout_s=DEADLINE_S) == "fine"
        done.set()
        owner.join()


def answers(client: socket.socket, count: int) -> list[dict[str, Any]]:
    received = b""
    while received.count(b"\n") < count:
        data = client.recv(1 << 16)
        if not data:
            break
        received += data
    return [json.loads(line) for line in received.splitlines()]


MALFORMED = [
    b'{"request": []}',
    b'{"request": {}}',
    b'{"request": null}',
    b'{"request": 3}',
    b"[" * 60_000,
    b'{"request": ' * 5000,
    b'{"request": "status", "x": ' + b"[" * 30_000,
    b'{"request": "status", "x": []}',
    b'{"request": "status", "x": {"y": 1}}',
    b'{"request": "echo", "value": ' + b"9" * 5000 + b"}",
    b'{"request": "echo", "value": ' + b"9" * 30 + b"}",
    b'{"request": "echo", "value": 1e999}',
    b'{"request": "echo", "value": NaN}',
    b'{"request": "echo", "value": "' + b"x" * 5000 + b'"}',
    b"\x00" * 100,
    b"\xff\xfe",
    b'"\\ud800"',
    b"",
]


@pytest.mark.parametrize("line", MALFORMED, ids=lambda line: repr(line[:30]))
def test_a_malformed_line_is_answered_with_an_error(served, line):
    with connect(served) as client:
        client.sendall(line + b"\n" + STATUS)
        first, second = answers(client, 2)
    assert first["ok"] is False and 'expected one line {"request"' in first["error"]
    assert second == {"ok": True, "result": "fine"}


@pytest.mark.parametrize(
    "line",
    [
        b'{"request": "echo", "self": 1}',
        b'{"request": "echo", "value": "\\ud800"}',
        b'{"request": "status", "value": 1}',
        b'{"request": "\\u001b[2J\\n"}',
        b'{"request": "__init__"}',
    ],
)
def test_an_odd_request_is_answered(served, line):
    with connect(served) as client:
        client.sendall(line + b"\n")
        (answer,) = answers(client, 1)
    assert set(answer) in ({"ok", "result"}, {"ok", "error", "kind", "errno"})
    assert "\x1b" not in json.dumps(answer, ensure_ascii=False)


def test_a_line_without_an_end_costs_its_connection(served):
    with connect(served) as client:
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 100 * LINE_MAX:
                sent += client.send(b"x" * LINE_MAX)
        with contextlib.suppress(ConnectionError):
            assert b"request of more than" in client.recv(4096)
    assert sent < 50 * LINE_MAX


def test_a_line_that_trickles_costs_its_connection(served, monkeypatch):
    monkeypatch.setattr(_server, "LINE_S", 0.2)
    with connect(served) as client:
        gone = False
        end = time.monotonic() + DEADLINE_S
        while not gone and time.monotonic() < end:
            try:
                client.sendall(b"x")
                time.sleep(0.05)
            except OSError:
                gone = True
    assert gone


def test_who_says_nothing_is_closed(served, monkeypatch):
    monkeypatch.setattr(_server, "IDLE_S", 0.2)
    with connect(served) as client:
        assert client.recv(1) == b""


def test_who_does_not_read_is_not_read_from(served):
    """Its answers must not fill the memory of who serves a disk."""
    with connect(served) as client:
        client.settimeout(1.0)
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 1 << 24:
                sent += client.send(STATUS * 1000)
        assert sent < 1 << 22
        assert call(str(served), "status") == "fine"


def test_a_thousand_idle_connections_keep_nobody_out(served):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for i in range(1000):
            stack.enter_context(connect(served))
            if i % 100 == 0:
                assert call(str(served), "status") == "fine"
        assert call(str(served), "status") == "fine"
        assert call(str(served), "echo", value=3) == 3


def test_requests_that_wait_leave_room_for_status(tmp_path):
    with (
        ControlServer(
            str(tmp_path), quick={"status": lambda: "fine"}, deferred={"b": lambda: 1}
        ) as server,
        contextlib.ExitStack() as stack,
    ):
        clients = []
        for _ in range(CLIENTS_MAX + 10):
            client = stack.enter_context(connect(tmp_path))
            with contextlib.suppress(OSError):
                client.sendall(b'{"request": "b"}\n')
            clients.append(client)
        wait_for("requests", lambda: server._jobs.qsize() == BUSY_MAX)
        assert call(str(tmp_path), "status") == "fine"
        server.run_pending()
        assert answers(clients[0], 1) == [{"ok": True, "result": 1}]


@pytest.mark.alone
def test_no_descriptor_left_is_a_pause(tmp_path):
    """In a process of its own: it has no descriptor left for a while."""
    code = f"""
import os, resource, sys, time
from remus_native.control import ControlServer
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
with ControlServer({str(tmp_path)!r}, quick={{"status": lambda: "fine"}}):
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    print("full", flush=True)
    sys.stdin.readline()
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.25, "it spins"
    for fd in taken:
        os.close(fd)
    print("free", flush=True)
    sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "full\n"
        with connect(tmp_path) as client:
            client.sendall(STATUS)
            process.stdin.write("go\n")
            process.stdin.flush()
            assert process.stdout.readline() == "free\n"
            assert answers(client, 1) == [{"ok": True, "result": "fine"}]
        process.stdin.write("end\n")
    assert process.returncode == 0


def test_a_step_that_fails_ends_one_client(served, monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with connect(served) as client:
        client.sendall(STATUS)
        assert answers(client, 1)
        with monkeypatch.context() as patch:
            patch.setattr(ControlServer, "_request", broken)
            client.sendall(STATUS)
            assert client.recv(4096) == b""
    assert call(str(served), "status") == "fine"


def test_a_process_that_takes_nobody_is_running(tmp_path):
    """A stopped process, with a full queue: not one that does not run."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(f"{tmp_path}/control.sock")
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(f"{tmp_path}/control.sock")
        with pytest.raises(CheckpointTimeout, match="is it stopped"):
            call(str(tmp_path), "status", timeout_s=0.1)


# ---- fuzz ----------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
NAMES = st.sampled_from(["status", "echo", "stop", "promote"]) | VALUES
REQUESTS = st.builds(
    lambda name, more: json.dumps({**more, "request": name}).encode(),
    NAMES,
    st.dictionaries(st.sampled_from(["value", "self", "x"]) | st.text(), VALUES),
)
LINES = REQUESTS | st.binary(max_size=200) | st.builds(bytes.upper, REQUESTS)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(LINES, max_size=8), st.integers(1, 64), st.booleans())
def test_whatever_is_sent_the_next_one_is_answered(served, lines, piece, reads):
    data = b"".join(line + b"\n" for line in lines)
    with connect(served) as client:
        for at in range(0, len(data), max(piece, len(data) // 50)):
            client.sendall(data[at : at + max(piece, len(data) // 50)])
        if reads:
            expected = data.count(b"\n")
            assert len(answers(client, expected)) == expected
    assert call(str(served), "status") == "fine"


# ---- the client ------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"[" * 5000 + b"\n",
        b"SSH-2.0-nonsense\n",
        b"{}\n",
        b"[]\n",
        b'{"ok": false}\n',
        b'{"ok": false, "kind": [], "error": "\\u001b[2J", "errno": "x"}\n',
        b"\xff\n",
        b"9" * 5000 + b"\n",
    ],
)
def test_a_server_that_is_none_of_ours_is_an_error(tmp_path, answer):
    path = f"{tmp_path}/control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(StateError) as caught:
            call(str(tmp_path), "status")
        thread.join()
    assert str(caught.value).isprintable()


def test_an_answer_that_trickles_ends_in_time(tmp_path):
    ended = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/control.sock")
        listener.listen(1)

        def serve() -> None:
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):
                while not ended.is_set():
                    client.sendall(b" ")
                    ended.wait(0.02)

        thread = threading.Thread(target=serve)
        thread.start()
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            call(str(tmp_path), "status", timeout_s=0.3)
        assert time.monotonic() - start < 10
        ended.set()
        thread.join()


@pytest.mark.parametrize("kind", ["fifo", "file", "missing"])
def test_what_is_no_socket_is_not_running(tmp_path, kind):
    path = tmp_path / "control.sock"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "file":
        path.touch()
    with pytest.raises(NotRunning):
        call(str(tmp_path), "status")
