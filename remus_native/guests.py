# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that a `Checkpointer` can drive."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from typing import Any

from ._checks import path_of, seconds
from ._text import shortened
from .errors import CheckpointTimeout, StateError

__all__ = ["NullGuest", "QmpGuest"]

LINE_MAX = 1 << 24  # bytes of one answer


class NullGuest:
    """Suspends nothing: each checkpoint is a crash-consistent cut.

    What a failover then finds on the disks is what a power cut at that
    moment would have left: journaling file systems and databases recover
    from it.

    No method blocks or raises; any thread may call them.
    """

    def suspend(self) -> None:
        """Nothing to suspend."""

    def resume(self) -> None:
        """Nothing to resume."""


class QmpGuest:
    """A QEMU that is suspended and resumed over its QMP socket.

    ``suspend`` is QMP's ``stop`` (vCPUs stop, QEMU drains and flushes its
    disks), ``resume`` is ``cont``.  No memory is copied: a failover is a cold
    boot from the disks of a checkpoint, crash-consistent as after a power
    cut.  Use as a context manager, or `close` it.

    Raises `StateError` if QEMU is not there or refuses, `CheckpointTimeout`
    if it does not answer within ``timeout_s``.  One thread at a time.  Each
    method blocks until QEMU has answered.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, timeout_s: float | None = 10.0
    ) -> None:
        self.path = path_of("path", path)
        seconds("timeout_s", timeout_s)
        self.timeout_s = timeout_s
        self._number = 0  # of the newest command, its QMP id
        self._owed: set[int] = set()  # commands that were given up unanswered
        self._input = bytearray()
        self._output = bytearray()  # of a command that was taken in part only
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._wait(self._end())
            self._socket.connect(self.path)
            greeting = self._read("greeting", self._end())
            if "QMP" not in greeting:
                raise StateError(
                    f"QMP {self.path}: expected a QMP greeting, got "
                    f"{shortened(greeting)}"
                )
            self.execute("qmp_capabilities")
        except OSError as error:
            self.close()
            if isinstance(error, StateError | CheckpointTimeout):
                raise
            raise StateError(
                f"QMP {self.path}: {error.strerror or error}: start QEMU with "
                f"-qmp unix:{self.path},server=on,wait=off",
                errno=error.errno,
            ) from error

    def __enter__(self) -> QmpGuest:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the guest goes on as it is."""
        self._socket.close()

    def suspend(self) -> None:
        """Stop the guest's vCPUs and drain its disks."""
        self.execute("stop")

    def resume(self) -> None:
        """Let the guest run."""
        self.execute("cont")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command and return its ``return`` value.

        Commands have ids: an answer that comes after its command was given
        up (`CheckpointTimeout`) is never taken for the next one's.  QEMU
        carries commands out in order, also those that were given up.
        """
        self._number += 1
        number = self._number
        request: dict[str, Any] = {"execute": command, "id": number}
        if arguments:
            request["arguments"] = arguments
        self._output += json.dumps(request).encode() + b"\n"
        end = self._end()
        try:
            self._send(command, end)
            while True:
                answer = self._read(command, end)
                if self._is_answer(answer, number):
                    break
        except CheckpointTimeout:
            self._owed.add(number)
            raise
        if "return" in answer:
            return answer["return"]
        detail = answer.get("error")
        text = detail.get("desc") if isinstance(detail, dict) else answer
        raise StateError(
            f"QMP {self.path}: {command}: QEMU says: {shortened(text, 400)}"
        )

    def _is_answer(self, answer: dict[str, Any], number: int) -> bool:
        """Whether it answers command ``number``; notes late answers."""
        if "event" in answer:
            return False
        if "id" not in answer:
            return not self._owed  # else nobody can say whose it is
        found = answer["id"]
        if isinstance(found, int):
            self._owed.discard(found)
        return bool(found == number)

    def _end(self) -> float:
        limit = seconds("timeout_s", self.timeout_s)
        return math.inf if limit is None else time.monotonic() + limit

    def _send(self, command: str, end: float) -> None:
        """All that waits to be sent: a half command is never left behind."""
        try:
            while self._output:
                self._wait(end)
                sent = self._socket.send(self._output)
                del self._output[:sent]
        except TimeoutError as error:
            raise CheckpointTimeout(
                f"QMP {self.path}: {command}: QEMU takes no command"
            ) from error
        except OSError as error:
            raise StateError(
                f"QMP {self.path}: {command}: {error}", errno=error.errno
            ) from error

    def _wait(self, end: float) -> None:
        """Let the next call on the socket wait until ``end`` at most."""
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        # poll(2) takes an int of milliseconds: what is longer has no limit.
        self._socket.settimeout(left if left < 2e6 else None)

    def _read(self, what: str, end: float) -> dict[str, Any]:
        """The next JSON object of the stream (one a line)."""
        while (at := self._input.find(b"\n")) < 0:
            if len(self._input) > LINE_MAX:
                raise StateError(
                    f"QMP {self.path}: {what}: a line of more than {LINE_MAX} bytes"
                )
            try:
                self._wait(end)
                data = self._socket.recv(65536)
            except TimeoutError as error:
                raise CheckpointTimeout(
                    f"QMP {self.path}: {what}: no answer in {self.timeout_s} s"
                ) from error
            except OSError as error:
                raise StateError(
                    f"QMP {self.path}: {what}: {error}", errno=error.errno
                ) from error
            if not data:
                raise StateError(f"QMP {self.path}: {what}: QEMU closed the socket")
            self._input += data
        line = bytes(self._input[:at])
        del self._input[: at + 1]
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StateError(
                f"QMP {self.path}: {what}: not JSON: {shortened(line)}"
            ) from error
        if not isinstance(answer, dict):
            raise StateError(
                f"QMP {self.path}: {what}: not an object: {shortened(line)}"
            )
        return answer
