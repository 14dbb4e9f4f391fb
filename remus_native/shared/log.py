# SPDX-License-Identifier: LGPL-2.1-or-later
"""The log of a process that serves disks: never in the way of a disk.

Standard error can be a pipe whose reader stalls or is gone, a terminal that
was stopped or hung up, a file on a full or frozen file system.  `Log` takes
its place: what writes there puts lines into a bounded queue and goes on, and
a thread of its own writes them.  Lines that find the queue full are dropped
and counted, lines that can't be written are counted too, and the count is
told with the first line that gets through.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, TextIO

from .._text import printable

__all__ = [
    "Log",
    "as_standard_error",
    "emit",
    "open_standard_descriptors",
    "say",
    "silence",
]

LINES_MAX = 1000  # that wait to be written
LINE_MAX = 8192  # characters of one line
CLOSE_S = 0.5  # for what waits, at the end
AGAIN_MS = 200  # between tries to write where a descriptor does not block


def say(text: object) -> None:
    """A line for the operator or the system's log; never raises."""
    emit(sys.stderr, f"remus-native: {printable(text)}\n")


def emit(stream: TextIO | Log | None, text: str) -> bool:
    """Write to a stream for people; whether it could be written.

    A stream that failed is silent from then on: the interpreter would fail
    again when it flushes it at the end, and change the exit code.
    """
    if stream is None:
        return False
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        silence(stream)
        return False
    return True


def silence(stream: TextIO | Log) -> None:
    """Let a stream that failed lead to /dev/null."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)


def open_standard_descriptors() -> None:
    """Put /dev/null where 0, 1 or 2 is closed.

    The next file that is opened would get that number, and be it a disk,
    whatever is written to standard error would go into it.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            os.set_inheritable(fd, True)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Log:
    """A text stream that never blocks and never raises; see the module.

    Text without a newline that begins with a carriage return is a progress
    line: it is shown only if nothing else waits.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._wake = threading.Condition()  # guards the fields up to _idle
        self._lines: deque[bytes] = deque()
        self._dropped = 0  # since the last line that found room
        self._closing = False
        self._idle = True  # nothing waits, and nothing is being written
        self._lost = 0  # since the last write that succeeded; the thread's
        self._why = ""
        self._partial = threading.local()  # a line that is not ended yet
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    # -- what a stream has --------------------------------------------------

    def write(self, text: str) -> int:
        if text.startswith("\r") and "\n" not in text:
            self._put(text.encode(self.encoding, self.errors), transient=True)
            return len(text)
        held = getattr(self._partial, "text", "") + text
        *lines, rest = held.split("\n")
        for line in lines:
            shown = line if len(line) <= LINE_MAX else line[:LINE_MAX] + " ..."
            self._put(shown.encode(self.encoding, self.errors) + b"\n")
        self._partial.text = rest[: LINE_MAX + 1]
        return len(text)

    def flush(self) -> None:
        """Nothing: the thread writes as fast as it can."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        try:
            return os.isatty(self._fd)
        except OSError:
            return False

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Let what waits be written, for a moment at most.  Idempotent."""
        end = time.monotonic() + timeout_s
        with self._wake:
            self._closing = True
            self._wake.notify_all()
            while not self._idle and time.monotonic() < end:
                self._wake.wait(max(0.0, end - time.monotonic()))

    # -- the queue ------------------------------------------------------------

    def _put(self, data: bytes, *, transient: bool = False) -> None:
        with self._wake:
            if transient and not self._idle:
                return
            if len(self._lines) >= LINES_MAX:
                self._dropped += 1
                return
            if self._dropped:
                self._lines.append(_dropped(self._dropped))
                self._dropped = 0
            self._lines.append(data)
            self._idle = False
            self._wake.notify_all()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._lines:
                    if self._dropped:
                        self._lines.append(_dropped(self._dropped))
                        self._dropped = 0
                        break
                    self._idle = True
                    self._wake.notify_all()
                    if self._closing:
                        return
                    self._wake.wait()
                data = self._lines.popleft()
            self._write_line(data)

    # -- the thread -------------------------------------------------------------

    def _write_line(self, data: bytes) -> None:
        if self._lost:
            words = f"remus-native: {self._lost} lines of this log were lost: "
            data = f"{words}{self._why}\n".encode() + data
        try:
            _write_all(self._fd, data)
        except OSError as error:
            self._lost += 1
            self._why = error.strerror or str(error)
        else:
            self._lost = 0


def _dropped(count: int) -> bytes:
    return (
        f"remus-native: {count} lines of this log were dropped: standard error "
        "took them too slowly\n"
    ).encode()


def _write_all(fd: int, data: bytes) -> None:
    """Blocks as long as it takes, also where somebody made ``fd`` not block."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll(AGAIN_MS)


@contextlib.contextmanager
def as_standard_error() -> Iterator[None]:
    """All that this process writes to `sys.stderr` goes through a `Log`.

    Also what Python writes by itself: warnings, and errors of threads.
    Where standard error was replaced already (by a test) it stays.
    """
    before: Any = sys.stderr
    try:
        real = before is not None and before.fileno() == 2
    except (OSError, ValueError, AttributeError):
        real = False
    if not real or isinstance(before, Log):
        yield
        return
    log = Log(2)
    sys.stderr = log
    try:
        yield
    finally:
        sys.stderr = before
        log.close()
