# SPDX-License-Identifier: LGPL-2.1-or-later
"""When the newest checkpoint was, as the process that serves a side saw it."""

from __future__ import annotations

import os
import time
from typing import Any

from .._binding import lib, text
from ..replica import State, Status

__all__ = ["Newest"]

#: Nobody promotes to a checkpoint of these.
OVER = (State.PROMOTED, State.FENCED)


class Newest:
    """Adds to a status what only a process that looks again and again knows.

    The newest checkpoint is as old as the last moment at which nothing newer
    was there to be lost: it was just acked, or the sides are Protected and
    nothing was written since.  `look` is called five times a second, so an
    age is at most so much too high.
    """

    def __init__(self) -> None:
        self._started = time.time()
        self._epoch = -1
        self._at: float | None = None

    def look(self, status: Status) -> None:
        closed = status.role == "backup" or status.open_epoch == (
            status.prepared_epoch + 1
        )
        if (
            status.state is State.PROTECTED and closed and not status.open_bytes
        ) or -1 != self._epoch != status.prepared_epoch:
            self._at = time.monotonic()
        self._epoch = status.prepared_epoch

    def facts(self, status: Status) -> dict[str, Any]:
        """For the answer to a ``status`` request."""
        self.look(status)
        now = time.monotonic()
        at = None if status.state in OVER else self._at
        return {
            "pid": os.getpid(),
            "version": text(lib.remus_version()),
            "started": self._started,
            "link_s": max(0.0, now - status.link_changed_ns / 1e9),
            "age_s": None if at is None else max(0.0, now - at),
        }
