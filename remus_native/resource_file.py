# SPDX-License-Identifier: LGPL-2.1-or-later
"""The resource file: one TOML file that both hosts read.

`load` reads it and refuses whatever would only fail later, or worse, work
and do the wrong thing: unknown keys, wrong types, paths that overlap.  Every
problem names the file, the key, what was expected, what stands there, and
what to do::

    guest0.toml: volume[1].size: expected a size such as "8GiB", got "8GB";
    fix: write KiB, MiB, GiB or TiB, or a whole number of bytes

All problems of a file are found at once (`ResourceFileError.problems`).

`ResourceFile.check` then looks at the disks of *one* side, because a file is
read on two hosts and only one of them has that side's disks.

docs/resource-file.md describes every key; docs/example.toml shows them all.
Nothing here needs the C library.
"""

from __future__ import annotations

import difflib
import errno
import grp
import ipaddress
import json
import os
import pwd
import re
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from .errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "BackupSide",
    "Limits",
    "Node",
    "PrimarySide",
    "ResourceFile",
    "ResourceFileError",
    "VolumeEntry",
    "load",
    "parse",
    "parse_duration_ms",
    "parse_size",
]

Side = Literal["primary", "backup"]
T = TypeVar("T")

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
DURATIONS_MS = {"ms": 1, "s": 1000, "min": 60_000}
U32_MAX = (1 << 32) - 1
SECTOR = 512
VOLUMES_MAX = 64
SOCKET_PATH_MAX = 107  # bytes in sun_path, less its NUL
SEGMENT_MIN = 64 << 10
NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,63}")
RESERVED_NAMES = ("status", "status.json")  # files of the mounted directory

