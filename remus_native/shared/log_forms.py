# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a record of the log is written: text, JSON, logfmt, the journal's fields;
and which records only repeat what was just said."""

from __future__ import annotations

import copy
import datetime
import errno
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from .._text import event, printable, quoted

__all__ = ["FIELDS", "FORMS", "Journal", "Repeats", "datagram", "leads_to_journal"]

#: The attribute of a record that has its event's keys and values.
FIELDS = "remus_fields"
JOURNAL_SOCKET = "/run/systemd/journal/socket"
REPEAT_S = 60.0  # for which a warning or an error is counted, not repeated
REPEATS_MAX = 64  # that are remembered
#: As syslog numbers them.
PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    return dict(getattr(record, FIELDS, None) or {})


def words(record: logging.LogRecord) -> str:
    """What it says, in one line."""
    fields = fields_of(record)
    if "event" in fields:
        said = event(str(fields.pop("event")), **fields)
    else:
        said = printable(record.getMessage())
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        said += f": {type(error).__name__}: {printable(error)}"
    return said


def moment(record: logging.LogRecord) -> str:
    when = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Form(logging.Formatter):
    """One line, printable, without its end.  ``context`` is in every line."""

    def __init__(self, context: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self.context = dict(context or {})

    def raw(self, text: str) -> str:
        """A line that something else wrote to standard error: Python itself."""
        return self.format(_record(logging.WARNING, text, "python"))


class Text(Form):
    """As a person reads it, and as the `event=` lines always were."""

    def format(self, record: logging.LogRecord) -> str:
        return f"remus-native: {words(record)}"

    def raw(self, text: str) -> str:
        return text


class Json(Form):
    """An object a line: time, level, logger, pid, message, and an event's keys."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({**self._pairs(record), "message": words(record)})

    def _pairs(self, record: logging.LogRecord) -> dict[str, object]:
        return {
            "time": moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            **self.context,
            **{key: _plain(value) for key, value in fields_of(record).items()},
        }


class Logfmt(Json):
    """The same as key=value, each value quoted where it must be."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = self._pairs(record)
        if "event" not in pairs:
            pairs["msg"] = words(record)
        return " ".join(f"{key}={quoted(value)}" for key, value in pairs.items())


FORMS: dict[str, type[Form]] = {"text": Text, "json": Json, "logfmt": Logfmt}


def _plain(value: object) -> object:
    """What JSON can say: an enum is its value."""
    if isinstance(value, bool | int | float):
        return value
    return printable(value)


def _record(level: int, text: str, name: str = "remus_native.log") -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, "%s", (text,), None)


# ---- the journal -------------------------------------------------------------


def datagram(
    record: logging.LogRecord, context: Mapping[str, object] | None = None
) -> bytes:
    """The record as systemd's journal takes it (its native protocol)."""
    level = next((n for least, n in PRIORITIES if record.levelno >= least), 7)
    pairs: dict[str, object] = {
        "MESSAGE": words(record),
        "PRIORITY": level,
        "SYSLOG_IDENTIFIER": "remus-native",
        "REMUS_LOGGER": record.name,
    }
    for key, value in {**(context or {}), **fields_of(record)}.items():
        pairs[f"REMUS_{key.upper()}"] = value
    return b"".join(_pair(key, value) for key, value in pairs.items())


def _pair(key: str, value: object) -> bytes:
    data = str(value).encode("utf-8", "backslashreplace")
    if b"\n" not in data:
        return key.encode() + b"=" + data + b"\n"
    return key.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"


def leads_to_journal(fd: int = 2) -> bool:
    """Is ``fd`` what the service manager connected to the journal?"""
    try:
        device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
        what = os.fstat(fd)
        return (int(device), int(inode)) == (what.st_dev, what.st_ino)
    except (OSError, ValueError):
        return False


class Journal:
    """The journal's socket; what it does not take at once it does not get."""

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def send(self, data: bytes) -> None:
        """Never blocks.  `OSError`: it was not taken, or nobody is there.

        A journal that was started anew is found at the second try.
        """
        try:
            self._send(data)
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOTCONN):
                raise
            self._send(data)

    def _send(self, data: bytes) -> None:
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
                self._socket.connect(self._path)
            self._socket.send(data)
        except BlockingIOError:
            raise
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


# ---- what repeats ------------------------------------------------------------


class Repeats:
    """A message that repeats is counted for `REPEAT_S`, then told with its count.

    A warning or an error repeats if it was said within that time, any other
    message if it is the one that was said last.  Events of states are none: each
    is told.  Any thread may call.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since: dict[Any, float] = {}  # told then; the newest is last
        self._held: dict[Any, tuple[int, logging.LogRecord]] = {}
        self._newest: Any = None

    def seen(self, record: logging.LogRecord) -> bool:
        """Whether it only repeats: then it is counted."""
        if "event" in fields_of(record):
            return False
        key = (record.name, record.levelno, record.getMessage())
        with self._lock:
            now, newest = self._clock(), self._newest
            self._newest = key
            repeats = key == newest or record.levelno >= logging.WARNING
            if repeats and now - self._since.get(key, -REPEAT_S) < REPEAT_S:
                count = self._held.get(key, (0, record))[0]
                self._held[key] = (count + 1, record)
                return True
            self._since.pop(key, None)
            self._since[key] = now
            while len(self._since) > REPEATS_MAX:
                oldest = next((k for k in self._since if k not in self._held), None)
                if oldest is None:
                    oldest = next(iter(self._since))
                    self._held.pop(oldest)
                del self._since[oldest]
            return False

    def waiting(self) -> bool:
        """Whether `due` will have something to tell."""
        return bool(self._held)

    def due(self, *, end: bool = False) -> list[logging.LogRecord]:
        """What was counted, as records; at the ``end`` all of it."""
        with self._lock:
            now = self._clock()
            late = [
                key for key in self._held if end or now - self._since[key] >= REPEAT_S
            ]
            told = [self._told(*self._held.pop(key)) for key in late]
            for key in late:
                self._since[key] = now  # or a flood would be told twice
            return told

    @staticmethod
    def _told(count: int, record: logging.LogRecord) -> logging.LogRecord:
        again = copy.copy(record)
        times = "once more" if count == 1 else f"{count} more times"
        again.msg, again.args = "%s (said %s)", (record.getMessage(), times)
        return again
