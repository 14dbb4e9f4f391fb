# SPDX-License-Identifier: LGPL-2.1-or-later
"""The serving process's side of ``remus-native verify``: what it says is so."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from remus_native import RemusError
from remus_native.cli._verify import Verifier
from support.waiting import until


def test_what_has_ended_does_not_read_as_running(make_pair: Any) -> None:
    """Its thread may be held up at the log; the next one can be started."""
    held, go_on = threading.Event(), threading.Event()

    def say(_event: str, **_values: object) -> None:
        held.set()
        go_on.wait(30)

    pair = make_pair()
    verifier = Verifier(pair.primary, say)
    try:
        verifier.start()
        until(held.is_set)
        found = verifier.look()
        assert not found["running"]
        assert found["bytes_done"] == found["bytes_total"] > 0
        verifier.start()
        until(lambda: not verifier.look()["running"])
    finally:
        go_on.set()


def test_what_has_failed_says_so_at_once(make_pair: Any) -> None:
    held, go_on = threading.Event(), threading.Event()

    def say(_event: str, **_values: object) -> None:
        held.set()
        go_on.wait(30)

    pair = make_pair()
    pair.backup.close()
    until(lambda: not pair.primary.status().connected)
    verifier = Verifier(pair.primary, say)
    try:
        verifier.start()
        until(held.is_set)
        with pytest.raises(RemusError):
            verifier.look()
    finally:
        go_on.set()
