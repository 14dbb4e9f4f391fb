# SPDX-License-Identifier: LGPL-2.1-or-later
"""The values of a resource file: what each key takes, and how it is refused.

A converter takes what TOML gave and returns what the program uses, or raises
`Bad` with two texts: what was expected, and what to do.  `Table` calls it,
adds file, key and value, and goes on, so that all problems of a file are
found at once.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, TypeVar

from .._text import printable, shortened
from ..errors import ConfigError

Side = Literal["primary", "backup"]
T = TypeVar("T")

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
DURATIONS_MS = {"ms": 1, "s": 1000, "min": 60_000}
U32_MAX = (1 << 32) - 1
SECTOR = 512
VOLUMES_MAX = 64
SOCKET_PATH_MAX = 107  # bytes in sun_path, less its NUL
SEGMENT = (64 << 10, (4 << 30) - 4096)  # bytes, at least and at most
SEGMENTS = (4, 65536)  # of one journal
LOSS_MIN_MS = 1000  # two pings
PAGE = 4096
IDENTITY_MAX = 128  # bytes, as GnuTLS takes them
SIZE_MAX = (1 << 63) - 1
# Few digits: Python refuses to convert thousands of them.
SIZE = re.compile(r"\s*([0-9]{1,20})\s*([A-Za-z]{0,8})\s*")
DURATION = re.compile(r"\s*([0-9]{1,20}(?:\.[0-9]{1,9})?)\s*(ms|s|min)\s*")
PROBLEMS_MAX = 100  # that are told of one file
GUESSES_MAX = 20  # unknown keys for which a known one is looked for
NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,63}")
RESERVED_NAMES = ("status", "status.json")  # files of the mounted directory

KNOWN: dict[str, tuple[str, ...]] = {
    "": (
        "name",
        "address",
        "address_swapped",
        "listen",
        "listen_swapped",
        "tls",
        "psk_file",
        "psk_identity",
        "run_dir",
        "ack",
        "commit_by",
        "same_host",
        "allow_inconsistent",
        "on_loss",
        "fence",
        "notify",
        "auto_promote",
        "primary",
        "backup",
        "limits",
        "log",
        "volume",
    ),
    "primary": ("host", "state", "mount", "journal"),
    "backup": ("host", "state", "journal", "mount"),
    "limits": (
        "journal",
        "segment",
        "queue",
        "max_pause",
        "loss",
        "stall",
        "idle_interval",
        "session_grace",
        "resync_rate",
        "stale_after",
        "fence_timeout",
        "notify_timeout",
    ),
    "log": ("level", "format", "to"),
    "volume": ("name", "size", "primary", "backup", "owner", "group", "mode"),
}


class ResourceFileError(ConfigError):
    """The resource file is wrong.

    ``problems`` holds one readable line for each thing to mend; the text of
    the error is the first, and how many more there are.
    """

    problems: tuple[str, ...]

    def __init__(self, problems: Sequence[str], **details: Any) -> None:
        # A pickled error comes back with its text alone.
        if isinstance(problems, str):
            problems = (problems,)
        more = len(problems) - 1
        super().__init__(
            problems[0] + (f" (and {more} more)" if more else ""), errno=errno.EINVAL
        )
        self.problems = tuple(problems)


def parse_size(value: object) -> int:
    """Bytes: a whole number, or a text such as "8GiB".  Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = SIZE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError("a size")
        if (match[2] or "B") not in UNITS:
            raise ValueError("a unit")
        size = int(match[1]) * UNITS[match[2] or "B"]
    if size <= 0:
        raise ValueError("more than 0")
    return size


def parse_duration_ms(value: object) -> int:
    """Milliseconds out of "50ms", "1.5s" or "2min".  Raises ValueError."""
    match = DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a duration")
    duration = Fraction(match[1]) * DURATIONS_MS[match[2]]
    if duration.denominator != 1 or not 0 < duration <= SIZE_MAX:
        raise ValueError("whole milliseconds, more than 0, and less than 2^63")
    return int(duration)


# ---- problems ------------------------------------------------------------


