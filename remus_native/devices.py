# SPDX-License-Identifier: LGPL-2.1-or-later
"""The device layer: all disks of a guest through the phases of a checkpoint.

It is libxl's checkpoint device layer with its faults mended: an error never
counts as "sent", the result of a wait is never thrown away, "does not match"
is told from "not ready", and no process is forked to wait.  The phases run
in C (csrc/group/group.c).
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ._binding import lib
from ._checks import instance, milliseconds, path_of, seconds
from ._group import DeviceGroup
from .drbd import DrbdDisk
from .epochs import EpochStatistics
from .errors import (
    ArgumentTypeError,
    DeviceErrors,
    DeviceNotSupported,
    PhaseError,
    RemusError,
    RemusWarning,
)
from .replica import ReplicaResource, Tag, encode_tag

__all__ = ["CheckpointDevice", "CheckpointDevices", "Subkind"]


@runtime_checkable
class CheckpointDevice(Protocol):
    """What a device is: a kind, a name, and the phases that it has.

    A phase that a device does not have may be missing; it is a no-op then.
    ``setup`` may raise `DeviceNotSupported`, which means "not mine": the
    layer goes on to the next subkind.  ``postsuspend`` must not block;
    ``preresume`` returns only when the epoch is safe, and is called in a
    thread of the layer if there are several devices.  A ``cancel``, if it has
    one, is called from another thread to end that wait.

    Phases are called by one thread at a time, ``cancel`` by any thread.  What
    a phase raises is raised by the layer.
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


