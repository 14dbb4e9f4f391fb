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

from ..errors import RemusError, StateError
from ..replica._nodes import check_kept, keep_open
from ..resource_file import LogSettings
from ..shared.log import say
from ..shared.mounts import detach
from ._keeper import ENVIRONMENT, PACKET, WAITS, keeper_command, words

__all__ = ["Kept"]

ANSWER_S = 10.0  # a keeper does nothing else
TO_DO = (
    "Install the version before again; or have the other host take over (swap), "
    "and stop and start this one then; or stop the guest for that"
)


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
        #: Why the one that was to take this one's place did not.
        self.failed = ""
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

    def wait(self, volumes: int) -> None:
        """If it was started ahead: until the process before is gone, if this
        version can go on with what that one keeps for so many volumes."""
        if not self._waits or self._socket is None:
            return
        for memory in self.descriptors:
            try:
                check_kept(volumes, memory)
            except RemusError as error:
                why = f"{error}: the disks are served as before. {TO_DO}"
                self._socket.send(f"refuses {why}".encode()[:PACKET])
                raise StateError(f"{self._mount}: {why}") from error
            os.close(memory)
        self.descriptors = ()
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
            self._is_done()
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
                self._is_done()
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
        self.failed = ""
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

    def _is_done(self) -> None:
        assert self._socket is not None
        while (word := self._hear()) != "done":
            if not word:
                raise OSError("it ended")

    def _hear(self) -> str:
        """What the keeper says; "" once it has ended."""
        assert self._socket is not None
        word, _, why = words(self._socket)
        if word == "failed":
            self.failed = why
        return word

    def _ended(self) -> bool:
        assert self._socket is not None
        while select.select([self._socket], [], [], 0)[0]:
            if not self._hear():
                return True
        return False
