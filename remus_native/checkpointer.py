# SPDX-License-Identifier: LGPL-2.1-or-later
"""The loop on top: suspend, close the epoch, copy, wait, resume, commit, pace."""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ._checks import choice, integer, seconds
from .devices import CheckpointDevices
from .epochs import EpochSample, EpochStatistics, SeriesSummary
from .errors import CheckpointTimeout, DeviceErrors, PhaseError, ReplicationLost
from .replica import ReplicaResource, Tag

__all__ = ["CheckpointSample", "CheckpointSummary", "Checkpointer", "Guest"]

#: What a loss of the backup looks like to the loop.
ReplicaErrors = ReplicationLost | CheckpointTimeout | DeviceErrors

AGAIN_S = 0.1  # from a checkpoint that failed to the next try, doubled up to
AGAIN_MAX_S = 1.0
LOOK_S = 0.1  # between two looks at devices that are not ready


class Guest(Protocol):
    """What a guest must be able to do; `copy` and `wait_complete` may be absent.

    ``suspend()`` stops it, ``resume()`` lets it run.  ``copy(tag)`` sends its
    dirty memory while it is suspended, ``wait_complete()`` returns when that
    is complete on the backup.

    The loop calls them from its thread; they may block, and what they raise is
    raised by `Checkpointer`.
    """

    def suspend(self) -> None: ...
    def resume(self) -> None: ...


@dataclass(frozen=True)
class CheckpointSample:
    """One checkpoint that a `Checkpointer` took; times in nanoseconds.

    Named as the phases are in an `EpochSample`: ``barrier_ns`` is what
    postsuspend of all devices took, ``ack_ns`` what their preresume did.
    ``pause_ns`` is what the guest feels: from the beginning of suspend to the
    end of resume.  ``numbers`` are the devices' numbers of the epoch.
    """

    number: int
    numbers: tuple[int | None, ...]
    tag: Tag
    pause_ns: int
    suspend_ns: int
    barrier_ns: int
    copy_ns: int
    ack_ns: int
    resume_ns: int
    commit_ns: int
    total_ns: int


@dataclass(frozen=True)
class CheckpointSummary:
    """All that a `Checkpointer` took, as `EpochSummary` is for epochs.

    ``checkpoints`` were taken, ``late`` of them took longer than their
    interval.  ``losses`` is how often the backup was lost, ``lost`` the reason
    while it is (None: it is not).  The series, in nanoseconds and exact, are
    of the ``kept`` newest ones.
    """

    checkpoints: int
    kept: int
    late: int
    losses: int
    lost: str | None
    pause_ns: SeriesSummary
    barrier_ns: SeriesSummary
    ack_ns: SeriesSummary
    commit_ns: SeriesSummary


