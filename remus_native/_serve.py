# SPDX-License-Identifier: LGPL-2.1-or-later
"""The processes behind ``remus-native backup`` and ``remus-native primary``.

Each opens its side, opens the control socket, says that it is ready, and
then looks five times a second whether the state changed, until a signal or a
``stop`` request ends it.  The main thread carries out what may block
(promote, commit); the library's threads and the control thread do the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ._binding import lib
from ._fence import FenceWatch, run_fence
from ._progress import LiveLine, bytes_text, quoted, with_progress
from ._statistics import FILES
from ._verify import Verifier
from .control import ControlServer
from .errors import RemusError, StateError
from .replica import (
    Backup,
    Checkpoint,
    Export,
    Primary,
    Refusal,
    Standby,
    State,
    Status,
)
from .resource_file import ResourceFile

__all__ = [
    "backup_of",
    "checkpoint_object",
    "promote_and_tell",
    "say",
    "serve_backup",
    "serve_primary",
    "stop_signals",
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


# ---- backup ------------------------------------------------------------------


def backup_of(
    resource: ResourceFile, *, look: bool = False, discard_local: bool = False
) -> Backup:
    """Open the backup side that the file describes."""
    return Backup(
        resource.name,
        state_dir=resource.backup.state,
        journal_dir=resource.backup.journal,
        volumes=resource.volumes_of("backup"),
        ack=resource.ack,
        commit_by=resource.commit_by,
        journal_bytes=resource.limits.journal,
        segment_bytes=resource.limits.segment,
        stale_ms=resource.limits.stale_ms,
        discard_local=discard_local,
        look=look,
        psk_file=resource.psk_file,
        psk_identity=resource.psk_identity,
    )


def checkpoint_object(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as JSON has it."""
    return {**dataclasses.asdict(checkpoint), "tag": _tag_text(checkpoint.tag)}


def _tag_text(tag: bytes) -> str | None:
    return tag.decode("utf-8", "backslashreplace") if tag else None


def promote_and_tell(
    resource: ResourceFile,
    backup: Backup,
    checkpoint: int | None = None,
    tag: str | None = None,
    force: bool = False,
    fenced: bool = False,
    turn: bool = False,
) -> dict[str, Any]:
    """Promote; which checkpoint it was, its tag, and how long it took.

    Without the primary's word the fence command must succeed first;
    ``fenced``: the caller has seen to it.  ``turn``: only with its word.
    """
    named = checkpoint is not None or tag is not None
    given = False
    if turn or not force:
        if named:
            _check_name(backup, checkpoint, tag)
        given = backup.ask(keep=named, turn=turn)
    if turn and not given:
        raise StateError(
            f"backup of {resource.name}: no primary is connected that could give "
            "way: roles are swapped only between two sides that are up; to fail "
            "over, promote",
            errno=errno.ENOTCONN,
        )
    if not given and not fenced and backup.status().state is not State.PROMOTED:
        facts = {"side": "backup", "why": "the primary did not give its word"}
        if named:
            facts["checkpoint"] = str(checkpoint if tag is None else tag)
        run_fence(resource, "promote", facts)
    tags = {cp.epoch: cp.tag for cp in backup.checkpoints()}
    start = time.monotonic()
    number = backup.promote(checkpoint, tag=tag, force=force)
    seconds = time.monotonic() - start
    tags.update({cp.epoch: cp.tag for cp in backup.checkpoints()})
    return {
        "checkpoint": number,
        "tag": _tag_text(tags.get(number, b"")),
        "seconds": seconds,
    }


def _check_name(backup: Backup, checkpoint: int | None, tag: str | None) -> None:
    """A wrong name must not stop a primary: promote says what is wrong."""
    known = backup.checkpoints()
    if not any(
        cp.epoch == checkpoint if tag is None else cp.tag == tag.encode()
        for cp in known
    ):
        backup.promote(checkpoint, tag=tag, force=False)


def serve_backup(
    resource: ResourceFile, *, create: bool, discard_local: bool = False
) -> int:
    """Be the backup of ``resource`` until a signal; the exit code."""
    turned = False
    standby: Standby | None = None
    with stop_signals() as signals, contextlib.ExitStack() as stack:
        state, mount = resource.backup.state, resource.backup.mount
        if resource.backup.serves:
            _detach_dead_mount(mount)
        inside = resource.backup.serves and _is_inside(mount, state)
        _make_directories(
            resource,
            passable=[state] if inside else [],
            private=[resource.backup.journal]
            if inside
            else [state, resource.backup.journal],
            public=[mount] if resource.backup.serves else [],
        )
        resource.check("backup", create=create)
        backup = with_progress(
            lambda: backup_of(resource, discard_local=discard_local),
            lambda: (
                f"opening the backup of {resource.name}: making or reading the "
                f"journal ({bytes_text(resource.limits.journal)})"
            ),
        )
        stack.callback(_close, backup, f"stopping the backup of {resource.name}")
        watch = _Watch(resource, backup.status, signals, backup.refusals)

        def promote(**names: Any) -> dict[str, Any]:
            nonlocal turned
            result = promote_and_tell(resource, backup, **names)
            if names.get("turn") or standby is not None:
                turned = True
                watch.stop()
            return result

        def commit(epoch: int) -> dict[str, Any]:
            backup.commit(epoch)
            return {"checkpoint": epoch}

        server = stack.enter_context(
            ControlServer(
                resource.backup.state,
                quick={
                    "status": lambda: dataclasses.asdict(backup.status()),
                    "checkpoints": lambda: [
                        checkpoint_object(cp) for cp in backup.checkpoints()
                    ],
                    "refusals": lambda: [
                        dataclasses.asdict(one) for one in backup.refusals()
                    ],
                },
                deferred={"promote": promote, "commit": commit, "stop": watch.stop},
            )
        )
        warn_without_tls(resource)
        # Also when it is promoted: a primary is then told so.
        backup.serve(
            resource.address, tls=resource.tls, loss_ms=resource.limits.loss_ms
        )
        if resource.backup.serves and backup.status().state is not State.PROMOTED:
            standby = Standby(
                backup, mount, nodes=resource.nodes(),
                auto_promote=resource.auto_promote,
            )  # fmt: skip
        _ready("backup", resource)

        def alive() -> bool:
            nonlocal turned, standby
            if standby is not None and not standby.alive:
                say(f"{mount} was unmounted by somebody else: the backup goes on")
                standby.close()
                standby = None
            if standby is not None and standby.wanted:
                turned = _promote_for_opener(resource, backup, standby)
            return not turned

        watch.run(server, alive=alive)
        if not turned:
            notify_systemd("STOPPING=1")
        elif standby is not None:
            standby.release()  # it outlives the backup
    if turned and standby is not None:
        say(f"{resource.name}: promoted: this side is the primary now")
        return serve_primary(resource.swapped(), standby=standby)
    if turned:
        say(f"{resource.name}: roles are swapped: this side is the primary now")
        return serve_primary(resource.swapped())
    return 0


