# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every object round a C handle does: closing once, never under a call."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import StateError

__all__ = ["Handle"]


class Handle:
    """A C handle that is closed once, after the calls under way are done.

    Closing while another thread is inside a call waits for that call: the C
    library must not be left without its handle.  Calls after close raise.
    """

    _what = "handle"

    def __init__(self) -> None:
        self._cond = threading.Condition(threading.Lock())
        self._calls = 0
        self._raw: Any = None

    def _enter(self) -> Any:
        with self._cond:
            if self._raw is None:
                raise StateError(f"{self._what} is closed", errno=errno.EBADF)
            self._calls += 1
            return self._raw

    def _leave(self) -> None:
        with self._cond:
            self._calls -= 1
            if not self._calls:
                self._cond.notify_all()

    @contextmanager
    def _call(self) -> Iterator[Any]:
        raw = self._enter()
        try:
            yield raw
        finally:
            self._leave()

    def _take(self) -> Any:
        """The raw handle for the one who closes it; None if it was closed."""
        with self._cond:
            raw, self._raw = self._raw, None
            while self._calls:
                self._cond.wait()
            return raw

    @property
    def closed(self) -> bool:
        """True once close() was called."""
        return self._raw is None
