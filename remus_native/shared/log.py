# SPDX-License-Identifier: LGPL-2.1-or-later
"""The log of a process that serves disks: never in the way of a disk.

Standard error can be a pipe whose reader stalls or is gone, a terminal that
was stopped or hung up, a file on a full or frozen file system.  `Log` takes
its place: what writes there puts lines into a bounded queue and goes on, and
a thread of its own writes them.  Lines that find the queue full are dropped
and counted, lines that can't be written are counted too, and the count is
told with the first line that gets through.

What the command says, `say` and `tell`, are records of Python's logging, of
loggers below "remus_native".  Their handler makes a line of each, in the form
that ``[log]`` of the resource file wants, and gives it to the `Log`; without
one, as in a command that serves nothing, it writes to standard error itself.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TextIO

from .._text import printable
from ..resource_file import LogSettings
from .log_forms import (
    FIELDS,
    FORMS,
    Form,
    Journal,
    Repeats,
    Text,
    datagram,
    leads_to_journal,
)

__all__ = [
    "Log",
    "as_standard_error",
    "emit",
    "open_standard_descriptors",
    "say",
    "silence",
    "tell",
    "use",
]

LINES_MAX = 1000  # that wait to be written
LINE_MAX = 8192  # characters of one line
CLOSE_S = 0.5  # for what waits, at the end
AGAIN_MS = 200  # between tries to write where a descriptor does not block
LATE_S = 1.0  # between looks for repeated lines that are to be told

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
ROOT = logging.getLogger("remus_native")


def say(text: object, level: int = logging.INFO) -> None:
    """A line for the operator or the system's log; never raises."""
    _logger().log(level, "%s", printable(text))


def tell(name: str, *, level: int = logging.INFO, **values: object) -> None:
    """An event with its values (`_text.event`); never raises."""
    fields = {"event": name, **values}
    _logger().log(level, "%s", name, extra={FIELDS: fields})


def _logger() -> logging.Logger:
    """That of the command, which has its handler from the first word on."""
    _handler()
    return ROOT.getChild("cli")


def _handler() -> Handler:
    for one in ROOT.handlers:
        if isinstance(one, Handler):
            return one
    made = Handler()
    ROOT.addHandler(made)
    ROOT.setLevel(logging.INFO)
    return made


def use(settings: LogSettings, context: Mapping[str, object] | None = None) -> None:
    """From here on the log has this form, and this is the least that is told."""
    handler = _handler()
    handler.form = FORMS[settings.format](context)
    handler.fields = settings.to == "journald" or (
        settings.to == "auto" and leads_to_journal()
    )
    ROOT.setLevel(LEVELS[settings.level])


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


class Line(NamedTuple):
    """What waits to be written."""

    data: bytes  # for the descriptor
    fields: bytes = b""  # for the journal, in its place


class Handler(logging.Handler):
    """Makes lines of records; never blocks where a `Log` is standard error,
    and never raises."""

    def __init__(self) -> None:
        super().__init__()
        self.form: Form = Text()
        self.fields = False  # the journal is to have the records
        self.repeats = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # it is a log, and no more
            stream: Any = sys.stderr
            if not isinstance(stream, Log):
                emit(stream, self.form.format(record) + "\n")
            elif self.repeats.seen(record):
                stream.look_later()
            else:
                stream.put(self.line(record))

    def line(self, record: logging.LogRecord) -> Line:
        data = self.form.format(record).encode("utf-8", "backslashreplace") + b"\n"
        return Line(
            _cut(data), datagram(record, self.form.context) if self.fields else b""
        )

    def late(self, end: bool) -> list[Line]:
        """What was counted in the place of being repeated."""
        return [self.line(record) for record in self.repeats.due(end=end)]


def _cut(data: bytes) -> bytes:
    """Records are cut by whom they come from; this is for the rest."""
    return data if len(data) <= 4 * LINE_MAX else data[: 4 * LINE_MAX] + b" ...\n"


