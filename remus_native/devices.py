# SPDX-License-Identifier: LGPL-2.1-or-later
"""The device layer: all disks of a guest through the phases of a checkpoint.

It is libxl's checkpoint device layer with its faults mended: an error never
counts as "sent", the result of a wait is never thrown away, "does not match"
is told from "not ready", and no process is forked to wait.
"""

from __future__ import annotations

import errno
import queue
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from .errors import (
    DeviceErrors,
    DeviceNotSupported,
    PhaseError,
    RemusWarning,
)
from .replica import ReplicaResource, Tag

__all__ = ["CheckpointDevice", "CheckpointDevices", "Subkind"]


@runtime_checkable
class CheckpointDevice(Protocol):
    """What a device is: a kind, a name, and the phases that it has.

    A phase that a device does not have may be missing; it is a no-op then.
    ``setup`` may raise `DeviceNotSupported`, which means "not mine": the
    layer goes on to the next subkind.  ``postsuspend`` must not block;
    ``preresume`` returns only when the epoch is safe.
    """

    kind: str
    name: str

    def setup(self) -> None: ...
    def postsuspend(self, tag: Tag | None = None) -> int: ...
    def preresume(self, timeout_s: float | None = None) -> None: ...
    def commit(self) -> None: ...
    def teardown(self) -> None: ...


@dataclass(frozen=True)
class Subkind:
    """One engine's way to take a device.

    ``match`` gets the description of a device (a path, a mapping: whatever
    the toolstack has) and returns a `CheckpointDevice`, or raises
    `DeviceNotSupported` with the reason why it is not one of its own.  Any
    other exception is final: the device is of this kind, and broken.
    """

    name: str
    match: Callable[[Any], CheckpointDevice]


