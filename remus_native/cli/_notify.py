# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ``notify`` command: run at each change of state, and never in the way.

One after the other, in a thread, each for ``notify_timeout`` at most; what
finds `WAITING_MAX` waiting is dropped, counted, and told to the next one that
is run.  A failure is said, and tried no second time.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable

from ..replica import Log
from ..resource_file import ResourceFile
from ..shared.log import say
from ._fence import FenceFailed, run_command

__all__ = ["Notifier"]

WAITING_MAX = 16
END_S = 2.0  # for what is under way when the process ends


class Notifier:
    """Runs the command of ``resource`` for what ``log`` tells is new.

    `look` is called from the serving loop and never blocks.
    """

    def __init__(
        self, resource: ResourceFile, role: str, log: Callable[[int], Log]
    ) -> None:
        self._resource = resource
        self._role = role
        self._log = log
        self._after = 0
        self._old = ""
        self._dropped = 0  # since the last that found room
        self._waiting: queue.SimpleQueue[dict[str, str] | None] = queue.SimpleQueue()
        self._stop, self._stopper = os.pipe()
        self._thread: threading.Thread | None = None
        self._left = False  # nobody waits for the thread

    def look(self) -> None:
        """Let the command be run for each change since the last call."""
        if not self._resource.notify:
            return
        log = self._log(self._after)
        self._after = log.next
        for entry in log.entries:
            new = str(entry.state)
            if self._old and new != self._old:
                self._put(self._old, new, entry.text, entry.time_ns)
            self._old = new

    def use(self, resource: ResourceFile) -> None:
        """From here on with the command of this one."""
        self._resource = resource

    def close(self, *, goes_on: bool = False) -> None:
        """``goes_on``: this process has another role now, and a guest that may
        wait for it; so what is left is run beside it."""
        if goes_on:
            self.look()
        thread = self._thread
        self._left = goes_on and thread is not None
        self._waiting.put(None)
        if self._left:
            return  # the thread closes what it used
        if thread is not None:
            thread.join(END_S)
            os.write(self._stopper, b"\0")
            thread.join()
        self._end()

    def _put(self, old: str, new: str, why: str, time_ns: int) -> None:
        at = time.time() - (time.monotonic_ns() - time_ns) / 1e9
        facts = {
            "reason": "state",
            "side": self._role,
            "old": old,
            "new": new,
            "why": why,
            "time": f"{at:.3f}",
            "dropped": str(self._dropped),
        }
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="notify", daemon=True
            )
            self._thread.start()
        if self._waiting.qsize() >= WAITING_MAX:
            self._dropped += 1
            return
        self._dropped = 0
        self._waiting.put(facts)

    def _run(self) -> None:
        stopped = False
        while (facts := self._waiting.get()) is not None:
            if stopped:
                continue
            try:
                run_command(
                    self._resource,
                    "notify",
                    self._resource.notify or (),
                    facts,
                    self._resource.limits.notify_ms / 1000,
                    stop=self._stop,
                )
            except FenceFailed as error:
                say(f"{error} ({facts['old']} to {facts['new']})", logging.WARNING)
                stopped = "told to stop" in str(error)
        if self._left:
            self._end()

    def _end(self) -> None:
        os.close(self._stopper)
        os.close(self._stop)
