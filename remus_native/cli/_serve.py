# SPDX-License-Identifier: LGPL-2.1-or-later
"""The processes behind ``remus-native backup`` and ``remus-native primary``.

Each opens its side, opens the control socket, says that it is ready, and
then checks five times a second whether the state changed, until a signal or a
``stop`` request ends it.  The main thread carries out what may block
(promote, commit); the library's threads and the control thread do the rest.

When roles change, the same process goes on in the other one: `_go_on` takes
them one after the other, over years if need be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from .._binding import lib
from .._version import __version__
from ..control import ControlServer
from ..errors import RemusError, StateError
from ..replica import Backup, Export, Primary, Standby, State, Status
from ..replica._nodes import ContinuedPrimary
from ..resource_file import ResourceFile
from ..shared.log import as_standard_error, say
from ..shared.log_options import LogOptions
from ..shared.progress import bytes_text, with_progress
from ..watching._events import log_object
from ..watching._statistics import FILES
from ._fence import FenceFailed, FenceWatch
from ._kept import Kept
from ._notify import Notifier
from ._process import (
    Watch,
    detach_dead_mount,
    is_inside,
    make_directories,
    notify_systemd,
    serving_signals,
    warn_of_loopback,
    warn_without_tls,
    who_asked,
)
from ._promote import FormerAddress, checkpoint_object, promote_and_tell
from ._reload import reader
from ._verify import Verifier

__all__ = ["Next", "backup_of", "serve", "serve_backup", "serve_primary"]


@dataclasses.dataclass(frozen=True)
class Process:
    """What stays the same in every role."""

    signals: socket.socket  # what stops it (`serving_signals`)
    hangups: socket.socket  # each SIGHUP
    use_log: Callable[[ResourceFile], None]  # its [log], from here on
    kept: Kept | None = None
    follows: bool = False  # a primary that was failed away from is the backup next


#: What comes after a role: an exit code, or the next role.
Next = int | Callable[[Process], Any]


def serve_backup(
    resource: ResourceFile,
    *,
    create: bool,
    discard_local: bool = False,
) -> Next:
    """Be the backup of ``resource`` until a signal."""
    return lambda process: _be_backup(
        resource, process, create=create, discard_local=discard_local
    )


def serve_primary(resource: ResourceFile) -> Next:
    """Be the primary of ``resource`` until a signal."""
    return lambda process: _be_primary(resource, process)


def serve(
    first: Callable[[], Next],
    resource: ResourceFile,
    log: LogOptions,
    *,
    kept: Kept | None = None,
    follows: bool = False,
) -> int:
    """The role that ``first`` says, and one after the other: the exit code.

    No signal is lost between them, nor while it finds out.
    """
    name = {"resource": resource.name}
    with (
        as_standard_error(log.over(resource), name) as change,
        serving_signals(always=kept is not None) as (signals, hangups),
    ):
        process = Process(
            signals, hangups, lambda new: change(log.over(new)), kept, follows
        )
        say(
            f"{resource.name}: remus-native {__version__} starts, process {os.getpid()}"
        )
        role = first()
        while callable(role):
            role = role(process)
        say(f"{resource.name}: process {os.getpid()} ends with exit code {role}")
        return role


# ---- backup ------------------------------------------------------------------


def backup_of(
    resource: ResourceFile, *, read_only: bool = False, discard_local: bool = False
) -> Backup:
    """Open the backup side that the file describes."""
    config = resource.backup_config()
    return Backup.of(
        dataclasses.replace(config, discard_local=discard_local, read_only=read_only)
    )


def _be_backup(
    resource: ResourceFile,
    process: Process,
    *,
    create: bool = False,
    discard_local: bool = False,
) -> Next:
    kept = process.kept
    if resource.backup.serves:
        lib.remus_harden_process()  # its threads may serve a guest one day
    with contextlib.ExitStack() as stack:
        mounted = kept is not None and kept.mounted()
        _prepare_backup(resource, create=create, mounted=mounted)
        backup = with_progress(
            lambda: backup_of(resource, discard_local=discard_local),
            lambda: (
                f"opening the backup of {resource.name}: making or reading the "
                f"journal ({bytes_text(resource.limits.journal)})"
            ),
        )
        stack.callback(_close, backup, f"stopping the backup of {resource.name}")
        notifier = Notifier(resource, "backup", backup.log)
        role = _Backup(resource, backup, process, notifier)
        stack.callback(lambda: notifier.close(goes_on=bool(role.switched)))
        server = stack.enter_context(role.control())
        warn_without_tls(resource)
        # Also when it is promoted: a primary is then told so.
        backup.serve(
            resource.listens, tls=resource.tls, loss_ms=resource.limits.loss_ms
        )
        warn_of_loopback(resource)
        if resource.backup.serves and not backup.status().promoted_epoch:
            role.standby = _standby(resource, backup, kept)
            if kept is not None:
                stack.callback(role.drop)  # or the mount would outlive its close
        elif kept is not None:
            kept.give_up()  # who has a node of the primary that this was open
        _ready("backup", resource)
        role.watch.run(server, alive=role.alive)
        if not role.switched:
            notify_systemd("STOPPING=1")
        elif role.standby is not None:
            role.standby.release()  # it outlives the backup
    if not role.switched:
        return 0
    say(f"{resource.name}: {role.switched}: this side is the primary now")
    standby = role.standby
    now = role.resource
    return lambda process: _be_primary(now.swapped(), process, standby=standby)


def _standby(resource: ResourceFile, backup: Backup, kept: Kept | None) -> Standby:
    standby = Standby(
        backup,
        resource.backup.mount,
        nodes=resource.nodes(),
        auto_promote=resource.auto_promote,
        keep_guarded=True,
        kept=kept.pair(len(resource.volumes)) if kept is not None else None,
    )
    if kept is not None:
        kept.serves()
    return standby


def _prepare_backup(resource: ResourceFile, *, create: bool, mounted: bool) -> None:
    state, mount = resource.backup.state, resource.backup.mount
    serves = resource.backup.serves
    if serves:
        resource.swapped()  # what it will be one day must be known now
    if serves and not mounted:
        detach_dead_mount(mount, resource.name, state)
    inside = serves and is_inside(mount, state)
    make_directories(
        resource,
        passable=[state] if inside else [],
        private=[resource.backup.journal]
        if inside
        else [state, resource.backup.journal],
        public=[mount] if serves and not mounted else [],
    )
    resource.check("backup", create=create)


class _Backup:
    """What a backup's process does when it is asked."""

    def __init__(
        self,
        resource: ResourceFile,
        backup: Backup,
        process: Process,
        notifier: Notifier,
    ) -> None:
        self._notifier = notifier
        self._resource = resource
        self._backup = backup
        self._signals = process.signals
        self._kept = process.kept
        self.reload = reader(
            resource,
            [backup.reload_keys],
            [self._use, notifier.use, process.use_log],
        )
        self.watch = Watch(
            resource,
            backup.status,
            process.signals,
            backup.refusals,
            hangups=process.hangups,
            reload=self.reload,
        )
        self.standby: Standby | None = None
        self.switched = ""  # why it is to be the primary

    def control(self) -> ControlServer:
        backup = self._backup
        return ControlServer(
            self._resource.backup.state,
            quick={
                "status": self.watch.status,
                "serving": _serving(self._kept),
                "log": lambda **after: log_object(backup.log(**after)),
                "checkpoints": lambda: [
                    checkpoint_object(cp) for cp in backup.checkpoints()
                ],
                "refusals": lambda: [
                    dataclasses.asdict(one) for one in backup.refusals()
                ],
                "target": lambda **names: {"checkpoint": backup.target(**names)},
                **_of_the_other_role(
                    "backup", ("resume", "session_end", "verify", "verified")
                ),
            },
            deferred={
                "promote": self._promote,
                "commit": self._commit,
                "stop": self.watch.stop,
                "restart": _restart_by(self._resource, self._kept),
                "reload": self.reload,
            },
            heard=who_asked(self._resource.name),
        )

    @property
    def resource(self) -> ResourceFile:
        return self._resource

    def _use(self, resource: ResourceFile) -> None:
        self._resource = resource

    def drop(self) -> None:
        """The mount ends with this process, unless it goes on as the primary."""
        if self._kept is not None and not (self.switched and self.standby):
            self._kept.drop()

    def _promote(self, **names: Any) -> dict[str, Any]:
        swap = bool(names.get("swap"))
        if swap:
            self._resource.swapped()  # or it says now why that can't be
        result = promote_and_tell(
            self._resource, self._backup, stop=self._signals.fileno(), **names
        )
        if swap or self.standby is not None:
            self.switched = "roles are swapped" if swap else "promoted"
            self.watch.stop()
        return result

    def _commit(self, epoch: int) -> dict[str, Any]:
        self._backup.commit(epoch)
        return {"checkpoint": epoch}

    def alive(self) -> bool:
        """False once it is the primary: somebody opened a disk for writing."""
        self._notifier.look()
        if self._kept is not None:
            self._kept.look()
        if self.standby is not None and not self.standby.alive:
            mount = self._resource.backup.mount
            say(
                f"{mount} was unmounted by somebody else: the backup goes on",
                logging.WARNING,
            )
            self.drop()
            self.standby.close()
            self.standby = None
        if self.standby is not None and self.standby.wanted:
            self._promote_for_opener(self.standby)
        return not self.switched

    def _promote_for_opener(self, standby: Standby) -> None:
        name = self._resource.name
        try:
            result = promote_and_tell(
                self._resource, self._backup, stop=self._signals.fileno()
            )
        except RemusError as error:
            say(
                f"{name}: not promoted, though a disk is opened for writing: {error}",
                logging.ERROR,
            )
            failed = isinstance(error, FenceFailed)
            standby.refuse(errno.EIO if failed else error.errno or errno.EIO)
            return
        say(
            f"{name}: promoted to checkpoint {result['checkpoint']}, because "
            "somebody opened a disk for writing"
        )
        self.switched = "promoted"


