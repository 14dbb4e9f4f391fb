# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a process that serves a side does besides: words for the operator and
systemd, signals, directories, and the loop of its main thread."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import logging
import math
import os
import re
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from .._text import printable
from ..control import ControlServer
from ..errors import RemusError, StateError
from ..replica import Refusal, State, Status
from ..resource_file import ResourceFile
from ..shared.log import say, tell
from ..shared.mounts import detach
from ..shared.progress import LiveLine, bytes_text
from ..watching import Newest

__all__ = [
    "Pulse",
    "Watch",
    "detach_dead_mount",
    "is_inside",
    "make_directories",
    "notify_systemd",
    "serving_signals",
    "signal_names",
    "stop_signals",
    "warn_of_loopback",
    "warn_without_tls",
    "who_asked",
]

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: What ends or stops a process by default and is not meant for one that
#: serves a disk: a terminal that is closed, or that it may not write to.
STRAY = (
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
)
POLL_S = 0.2
CAUSE_S = 60.0  # for which one cause is not told again while the state stays
CAUSES_MAX = 32
LEVEL_OF = {
    State.UNPROTECTED: logging.WARNING,
    State.INCONSISTENT: logging.WARNING,
    State.FENCED: logging.WARNING,
    State.SPLIT_BRAIN: logging.ERROR,
    State.FAILED: logging.ERROR,
}


