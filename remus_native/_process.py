# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a process that serves a side does besides: words for the operator and
systemd, signals, directories, and the loop of its main thread."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ._progress import LiveLine, bytes_text, quoted
from .control import ControlServer
from .errors import StateError
from .replica import Refusal, State, Status
from .resource_file import ResourceFile

__all__ = [
    "Watch",
    "detach",
    "detach_dead_mount",
    "is_inside",
    "make_directories",
    "notify_systemd",
    "say",
    "stop_signals",
    "warn_without_tls",
]

SIGNALS = (signal.SIGTERM, signal.SIGINT)
POLL_S = 0.2


def say(text: str) -> None:
    """A line for the operator or the system's log."""
    print(f"remus-native: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def stop_signals() -> Iterator[socket.socket]:
    """SIGTERM and SIGINT as bytes to read, instead of death.

    Nothing runs in a signal handler, so nothing can be interrupted half-way.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


def notify_systemd(text: str) -> None:
    """Tell the service manager, if one started us (sd_notify's protocol)."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sock, contextlib.suppress(OSError):
        sock.sendto(text.encode(), address)


def warn_without_tls(resource: ResourceFile) -> None:
    """What nobody should overlook in a log."""
    if resource.tls == "off" and resource.address.startswith("tcp:"):
        say(
            f'warning: tls = "off": whoever can connect to {resource.address} can '
            f"replace the disks of {resource.name}, and who is on the way can read "
            "them"
        )


def detach_dead_mount(mount: str) -> None:
    """Take away what a primary that was killed left at our mount point."""
    try:
        os.statvfs(mount)  # never from a cache, as stat's answer may be
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            return
        say(f"{mount}: detaching the mount of a primary that was killed")
        detach(mount)


def detach(mount: str) -> None:
    """Unmount, also what is dead or busy; errors are left to who comes next."""
    for command in (["umount", "-l", mount], ["fusermount3", "-u", "-z", mount]):
        with contextlib.suppress(OSError):
            done = subprocess.run(
                command, capture_output=True, stdin=subprocess.DEVNULL, check=False
            )
            if done.returncode == 0:
                return


# ---- directories ---------------------------------------------------------------


def is_inside(mount: str, state: str) -> bool:
    return mount.startswith(state.rstrip("/") + "/")


def make_directories(
    resource: ResourceFile,
    *,
    private: Sequence[str] = (),
    passable: Sequence[str] = (),
    public: Sequence[str] = (),
) -> None:
    """Make those that are missing; what is there keeps its mode."""
    if resource.address.startswith("unix:"):
        # The socket itself is for its owner only.
        public = [*public, os.path.dirname(resource.address[5:])]
    for paths, mode in ((private, 0o700), (passable, 0o711), (public, 0o755)):
        for path in paths:
            try:
                _make_directory(path, mode)
            except OSError as error:
                raise StateError(
                    f"create the directory {path}: {error.strerror}",
                    errno=error.errno,
                ) from error


def _make_directory(path: str, mode: int) -> None:
    """With its parents, which everybody may pass; whatever the umask is."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path.rstrip("/"))
    if parent and not os.path.isdir(parent):
        _make_directory(parent, 0o755)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    else:
        os.chmod(path, mode)


# ---- the main thread -------------------------------------------------------------


class Watch:
    """The main thread's loop: deferred requests, signals, state changes."""

    def __init__(
        self,
        resource: ResourceFile,
        status: Callable[[], Status],
        signals: socket.socket,
        refusals: Callable[[], Sequence[Refusal]] = tuple,
    ) -> None:
        self._resource = resource
        self._status = status
        self._signals = signals
        self._refusals = refusals
        self._refused: set[tuple[str, int]] = set()
        self._stopped = False
        self._last: Status | None = None

    def stop(self) -> dict[str, Any]:
        """End `run` (the control request of that name)."""
        self._stopped = True
        return {}

    def run(
        self, server: ControlServer, *, alive: Callable[[], bool] = lambda: True
    ) -> bool:
        """Until a signal or `stop`: True.  Until ``alive`` denies: False."""
        with selectors.DefaultSelector() as selector, LiveLine() as live:
            selector.register(self._signals, selectors.EVENT_READ)
            selector.register(server, selectors.EVENT_READ)
            while not self._stopped:
                self._report(live)
                ready = {key.fileobj for key, _ in selector.select(POLL_S)}
                if self._signals in ready:
                    return True
                if server in ready:
                    server.run_pending()
                if not alive():
                    return False
        return True

    def _report(self, live: LiveLine) -> None:
        """An event line if the state changed; progress of the first copy."""
        now, last = self._status(), self._last
        self._last = now
        if (
            last is None
            or (now.state, now.connected) != (last.state, last.connected)
        ):  # fmt: skip
            old = "-" if last is None else str(last.state)
            live.note(
                f"remus-native: event=state resource={self._resource.name} "
                f"role={now.role} old={old} new={now.state} "
                f"connected={int(now.connected)} reason={quoted(now.reason)}"
            )
        if now.refused and (last is None or now.refused != last.refused):
            self._report_refusals(live)
        if now.state is State.CATCHING_UP and now.resync_total:
            live.update(
                f"copying {self._resource.name}: {bytes_text(now.resync_done)} of "
                f"{bytes_text(now.resync_total)} "
                f"({100 * now.resync_done // now.resync_total} %)"
            )
        else:
            live.clear()

    def _report_refusals(self, live: LiveLine) -> None:
        """An event line for each source that is refused for the first time.

        `Backup.refusals` bounds how many there can be: a flood can't fill a
        log.
        """
        refusals = self._refusals()
        for one in refusals:
            if (one.source, one.first_ns) not in self._refused:
                live.note(
                    f"remus-native: event=refused resource={self._resource.name} "
                    f"source={quoted(one.source)} cause={one.cause} "
                    f"count={one.count} reason={quoted(one.text)}"
                )
        self._refused = {(one.source, one.first_ns) for one in refusals}
