# SPDX-License-Identifier: LGPL-2.1-or-later
"""What both sides of the replica engine are told: a C configuration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ._binding import ffi
from ._values import ACKS, COMMIT_BY, Ack, CommitBy, Volume, choice, number
from .errors import ConfigError

__all__ = ["Config"]


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
    ) -> None:
        self._keep: list[Any] = []
        self.raw = ffi.new(f"struct remus_{kind}_config *")
        self.raw.resource = self.string("resource", resource)
        self.raw.state_dir = self.string("state_dir", os.fspath(state_dir))
        if not volumes:
            raise ConfigError(f"resource {resource}: no volumes given")
        self._volumes = ffi.new("struct remus_volume[]", len(volumes))
        for raw, volume in zip(self._volumes, volumes, strict=True):
            raw.name = self.string("volume name", volume.name)
            raw.path = self.string("volume path", os.fspath(volume.path))
            raw.size = number("volume size", volume.size or 0, 1 << 62)
        self.raw.volumes = self._volumes
        self.raw.volume_count = len(volumes)
        self.raw.ack = choice("ack", ack, ACKS)
        self.raw.commit_by = choice("commit_by", commit_by, COMMIT_BY)

    def psk(
        self, psk_file: str | os.PathLike[str] | None, psk_identity: str | None
    ) -> None:
        if psk_file is not None:
            self.raw.psk_file = self.string("psk_file", os.fspath(psk_file))
        if psk_identity is not None:
            self.raw.psk_identity = self.string("psk_identity", psk_identity)

    def string(self, name: str, value: str) -> Any:
        if not isinstance(value, str) or "\0" in value:
            raise ConfigError(f"{name}: {value!r} is not a usable text")
        raw = ffi.new("char[]", os.fsencode(value))
        self._keep.append(raw)
        return raw
