# SPDX-License-Identifier: LGPL-2.1-or-later
"""A group of devices in C (csrc/group/group.c), as the device layer uses it."""

from __future__ import annotations

import _thread
import errno
import queue
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from ._binding import ffi, last_error, lib, sized, text
from ._checks import encoded, instance
from ._handle import Handle
from .epochs import EpochStatistics
from .errors import (
    CheckpointCancelled,
    CheckpointTimeout,
    DeviceErrors,
    PhaseError,
    StateError,
    class_for,
)

__all__ = ["DeviceGroup"]

_OUT_OF_ORDER = (-errno.EBADFD, -errno.EINPROGRESS)
# EINTR: a callback that did not come to its own end, see _CUT.
_GROUPS_OWN = (errno.EBADFD, errno.EINPROGRESS, errno.EAGAIN, errno.EINTR)
_ERRNO_MAX = 4095  # the kernel's largest
# The call's deadline and its cancel: one happening, however many devices had
# not answered.
_ENDS_OF_A_WAIT = {CheckpointTimeout, CheckpointCancelled}

# A signal's handler can raise at a callback's very entry, or at its exit,
# where no `try` of ours is.  What C gets then is -_CUT: an error, never a
# success.  The exception's class is kept here and raised in the caller.  (A
# built-in keeps it: a function of Python's could be interrupted in turn.)
_CUT = errno.EINTR
_cut_short: queue.SimpleQueue[Any] = queue.SimpleQueue()


def _what_cut_short() -> BaseException | None:
    """What ended a callback early, if something did."""
    try:
        kind = _cut_short.get_nowait()
    except queue.Empty:
        return None
    if isinstance(kind, BaseException):
        return kind
    try:
        error = kind()
        if isinstance(error, BaseException):
            return error
    except Exception:  # one that wants arguments
        pass
    return StateError(
        f"a device's callback was cut short by {kind.__name__}", errno=errno.EINTR
    )


def _raise_cut_short() -> None:
    error = _what_cut_short()
    if error is not None:
        raise error


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
        ops = sized("device_ops")
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
        number = None
        with suppress(Exception):  # of a property of its own
            number = getattr(error, "errno", None)
        if (
            type(number) is not int
            or not 0 < number <= _ERRNO_MAX
            or number in _GROUPS_OWN
        ):
            number = errno.ETIMEDOUT if isinstance(error, TimeoutError) else errno.EIO
        return -number


@ffi.def_extern(error=-_CUT, onerror=_cut_short.put)  # type: ignore[untyped-decorator]
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


@ffi.def_extern(error=-_CUT, onerror=_cut_short.put)  # type: ignore[untyped-decorator]
def remus_py_preresume(opaque: Any, epoch: int, timeout_ms: int) -> int:
    own: _Own = ffi.from_handle(opaque)
    own.error = None
    try:
        own.pre(None if timeout_ms < 0 else timeout_ms / 1000)  # type: ignore[misc]
    except BaseException as error:
        return own.failed(error)
    return 0


@ffi.def_extern(error=-_CUT, onerror=_cut_short.put)  # type: ignore[untyped-decorator]
def remus_py_commit(opaque: Any, epoch: int) -> int:
    own: _Own = ffi.from_handle(opaque)
    own.error = None
    try:
        own.commit()  # type: ignore[misc]
    except BaseException as error:
        return own.failed(error)
    return 0


@ffi.def_extern(onerror=_cut_short.put)  # type: ignore[untyped-decorator]
def remus_py_cancel(opaque: Any) -> None:
    own: _Own = ffi.from_handle(opaque)
    try:
        own.stop()  # type: ignore[misc]
    except BaseException as error:
        _cut_short.put(error)


class DeviceGroup(Handle):
    """The C group of a session: made at setup, stopped at teardown.

    ``raw`` is freed when nobody refers to this object any more, so a thread
    that calls late, even after `stop`, gets an error and no dangling pointer.
    """

    raw: Any = None

    def __init__(self, name: str) -> None:
        super().__init__()
        self._what = f"group {name}"
        self._stopped = False
        out = ffi.new("remus_group **")
        rc = lib.remus_group_open(encoded("name", name)[:60], out)
        if rc < 0:
            raise StateError(last_error(), errno=-rc, phase="setup")
        self.raw = out[0]
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
                self.raw,
                encoded("name", instance("name", device.name, str)),
                own.ops,
                own.handle,
            )
        if rc < 0:
            raise StateError(last_error(), errno=-rc, phase="setup")
        if own is None or own.post is not None:
            self._barriers.append(len(self._members))
        self._members.append((device, own))

    def start(self, *, begins: bool, statistics: str | None) -> None:
        rc = 0
        if statistics is not None:
            rc = lib.remus_group_record(self.raw, encoded("statistics", statistics))
        if rc == 0:
            rc = lib.remus_group_start(self.raw, int(begins))
        if rc < 0:
            raise StateError(last_error(), errno=-rc, phase="setup")
        self._count = len(self._members)
        self._results = sized("device_result", max(1, self._count))
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
        self._stopped = True
        # The handles refer to this object; nobody uses them any more.
        self._members = []
        _raise_cut_short()

    def close(self) -> None:
        """As `stop`; the memory goes with this object."""
        self.stop()

    def __del__(self) -> None:
        if self.raw is None or self._inherited():
            return
        if self._stopped:
            lib.remus_group_close(self.raw)
            return
        warnings.warn(
            f"{self._what}: its session was not torn down",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )
        if not sys.is_finalizing():
            with suppress(RuntimeError):
                # This object, and with it the callbacks, live as long as that.
                _thread.start_new_thread(self._close_late, ())

    def _close_late(self) -> None:
        lib.remus_group_close(self.raw)

    def cancel(self) -> bool:
        """End the wait under way; False if there is none."""
        ended = bool(lib.remus_group_cancel(self.raw) == 0)
        _raise_cut_short()
        return ended

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
        together = DeviceErrors(
            f"{phase} failed on {len(errors)} devices: {listed}",
            errors,  # type: ignore[arg-type]
            phase=phase,
        )
        ends = {type(error) for error in errors} <= _ENDS_OF_A_WAIT
        if phase != "preresume" or not ends:
            raise together
        raise type(errors[0])(  # type: ignore[call-arg]
            f"{phase} ended on {len(errors)} devices: {listed}",
            errno=together.errno,
            phase=phase,
        ) from together

    @staticmethod
    def _error(phase: str, result: Any, device: Any, own: _Own | None) -> BaseException:
        number = -result.error
        if own is not None:
            kept, own.error = own.error, None
            cut = _what_cut_short() if number == _CUT else None
            if cut is not None or kept is not None:
                return cut or kept  # type: ignore[return-value]
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
