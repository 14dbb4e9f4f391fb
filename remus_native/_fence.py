# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fence command: what makes sure that the other side does not write.

The resource file names it; it runs before a promote without the primary's
word and before a primary lets its guest write alone, and has succeeded if it
exits with 0 within its time.  A command that hangs is killed with its whole
process group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping

from .errors import StateError
from .replica import Primary
from .resource_file import ResourceFile

__all__ = ["FenceFailed", "FenceWatch", "run_fence"]

OUTPUT_MAX = 400  # characters of the command's output that an error repeats
AGAIN_S = 5.0  # after a failure, while a guest waits


class FenceFailed(StateError):
    """The fence command did not succeed, so nothing was done."""


def run_fence(resource: ResourceFile, reason: str, facts: Mapping[str, str]) -> None:
    """Run the command of ``resource``, if it has one; blocks until it ends.

    ``reason`` is "promote" or "alone"; it and ``facts`` are in the command's
    environment, as REMUS_REASON and so on.  Raises `FenceFailed`.
    """
    if not resource.fence:
        return
    command = list(resource.fence)
    environment = {
        **os.environ,
        "REMUS_RESOURCE": resource.name,
        "REMUS_FILE": os.path.abspath(resource.file),
        "REMUS_REASON": reason,
        **{f"REMUS_{key.upper()}": value for key, value in facts.items()},
    }
    what = f"{resource.name}: the fence command {command[0]} ({reason})"
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise FenceFailed(
            f"{what} could not be started: {error.strerror}", errno=error.errno
        ) from error
    timeout_s = resource.limits.fence_ms / 1000
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise FenceFailed(
            f"{what} did not end within {timeout_s:g} s and was killed"
        ) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if process.returncode:
        said = output.decode("utf-8", "replace").strip()[-OUTPUT_MAX:]
        how = (
            f"exit code {process.returncode}"
            if process.returncode > 0
            else f"signal {-process.returncode}"
        )
        raise FenceFailed(f"{what} failed with {how}" + (f": {said}" if said else ""))


class FenceWatch:
    """Runs the command in a thread when a primary asks to go on alone.

    `look` is called from the serving loop and never blocks.  After a failure
    the guest's writes go on waiting, and it is tried again.
    """

    def __init__(self, resource: ResourceFile, primary: Primary) -> None:
        self._resource = resource
        self._primary = primary
        self._thread: threading.Thread | None = None
        self._next = 0.0
        self._news: list[str] = []  # lines to say; appended by the thread

    def look(self, asks: bool, why: str) -> list[str]:
        """What there is to say since the last look."""
        running = self._thread is not None and self._thread.is_alive()
        if asks and not running and time.monotonic() >= self._next:
            self._next = time.monotonic() + AGAIN_S
            self._thread = threading.Thread(
                target=self._fence, args=(why,), name="fence", daemon=True
            )
            self._thread.start()
        news, self._news = self._news, []
        return news

    def _fence(self, why: str) -> None:
        try:
            run_fence(self._resource, "alone", {"side": "primary", "why": why})
        except FenceFailed as error:
            self._news.append(
                f"{error}; the guest's writes wait; it is tried again, or "
                f"`remus-native resume {self._resource.file}` lets them go on"
            )
            return
        self._news.append(
            f"{self._resource.name}: the fence command succeeded: the guest goes "
            "on alone"
        )
        with contextlib.suppress(StateError):  # closed meanwhile
            self._primary.go_alone()
