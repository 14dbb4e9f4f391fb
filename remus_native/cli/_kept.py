# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a server says to its keeper (`_keeper`)."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import subprocess
from collections.abc import Sequence

from ..errors import StateError
from ..replica._nodes import keep_open
from ..resource_file import LogSettings
from ..shared.log import say
from ..shared.mounts import detach
from ._keeper import ENVIRONMENT, PACKET, WAITS, keeper_command

__all__ = ["Kept"]

ANSWER_S = 10.0  # a keeper does nothing else


class Kept:
    """This process's keeper.

    ``descriptors`` are those of a mount that the process before has left; ()
    if there is none yet.
    """

    def __init__(
        self,
        command: Sequence[str],
        mount: str,
        log: LogSettings = LogSettings(),  # noqa: B008
    ) -> None:
        self._command = list(command)
        self._log = log
        self._mount = mount
        first, *rest = map(int, os.environ.pop(ENVIRONMENT).split(","))
        self._socket: socket.socket | None = socket.socket(fileno=first)
        self._waits = bool(os.environ.pop(WAITS, ""))
        self._keeper: subprocess.Popen[bytes] | None = None
        self.descriptors: tuple[int, ...] = tuple(rest)
        for fd in (first, *rest):
            os.set_inheritable(fd, False)

    @staticmethod
    def wanted() -> bool:
        """Did a keeper start this process?"""
        return ENVIRONMENT in os.environ

    def pair(self, volumes: int) -> tuple[int, int]:
        """Those of the mount of so many volumes, made and held if there are none."""
        if not self.descriptors:
            self.hold(keep_open(volumes))
        memory, device = self.descriptors
        return memory, device

    def mounted(self) -> bool:
        """Has a process before left a mount to go on with?"""
        return bool(self.descriptors)

    def wait(self) -> None:
        """If it was started ahead: until the process before is gone."""
        if not self._waits or self._socket is None:
            return
        self._socket.send(b"ready")
        data, descriptors, _, _ = socket.recv_fds(self._socket, PACKET, 2)
        if data != b"go" or len(descriptors) != 2:
            raise StateError("the keeper did not let this process begin")
        self.descriptors = tuple(descriptors)

    def hold(self, descriptors: tuple[int, int]) -> None:
        """The keeper has these, too, from here on."""
        assert self._socket is not None
        self._socket.settimeout(ANSWER_S)
        try:
            socket.send_fds(self._socket, [b"hold"], descriptors)
            if self._socket.recv(PACKET) != b"done":
                raise OSError("it ended")
        except OSError as error:
            raise StateError(f"{self._mount}: the keeper: {error}") from error
        self.descriptors = descriptors

    def serves(self) -> None:
        """The mount is served; never raises."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(b"serves")

    def drop(self) -> None:
        """Nobody has them any more but the export; never raises."""
        if not self.descriptors:
            return
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.settimeout(ANSWER_S)
                self._socket.send(b"drop")
                self._socket.recv(PACKET)
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors = ()

    def give_up(self) -> None:
        """What the process before has mounted is not served any more: who has
        a file there open gets an error; never raises."""
        if self.descriptors:
            with contextlib.suppress(OSError):
                detach(self._mount)
            self.drop()

    def restart(self) -> None:
        """Ask for a process that goes on in place of this one."""
        if self._socket is None or not self.descriptors:
            raise StateError(f"{self._mount}: no keeper is there to restart it")
        self._socket.send(b"restart")

    def look(self) -> None:
        """If the keeper died, start another one; does not wait for it."""
        if self._keeper is not None:
            self._keeper.poll()
        if not self.descriptors or (self._socket is not None and not self._ended()):
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = keeper_command(self._command, self._mount, os.getpid(), self._log)
            safe = {**os.environ, "PYTHONSAFEPATH": "1"}
            keeper = subprocess.Popen(command, stdin=theirs.fileno(), env=safe)
        if self._socket is not None:
            self._socket.close()
        self._keeper = keeper
        self._socket = ours
        self.serves()
        say(f"{self._mount}: the keeper died: another one is started", logging.WARNING)
        self.hold((self.descriptors[0], self.descriptors[1]))

    def _ended(self) -> bool:
        assert self._socket is not None
        if not select.select([self._socket], [], [], 0)[0]:
            return False
        try:
            return not self._socket.recv(PACKET, socket.MSG_PEEK)
        except OSError:
            return True