# ---- primary -----------------------------------------------------------------


def primary_of(resource: ResourceFile, *, goes_on: bool = False) -> Primary:
    """Open the primary side that the file describes."""
    epochs = os.path.join(resource.primary.state, FILES["primary"])
    return (ContinuedPrimary if goes_on else Primary).of(
        dataclasses.replace(resource.primary_config(), epochs_file=epochs)
    )


def _be_primary(
    resource: ResourceFile, process: Process, *, standby: Standby | None = None
) -> Next:
    kept = process.kept
    lib.remus_harden_process()  # before any thread is there
    with contextlib.ExitStack() as stack:
        if standby is not None:
            stack.callback(standby.close)
            if kept is not None:
                stack.callback(kept.drop)  # or the mount would outlive its close
        goes_on = standby is None and kept is not None and kept.mounted()
        _prepare_primary(resource, mounted=standby is not None or goes_on)
        warn_without_tls(resource)
        primary = primary_of(resource, goes_on=goes_on)
        stack.callback(_close, primary, f"stopping the primary of {resource.name}")
        export: Export | Standby
        export = standby or _export(resource, primary, kept)
        stack.callback(export.close)
        if kept is not None:
            stack.callback(kept.drop)  # or the mount would outlive its close
        if resource.fence:
            stack.callback(primary.refuse_alone)  # or who waits would be waited for
        fence = FenceWatch(resource, primary)
        stack.callback(fence.close)
        old = FormerAddress(resource, primary)
        stack.callback(old.close)
        notifier = Notifier(resource, "primary", primary.log)

        def use(new: ResourceFile) -> None:
            nonlocal resource
            resource = new

        reload = reader(
            resource,
            [primary.reload_keys, old.reload_keys],
            [use, fence.use, notifier.use, process.use_log],
        )
        watch = Watch(
            resource,
            primary.status,
            process.signals,
            hangups=process.hangups,
            reload=reload,
        )
        stack.callback(
            lambda: notifier.close(
                goes_on=bool(_is_the_backup_next(primary.status(), process))
            )
        )

        def alive() -> bool:
            status = primary.status()
            notifier.look()
            for words, level in fence.look(status):
                say(words, level)
            old.look()
            if kept is not None:
                kept.look()
            return export.alive and not _is_the_backup_next(status, process)

        control = _control_primary(resource, primary, watch, kept, reload)
        server = stack.enter_context(control)
        if standby is not None:
            standby.switch(primary)  # who is let in finds all of it in place
        _ready("primary", resource)
        mounted = watch.run(server, alive=alive)
        switches = _is_the_backup_next(primary.status(), process)
        if not switches:
            notify_systemd("STOPPING=1")
    if switches:
        say(f"{resource.name}: {switches}: this side is the backup now")
        return lambda process: _be_backup(resource.swapped(), process)
    if not mounted:
        say(
            f"{resource.primary.mount} was unmounted by somebody else: "
            f"the disks of {resource.name} are not served any more",
            logging.ERROR,
        )
        return 1
    return 0


