# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can go wrong, as classes to catch.

Every error of this package is a `RemusError`; most of them are also the
builtin that says the same thing, so ``except TimeoutError`` and
``except ConnectionError`` work without knowing this module.

=====================  ==================  =====================================
class                  is also a           what to do
=====================  ==================  =====================================
`ReplicationLost`      `ConnectionError`   the backup did not get the epoch: stop,
                                           or go on unprotected, but knowingly
`CheckpointTimeout`    `TimeoutError`      the ack may still come: retry, or give
                                           the backup up
`CheckpointUnknown`    `TimeoutError`      the ack can't come any more: take the
                                           next checkpoint
`CheckpointCancelled`                      somebody ended the wait; as a timeout
`NotProtocolD`         `OSError`           the device takes no checkpoints: wrong
                                           device or wrong driver
`DeviceNotReady`       `OSError`           the right device in a wrong state:
                                           connect it, then try again
`DeviceNotSupported`   `OSError`           no engine takes this device
`PhaseError`           `RuntimeError`      the caller's phases are out of order
`ConfigError`          `ValueError`        a setting is wrong; the text names it;
                                           `ArgumentTypeError` is a `TypeError`,
                                           `ArgumentRangeError` an
                                           `OverflowError`, too
`StateError`           `OSError`           anything else that failed
`DeviceErrors`         `ExceptionGroup`    several devices failed in one phase
                       (Python 3.11 on)
=====================  ==================  =====================================

