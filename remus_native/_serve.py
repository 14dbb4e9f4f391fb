# SPDX-License-Identifier: LGPL-2.1-or-later
"""The processes behind ``remus-native backup`` and ``remus-native primary``.

Each opens its side, opens the control socket, says that it is ready, and
then looks five times a second whether the state changed, until a signal or a
``stop`` request ends it.  The main thread carries out what may block
(promote, commit); the library's threads and the control thread do the rest.

When roles change, the same process goes on in the other one: `_go_on` takes
them one after the other, over years if need be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from ._binding import lib
from ._fence import FenceFailed, FenceWatch
from ._process import (
    Watch,
    detach_dead_mount,
    is_inside,
    make_directories,
    notify_systemd,
    say,
    stop_signals,
    warn_without_tls,
)
from ._progress import bytes_text, with_progress
from ._promote import checkpoint_object, promote_and_tell
from ._statistics import FILES
from ._verify import Verifier
from .control import ControlServer
from .errors import RemusError, StateError
from .replica import Backup, Export, Primary, Standby
from .resource_file import ResourceFile

__all__ = ["backup_of", "serve_backup", "serve_primary"]

#: What comes after a role: an exit code, or the next role, which is called
#: with the socket of `stop_signals`.
Next = int | Callable[[socket.socket], Any]


def serve_backup(
    resource: ResourceFile, *, create: bool, discard_local: bool = False
) -> int:
    """Be the backup of ``resource`` until a signal; the exit code."""
    return _go_on(
        lambda signals: _be_backup(
            resource, signals, create=create, discard_local=discard_local
        )
    )


def serve_primary(resource: ResourceFile) -> int:
    """Be the primary of ``resource`` until a signal; the exit code."""
    return _go_on(lambda signals: _be_primary(resource, signals))


def _go_on(role: Next) -> int:
    """One role after the other.  No signal is lost between them."""
    with stop_signals() as signals:
        while callable(role):
            role = role(signals)
        return role


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


def _be_backup(
    resource: ResourceFile,
    signals: socket.socket,
    *,
    create: bool = False,
    discard_local: bool = False,
) -> Next:
    if resource.backup.serves:
        lib.remus_harden_process()  # its threads may serve a guest one day
    with contextlib.ExitStack() as stack:
        _prepare_backup(resource, create=create)
        backup = with_progress(
            lambda: backup_of(resource, discard_local=discard_local),
            lambda: (
                f"opening the backup of {resource.name}: making or reading the "
                f"journal ({bytes_text(resource.limits.journal)})"
            ),
        )
        stack.callback(_close, backup, f"stopping the backup of {resource.name}")
        role = _Backup(resource, backup, signals)
        server = stack.enter_context(role.control())
        warn_without_tls(resource)
        # Also when it is promoted: a primary is then told so.
        backup.serve(
            resource.address, tls=resource.tls, loss_ms=resource.limits.loss_ms
        )
        if resource.backup.serves and not backup.status().promoted_epoch:
            role.standby = Standby(
                backup, resource.backup.mount, nodes=resource.nodes(),
                auto_promote=resource.auto_promote,
            )  # fmt: skip
        _ready("backup", resource)
        role.watch.run(server, alive=role.alive)
        if not role.turned:
            notify_systemd("STOPPING=1")
        elif role.standby is not None:
            role.standby.release()  # it outlives the backup
    if not role.turned:
        return 0
    say(f"{resource.name}: {role.turned}: this side is the primary now")
    standby = role.standby
    return lambda signals: _be_primary(resource.swapped(), signals, standby=standby)


def _prepare_backup(resource: ResourceFile, *, create: bool) -> None:
    state, mount = resource.backup.state, resource.backup.mount
    serves = resource.backup.serves
    if serves:
        resource.swapped()  # what it will be one day must be known now
        detach_dead_mount(mount)
    inside = serves and is_inside(mount, state)
    make_directories(
        resource,
        passable=[state] if inside else [],
        private=[resource.backup.journal]
        if inside
        else [state, resource.backup.journal],
        public=[mount] if serves else [],
    )
    resource.check("backup", create=create)


class _Backup:
    """What a backup's process does when it is asked."""

    def __init__(
        self, resource: ResourceFile, backup: Backup, signals: socket.socket
    ) -> None:
        self._resource = resource
        self._backup = backup
        self._signals = signals
        self.watch = Watch(resource, backup.status, signals, backup.refusals)
        self.standby: Standby | None = None
        self.turned = ""  # why it is to be the primary

    def control(self) -> ControlServer:
        backup = self._backup
        return ControlServer(
            self._resource.backup.state,
            quick={
                "status": lambda: dataclasses.asdict(backup.status()),
                "checkpoints": lambda: [
                    checkpoint_object(cp) for cp in backup.checkpoints()
                ],
                "refusals": lambda: [
                    dataclasses.asdict(one) for one in backup.refusals()
                ],
                "target": lambda **names: {"checkpoint": backup.target(**names)},
                **_of_the_other_role("backup", ("resume", "verify", "verified")),
            },
            deferred={
                "promote": self._promote,
                "commit": self._commit,
                "stop": self.watch.stop,
            },
        )

    def _promote(self, **names: Any) -> dict[str, Any]:
        turn = bool(names.get("turn"))
        if turn:
            self._resource.swapped()  # or it says now why that can't be
        result = promote_and_tell(
            self._resource, self._backup, stop=self._signals.fileno(), **names
        )
        if turn or self.standby is not None:
            self.turned = "roles are swapped" if turn else "promoted"
            self.watch.stop()
        return result

    def _commit(self, epoch: int) -> dict[str, Any]:
        self._backup.commit(epoch)
        return {"checkpoint": epoch}

    def alive(self) -> bool:
        """False once it is the primary: somebody opened a disk for writing."""
        if self.standby is not None and not self.standby.alive:
            mount = self._resource.backup.mount
            say(f"{mount} was unmounted by somebody else: the backup goes on")
            self.standby.close()
            self.standby = None
        if self.standby is not None and self.standby.wanted:
            self._promote_for_opener(self.standby)
        return not self.turned

    def _promote_for_opener(self, standby: Standby) -> None:
        name = self._resource.name
        try:
            result = promote_and_tell(
                self._resource, self._backup, stop=self._signals.fileno()
            )
        except RemusError as error:
            say(f"{name}: not promoted for who opens a disk for writing: {error}")
            failed = isinstance(error, FenceFailed)
            standby.refuse(errno.EIO if failed else error.errno or errno.EIO)
            return
        say(
            f"{name}: promoted to checkpoint {result['checkpoint']}, because "
            "somebody opened a disk for writing"
        )
        self.turned = "promoted"


