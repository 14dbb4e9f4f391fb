# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asking a process that serves a resource."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import time
from typing import Any

from .._text import printable, shortened
from ..errors import CheckpointTimeout, RemusError, StateError
from ._lines import CONTROL_SOCKET, class_of, line_of, path_of

__all__ = ["NotRunning", "call", "is_running"]

ANSWER_MAX = 1 << 26  # bytes of an answer


class NotRunning(RemusError, ConnectionError):
    """No process serves this side of the resource here."""


def call(
    state_dir: str, request: str, *, timeout_s: float | None = 10.0, **arguments: Any
) -> Any:
    """Ask the process that serves ``state_dir`` and return its result.

    Raises `NotRunning` if there is none, `CheckpointTimeout` if it does not
    answer in time, or what its handler raised.
    """
    end = None if timeout_s is None else time.monotonic() + timeout_s
    with _connect(state_dir, timeout_s) as sock:
        try:
            sock.sendall(line_of({"request": request, **arguments}))
            line = _read_line(sock, end)
        except TimeoutError as error:
            raise CheckpointTimeout(
                f"{state_dir}: {request}: no answer in {timeout_s} s",
                errno=errno.ETIMEDOUT,
            ) from error
        except OSError as error:
            raise _not_running(state_dir, str(error.strerror or error)) from error
    if not line:
        raise _not_running(state_dir, f"it ended before it answered {request}")
    try:
        answer = json.loads(line)
        if answer["ok"]:
            return answer["result"]
        kind, text, number = answer["kind"], answer["error"], answer["errno"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise StateError(
            f"{state_dir}/{CONTROL_SOCKET}: {request}: the process that listens "
            f"there is not remus-native: it answered {shortened(line)}",
            errno=errno.EPROTO,
        ) from error
    number = number if isinstance(number, int) else None
    raise class_of(kind)(printable(text), errno=number)


def _read_line(sock: socket.socket, end: float | None) -> bytes:
    """One line, of a bounded length, before ``end``; b"" if there is none."""
    data = bytearray()
    while not data.endswith(b"\n") and len(data) <= ANSWER_MAX:
        if end is not None:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
        more = sock.recv(1 << 16)
        if not more:
            return b""
        data += more
    return bytes(data)


def is_running(state_dir: str) -> bool:
    """Whether a process listens on the control socket of ``state_dir``."""
    try:
        _connect(state_dir, 10.0).close()
    except NotRunning:
        return False
    except CheckpointTimeout:
        return True  # it listens, and takes nobody
    return True


def _connect(state_dir: str, timeout_s: float | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    try:
        directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _connect_in_time(sock, path_of(directory), timeout_s)
        finally:
            os.close(directory)
    except OSError as error:
        sock.close()
        if isinstance(error, TimeoutError):
            raise CheckpointTimeout(
                f"{state_dir}/{CONTROL_SOCKET}: the process that listens there took "
                f"no connection in {timeout_s} s: is it stopped?",
                errno=errno.ETIMEDOUT,
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise StateError(
                f"{state_dir}/{CONTROL_SOCKET}: {error.strerror}: run as root or "
                "as the user of that process",
                errno=error.errno,
            ) from error
        raise _not_running(state_dir, str(error.strerror or error)) from error
    return sock


def _connect_in_time(sock: socket.socket, path: str, timeout_s: float | None) -> None:
    """A listener whose queue is full is asked again: it is there all the same."""
    end = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
    while True:
        try:
            sock.connect(path)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError from None
            time.sleep(0.01)


def _not_running(state_dir: str, why: str) -> NotRunning:
    return NotRunning(
        f"no process answers on {state_dir}/{CONTROL_SOCKET}: {why}",
        errno=errno.ECONNREFUSED,
    )
