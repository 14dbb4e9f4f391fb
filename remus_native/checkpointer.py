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

from .devices import CheckpointDevices
from .epochs import EpochSample, EpochStatistics
from .errors import ConfigError, DeviceErrors, PhaseError, ReplicationLost
from .replica import ReplicaResource, Tag

__all__ = ["CheckpointStatistics", "Checkpointer", "EpochStats", "Guest"]


class Guest(Protocol):
    """What a guest must be able to do; `copy` and `wait_complete` may be absent.

    ``suspend()`` stops it, ``resume()`` lets it run.  ``copy(tag)`` sends its
    dirty memory while it is suspended, ``wait_complete()`` returns when that
    is complete on the backup.
    """

    def suspend(self) -> None: ...
    def resume(self) -> None: ...


@dataclass(frozen=True)
class EpochStats:
    """One checkpoint; times in seconds.

    ``pause_s`` is what the guest feels: from the beginning of suspend to the
    end of resume.
    """

    number: int
    numbers: tuple[int | None, ...]
    tag: Tag
    pause_s: float
    suspend_s: float
    postsuspend_s: float
    copy_s: float
    preresume_s: float
    resume_s: float
    commit_s: float
    total_s: float


@dataclass(frozen=True)
class CheckpointStatistics:
    """Over the newest checkpoints (at most ``history``); seconds."""

    checkpoints: int
    kept: int
    pause_median_s: float
    pause_p99_s: float
    pause_max_s: float
    preresume_median_s: float
    preresume_p99_s: float
    late: int
    lost: str | None