class Log:
    """A text stream that never blocks and never raises; see the module.

    Text without a newline that begins with a carriage return is a progress
    line: it is shown only if nothing else waits.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(
        self,
        fd: int = 2,
        *,
        handler: Handler | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._fd = fd
        self._handler = handler or Handler()
        self._journal = journal
        self._wake = threading.Condition()  # guards the fields up to _idle
        self._lines: deque[Line] = deque()
        self._dropped = 0  # since the last line that found room
        self._closing = False
        self._later = False  # a repeated line is to be told one day
        self._idle = True  # nothing waits, and nothing is being written
        self._lost = 0  # since the last write that succeeded; the thread's
        self._why = ""
        self._partial = threading.local()  # a line that is not ended yet
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    # -- what a stream has --------------------------------------------------

    def write(self, text: str) -> int:
        if text.startswith("\r") and "\n" not in text:
            line = Line(text.encode(self.encoding, self.errors))
            self.put(line, transient=True)
            return len(text)
        held = getattr(self._partial, "text", "") + text
        *lines, rest = held.split("\n")
        for line_text in lines:
            if len(line_text) > LINE_MAX:
                line_text = line_text[:LINE_MAX] + " ..."
            self.put(self._raw(line_text))
        self._partial.text = rest[: LINE_MAX + 1]
        return len(text)

    def _raw(self, text: str) -> Line:
        shown = self._handler.form.raw(text)
        return Line(shown.encode(self.encoding, self.errors) + b"\n")

    def flush(self) -> None:
        """Nothing: the thread writes as fast as it can."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        try:
            # A progress line is none of the lines that a program reads.
            return type(self._handler.form) is Text and os.isatty(self._fd)
        except OSError:
            return False

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Let what waits be written, for a moment at most.  Idempotent."""
        end = time.monotonic() + timeout_s
        for line in self._handler.late(True):
            self.put(line)
        with self._wake:
            self._closing = True
            self._wake.notify_all()
            while not self._idle and time.monotonic() < end:
                self._wake.wait(max(0.0, end - time.monotonic()))

    # -- the queue ------------------------------------------------------------

    def put(self, line: Line, *, transient: bool = False) -> None:
        """A whole line; dropped and counted if there is no room."""
        with self._wake:
            if transient and not self._idle:
                return
            if len(self._lines) >= LINES_MAX:
                self._dropped += 1
                return
            if self._dropped:
                self._lines.append(self._note(_dropped(self._dropped)))
                self._dropped = 0
            self._lines.append(line)
            self._idle = False
            self._wake.notify_all()

    def look_later(self) -> None:
        """The handler has a line that is to be told in a while."""
        with self._wake:
            if not self._later:
                self._later = True
                self._wake.notify_all()

    def _run(self) -> None:
        while (line := self._next()) is not None:
            if line.data:
                self._write_line(line)
            elif self._handler.repeats.waiting():
                for late in self._handler.late(False):
                    self.put(late)
            else:
                with self._wake:
                    self._later = self._handler.repeats.waiting()

    def _next(self) -> Line | None:
        """Waits.  None: the end; an empty one: look for what is late."""
        with self._wake:
            while not self._lines:
                if self._dropped:
                    self._lines.append(self._note(_dropped(self._dropped)))
                    self._dropped = 0
                    break
                self._idle = True
                self._wake.notify_all()
                if self._closing:
                    return None
                if not self._wake.wait(LATE_S if self._later else None):
                    return Line(b"")
            return self._lines.popleft()

    # -- the thread -------------------------------------------------------------

    def _note(self, text: str) -> Line:
        """A line of the log about itself."""
        record = logging.LogRecord(
            "remus_native.log", logging.WARNING, "", 0, "%s", (text,), None
        )
        return self._handler.line(record)

    def _write_line(self, line: Line) -> None:
        if self._lost:
            words = f"{self._lost} lines of this log were lost: {self._why}"
            note = self._note(words)
            line = Line(note.data + line.data, line.fields)
        try:
            if not self._to_journal(line.fields):
                _write_all(self._fd, line.data)
        except OSError as error:
            self._lost += 1
            self._why = error.strerror or str(error)
        else:
            self._lost = 0

    def _to_journal(self, fields: bytes) -> bool:
        """Where it is not there, or takes nothing now, standard error is."""
        if self._journal is None or not fields:
            return False
        try:
            self._journal.send(fields)
        except OSError:
            return False
        return True


def _dropped(count: int) -> str:
    return (
        f"{count} lines of this log were dropped: standard error took them too slowly"
    )


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
def as_standard_error(
    settings: LogSettings | None = None,
    context: Mapping[str, object] | None = None,
) -> Iterator[Callable[[LogSettings], None]]:
    """All that this process writes to `sys.stderr` goes through a `Log`.

    Also what Python writes by itself: warnings, and errors of threads.
    Where standard error was replaced already (by a test) it stays.  ``context``
    is in every line of JSON and logfmt.  Gives what changes the settings, which
    stay for the last words of the process.
    """
    before: Any = sys.stderr
    try:
        real = before is not None and before.fileno() == 2
    except (OSError, ValueError, AttributeError):
        real = False

    def change(to: LogSettings) -> None:
        use(to, context)

    change(settings or LogSettings())
    log = None
    if real and not isinstance(before, Log):
        log = sys.stderr = Log(2, handler=_handler(), journal=Journal())
    try:
        yield change
    finally:
        if log is not None:
            sys.stderr = before
            log.close()
