# SPDX-License-Identifier: LGPL-2.1-or-later
"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

DEADLINE_S = 60.0


def until(true, timeout_s=30.0, what="it did not happen"):
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.002)


def wait_for(what: str, ready: Callable[[], Any]) -> Any:
    """The first true value of ``ready``; fails after a minute."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        value = ready()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"no {what} in {DEADLINE_S} s")


def settled() -> None:
    """Longer than a primary needs to see that its images are at rest."""
    time.sleep(0.5)