def _is_the_backup_next(status: Status, process: Process) -> str:
    """Why; "": it is not.  Who still has a disk open for writing is not moved to
    a node that can't be written to: he is told by errors, and closes it."""
    if status.switches:
        return "roles are swapped"
    if process.follows and status.state is State.FENCED and not status.writers:
        return "the other side was promoted"
    return ""


def _export(resource: ResourceFile, primary: Primary, kept: Kept | None) -> Export:
    export = Export(
        primary,
        resource.primary.mount,
        nodes=resource.nodes(),
        keep_guarded=True,
        kept=kept.pair(len(resource.volumes)) if kept is not None else None,
    )
    if kept is not None:
        kept.serves()
    return export


def _prepare_primary(resource: ResourceFile, *, mounted: bool) -> None:
    state, mount = resource.primary.state, resource.primary.mount
    if not mounted:
        detach_dead_mount(mount, resource.name, state)
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
    resource: ResourceFile,
    primary: Primary,
    watch: Watch,
    kept: Kept | None,
    reload: Callable[[], dict[str, Any]],
) -> ControlServer:
    verifier = Verifier(primary)

    def resume() -> dict[str, Any]:
        primary.resume()
        return {}

    return ControlServer(
        resource.primary.state,
        quick={
            "status": watch.status,
            "serving": _serving(kept),
            "log": lambda **after: log_object(primary.log(**after)),
            "resume": resume,
            "session_end": primary.session_end,
            "verify": verifier.start,
            "verified": verifier.look,
            "verify_cancel": verifier.cancel,
            **_of_the_other_role(
                "primary", ("checkpoints", "refusals", "target", "promote", "commit")
            ),
        },
        deferred={
            "stop": watch.stop,
            "restart": _restart_by(resource, kept),
            "reload": reload,
        },
        heard=who_asked(resource.name),
    )


