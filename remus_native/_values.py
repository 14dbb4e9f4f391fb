# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values of the replica engine: states, status, volumes, checkpoints, tags."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, fields
from typing import Any, Literal

from ._binding import lib, text
from ._checks import shown
from .errors import ArgumentTypeError, ConfigError

Ack = Literal["durable", "memory"]
OnLoss = Literal["continue", "hold"]
CommitBy = Literal["primary", "backup"]
Tls = Literal["psk", "off"]
Tag = int | str | bytes
Buffer = bytes | bytearray | memoryview

ACKS = {"durable": 0, "memory": 1}
ON_LOSS = {"continue": lib.REMUS_ON_LOSS_CONTINUE, "hold": lib.REMUS_ON_LOSS_HOLD}
COMMIT_BY = {"primary": 0, "backup": 1}


class State(str, enum.Enum):
    """What a resource is doing; docs/operations.md tells what to do in each."""

    CONNECTING = "Connecting"
    CATCHING_UP = "CatchingUp"
    PROTECTED = "Protected"
    UNPROTECTED = "Unprotected"
    PROMOTING = "Promoting"
    PROMOTED = "Promoted"
    SPLIT_BRAIN = "SplitBrain"
    INCONSISTENT = "Inconsistent"
    STANDBY = "Standby"
    FAILED = "Failed"
    FENCED = "Fenced"

    def __str__(self) -> str:
        return self.value


class Changes(enum.IntFlag):
    """What `Primary.events` and `Backup.events` tell."""

    STATE = lib.REMUS_CHANGED_STATE
    LINK = lib.REMUS_CHANGED_LINK


@dataclass(frozen=True)
class Volume:
    """One disk of a resource.

    ``path`` is a regular file or block device of this host.  ``size`` in
    bytes must be the file's own; None takes the file's.
    """

    name: str
    path: str | os.PathLike[str]
    size: int | None = None


@dataclass(frozen=True)
class Node:
    """Owner and mode of a volume's FUSE node."""

    uid: int = 0
    gid: int = 0
    mode: int = 0o600


@dataclass(frozen=True)
class Status:
    """State and counters of one side at one moment, as `struct remus_status`.

    ``bytes_...``, ``queue_...``, ``journal_...``, ``resync_...``,
    ``dirty_bytes`` and ``epoch_coalesced`` are bytes.  ``volumes``,
    ``epochs``, ``records``, ``parked_writes``, ``stalls``, ``writers``,
    ``refused``, ``sessions`` and ``epoch_extents`` are counts.
    ``str(status)`` is one readable line.
    """

    role: str
    state: State
    reason: str
    connected: bool
    ioctl_driven: bool
    resource: str
    generation: str
    volumes: int
    open_epoch: int
    prepared_epoch: int
    committed_epoch: int
    applied_epoch: int
    stable_epoch: int
    promoted_epoch: int
    epochs: int
    bytes_written: int
    bytes_zeroed: int
    bytes_coalesced: int
    bytes_applied: int
    records: int
    queue_bytes: int
    queue_limit: int
    journal_bytes: int
    journal_limit: int
    parked_writes: int
    stalls: int
    resync_done: int
    resync_total: int
    link_changed_ns: int
    measured_epoch: int
    epoch_extents: int
    epoch_coalesced: int
    dirty_bytes: int
    asks_alone: bool
    holds: bool
    writers: int
    switches: bool
    refused: int
    security: str
    ready: bool
    sessions: int
    open_bytes: int

    def __str__(self) -> str:
        return f"{self.role} of {self.resource}: {self.state}: {self.reason}"


@dataclass(frozen=True)
class Refusal:
    """The connections from one source that a backup refused.

    ``cause`` is that of the last one: "silent", "closed", "tls", "key",
    "full", "peer", "hello" or "busy"; ``text`` explains it.
    """

    source: str
    cause: str
    count: int
    first_ns: int
    last_ns: int
    text: str


