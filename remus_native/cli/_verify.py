# SPDX-License-Identifier: LGPL-2.1-or-later
"""``remus-native verify``: the serving process's side and the command's.

The comparison runs in a thread of the primary's process; the command asks
how far it is twice a second, and cancels it when it is interrupted.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from .. import control
from ..errors import RemusError, StateError
from ..replica import Primary
from ..resource_file import ResourceFile
from ..shared.log import tell
from ..shared.progress import LiveLine, bytes_text

__all__ = ["Verifier", "verify"]

POLL_S = 0.5


class Verifier:
    """One comparison at a time in a thread; its methods never block."""

    def __init__(self, primary: Primary, tell: Callable[..., None] = tell) -> None:
        self._primary = primary
        self._tell = tell
        self._thread: threading.Thread | None = None
        self._error: RemusError | None = None
        # Not the thread's life: it ends a moment later than what it does.
        self._running = False

    def start(self, repair: bool = False, rate: int = 0) -> dict[str, Any]:
        if type(repair) is not bool or type(rate) is not int:
            raise StateError(
                f"verify: repair={repair!r}, rate={rate!r}: expected true or false, "
                "and a number of bytes",
                errno=errno.EINVAL,
            )
        if self._running:
            raise StateError("a verify is under way", errno=errno.EBUSY)
        self._error = None
        self._running = True
        self._thread = threading.Thread(
            target=self._run, args=(repair, rate), name="verify", daemon=True
        )
        try:
            self._thread.start()
        except BaseException:
            self._running = False
            raise
        return {}

    def _run(self, repair: bool, rate: int) -> None:
        said: dict[str, Any]
        try:
            found = self._primary.verify(repair=repair, rate=rate)
            said = {
                "result": "equal" if found.equal else "different",
                "blocks": found.blocks_different,
                "repaired": found.bytes_repaired,
            }
        except RemusError as error:
            self._error = error
            said = {"result": "failed", "reason": error}
        finally:
            self._running = False
        level = logging.INFO if said["result"] == "equal" else logging.WARNING
        self._tell("verify", level=level, resource=self._primary.resource, **said)

    def look(self) -> dict[str, Any]:
        """How far it is; raises what ended it."""
        if self._thread is None:
            raise StateError("no verify was started")
        running = self._running
        if not running and self._error is not None:
            raise self._error
        found = dataclasses.asdict(self._primary.verification())
        return {**found, "running": running}

    def cancel(self) -> dict[str, Any]:
        self._primary.verify_cancel()
        return {}


def verify(resource: ResourceFile, *, repair: bool, rate: int) -> dict[str, Any]:
    """The command's side: what was found; cancels if it is interrupted."""
    state = resource.primary.state
    control.call(state, "verify", timeout_s=10.0, repair=repair, rate=rate)
    try:
        with LiveLine() as live:
            while True:
                found: dict[str, Any] = control.call(state, "verified", timeout_s=10.0)
                if not found["running"]:
                    return found
                live.update(
                    f"verifying {resource.name}: {bytes_text(found['bytes_done'])} of "
                    f"{bytes_text(found['bytes_total'])}, "
                    f"{found['blocks_different']} blocks differ"
                )
                time.sleep(POLL_S)
    except BaseException:
        control.call(state, "verify_cancel", timeout_s=10.0)
        raise