# ---- both --------------------------------------------------------------------


def _restart_by(
    resource: ResourceFile, kept: Kept | None
) -> Callable[[], dict[str, Any]]:
    """What the request to restart does, where there is a keeper."""

    def restart() -> dict[str, Any]:
        if kept is None:
            raise StateError(
                f"{resource.name}: no keeper is there to restart it: it was not "
                "started by `remus-native up` as root, or has no nodes"
            )
        kept.restart()
        return {"process": os.getpid()}

    return restart


def _serving(kept: Kept | None) -> Callable[[], dict[str, Any]]:
    """Which process it is, and why no other one has taken its place."""
    return lambda: {"process": os.getpid(), "failed": kept.failed if kept else ""}


def _of_the_other_role(role: str, names: Sequence[str]) -> dict[str, Any]:
    """What is asked of this side by who takes it for the other one."""

    def refuse(**_: Any) -> None:
        raise StateError(
            f"this side is the {role} now: if the two sides have exchanged their "
            "roles, say --swapped; if they have done so twice, leave it out",
            errno=errno.EINVAL,
        )

    return dict.fromkeys(names, refuse)


def _ready(side: str, resource: ResourceFile) -> None:
    say(f"{side} of {resource.name} ready")
    notify_systemd("READY=1")


def _close(side: Primary | Backup, text: str) -> None:
    with_progress(side.close, lambda: text)