KNOWN: dict[str, tuple[str, ...]] = {
    "": (
        "name",
        "address",
        "tls",
        "ack",
        "commit_by",
        "same_host",
        "primary",
        "backup",
        "limits",
        "volume",
    ),
    "primary": ("state", "mount"),
    "backup": ("state", "journal"),
    "limits": ("journal", "segment", "queue", "max_pause", "loss", "stall"),
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


@dataclass(frozen=True)
class Node:
    """Owner and mode of a volume's node, as numbers."""

    uid: int
    gid: int
    mode: int


@dataclass(frozen=True)
class VolumeEntry:
    """One ``[[volume]]``: a disk, and where it lies on each side."""

    name: str
    primary: str
    backup: str
    size: int | None = None  # bytes; None: the files' own
    owner: str | int = "root"
    group: str | int = "root"
    mode: int = 0o600

    def path(self, side: Side) -> str:
        """Where the disk lies on ``side``."""
        return self.primary if side == "primary" else self.backup


@dataclass(frozen=True)
class PrimarySide:
    """``[primary]``: where the primary keeps its state and shows its disks."""

    state: str
    mount: str


@dataclass(frozen=True)
class BackupSide:
    """``[backup]``: where the backup keeps its state and its journal."""

    state: str
    journal: str


@dataclass(frozen=True)
class Limits:
    """``[limits]``: bounds on space and time.  Bytes and milliseconds."""

    journal: int = 512 << 20
    segment: int = 16 << 20
    queue: int = 64 << 20
    max_pause_ms: int = 200
    loss_ms: int = 3000
    stall_ms: int = 10_000


@dataclass(frozen=True)
class ResourceFile:
    """A resource file that was read and found right."""

    file: str
    name: str
    address: str
    tls: Literal["off"] | None
    ack: Literal["durable", "memory"]
    commit_by: Literal["primary", "backup"]
    same_host: bool
    primary: PrimarySide
    backup: BackupSide
    limits: Limits
    volumes: tuple[VolumeEntry, ...]

    def state(self, side: Side) -> str:
        """The state directory of ``side``."""
        return self.primary.state if side == "primary" else self.backup.state

    def check(self, side: Side, *, create: bool = False) -> None:
        """Look at the disks of ``side`` on this host; raise what is wrong.

        Each must be there, a regular file or a block device, have the size
        that the file gives, and be no other volume's disk.  Where both sides
        are on this host their sizes are compared too.  ``create`` makes a
        backup image that is missing, as a sparse file, and nothing else:
        an image that is there is never touched.
        """
        problems = _Problems(self.file)
        _check_overlap(self, problems, (side,), resolve=True)
        missing: list[tuple[str, int]] = []
        for i, volume in enumerate(self.volumes):
            path, key = volume.path(side), f"volume[{i}].{side}"
            wanted, source = self._expected_size(i, side)
            if create and side == "backup" and not os.path.lexists(path):
                if wanted is None:
                    problems.add(
                        f"volume[{i}].size",
                        "a size, to create the image with",
                        None,
                        'say size = "8GiB", the size of the primary\'s disk',
                    )
                else:
                    missing.append((path, wanted))
                continue
            found = _disk_size(path, key, problems, _make_hint(side, path, wanted))
            if found is None:
                continue
            if found == 0 or found % SECTOR:
                problems.add(
                    key,
                    f"a disk of a multiple of {SECTOR} bytes",
                    f"{found} bytes in {path}",
                    "give it the size of the other side's disk",
                )
            elif wanted is not None and found != wanted:
                problems.add(
                    f"volume[{i}].size",
                    f"{wanted} bytes ({source}) in {path}",
                    f"{found} bytes",
                    "correct the size in the file or replace the image: "
                    "both sides must have the same",
                )
        problems.raise_if_any()
        for path, size in missing:
            _create_image(path, size)

    def nodes(self) -> list[Node]:
        """Owner and mode of each volume's node, names looked up here."""
        problems = _Problems(self.file)
        nodes = []
        for i, volume in enumerate(self.volumes):
            uid = _look_up(volume.owner, _uid, f"volume[{i}].owner", "user", problems)
            gid = _look_up(volume.group, _gid, f"volume[{i}].group", "group", problems)
            nodes.append(Node(uid, gid, volume.mode))
        problems.raise_if_any()
        return nodes

    def _expected_size(self, i: int, side: Side) -> tuple[int | None, str]:
        """The size that a disk must have, and who says so."""
        volume = self.volumes[i]
        if volume.size is not None:
            return volume.size, "configured"
        if not self.same_host:
            return None, ""
        other: Side = "backup" if side == "primary" else "primary"
        try:
            return _size_of(volume.path(other)), f"the {other}'s {volume.path(other)}"
        except (OSError, ValueError):
            return None, ""


def load(path: str | os.PathLike[str]) -> ResourceFile:
    """Read and check a resource file.

    Raises `ResourceFileError`, also when the file cannot be read.
    """
    name = os.fspath(path)
    try:
        with open(name, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise ResourceFileError(
            [f"{name}: cannot be read: {error.strerror}; fix: check path and rights"]
        ) from error
    except UnicodeDecodeError as error:
        raise ResourceFileError(
            [f"{name}: not UTF-8 text: {error.reason}; fix: save it as UTF-8"]
        ) from error
    return parse(text, file=name)


def parse(text: str, *, file: str = "resource file") -> ResourceFile:
    """`load` for a text that was read already; ``file`` names it in errors."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ResourceFileError(
            [f"{file}: not TOML: {error}; fix: docs/example.toml shows the form"]
        ) from error
    problems = _Problems(file)
    resource = _read(table, problems)
    problems.raise_if_any()
    assert resource is not None
    _check_overlap(
        resource, problems, ("primary", "backup"), resolve=resource.same_host
    )
    problems.raise_if_any()
    return resource


def parse_size(value: object) -> int:
    """Bytes: a whole number, or a text such as "8GiB".  Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]*)\s*", str(value))
        if not isinstance(value, str) or match is None:
            raise ValueError("a size")
        if (match[2] or "B") not in UNITS:
            raise ValueError("a unit")
        size = int(match[1]) * UNITS[match[2] or "B"]
    if size <= 0:
        raise ValueError("more than 0")
    return size


def parse_duration_ms(value: object) -> int:
    """Milliseconds out of "50ms", "1.5s" or "2min".  Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min)\s*", str(value))
    if not isinstance(value, str) or match is None:
        raise ValueError("a duration")
    duration = float(match[1]) * DURATIONS_MS[match[2]]
    if duration != int(duration) or duration <= 0:
        raise ValueError("whole milliseconds, more than 0")
    return int(duration)


# ---- problems ------------------------------------------------------------


class _Problems:
    """Collects what is wrong, in the order of the file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: list[str] = []

    def add(self, key: str, expected: str, got: object, fix: str) -> None:
        found = "nothing" if got is None else got if isinstance(got, str) else show(got)
        self.lines.append(
            f"{self.file}: {key}: expected {expected}, got {found}; fix: {fix}"
        )

    def raise_if_any(self) -> None:
        if self.lines:
            raise ResourceFileError(self.lines)


def show(value: object) -> str:
    """A value as the file has it, short."""
    if isinstance(value, dict):
        return "a table"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError:
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Bad(Exception):
    """A value that is not what its key takes."""

    def __init__(self, expected: str, fix: str) -> None:
        super().__init__(expected)
        self.expected = expected
        self.fix = fix


_REQUIRED: Any = object()