class CheckpointDevices:
    """All devices of one guest, taken through the phases together.

    ``devices``: ready-made `CheckpointDevice` objects, or descriptions that
    are offered to each of ``subkinds`` in order.  The phases:

    - `setup` matches and sets up every device.  Where one fails, those that
      were set up are torn down again and the error is raised.
    - `postsuspend` closes the epoch on every device, one after the other
      (it never blocks).
    - `preresume` waits for all at once: a single device in the calling
      thread, several with the help of threads that were made by setup.
    - `commit` tells every device, and only after every one's preresume
      succeeded.
    - `teardown` reaches every device that was set up, in reverse order,
      whatever the others do.

    All errors are reported: one device's error is raised as it is, several
    as `DeviceErrors`, whose first is the cause.  A phase out of order, or
    while another thread is in one, is a `PhaseError`, not a guess.

    For an event loop give ``event_loop=True`` and use `preresume_begin`,
    `fileno`, `preresume_finish` and `preresume_leave` instead of `preresume`;
    `AsyncCheckpointDevices` does that for asyncio.  ``statistics``: a file in
    which the statistics of the epochs are kept for other processes.

    >>> with CheckpointDevices([ReplicaResource(primary)]) as devices:
    ...     devices.postsuspend()
    ...     devices.preresume(timeout_s=5)
    ...     devices.commit()

    Any thread may call any method.  A method blocks only where it says so.
    What it raises is said above.
    """

    def __init__(
        self,
        devices: Iterable[Any],
        *,
        subkinds: Sequence[Subkind] = (),
        event_loop: bool = False,
        name: str = "guest",
        statistics: str | None = None,
    ) -> None:
        try:
            self._descriptions = list(devices)
        except TypeError as error:
            raise ArgumentTypeError(f"devices: {error}") from None
        self._subkinds = tuple(subkinds)
        self._event_loop = event_loop
        self._name = instance("name", name, str)
        self._statistics = (
            None if statistics is None else path_of("statistics", statistics)
        )
        self._devices: list[Any] = []
        self._numbered = False  # a DRBD device takes only numbers as tags
        self._limit_s: float | None = None
        self._limit_ms = -1
        self._epochs: EpochStatistics | None = None
        self.numbers: tuple[int | None, ...] = ()
        self._reset()

    def _reset(self) -> None:
        self._group: DeviceGroup | None = None
        self._send: Callable[..., int] = _before_setup
        self._wait: Callable[..., int] = _before_setup
        self._tell: Callable[..., int] = _before_setup

    @property
    def epochs(self) -> EpochStatistics | None:
        """The statistics of the epochs, of this or the last session.

        Numbered from 1 in each session; bytes, extents and coalesced bytes
        are known of replicas only.  None before the first setup.
        """
        return self._epochs

    @property
    def device_epochs(self) -> tuple[EpochStatistics, ...]:
        """The statistics of each device, in order, while the session lasts."""
        return () if self._group is None else self._group.device_epochs()

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
        """Match and set up every device; blocks as long as their setup does.

        Raises `DeviceNotSupported` if no subkind takes a device (with each
        one's reason), or what a device's own setup raised.
        """
        if self._group is not None or self._devices:
            raise PhaseError("setup in a session that is set up", phase="setup")
        try:
            for description in self._descriptions:
                self._devices.append(self._take(description))
            self._warn_if_mixed()
            self._start()
        except BaseException:
            self._teardown_all()
            raise

    def _start(self) -> None:
        group = self._group = DeviceGroup(self._name)
        for device in self._devices:
            group.add(device)
        group.start(begins=self._event_loop, statistics=self._statistics)
        self._numbered = any(isinstance(d, DrbdDisk) for d in self._devices)
        limits = [seconds(f"{d.name}: timeout_s", getattr(d, "timeout_s", None))
                  for d in self._devices]  # fmt: skip
        self._limit_s = None if None in limits else max(limits, default=None)  # type: ignore[type-var]
        self._limit_ms = milliseconds(self._limit_s)
        quick = group.replicas_only
        self._send = (
            lib.remus_py_postsuspend_held if quick else lib.remus_group_postsuspend
        )
        self._tell = lib.remus_py_commit_held if quick else lib.remus_group_commit
        self._wait = lib.remus_group_preresume
        self._epochs = group.epochs()

    def _take(self, description: Any) -> Any:
        """A device for a description, set up."""
        if isinstance(description, CheckpointDevice):
            description.setup()
            return description
        reasons = []
        for subkind in self._subkinds:
            try:
                device = subkind.match(description)
                setup = getattr(device, "setup", None)
                if setup:
                    setup()
            except DeviceNotSupported as error:
                reasons.append(f"{subkind.name}: {error}")
                continue
            return device
        setup = getattr(description, "setup", None)
        if setup or hasattr(description, "postsuspend"):
            # A ready-made device that lacks some phases.
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

        A preresume under way in another thread is cancelled.  Every device
        is reached; errors are collected and raised at the end.  Blocks as long
        as the devices' teardown does.
        """
        errors = self._teardown_all()
        if len(errors) > 1:
            listed = "; ".join(str(error) for error in errors)
            raise DeviceErrors(
                f"teardown failed on {len(errors)} devices: {listed}",
                errors,
                phase="teardown",
            )
        for error in errors:
            raise error

    def _teardown_all(self) -> list[Exception]:
        group = self._group
        devices, self._devices = self._devices, []
        self._reset()
        errors: list[Exception] = []
        interrupt: BaseException | None = None
        if group is not None:
            try:
                group.stop()
            except Exception as error:
                errors.append(error)
            except BaseException as error:
                interrupt = error  # once every device was reached
        for device in reversed(devices):
            leave = getattr(device, "_leave_group", None)
            if leave and group is not None:
                leave(group)
            teardown = getattr(device, "teardown", None)
            try:
                if teardown:
                    teardown()
            except Exception as error:
                errors.append(error)
        if interrupt is not None:
            raise interrupt
        return errors

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Block until every device can take the first checkpoint.

        After `setup` and before the guest is suspended for the first time: a
        kernel's DRBD device needs both sides Primary, and no barrier of an
        earlier session on its way (`DrbdDisk.wait_ready`).  A device without
        a ``wait_ready`` is ready.  Raises what the first of them raises.
        ``timeout_s``: for each device; None: the device's own.
        """
        seconds("timeout_s", timeout_s)
        self._checked("wait_ready")
        for device in self.devices:
            ready = getattr(device, "wait_ready", None)
            if ready is not None:
                ready(timeout_s)

    def is_ready(self) -> bool:
        """Whether every device says that a checkpoint can be taken now.

        For who waits for a backup that was lost, while the guest runs: a
        `postsuspend` finds it out as well, but wants the guest suspended.  A
        device without ``is_ready`` is ready.  Blocks for as long as they do.
        """
        self._checked("is_ready")
        return all(
            bool(ready())
            for ready in (getattr(d, "is_ready", None) for d in self.devices)
            if ready is not None
        )

    # -- the phases of a checkpoint ----------------------------------------

    def postsuspend(self, tag: Tag | None = None) -> tuple[int | None, ...]:
        """Close the epoch on every device; returns each one's number.

        Allowed after setup and after a preresume, also one that failed: its
        epoch stays unknown (a late ack makes it a checkpoint that can be
        named on the backup, never a default one), and the next commit covers
        it.  If a device fails here, the epoch can't be waited for: call
        postsuspend again, or teardown.
        """
        data = b"" if tag is None else self._encode(tag)
        group = self._group or self._checked("postsuspend")
        if not group.native:
            group.here.tag = tag
        rc = self._send(group.raw, data, len(data))
        if rc < 0:
            if rc not in _REFUSED:
                self.numbers = group.numbers(failed=True)
            group.fail("postsuspend", rc)
        self.numbers = numbers = group.numbers()
        return numbers

    def _encode(self, tag: Tag) -> bytes:
        if self._numbered:
            for device in self._devices:
                if isinstance(device, DrbdDisk):
                    return b"%d" % device._tag(tag)
        return encode_tag(tag)

    def preresume(self, timeout_s: float | None = None) -> None:
        """Block until every device's epoch is safe on the backup.

        ``timeout_s`` is the deadline of the whole call; None: the largest
        ``timeout_s`` of the devices.  After `CheckpointTimeout` or
        `CheckpointCancelled` it may be called again.
        """
        group = self._group or self._checked("preresume")
        limit = self._limit_ms if timeout_s is None else milliseconds(timeout_s)
        rc = self._wait(group.raw, limit)
        if rc < 0:
            group.fail("preresume", rc)

    def _milliseconds(self, timeout_s: float | None) -> int:
        return self._limit_ms if timeout_s is None else milliseconds(timeout_s)

    def commit(self) -> None:
        """Tell every device that the newest acked checkpoint is complete.

        That is the newest one that was safe on *all* of them.
        """
        group = self._group or self._checked("commit")
        rc = self._tell(group.raw)
        if rc < 0:
            group.fail("commit", rc)

    def cancel(self) -> bool:
        """End the preresume under way, in another thread or begun.

        It raises `CheckpointCancelled`, unless the acks came meanwhile.
        Prompt, and safe from any thread; False if nothing was under way.  A
        calling thread that is itself inside a kernel driver's wait leaves it
        only by the driver's limit, or by `DrbdDisk`'s ``cancel_signal``.
        """
        group = self._group
        return group is not None and group.cancel()

    # -- for event loops -----------------------------------------------------

    def preresume_begin(self, timeout_s: float | None = None) -> None:
        """Begin to wait; never blocks.  `preresume_finish` has the result."""
        group = self._checked("preresume")
        rc = lib.remus_group_preresume_begin(group.raw, self._milliseconds(timeout_s))
        if rc < 0:
            group.fail("preresume", rc)

    def preresume_finish(self) -> bool:
        """True if every device's epoch is safe, False if it is not yet known.

        Raises as `preresume` does; `CheckpointTimeout` once the deadline is
        over.  Never blocks.  To be called when `fileno` is readable.
        """
        group = self._checked("preresume")
        rc = lib.remus_group_preresume_finish(group.raw)
        if rc == 0:
            return True
        if rc == -errno.EAGAIN:
            return False
        group.fail("preresume", rc)

    def preresume_leave(self) -> None:
        """Be done with a begun preresume that nobody waits for any more.

        For a task that is cancelled, or gives up, before `preresume_finish`
        has said True or raised: after it the next phase may come.  The
        epoch's fate is unknown then, as after a timeout.  Nothing happens if
        none is under way.
        """
        if self.cancel():
            with suppress(RemusError):
                self.preresume_finish()

    def fileno(self) -> int:
        """A descriptor that is readable when a begun preresume is over.

        The same for the whole session, which owns it: only wait for it.
        """
        return int(lib.remus_group_fd(self._checked("fileno").raw))

    # -- errors ------------------------------------------------------------

    def _checked(self, phase: str) -> DeviceGroup:
        if self._group is None:
            raise PhaseError(f"{phase} before setup", phase=phase)
        return self._group


_REFUSED = (-errno.EBADFD, -errno.EINPROGRESS)


def _before_setup(*args: Any) -> int:
    return -errno.EBADFD