The last column is also each class's `RemusError.remedy`, for a program that
has to tell its user what to do.
"""

from __future__ import annotations

import errno as _errno
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ._text import printable

__all__ = [
    "ArgumentRangeError",
    "ArgumentTypeError",
    "CheckpointCancelled",
    "CheckpointTimeout",
    "CheckpointUnknown",
    "ConfigError",
    "DeviceErrors",
    "DeviceNotReady",
    "DeviceNotSupported",
    "NotProtocolD",
    "PhaseError",
    "RemusError",
    "RemusWarning",
    "ReplicationLost",
    "StateError",
    "raise_for",
]


class RemusError(Exception):
    """The root of every error of this package.

    ``str(error)`` is one readable line.  The attributes say the same to a
    program; each is None where it does not apply:

    - ``errno``: the number behind it (`errno.EPROTO`, ...),
    - ``volume``: the volume or device,
    - ``phase``: "setup", "postsuspend", "preresume", "commit", "teardown",
    - ``epoch``: the number of the checkpoint,
    - ``remedy``: what a toolstack or its user can do, of the class.
    """

    remedy: str = "read the message: it says what was expected"
    errno: int | None
    volume: str | None
    phase: str | None
    epoch: int | None

    def __init__(
        self,
        message: str,
        *,
        errno: int | None = None,
        volume: str | None = None,
        phase: str | None = None,
        epoch: int | None = None,
    ) -> None:
        # It may quote what somebody else chose.
        message = "\n".join(map(printable, message.split("\n")))
        if errno is not None and isinstance(self, OSError):
            super().__init__(errno, message)
        else:
            super().__init__(message)
        self._text = message
        self.errno = errno
        self.volume = volume
        self.phase = phase
        self.epoch = epoch

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._text!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError would hand (errno, text) to our __init__ when unpickled.
        return _rebuild, (type(self), self._text, self._details())

    def _details(self) -> dict[str, Any]:
        return {
            "errno": self.errno,
            "volume": self.volume,
            "phase": self.phase,
            "epoch": self.epoch,
        }


def _rebuild(cls: type[RemusError], message: str, details: dict[str, Any]) -> Any:
    return cls(message, **details)


class ReplicationLost(RemusError, ConnectionError):
    """The backup is lost, and it did not ack the epoch in question.

    The guest's writes since the last acked checkpoint are on this host only.
    Never raised for an epoch that is safe on the backup.
    """

    remedy = "stop the guest, or let it go on unprotected, but knowingly"


class CheckpointTimeout(RemusError, TimeoutError):
    """No ack within the time given.

    The epoch's fate is unknown: the ack can come later.  Calling the same
    phase again is allowed and waits for the same epoch.
    """

    remedy = "wait again for the same epoch, go on with a new one, or stop"


class CheckpointUnknown(CheckpointTimeout):
    """No ack came, and none can come any more.

    Whether the backup has the epoch is unknown and stays so.  The device is
    in order: `postsuspend` closes the next epoch, whose ack and commit cover
    this one, too.
    """

    remedy = "take the next checkpoint: it covers this one; or stop"


class CheckpointCancelled(RemusError):
    """The wait was ended by `cancel` (or the session was).

    As after `CheckpointTimeout` the epoch's fate is unknown and the wait may
    be begun again.
    """

    remedy = "wait again for the same epoch, go on with a new one, or stop"


class NotProtocolD(RemusError, OSError):
    """The device does not take checkpoints: not DRBD, or not protocol D."""

    remedy = "give the node of a replica, or a DRBD disk with protocol D"


class DeviceNotReady(RemusError, OSError):
    """The right kind of device in a state in which it cannot take part."""

    remedy = "bring the disk up (connected, primary here), then set up again"


class DeviceNotSupported(RemusError, OSError):
    """This engine does not take the device.

    Raised by a subkind's ``match`` or a device's ``setup`` it means "not
    mine": the layer tries the next subkind.  Raised by the layer it means
    that none was left, and the text gives each subkind's reason.
    """

    remedy = "put the disk on DRBD with protocol D or on a replica"


class PhaseError(RemusError, RuntimeError):
    """A phase was called out of order: a mistake in the calling program.

    Nothing was sent; the device is as it was.
    """

    remedy = "correct the calling program: postsuspend, preresume, commit, one by one"


class ConfigError(RemusError, ValueError):
    """A setting or an argument is wrong; the text names it and the reason."""

    remedy = "correct the setting that the message names"


class ArgumentTypeError(ConfigError, TypeError):
    """An argument is of the wrong type."""


class ArgumentRangeError(ConfigError, OverflowError):
    """A number is too small or too large."""


class StateError(RemusError, OSError):
    """An operation failed for a reason that has no class of its own.

    ``errno`` tells: EBUSY (another process has it), ENOENT, EIO, ...
    """

    remedy = "see errno and the message; after EIO check the disk"


class RemusWarning(UserWarning):
    """Something works, but gives less than it seems to."""


if sys.version_info >= (3, 11):

    class _Group(RemusError, ExceptionGroup[Exception]):
        pass

else:

    class _Group(RemusError):
        exceptions: tuple[Exception, ...]


class DeviceErrors(_Group):
    """Several devices failed in one phase.

    ``errors`` (also ``exceptions``) holds every error, in the order in which
    they happened; the first is the cause, also as ``__cause__``.  ``errno``
    is the first one's.  From Python 3.11 on it is an `ExceptionGroup`, so
    that ``except*`` and tracebacks see each error.

    A phase in which a single device failed raises that error itself.  A
    wait's deadline, and `cancel`, end it on all devices at once: that is one
    `CheckpointTimeout` or `CheckpointCancelled`, however many had not
    answered; a `DeviceErrors` is its ``__cause__``.
    """

    remedy = "see each error in `errors`"

    def __new__(
        cls, message: str, errors: Sequence[Exception], **details: Any
    ) -> DeviceErrors:
        # On 3.10 BaseException.__new__ takes whatever it is given.
        return super().__new__(cls, message, tuple(errors))

    def __init__(
        self,
        message: str,
        errors: Sequence[Exception],
        *,
        phase: str | None = None,
        epoch: int | None = None,
    ) -> None:
        super().__init__(message, phase=phase, epoch=epoch)
        if sys.version_info < (3, 11):
            self.exceptions = tuple(errors)
        self.errno = getattr(errors[0], "errno", None)
        self.__cause__ = errors[0]

    @property
    def errors(self) -> tuple[Exception, ...]:
        """Every error, in the order in which they happened."""
        return tuple(self.exceptions)

    def derive(self, excs: Sequence[Exception], /) -> DeviceErrors:
        """What ``except*`` makes of a part of the errors."""
        return DeviceErrors(self._text, excs, phase=self.phase, epoch=self.epoch)

    def __reduce__(self) -> tuple[Any, ...]:
        details = {"phase": self.phase, "epoch": self.epoch}
        return _rebuild_group, (self._text, self.errors, details)


def _rebuild_group(
    message: str, errors: tuple[Exception, ...], details: dict[str, Any]
) -> DeviceErrors:
    return DeviceErrors(message, errors, **details)


_CLASSES: dict[int, type[RemusError]] = {
    _errno.EPROTO: ReplicationLost,
    _errno.ETIMEDOUT: CheckpointTimeout,
    _errno.ETIME: CheckpointUnknown,
    _errno.ECANCELED: CheckpointCancelled,
    _errno.EBADFD: PhaseError,
    _errno.ENOTTY: NotProtocolD,
    _errno.EMEDIUMTYPE: DeviceNotReady,
    _errno.ENOTCONN: DeviceNotReady,
    _errno.ESTALE: DeviceNotReady,
}


def class_for(
    number: int, phase: str | None = None, invalid: type[RemusError] | None = None
) -> type[RemusError]:
    """The class for an errno.

    ``invalid`` is the class for EINVAL: whether the caller's settings, its
    phases or the moment were wrong, only the caller knows.  EBUSY is a
    `PhaseError` in a phase, else a `StateError`; ESTALE is an unusable device
    in a phase, else (a promote that must name its checkpoint) a `StateError`.
    """
    if number == _errno.EINVAL:
        return invalid or ConfigError
    if number == _errno.EBUSY and phase is not None:
        return PhaseError
    if number == _errno.ESTALE and phase is None:
        return StateError
    return _CLASSES.get(number, StateError)


def raise_for(
    rc: int,
    context: str = "",
    *,
    volume: str | None = None,
    phase: str | None = None,
    epoch: int | None = None,
    invalid: type[RemusError] = ConfigError,
) -> NoReturn:
    """Raise what the C library's result ``rc`` (-errno) means.

    To be called in the thread that made the failing call, before it makes
    another: the library's text is per thread.  ``context`` says in words
    what was tried ("open backup guest0"); if it is empty, phase and epoch
    say it ("postsuspend of epoch 12").  ``invalid``: as in `class_for`.
    """
    from ._binding import last_error

    number = -rc
    cls = class_for(number, phase, invalid)
    if not context and phase is not None:
        context = phase if epoch is None else f"{phase} of epoch {epoch}"
    words = [f"volume {volume}"] if volume is not None else []
    if context:
        words.append(context)
    words.append(last_error() or os.strerror(number))
    raise cls(": ".join(words), errno=number, volume=volume, phase=phase, epoch=epoch)
