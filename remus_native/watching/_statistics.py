# SPDX-License-Identifier: LGPL-2.1-or-later
"""The epoch statistics of ``primary`` and ``run``: their files, and in words."""

from __future__ import annotations

import dataclasses
import errno
import os
from typing import Any

from ..epochs import EpochStatistics
from ..errors import StateError
from ..shared.progress import bytes_text, seconds_text

__all__ = ["FILES", "attached", "of_state_dir", "rows"]

FILES = {"primary": "epochs", "run": "epochs.run"}
"""Who keeps statistics, and their name in the primary's state directory."""

SERIES = {
    "pause_ns": "pause",
    "barrier_ns": "barrier",
    "ack_ns": "wait for ack",
    "commit_ns": "commit",
    "bytes": "bytes",
    "extents": "extents",
    "coalesced": "coalesced",
}


def attached(state_dir: str, who: str) -> EpochStatistics | None:
    """The statistics that ``who`` keeps in ``state_dir``; None if it does not.

    Raises `StateError` for those that can't be read.
    """
    try:
        return EpochStatistics.attach(os.path.join(state_dir, FILES[who]))
    except StateError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def of_state_dir(state_dir: str) -> dict[str, dict[str, Any]]:
    """All that is kept in ``state_dir``, as JSON has it.

    What can't be read, as after a crash of the host, is named in "error":
    statistics never stand in the way of a status.
    """
    found: dict[str, dict[str, Any]] = {}
    for who in FILES:
        try:
            statistics = attached(state_dir, who)
        except StateError as error:
            found[who] = {"error": str(error)}
            continue
        if statistics is not None:
            with statistics:
                source = statistics.source()
                found[who] = {
                    **dataclasses.asdict(statistics.summary()),
                    "writing": source.writing,
                    "pid": source.pid,
                }
    return found


def _spread(values: dict[str, Any], *, time: bool) -> str:
    """The quantiles of one series in words."""

    def text(name: str) -> str:
        if time:
            return seconds_text(values[name] / 1e9)
        return str(values[name])

    return (
        f"p50 {text('p50')}, p99 {text('p99')}, p99.9 {text('p999')}, max {text('max')}"
    )


def rows(who: str, summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What `of_state_dir` found, as rows of a table."""
    if "error" in summary:
        return [(f"{who}'s epochs", summary["error"])]
    head = f"{summary['epochs']}, {summary['failed']} failed"
    if not summary["writing"]:
        head += f" (that {who} has ended)"
    found = [(f"{who}'s epochs", head)]
    for name, title in SERIES.items():
        values = summary[name]
        if not values["count"]:
            continue
        if name in ("bytes", "coalesced"):
            words = ", ".join(
                f"{label} {bytes_text(values[key])}"
                for label, key in (("p50", "p50"), ("p99", "p99"), ("max", "max"))
            )
            words += f", in all {bytes_text(values['total'])}"
        else:
            words = _spread(values, time=name.endswith("_ns"))
        found.append((f"  {title}", words))
    return found
