# SPDX-License-Identifier: LGPL-2.1-or-later
"""The resource file: one TOML file that both hosts read.

`load` reads it and refuses whatever would only fail later, or worse, work
and do the wrong thing: unknown keys, wrong types, paths that overlap.  Every
problem names the file, the key, what was expected, what stands there, and
what to do::

    guest0.toml: volume[1].size: expected a size such as "8GiB", got "8GB";
    fix: write KiB, MiB, GiB or TiB, or a whole number of bytes

All problems of a file are found at once (`ResourceFileError.problems`).

`ResourceFile.check` then inspects the disks of *one* side, because a file is
read on two hosts and only one of them has that side's disks.

docs/resource-file.md describes every key; docs/example.toml shows them all.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .._text import printable, shortened
from ..replica import BackupConfig, Node, PrimaryConfig, Volume
from ._agreement import (
    check_auto_promote,
    check_hosts,
    check_keys,
    check_listen,
    check_proof,
    check_swapped,
)
from ._disks import (
    check_disks,
    check_key,
    check_overlap,
    group_number,
    user_number,
)
from ._log import LogSettings, read_log
from ._values import (
    SEGMENTS,
    VOLUMES_MAX,
    Problems,
    ResourceFileError,
    Side,
    Table,
    a_duration,
    a_fence,
    a_flag,
    a_loss,
    a_mode,
    a_name,
    a_notify,
    a_path,
    a_segment,
    a_size,
    a_volume_name,
    a_volume_size,
    a_who,
    an_address,
    an_identity,
    choice,
    parse_duration_ms,
    parse_size,
    show,
    size_between,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "BackupSide",
    "Limits",
    "LogSettings",
    "PrimarySide",
    "ResourceFile",
    "ResourceFileError",
    "Side",
    "VolumeEntry",
    "load",
    "parse",
    "parse_duration_ms",
    "parse_size",
]


FILE_MAX = 1 << 18  # bytes; 64 volumes need some 16 KiB


@dataclass(frozen=True)
class VolumeEntry:
    """One ``[[volume]]``: a disk, and where it lies on each side."""

    name: str
    primary: str
    backup: str
    size: int | None = None  # bytes; None: the files' own
    owner: str | int = 0
    group: str | int = 0
    mode: int = 0o600

    def path(self, side: Side) -> str:
        """Where the disk lies on ``side``."""
        return self.primary if side == "primary" else self.backup


@dataclass(frozen=True)
class PrimarySide:
    """``[primary]``: where the primary keeps its state and shows its disks."""

    state: str
    mount: str
    journal: str = ""  # where it is the backup
    serves: bool = False  # ... and its nodes are there then, too
    host: str = ""  # its name; "": not given


@dataclass(frozen=True)
class BackupSide:
    """``[backup]``: where the backup keeps its state and its journal."""

    state: str
    journal: str
    mount: str = ""  # where it is the primary
    serves: bool = False  # its nodes are there before it is promoted
    host: str = ""  # its name; "": not given


@dataclass(frozen=True)
class Limits:
    """``[limits]``: bounds on space and time.  Bytes and milliseconds."""

    journal: int = 512 << 20
    segment: int = 16 << 20
    queue: int = 64 << 20
    max_pause_ms: int = 200
    loss_ms: int = 3000
    stall_ms: int = 10_000
    idle_ms: int = 1000
    grace_ms: int = 60_000
    resync_rate: int = 0  # bytes a second; 0: no limit
    stale_ms: int = 60_000
    fence_ms: int = 30_000
    notify_ms: int = 30_000


@dataclass(frozen=True)
class ResourceFile:
    """A resource file that was read and found right."""

    file: str
    name: str
    address: str
    tls: Literal["psk", "off"] | None
    ack: Literal["durable", "memory"]
    commit_by: Literal["primary", "backup"]
    same_host: bool
    allow_inconsistent: bool
    primary: PrimarySide
    backup: BackupSide
    limits: Limits
    volumes: tuple[VolumeEntry, ...]
    psk_file: str | None = None
    psk_identity: str | None = None
    run_dir: str | None = None
    address_swapped: str | None = None
    listen: str | None = None  # where the backup listens; None: at `address`
    listen_swapped: str | None = None
    fence: tuple[str, ...] | None = None  # (): "none" was written
    notify: tuple[str, ...] | None = None  # run at each change of state
    auto_promote: bool = False
    on_loss: Literal["continue", "hold"] = "continue"
    log: LogSettings = dataclasses.field(default_factory=LogSettings)
    is_swapped: bool = False

    def swapped(self) -> ResourceFile:
        """The same resource after the two sides exchanged their roles."""
        address = self.address_swapped
        if address is None:
            if not self.address.startswith("unix:"):
                raise ResourceFileError(
                    [
                        f"{self.file}: address_swapped: expected the address where "
                        "the primary's host listens once it is the backup, got "
                        'nothing; fix: add address_swapped = "tcp:HOST:PORT"'
                    ]
                )
            address = self.address
        return dataclasses.replace(
            self,
            address=address,
            address_swapped=self.address,
            listen=self.listen_swapped,
            listen_swapped=self.listen,
            primary=PrimarySide(
                self.backup.state,
                self.backup.mount,
                self.backup.journal,
                self.backup.serves,
                self.backup.host,
            ),
            backup=BackupSide(
                self.primary.state,
                self.primary.journal,
                self.primary.mount,
                self.primary.serves,
                self.primary.host,
            ),
            volumes=tuple(
                dataclasses.replace(v, primary=v.backup, backup=v.primary)
                for v in self.volumes
            ),
            is_swapped=not self.is_swapped,
        )

    @property
    def listens(self) -> str:
        """Where the backup listens."""
        return self.listen or self.address

    def state(self, side: Side) -> str:
        """The state directory of ``side``."""
        return self.primary.state if side == "primary" else self.backup.state

    def host(self, side: Side) -> str:
        """The name of the host of ``side``; "": the file does not say."""
        return self.primary.host if side == "primary" else self.backup.host

    def volumes_of(self, side: Side) -> list[Volume]:
        """The volumes as `Primary` and `Backup` take them."""
        return [Volume(v.name, v.path(side), v.size) for v in self.volumes]

    def primary_config(self) -> PrimaryConfig:
        """What `Primary.of` takes, for the primary of this file."""
        limits = self.limits
        return PrimaryConfig(
            name=self.name,
            state=self.primary.state,
            volumes=tuple(self.volumes_of("primary")),
            address=self.address,
            tls=self.tls,
            psk_file=self.psk_file,
            psk_identity=self.psk_identity,
            ack=self.ack,
            commit_by=self.commit_by,
            on_loss=self.on_loss,
            allow_inconsistent=self.allow_inconsistent,
            queue_bytes=limits.queue,
            max_pause_ms=limits.max_pause_ms,
            loss_ms=limits.loss_ms,
            stall_ms=limits.stall_ms,
            idle_interval_ms=limits.idle_ms,
            session_grace_ms=limits.grace_ms,
            resync_rate=limits.resync_rate,
            ask_alone=bool(self.fence),
            run_dir=self.run_dir,
        )

    def backup_config(self) -> BackupConfig:
        """What `Backup.of` takes, for the backup of this file."""
        limits = self.limits
        return BackupConfig(
            name=self.name,
            state=self.backup.state,
            volumes=tuple(self.volumes_of("backup")),
            journal=self.backup.journal,
            address=self.listens,
            tls=self.tls,
            psk_file=self.psk_file,
            psk_identity=self.psk_identity,
            ack=self.ack,
            commit_by=self.commit_by,
            journal_bytes=limits.journal,
            segment_bytes=limits.segment,
            loss_ms=limits.loss_ms,
            stale_after_ms=limits.stale_ms,
            run_dir=self.run_dir,
        )

    def check(self, side: Side, *, create: bool = False) -> None:
        """Inspect the disks of ``side`` on this host; raise what is wrong.

        Each must be there, a regular file or a block device, have the size
        that the file gives, and be no other volume's disk.  Where both sides
        are on this host their sizes are compared too.  ``create`` makes a
        backup image that is missing, as a sparse file, and nothing else:
        an image that is there is never touched.  The key file is checked, too.
        """
        problems = Problems(self.file)
        if self.psk_file is not None:
            check_key(self.psk_file, self.psk_identity or self.name, problems)
        check_overlap(self, problems, (side,), resolve=True)
        check_disks(self, side, problems, create=create)

    def nodes(self) -> list[Node]:
        """Owner and mode of each volume's node, names looked up here."""
        problems = Problems(self.file)
        nodes = []
        for i, volume in enumerate(self.volumes):
            uid = user_number(volume.owner, f"volume[{i}].owner", problems)
            gid = group_number(volume.group, f"volume[{i}].group", problems)
            nodes.append(Node(uid, gid, volume.mode))
        problems.raise_if_any()
        return nodes