# ---- primary -----------------------------------------------------------------


def primary_of(resource: ResourceFile) -> Primary:
    """Open the primary side that the file describes."""
    limits = resource.limits
    return Primary(
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


def _be_primary(
    resource: ResourceFile,
    signals: socket.socket,
    *,
    standby: Standby | None = None,
) -> Next:
    lib.remus_harden_process()  # before any thread is there
    with contextlib.ExitStack() as stack:
        if standby is not None:
            stack.callback(standby.close)
        _prepare_primary(resource, mounted=standby is not None)
        nodes = resource.nodes()
        warn_without_tls(resource)
        primary = primary_of(resource)
        stack.callback(_close, primary, f"stopping the primary of {resource.name}")
        export: Export | Standby
        if standby is not None:
            export = standby
        else:
            export = Export(primary, resource.primary.mount, nodes=nodes)
        stack.callback(export.close)
        if resource.fence:
            stack.callback(primary.refuse_alone)  # or who waits would be waited for
        watch = Watch(resource, primary.status, signals)
        fence = FenceWatch(resource, primary)
        stack.callback(fence.close)

        def alive() -> bool:
            status = primary.status()
            for line in fence.look(status):
                say(line)
            return export.alive and not status.turns

        server = stack.enter_context(_control_primary(resource, primary, watch))
        if standby is not None:
            standby.turn(primary)  # who is let in finds all of it in place
        _ready("primary", resource)
        mounted = watch.run(server, alive=alive)
        turns = primary.status().turns
        if not turns:
            notify_systemd("STOPPING=1")
    if turns:
        say(f"{resource.name}: roles are swapped: this side is the backup now")
        return lambda signals: _be_backup(resource.swapped(), signals)
    if not mounted:
        say(
            f"{resource.primary.mount} was unmounted by somebody else: "
            f"the disks of {resource.name} are not served any more"
        )
        return 1
    return 0


def _prepare_primary(resource: ResourceFile, *, mounted: bool) -> None:
    state, mount = resource.primary.state, resource.primary.mount
    if not mounted:
        detach_dead_mount(mount)
    # Who serves the guest may be another user, and must reach the nodes:
    # through the state directory without seeing what is in it.
    inside = is_inside(mount, state)
    make_directories(
        resource,
        private=[] if inside else [state],
        passable=[state] if inside else [],
        public=[] if mounted else [mount],
    )
    if not mounted:
        resource.check("primary")


def _control_primary(
    resource: ResourceFile, primary: Primary, watch: Watch
) -> ControlServer:
    verifier = Verifier(primary, say)

    def resume() -> dict[str, Any]:
        primary.resume()
        return {}

    return ControlServer(
        resource.primary.state,
        quick={
            "status": lambda: dataclasses.asdict(primary.status()),
            "resume": resume,
            "verify": verifier.start,
            "verified": verifier.look,
            "verify_cancel": verifier.cancel,
            **_of_the_other_role(
                "primary", ("checkpoints", "refusals", "target", "promote", "commit")
            ),
        },
        deferred={"stop": watch.stop},
    )


# ---- both --------------------------------------------------------------------


def _of_the_other_role(role: str, names: Sequence[str]) -> dict[str, Any]:
    """What is asked of this side by who takes it for the other one."""

    def refuse(**_: Any) -> None:
        raise StateError(
            f"this side is the {role} now: if the two have exchanged their roles, "
            "say --swapped (or say it no more)",
            errno=errno.EINVAL,
        )

    return dict.fromkeys(names, refuse)


def _ready(side: str, resource: ResourceFile) -> None:
    say(f"{side} of {resource.name} ready")
    notify_systemd("READY=1")


def _close(side: Primary | Backup, text: str) -> None:
    with_progress(side.close, lambda: text)
