# SPDX-License-Identifier: LGPL-2.1-or-later
"""What both stages of the demo are given, and how they clean up."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Settings", "cleaning_up"]


@dataclass(frozen=True)
class Settings:
    """What to play, and where.  ``kill_after_s`` comes from the seed."""

    folder: str
    seconds: float
    interval_s: float
    size: int
    seed: int
    kill_after_s: float


@contextlib.contextmanager
def cleaning_up() -> Iterator[contextlib.ExitStack]:
    """An exit stack that a second Ctrl-C does not interrupt."""
    stack = contextlib.ExitStack()
    try:
        yield stack
    finally:
        before = [
            (number, signal.signal(number, signal.SIG_IGN))
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        ]
        try:
            stack.close()
        finally:
            for number, handler in before:
                signal.signal(number, handler)
