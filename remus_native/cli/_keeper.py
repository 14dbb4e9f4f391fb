# SPDX-License-Identifier: LGPL-2.1-or-later
"""The keeper: the parent of a process that serves a disk, which does nothing else.

It has a second copy of the two descriptors without which a mount dies: that
of /dev/fuse, and that of the memory where requests are until they are
answered (csrc/node/fuse_kept.h).  When the server dies, it starts another
one, which goes on with them, once the one before is wholly gone: a thread of
it could still sit in a write.  If none stays up, it unmounts and gives the
descriptors up, and who waits for the disk gets an error.

Server and keeper talk over a socket of packets, by name:

  hold    server to keeper, with two descriptors: keep them; answered
  drop    ...               : give them up; answered
  serves  ...               : it serves the mount
  restart ...               : start one that goes on in place of this one
  ready   a server that was started ahead has all it needs to begin
  refuses ...               : it can't go on with what is kept; and why
  go      keeper to that server, with two descriptors: the one before is gone
  failed  keeper to the server that goes on: nobody takes its place; and why

Either finds out by the socket's end that the other died.  A server then
starts another keeper, whose child it is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from .._binding import lib
from ..resource_file import LogSettings
from ..shared.log import as_standard_error, say
from ..shared.mounts import detach
from ._process import signal_names, stop_signals

__all__ = ["ENVIRONMENT", "PACKET", "WAITS", "keep", "keeper_command", "words"]

#: Tells a server which descriptors it got: "SOCKET[,MEMORY,DEVICE]".
ENVIRONMENT = "REMUS_NATIVE_KEEPER"
#: ... and that it is to wait for "go"; of the two it has only the memory.
WAITS = "REMUS_NATIVE_KEEPER_WAITS"

TRIES = 5  # servers in a row that died before they served anything
CRASHES = 20  # ... that served for less than YOUNG_S
YOUNG_S = 1.0
START_S = 60.0  # a server that is started ahead may take so long
PACKET = 1024
_ADOPT = (
    "import sys; from remus_native.cli._keeper import adopt; "
    "sys.exit(adopt(sys.argv[1:]))"
)


def keeper_command(
    command: Sequence[str], mount: str, server: int, log: LogSettings
) -> list[str]:
    """How a server starts another keeper for itself."""
    given = [mount, str(server), json.dumps(vars(log))]
    return [sys.executable, "-c", _ADOPT, *given, *command]


def keep(
    command: Sequence[str],
    mount: str,
    *,
    once: Sequence[str] = (),
    log: LogSettings | None = None,
) -> int:
    """Run a server with ``command`` until it ends by itself; its exit code.

    ``once``: more arguments, for the first one only.
    """
    lib.remus_harden_process()
    with as_standard_error(log), stop_signals(on_hangup="tell") as signals:
        return _Keeper(command, mount, signals, once).run()


def words(sock: socket.socket) -> tuple[str, str, str]:
    """The next packet as its name, a space, and what it says; empty at the end."""
    try:
        return sock.recv(PACKET).decode("utf-8", "replace").partition(" ")
    except OSError:
        return "", "", ""


class _Server:
    """A process that serves, and how to talk to it."""

    def __init__(self, pid: int, sock: socket.socket, *, child: bool) -> None:
        self.pid = pid
        self.socket = sock
        self.child = child
        self.started = time.monotonic()
        self.served = 0.0  # since when; 0: it does not
        self.pidfd = os.pidfd_open(pid)

    def gone(self) -> int:
        """Wait until it is, with all its threads; the code to exit with."""
        select.select([self.pidfd], [], [])
        code = 0
        if self.child:
            status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            code = status if status >= 0 else 128 - status
        os.close(self.pidfd)
        self.socket.close()
        return code

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class _Keeper:
    def __init__(
        self,
        command: Sequence[str],
        mount: str,
        signals: socket.socket,
        once: Sequence[str] = (),
    ) -> None:
        self._command = list(command)
        self._once = list(once)
        self._mount = mount
        self._signals = signals
        self._held: tuple[int, ...] = ()  # memory and device
        self._failed = 0  # servers in a row that did not serve
        self._crashed = 0  # ... that did not do so for long
        self._next: _Server | None = None  # started ahead
        self._stopping = False

    # -- servers ------------------------------------------------------------------

    def _start(self, *, ahead: bool = False) -> _Server:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            given = [theirs.fileno(), *(self._held[:1] if ahead else self._held)]
            environment = {
                **os.environ,
                ENVIRONMENT: ",".join(map(str, given)),
                WAITS: "1" if ahead else "",
                "PYTHONSAFEPATH": "1",
            }
            for fd in given:
                os.set_inheritable(fd, True)
            command = [*self._command, *self._once]
            self._once = []
            # Until it listens for it, a SIGHUP must not end it.
            before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
            try:
                pid = os.posix_spawn(command[0], command, environment)
            finally:
                signal.signal(signal.SIGHUP, before)
                for fd in given:
                    os.set_inheritable(fd, False)
        return _Server(pid, ours, child=True)

    def adopt(self, pid: int, sock: socket.socket) -> _Server:
        """A server whose keeper died."""
        return _Server(pid, sock, child=False)

    # -- what a server says ----------------------------------------------------------

    def _hear(self, server: _Server) -> bool:
        """One packet; False at the end."""
        try:
            data, descriptors, _, _ = socket.recv_fds(server.socket, PACKET, 2)
        except OSError:
            return False
        if data == b"hold" and len(descriptors) == 2:
            self._drop()
            self._held = tuple(descriptors)
        else:
            for fd in descriptors:
                os.close(fd)
        if data == b"drop":
            self._drop()
        elif data == b"serves":
            server.served = time.monotonic()
        if data in (b"hold", b"drop"):
            with contextlib.suppress(OSError):
                server.socket.send(b"done")
        elif data == b"restart" and self._next is None and self._held:
            self._next = self._start(ahead=True)
        return bool(data)

    def _drop(self) -> None:
        for fd in self._held:
            os.close(fd)
        self._held = ()

    def _hand_over(self, server: _Server) -> _Server:
        """The next server is ready: end this one, and let that one begin."""
        following, self._next = self._next, None
        assert following is not None
        server.kill()
        server.gone()
        with contextlib.suppress(OSError):  # if it died, it is found dead
            socket.send_fds(following.socket, [b"go"], self._held)
        return following

    # -- the loop ----------------------------------------------------------------

    def run(self, server: _Server | None = None) -> int:
        server = server or self._start()
        while True:
            self._watch(server)
            if self._next is not None and self._held and not self._dead(server):
                server = self._hand_over(server)
                continue
            code = server.gone()
            if not self._held:
                self._end_next()
                return code
            if self._stopping:
                return self._give_up("it was to stop, and died", code or 1)
            if not self._may_start(server):
                return self._give_up("its servers keep dying", 1)
            self._end_next()
            server = self._start()  # first: the guest waits
            say(
                f"{self._mount}: its server died (code {code}): another one starts",
                logging.WARNING,
            )

    @staticmethod
    def _dead(server: _Server) -> bool:
        return bool(select.select([server.pidfd], [], [], 0)[0])

    def _watch(self, server: _Server) -> None:
        """Until it dies, or the one that was started ahead is ready."""
        heard = [server.socket]
        while True:
            ahead = self._next
            wanted: list[Any] = [server.pidfd, self._signals, *heard]
            if ahead:
                wanted += [ahead.socket, ahead.pidfd]
            ready, _, _ = select.select(wanted, [], [], 1.0 if ahead else None)
            if self._signals in ready:
                self._pass_on(server, self._signals.recv(PACKET))
            if server.socket in ready and not self._hear(server):
                heard = []
            if server.pidfd in ready:
                while heard and select.select(heard, [], [], 0)[0]:
                    if not self._hear(server):
                        heard = []
                return
            if ahead and self._is_ready(server, ahead, ready):
                return

    def _pass_on(self, server: _Server, numbers: bytes) -> None:
        """Signals that came: the server reads its file anew, or is to stop."""
        passed = signal.SIGHUP
        if stops := bytes(one for one in numbers if one != signal.SIGHUP):
            if not self._stopping:
                names = signal_names(stops)
                say(f"{self._mount}: stopping: the keeper got {names}")
            self._stopping = True
            passed = signal.SIGTERM
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(server.pidfd, passed)

    def _is_ready(self, server: _Server, ahead: _Server, ready: Sequence[Any]) -> bool:
        why = ""
        if ahead.socket in ready:
            word, _, why = words(ahead.socket)
            if word == "ready" and not self._stopping:
                return True
            why = why or "it ended, and says why in the log"
        elif ahead.pidfd in ready:
            why = "it ended, and says why in the log"
        elif self._stopping:
            why = "this one is to stop"
        elif time.monotonic() - ahead.started > START_S:
            why = f"it was not ready after {START_S:.0f} s"
        if why:
            self._end_next(why)
            with contextlib.suppress(OSError):
                server.socket.send(f"failed {why}".encode()[:PACKET])
        return False

    def _end_next(self, why: str = "the one before it died") -> None:
        if self._next is not None:
            self._next.kill()
            self._next.gone()
            self._next = None
            say(
                f"{self._mount}: the server that was to go on did not start: {why}",
                logging.ERROR,
            )

    def _may_start(self, server: _Server) -> bool:
        if server.served:
            self._failed = 0
        else:
            self._failed += 1
        if server.served and time.monotonic() - server.served > YOUNG_S:
            self._crashed = 0
        else:
            self._crashed += 1
        return self._failed < TRIES and self._crashed < CRASHES

    def _give_up(self, why: str, code: int) -> int:
        say(
            f"{self._mount}: {why}: it is unmounted, and waiting requests get an error",
            logging.ERROR,
        )
        self._end_next()
        with contextlib.suppress(OSError):
            detach(self._mount)
        self._drop()  # the last: this is what ends the connection
        return code


def adopt(arguments: Sequence[str]) -> int:
    """Be the keeper that a server starts: its socket is standard input."""
    mount, server, log, *command = arguments
    sock = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    lib.remus_harden_process()
    with (
        as_standard_error(LogSettings(**json.loads(log))),
        stop_signals(on_hangup="tell") as signals,
    ):
        keeper = _Keeper(command, mount, signals)
        return keeper.run(keeper.adopt(int(server), sock))
