# SPDX-License-Identifier: LGPL-2.1-or-later
"""The replica engine: a primary and a backup in user space.

`Primary` and `Backup` are the two sides (csrc/remus.h, same names), `Export`
puts a primary's volumes into the file system as FUSE nodes, `Standby` a
backup's, and `ReplicaResource` makes a primary a device of the device layer.
"""

from __future__ import annotations

from typing import Any

from .._binding import lib
from .._checks import encoded, instance, seconds
from .._values import (
    Changes,
    Checkpoint,
    Log,
    LogEntry,
    Node,
    Refusal,
    State,
    Status,
    Tag,
    Verification,
    Volume,
    encode_tag,
)
from ..epochs import EpochSample
from ..errors import DeviceNotReady, PhaseError, RemusError
from ._backup import Backup
from ._config import BackupConfig, PrimaryConfig
from ._nodes import Export, Standby
from ._primary import Primary

__all__ = [
    "Backup",
    "BackupConfig",
    "Changes",
    "Checkpoint",
    "Export",
    "Log",
    "LogEntry",
    "Node",
    "Primary",
    "PrimaryConfig",
    "Refusal",
    "ReplicaResource",
    "Standby",
    "State",
    "Status",
    "Tag",
    "Verification",
    "Volume",
    "encode_tag",
]


class ReplicaResource:
    """A primary as a device of the device layer (all its volumes at once).

    The order of phases is enforced: setup, then postsuspend, preresume,
    commit again and again, then teardown.  `postsuspend` of n+1 may come
    before `commit` of n, not before the end of `preresume` of n.  After a
    failed preresume n is unknown: preresume may be retried, and the commit
    of the next epoch covers it.

    Phases come from one thread at a time; a method blocks only where it says
    so.  All raise `ReplicationLost` on a loss, `PhaseError` out of order.
    """

    kind = "disk"

    def __init__(
        self,
        primary: Primary,
        *,
        name: str | None = None,
        timeout_s: float | None = 5.0,
        setup_timeout_s: float | None = 60.0,
    ) -> None:
        self.primary = instance("primary", primary, Primary)
        self.name = primary.resource if name is None else name
        encoded("name", self.name)
        seconds("timeout_s", timeout_s)
        seconds("setup_timeout_s", setup_timeout_s)
        self.timeout_s = timeout_s
        self.setup_timeout_s = setup_timeout_s
        self._ready = False
        self._waiting: int | None = None  # epoch whose ack is not in
        self._acked: int | None = None  # epoch that may be committed

    def setup(self) -> None:
        """Block until Protected; raises `DeviceNotReady` with the reason."""
        try:
            self.primary.wait_protected(self.setup_timeout_s)
        except RemusError as error:
            raise DeviceNotReady(
                f"resource {self.name}: {error}", errno=error.errno, phase="setup"
            ) from error
        self.primary.session_begin()
        self._ready = True
        self._waiting = self._acked = None

    def is_ready(self) -> bool:
        """Whether a postsuspend would succeed now; never blocks."""
        self._check("is_ready")
        return self.primary.status().ready

    _may_block = False
    _invalid = PhaseError  # what EINVAL means in a phase

    def _join_group(self, group: Any) -> int:
        """Take part in a C group, which then drives the primary itself."""
        with self.primary._call() as raw:
            self.primary._groups.append(group)
            return int(
                lib.remus_group_add_primary(group.raw, encoded("name", self.name), raw)
            )

    def _leave_group(self, group: Any) -> None:
        if group in self.primary._groups:
            self.primary._groups.remove(group)

    def _check(self, phase: str) -> None:
        if not self._ready:
            raise PhaseError(f"resource {self.name}: {phase} before setup",
                             phase=phase)  # fmt: skip

    def postsuspend(self, tag: Tag | None = None) -> int:
        """Close epoch n and return n."""
        self._check("postsuspend")
        epoch = self.primary.postsuspend(tag)
        self._waiting = epoch
        return epoch

    def preresume(self, timeout_s: float | None = None) -> None:
        """Block until the epoch that postsuspend closed is acked.

        Raises `CheckpointTimeout` too.
        """
        self._check("preresume")
        if self._waiting is None:
            raise PhaseError(
                f"resource {self.name}: preresume without a postsuspend",
                phase="preresume",
            )
        self.primary.preresume(
            self._waiting, self.timeout_s if timeout_s is None else timeout_s
        )
        self._acked, self._waiting = self._waiting, None

    def commit(self) -> None:
        """Commit the newest epoch whose preresume succeeded."""
        self._check("commit")
        if self._acked is None:
            raise PhaseError(
                f"resource {self.name}: commit without an acked epoch",
                phase="commit",
            )
        self.primary.commit(self._acked)

    def epoch(self, number: int) -> EpochSample | None:
        """What is known of one epoch; see `Primary.epoch`."""
        return self.primary.epoch(number)

    def teardown(self) -> None:
        """End the session.  The primary stays open; it is its owner's."""
        if self._ready and not self.primary.closed:
            self.primary.session_end()
        self._ready = False
        self._waiting = self._acked = None