def load(path: str | os.PathLike[str]) -> ResourceFile:
    """Read and check a resource file.

    Raises `ResourceFileError`, also when the file cannot be read.
    """
    name = os.fspath(path)
    shown = printable(name)
    try:
        text = _contents(name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ResourceFileError(
            [f"{shown}: not UTF-8 text: {error.reason}; fix: save it as UTF-8"]
        ) from error
    except OSError as error:
        raise ResourceFileError(
            [f"{shown}: cannot be read: {error.strerror}; fix: check path and rights"]
        ) from error
    except ValueError as error:
        raise ResourceFileError(
            [f"{shown}: cannot be read: {error}; fix: name a resource file"]
        ) from error
    return parse(text, file=name)


def _contents(name: str) -> bytes:
    """What a regular file holds; nothing else is waited for, or read for ever."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    with open(os.open(name, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a regular file")
        data = file.read(FILE_MAX + 1)
    if len(data) > FILE_MAX:
        raise ValueError(f"it has more than {FILE_MAX >> 10} KiB")
    return data


def parse(text: str, *, file: str = "resource file") -> ResourceFile:
    """`load` for a text that was read already; ``file`` names it in errors."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ResourceFileError(
            [
                f"{printable(file)}: not TOML: {shortened(why, 200)}; "
                "fix: docs/example.toml shows the form"
            ]
        ) from error
    problems = Problems(file)
    resource = _read(table, problems)
    problems.raise_if_any()
    assert resource is not None
    check_overlap(resource, problems, ("primary", "backup"), resolve=resource.same_host)
    problems.raise_if_any()
    return resource


