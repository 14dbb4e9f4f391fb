# SPDX-License-Identifier: LGPL-2.1-or-later
"""Answering requests, whatever comes: see the package's words."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .._text import shortened
from ..errors import StateError
from ._client import call
from ._lines import CONTROL_SOCKET, error_object, line_of, parse, path_of

__all__ = ["ControlServer"]

LINE_MAX = 1 << 16  # bytes of a request
OUTPUT_MAX = 1 << 20  # bytes of answers that wait for who does not read them
CLIENTS_MAX = 32
BUSY_MAX = 24  # with requests for the owner: the others are for `status`
LINE_S = 10.0  # for a request to arrive whole, and for answers to be taken
IDLE_S = 60.0  # between requests
AGAIN_S = 1.0  # from a connection that could not be taken to the next try
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid

Handler = Callable[..., Any]


@dataclass(eq=False)
class _Client:
    """One connection of the server; touched by its thread only."""

    sock: socket.socket
    pid: int
    uid: int
    input: bytearray = field(default_factory=bytearray)
    output: bytearray = field(default_factory=bytearray)
    busy: bool = False  # a deferred request is under way
    closing: bool = False  # once the output is sent
    since: float = field(default_factory=time.monotonic)  # its last progress

    @property
    def limit_s(self) -> float:
        """How long it may make no progress."""
        return LINE_S if self.input or self.output else IDLE_S


@dataclass(frozen=True)
class _Job:
    """A request that the owner's thread carries out."""

    client: _Client
    name: str
    handler: Handler
    arguments: dict[str, Any] = field(default_factory=dict)


