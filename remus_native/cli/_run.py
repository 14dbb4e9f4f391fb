# SPDX-License-Identifier: LGPL-2.1-or-later
"""``remus-native run``: checkpoints in a loop, through a primary's nodes."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

from .. import control
from .._text import printable
from ..checkpointer import Checkpointer, percentile
from ..control import NotRunning
from ..devices import CheckpointDevices
from ..drbd import DrbdDisk
from ..epochs import EpochStatistics
from ..errors import DeviceErrors, RemusError, StateError
from ..guests import NullGuest, QmpGuest
from ..resource_file import ResourceFile
from ..shared.log import say
from ..shared.progress import LiveTable, bytes_text, seconds_text, table
from ..watching._statistics import FILES, attached
from ._process import stop_signals

__all__ = ["run"]

HISTORY = 1 << 16  # checkpoints that the summary covers
SESSION_END_S = 1.0  # for the nodes to be closed
RECENT = 1000  # checkpoints that the live display covers


def run(
    resource: ResourceFile,
    *,
    interval_s: float,
    timeout_s: float,
    qmp: str | None,
    count: int | None,
    duration_s: float | None,
    on_loss: Literal["stop", "continue"] = "continue",
) -> int:
    """Take checkpoints until told to stop; prints a summary; the exit code.

    A lost backup is waited for, or with ``on_loss`` "stop" an error
    (`ReplicationLost`) after the summary.  The guest runs on in any case.
    The exit code is 3 where time or count ended it while the backup was away.
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
        devices = CheckpointDevices(map(DrbdDisk, nodes))
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
            on_loss=on_loss,
            loss_callback=lambda error: live.note(_lost(resource, error, on_loss)),
            return_callback=lambda away_s: live.note(_returned(resource, away_s)),
        )
        stack.callback(_end_session, resource, checkpointer)
        # The context sets the devices up, whatever ends the loop.
        stack.enter_context(devices)
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
    return 3 if checkpointer.summary().lost and not checkpointer.stopped else 0


def _lost(resource: ResourceFile, error: Exception, on_loss: str) -> str:
    then = "they go on when it is back" if on_loss == "continue" else "they end"
    return (
        f"remus-native: no checkpoints of {resource.name}: the guest runs on without "
        f"them, {then}: {printable(error)}"
    )


def _returned(resource: ResourceFile, away_s: float) -> str:
    return (
        f"remus-native: checkpoints of {resource.name} go on, after "
        f"{seconds_text(away_s)} without one"
    )


def _end_session(resource: ResourceFile, checkpointer: Checkpointer) -> None:
    """No memory waits for our last checkpoint: the engine can go on at once.

    The kernel tells the primary a little later that the nodes are closed.
    What else has them open goes on with its session.
    """
    if not checkpointer.summary().checkpoints:
        return  # there was none of ours
    end = time.monotonic() + SESSION_END_S
    with contextlib.suppress(RemusError):  # it has ended: nothing to tell
        while time.monotonic() < end:
            if control.call(resource.primary.state, "session_end", timeout_s=1.0):
                return
            time.sleep(0.01)


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
    return f"checkpoints of {resource.name} every {seconds_text(interval_s)}; {guest}"


def _show(
    live: LiveTable, title: str, checkpointer: Checkpointer, traffic: _Traffic
) -> None:
    if not live.due():
        return
    recent = checkpointer.history[-RECENT:]
    pauses = [stats.pause_ns / 1e9 for stats in recent]
    waits = [stats.ack_ns / 1e9 for stats in recent]
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
    s = checkpointer.summary()
    rows = [("checkpoints", f"{s.checkpoints}, {s.late} late for their interval")]
    if s.checkpoints:
        rows += [
            ("pause median", _ns_text(s.pause_ns.p50)),
            ("pause p99", _ns_text(s.pause_ns.p99)),
            ("pause max", _ns_text(s.pause_ns.max)),
            ("wait for ack median", _ns_text(s.ack_ns.p50)),
            ("wait for ack p99", _ns_text(s.ack_ns.p99)),
        ]
    if s.kept < s.checkpoints:
        rows.append(("times are of", f"the last {s.kept} checkpoints"))
    rows += traffic.rows()
    rows.append(("errors", str(_errors(checkpointer))))
    if s.losses:
        rows.append(("losses of the backup", str(s.losses)))
    if s.lost:
        rows.append(("lost", s.lost))
    return table(rows, indent="")


def _ns_text(time_ns: int) -> str:
    return seconds_text(time_ns / 1e9)


@contextlib.contextmanager
def _stop_on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` on SIGTERM, SIGINT or SIGHUP, in a thread: it may take a lock.

    A guest that is suspended at that moment is resumed first.
    """
    with stop_signals(on_hangup="stop") as signals:

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
