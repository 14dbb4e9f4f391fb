# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control socket: how one process asks another that serves a resource.

``remus-native backup`` and ``primary`` listen on ``STATE/control.sock``
(0600; the peer must be root or the same user).  One line is one JSON object::

    {"request": "promote", "checkpoint": 812}
    {"ok": true, "result": {"checkpoint": 812, "tag": "790", ...}}
    {"ok": false, "error": "backup of guest0: ...", "kind": "StateError",
     "errno": 22}

Requests are answered in order; the other keys of a request are arguments of
the handler.  `ControlServer` answers quick requests (``status``) in its one
thread.  Requests that may block for a disk go to the thread that owns the
resource: it waits for `ControlServer.fileno` and calls `run_pending`, so that
``status`` is answered while a promote is under way.  Such a request is
dropped if its client has gone before it was begun; one that was begun is
carried out.  The backup takes ``status``, ``checkpoints``, ``refusals``,
``target`` (where a promote would go to), ``promote``, ``commit`` and ``stop``
(end as on SIGTERM), the primary ``status``, ``resume``, ``verify``,
``verified``, ``verify_cancel`` and ``stop``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import errors
from ._resource_disks import CONTROL_SOCKET
from .errors import CheckpointTimeout, RemusError, StateError

__all__ = ["ControlServer", "NotRunning", "call", "is_running"]

LINE_MAX = 1 << 16  # bytes of a request
CLIENTS_MAX = 32
PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid

Handler = Callable[..., Any]


class NotRunning(RemusError, ConnectionError):
    """No process serves this side of the resource here."""


@dataclass(eq=False)
class _Client:
    """One connection of the server; touched by its thread only."""

    sock: socket.socket
    input: bytes = b""
    output: bytes = b""
    busy: bool = False  # a deferred request is under way
    closing: bool = False


@dataclass(frozen=True)
class _Job:
    """A request that the owner's thread carries out."""

    client: _Client
    handler: Handler
    arguments: dict[str, Any] = field(default_factory=dict)


