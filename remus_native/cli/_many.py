# SPDX-License-Identifier: LGPL-2.1-or-later
"""``up`` and ``down``, of one resource or with ``--all`` of every file of a host.

Each resource has a process of its own, which outlives the one that started it:
no resource depends on another one, nor on this command.
"""

from __future__ import annotations

import argparse
import logging
import os
import selectors
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from .. import control
from ..control import NotRunning
from ..errors import RemusError
from ..resource_file import ResourceFileError
from ..shared.log import as_standard_error, say
from ..shared.log_options import log_options
from ..watching import files_of
from . import _up
from ._process import notify_systemd, signal_names, stop_signals
from ._show import WORST
from ._up import Here

__all__ = ["down", "up"]

OK, FAILED, USAGE, _UNPROTECTED, NOT_RUNNING = range(5)
LOOK_S = 0.2
TOGETHER = 16  # that are stopped at once


def up(arguments: argparse.Namespace) -> int:
    """One resource, or all; the exit code."""
    if not arguments.all:
        return _up.up(arguments)
    settings = log_options(arguments).over(None)
    with as_standard_error(settings), stop_signals(on_hangup="tell") as signals:
        return _Many(arguments, signals).run()


def down(arguments: argparse.Namespace) -> int:
    """One resource, or all; the exit code."""
    if not arguments.all:
        return _up.down(arguments)
    found, codes = _hosts(arguments)

    def stop(here: Here) -> int:
        return _guarded(here.resource.name, lambda: _up.stop(here), "stopped")

    with ThreadPoolExecutor(TOGETHER) as pool:
        codes += pool.map(stop, found)
    return _worst(codes, arguments.directory)


def _hosts(arguments: argparse.Namespace) -> tuple[list[Here], list[int]]:
    """What this host is in each file; a code for each that is refused."""
    found: list[Here] = []
    codes: list[int] = []
    for file in files_of(arguments.directory):
        try:
            found.append(_up.here_of(file, arguments.host))
        except ResourceFileError as error:
            for problem in error.problems:
                say(problem, logging.ERROR)
            codes.append(USAGE)
        except RemusError as error:
            say(str(error), logging.ERROR)
            codes.append(USAGE)
    return found, codes


def _guarded(name: str, job: Callable[[], int], done: str) -> int:
    try:
        code = job()
    except NotRunning:
        print(f"{name}: does not run", flush=True)
        return NOT_RUNNING
    except (RemusError, OSError) as error:
        say(f"{name}: {error}", logging.ERROR)
        return FAILED
    print(f"{name}: {done}", flush=True)
    return code


def _worst(codes: Sequence[int], directory: str) -> int:
    """The code of all, as that of `status --all`."""
    if not codes:
        say(f"{directory}: no resource file (*.toml) is there", logging.ERROR)
        return NOT_RUNNING
    known = [code if code in WORST else FAILED for code in codes]
    return min(known, key=WORST.index)


class _Many:
    """Starts a process for each resource, and stays until all have ended."""

    def __init__(self, arguments: argparse.Namespace, signals: socket.socket) -> None:
        self._arguments = arguments
        self._signals = signals
        self._running: dict[subprocess.Popen[bytes], Here] = {}
        self._waits: set[str] = set()  # names of those that are not ready yet
        self._counts = dict.fromkeys(("serve", "ended", "ran before", "refused"), 0)

    def run(self) -> int:
        found, codes = _hosts(self._arguments)
        self._counts["refused"] = len(codes)
        for here in found:
            code = self._start(here)
            if code is not None:
                codes.append(code)
        told = False
        while self._running:
            told = told or self._tell_when_ready()
            codes += self._wait(None if told else LOOK_S)
        if not told:
            self._tell_when_ready()
        notify_systemd("STOPPING=1")
        return _worst(codes, self._arguments.directory)

    def _start(self, here: Here) -> int | None:
        """None: it was started; else its code."""
        name = here.resource.name
        if control.is_running(here.state):
            say(f"{name}: runs already")
            self._counts["ran before"] += 1
            return OK
        words = _up.command(here, self._arguments)
        words[-1:-1] = ["--no-keeper"] * self._arguments.no_keeper
        # Each would say by itself that it is ready.
        environment = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                env={**environment, "PYTHONSAFEPATH": "1"},
            )
        except OSError as error:
            say(f"{name}: could not be started: {error.strerror}", logging.ERROR)
            self._counts["ended"] += 1
            return FAILED
        self._running[process] = here
        self._waits.add(name)
        return None

    def _tell_when_ready(self) -> bool:
        """Once each serves or has ended, say how many; whether it was said."""
        for here in self._running.values():
            if here.resource.name in self._waits and control.is_running(here.state):
                self._waits.discard(here.resource.name)
                self._counts["serve"] += 1
        if self._waits:
            return False
        counts = [f"{count} {what}" for what, count in self._counts.items() if count]
        said = f"{self._arguments.directory}: {', '.join(counts) or 'nothing to serve'}"
        say(said)
        notify_systemd(f"READY=1\nSTATUS={said}")
        return True

    def _wait(self, timeout_s: float | None) -> list[int]:
        """For an end, or a signal, which goes to all; codes of what has ended."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            ends = {os.pidfd_open(one.pid): one for one in self._running}
            try:
                for fd in ends:
                    selector.register(fd, selectors.EVENT_READ)
                ready = {key.fileobj for key, _ in selector.select(timeout_s)}
            finally:
                for fd in ends:
                    os.close(fd)
        if self._signals in ready:
            self._pass_on(self._signals.recv(64))
        return [self._ended(ends[fd]) for fd in ends if fd in ready]

    def _pass_on(self, numbers: bytes) -> None:
        stops = any(number != signal.SIGHUP for number in numbers)
        say(f"all: {signal_names(numbers)}")
        for process, here in self._running.items():
            if stops:
                process.send_signal(signal.SIGTERM)
            elif here.resource.name not in self._waits:  # it listens for it
                process.send_signal(signal.SIGHUP)

    def _ended(self, process: subprocess.Popen[bytes]) -> int:
        here = self._running.pop(process)
        name = here.resource.name
        code = process.wait()
        if name in self._waits:
            self._waits.discard(name)
            self._counts["ended"] += 1
        say(
            f"{name}: ended with "
            + (f"exit code {code}" if code >= 0 else f"signal {-code}"),
            logging.ERROR if code else logging.INFO,
        )
        return code