class Problems:
    """Collects what is wrong, in the order of the file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: list[str] = []
        self.guesses = 0

    def add(self, key: str, expected: str, got: object, fix: str) -> None:
        found = "nothing" if got is None else got if isinstance(got, str) else show(got)
        self.tell(f"{key}: expected {expected}, got {found}; fix: {fix}")

    def tell(self, words: str) -> None:
        """One more line, printable whatever the file has in it."""
        self.lines.append(printable(f"{self.file}: {words}"))

    def raise_if_any(self) -> None:
        more = len(self.lines) - PROBLEMS_MAX
        if more > 0:
            self.lines = self.lines[:PROBLEMS_MAX]
            self.tell(f"{more} more problems like these")
        if self.lines:
            raise ResourceFileError(self.lines)


def show(value: object) -> str:
    """A value as the file has it, short and printable."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, int) and abs(value) >> 256:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, list):
        return f"a list of {len(value)}" if len(value) > 8 else _show_list(value)
    try:
        return shortened(json.dumps(value, ensure_ascii=False))
    except TypeError:
        return shortened(value)


def _show_list(values: list[object]) -> str:
    inner = ("[...]" if isinstance(value, list) else show(value) for value in values)
    return shortened(f"[{', '.join(inner)}]")


class Bad(Exception):
    """A value that is not what its key takes."""

    def __init__(self, expected: str, fix: str) -> None:
        super().__init__(expected)
        self.expected = expected
        self.fix = fix


REQUIRED: Any = object()


