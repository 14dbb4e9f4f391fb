# SPDX-License-Identifier: LGPL-2.1-or-later
"""A device that does what a test tells it."""

from __future__ import annotations

import threading
from typing import Any


class Scripted:
    """A device that does what it is told and remembers what it was asked."""

    kind = "disk"

    def __init__(self, name: str, calls: list[str] | None = None) -> None:
        self.name = name
        self.fail: dict[str, Exception] = {}
        self.calls: list[str] = [] if calls is None else calls
        self.number = 0
        self.threads: set[int] = set()

    def _do(self, phase: str) -> None:
        self.calls.append(f"{self.name}.{phase}")
        if phase in self.fail:
            raise self.fail[phase]

    def setup(self) -> None:
        self._do("setup")

    def postsuspend(self, tag: Any = None) -> int:
        self._do("postsuspend")
        self.number += 1
        return self.number

    def preresume(self, timeout_s: float | None = None) -> None:
        self.threads.add(threading.get_ident())
        self._do("preresume")

    def commit(self) -> None:
        self._do("commit")

    def teardown(self) -> None:
        self._do("teardown")
