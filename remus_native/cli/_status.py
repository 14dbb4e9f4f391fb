# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``remus-native status`` prints for a person."""

from __future__ import annotations

from typing import Any

from ..replica import State
from ..resource_file import Side
from ..shared.progress import bytes_text, table
from . import _statistics

__all__ = ["status_text"]


def status_text(side: Side, status: dict[str, Any]) -> str:
    head = f"{status['resource']} {side}: {status['state']}"
    if not status["running"]:
        head += " (not running; as its state directory has it)"
    rows = [
        ("reason", status["reason"]),
        ("connected", _connected_text(status)),
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
    return f"{head}\n{table(rows)}"


def _connected_text(status: dict[str, Any]) -> str:
    if not status["connected"]:
        return "no"
    return f"yes, proven by {status['security']}".replace(
        "proven by none", "without any proof"
    )


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