@dataclass(frozen=True)
class LogEntry:
    """One entry of a side's log.  ``text``: why; "" if the state says all."""

    time_ns: int
    state: State
    connected: bool
    text: str

    def __str__(self) -> str:
        return f"{self.state}: {self.text}" if self.text else str(self.state)


@dataclass(frozen=True)
class Log:
    """Entries; ``next``, the number after them; how many were ``lost`` before."""

    entries: tuple[LogEntry, ...]
    next: int
    lost: int


@dataclass(frozen=True)
class Verification:
    """The progress of a comparison of both sides, or the result of the last one.

    ``different``: the first 64 blocks of 16 KiB that differ, as (volume,
    offset in bytes).
    """

    running: bool
    complete: bool
    bytes_total: int
    bytes_done: int
    blocks_different: int
    bytes_repaired: int
    different: tuple[tuple[str, int], ...]

    @property
    def equal(self) -> bool:
        """All was compared, and nothing differed."""
        return self.complete and not self.blocks_different


def verification_from(raw: Any, names: tuple[str, ...]) -> Verification:
    kept = min(raw.blocks_different, lib.REMUS_VERIFY_KEPT)
    return Verification(
        running=bool(raw.running),
        complete=bool(raw.complete),
        bytes_total=raw.bytes_total,
        bytes_done=raw.bytes_done,
        blocks_different=raw.blocks_different,
        bytes_repaired=raw.bytes_repaired,
        different=tuple(
            (names[one.volume], one.offset) for one in raw.different[0:kept]
        ),
    )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that a backup can be promoted to."""

    epoch: int
    tag: bytes
    committed: bool
    ioctl: bool
    disk_only: bool


_STATUS_NUMBERS = [
    f.name
    for f in fields(Status)
    if f.name
    not in ("role", "state", "reason", "resource", "generation", "connected",
            "ioctl_driven", "asks_alone", "switches", "holds", "security", "ready")
]  # fmt: skip


def status_from(raw: Any) -> Status:
    return Status(
        role="primary" if raw.role == lib.REMUS_ROLE_PRIMARY else "backup",
        state=State(text(lib.remus_state_name(raw.state))),
        reason=text(raw.reason),
        connected=bool(raw.connected),
        ioctl_driven=bool(raw.ioctl_driven),
        asks_alone=bool(raw.asks_alone),
        switches=bool(raw.switches),
        holds=bool(raw.holds),
        ready=bool(raw.ready),
        resource=text(raw.resource),
        generation=text(raw.generation),
        security=text(raw.security),
        **{name: getattr(raw, name) for name in _STATUS_NUMBERS},
    )


def encode_tag(tag: Tag | None) -> bytes:
    """A tag as the bytes that travel: a number as its decimal text.

    At most 32 bytes; raises `ConfigError` for more, or for another type.
    """
    if tag is None:
        return b""
    if isinstance(tag, bool) or not isinstance(tag, int | str | bytes):
        raise ArgumentTypeError(
            f"tag: {shown(tag)}: expected int, str or bytes, got {type(tag).__name__}"
        )
    try:
        raw = tag if isinstance(tag, bytes) else str(tag).encode()
    except ValueError:  # a lone surrogate; an integer of 5,000 digits
        raise ConfigError(f"tag: {shown(tag)} has no bytes that could travel") from None
    if len(raw) > lib.REMUS_TAG_MAX:
        raise ConfigError(
            f"tag: {shown(tag)}: {len(raw)} bytes, at most {lib.REMUS_TAG_MAX}"
        )
    return raw


def tls_off(tls: str | None, psk_file: object) -> int:
    """Whether "off" was said; refuses what contradicts itself."""
    if tls not in (None, "psk", "off"):
        raise ConfigError(f'tls: {tls!r} is not one of None, "psk", "off"')
    if tls == "psk" and psk_file is None:
        raise ConfigError('tls: "psk" needs a psk_file, as psktool writes it')
    if tls == "off" and psk_file is not None:
        raise ConfigError('tls: "off" beside a psk_file: remove one of them')
    return int(tls == "off")
