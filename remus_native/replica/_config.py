# SPDX-License-Identifier: LGPL-2.1-or-later
"""What both sides of the replica engine are told.

`PrimaryConfig` and `BackupConfig` are values, with the names of the resource
file (docs/resource-file.md) and units in them; `Config` is what C takes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._binding import ffi, sized
from .._checks import choice, encoded, every, integer, path_of
from .._values import ACKS, COMMIT_BY, Ack, CommitBy, OnLoss, Tls, Volume
from ..errors import ConfigError

__all__ = ["BackupConfig", "Config", "PrimaryConfig"]

Path = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class PrimaryConfig:
    """All that a `Primary` can be told; see there.

    ``name`` is the resource's, ``state`` its directory on this host,
    ``address`` the backup's.  ``tls``, ``psk_file``, ``psk_identity``,
    ``ack``, ``commit_by``, ``on_loss`` and ``allow_inconsistent`` are as in
    the resource file, the others as in its ``[limits]``, with their units;
    0 is the default of each.  ``ask_alone`` and ``epochs_file`` are not in
    it.
    """

    name: str
    state: Path
    volumes: tuple[Volume, ...]
    address: str
    tls: Tls | None = None
    psk_file: Path | None = None
    psk_identity: str | None = None
    ack: Ack = "durable"
    commit_by: CommitBy = "primary"
    on_loss: OnLoss = "continue"
    allow_inconsistent: bool = False
    queue_bytes: int = 0
    max_pause_ms: int = 0
    loss_ms: int = 0
    stall_ms: int = 0
    connect_ms: int = 0
    idle_interval_ms: int = 0
    session_grace_ms: int = 0
    resync_rate: int = 0
    ask_alone: bool = False
    epochs_file: Path | None = None
    run_dir: Path | None = None


@dataclass(frozen=True, kw_only=True)
class BackupConfig:
    """All that a `Backup` can be told; see there, and `PrimaryConfig`.

    ``journal`` is its directory, ``journal_bytes`` and ``segment_bytes`` are
    ``journal`` and ``segment`` of ``[limits]``.  ``address``, ``tls`` and
    ``loss_ms`` are for `Backup.serve`.  ``discard_local`` and ``read_only``
    are not in the resource file.
    """

    name: str
    state: Path
    volumes: tuple[Volume, ...]
    journal: Path | None = None
    address: str | None = None
    tls: Tls | None = None
    psk_file: Path | None = None
    psk_identity: str | None = None
    ack: Ack = "durable"
    commit_by: CommitBy = "primary"
    journal_bytes: int = 0
    segment_bytes: int = 0
    loss_ms: int = 0
    stale_after_ms: int = 0
    discard_local: bool = False
    read_only: bool = False
    run_dir: Path | None = None


class Config:
    """A C configuration with what it points to kept alive."""

    def __init__(
        self,
        kind: str,
        resource: str,
        state_dir: str | os.PathLike[str],
        volumes: Sequence[Volume],
        ack: Ack,
        commit_by: CommitBy,
        run_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._keep: list[Any] = []
        self.raw = sized(f"{kind}_config")
        self.raw.resource = self.string("resource", resource)
        self.raw.state_dir = self.path("state_dir", state_dir)
        if run_dir is not None:
            self.raw.run_dir = self.path("run_dir", run_dir)
        volumes = every("volumes", volumes, Volume)
        if not volumes:
            raise ConfigError(f"volumes: resource {resource}: no volumes given")
        self._volumes = sized("volume", len(volumes))
        for raw, volume in zip(self._volumes, volumes, strict=True):
            raw.name = self.string("volume name", volume.name)
            raw.path = self.path("volume path", volume.path)
            raw.size = integer(
                "volume size", 0 if volume.size is None else volume.size, 1 << 62
            )
        self.raw.volumes = self._volumes
        self.raw.volume_count = len(volumes)
        self.raw.ack = choice("ack", ack, ACKS)
        self.raw.commit_by = choice("commit_by", commit_by, COMMIT_BY)

    def psk(
        self, psk_file: str | os.PathLike[str] | None, psk_identity: str | None
    ) -> None:
        if psk_file is not None:
            self.raw.psk_file = self.path("psk_file", psk_file)
        if psk_identity is not None:
            self.raw.psk_identity = self.string("psk_identity", psk_identity)

    def string(self, name: str, value: str) -> Any:
        return self._kept(encoded(name, value))

    def path(self, name: str, value: str | os.PathLike[str]) -> Any:
        return self._kept(encoded(name, path_of(name, value)))

    def _kept(self, data: bytes) -> Any:
        raw = ffi.new("char[]", data)
        self._keep.append(raw)
        return raw
