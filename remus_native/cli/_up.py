# SPDX-License-Identifier: LGPL-2.1-or-later
"""``up``, ``down``, ``role``, ``restart``: what this host is, by its own state.

The file names two hosts, by what they are at first.  Which of them this is
tells ``host`` in the file, ``--host``, or the only state that is here.  What it
is *now* stands in its state directory: a promote, a swap, a fence decide it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import time
from dataclasses import dataclass

from .. import control
from ..control import NotRunning
from ..errors import CheckpointTimeout, ConfigError, RemusError, StateError
from ..replica import role_of
from ..resource_file import ResourceFile, Side, load
from ..shared.log import say
from ..shared.log_options import log_options
from ..shared.progress import with_progress
from ._keeper import keep
from ._kept import Kept
from ._serve import Next, serve, serve_backup, serve_primary

__all__ = [
    "Here",
    "command",
    "down",
    "here_of",
    "load_view",
    "load_written",
    "reload",
    "restart",
    "role",
    "stop",
    "this_host",
    "up",
]

SIDES: tuple[Side, Side] = ("primary", "backup")
DOWN_S = 90.0  # as a service manager would wait
CALL_S = 60.0
RESTART_S = 90.0  # more than a keeper gives the next server
LOOK_S = 1.0


@dataclass(frozen=True)
class Here:
    """This host, as the file has it."""

    resource: ResourceFile
    section: Side  # what it was at first

    @property
    def state(self) -> str:
        return self.resource.state(self.section)

    @property
    def mount(self) -> str:
        """Where its nodes are, in the roles in which it has some."""
        if self.section == "primary":
            return self.resource.primary.mount
        return self.resource.backup.mount

    def role(self) -> Side:
        """What it is now; before its first start what its section says."""
        return role_of(self.resource.name, self.state) or self.section

    def view(self, role: Side) -> ResourceFile:
        """The file with this host in that role."""
        return self.resource if role == self.section else self.resource.swapped()


def this_host(arguments: argparse.Namespace) -> Here:
    """Which of the hosts of the file this is; `ConfigError` if nothing says so."""
    return here_of(arguments.file, arguments.host)


def here_of(file: str, host: str | None) -> Here:
    """The same of any file."""
    resource = load(file)
    return Here(resource, _section(resource, host))


def _section(resource: ResourceFile, named: str | None) -> Side:
    names = {side: resource.host(side) or side for side in SIDES}
    if named is not None:
        for side in SIDES:
            if named in (side, names[side]):
                return side
        raise ConfigError(
            f"--host: expected {names['primary']} or {names['backup']}, got {named}"
        )
    if resource.host("primary"):
        return _by_name(resource)
    found = [side for side in SIDES if role_of(resource.name, resource.state(side))]
    if len(found) == 1 and resource.state("primary") != resource.state("backup"):
        return found[0]
    raise ConfigError(
        f"{resource.file}: host: expected the names of the two hosts, because "
        + ("the state of both sides is" if found else "no state of either side is")
        + " here, got nothing; fix: add host = "
        '"NAME" to [primary] and [backup], or say --host primary or --host backup'
    )


def _by_name(resource: ResourceFile) -> Side:
    ours = socket.gethostname().lower()
    for side in SIDES:
        name = resource.host(side).lower()
        if name in (ours, ours.partition(".")[0]) or name.partition(".")[0] == ours:
            return side
    raise ConfigError(
        f"{resource.file}: host: expected this host, which is {ours}, in [primary] or "
        f"[backup], got {resource.host('primary')} and {resource.host('backup')}; "
        "fix: correct the names, or say --host primary or --host backup"
    )


def load_written(file: str, *, swapped: bool) -> ResourceFile:
    """The file as it is written, or as ``--swapped`` says."""
    resource = load(file)
    return resource.swapped() if swapped else resource


def load_view(file: str, *, swapped: bool) -> ResourceFile:
    """The file with its sides as they are now.

    ``swapped`` says that they have exchanged their roles; else this host does, if
    which one it is can be told: by the process that runs, or by its state. (That of
    a backup that was promoted is shown as such until it is a primary.)
    """
    resource = load_written(file, swapped=swapped)
    if swapped:
        return resource
    try:
        here = Here(resource, _section(resource, None))
        try:
            role = control.call(here.state, "status", timeout_s=LOOK_S)["role"]
        except NotRunning:
            role = here.role() if here.section == "primary" else "backup"
    except RemusError:
        return resource
    return here.view(role)


# ---- up ----------------------------------------------------------------------


def up(arguments: argparse.Namespace) -> int:
    """Serve what this host is for the resource; the exit code."""
    here = this_host(arguments)
    log = log_options(arguments).over(here.resource)
    if Kept.wanted():
        kept = Kept(command(here, arguments), here.mount, log)
        return _serve(here, arguments, kept)
    if arguments.no_keeper:
        return _serve(here, arguments, None)
    if os.geteuid() != 0:
        say(
            f"{here.resource.name}: no keeper, which only root can have: if this "
            "process dies, the guest's disks go with it"
        )
        return _serve(here, arguments, None)
    once = ["--discard-local"] * arguments.discard_local
    return keep(command(here, arguments), here.mount, once=once, log=log)


def command(here: Here, arguments: argparse.Namespace) -> list[str]:
    """What serves this host's side: what a keeper starts, each time."""
    words = [sys.executable, "-m", "remus_native", "up", "--host", here.section]
    words += ["--create"] * arguments.create
    words += log_options(arguments).words()
    return [*words, os.path.abspath(here.resource.file)]


