# SPDX-License-Identifier: LGPL-2.1-or-later
"""``remus-native run``: checkpoints in a loop, through a primary's nodes."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator

from ._process import say, stop_signals
from ._progress import LiveTable, bytes_text, seconds_text, table
from ._statistics import FILES, attached
from .checkpointer import Checkpointer, percentile
from .control import NotRunning
from .devices import CheckpointDevices
from .drbd import DrbdDisk
from .epochs import EpochStatistics
from .errors import DeviceErrors, RemusError, StateError
from .guests import NullGuest, QmpGuest
from .resource_file import ResourceFile

__all__ = ["run"]

HISTORY = 1 << 16  # checkpoints that the summary looks back on
RECENT = 1000  # checkpoints that the live display looks back on


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
        live = stack.enter_context(LiveTable())
        # The context sets the devices up, whatever ends the loop.
        devices = stack.enter_context(CheckpointDevices(map(DrbdDisk, nodes)))
        epochs = stack.enter_context(_statistics(resource))
        traffic = _Traffic(resource, stack)
        title = f"{resource.name}, a checkpoint every {seconds_text(interval_s)}"
        checkpointer = Checkpointer(
            devices,
            guest,
            interval_s=interval_s,
            timeout_s=timeout_s,
            on_checkpoint=lambda stats: _show(live, title, checkpointer, traffic),
            history=HISTORY,
            epochs=epochs,
        )
        stack.enter_context(_stop_on_signal(checkpointer.stop))
        live.note(_opening(resource, interval_s, qmp))
        try:
            checkpointer.run(count=count, duration_s=duration_s)
        except (StateError, DeviceErrors) as error:
            if not _node_is_gone(error):
                raise
            raise NotRunning(
                f"the primary that served {resource.primary.mount} has ended, and "
                f"the guest's disks with it: start it again (remus-native primary "
                f"{resource.file}), or promote the backup",
                errno=errno.ENOTCONN,
            ) from error
        finally:
            live.clear()
            print(_summary(checkpointer, traffic), flush=True)
    return 0


def _node_is_gone(error: StateError | DeviceErrors) -> bool:
    errors = error.errors if isinstance(error, DeviceErrors) else (error,)
    gone = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV)
    return any(getattr(each, "errno", None) in gone for each in errors)


def _statistics(resource: ResourceFile) -> EpochStatistics:
    """Where ``status`` finds them; where that can't be, for us alone."""
    path = os.path.join(resource.primary.state, FILES["run"])
    try:
        return EpochStatistics(resource.name, path=path)
    except RemusError as error:
        say(f"status will not show this run: {error}")
        return EpochStatistics(resource.name)


class _Traffic:
    """What was replicated since the start, as the primary counts it.

    A node tells nobody what an epoch holds; the primary's statistics do.
    Without them (an older primary) nothing is said about it.
    """

    def __init__(self, resource: ResourceFile, stack: contextlib.ExitStack) -> None:
        self._epochs: EpochStatistics | None = None
        try:
            self._epochs = attached(resource.primary.state, "primary")
        except RemusError as error:
            say(f"bytes are not counted: {error}")
        if self._epochs is not None:
            stack.enter_context(self._epochs)
        self._before = self._now()

    def _now(self) -> tuple[int, int, int]:
        if self._epochs is None:
            return 0, 0, 0
        summary = self._epochs.summary()
        return summary.bytes.total, summary.coalesced.total, summary.coalesced.count

    def rows(self) -> list[tuple[str, str]]:
        if self._epochs is None:
            return []
        data, coalesced, known = (
            now - before for now, before in zip(self._now(), self._before, strict=True)
        )
        share = bytes_text(coalesced)
        if data:
            share += f" ({100 * coalesced // data} %)"
        if not known:
            share = "not known yet"
        return [("replicated", bytes_text(data)), ("coalesced", share)]


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


def _show(
    live: LiveTable, title: str, checkpointer: Checkpointer, traffic: _Traffic
) -> None:
    if not live.due():
        return
    recent = checkpointer.history[-RECENT:]
    pauses = [stats.pause_s for stats in recent]
    waits = [stats.preresume_s for stats in recent]
    rows = [
        ("checkpoints", str(recent[-1].number)),
        ("pause", _quantiles(pauses)),
        ("wait for ack", _quantiles(waits)),
        *traffic.rows(),
        ("errors", str(_errors(checkpointer))),
    ]
    if recent[-1].number > len(recent):
        rows.append(("times are of", f"the last {len(recent)} checkpoints"))
    live.show(title, rows)


def _quantiles(times: list[float]) -> str:
    return (
        f"p50 {seconds_text(percentile(times, 0.5))}, "
        f"p99 {seconds_text(percentile(times, 0.99))}, "
        f"max {seconds_text(max(times))}"
    )


def _errors(checkpointer: Checkpointer) -> int:
    epochs = checkpointer.epochs
    return 0 if epochs is None else epochs.summary().failed


def _summary(checkpointer: Checkpointer, traffic: _Traffic) -> str:
    s = checkpointer.statistics()
    rows = [("checkpoints", f"{s.checkpoints}, {s.late} late for their interval")]
    if s.checkpoints:
        rows += [
            ("pause median", seconds_text(s.pause_median_s)),
            ("pause p99", seconds_text(s.pause_p99_s)),
            ("pause max", seconds_text(s.pause_max_s)),
            ("wait for ack median", seconds_text(s.preresume_median_s)),
            ("wait for ack p99", seconds_text(s.preresume_p99_s)),
        ]
    if s.kept < s.checkpoints:
        rows.append(("times are of", f"the last {s.kept} checkpoints"))
    rows += traffic.rows()
    rows.append(("errors", str(_errors(checkpointer))))
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
