# SPDX-License-Identifier: LGPL-2.1-or-later
"""A group of devices in C (csrc/group.c), as the device layer uses it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ._binding import ffi, last_error, lib, text
from ._handle import Handle
from .epochs import EpochStatistics
from .errors import (
    DeviceErrors,
    PhaseError,
    StateError,
    class_for,
)

__all__ = ["DeviceGroup"]

_OUT_OF_ORDER = (-errno.EBADFD, -errno.EINPROGRESS)
_GROUPS_OWN = (errno.EBADFD, errno.EINPROGRESS, errno.EAGAIN)


class _Own:
    """A device written in Python, behind the callbacks of the C group.

    What it raises is kept: an exception can't pass through C.
    """

    def __init__(self, group: DeviceGroup, device: Any) -> None:
        self.group = group
        self.post = getattr(device, "postsuspend", None)
        self.pre = getattr(device, "preresume", None)
        self.commit = getattr(device, "commit", None)
        self.stop = getattr(device, "cancel", None)
        self.count = 0
        self.number: int | None = None
        self.error: BaseException | None = None
        self.handle = ffi.new_handle(self)
        ops = ffi.new("struct remus_device_ops *")
        if self.post is not None:
            ops.postsuspend = lib.remus_py_postsuspend
        if self.pre is not None:
            ops.preresume = lib.remus_py_preresume
        if self.commit is not None:
            ops.commit = lib.remus_py_commit
        if self.stop is not None:
            ops.cancel = lib.remus_py_cancel
        self.ops = ops

    def failed(self, error: BaseException) -> int:
        """Keep the exception; its number is for the statistics."""
        self.error = error
        number = getattr(error, "errno", None)
        if not isinstance(number, int) or number <= 0 or number in _GROUPS_OWN:
            number = errno.ETIMEDOUT if isinstance(error, TimeoutError) else errno.EIO
        return -number


@ffi.def_extern()  # type: ignore[untyped-decorator]
def remus_py_postsuspend(opaque: Any, tag: Any, tag_len: int, epoch: Any) -> int:
    own: _Own = ffi.from_handle(opaque)
    own.number = own.error = None
    try:
        own.number = own.post(own.group.here.tag)  # type: ignore[misc]
    except BaseException as error:
        return own.failed(error)
    own.count += 1
    epoch[0] = own.count
    return 0


@ffi.def_extern()  # type: ignore[untyped-decorator]
def remus_py_preresume(opaque: Any, epoch: int, timeout_ms: int) -> int:
    own: _Own = ffi.from_handle(opaque)
    own.error = None
    try:
        own.pre(None if timeout_ms < 0 else timeout_ms / 1000)  # type: ignore[misc]
    except BaseException as error:
        return own.failed(error)
    return 0


@ffi.def_extern()  # type: ignore[untyped-decorator]
def remus_py_commit(opaque: Any, epoch: int) -> int:
    own: _Own = ffi.from_handle(opaque)
    own.error = None
    try:
        own.commit()  # type: ignore[misc]
    except BaseException as error:
        return own.failed(error)
    return 0


@ffi.def_extern()  # type: ignore[untyped-decorator]
def remus_py_cancel(opaque: Any) -> None:
    own: _Own = ffi.from_handle(opaque)
    own.stop()  # type: ignore[misc]


class DeviceGroup(Handle):
    """The C group of a session: made at setup, stopped at teardown.

    ``raw`` is freed when nobody refers to this object any more, so a thread
    that calls late, even after `stop`, gets an error and no dangling pointer.
    """

    def __init__(self, name: str) -> None:
        out = ffi.new("remus_group **")
        rc = lib.remus_group_open(name.encode()[:60], out)
        if rc < 0:
            raise StateError(last_error(), errno=-rc, phase="setup")
        self.raw = ffi.gc(out[0], lib.remus_group_close)
        super().__init__()
        self._what = f"group {name}"
        # The tag of the postsuspend that this thread is in: another thread's
        # call, which is refused, must not change it.
        self.here = threading.local()
        self.why_stopped: str | None = None
        self._members: list[tuple[Any, _Own | None]] = []
        self._barriers: list[int] = []  # indices of those with a postsuspend

    def add(self, device: Any) -> None:
        """Let a device take part; natively if it knows how."""
        own = None
        join = getattr(device, "_join_group", None)
        if join is not None:
            rc = join(self)
        else:
            own = _Own(self, device)
            rc = lib.remus_group_add_device(
                self.raw, str(device.name).encode(), own.ops, own.handle
            )
        if rc < 0:
            raise StateError(last_error(), errno=-rc, phase="setup")
        if own is None or own.post is not None:
            self._barriers.append(len(self._members))
        self._members.append((device, own))

    def start(self, *, begins: bool, statistics: str | None) -> None:
        rc = 0
        if statistics is not None:
            rc = lib.remus_group_record(self.raw, os.fsencode(statistics))
        if rc == 0:
            rc = lib.remus_group_start(self.raw, int(begins))
        if rc < 0:
            raise StateError(last_error(), errno=-rc, phase="setup")
        self._count = len(self._members)
        self._results = ffi.new("struct remus_device_result[]", max(1, self._count))
        self._epochs = lib.remus_group_epochs(self.raw)
        self.native = all(own is None for _, own in self._members)

    @property
    def replicas_only(self) -> bool:
        """Whether no call but a wait can block: a node's ioctl might."""
        return all(
            own is None and not device._may_block for device, own in self._members
        )

    @contextmanager
    def _call(self) -> Iterator[Any]:
        """Nothing to guard: it lives as long as somebody refers to it."""
        yield self.raw

    def epochs(self) -> EpochStatistics:
        """The statistics of the whole group, for as long as they are kept."""
        return EpochStatistics.of(
            lib.remus_group_statistics(self.raw, -1), self, self._what
        )

    def device_epochs(self) -> tuple[EpochStatistics, ...]:
        """The statistics of each device."""
        return tuple(
            EpochStatistics.of(
                lib.remus_group_statistics(self.raw, index), self, device.name
            )
            if not hasattr(device, "primary")
            else device.primary.epochs
            for index, (device, _) in enumerate(self._members)
        )

    def stop(self, why: str | None = None) -> None:
        """End everything; when it returns no device is in use any more."""
        if why is not None:
            self.why_stopped = why
        lib.remus_group_stop(self.raw)
        # The handles refer to this object; nobody uses them any more.
        self._members = []

    def numbers(self, *, failed: bool = False) -> tuple[int | None, ...]:
        """Each barrier's number, in the order of the devices."""
        if self.native and not failed:
            return tuple(ffi.unpack(self._epochs, self._count))
        members = self._members  # stop() may take them away
        numbers: list[int | None] = []
        for index in self._barriers:
            own = members[index][1] if members else None
            numbers.append(own.number if own else self._epochs[index] or None)
        return tuple(numbers)

    def fail(self, phase: str, rc: int) -> NoReturn:
        """Raise what ``rc`` of a phase means, with every device's error."""
        if rc in _OUT_OF_ORDER:
            if self.why_stopped is not None:
                raise StateError(
                    f"{phase}: {self.why_stopped}", errno=errno.EBADF, phase=phase
                )
            raise PhaseError(last_error(), errno=-rc, phase=phase)
        said = last_error()
        lib.remus_group_results(self.raw, self._results, self._count)
        failed = [
            (result.failed_ns, index)
            for index, result in enumerate(self._results)
            if result.error < 0 and result.phase == _PHASES[phase]
        ]
        members = self._members  # stop() may take them away
        errors = [
            self._error(phase, self._results[index], *members[index])
            for _, index in sorted(failed)
            if index < len(members)
        ]
        for error in errors:
            if not isinstance(error, Exception):
                raise error
        if len(errors) == 1:
            raise errors[0]
        if not errors:
            raise class_for(-rc, phase)(said, errno=-rc, phase=phase)
        listed = "; ".join(str(error) for error in errors)
        raise DeviceErrors(
            f"{phase} failed on {len(errors)} devices: {listed}",
            errors,  # type: ignore[arg-type]
            phase=phase,
        )

    @staticmethod
    def _error(phase: str, result: Any, device: Any, own: _Own | None) -> BaseException:
        number = -result.error
        if own is not None and own.error is not None:
            error, own.error = own.error, None
            return error
        cls = class_for(number, phase, getattr(device, "_invalid", None))
        epoch = result.failed_epoch or None
        what = phase if epoch is None else f"{phase} of epoch {epoch}"
        said = text(result.text).removeprefix(f"device {device.name}: ")
        return cls(
            f"volume {device.name}: {what}: {said.removeprefix(f'{phase}: ')}",
            errno=number,
            volume=device.name,
            phase=phase,
            epoch=epoch,
        )


_PHASES = {
    "postsuspend": lib.REMUS_PHASE_POSTSUSPEND,
    "preresume": lib.REMUS_PHASE_PRERESUME,
    "commit": lib.REMUS_PHASE_COMMIT,
}