class ControlServer:
    """Answers requests on ``state_dir/control.sock``.

    ``quick`` are handlers that never block and may run in the server's
    thread at any moment; ``deferred`` run where `run_pending` is called.
    A handler gets the request's arguments by name and returns what JSON can
    say; a `RemusError` that it raises is raised again in the client.

    ``heard`` is told of each request before its handler runs, in the same
    thread: its name, and process and user of who asks.

    Whoever opens it must hold the lock of the state directory: a socket file
    that is there is taken for a dead process's and replaced.
    """

    def __init__(
        self,
        state_dir: str,
        *,
        quick: Mapping[str, Handler],
        deferred: Mapping[str, Handler] | None = None,
        heard: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._heard = heard
        self._state_dir = state_dir
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
        self._accepts_at = 0.0  # when the listener is watched again; 0: it is
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
            listener.bind(path_of(self._dir))
            listener.listen(4 * CLIENTS_MAX)
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

    def ask_itself(self, timeout_s: float) -> None:
        """Raises if ``status`` is not answered in time; blocks so long at most."""
        call(self._state_dir, "status", timeout_s=timeout_s)

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
                _wake_up(self._to_thread)
                continue
            self._tell(job.name, job.client)
            answer = _answer(job.handler, job.arguments)
            self._answers.put((job.client, answer))
            _wake_up(self._to_thread)

    def _tell(self, name: str, client: _Client) -> None:
        if self._heard is not None:
            with contextlib.suppress(Exception):  # no reason not to answer
                self._heard(name, client.pid, client.uid)

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
            self._answers.put((job.client, line_of(error_object(error))))
        self._stop = True
        _wake_up(self._to_thread)
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
            try:
                self._step()
            except Exception:
                # Whatever it was, who asks next must find somebody here.
                time.sleep(0.05)
        self._take_answers()
        for client in list(self._clients):
            self._drop(client)
        self._selector.close()
        self._listener.close()

    def _step(self) -> None:
        waits = bool(self._clients) or self._accepts_at > 0
        for key, _ in self._selector.select(1.0 if waits else None):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._wake:
                _drain(self._wake)
            else:
                self._guard(key.data, self._serve)
        self._take_answers()
        self._expire()

    def _guard(self, client: _Client, step: Callable[[_Client], None]) -> None:
        """One step for one client; what goes wrong in it ends that one."""
        try:
            step(client)
        except Exception:
            with contextlib.suppress(Exception):
                self._drop(client)

    def _take_answers(self) -> None:
        while True:
            try:
                client, answer = self._answers.get_nowait()
            except queue.Empty:
                return
            client.busy = False
            client.since = time.monotonic()
            client.output += answer
            if client in self._clients:
                self._guard(client, self._go_on)

    def _expire(self) -> None:
        """Drop who made no progress for too long; accept again after a pause."""
        now = time.monotonic()
        for client in list(self._clients):
            if not client.busy and now - client.since > client.limit_s:
                self._drop(client)
        if 0 < self._accepts_at <= now:
            self._accepts_at = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in NO_ROOM and not self._make_room():
                # It would be readable again at once, for ever.
                self._selector.unregister(self._listener)
                self._accepts_at = time.monotonic() + AGAIN_S
            return
        peer = PEER.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
        )
        client = _Client(sock, pid=peer[0], uid=peer[1])
        try:
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, client)
        except Exception:
            sock.close()
            return
        room = len(self._clients) < CLIENTS_MAX or self._make_room()
        self._clients.add(client)
        uid = client.uid
        if uid not in (0, os.geteuid()):
            self._refuse(
                client,
                f"control socket: your uid is {uid}; allowed are 0 and {os.geteuid()}",
            )
        elif not room:
            self._refuse(
                client,
                f"control socket: {CLIENTS_MAX} requests are under way: ask again "
                "when one of them has its answer",
            )

    def _make_room(self) -> bool:
        """Close the connection that has been silent for longest."""
        idle = [client for client in self._clients if not client.busy]
        if idle:
            self._drop(min(idle, key=lambda client: client.since))
        return bool(idle)

    def _refuse(self, client: _Client, why: str) -> None:
        client.output += line_of(error_object(StateError(why, errno=errno.EPERM)))
        client.closing = True
        self._guard(client, self._send)

    def _serve(self, client: _Client) -> None:
        if len(client.input) <= LINE_MAX:
            try:
                data = client.sock.recv(LINE_MAX)
                if not data:
                    self._drop(client)
                    return
                if not client.input:
                    client.since = time.monotonic()  # of a request's first byte
                if not client.closing:
                    client.input += data
            except BlockingIOError:
                pass  # it is here to be written to
        self._go_on(client)

    def _go_on(self, client: _Client) -> None:
        """Answer whole lines, until one has to wait for the owner or for room."""
        while not client.closing and not client.busy:
            self._send(client)
            if client not in self._clients or len(client.output) > OUTPUT_MAX:
                return
            end = client.input.find(b"\n", 0, LINE_MAX + 1)
            if end < 0:
                break
            line = bytes(client.input[:end])
            del client.input[: end + 1]
            client.since = time.monotonic()
            self._request(client, line)
        if len(client.input) > LINE_MAX and not client.busy:
            error = StateError(f"request of more than {LINE_MAX} bytes")
            client.output += line_of(error_object(error))
            client.closing = True
        self._send(client)

    def _request(self, client: _Client, line: bytes) -> None:
        try:
            name, arguments = parse(line)
        except StateError as error:
            client.output += line_of(error_object(error))
            return
        known = ", ".join(sorted({*self._quick, *self._deferred}))
        busy = sum(one.busy for one in self._clients)
        if name in self._deferred and busy < BUSY_MAX:
            client.busy = True
            self._jobs.put(_Job(client, name, self._deferred[name], arguments))
            _wake_up(self._to_owner)
        elif name in self._quick:
            self._tell(name, client)
            client.output += _answer(self._quick[name], arguments)
        else:
            why = f"unknown request {shortened(name)!r}; there are {known}"
            if name in self._deferred:
                why = f"{busy} requests wait for the one under way: ask again later"
            client.output += line_of(error_object(StateError(why)))

    def _send(self, client: _Client) -> None:
        """What it takes; then wait for what it may do next."""
        if client not in self._clients:
            return
        try:
            while client.output:
                sent = client.sock.send(client.output)
                del client.output[:sent]
                client.since = time.monotonic()
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        if client.closing and not client.output:
            self._drop(client)
            return
        events = selectors.EVENT_WRITE if client.output else 0
        # A line that is too long, or ones that nobody may answer yet, wait in
        # the socket, where they cost their sender.
        if len(client.output) <= OUTPUT_MAX and len(client.input) <= LINE_MAX:
            events |= selectors.EVENT_READ
        self._watch(client, events)

    def _watch(self, client: _Client, events: int) -> None:
        watched = client.sock in self._selector.get_map()
        if events and watched:
            self._selector.modify(client.sock, events, client)
        elif events:
            self._selector.register(client.sock, events, client)
        elif watched:
            self._selector.unregister(client.sock)

    def _drop(self, client: _Client) -> None:
        self._clients.discard(client)
        self._watch(client, 0)
        client.sock.close()


def _answer(handler: Handler, arguments: Mapping[str, Any]) -> bytes:
    try:
        return line_of({"ok": True, "result": handler(**arguments)})
    except Exception as error:
        # TypeError: arguments that the handler does not have.
        return line_of(error_object(error))


def _gone(sock: socket.socket) -> bool:
    """Whether the client has closed its end, or we ours."""
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _wake_up(end: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):  # full: it wakes in any case
        end.send(b"\0")


def _drain(end: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while end.recv(4096):
            pass
