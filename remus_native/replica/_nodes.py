# SPDX-License-Identifier: LGPL-2.1-or-later
"""Volumes in the file system, as FUSE nodes: `Export`, `Standby`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .._binding import ffi, lib, sized
from .._checks import boolean, encoded, every, integer, path_of
from .._handle import Handle
from .._values import Node
from ..errors import ConfigError, raise_for
from ._backup import Backup
from ._primary import Primary

__all__ = ["Export", "Standby"]

ID_MAX = (1 << 32) - 1


def raw_nodes_of(
    what: str, nodes: Sequence[Node] | None, names: tuple[str, ...]
) -> Any:
    """One for each volume, as C takes them; NULL for the usual ones."""
    if nodes is None:
        return ffi.NULL
    nodes = every("nodes", nodes, Node)
    if len(nodes) != len(names):
        raise ConfigError(f"{what}: {len(nodes)} nodes for {len(names)} volumes")
    raw_nodes = sized("node", len(nodes))
    for raw, node in zip(raw_nodes, nodes, strict=True):
        raw.uid = integer("uid", node.uid, ID_MAX)
        raw.gid = integer("gid", node.gid, ID_MAX)
        raw.mode = integer("mode", node.mode, 0o7777)
    return raw_nodes


def _mount(
    side: Primary | Backup,
    what: str,
    mountpoint: str,
    nodes: Sequence[Node] | None,
    kept: tuple[int, int] | None,
    *,
    guarded: bool,
    more: tuple[int, ...] = (),
) -> Any:
    """The handle of the nodes of ``side``, which is entered until it leaves;
    ``more``: what the call takes besides."""
    call = f"remus_{what}_open{'' if kept is None else '_kept'}"
    raw_nodes = raw_nodes_of(f"{what} at {mountpoint}", nodes, side.volumes)
    point = encoded("mountpoint", mountpoint)
    out = ffi.new("remus_export **")
    raw_side = side._enter()  # order is enforced
    rc = getattr(lib, call)(raw_side, point, raw_nodes, *more, *(kept or ()), out)
    if rc < 0:
        side._leave()
        raise_for(rc, invalid=ConfigError)
    if guarded:
        lib.remus_export_stay_guarded(out[0])
    return out[0]


class ContinuedPrimary(Primary):
    """A primary that goes on under a mount which another process has left."""

    def _fill(self, c: Any) -> None:
        super()._fill(c)
        c.raw.continues = 1


def keep_open(volumes: int) -> tuple[int, int]:
    """Descriptors with which the mount of an `Export` or `Standby` outlives its
    process."""
    memory, device = ffi.new("int *"), ffi.new("int *")
    rc = lib.remus_keep_open(volumes, memory, device)
    if rc < 0:
        raise_for(rc)
    return memory[0], device[0]


def check_kept(volumes: int, memory: int) -> None:
    """Can this version go on with that memory?  `ConfigError` says what differs."""
    rc = lib.remus_keep_check(volumes, memory)
    if rc < 0:
        raise_for(rc, invalid=ConfigError)


class Export(Handle):
    """A primary's volumes as files under ``mountpoint`` (FUSE).

    Each volume is a file of its size that answers the checkpoint ioctls;
    ``status`` and ``status.json`` say what the resource does.  Needs
    /dev/fuse and root (or fusermount3).  The primary's close closes it too.

    ``mountpoint`` is an empty directory.  Where root mounts, it has mode 0 and
    is immutable below the mount, so that nobody makes a file in it while no
    disk is served.  So it stays if the process dies; a close restores what
    was, unless ``keep_guarded``.

    ``kept``: the descriptors of `keep_open`, which another process has, too:
    that one can go on with the mount when this one is gone. They are the
    caller's, who closes them before `close`.

    Any thread may call any method.  A method blocks only where it says so.
    All raise `ConfigError` for a bad argument, and `StateError` once this is
    closed or in a forked child.
    Opening blocks for the mount.
    """

    def __init__(
        self,
        primary: Primary,
        mountpoint: str | os.PathLike[str],
        *,
        nodes: Sequence[Node] | None = None,
        keep_guarded: bool = False,
        kept: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.mountpoint = path_of("mountpoint", mountpoint)
        self._what = f"export at {self.mountpoint}"
        self._primary = primary  # entered until close
        self._raw = _mount(
            primary, "export", self.mountpoint, nodes, kept, guarded=keep_guarded
        )
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
        """Unmount and stop; idempotent.  Blocks for requests under way.

        Open files then fail.
        """
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
    disks, and calls `switch`; or it calls `refuse`.  From then on this is
    that primary's export, and closed by its close.  ``keep_guarded``,
    ``kept``: as of `Export`.

    Any thread may call any method.  A method blocks only where it says so.
    All raise `ConfigError` for a bad argument, and `StateError` once this is
    closed or in a forked child.
    Opening blocks for the mount.
    """

    def __init__(
        self,
        backup: Backup,
        mountpoint: str | os.PathLike[str],
        *,
        nodes: Sequence[Node] | None = None,
        auto_promote: bool = False,
        keep_guarded: bool = False,
        kept: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.mountpoint = path_of("mountpoint", mountpoint)
        self._what = f"standby at {self.mountpoint}"
        self._side: Backup | Primary | None = backup  # entered until release
        self._raw = _mount(
            backup,
            "standby",
            self.mountpoint,
            nodes,
            kept,
            guarded=keep_guarded,
            more=(boolean("auto_promote", auto_promote),),
        )
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
        """Let go of the backup, so that it can be closed; idempotent.

        Blocks for reads under way.
        """
        with self._call() as raw:
            lib.remus_standby_release(raw)
        if isinstance(self._side, Backup):
            self._side._standbys.remove(self)
            self._side._leave()
            self._side = None

    def switch(self, primary: Primary) -> None:
        """``primary`` serves the nodes from here on; opens that wait succeed.

        Blocks for reads under way.  Raises `ConfigError` if it has other volumes.
        """
        self.release()
        raw_primary = primary._enter()  # held until close
        with self._call() as raw:
            rc = lib.remus_standby_switch(raw, raw_primary)
        if rc < 0:
            primary._leave()
            raise_for(rc)
        self._side = primary
        primary._exports.append(self)

    def refuse(self, error: int = 0) -> None:
        """Opens that wait fail with the errno ``error`` (0: EIO)."""
        with self._call() as raw:
            lib.remus_standby_refuse(raw, integer("error", error, 4095))

    def close(self) -> None:
        """Unmount and stop; idempotent.  Blocks for requests under way.

        Open files then fail.
        """
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