# ---- the file ----------------------------------------------------------------


def _read(values: Mapping[str, Any], problems: Problems) -> ResourceFile | None:
    top = Table(values, "", "", problems)
    name = top.take("name", a_name)
    address = top.take("address", an_address)
    address_swapped = top.take("address_swapped", an_address, None)
    tls = top.take("tls", choice("psk", "off"), None)
    psk_file = top.take("psk_file", a_path, None)
    psk_identity = top.take("psk_identity", an_identity, None)
    run_dir = top.take("run_dir", a_path, None)
    listen = top.take("listen", an_address, None)
    listen_swapped = top.take("listen_swapped", an_address, None)
    check_listen("listen", listen, "address", address, problems)
    check_listen(
        "listen_swapped", listen_swapped, "address_swapped", address_swapped, problems
    )
    check_proof(values, "address", address, problems)
    check_proof(values, "address_swapped", address_swapped, problems)
    check_keys(values, problems)
    ack = top.take("ack", choice("durable", "memory"), "durable")
    commit_by = top.take("commit_by", choice("primary", "backup"), "primary")
    same_host = top.take("same_host", a_flag, True)
    allow_inconsistent = top.take("allow_inconsistent", a_flag, False)
    on_loss = top.take("on_loss", choice("continue", "hold"), "continue")
    fence = top.take("fence", a_fence, None)
    notify = top.take("notify", a_notify, None)
    auto_promote = top.take("auto_promote", a_flag, False)
    primary = _read_primary(top.table("primary"))
    backup = _read_backup(top.table("backup"))
    primary = dataclasses.replace(primary, serves=backup.serves)
    check_hosts(primary.host, backup.host, problems)
    if auto_promote:
        check_auto_promote(fence, backup.serves, problems)
    if backup.serves:
        check_swapped(address, address_swapped, problems)
    limits = _read_limits(top.table("limits"))
    log = read_log(top.table("log"))
    volumes = _read_volumes(values, problems)
    if problems.lines:
        return None
    return ResourceFile(
        file=problems.file,
        name=name,
        address=address,
        tls=tls,
        ack=ack,
        commit_by=commit_by,
        same_host=same_host,
        allow_inconsistent=allow_inconsistent,
        primary=primary,
        backup=backup,
        limits=limits,
        log=log,
        volumes=tuple(volumes),
        address_swapped=address_swapped,
        listen=listen,
        listen_swapped=listen_swapped,
        fence=fence,
        notify=notify,
        auto_promote=bool(auto_promote),
        on_loss=on_loss,
        psk_file=psk_file,
        psk_identity=psk_identity,
        run_dir=run_dir,
    )