class _Table:
    """One table of the file while it is being read."""

    def __init__(
        self, values: Mapping[str, Any], kind: str, where: str, problems: _Problems
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
        near = difflib.get_close_matches(key, KNOWN[kind], 1)
        homes = [k for k, keys in KNOWN.items() if key in keys]
        if near:
            fix = f"did you mean {near[0]}?"
        elif homes:
            home = {"": "the top of the file", "volume": "[[volume]]"}
            places = " or ".join(home.get(k, f"[{k}]") for k in homes)
            fix = f"it belongs into {places}"
        else:
            fix = "remove it"
        known = ", ".join(KNOWN[kind])
        self.problems.add(
            self.key(key), f"one of the keys {known}", f"the unknown key {key}", fix
        )

    def take(
        self, name: str, convert: Callable[[Any], T], default: Any = _REQUIRED
    ) -> T:
        """The converted value; the default if it is missing.

        What is returned after a problem does not matter: the file is
        refused.
        """
        if name not in self.values:
            if default is not _REQUIRED:
                return default  # type: ignore[no-any-return]
            got = None
        else:
            got = self.values[name]
        try:
            if got is None:
                convert(_REQUIRED)  # for the words of what is expected
                raise AssertionError(f"{name} takes anything")
            return convert(got)
        except _Bad as bad:
            self.problems.add(
                self.key(name),
                bad.expected,
                None if got is None else show(got),
                bad.fix if got is not None else f"add {name}: {bad.fix}",
            )
            return None  # type: ignore[return-value]

    def table(self, name: str) -> _Table:
        value = self.values.get(name, {})
        if not isinstance(value, dict):
            self.problems.add(
                self.key(name), f"a table [{name}]", value, f"write [{name}] as a table"
            )
            value = {}
        return _Table(value, name, self.key(name), self.problems)


# ---- kinds of value --------------------------------------------------------


def _text(expected: str, fix: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise _Bad(expected, fix)
        return value

    return convert


def _name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise _Bad("1 to 63 characters of A-Z a-z 0-9 . _ -", "choose such a name")
    return value


def _volume_name(value: Any) -> str:
    name = _name(value)
    if name in RESERVED_NAMES:
        raise _Bad(
            f"a name other than {' and '.join(RESERVED_NAMES)}",
            "choose another: the mounted directory has files of these names",
        )
    return name


def _choice(*choices: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> str:
        if value not in choices or not isinstance(value, str):
            words = ", ".join(f'"{choice}"' for choice in choices)
            raise _Bad(f"one of {words}", "choose one of them")
        return value

    return convert


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Bad("true or false", "write it without quotes")
    return value


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise _Bad("an absolute path", "write the whole path, from / on")
    return os.path.normpath(value)


def _size(value: Any) -> int:
    try:
        return parse_size(value)
    except ValueError:
        raise _Bad(
            'a size such as "8GiB"',
            "write KiB, MiB, GiB or TiB, or a whole number of bytes",
        ) from None


def _volume_size(value: Any) -> int:
    size = _size(value)
    if size % SECTOR:
        raise _Bad(
            f"a multiple of {SECTOR} bytes",
            f"write {max(1, -(-size // SECTOR)) * SECTOR}, or what the disk has",
        )
    return size


def _size_between(low: int, high: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        size = _size(value)
        if not low <= size <= high:
            raise _Bad(f"{low} to {high} bytes", "choose a size in that range")
        return size

    return convert


def _duration(value: Any) -> int:
    try:
        duration = parse_duration_ms(value)
    except ValueError:
        raise _Bad(
            'a duration such as "200ms" or "3s"',
            "write a number with its unit: ms, s or min",
        ) from None
    if duration > U32_MAX:
        raise _Bad(f"at most {U32_MAX} ms", "choose a shorter time")
    return duration


def _who(value: Any) -> str | int:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < U32_MAX:
        return value
    raise _Bad("a name or a number", 'write a name such as "qemu", or its number')


def _mode(value: Any) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise _Bad(
            'permission bits such as "0600"', "write three octal digits, in quotes"
        )
    mode = int(value, 8)
    if mode == 0:
        raise _Bad("permission bits other than 0", 'write "0600" for its owner only')
    return mode


def _address(value: Any) -> str:
    if isinstance(value, str) and value.startswith("unix:"):
        path = value[5:]
        if not path.startswith("/"):
            raise _Bad("unix: and an absolute path", "write the whole path, from / on")
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            raise _Bad(
                f"a socket path of at most {SOCKET_PATH_MAX} bytes",
                "choose a shorter one, in /run for example",
            )
        return "unix:" + os.path.normpath(path)
    if isinstance(value, str) and value.startswith("tcp:"):
        host, colon, port = value[4:].rpartition(":")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise _Bad("tcp:HOST:PORT", "write tcp:127.0.0.1:7790, for example")
        return value
    raise _Bad(
        '"unix:/path" or "tcp:HOST:PORT"',
        'write "unix:/run/remus/guest0.sock", for example',
    )


def _tls(value: Any) -> str:
    if value != "off":
        raise _Bad(
            '"off", because this version has no TLS',
            "leave tls out with a unix: address; on loopback TCP say "
            'tls = "off"; between hosts carry the Unix socket over ssh',
        )
    return "off"


def _is_loopback(address: str) -> bool:
    host = address[4:].rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# ---- the file ----------------------------------------------------------------


def _read(values: Mapping[str, Any], problems: _Problems) -> ResourceFile | None:
    top = _Table(values, "", "", problems)
    name = top.take("name", _name)
    address = top.take("address", _address)
    tls = top.take("tls", _tls, None)
    if address is not None and address.startswith("tcp:") and tls is None:
        if "tls" not in values:
            problems.add(
                "address",
                "a unix: address, or tls = \"off\" beside it",
                show(address) + " without proof of who is there",
                'use a Unix socket, or on the loopback say tls = "off": this '
                "version has no TLS",
            )
    elif address is not None and address.startswith("tcp:"):
        if not _is_loopback(address):
            problems.add(
                "address",
                "a loopback address, because this version has no TLS",
                show(address),
                "use a Unix socket and carry it over ssh "
                "(ssh -L /run/remus/guest0.sock:/run/remus/guest0.sock HOST)",
            )
    ack = top.take("ack", _choice("durable", "memory"), "durable")
    commit_by = top.take("commit_by", _choice("primary", "backup"), "primary")
    same_host = top.take("same_host", _flag, True)
    primary = _read_primary(top.table("primary"))
    backup = _read_backup(top.table("backup"))
    limits = _read_limits(top.table("limits"))
    volumes = _read_volumes(values, problems)
    if problems.lines:
        return None
    return ResourceFile(
        file=problems.file,
        name=name,
        address=address,
        tls="off" if tls == "off" else None,
        ack=ack,
        commit_by=commit_by,
        same_host=same_host,
        primary=primary,
        backup=backup,
        limits=limits,
        volumes=tuple(volumes),
    )


def _read_primary(table: _Table) -> PrimarySide:
    state = table.take("state", _path)
    return PrimarySide(state, table.take("mount", _path, f"{state}/mount"))


def _read_backup(table: _Table) -> BackupSide:
    state = table.take("state", _path)
    return BackupSide(state, table.take("journal", _path, f"{state}/journal"))


def _read_limits(table: _Table) -> Limits:
    usual = Limits()
    limits = Limits(
        journal=table.take("journal", _size, usual.journal),
        segment=table.take("segment", _size_between(SEGMENT_MIN, 1 << 40), usual.segment),
        queue=table.take("queue", _size_between(1 << 20, U32_MAX), usual.queue),
        max_pause_ms=table.take("max_pause", _duration, usual.max_pause_ms),
        loss_ms=table.take("loss", _duration, usual.loss_ms),
        stall_ms=table.take("stall", _duration, usual.stall_ms),
    )
    if not table.problems.lines and limits.journal < 4 * limits.segment:
        table.problems.add(
            table.key("journal"),
            f"at least 4 segments, {4 * limits.segment} bytes",
            f"{limits.journal} bytes",
            "enlarge journal or reduce segment",
        )
    return limits


def _read_volumes(values: Mapping[str, Any], problems: _Problems) -> list[VolumeEntry]:
    entries = values.get("volume", [])
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        problems.add(
            "volume", "tables [[volume]]", entries, "write [[volume]], twice bracketed"
        )
        return []
    if not 1 <= len(entries) <= VOLUMES_MAX:
        problems.add(
            "volume",
            f"1 to {VOLUMES_MAX} tables [[volume]]",
            f"{len(entries)}",
            "add one [[volume]] for each disk of the guest",
        )
    volumes = []
    for i, entry in enumerate(entries):
        table = _Table(entry, "volume", f"volume[{i}]", problems)
        volumes.append(
            VolumeEntry(
                name=table.take("name", _volume_name),
                size=table.take("size", _volume_size, None),
                primary=table.take("primary", _path),
                backup=table.take("backup", _path),
                owner=table.take("owner", _who, 0),
                group=table.take("group", _who, 0),
                mode=table.take("mode", _mode, 0o600),
            )
        )
        twin = next(
            (k for k in range(i) if volumes[k].name == volumes[i].name is not None),
            None,
        )
        if twin is not None:
            problems.add(
                table.key("name"),
                "a name of its own",
                f"{show(volumes[i].name)}, as volume[{twin}]",
                "rename one of them",
            )
    return volumes


# ---- overlapping paths --------------------------------------------------------
