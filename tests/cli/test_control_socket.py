# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control socket: requests, errors, order, what waits when it closes."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from remus_native import (
    CheckpointTimeout,
    ReplicationLost,
    StateError,
)
from remus_native.control import ControlServer, NotRunning, call, is_running
from support.waiting import DEADLINE_S, wait_for

# ---- the control socket ---------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., ControlServer]]:
    with ExitStack() as stack:

        def make(**handlers: Any) -> ControlServer:
            made = ControlServer(str(tmp_path), **handlers)
            stack.callback(made.close)
            return made

        yield make


def test_control_answers(tmp_path: Path, server: Callable[..., ControlServer]) -> None:
    server(quick={"echo": lambda **words: words})
    mode = (tmp_path / "control.sock").stat().st_mode
    assert mode & 0o777 == 0o600
    assert call(str(tmp_path), "echo", a=1, b="ä") == {"a": 1, "b": "ä"}
    assert is_running(str(tmp_path))


def test_control_raises_what_the_handler_raised(
    tmp_path: Path, server: Callable[..., ControlServer]
) -> None:
    def lost() -> None:
        raise ReplicationLost("gone", errno=71)

    def broken() -> None:
        raise ZeroDivisionError("by zero")

    server(quick={"lost": lost, "broken": broken})
    with pytest.raises(ReplicationLost, match="gone") as caught:
        call(str(tmp_path), "lost")
    assert caught.value.errno == 71
    with pytest.raises(StateError, match="by zero"):
        call(str(tmp_path), "broken")
    with pytest.raises(StateError, match="unexpected keyword"):
        call(str(tmp_path), "lost", extra=1)
    with pytest.raises(StateError, match="unknown request 'x'; there are broken, l"):
        call(str(tmp_path), "x")


def test_control_defers_to_its_owner(
    tmp_path: Path, server: Callable[..., ControlServer]
) -> None:
    threads: list[int] = []

    def slow(value: int) -> int:
        threads.append(threading.get_ident())
        # The quick one is answered while this one runs.
        assert call(str(tmp_path), "status") == "fine"
        return value * 2

    made = server(quick={"status": lambda: "fine"}, deferred={"slow": slow})
    results: list[int] = []
    client = threading.Thread(
        target=lambda: results.append(call(str(tmp_path), "slow", value=21))
    )
    client.start()

    def run() -> bool:
        made.run_pending()
        return bool(results)

    wait_for("answer", run)
    client.join()
    assert results == [42] and threads == [threading.get_ident()]


def test_control_keeps_the_order_of_one_client(
    tmp_path: Path, server: Callable[..., ControlServer]
) -> None:
    made = server(quick={"a": lambda: "a"}, deferred={"b": lambda: "b"})
    with connect(tmp_path) as client:
        client.sendall(b'{"request": "b"}\n{"request": "a"}\n{"request": "a"}\n')
        client.setblocking(False)
        received = b""

        def run() -> bool:
            nonlocal received
            made.run_pending()
            with contextlib.suppress(BlockingIOError):
                received += client.recv(4096)
            return received.count(b"\n") == 3

        wait_for("three answers", run)
    answers = [json.loads(line)["result"] for line in received.splitlines()]
    assert answers == ["b", "a", "a"]


def connect(folder: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE_S)
    client.connect(f"{folder}/control.sock")
    return client


@pytest.mark.parametrize("line", [b"x", b"[]", b"3", b'{"a": 1}', b"\xff"])
def test_control_survives_nonsense(
    tmp_path: Path, server: Callable[..., ControlServer], line: bytes
) -> None:
    server(quick={"a": lambda: "a"})
    with connect(tmp_path) as client:
        client.sendall(line + b"\n")
        answer = json.loads(client.recv(4096))
    assert answer["ok"] is False and "expected one line" in answer["error"]
    assert call(str(tmp_path), "a") == "a"


def test_control_bounds_a_request(
    tmp_path: Path, server: Callable[..., ControlServer]
) -> None:
    server(quick={"a": lambda: "a"})
    with connect(tmp_path) as client:
        with contextlib.suppress(OSError):
            client.sendall(b"x" * (1 << 18))
        with contextlib.suppress(ConnectionError):
            assert b"more than" in client.recv(4096)
    assert call(str(tmp_path), "a") == "a"


def test_control_answers_what_waits_when_it_closes(
    tmp_path: Path, server: Callable[..., ControlServer]
) -> None:
    made = server(quick={}, deferred={"b": lambda: "b"})
    with connect(tmp_path) as client:
        client.sendall(b'{"request": "b"}\n')
        wait_for("request", lambda: made._jobs.qsize())
        made.close()
        assert b"is stopping" in client.recv(4096)
    with pytest.raises(NotRunning, match="no process answers"):
        call(str(tmp_path), "b")


def test_control_replaces_a_dead_socket(
    tmp_path: Path, server: Callable[..., ControlServer]
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/control.sock")
    assert not is_running(str(tmp_path))
    server(quick={"a": lambda: "a"})
    assert call(str(tmp_path), "a") == "a"


def test_control_in_a_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with ControlServer(str(folder), quick={"a": lambda: "a"}):
        assert call(str(folder), "a") == "a"
    assert not list(folder.iterdir())


def test_control_times_out(
    tmp_path: Path, server: Callable[..., ControlServer]
) -> None:
    server(quick={}, deferred={"b": lambda: "b"})
    with pytest.raises(CheckpointTimeout, match=r"no answer in 0\.05 s"):
        call(str(tmp_path), "b", timeout_s=0.05)