class _Worker:
    """A parked thread that waits for one device, made at setup."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.thread = threading.Thread(
            target=self._run, name=f"remus-wait-{device.name}", daemon=True
        )
        self.thread.start()

    def _run(self) -> None:
        while True:
            job = self.jobs.get()
            if job is None:
                return
            index, timeout_s, results = job
            error: BaseException | None = None
            try:
                self.device.preresume(timeout_s)
            except BaseException as caught:
                error = caught
            results.put((index, error))

    def stop(self) -> None:
        self.jobs.put(None)
        self.thread.join()


def _phase_of(device: Any, name: str) -> Callable[..., Any] | None:
    return getattr(device, name, None)


class CheckpointDevices:
    """All devices of one guest, taken through the phases together.

    ``devices``: ready-made `CheckpointDevice` objects, or descriptions that
    are offered to each of ``subkinds`` in order.  The phases:

    - `setup` matches and sets up every device.  Where one fails, those that
      were set up are torn down again and the error is raised.
    - `postsuspend` closes the epoch on every device, one after the other
      (it never blocks).
    - `preresume` waits for all at once: a single device in the calling
      thread, several in threads that were made by setup.
    - `commit` tells every device, and only after every one's preresume
      succeeded.
    - `teardown` reaches every device that was set up, in reverse order,
      whatever the others do.

    All errors are reported: one device's error is raised as it is, several
    as `DeviceErrors`, whose first is the cause.  A phase out of order is a
    `PhaseError`, not a guess.  Not for use from several threads at once.

    >>> with CheckpointDevices([ReplicaResource(primary)]) as devices:
    ...     devices.postsuspend()
    ...     devices.preresume(timeout_s=5)
    ...     devices.commit()
    """

    def __init__(
        self, devices: Iterable[Any], *, subkinds: Sequence[Subkind] = ()
    ) -> None:
        self._descriptions = list(devices)
        self._subkinds = tuple(subkinds)
        self._devices: list[Any] = []
        self._workers: list[_Worker] = []
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._post: list[Callable[..., Any]] = []
        self._pre: list[Callable[..., Any]] = []
        self._commit: list[Callable[..., Any]] = []
        self._state = "new"
        self._acked = False
        self._pending: set[int] = set()  # workers whose device has no ack yet
        self.numbers: tuple[int | None, ...] = ()

    @property
    def devices(self) -> tuple[Any, ...]:
        """The devices that are set up, in order."""
        return tuple(self._devices)

    def __enter__(self) -> CheckpointDevices:
        self.setup()
        return self

    def __exit__(self, *exc: object) -> None:
        self.teardown()

    # -- setup and teardown ------------------------------------------------

    def setup(self) -> None:
        """Match and set up every device.

        Raises `DeviceNotSupported` if no subkind takes a device (with each
        one's reason), or what a device's own setup raised.
        """
        if self._state != "new":
            raise PhaseError(f"setup in state {self._state}", phase="setup")
        self._state = "setup"
        try:
            for description in self._descriptions:
                self._devices.append(self._take(description))
            self._warn_if_mixed()
        except BaseException:
            self._teardown_all()
            self._state = "new"
            raise
        bound = [
            [m for d in self._devices if (m := _phase_of(d, name))]
            for name in ("postsuspend", "preresume", "commit")
        ]
        self._post, self._pre, self._commit = bound
        waiting = [d for d in self._devices if _phase_of(d, "preresume")]
        if len(waiting) > 1:
            self._workers = [_Worker(device) for device in waiting]
        self._state = "running"
        self._acked = False

    def _take(self, description: Any) -> Any:
        """A device for a description, set up."""
        if isinstance(description, CheckpointDevice):
            description.setup()
            return description
        reasons = []
        for subkind in self._subkinds:
            try:
                device = subkind.match(description)
                setup = _phase_of(device, "setup")
                if setup:
                    setup()
            except DeviceNotSupported as error:
                reasons.append(f"{subkind.name}: {error}")
                continue
            return device
        if _phase_of(description, "postsuspend") or _phase_of(description, "setup"):
            # A ready-made device that lacks some phases.
            setup = _phase_of(description, "setup")
            if setup:
                setup()
            return description
        why = "; ".join(reasons) or "no subkinds were given"
        raise DeviceNotSupported(
            f"device {description!r} is not supported: {why}",
            errno=errno.ENOTSUP,
            volume=str(description),
            phase="setup",
        )

    def _warn_if_mixed(self) -> None:
        disks = [d for d in self._devices if getattr(d, "kind", None) == "disk"]
        ours = [
            d
            for d in disks
            if isinstance(d, ReplicaResource) or getattr(d, "is_node", False)
        ]
        if ours and len(ours) < len(disks):
            others = ", ".join(d.name for d in disks if d not in ours)
            warnings.warn(
                f"{others}: a DRBD disk applies each epoch at its barrier, before "
                "the checkpoint is complete: after a failover the disks of this "
                "guest may be at different checkpoints",
                RemusWarning,
                stacklevel=4,
            )

    def teardown(self) -> None:
        """End the session on every device that was set up; idempotent.

        Every device is reached; errors are collected and raised at the end.
        """
        if self._state == "new":
            return
        errors = self._teardown_all()
        self._state = "new"
        self._raise(errors, "teardown")

    def _teardown_all(self) -> list[Exception]:
        errors: list[Exception] = []
        for worker in self._workers:
            worker.stop()
        self._workers = []
        while self._devices:
            device = self._devices.pop()
            teardown = _phase_of(device, "teardown")
            try:
                if teardown:
                    teardown()
            except Exception as error:
                errors.append(error)
        return errors

    # -- the phases of a checkpoint ----------------------------------------

    def _expect(self, phase: str, *states: str) -> None:
        if self._state not in states:
            raise PhaseError(
                f"{phase} in state {self._state!r}; allowed in {', '.join(states)}",
                phase=phase,
            )

    @staticmethod
    def _raise(errors: list[Exception], phase: str) -> None:
        if not errors:
            return
        if len(errors) == 1:
            raise errors[0]
        listed = "; ".join(str(error) for error in errors)
        raise DeviceErrors(f"{phase} failed on {len(errors)} devices: {listed}",
                           errors, phase=phase)  # fmt: skip

    def postsuspend(self, tag: Tag | None = None) -> tuple[int | None, ...]:
        """Close the epoch on every device; returns each one's number.

        Allowed after setup and after a preresume, also one that failed: its
        epoch stays unknown (a late ack makes it a checkpoint that can be
        named on the backup, never a default one), and the next commit covers
        it.  If a device fails here, the epoch can't be waited for: call
        postsuspend again, or teardown.
        """
        self._expect("postsuspend", "running", "failed", "unknown")
        self._state = "failed"
        numbers: list[int | None] = []
        errors: list[Exception] = []
        for post in self._post:
            try:
                numbers.append(post(tag))
            except Exception as error:
                numbers.append(None)
                errors.append(error)
        self.numbers = tuple(numbers)
        if errors:
            self._raise(errors, "postsuspend")
        self._state = "closed"
        self._pending.update(range(len(self._workers)))
        return self.numbers

    def preresume(self, timeout_s: float | None = None) -> None:
        """Return only when every device's epoch is safe on the backup.

        ``timeout_s`` is the deadline of each device's wait; None leaves it
        to the devices.  After `CheckpointTimeout` it may be called again.
        """
        self._expect("preresume", "closed", "unknown")
        self._state = "unknown"
        if not self._workers:
            for pre in self._pre:
                pre(timeout_s)
        else:
            self._raise(self._wait_all(timeout_s), "preresume")
        self._state = "running"
        self._acked = True

    def _wait_all(self, timeout_s: float | None) -> list[Exception]:
        for index in self._pending:
            self._workers[index].jobs.put((index, timeout_s, self._results))
        errors: list[Exception] = []
        final: BaseException | None = None
        for _ in range(len(self._pending)):
            index, error = self._results.get()
            if error is None:
                self._pending.discard(index)
            elif isinstance(error, Exception):
                errors.append(error)
            else:
                final = error
        if final is not None:
            raise final
        return errors

    def commit(self) -> None:
        """Say on every device that the newest acked checkpoint is complete."""
        self._expect("commit", "running", "closed", "failed", "unknown")
        if not self._acked:
            raise PhaseError("commit before any preresume succeeded", phase="commit")
        errors: list[Exception] = []
        for commit in self._commit:
            try:
                commit()
            except Exception as error:
                errors.append(error)
        self._raise(errors, "commit")