def percentile(values: list[float], fraction: float) -> float:
    """The smallest value that at least ``fraction`` of them do not exceed."""
    if not values:
        return 0.0
    ordered = sorted(values)
    rank = max(1, -int(-fraction * len(ordered) // 1))
    return ordered[rank - 1]


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


class Checkpointer:
    """Takes checkpoints of a guest and its devices, one each ``interval_s``.

    The order is libxl's: suspend, postsuspend, copy, preresume, resume, then
    (memory complete on the backup) commit, then wait for the rest of the
    interval, counted from start to start.  The guest is resumed whatever
    happens in between; the first error is the one that is raised.

    ``on_loss`` says what a lost backup means: "stop" raises
    `ReplicationLost` out of `run` (the guest is running by then),
    "continue" ends the checkpoints, leaves the guest running unprotected,
    and says so in `statistics().lost`; both call ``loss_callback`` first.
    ``tag(number)`` names a checkpoint; by default its running number.
    ``on_checkpoint(stats)`` is called after each commit, in the loop's
    thread.
    ``epochs`` are statistics of yours that the loop adds each checkpoint to,
    for other threads and processes: ``barrier_ns`` is how long the devices'
    postsuspend took, ``ack_ns`` how long their preresume waited.  Without
    them the attribute `epochs` is what the devices keep by themselves, if
    they do.

    `stop` may be called from any thread or from a signal handler.
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
        on_checkpoint: Callable[[EpochStats], None] | None = None,
        loss_callback: Callable[[ReplicationLost | DeviceErrors], None] | None = None,
        history: int = 4096,
        epochs: EpochStatistics | None = None,
    ) -> None:
        if interval_s < 0:
            raise ConfigError(f"interval_s: {interval_s} is negative")
        if on_loss not in ("stop", "continue"):
            raise ConfigError(f'on_loss: {on_loss!r} is not one of "stop", "continue"')
        if history < 1:
            raise ConfigError(f"history: {history} is less than 1")
        self.devices = devices
        self.guest = guest
        self.interval_s = interval_s
        self.timeout_s = timeout_s
        self.on_loss = on_loss
        self._tag = tag or (lambda number: number)
        self._on_checkpoint = on_checkpoint
        self._loss_callback = loss_callback
        self._history: deque[EpochStats] = deque(maxlen=history)
        self._epochs = epochs
        self._stop = threading.Event()
        self._number = 0
        self._late = 0
        self._lost: str | None = None
        self._copy = getattr(guest, "copy", None)
        self._wait_complete = getattr(guest, "wait_complete", None)

    @property
    def history(self) -> tuple[EpochStats, ...]:
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

    def once(self) -> EpochStats:
        """Take one checkpoint and return its numbers.

        Raises what a device or the guest raised; the guest is running again
        then.
        """
        clock = time.perf_counter
        number = self._number + 1
        tag = self._tag(number)
        start = clock()
        suspended = closed = copied = 0.0
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
                    start_ns=_ns(suspended),
                    barrier_ns=_ns(closed - suspended),
                    ack_ns=_ns(acked - copied),
                    bytes=self._bytes_of(numbers),
                )
            )
        if self._wait_complete is not None:
            self._wait_complete()
        before = clock()
        self.devices.commit()
        end = clock()
        if self._epochs is not None:
            self._epochs.committed(number, _ns(end - before))
        stats = EpochStats(
            number=number,
            numbers=numbers,
            tag=tag,
            pause_s=running - start,
            suspend_s=suspended - start,
            postsuspend_s=closed - suspended,
            copy_s=copied - closed,
            preresume_s=acked - copied,
            resume_s=running - acked,
            commit_s=end - before,
            total_s=end - start,
        )
        self._history.append(stats)
        if self._on_checkpoint is not None:
            self._on_checkpoint(stats)
        return stats

    def _add_failed(
        self,
        error: BaseException,
        suspended: float,
        closed: float,
        copied: float,
        failed: float,
    ) -> None:
        """The checkpoint that ended in ``error``, as far as it came."""
        assert self._epochs is not None
        self._epochs.add(
            EpochSample(
                self._number + 1,
                start_ns=_ns(suspended),
                barrier_ns=_ns((closed or failed) - suspended),
                ack_ns=_ns(failed - copied) if copied else 0,
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

        Returns how many were taken.  Sets the devices up if that was not
        done, and tears down what it set up.
        """
        if self._stop.is_set():
            raise PhaseError("this Checkpointer was stopped; make a new one")
        mine = not self.devices.devices
        if mine:
            self.devices.setup()
        taken = 0
        end = None if duration_s is None else time.monotonic() + duration_s
        try:
            while not self._stop.is_set() and (count is None or taken < count):
                start = time.monotonic()
                if end is not None and start >= end:
                    break
                try:
                    self.once()
                except (ReplicationLost, DeviceErrors) as error:
                    if not self._handle_loss(error):
                        raise
                    break
                taken += 1
                self._pace(start)
        finally:
            if mine:
                self.devices.teardown()
        return taken

    def _handle_loss(self, error: ReplicationLost | DeviceErrors) -> bool:
        """True if the loop ends quietly, as told."""
        errors = error.errors if isinstance(error, DeviceErrors) else (error,)
        if not any(isinstance(each, ReplicationLost) for each in errors):
            return False
        self._lost = str(error)
        if self._loss_callback is not None:
            self._loss_callback(error)
        return self.on_loss == "continue"

    def _pace(self, start: float) -> None:
        rest = start + self.interval_s - time.monotonic()
        if rest > 0:
            self._stop.wait(rest)
        else:
            self._late += 1

    def statistics(self) -> CheckpointStatistics:
        """A summary of the newest checkpoints; from any thread."""
        history = list(self._history)
        pauses = [stats.pause_s for stats in history]
        waits = [stats.preresume_s for stats in history]
        return CheckpointStatistics(
            checkpoints=self._number,
            kept=len(history),
            pause_median_s=percentile(pauses, 0.5),
            pause_p99_s=percentile(pauses, 0.99),
            pause_max_s=max(pauses, default=0.0),
            preresume_median_s=percentile(waits, 0.5),
            preresume_p99_s=percentile(waits, 0.99),
            late=self._late,
            lost=self._lost,
        )
