# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that a `Checkpointer` can drive."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from .errors import CheckpointTimeout, StateError

__all__ = ["NullGuest", "QmpGuest"]


class NullGuest:
    """Suspends nothing: each checkpoint is a crash-consistent cut.

    What a failover then finds on the disks is what a power cut at that
    moment would have left: journaling file systems and databases recover
    from it.
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
    if it does not answer within ``timeout_s``.  Not for several threads.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, timeout_s: float = 10.0
    ) -> None:
        self.path = os.fspath(path)
        self.timeout_s = timeout_s
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(self.path)
            greeting = self._read("greeting")
            if "QMP" not in greeting:
                raise StateError(
                    f"QMP {self.path}: expected a QMP greeting, got {greeting!r}"
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
        """Run one QMP command and return its ``return`` value."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except TimeoutError as error:
            raise CheckpointTimeout(
                f"QMP {self.path}: {command}: QEMU takes no command"
            ) from error
        except OSError as error:
            raise StateError(
                f"QMP {self.path}: {command}: {error}", errno=error.errno
            ) from error
        while True:
            answer = self._read(command)
            if "event" in answer:
                continue
            if "return" in answer:
                return answer["return"]
            detail = answer.get("error")
            text = detail.get("desc") if isinstance(detail, dict) else answer
            raise StateError(f"QMP {self.path}: {command}: QEMU says: {text}")

    def _read(self, what: str) -> dict[str, Any]:
        """The next JSON object of the stream (one a line)."""
        while b"\n" not in self._buffer:
            try:
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
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise StateError(
                f"QMP {self.path}: {what}: not JSON: {line[:80]!r}"
            ) from error
        if not isinstance(answer, dict):
            raise StateError(f"QMP {self.path}: {what}: not an object: {line[:80]!r}")
        return answer
