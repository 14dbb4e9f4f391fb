# SPDX-License-Identifier: LGPL-2.1-or-later
"""Primaries and backups in processes of their own, and a cable between them.

`Side` is one that does what it is told and can be killed for real; it costs
milliseconds, for it is forked by a server that has everything loaded.
`Cable` passes on what a primary sends to a Unix socket, counts it, and can be
cut, or held back and let go again later.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# ---- the processes -------------------------------------------------------------


def odd_transition() -> str:
    """A state that can't follow the one before it, if there was one."""
    from remus_native._binding import ffi, lib, text

    source, target = ffi.new("int *"), ffi.new("int *")
    if not lib.remus_test_odd_transition(source, target):
        return ""
    return " to ".join(text(lib.remus_state_name(one[0])) for one in (source, target))


def obey(commands: Connection) -> None:
    """A child: open a side, then call its methods as they are asked for."""
    from support import simulated  # noqa: F401  first

    # isort: split
    import remus_native

    side: Any = None
    while True:
        try:
            name, args, options = commands.recv()
        except EOFError:
            os._exit(0)
        try:
            if side is None:
                side = getattr(remus_native, name)(*args, **options)
                result = None
            else:
                result = getattr(side, name)(*args, **options)
            answer = ("", None, result)
        except remus_native.RemusError as error:
            answer = (type(error).__name__, error.errno, str(error))
        if odd := odd_transition():
            answer = ("AssertionError", None, f"from {odd}: not in the table")
        commands.send(answer)


def serve() -> None:
    """Fork a child for each socket that comes; say its number."""
    from support import simulated  # noqa: F401  first

    # isort: split
    import remus_native  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    asked = socket.socket(fileno=sys.stdin.fileno())
    while True:
        _, files, _, _ = socket.recv_fds(asked, 1, 1)
        if not files:
            return
        pid = os.fork()
        if pid == 0:
            asked.close()
            obey(Connection(files[0]))
        os.close(files[0])
        asked.send(pid.to_bytes(4, "little"))


class _Server:
    """The one that forks; started once, ends with this process."""

    lock = threading.Lock()
    ask: socket.socket | None = None

    @classmethod
    def fork(cls) -> tuple[Connection, int]:
        ours, theirs = socket.socketpair()
        with cls.lock, theirs:
            if cls.ask is None:
                cls.ask, other = socket.socketpair()
                with other:
                    subprocess.Popen([sys.executable, __file__], stdin=other)
            socket.send_fds(cls.ask, [b"."], [theirs.fileno()])
            pid = int.from_bytes(cls.ask.recv(4), "little")
        assert pid, "the server is gone"
        return Connection(ours.detach()), pid


class Side:
    """``Side("Primary", "guest0", ...)``; its methods are called over there."""

    def __init__(self, kind: str, *args: Any, **options: Any) -> None:
        self._commands, self.pid = _Server.fork()
        self._gone = os.pidfd_open(self.pid)
        try:
            self.call(kind, *args, **options)
        except BaseException:
            self.kill()
            raise

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        import remus_native

        self._commands.send((name, args, options))
        error, number, result = self._commands.recv()
        if error == "AssertionError":
            raise AssertionError(result)
        if error:
            raise getattr(remus_native, error)(result, errno=number)
        return result

    def begin(self, name: str, *args: Any, **options: Any) -> None:
        """Let it be called; nobody waits, the side is killed instead."""
        self._commands.send((name, args, options))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **options: self.call(name, *args, **options)

    def send_signal(self, number: int) -> None:
        signal.pidfd_send_signal(self._gone, number)

    def kill(self) -> None:
        """SIGKILL, and wait until nothing of it is left."""
        if self._commands.closed:
            return
        with contextlib.suppress(ProcessLookupError):
            self.send_signal(signal.SIGKILL)
        select.select([self._gone], [], [])
        os.close(self._gone)
        self._commands.close()

    def end(self) -> None:
        """Close it, as a process that ends well does."""
        if not self._commands.closed:
            try:
                self.call("close")
            finally:
                self.kill()


# ---- the cable -----------------------------------------------------------------


class Cable:
    """From a socket at ``front``, where a primary connects, to one at ``back``."""

    def __init__(self, front: Path, back: Path) -> None:
        self.front, self.back = front, back
        self.sent = 0  # bytes from primaries, while it was joined last
        self._lock = threading.Condition()
        self._listener: socket.socket | None = None
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._held: set[socket.socket] = set()
        self._hold_next = False
        self._acceptor: threading.Thread | None = None
        self._threads: list[threading.Thread] = []

    def join(self) -> None:
        if self._listener is not None:
            return
        self.sent = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.front))
        self._listener.listen(16)
        self._acceptor = threading.Thread(
            target=self._accept, args=(self._listener,), daemon=True
        )
        self._acceptor.start()

    def cut(self) -> None:
        """Both ends see the end of their connections, and no new one begins."""
        if self._listener is not None:
            self.front.unlink()
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener = None
        if self._acceptor is not None:
            self._acceptor.join()  # no pair is made from here on
            self._acceptor = None
        with self._lock:
            for front, back in self._pairs:
                if back in self._held and front not in self._held:
                    self._end((front, back))  # the answers are lost
            self._held.clear()
            self._lock.notify_all()
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            self._end(pair)
        while self._threads:
            self._threads.pop().join()
        for pair in pairs:
            for one in pair:
                one.close()

    def hold(self) -> None:
        """Nothing more passes on the connections of now; later ones pass."""
        with self._lock:
            for pair in self._pairs:
                self._held.update(pair)

    def hold_answers(self) -> None:
        """The same, but what primaries send still passes."""
        with self._lock:
            self._held.update(back for _, back in self._pairs)

    def hold_next(self) -> None:
        """The same for the next connection, from its first byte on."""
        self._hold_next = True

    @property
    def holds(self) -> int:
        """How many connections are held back now."""
        with self._lock:
            return len(self._held) // 2

    def let_go(self) -> None:
        """What was held back arrives, late, and behind what came after it."""
        with self._lock:
            self._held.clear()
            self._lock.notify_all()

    def _start(self, what: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=what, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with listener, contextlib.suppress(OSError):
            while True:
                front, _ = listener.accept()
                back = socket.socket(socket.AF_UNIX)
                try:
                    back.connect(str(self.back))
                except OSError:
                    front.close()
                    back.close()
                    continue
                with self._lock:
                    self._pairs.append((front, back))
                    if self._hold_next:
                        self._held.update((front, back))
                        self._hold_next = False
                self._start(self._pass_on, front, back, True)
                self._start(self._pass_on, back, front, False)

    def _pass_on(self, source: socket.socket, to: socket.socket, count: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                with self._lock:
                    self._lock.wait_for(lambda: source not in self._held)
                    self.sent += len(data) if count else 0
                to.sendall(data)
        with self._lock:
            self._lock.wait_for(lambda: source not in self._held)
        # What a primary sent before it was gone still arrives.
        self._end((source, to) if count else (to,))

    @staticmethod
    def _end(pair: tuple[socket.socket, ...]) -> None:
        for one in pair:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # for `support`
    serve()
