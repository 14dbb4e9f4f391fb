# SPDX-License-Identifier: LGPL-2.1-or-later
"""Volumes in the file system, as FUSE nodes: `Export`, `Standby`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ._backup import Backup
from ._binding import ffi, lib
from ._handle import Handle
from ._primary import Primary
from ._values import Node
from .errors import ConfigError, raise_for

__all__ = ["Export", "Standby"]


def raw_nodes_of(
    what: str, nodes: Sequence[Node] | None, names: tuple[str, ...]
) -> Any:
    """One for each volume, as C takes them; NULL for the usual ones."""
    if nodes is None:
        return ffi.NULL
    if len(nodes) != len(names):
        raise ConfigError(f"{what}: {len(nodes)} nodes for {len(names)} volumes")
    raw_nodes = ffi.new("struct remus_node[]", len(nodes))
    for raw, node in zip(raw_nodes, nodes, strict=True):
        raw.uid, raw.gid, raw.mode = node.uid, node.gid, node.mode
    return raw_nodes


class Export(Handle):
    """A primary's volumes as files under ``mountpoint`` (FUSE).

    Each volume is a file of its size that answers the checkpoint ioctls;
    ``status`` and ``status.json`` say what the resource does.  Needs
    /dev/fuse and root (or fusermount3).  The primary's close closes it too.
    """

    def __init__(
        self,
        primary: Primary,
        mountpoint: str | os.PathLike[str],
        *,
        nodes: Sequence[Node] | None = None,
    ) -> None:
        super().__init__()
        self._what = f"export at {os.fspath(mountpoint)}"
        self.mountpoint = os.fspath(mountpoint)
        raw_nodes = raw_nodes_of(self._what, nodes, primary.volumes)
        out = ffi.new("remus_export **")
        self._primary = primary
        raw_primary = primary._enter()  # held until close: order is enforced
        rc = lib.remus_export_open(
            raw_primary, os.fsencode(self.mountpoint), raw_nodes, out
        )
        if rc < 0:
            primary._leave()
            raise_for(rc, invalid=ConfigError)
        self._raw = out[0]
        primary._exports.append(self)

    def __enter__(self) -> Export:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def path(self, volume: str) -> str:
        """Where the node of ``volume`` is."""
        self._primary._index(volume)
        return os.path.join(self.mountpoint, volume)

    @property
    def alive(self) -> bool:
        """False once somebody unmounted it from outside."""
        with self._call() as raw:
            return bool(lib.remus_export_alive(raw))

    def close(self) -> None:
        """Unmount and stop; idempotent.  Open files then fail."""
        raw = self._take()
        if raw is not None:
            lib.remus_export_close(raw)
            self._primary._exports.remove(self)
            self._primary._leave()


class Standby(Handle):
    """A backup's volumes as files under ``mountpoint`` (FUSE).

    They have place, size and mode as they will have on the primary; reading
    gives the applied state.  Opening one for writing fails (EROFS), or, with
    ``auto_promote``, waits: `wanted` says so, and the owner promotes the
    backup, calls `release`, closes it, opens a `Primary` on its state and
    disks, and calls `turn`; or it calls `refuse`.  From the turn on this is
    that primary's export, and closed by its close.
    """

    def __init__(
        self,
        backup: Backup,
        mountpoint: str | os.PathLike[str],
        *,
        nodes: Sequence[Node] | None = None,
        auto_promote: bool = False,
    ) -> None:
        super().__init__()
        self._what = f"standby at {os.fspath(mountpoint)}"
        self.mountpoint = os.fspath(mountpoint)
        raw_nodes = raw_nodes_of(self._what, nodes, backup.volumes)
        out = ffi.new("remus_export **")
        self._side: Backup | Primary | None = backup
        raw_backup = backup._enter()  # held until release: order is enforced
        rc = lib.remus_standby_open(
            raw_backup, os.fsencode(self.mountpoint), raw_nodes, int(auto_promote), out
        )
        if rc < 0:
            backup._leave()
            raise_for(rc, invalid=ConfigError)
        self._raw = out[0]
        backup._standbys.append(self)

    @property
    def wanted(self) -> bool:
        """Does somebody wait with an open for writing?"""
        with self._call() as raw:
            return bool(lib.remus_standby_wanted(raw))

    @property
    def alive(self) -> bool:
        """False once somebody unmounted it from outside."""
        with self._call() as raw:
            return bool(lib.remus_export_alive(raw))

    def release(self) -> None:
        """Use the backup no more, so that it can be closed; idempotent."""
        with self._call() as raw:
            lib.remus_standby_release(raw)
        if isinstance(self._side, Backup):
            self._side._standbys.remove(self)
            self._side._leave()
            self._side = None

    def turn(self, primary: Primary) -> None:
        """``primary`` serves the nodes from here on; who waits is let in.

        Raises `ConfigError` if it has other volumes.
        """
        self.release()
        raw_primary = primary._enter()  # held until close
        with self._call() as raw:
            rc = lib.remus_standby_turn(raw, raw_primary)
        if rc < 0:
            primary._leave()
            raise_for(rc)
        self._side = primary
        primary._exports.append(self)

    def refuse(self, error: int = 0) -> None:
        """Who waits with an open gets the errno ``error`` (EIO)."""
        with self._call() as raw:
            lib.remus_standby_refuse(raw, error)

    def close(self) -> None:
        """Unmount and stop; idempotent.  Open files then fail."""
        raw = self._take()
        if raw is not None:
            lib.remus_export_close(raw)
            if isinstance(self._side, Primary):
                self._side._exports.remove(self)
            elif self._side is not None:
                self._side._standbys.remove(self)
            if self._side is not None:
                self._side._leave()
            self._side = None