def _serve(here: Here, arguments: argparse.Namespace, kept: Kept | None) -> int:
    def first() -> Next:
        if kept is not None:
            kept.wait(len(here.resource.volumes))  # what the process before was decides
        # Whoever is to discard what it has is the backup, whatever it was.
        role = "backup" if arguments.discard_local else here.role()
        if role != here.section:
            say(f"{here.resource.name}: this host is the {role} now")
        view = here.view(role)
        if role == "primary":
            return serve_primary(view)
        return serve_backup(
            view,
            create=arguments.create,
            discard_local=arguments.discard_local,
        )

    log = log_options(arguments)
    return serve(first, here.resource, log, kept=kept, follows=True)


# ---- the others ----------------------------------------------------------------


def down(arguments: argparse.Namespace) -> int:
    """Stop what `up` started, and wait until it has ended."""
    return stop(this_host(arguments))


def stop(here: Here) -> int:
    """... of this host."""
    name = here.resource.name
    control.call(here.state, "stop", timeout_s=CALL_S)

    def wait() -> int:
        end = time.monotonic() + DOWN_S
        while control.is_running(here.state):
            if time.monotonic() > end:
                raise CheckpointTimeout(
                    f"{name}: its process has not ended after {DOWN_S:.0f} s: it may "
                    "be held up by a disk"
                )
            time.sleep(0.02)
        return 0

    return with_progress(wait, lambda: f"stopping {name}")


def role(arguments: argparse.Namespace) -> int:
    """Print what this host is."""
    here = this_host(arguments)
    print(here.role())
    return 0


def reload(arguments: argparse.Namespace) -> int:
    """Have the process that serves read the file again."""
    here = this_host(arguments)
    name = here.resource.name
    try:
        told = control.call(here.state, "reload", timeout_s=CALL_S)
    except NotRunning as error:
        raise NotRunning(f"{name}: {error}") from error
    print(f"{name}: read again: {', '.join(told['changed']) or 'nothing changed'}")
    if told["kept"]:
        print(
            f"{name}: these take effect with `remus-native restart "
            f"{arguments.file}`, or the next start: {', '.join(told['kept'])}"
        )
    return 0


def restart(arguments: argparse.Namespace) -> int:
    """Have the keeper start another process in place of the one that serves."""
    here = this_host(arguments)
    name = here.resource.name
    try:
        before = control.call(here.state, "restart", timeout_s=CALL_S)["process"]
    except NotRunning as error:
        raise NotRunning(f"{name}: {error}") from error

    def wait() -> int:
        end = time.monotonic() + RESTART_S
        while time.monotonic() < end:
            with contextlib.suppress(NotRunning):  # the one before has ended
                now = control.call(here.state, "serving", timeout_s=CALL_S)
                if now["process"] != before:
                    return 0
                if now["failed"]:
                    raise StateError(f"{name}: it was not restarted: {now['failed']}")
            time.sleep(0.02)
        raise CheckpointTimeout(
            f"{name}: no other process serves it after {RESTART_S:.0f} s: its log says "
            "why"
        )

    return with_progress(wait, lambda: f"restarting {name}")
