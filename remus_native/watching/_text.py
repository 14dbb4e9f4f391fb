# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``remus-native status`` prints for a person."""

from __future__ import annotations

import time
from typing import Any

from ..replica import State
from ..resource_file import Side
from ..shared.progress import bytes_text, seconds_text, table
from . import _statistics

__all__ = ["status_text"]


def status_text(side: Side, status: dict[str, Any]) -> str:
    head = f"{status['resource']} {side}: {status['state']}"
    if not status["running"]:
        head += " (not running; read from its state directory)"
    rows = [
        ("reason", status["reason"]),
        ("connected", _connected_text(status)),
        ("lag", _lag_text(side, status["lag"])),
        ("newest checkpoint", _age_text(side, status)),
        (
            "epochs",
            f"prepared {status['prepared_epoch']}, "
            f"committed {status['committed_epoch']}"
            + (f", applied {status['applied_epoch']}" if side == "backup" else ""),
        ),
        ("replicated", bytes_text(status["bytes_written"] + status["bytes_zeroed"])),
    ]
    if side == "primary":
        rows.append(
            (
                "send queue",
                f"{bytes_text(status['queue_bytes'])} of "
                f"{bytes_text(status['queue_limit'])}, {status['stalls']} stalls",
            )
        )
        if status["parked_writes"] and not status["connected"]:
            rows.append(
                (
                    "waiting",
                    f"{status['parked_writes']} writes of the guest, for leave to go "
                    "on alone: the fence command's success, or `remus-native resume`",
                )
            )
        if status["holds"]:
            rows.append(
                (
                    "holding",
                    "who waits for an ack waits on: for the backup, or "
                    "`remus-native resume`",
                )
            )
        if status["state"] == State.CATCHING_UP and status["resync_total"]:
            done, total = status["resync_done"], status["resync_total"]
            rows.append(("copied", f"{bytes_text(done)} of {bytes_text(total)}"))
        for who, summary in status["statistics"].items():
            rows += _statistics.rows(who, summary)
        rows.append(("disks", f"{status['mount']}, {_writers_text(status)}"))
    else:
        rows.append(
            (
                "journal",
                f"{bytes_text(status['journal_bytes'])} of "
                f"{bytes_text(status['journal_limit'])}",
            )
        )
        rows.append(("coalesced", bytes_text(status["bytes_coalesced"])))
        rows.append(("can promote to", _checkpoints_text(status["checkpoints"])))
        if status["refusals"]:
            rows.append(("refused", _refusals_text(status["refusals"])))
        if status["mount"]:
            rows.append(("disks", status["mount"]))
    if "pid" in status:
        since = seconds_text(max(0.0, time.time() - status["started"]))
        rows.append(("process", f"{status['pid']}, {status['version']}, for {since}"))
    return f"{head}\n{table(rows)}"


def _connected_text(status: dict[str, Any]) -> str:
    since = f" for {seconds_text(status['link_s'])}" if "link_s" in status else ""
    if not status["connected"]:
        return f"no{since} ({status['address']})"
    return f"yes{since} ({status['address']}), proven by {status['security']}".replace(
        "proven by none", "without any proof"
    )


def _lag_text(side: Side, lag: dict[str, Any]) -> str:
    what = "not acked" if side == "primary" else "not applied yet"
    lacks = "the backup lacks" if side == "primary" else "in the journal"
    words = f"{lag['epochs']} checkpoints {what}, {lacks} {bytes_text(lag['bytes'])}"
    if lag["seconds"] is not None:
        words += f", {seconds_text(lag['seconds'])} behind"
    return words


def _age_text(side: Side, status: dict[str, Any]) -> str:
    if status["age_s"] is None:
        return "none seen by this process" if status["running"] else "not known"
    return f"was the newest state {seconds_text(status['age_s'])} ago"


def _writers_text(status: dict[str, Any]) -> str:
    count = status["writers"]
    if not count:
        return "no file open for writing"
    who = ", ".join(
        f"{one['command']}"
        + (f" (pid {one['pid']})" if one["pid"] else "")
        + f" on {one['volume']}"
        for one in status["open_for_writing"]
    )
    return f"{count} open for writing" + (f": {who}" if who else "")


def _refusals_text(refusals: list[dict[str, Any]]) -> str:
    newest = max(refusals, key=lambda one: int(one["last_ns"]))
    return (
        f"{sum(one['count'] for one in refusals)} connections, last one from "
        f"{newest['source']}: {newest['text']}"
    )


def _checkpoints_text(checkpoints: list[dict[str, Any]]) -> str:
    if not checkpoints:
        return "nothing yet"
    shown = [
        f"{cp['epoch']}"
        + (f" (tag {cp['tag']})" if cp["tag"] else "")
        + (" committed" if cp["committed"] else "")
        for cp in checkpoints
    ]
    if len(shown) > 4:
        shown = [shown[0], f"... {len(shown) - 2} more ...", shown[-1]]
    return ", ".join(shown)