def percentile(values: list[float], fraction: float) -> float:
    """The smallest value that at least ``fraction`` of them do not exceed."""
    if not values:
        return 0.0
    ordered = sorted(values)
    rank = max(1, -int(-fraction * len(ordered) // 1))
    return ordered[rank - 1]


def _series(values: list[int]) -> SeriesSummary:
    """One series in numbers, from its values."""
    ordered = sorted(values)

    def quantile(thousandth: int) -> int:
        rank = max(1, -(-thousandth * len(ordered) // 1000))
        return ordered[rank - 1] if ordered else 0

    return SeriesSummary(
        count=len(ordered),
        min=quantile(0),
        max=quantile(1000),
        mean=sum(ordered) // max(1, len(ordered)),
        p50=quantile(500),
        p90=quantile(900),
        p99=quantile(990),
        p999=quantile(999),
        total=sum(ordered),
    )


class Checkpointer:
    """Takes checkpoints of a guest and its devices, one each ``interval_s``.

    The order is libxl's: suspend, postsuspend, copy, preresume, resume, then
    (memory complete on the backup) commit, then wait for the rest of the
    interval, counted from start to start.  The guest is resumed whatever
    happens in between; the first error is the one that is raised.

    ``on_loss`` says what a lost backup means: "stop" raises
    `ReplicationLost` out of `run` (the guest is running by then),
    "continue" leaves the guest running unprotected, says so in
    `summary().lost`, and goes on as soon as the backup is back: until then it
    asks the devices (`CheckpointDevices.is_ready`), which suspends nobody.  A
    checkpoint that fails all the same is tried again after a pause of 0.1 s,
    doubled each time up to 1 s.  Both call ``loss_callback`` at the loss;
    ``return_callback(seconds)`` is called after the first checkpoint since,
    with the time without one.  "continue" takes an ack that does not come
    within ``timeout_s`` for a loss, too.
    ``tag(number)`` names a checkpoint; by default its running number.
    ``on_checkpoint(stats)`` is called after each commit, in the loop's
    thread.
    ``epochs`` are statistics of yours that the loop adds each checkpoint to,
    for other threads and processes: ``barrier_ns`` is how long the devices'
    postsuspend took, ``ack_ns`` how long their preresume waited.  Without
    them the attribute `epochs` is what the devices keep by themselves, if
    they do.

    ``history``: how many checkpoints are kept one by one.
    `stop` may be called from any thread or from a signal handler.

    `once` and `run` are for one thread at a time; any thread may call the
    other methods, which never block.
    """

    def __init__(
        self,
        devices: CheckpointDevices,
        guest: Any,
        *,
        interval_s: float = 0.05,
        timeout_s: float | None = 5.0,
        on_loss: Literal["stop", "continue"] = "stop",
        tag: Callable[[int], Tag] | None = None,
        on_checkpoint: Callable[[CheckpointSample], None] | None = None,
        loss_callback: Callable[[ReplicaErrors], None] | None = None,
        return_callback: Callable[[float], None] | None = None,
        history: int = 4096,
        epochs: EpochStatistics | None = None,
    ) -> None:
        seconds("interval_s", interval_s, none=False)
        seconds("timeout_s", timeout_s)
        choice("on_loss", on_loss, {"stop": 0, "continue": 1})
        integer("history", history, 1 << 32, low=1)
        self.devices = devices
        self.guest = guest
        self.interval_s = interval_s
        self.timeout_s = timeout_s
        self.on_loss = on_loss
        self._tag = tag or (lambda number: number)
        self._on_checkpoint = on_checkpoint
        self._loss_callback = loss_callback
        self._return_callback = return_callback
        self._history: deque[CheckpointSample] = deque(maxlen=history)
        self._epochs = epochs
        self._stop = threading.Event()
        self._number = 0
        self._late = 0
        self._losses = 0
        self._lost: str | None = None
        self._lost_at = 0.0  # monotonic, of the loss that lasts
        self._copy = getattr(guest, "copy", None)
        self._wait_complete = getattr(guest, "wait_complete", None)

    @property
    def history(self) -> tuple[CheckpointSample, ...]:
        """The newest checkpoints, oldest first."""
        return tuple(self._history)

    @property
    def epochs(self) -> EpochStatistics | None:
        """Statistics in the form that others can read: see the class."""
        if self._epochs is not None:
            return self._epochs
        return getattr(self.devices, "epochs", None)

    def stop(self) -> None:
        """End `run` after the checkpoint that is under way."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def once(self) -> CheckpointSample:
        """Take one checkpoint and return its numbers; blocks until it is done.

        Raises what a device or the guest raised; the guest is running again
        by then.
        """
        clock = time.monotonic_ns
        number = self._number + 1
        tag = self._tag(number)
        start = clock()
        suspended = closed = copied = 0
        resumed = False
        try:
            self.guest.suspend()
            suspended = clock()
            numbers = self.devices.postsuspend(tag)
            closed = clock()
            if self._copy is not None:
                self._copy(tag)
            copied = clock()
            self.devices.preresume(self.timeout_s)
            acked = clock()
            resumed = True
            self.guest.resume()
            running = clock()
        except BaseException as error:
            failed = clock()
            if not resumed:
                self._resume_after(error)
                if self._epochs is not None and suspended:
                    self._add_failed(error, suspended, closed, copied, failed)
            raise
        self._number = number
        if self._epochs is not None:
            self._epochs.add(
                EpochSample(
                    number,
                    start_ns=suspended,
                    barrier_ns=closed - suspended,
                    ack_ns=acked - copied,
                    bytes=self._bytes_of(numbers),
                )
            )
        if self._wait_complete is not None:
            self._wait_complete()
        before = clock()
        self.devices.commit()
        end = clock()
        if self._epochs is not None:
            self._epochs.committed(number, end - before)
        stats = CheckpointSample(
            number=number,
            numbers=numbers,
            tag=tag,
            pause_ns=running - start,
            suspend_ns=suspended - start,
            barrier_ns=closed - suspended,
            copy_ns=copied - closed,
            ack_ns=acked - copied,
            resume_ns=running - acked,
            commit_ns=end - before,
            total_ns=end - start,
        )
        self._history.append(stats)
        if self._on_checkpoint is not None:
            self._on_checkpoint(stats)
        return stats

    def _add_failed(
        self,
        error: BaseException,
        suspended: int,
        closed: int,
        copied: int,
        failed: int,
    ) -> None:
        """The checkpoint that ended in ``error``, as far as it came."""
        assert self._epochs is not None
        self._epochs.add(
            EpochSample(
                self._number + 1,
                start_ns=suspended,
                barrier_ns=(closed or failed) - suspended,
                ack_ns=failed - copied if copied else 0,
                errno=getattr(error, "errno", None) or errno.EIO,
            )
        )

    def _bytes_of(self, numbers: tuple[int | None, ...]) -> int:
        """What the epochs hold, of devices that know it."""
        taking_part = [d for d in self.devices.devices if hasattr(d, "postsuspend")]
        total = 0
        for device, number in zip(taking_part, numbers, strict=False):
            if isinstance(device, ReplicaResource) and number is not None:
                sample = device.epoch(number)
                total += 0 if sample is None else sample.bytes
        return total

    def _resume_after(self, error: BaseException) -> None:
        """Never leave a guest suspended; the first error stays the error."""
        try:
            self.guest.resume()
        except Exception as second:
            if hasattr(error, "add_note"):
                error.add_note(f"resuming the guest failed, too: {second}")

    def run(self, *, count: int | None = None, duration_s: float | None = None) -> int:
        """Take checkpoints until `stop`, ``count`` or ``duration_s``.

        Blocks until then, and returns how many were taken.  Sets the devices
        up if that was not done, and tears down what it set up.  Raises what
        `once` does.
        """
        duration_s = seconds("duration_s", duration_s)
        if count is not None:
            integer("count", count)
        if self._stop.is_set():
            raise PhaseError("this Checkpointer was stopped; make a new one")
        mine = not self.devices.devices
        if mine:
            self.devices.setup()
        taken = 0
        pause_s = AGAIN_S
        end = None if duration_s is None else time.monotonic() + duration_s
        try:
            while not self._stop.is_set() and (count is None or taken < count):
                start = time.monotonic()
                if end is not None and start >= end:
                    break
                try:
                    if not self._number:
                        self._wait_ready()
                    self.once()
                except (ReplicationLost, CheckpointTimeout, DeviceErrors) as error:
                    if not self._handle_loss(error):
                        raise
                    pause_s = self._wait_return(end, pause_s)
                    continue
                pause_s = AGAIN_S
                self._back()
                taken += 1
                self._pace(start)
        finally:
            if mine:
                self.devices.teardown()
        return taken

    def _wait_ready(self) -> None:
        """Before the first checkpoint, while the guest runs."""
        ready = getattr(self.devices, "wait_ready", None)
        if ready is not None:
            ready(self.timeout_s)

    def _handle_loss(self, error: ReplicaErrors) -> bool:
        """True if the loop shall wait for the backup."""
        goes_on = self.on_loss == "continue"
        losses = (ReplicationLost, CheckpointTimeout) if goes_on else ReplicationLost
        errors = error.errors if isinstance(error, DeviceErrors) else (error,)
        if not any(isinstance(each, losses) for each in errors):
            return False
        if self._lost is None:
            self._losses += 1
            self._lost_at = time.monotonic()
            self._lost = str(error)
            if self._loss_callback is not None:
                self._loss_callback(error)
        return goes_on

    def _wait_return(self, end: float | None, pause_s: float) -> float:
        """Until the devices are ready, `stop` or ``end``; the next pause.

        At least ``pause_s``: a guest is suspended for the next try.
        """
        ready = getattr(self.devices, "is_ready", None)
        wait_s = pause_s
        while end is None or time.monotonic() < end:
            if self._stop.wait(wait_s) or ready is None or ready():
                break
            wait_s = LOOK_S
        return min(2 * pause_s, AGAIN_MAX_S)

    def _back(self) -> None:
        """A checkpoint was taken: a loss before it is over."""
        if self._lost is None:
            return
        self._lost = None
        if self._return_callback is not None:
            self._return_callback(time.monotonic() - self._lost_at)

    def _pace(self, start: float) -> None:
        rest = start + self.interval_s - time.monotonic()
        if rest > 0:
            # Not longer than a lock can wait.
            self._stop.wait(min(rest, threading.TIMEOUT_MAX))
        else:
            self._late += 1

    def summary(self) -> CheckpointSummary:
        """All checkpoints in numbers; from any thread."""
        history = list(self._history)
        return CheckpointSummary(
            checkpoints=self._number,
            kept=len(history),
            late=self._late,
            losses=self._losses,
            lost=self._lost,
            pause_ns=_series([one.pause_ns for one in history]),
            barrier_ns=_series([one.barrier_ns for one in history]),
            ack_ns=_series([one.ack_ns for one in history]),
            commit_ns=_series([one.commit_ns for one in history]),
        )
