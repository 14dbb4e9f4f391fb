# SPDX-License-Identifier: LGPL-2.1-or-later
"""``remus-native run``: checkpoints in a loop, through a primary's nodes."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

from ._progress import LiveLine, seconds_text, table
from ._serve import stop_signals
from .checkpointer import Checkpointer, EpochStats
from .control import NotRunning
from .devices import CheckpointDevices
from .drbd import DrbdDisk
from .guests import NullGuest, QmpGuest
from .resource_file import ResourceFile

__all__ = ["run"]

HISTORY = 1 << 16  # checkpoints that the summary looks back on


def run(
    resource: ResourceFile,
    *,
    interval_s: float,
    timeout_s: float,
    qmp: str | None,
    count: int | None,
    duration_s: float | None,
) -> int:
    """Take checkpoints until told to stop; prints a summary; 0.

    A lost backup is an error (`ReplicationLost`), after the summary.  The
    guest is running by then, in any case.
    """
    nodes = [os.path.join(resource.primary.mount, v.name) for v in resource.volumes]
    if not all(os.path.exists(node) for node in nodes):
        raise NotRunning(
            f"{resource.primary.mount} has no node {resource.volumes[0].name}: "
            f"start it first: remus-native primary {resource.file}"
        )
    with contextlib.ExitStack() as stack:
        guest: NullGuest | QmpGuest = NullGuest()
        if qmp:
            guest = stack.enter_context(QmpGuest(qmp))
        live = stack.enter_context(LiveLine())
        # The context sets the devices up, whatever ends the loop.
        devices = stack.enter_context(CheckpointDevices(map(DrbdDisk, nodes)))
        checkpointer = Checkpointer(
            devices,
            guest,
            interval_s=interval_s,
            timeout_s=timeout_s,
            on_checkpoint=lambda stats: _show(live, checkpointer, stats),
            history=HISTORY,
        )
        stack.enter_context(_stop_on_signal(checkpointer.stop))
        live.note(_opening(resource, interval_s, qmp))
        try:
            checkpointer.run(count=count, duration_s=duration_s)
        finally:
            live.clear()
            print(_summary(checkpointer), flush=True)
    return 0


def _opening(resource: ResourceFile, interval_s: float, qmp: str | None) -> str:
    guest = (
        f"the QEMU at {qmp}; no memory is copied: a failover is a cold "
        "boot from the disks of a checkpoint"
        if qmp
        else "no guest to suspend: each checkpoint is a crash-consistent cut"
    )
    return (
        f"remus-native: checkpoints of {resource.name} every "
        f"{seconds_text(interval_s)}; {guest}"
    )


def _show(live: LiveLine, checkpointer: Checkpointer, stats: EpochStats) -> None:
    if live.due():
        recent = checkpointer.history[-40:]
        mean = sum(each.pause_s for each in recent) / len(recent)
        live.update(
            f"checkpoint {stats.number}  pause {seconds_text(stats.pause_s)} "
            f"(mean of {len(recent)}: {seconds_text(mean)})"
        )


def _summary(checkpointer: Checkpointer) -> str:
    s = checkpointer.statistics()
    if not s.checkpoints:
        return "no checkpoint was taken"
    rows = [
        ("checkpoints", f"{s.checkpoints}, {s.late} late for their interval"),
        ("pause median", seconds_text(s.pause_median_s)),
        ("pause p99", seconds_text(s.pause_p99_s)),
        ("pause max", seconds_text(s.pause_max_s)),
        ("wait for ack median", seconds_text(s.preresume_median_s)),
        ("wait for ack p99", seconds_text(s.preresume_p99_s)),
    ]
    if s.kept < s.checkpoints:
        rows.append(("times are of", f"the last {s.kept} checkpoints"))
    if s.lost:
        rows.append(("lost", s.lost))
    return table(rows, indent="")


@contextlib.contextmanager
def _stop_on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` on SIGTERM or SIGINT, in a thread: it may take a lock."""
    with stop_signals() as signals:

        def wait() -> None:
            if signals.recv(1):  # nothing: the end of the context
                stop()

        thread = threading.Thread(target=wait, name="remus-signals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            signals.shutdown(socket.SHUT_RDWR)
            thread.join()
