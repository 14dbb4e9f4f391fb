# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asking both sides of a resource, as far as they are on this host."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from .. import control
from ..control import NotRunning
from ..errors import CheckpointTimeout, RemusError
from ..replica import Backup
from ..resource_file import ResourceFile, Side
from ..resource_file._disks import has_state
from . import _statistics
from ._newest import OVER
from ._superblock import promotable_age_s

__all__ = ["RESOURCES_DIR", "Told", "ask", "files_of"]

STATUS_S = 3.0  # a process that lives answers status at once
RESOURCES_DIR = "/etc/remus"  # of every resource file of a host
WRITERS_MAX = 16  # that are named

OpenBackup = Callable[[ResourceFile], AbstractContextManager[Backup]]


def files_of(directory: str) -> list[str]:
    """Every resource file of a directory, in order."""
    return sorted(glob.glob(os.path.join(glob.escape(directory), "*.toml")))


@dataclass
class Told:
    """What was found of one resource on this host."""

    resource: ResourceFile
    sides: list[Side]
    answers: dict[Side, dict[str, Any] | None]
    silent: dict[Side, str] = field(default_factory=dict)  # asked, no answer
    refused: dict[Side, str] = field(default_factory=dict)  # ... or an error
    exchanged: list[str] = field(default_factory=list)  # in words

    @property
    def found(self) -> dict[Side, dict[str, Any]]:
        return {side: answer for side, answer in self.answers.items() if answer}

    @property
    def here(self) -> str:
        """What this host really is for this resource."""
        found = list(self.found)
        return "both" if len(found) == 2 else found[0] if found else "nothing"

    def as_object(self) -> dict[str, Any]:
        """As status.schema.json has it."""
        return {
            "resource": self.resource.name,
            "here": self.here,
            **{str(side): answer for side, answer in self.answers.items()},
            "errors": {**self.silent, **self.refused},
        }


def ask(resource: ResourceFile, sides: Sequence[Side], open_backup: OpenBackup) -> Told:
    """Ask each side by itself: what one of them lacks hides no other.

    ``open_backup`` opens one whose process does not run, read only.
    """
    told = Told(resource, list(sides), dict.fromkeys(sides))
    for side in sides:
        try:
            answer = _answer_of(resource, side, open_backup)
        except CheckpointTimeout as error:
            told.silent[side] = str(error)
        except (RemusError, OSError) as error:
            told.refused[side] = str(error)
        else:
            if answer is not None:
                _put(told, side, answer)
    return told


def _put(told: Told, side: Side, answer: dict[str, Any]) -> None:
    """What was found in the state of ``side``, under the role that it has.

    On two hosts both sides may have one state path: then it is the other
    side's, which is asked as well.  Else the roles have been exchanged.
    """
    resource = told.resource
    role: Side = answer["role"]
    if role == side:
        told.answers[side] = answer
        return
    if resource.primary.state == resource.backup.state:
        return
    hint = "leave out --swapped" if resource.is_swapped else "say --swapped"
    told.exchanged.append(
        f"{resource.name}: {resource.state(side)} belongs to the {role} now: the two "
        f"sides have exchanged their roles, so {hint}"
    )
    if told.answers.get(role, answer) is None:
        told.answers[role] = answer


def _answer_of(
    resource: ResourceFile, side: Side, open_backup: OpenBackup
) -> dict[str, Any] | None:
    """What the state of ``side`` holds; a backup that does not run is opened."""
    state = resource.state(side)
    try:
        answer: dict[str, Any] = control.call(state, "status", timeout_s=STATUS_S)
        running = True
        if answer["role"] == "primary":
            answer["statistics"] = _statistics.of_state_dir(state)
        else:
            for name in ("checkpoints", "refusals"):
                answer[name] = control.call(state, name, timeout_s=STATUS_S)
    except NotRunning:
        if side == "primary" or not has_state(resource, "backup"):
            return None
        running = False
        with open_backup(resource) as backup:
            answer = dataclasses.asdict(backup.status())
            answer["checkpoints"] = [
                {
                    **dataclasses.asdict(cp),
                    "tag": cp.tag.decode("utf-8", "backslashreplace") or None,
                }
                for cp in backup.checkpoints()
            ]
            answer["refusals"] = []
        over = answer["state"] in OVER
        answer["age_s"] = None if over else promotable_age_s(state)
    return {"running": running, **answer, **_facts(resource, answer)}


def _facts(resource: ResourceFile, answer: dict[str, Any]) -> dict[str, Any]:
    """What follows from an answer and from this host."""
    swapped = answer["role"] == "primary"
    own = resource.primary if swapped else resource.backup
    age = answer.get("age_s")
    facts: dict[str, Any] = {
        "age_s": age,
        "address": resource.address if swapped else resource.listens,
        "mount": own.mount if swapped or own.serves else None,
        "lag": {"epochs": 0, "bytes": 0, "seconds": age},
    }
    lag = facts["lag"]
    if swapped:
        lag["epochs"] = max(0, answer["open_epoch"] - 1 - answer["prepared_epoch"])
        sent = max(answer["queue_bytes"], answer.get("open_bytes", 0))
        lag["bytes"] = sent + answer["dirty_bytes"]
        facts["open_for_writing"] = (
            list(_writers(own.mount)) if answer["writers"] else []
        )
    else:
        lag["epochs"] = max(0, answer["prepared_epoch"] - answer["applied_epoch"])
        if lag["epochs"]:  # whole segments: at most so much
            lag["bytes"] = answer["journal_bytes"]
    return facts


def _writers(mount: str) -> Iterator[dict[str, Any]]:
    """Who has a file below ``mount`` open for writing, as /proc tells it.

    Never looks at the files themselves: what serves them may hang.
    """
    below = os.path.join(
        os.path.realpath(os.path.dirname(mount)), os.path.basename(mount), ""
    )
    for loop in glob.glob("/sys/block/loop*/loop/backing_file"):
        with contextlib.suppress(OSError), open(loop, encoding="utf-8") as file:
            path = file.read().strip()
            if path.startswith(below):
                yield {
                    "volume": path[len(below) :],
                    "pid": None,
                    "command": loop.split("/")[3],
                }
    found: set[tuple[str, int]] = set()
    for entry in glob.glob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            path = os.readlink(entry)
            if not path.startswith(below):
                continue
            _, _, pid, _, number = entry.split("/")
            if not _for_writing(f"/proc/{pid}/fdinfo/{number}"):
                continue
            who = (path[len(below) :], int(pid))
            if who in found:
                continue
            found.add(who)
            if len(found) > WRITERS_MAX:
                return
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
                yield {
                    "volume": who[0],
                    "pid": who[1],
                    "command": comm.read().rstrip("\n"),
                }


def _for_writing(fdinfo: str) -> bool:
    with open(fdinfo, encoding="ascii") as file:
        for line in file:
            if line.startswith("flags:"):
                return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False
