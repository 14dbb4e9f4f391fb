# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fence command: what makes sure that the other side does not write.

The resource file names it; it runs before a promote without the primary's
word and before a primary lets its guest write alone, and has succeeded if it
exits with 0 within its time, whatever holds its output open.  A command that
hangs is killed with its whole process group, and so is one that nobody needs
any more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from ..errors import StateError
from ..replica import Primary, Status
from ..resource_file import ResourceFile

__all__ = ["FenceFailed", "FenceWatch", "run_command", "run_fence"]

OUTPUT_MAX = 400  # characters of the command's output that an error repeats
KEEP_BYTES = 4096  # of its output, the newest
LOOK_MS = 20  # between checks whether it has ended
AGAIN_S = 5.0  # after a failure, while a guest waits


class FenceFailed(StateError):
    """A command of the file did not succeed; of a fence: nothing was done."""


def run_fence(
    resource: ResourceFile,
    reason: str,
    facts: Mapping[str, str],
    *,
    stop: int | None = None,
) -> None:
    """Run the command of ``resource``, if it has one; blocks until it ends.

    ``reason`` is "promote" or "alone"; it and ``facts`` are in the command's
    environment, as REMUS_REASON and so on.  ``stop``: a descriptor; once it is
    readable the command is killed.  Raises `FenceFailed`.
    """
    if not resource.fence:
        return
    run_command(
        resource,
        "fence",
        resource.fence,
        {"reason": reason, **facts},
        resource.limits.fence_ms / 1000,
        stop=stop,
    )


def run_command(
    resource: ResourceFile,
    kind: str,
    command: Sequence[str],
    facts: Mapping[str, str],
    timeout_s: float,
    *,
    stop: int | None = None,
) -> None:
    """Run one of the file's commands; blocks until it ends, as `run_fence`."""
    what = f"{resource.name}: the {kind} command {command[0]}"
    if "reason" in facts:
        what += f" ({facts['reason']})"
    try:
        process = _start(resource, command, facts)
    except OSError as error:
        raise FenceFailed(
            f"{what} could not be started: {error.strerror}", errno=error.errno
        ) from error
    output = process.stdout
    assert output is not None
    said, why = "", "was interrupted"
    try:
        with output:
            said, why = _wait(process, output, timeout_s, stop)
    finally:
        if why:
            # Not reaped yet: the number is still its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    if why:
        raise FenceFailed(f"{what} {why} and was killed")
    if code:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise FenceFailed(f"{what} failed with {how}" + (f": {said}" if said else ""))


def _start(
    resource: ResourceFile, command: Sequence[str], facts: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "REMUS_RESOURCE": resource.name,
        "REMUS_FILE": os.path.abspath(resource.file),
        **{f"REMUS_{key.upper()}": value for key, value in facts.items()},
    }
    environment.pop("NOTIFY_SOCKET", None)  # that is between systemd and us
    return subprocess.Popen(
        list(command),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        start_new_session=True,
    )


def _wait(
    process: subprocess.Popen[bytes],
    output: IO[bytes],
    timeout_s: float,
    stop: int | None,
) -> tuple[str, str]:
    """The end of its output; why it must be killed, "" if it has ended.

    It has ended when its process has: what it leaves behind may hold the
    output open for ever.  However much it says, little is kept.
    """
    kept, source = b"", output.fileno()
    end = time.monotonic() + timeout_s
    poll = select.poll()
    poll.register(source, select.POLLIN)
    if stop is not None:
        poll.register(stop, select.POLLIN)
    talks = True
    while True:
        # WNOWAIT: it stays a zombie, so its process group keeps its number.
        look = os.WEXITED | os.WNOHANG | os.WNOWAIT
        ended = os.waitid(os.P_PID, process.pid, look) is not None
        ready = [fd for fd, _ in poll.poll(0 if ended else LOOK_MS)]
        if source in ready:
            data = os.read(source, 1 << 16)
            kept = (kept + data)[-KEEP_BYTES:]
            if not data:
                poll.unregister(source)
                talks = False
        # What it leaves behind may talk on for ever.
        if ended and (source not in ready or not talks or time.monotonic() > end):
            return _text(kept), ""
        if not ended and stop in ready:
            return _text(kept), "was under way when this process was told to stop,"
        if not ended and time.monotonic() > end:
            return _text(kept), f"did not end within {timeout_s:g} s"


def _text(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip()[-OUTPUT_MAX:]


News = tuple[str, int]  # a line, and its level


class FenceWatch:
    """Runs the command in a thread when a primary asks to go on alone.

    `look` is called from the serving loop and never blocks.  After a failure
    the guest's writes go on waiting, and it is tried again.  `close` ends a
    command that is under way.
    """

    def __init__(self, resource: ResourceFile, primary: Primary) -> None:
        self._resource = resource
        self._primary = primary
        self._thread: threading.Thread | None = None
        self._next = 0.0
        self._news: list[News] = []  # lines to say; appended by the thread
        self._stop, self._stopper = os.pipe()

    def look(self, status: Status) -> list[News]:
        """What there is to say since the last call."""
        running = self._thread is not None and self._thread.is_alive()
        if status.asks_alone and not running and time.monotonic() >= self._next:
            self._next = time.monotonic() + AGAIN_S
            self._thread = threading.Thread(
                target=self._fence, args=(status,), name="fence", daemon=True
            )
            self._thread.start()
        news, self._news = self._news, []
        return news

    def use(self, resource: ResourceFile) -> None:
        """From here on with the command of this one."""
        self._resource = resource

    def close(self) -> None:
        """Nobody waits for leave any more."""
        os.close(self._stopper)
        if self._thread is not None:
            self._thread.join()
        os.close(self._stop)

    def _fence(self, before: Status) -> None:
        name = self._resource.name
        facts = {"side": "primary", "why": before.reason}
        try:
            run_fence(self._resource, "alone", facts, stop=self._stop)
        except FenceFailed as error:
            words = (
                f"{error}; the guest's writes wait; it is tried again, or "
                f"`remus-native resume {self._resource.file}` lets them go on"
            )
            self._news.append((words, logging.ERROR))
            return
        with contextlib.suppress(StateError):  # closed meanwhile
            if self._primary.status().link_changed_ns != before.link_changed_ns:
                words = (
                    f"{name}: the fence command succeeded, but the backup was there "
                    "again meanwhile: that success does not count"
                )
                self._news.append((words, logging.INFO))
                return
            self._primary.go_alone()
            words = f"{name}: the fence command succeeded: the guest goes on alone"
            self._news.append((words, logging.WARNING))