def _read_primary(table: Table) -> PrimarySide:
    state = table.take("state", a_path)
    return PrimarySide(
        state,
        table.take("mount", a_path, f"{state}/mount"),
        table.take("journal", a_path, f"{state}/journal"),
        host=table.take("host", a_name, ""),
    )


def _read_backup(table: Table) -> BackupSide:
    state = table.take("state", a_path)
    return BackupSide(
        state,
        table.take("journal", a_path, f"{state}/journal"),
        table.take("mount", a_path, f"{state}/mount"),
        "mount" in table.values,
        table.take("host", a_name, ""),
    )


def _read_limits(table: Table) -> Limits:
    usual = Limits()
    limits = Limits(
        journal=table.take("journal", a_size, usual.journal),
        segment=table.take("segment", a_segment, usual.segment),
        queue=table.take("queue", size_between(4 << 20, 1 << 30), usual.queue),
        max_pause_ms=table.take("max_pause", a_duration, usual.max_pause_ms),
        loss_ms=table.take("loss", a_loss, usual.loss_ms),
        stall_ms=table.take("stall", a_duration, usual.stall_ms),
        idle_ms=table.take("idle_interval", a_duration, usual.idle_ms),
        grace_ms=table.take("session_grace", a_duration, usual.grace_ms),
        resync_rate=table.take("resync_rate", a_size, usual.resync_rate),
        stale_ms=table.take("stale_after", a_duration, usual.stale_ms),
        fence_ms=table.take("fence_timeout", a_duration, usual.fence_ms),
        notify_ms=table.take("notify_timeout", a_duration, usual.notify_ms),
    )
    if not table.problems.lines:
        low, high = (n * limits.segment for n in SEGMENTS)
        if not low <= limits.journal <= high:
            table.problems.add(
                table.key("journal"),
                f"{SEGMENTS[0]} to {SEGMENTS[1]} segments of {limits.segment} bytes",
                f"{limits.journal} bytes",
                "change journal or segment",
            )
    return limits


def _read_volumes(values: Mapping[str, Any], problems: Problems) -> list[VolumeEntry]:
    entries = values.get("volume", [])
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        problems.add(
            "volume",
            "tables [[volume]]",
            entries,
            "write [[volume]], with double brackets",
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
    for i, entry in enumerate(entries[:VOLUMES_MAX]):
        table = Table(entry, "volume", f"volume[{i}]", problems)
        volumes.append(
            VolumeEntry(
                name=table.take("name", a_volume_name),
                size=table.take("size", a_volume_size, None),
                primary=table.take("primary", a_path),
                backup=table.take("backup", a_path),
                owner=table.take("owner", a_who, 0),
                group=table.take("group", a_who, 0),
                mode=table.take("mode", a_mode, 0o600),
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