class ControlServer:
    """Answers requests on ``state_dir/control.sock``.

    ``quick`` are handlers that never block and may run in the server's
    thread at any moment; ``deferred`` run where `run_pending` is called.
    A handler gets the request's arguments by name and returns what JSON can
    say; a `RemusError` that it raises is raised again in the client.

    Whoever opens it must hold the lock of the state directory: a socket file
    that is there is taken for a dead process's and replaced.
    """

    def __init__(
        self,
        state_dir: str,
        *,
        quick: Mapping[str, Handler],
        deferred: Mapping[str, Handler] | None = None,
    ) -> None:
        self._quick = dict(quick)
        self._deferred = dict(deferred or {})
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[_Client, bytes]] = queue.SimpleQueue()
        self._stop = False
        self._dir = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._owner, self._to_owner = socket.socketpair()
        self._wake, self._to_thread = socket.socketpair()
        for end in (self._owner, self._to_owner, self._wake, self._to_thread):
            end.setblocking(False)
        try:
            self._listener = self._listen(state_dir)
        except BaseException:
            self._close_all()
            raise
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._clients: set[_Client] = set()
        self._thread = threading.Thread(
            target=self._run, name="remus-control", daemon=True
        )
        self._thread.start()

    def _listen(self, state_dir: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(CONTROL_SOCKET, dir_fd=self._dir)
            os.fchmod(listener.fileno(), 0o600)  # the mode that bind gives it
            listener.bind(_path_of(self._dir))
            listener.listen(CLIENTS_MAX)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise StateError(
                f"control socket {state_dir}/{CONTROL_SOCKET}: "
                f"{error.strerror or error}",
                errno=error.errno,
            ) from error
        return listener

    def __enter__(self) -> ControlServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Readable when `run_pending` has something to do."""
        return self._owner.fileno()

    def run_pending(self) -> None:
        """Carry out the deferred requests that wait, in this thread."""
        _drain(self._owner)
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            # Nobody waits for it any more: it must not be done behind the
            # back of who gave it up.
            if _gone(job.client.sock):
                self._answers.put((job.client, b""))
                _poke(self._to_thread)
                continue
            answer = _answer(job.handler, job.arguments)
            self._answers.put((job.client, answer))
            _poke(self._to_thread)

    def close(self) -> None:
        """Send the answers that are ready, stop, remove the socket file.

        Deferred requests that nobody ran are answered with an error.
        Idempotent.
        """
        if self._stop:
            return
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            error = StateError("the process is stopping", errno=errno.ESHUTDOWN)
            self._answers.put((job.client, _line(_error_object(error))))
        self._stop = True
        _poke(self._to_thread)
        self._thread.join()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(CONTROL_SOCKET, dir_fd=self._dir)
        self._close_all()

    def _close_all(self) -> None:
        for end in (self._owner, self._to_owner, self._wake, self._to_thread):
            end.close()
        os.close(self._dir)

    # -- the server's thread ------------------------------------------------

    def _run(self) -> None:
        while not self._stop:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wake:
                    _drain(self._wake)
                else:
                    self._serve(key.data)
            self._take_answers()
        self._take_answers()
        for client in list(self._clients):
            self._drop(client)
        self._selector.close()
        self._listener.close()

    def _take_answers(self) -> None:
        while True:
            try:
                client, answer = self._answers.get_nowait()
            except queue.Empty:
                return
            client.busy = False
            if client in self._clients:
                client.output += answer
                self._next_lines(client)
                self._send(client)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        client = _Client(sock)
        self._clients.add(client)
        self._selector.register(sock, selectors.EVENT_READ, client)
        _pid, uid, _gid = PEER.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
        )
        refused = None
        if uid not in (0, os.geteuid()):
            refused = f"your uid is {uid}; allowed are 0 and {os.geteuid()}"
        elif len(self._clients) > CLIENTS_MAX:
            refused = f"more than {CLIENTS_MAX} connections"
        if refused:
            error = StateError(f"control socket: {refused}", errno=errno.EPERM)
            client.output = _line(_error_object(error))
            client.closing = True
            self._send(client)

    def _serve(self, client: _Client) -> None:
        try:
            data = client.sock.recv(LINE_MAX)
        except BlockingIOError:
            data = None
        except OSError:
            data = b""
        if data == b"":
            self._drop(client)
            return
        if data and not client.closing:
            client.input += data
            self._next_lines(client)
        self._send(client)

    def _next_lines(self, client: _Client) -> None:
        """Answer whole lines, until one has to wait for the owner."""
        while not client.busy and not client.closing and b"\n" in client.input:
            line, client.input = client.input.split(b"\n", 1)
            self._request(client, line)
        if len(client.input) > LINE_MAX:
            error = StateError(f"request of more than {LINE_MAX} bytes")
            client.output += _line(_error_object(error))
            client.closing = True

    def _request(self, client: _Client, line: bytes) -> None:
        try:
            request = json.loads(line)
            name = request.pop("request")
        except (ValueError, KeyError, AttributeError, TypeError):
            error = StateError('expected one line {"request": NAME, ...}')
            client.output += _line(_error_object(error))
            return
        if name in self._deferred:
            client.busy = True
            self._jobs.put(_Job(client, self._deferred[name], request))
            _poke(self._to_owner)
        elif name in self._quick:
            client.output += _answer(self._quick[name], request)
        else:
            known = ", ".join(sorted({*self._quick, *self._deferred}))
            error = StateError(f"unknown request {name!r}; there are {known}")
            client.output += _line(_error_object(error))

    def _send(self, client: _Client) -> None:
        if client not in self._clients:
            return
        try:
            while client.output:
                sent = client.sock.send(client.output)
                client.output = client.output[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        if client.closing and not client.output:
            self._drop(client)
            return
        events = selectors.EVENT_READ
        if client.output:
            events |= selectors.EVENT_WRITE
        self._selector.modify(client.sock, events, client)

    def _drop(self, client: _Client) -> None:
        self._clients.discard(client)
        self._selector.unregister(client.sock)
        client.sock.close()


# ---- the client --------------------------------------------------------------


def call(
    state_dir: str, request: str, *, timeout_s: float | None = 10.0, **arguments: Any
) -> Any:
    """Ask the process that serves ``state_dir`` and return its result.

    Raises `NotRunning` if there is none, `CheckpointTimeout` if it does not
    answer in time, or what its handler raised.
    """
    with _connect(state_dir, timeout_s) as sock:
        try:
            sock.sendall(_line({"request": request, **arguments}))
            with sock.makefile("rb") as lines:
                line = lines.readline()
        except TimeoutError as error:
            raise CheckpointTimeout(
                f"{state_dir}: {request}: no answer in {timeout_s} s",
                errno=errno.ETIMEDOUT,
            ) from error
        except OSError as error:
            raise _not_running(state_dir, str(error.strerror or error)) from error
    if not line:
        raise _not_running(state_dir, f"it ended before it answered {request}")
    answer = json.loads(line)
    if answer["ok"]:
        return answer["result"]
    raise _class_of(answer["kind"])(answer["error"], errno=answer["errno"])


def is_running(state_dir: str) -> bool:
    """Whether a process listens on the control socket of ``state_dir``."""
    try:
        _connect(state_dir, 10.0).close()
    except NotRunning:
        return False
    return True


def _connect(state_dir: str, timeout_s: float | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    try:
        directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(_path_of(directory))
        finally:
            os.close(directory)
    except OSError as error:
        sock.close()
        if error.errno in (errno.EACCES, errno.EPERM):
            raise StateError(
                f"{state_dir}/{CONTROL_SOCKET}: {error.strerror}: run as root or "
                "as the user of that process",
                errno=error.errno,
            ) from error
        raise _not_running(state_dir, str(error.strerror or error)) from error
    return sock


def _not_running(state_dir: str, why: str) -> NotRunning:
    return NotRunning(
        f"no process answers on {state_dir}/{CONTROL_SOCKET}: {why}",
        errno=errno.ECONNREFUSED,
    )


def _path_of(directory: int) -> str:
    # A socket's path has 107 bytes at most, a state directory's may have more.
    return f"/proc/self/fd/{directory}/{CONTROL_SOCKET}"


# ---- lines ------------------------------------------------------------------


def _line(answer: Mapping[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def _error_object(error: Exception) -> dict[str, Any]:
    kind = _class_of(type(error).__name__).__name__
    number = getattr(error, "errno", None)
    return {"ok": False, "error": str(error), "kind": kind, "errno": number}


def _class_of(kind: str) -> type[RemusError]:
    """The error class of that name, if it can be made of one text."""
    cls = getattr(errors, kind, None)
    if not isinstance(cls, type) or not issubclass(cls, RemusError):
        return StateError
    return StateError if cls is errors.DeviceErrors else cls


def _answer(handler: Handler, arguments: Mapping[str, Any]) -> bytes:
    try:
        return _line({"ok": True, "result": handler(**arguments)})
    except Exception as error:
        # TypeError: arguments that the handler does not have.
        return _line(_error_object(error))


def _gone(sock: socket.socket) -> bool:
    """Whether the client has closed its end, or we ours."""
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _poke(end: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):  # full of pokes: it will look
        end.send(b"\0")


def _drain(end: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while end.recv(4096):
            pass