class Table:
    """One table of the file while it is being read."""

    def __init__(
        self, values: Mapping[str, Any], kind: str, where: str, problems: Problems
    ) -> None:
        self.values = values
        self.where = where
        self.problems = problems
        for key in values:
            if key not in KNOWN[kind]:
                self._unknown(key, kind)

    def key(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def _unknown(self, key: str, kind: str) -> None:
        near, anywhere = self._similar(key, kind)
        if near:
            fix = f"did you mean {near[0]}?"
        elif anywhere:
            home = {"": "the top of the file", "volume": "[[volume]]"}
            homes = [k for k, keys in KNOWN.items() if anywhere[0] in keys]
            places = " or ".join(home.get(k, f"[{k}]") for k in homes)
            fix = f"{anywhere[0]} belongs in {places}"
        else:
            fix = "remove it"
        known = ", ".join(KNOWN[kind])
        short = shortened(key)
        self.problems.add(
            self.key(short), f"one of the keys {known}", f"the unknown key {short}", fix
        )

    def _similar(self, key: str, kind: str) -> tuple[list[str], list[str]]:
        """Known keys that it may stand for: of this table, and of any."""
        self.problems.guesses += 1
        if len(key) > 40 or self.problems.guesses > GUESSES_MAX:
            return [], []
        near = difflib.get_close_matches(key, KNOWN[kind], 1)
        return near, difflib.get_close_matches(key, sum(KNOWN.values(), ()), 1)

    def take(
        self, name: str, convert: Callable[[Any], T], default: Any = REQUIRED
    ) -> T:
        """The converted value; the default if it is missing.

        What is returned after a problem does not matter: the file is
        refused.
        """
        if name not in self.values:
            if default is not REQUIRED:
                return default  # type: ignore[no-any-return]
            got = None
        else:
            got = self.values[name]
        try:
            if got is None:
                convert(REQUIRED)  # for the words of what is expected
                raise AssertionError(f"{name} takes anything")
            return convert(got)
        except Bad as bad:
            self.problems.add(
                self.key(name),
                bad.expected,
                None if got is None else show(got),
                bad.fix if got is not None else f"add {name}: {bad.fix}",
            )
            return None  # type: ignore[return-value]

    def table(self, name: str) -> Table:
        value = self.values.get(name, {})
        if not isinstance(value, dict):
            self.problems.add(
                self.key(name), f"a table [{name}]", value, f"write [{name}] as a table"
            )
            value = {}
        return Table(value, name, self.key(name), self.problems)


# ---- kinds of value --------------------------------------------------------


def a_name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise Bad("1 to 63 characters of A-Z a-z 0-9 . _ -", "choose such a name")
    return value


def a_volume_name(value: Any) -> str:
    name = a_name(value)
    if name in RESERVED_NAMES:
        raise Bad(
            f"a name other than {' and '.join(RESERVED_NAMES)}",
            "choose another: the mounted directory has files of these names",
        )
    return name


def choice(*choices: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> str:
        if value not in choices or not isinstance(value, str):
            words = ", ".join(f'"{choice}"' for choice in choices)
            raise Bad(f"one of {words}", "choose one of them")
        return value

    return convert


def _is_command(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(word, str) and "\0" not in word for word in value)
        and os.path.isabs(value[0])
    )


def a_notify(value: Any) -> tuple[str, ...]:
    """A command with its arguments."""
    if _is_command(value):
        return tuple(value)
    raise Bad(
        "a list of texts that begins with an absolute path",
        'write notify = ["/usr/local/sbin/tell-me", "guest0"]',
    )


def a_fence(value: Any) -> tuple[str, ...]:
    """A command with its arguments; () for "none"."""
    if value == "none":
        return ()
    if _is_command(value):
        return tuple(value)
    raise Bad(
        'a list of texts that begins with an absolute path, or "none"',
        'write fence = ["/usr/local/sbin/fence-other-host", "guest0"]',
    )


def a_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Bad("true or false", "write it without quotes")
    return value


def a_path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise Bad("an absolute path", "write the whole path, from / on")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise Bad(
            "a path that this system's encoding has", "choose a name in ASCII"
        ) from None
    return os.path.normpath(value)


def a_size(value: Any) -> int:
    try:
        size = parse_size(value)
    except ValueError:
        raise Bad(
            'a size such as "8GiB"',
            "write KiB, MiB, GiB or TiB, or a whole number of bytes",
        ) from None
    if size > SIZE_MAX:
        raise Bad("less than 2^63 bytes", "choose a smaller size")
    return size


def a_volume_size(value: Any) -> int:
    size = a_size(value)
    if size % SECTOR:
        raise Bad(
            f"a multiple of {SECTOR} bytes",
            f"write {max(1, -(-size // SECTOR)) * SECTOR}, or what the disk has",
        )
    return size


def size_between(low: int, high: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        size = a_size(value)
        if not low <= size <= high:
            raise Bad(f"{low} to {high} bytes", "choose a size in that range")
        return size

    return convert


def a_segment(value: Any) -> int:
    size = size_between(*SEGMENT)(value)
    if size % PAGE:
        raise Bad(f"a multiple of {PAGE} bytes", 'write "16MiB", for example')
    return size


def a_duration(value: Any) -> int:
    try:
        duration = parse_duration_ms(value)
    except ValueError:
        raise Bad(
            'a duration such as "200ms" or "3s"',
            "write a number with its unit: ms, s or min",
        ) from None
    if duration > U32_MAX:
        raise Bad(f"at most {U32_MAX} ms", "choose a shorter time")
    return duration


def a_loss(value: Any) -> int:
    loss = a_duration(value)
    if loss < LOSS_MIN_MS:
        raise Bad(
            f"at least {LOSS_MIN_MS} ms, for pings come every {LOSS_MIN_MS // 2} ms",
            "choose a longer time",
        )
    return loss


def a_who(value: Any) -> str | int:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < U32_MAX:
        return value
    raise Bad("a name or a number", 'write a name such as "qemu", or its number')


def a_mode(value: Any) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise Bad(
            'permission bits such as "0600"', "write three octal digits, in quotes"
        )
    mode = int(value, 8)
    if mode == 0:
        raise Bad("permission bits other than 0", 'write "0600" for its owner only')
    return mode


def an_address(value: Any) -> str:
    if isinstance(value, str) and value.startswith("unix:"):
        path = value[5:]
        if not path.startswith("/"):
            raise Bad("unix: and an absolute path", "write the whole path, from / on")
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            raise Bad(
                f"a socket path of at most {SOCKET_PATH_MAX} bytes",
                "choose a shorter one, in /run for example",
            )
        return "unix:" + os.path.normpath(path)
    if isinstance(value, str) and value.startswith("tcp:"):
        host, colon, port = value[4:].rpartition(":")
        right = colon and re.fullmatch(r"[!-~]+", host)
        if (
            not right
            or not re.fullmatch(r"[0-9]{1,5}", port)
            or not (0 < int(port) < 65536)
        ):
            raise Bad("tcp:HOST:PORT", "write tcp:127.0.0.1:7790, for example")
        return value
    raise Bad(
        '"unix:/path" or "tcp:HOST:PORT"',
        'write "unix:/run/remus/guest0.sock", for example',
    )


def an_identity(value: Any) -> str:
    if (
        not isinstance(value, str)
        or not 1 <= len(value.encode("utf-8", "surrogateescape")) <= IDENTITY_MAX
        or "\0" in value
    ):
        raise Bad(
            f"a text of 1 to {IDENTITY_MAX} bytes",
            "write the identity that psktool -u was given",
        )
    return value