# ---- primary -----------------------------------------------------------------


def _is_inside(mount: str, state: str) -> bool:
    return mount.startswith(state.rstrip("/") + "/")


def _promote_for_opener(
    resource: ResourceFile, backup: Backup, standby: Standby
) -> bool:
    """Somebody opens a disk for writing: promote, or say why not."""
    try:
        result = promote_and_tell(resource, backup)
    except RemusError as error:
        say(f"{resource.name}: not promoted for who opens a disk for writing: {error}")
        standby.refuse(error.errno or errno.EIO)
        return False
    say(
        f"{resource.name}: promoted to checkpoint {result['checkpoint']}, because "
        "somebody opened a disk for writing"
    )
    return True


def serve_primary(resource: ResourceFile, *, standby: Standby | None = None) -> int:
    """Be the primary of ``resource`` until a signal; the exit code."""
    lib.remus_harden_process()  # before any thread is there
    with stop_signals() as signals, contextlib.ExitStack() as stack:
        if standby is not None:
            stack.callback(standby.close)
        else:
            _detach_dead_mount(resource.primary.mount)
        state, mount = resource.primary.state, resource.primary.mount
        # Who serves the guest may be another user, and must reach the nodes:
        # through the state directory without seeing what is in it.
        inside = _is_inside(mount, state)
        _make_directories(
            resource,
            private=[] if inside else [state],
            passable=[state] if inside else [],
            public=[mount] if standby is None else [],
        )
        if standby is None:
            resource.check("primary")
        nodes = resource.nodes()
        limits = resource.limits
        warn_without_tls(resource)
        primary = Primary(
            resource.name,
            state_dir=resource.primary.state,
            volumes=resource.volumes_of("primary"),
            address=resource.address,
            tls=resource.tls,
            ack=resource.ack,
            commit_by=resource.commit_by,
            queue_bytes=limits.queue,
            max_pause_ms=limits.max_pause_ms,
            loss_ms=limits.loss_ms,
            stall_ms=limits.stall_ms,
            epochs_file=os.path.join(resource.primary.state, FILES["primary"]),
            idle_ms=limits.idle_ms,
            grace_ms=limits.grace_ms,
            resync_rate=limits.resync_rate,
            allow_inconsistent=resource.allow_inconsistent,
            ask_alone=bool(resource.fence),
            on_loss=resource.on_loss,
            psk_file=resource.psk_file,
            psk_identity=resource.psk_identity,
        )
        stack.callback(_close, primary, f"stopping the primary of {resource.name}")
        export: Export | Standby
        if standby is not None:
            standby.turn(primary)
            export = standby
        else:
            export = Export(primary, resource.primary.mount, nodes=nodes)
        stack.callback(export.close)
        watch = _Watch(resource, primary.status, signals)
        fence = FenceWatch(resource, primary)

        verifier = Verifier(primary, say)

        def resume() -> dict[str, Any]:
            primary.resume()
            return {}

        def alive() -> bool:
            status = primary.status()
            for line in fence.look(status.asks_alone, status.reason):
                say(line)
            return export.alive and not status.turns

        server = stack.enter_context(
            ControlServer(
                resource.primary.state,
                quick={
                    "status": lambda: dataclasses.asdict(primary.status()),
                    "resume": resume,
                    "verify": verifier.start,
                    "verified": verifier.look,
                    "verify_cancel": verifier.cancel,
                },
                deferred={"stop": watch.stop},
            )
        )
        _ready("primary", resource)
        mounted = watch.run(server, alive=alive)
        turns = primary.status().turns
        if not turns:
            notify_systemd("STOPPING=1")
    if turns:
        say(f"{resource.name}: roles are swapped: this side is the backup now")
        return serve_backup(resource.swapped(), create=False)
    if not mounted:
        say(
            f"{resource.primary.mount} was unmounted by somebody else: "
            f"the disks of {resource.name} are not served any more"
        )
        return 1
    return 0


def _detach_dead_mount(mount: str) -> None:
    """Take away what a primary that was killed left at our mount point."""
    try:
        os.stat(mount)
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


# ---- both --------------------------------------------------------------------


def _make_directories(
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


def _ready(side: str, resource: ResourceFile) -> None:
    say(f"{side} of {resource.name} ready")
    notify_systemd("READY=1")


def _close(side: Primary | Backup, text: str) -> None:
    with_progress(side.close, lambda: text)


class _Watch:
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