@contextlib.contextmanager
def stop_signals(
    *, on_hangup: Literal["ignore", "stop", "tell"], always: bool = False
) -> Iterator[socket.socket]:
    """SIGTERM and SIGINT as bytes to read, instead of death.

    Nothing runs in a signal handler, so nothing can be interrupted half-way.
    A closed terminal (SIGHUP) must not take a guest's disk away: what serves
    one ignores it, and what else a terminal or a log rotation sends to whom
    it does not mean.  Where that is no disk, it is the word to stop; "tell" gives
    its byte like the others'.  What whoever started us has set to be ignored,
    as nohup does, stays so; not SIGHUP, with ``always``.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    told = [*SIGNALS, *([signal.SIGHUP] if on_hangup != "ignore" else [])]
    actions: dict[int, Any] = dict.fromkeys(
        (one for one in STRAY if one not in told and on_hangup != "stop"),
        signal.SIG_IGN,
    )
    actions.update(
        (number, lambda *_: None)
        for number in told
        if number == signal.SIGTERM
        or signal.getsignal(number) != signal.SIG_IGN
        or (always and number == signal.SIGHUP)
    )
    before = {number: signal.signal(number, to) for number, to in actions.items()}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


@contextlib.contextmanager
def serving_signals(*, always: bool) -> Iterator[tuple[socket.socket, socket.socket]]:
    """What stops a process that serves, and SIGHUP, apart: the first can be read
    once it is to stop, whoever waits for that; the second once for each SIGHUP.
    """
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(stop_signals(on_hangup="tell", always=always))
        stops, to_stops = socket.socketpair()
        hangups, to_hangups = socket.socketpair()
        for end in (stops, to_stops, hangups, to_hangups):
            stack.callback(end.close)
        to_stops.setblocking(False)
        to_hangups.setblocking(False)

        def sort() -> None:
            while data := raw.recv(16):
                for number in data:
                    to = to_hangups if number == signal.SIGHUP else to_stops
                    with contextlib.suppress(BlockingIOError):  # enough are there
                        to.send(bytes([number]))

        thread = threading.Thread(target=sort, name="signals", daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(raw.shutdown, socket.SHUT_RDWR)
        yield stops, hangups


def notify_systemd(text: str) -> None:
    """Tell the service manager, if one started us (sd_notify's protocol)."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.setblocking(False)  # a manager that does not read must not hold us up
    with sock, contextlib.suppress(OSError):
        sock.sendto(text.encode(), address)


#: Requests that somebody is to be named for.
ASKED = ("promote", "stop", "restart", "reload", "resume", "verify")


def who_asked(name: str) -> Callable[[str, int, int], None]:
    """What says of requests to serve the resource ``name`` who made them."""

    def heard(request: str, pid: int, uid: int) -> None:
        if request in ASKED:
            say(
                f"{name}: asked to {request} by process {pid} ({_command_of(pid)}), "
                f"user {uid}"
            )

    return heard


def _command_of(pid: int) -> str:
    """As far as it can be told; it may be gone."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return comm.read().strip()
    except OSError:
        return "?"


def warn_without_tls(resource: ResourceFile) -> None:
    """What nobody should overlook in a log."""
    if resource.tls == "off" and resource.address.startswith("tcp:"):
        say(
            f'warning: tls = "off": whoever can connect to {resource.listens} can '
            f"replace the disks of {resource.name}, and whoever is on the way can read "
            "them",
            logging.WARNING,
        )


def warn_of_loopback(resource: ResourceFile) -> None:
    """The other host can't come in: Debian gives a host's own name 127.0.1.1."""
    if resource.same_host or not resource.listens.startswith("tcp:"):
        return
    host, _, port = resource.listens[4:].rpartition(":")
    try:
        first = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        address = str(first[0][4][0])
        if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            return
    except (OSError, ValueError, IndexError):
        return  # what can't be listened on is an error of its own
    say(
        f"warning: {resource.name}: {resource.listens} is {address} here, which only "
        "this host can connect to, and same_host = false: give the address of its "
        'network, or listen = "tcp:0.0.0.0:PORT" for all of them',
        logging.WARNING,
    )


# Of the mount's source: more of it is cut off (csrc/node/fuse_mount.c).
_SOURCE_MAX = 1023


def detach_dead_mount(mount: str, resource: str, state: str) -> None:
    """Take away what a process of ours that was killed left at our mount point.

    Ours is what says so of this resource and state directory; any other dead
    mount is named, and left: `StateError` (EBUSY).
    """
    for _ in range(16):  # one above the other
        try:
            os.statvfs(mount)  # never from a cache, as stat's answer may be
            return
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                return
        kind, source = _mounted_on(mount)
        ours = f"remus-native:{resource}:{os.path.realpath(state)}"
        if kind != "fuse.remus-native" or (
            os.fsencode(source) != os.fsencode(ours)[:_SOURCE_MAX]
        ):
            raise StateError(
                f"{mount}: a dead mount is there that is not this resource's "
                f"({source} of type {kind}, expected {ours}): if nothing needs it, "
                f"umount -l {mount}",
                errno=errno.EBUSY,
            )
        say(f"{mount}: detaching the mount of a process that was killed")
        detach(mount)


def _mounted_on(path: str) -> tuple[str, str]:
    """Type and source of the topmost mount on a path."""
    place = os.path.join(
        os.path.realpath(os.path.dirname(os.path.abspath(path))),
        os.path.basename(path.rstrip("/")),
    )
    found = ("?", "?")
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            left, _, right = line.partition(" - ")
            if _unescaped(left.split(" ")[4]) == place:
                kind, source = right.split(" ")[:2]
                found = (kind, _unescaped(source))
    return found


def _unescaped(word: str) -> str:
    """What the kernel writes for blanks and the like: \\040."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), word)


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


def signal_names(numbers: bytes) -> str:
    """Signals, as `stop_signals` gives them."""
    return ", ".join(dict.fromkeys(signal.Signals(one).name for one in numbers))


# ---- the main thread -------------------------------------------------------------


class Pulse:
    """Tells the service manager's watchdog (WATCHDOG_USEC) that this serves.

    A thread asks as an operator does, over the control socket, twice in the
    watchdog's time, and looks whether the main thread goes round or is at
    work.  It tells nothing unless both are so.  It never looks at a mount of
    its own process, which could not be ended then.
    """

    def __init__(self, ask: Callable[[float], object], goes_round: Callable[[], float]):
        self._ask = ask  # within so many seconds, or it raises
        self._goes_round = goes_round  # when it last did; infinity: it is at work
        self._end = threading.Event()
        self._every_s = watchdog_s() / 2
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Pulse:
        if self._every_s > 0:
            self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()  # not waited for: it may wait for an answer

    def _run(self) -> None:
        while not self._end.wait(self._every_s):
            self.beat()

    def beat(self) -> None:
        try:
            self._ask(self._every_s)
        except Exception:
            return
        if time.monotonic() - self._goes_round() < self._every_s + POLL_S:
            notify_systemd("WATCHDOG=1")


def watchdog_s() -> float:
    """0: nobody watches.  The manager may watch the keeper, which starts us."""
    try:
        return max(0.0, int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6)
    except ValueError:
        return 0.0


class Causes:
    """Which reasons of an unchanged state are to be told: each new cause, once
    in `CAUSE_S`; one whose numbers alone have changed is the same cause."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, float] = {}
        self._last = ""

    def told(self, reason: str) -> None:
        cause = re.sub(r"[0-9]+", "0", reason)
        self._last = cause
        self._told.pop(cause, None)
        self._told[cause] = self._clock()
        while len(self._told) > CAUSES_MAX:
            del self._told[next(iter(self._told))]

    def new(self, reason: str) -> bool:
        """Whether to tell it; then it is told."""
        cause = re.sub(r"[0-9]+", "0", reason)
        if not reason or cause == self._last:
            return False
        self._last = cause
        if self._clock() - self._told.get(cause, -CAUSE_S) < CAUSE_S:
            return False
        self.told(reason)
        return True


class Watch:
    """The main thread's loop: deferred requests, signals, state changes."""

    def __init__(
        self,
        resource: ResourceFile,
        status: Callable[[], Status],
        signals: socket.socket,
        refusals: Callable[[], Sequence[Refusal]] = tuple,
        *,
        hangups: socket.socket | None = None,
        reload: Callable[[], object] | None = None,
    ) -> None:
        self._round = time.monotonic()  # when the loop last went round
        self._hangups = hangups
        self._reload = reload
        self._resource = resource
        self._status = status
        self._newest = Newest()
        self._signals = signals
        self._refusals = refusals
        self._refused: set[tuple[str, int]] = set()
        self._stopped = False
        self._told = ""  # the newest failure of a step
        self._last: Status | None = None
        self._causes = Causes()

    def status(self) -> dict[str, Any]:
        """What a ``status`` request is answered."""
        now = self._status()
        return {**dataclasses.asdict(now), **self._newest.facts(now)}

    def stop(self) -> dict[str, Any]:
        """End `run` (the control request of that name)."""
        self._stopped = True
        return {}

    def run(
        self, server: ControlServer, *, alive: Callable[[], bool] = lambda: True
    ) -> bool:
        """Until a signal or `stop`: True.  Until ``alive`` denies: False."""
        pulse = Pulse(server.ask_itself, lambda: self._round)
        with selectors.DefaultSelector() as selector, LiveLine() as live, pulse:
            selector.register(self._signals, selectors.EVENT_READ)
            selector.register(server, selectors.EVENT_READ)
            if self._hangups is not None:
                selector.register(self._hangups, selectors.EVENT_READ)
            while not self._stopped:
                self._round = time.monotonic()
                self._guard(lambda: self._report(live))
                ready = {key.fileobj for key, _ in selector.select(POLL_S)}
                if self._signals in ready:
                    names = signal_names(self._signals.recv(16, socket.MSG_PEEK))
                    say(f"{self._resource.name}: stopping: {names}")
                    return True
                if server in ready:
                    self._round = math.inf  # a promote may take long
                    self._guard(server.run_pending)
                    self._round = time.monotonic()
                if self._hangups in ready:
                    self._guard(self._hang_up)
                if self._guard(alive) is False:
                    return False
        return True

    def _hang_up(self) -> None:
        assert self._hangups is not None
        self._hangups.recv(4096)  # several are one
        say(f"{self._resource.name}: SIGHUP")
        if self._reload is None:
            return
        try:
            self._reload()
        except RemusError as error:
            say(f"{self._resource.name}: not read again: {error}", logging.ERROR)

    def _guard(self, step: Callable[[], T]) -> T | None:
        """One step of the loop; None if it failed.

        No thread to be had, no memory: whatever it is, a guest's disk must not
        go away with it.  It is told once, and tried again.
        """
        try:
            return step()
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            if told != self._told:
                say(
                    f"{self._resource.name}: {told}; the process goes on",
                    logging.ERROR,
                )
            self._told = told
            return None

    def _report(self, live: LiveLine) -> None:
        """An event line if the state changed; progress of the first copy."""
        now, last = self._status(), self._last
        self._last = now
        self._newest.look(now)
        if (
            last is None
            or (now.state, now.connected) != (last.state, last.connected)
        ):  # fmt: skip
            live.clear()
            tell(
                "state",
                level=LEVEL_OF.get(now.state, logging.INFO),
                resource=self._resource.name,
                role=now.role,
                old="-" if last is None else str(last.state),
                new=now.state,
                connected=int(now.connected),
                reason=now.reason,
            )
            why = f": {printable(now.reason)}" if now.reason else ""
            notify_systemd(f"STATUS={now.role}: {now.state}{why}")
            self._causes.told(now.reason)
        elif self._causes.new(now.reason):
            live.clear()
            tell(
                "reason",
                level=LEVEL_OF.get(now.state, logging.INFO),
                resource=self._resource.name,
                role=now.role,
                state=now.state,
                reason=now.reason,
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
                live.clear()
                tell(
                    "refused",
                    level=logging.WARNING,
                    resource=self._resource.name,
                    source=one.source,
                    cause=one.cause,
                    count=one.count,
                    reason=one.text,
                )
        self._refused = {(one.source, one.first_ns) for one in refusals}
