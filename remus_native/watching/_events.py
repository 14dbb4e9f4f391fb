# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each change of state of a resource, as it comes: ``remus-native events``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from .. import control
from .._text import event
from ..control import NotRunning
from ..errors import RemusError
from ..resource_file import ResourceFile, Side

__all__ = ["Follower", "event_line", "log_object"]

NOT_RUNNING = "NotRunning"
ANSWER_S = 3.0


def log_object(log: Any) -> dict[str, Any]:
    """What a serving process answers to ``log``; see `Side.log`."""
    return {
        "next": log.next,
        "lost": log.lost,
        "now_ns": time.monotonic_ns(),
        "entries": [
            {
                "time_ns": entry.time_ns,
                "state": str(entry.state),
                "connected": entry.connected,
                "text": entry.text,
            }
            for entry in log.entries
        ],
    }


class Follower:
    """The events of one side on this host, asked for again and again.

    The first one says what is (``event`` "exists"), the others what changed:
    "state" (old and new state, or the connection), "reason" (the same state
    for another reason), "lost" (entries that were pushed out before they were
    asked for).  A process that is not there is the state NotRunning.
    """

    def __init__(self, resource: ResourceFile, side: Side) -> None:
        self._resource = resource
        self._side = side
        self._after = 0
        self._pid = 0
        self._old: tuple[str, bool] | None = None

    def look(self) -> Iterator[dict[str, Any]]:
        """What is new since the last call."""
        state = self._resource.state(self._side)
        try:
            # The log before the status: what comes between is told twice at
            # most, and not lost.
            log = control.call(state, "log", timeout_s=ANSWER_S, after=self._after)
            status = control.call(state, "status", timeout_s=ANSWER_S)
            if status.get("pid", 0) != self._pid:
                if self._pid or self._old is not None:  # another process
                    log = control.call(state, "log", timeout_s=ANSWER_S)
                else:  # what was before we looked is history
                    log["entries"], log["lost"] = [], 0
                    yield self._event(
                        time.time(),
                        status["role"],
                        status["state"],
                        bool(status["connected"]),
                        status["reason"],
                    )
                self._pid = status.get("pid", 0)
        except NotRunning as error:
            self._pid = 0
            if self._old is None or self._old[0] != NOT_RUNNING:
                yield self._event(
                    time.time(), self._side, NOT_RUNNING, False, str(error)
                )
            return
        except RemusError as error:
            if self._old is None:
                yield self._event(time.time(), self._side, "?", False, str(error))
            return
        if log["lost"]:
            yield self._lost(log["lost"])
        now, clock = time.time(), log["now_ns"]
        # Few entries have words of their own: those of the state that it still
        # is in have its reason.
        entries = log["entries"]
        same = len(entries)
        while same and entries[same - 1]["state"] == status["state"]:
            same -= 1
        for i, entry in enumerate(entries):
            yield self._event(
                now - (clock - entry["time_ns"]) / 1e9,
                status["role"],
                entry["state"],
                bool(entry["connected"]),
                entry["text"] or (status["reason"] if i >= same else ""),
            )
        self._after = log["next"]

    def _event(
        self, at: float, role: str, state: str, connected: bool, reason: str
    ) -> dict[str, Any]:
        old, self._old = self._old, (state, connected)
        kind = "exists" if old is None else "state"
        if old == self._old:
            kind = "reason"
        return {
            "event": kind,
            "time": _iso(at),
            "resource": self._resource.name,
            "role": role,
            "old": old[0] if old else None,
            "new": state,
            "connected": connected,
            "reason": reason,
        }

    def _lost(self, count: int) -> dict[str, Any]:
        assert self._old is not None
        return {
            "event": "lost",
            "time": _iso(time.time()),
            "resource": self._resource.name,
            "role": self._side,
            "old": self._old[0],
            "new": self._old[0],
            "connected": self._old[1],
            "reason": f"{count} changes came faster than they were asked for",
        }


def _iso(at: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
    return f"{whole}.{int(at % 1 * 1000):03d}Z"


def event_line(one: dict[str, Any]) -> str:
    """An event as a key=value line."""
    values = {
        "time": one["time"],
        "resource": one["resource"],
        "role": one["role"],
        "old": one["old"] or "-",
        "new": one["new"],
        "connected": int(one["connected"]),
        "reason": one["reason"],
    }
    return event(one["event"], **values)
