# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every object round a C handle does, by one rule.

- It is closed once, and never under a call: closing waits for the calls that
  other threads are in, and later ones raise `StateError` (EBADF).
- One that is dropped open is closed all the same, with a `ResourceWarning`,
  in a thread that ends with it: a close can take as long as a disk or a link
  does, and the garbage collector waits for neither.
- In a forked child it can't be used: its calls raise `StateError` (ECHILD),
  closing does nothing, and nothing of the parent's ends.  It can't be pickled
  either: another process (multiprocessing, by any start method) opens its own.
"""

from __future__ import annotations

import _thread
import errno
import os
import sys
import threading
import warnings
from contextlib import AbstractContextManager, suppress
from typing import Any, NoReturn

from .errors import ArgumentTypeError, StateError

__all__ = ["Handle"]


class _Forks:
    """How often this process was forked off, since it had its first handle.

    Asked before every call, it costs nothing; ``os.getpid`` is a system call.
    """

    count = 0
    counting = False

    @classmethod
    def counted(cls) -> int:
        """The count, which is kept from here on."""
        if not cls.counting:  # twice, by two threads at once, does no harm
            os.register_at_fork(after_in_child=cls._forked)
            cls.counting = True
        return cls.count

    @classmethod
    def _forked(cls) -> None:
        cls.count += 1


class _Call:
    """One call: ``with`` gives the raw handle, which stays open meanwhile."""

    __slots__ = ("_handle",)

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def __enter__(self) -> Any:
        return self._handle._enter()

    def __exit__(self, *exc: object) -> None:
        self._handle._leave()


class Handle:
    """A C handle that is closed once, after the calls under way are done."""

    _what = "handle"
    _raw: Any = None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unused = threading.Condition(self._lock)
        self._calls = 0
        self._forks = _Forks.counted()

    def _enter(self) -> Any:
        # Before the lock: a thread that is not here may have held it.
        if self._forks != _Forks.count:
            raise StateError(
                f"{self._what}: this process is a fork of the one that opened it, "
                "where it goes on: open one here",
                errno=errno.ECHILD,
            )
        with self._lock:
            if self._raw is None:
                raise StateError(f"{self._what} is closed", errno=errno.EBADF)
            self._calls += 1
            return self._raw

    def _leave(self) -> None:
        with self._lock:
            self._calls -= 1
            if self._raw is None and not self._calls:  # else nobody waits for it
                self._unused.notify_all()

    def _call(self) -> AbstractContextManager[Any]:
        return _Call(self)

    def _take(self) -> Any:
        """The raw handle for the one who closes it; None if there is none."""
        if self._foreign():
            return None
        with self._lock:
            raw, self._raw = self._raw, None
            while self._calls:
                self._unused.wait()
            return raw

    def _inherited(self) -> bool:
        """Was this process forked off since?"""
        return self._forks != _Forks.count

    def _foreign(self) -> bool:
        """Is it another process's?  Then it is left alone, and closed here."""
        if not self._inherited():
            return False
        self._raw = None
        return True

    def close(self) -> None:
        """Close it; idempotent."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """True once close() was called."""
        return self._raw is None

    def __del__(self) -> None:
        if self._raw is None or self._inherited():
            return
        warnings.warn(
            f"{self._what} was not closed", ResourceWarning, stacklevel=2, source=self
        )
        if not sys.is_finalizing():  # else the system lets go of all of it
            with suppress(RuntimeError):
                _thread.start_new_thread(self._close_late, ())

    def _close_late(self) -> None:
        with suppress(Exception):
            self.close()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ArgumentTypeError(
            f"{self._what}: it can't be copied or sent to another process: open "
            "one there"
        )
