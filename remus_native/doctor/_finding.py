# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a check says, and of what."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from .. import control
from ..resource_file import BackupSide, PrimarySide, ResourceFile, Side

__all__ = ["ERROR", "OK", "WARNING", "Finding", "Subject", "existing"]

OK, WARNING, ERROR = "ok", "warning", "error"


@dataclass(frozen=True)
class Finding:
    """One line of the report.  ``side``: None if it is the host's."""

    name: str
    side: Side | None
    level: str
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Subject:
    """One side of a resource on this host."""

    resource: ResourceFile
    side: Side
    run_fence: Callable[[], None] | None = None

    @property
    def own(self) -> PrimarySide | BackupSide:
        return self.resource.primary if self.side == "primary" else self.resource.backup

    @property
    def state(self) -> str:
        return self.resource.state(self.side)

    @property
    def runs(self) -> bool:
        """Whether a process serves this side now."""
        return control.is_running(self.state)

    def says(
        self, name: str, level: str, found: str, fix: str = "", *, of_host: bool = False
    ) -> Finding:
        return Finding(name, None if of_host else self.side, level, found, fix)


def existing(path: str) -> str:
    """``path``, or the nearest directory above it that is there."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
