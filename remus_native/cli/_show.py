# SPDX-License-Identifier: LGPL-2.1-or-later
"""``remus-native status`` and ``events``: one resource or all, once or live."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from .._text import printable
from ..replica import State
from ..resource_file import ResourceFile, ResourceFileError, Side
from ..shared.log import say
from ..watching import Follower, Told, ask, event_line, files_of, status_text
from ..watching._ask import OpenBackup
from ._up import load_view

__all__ = ["BOTH", "OK", "USAGE", "code_of", "events", "resources_of", "status"]

OK, FAILED, USAGE, UNPROTECTED, NOT_RUNNING = range(5)
#: Of several resources the one that comes first here is the exit code.
WORST = (USAGE, FAILED, UNPROTECTED, NOT_RUNNING, OK)
BOTH: tuple[Side, ...] = ("primary", "backup")
LOOK_S = 0.2  # between looks for events
GOOD_STATES = {
    "primary": {State.PROTECTED},
    "backup": {State.PROTECTED, State.STANDBY, State.PROMOTED},
}


# ---- which resources ----------------------------------------------------------------


def resources_of(
    arguments: argparse.Namespace,
) -> tuple[list[ResourceFile], list[str]]:
    """Those that were asked for, and what is wrong with files of ``--all``."""
    if not arguments.all:
        return [load_view(arguments.file, swapped=arguments.swapped)], []
    resources: list[ResourceFile] = []
    problems: list[str] = []
    for file in files_of(arguments.directory):
        try:
            resources.append(load_view(file, swapped=arguments.swapped))
        except ResourceFileError as error:
            problems += error.problems
    return resources, problems


# ---- status -------------------------------------------------------------------------


def status(arguments: argparse.Namespace, open_backup: OpenBackup) -> int:
    """Once, or again and again with ``--watch``; the exit code."""
    code = _status(arguments, open_backup)
    try:
        while arguments.watch is not None:
            time.sleep(arguments.watch)
            code = _status(arguments, open_backup)
    except KeyboardInterrupt:
        pass  # that is how watching ends
    return code


def _status(arguments: argparse.Namespace, open_backup: OpenBackup) -> int:
    resources, problems = resources_of(arguments)
    sides = [arguments.side] if arguments.side else BOTH
    told = [ask(resource, sides, open_backup) for resource in resources]
    live = arguments.watch is not None
    if arguments.json:
        objects: Any = [one.as_object() for one in told]
        shown = {"resources": objects} if arguments.all else objects[0]
        print(json.dumps(shown, indent=None if live else 2))
    else:
        if live and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        for one in told:
            _print(one)
    sys.stdout.flush()
    for one in told:
        _say_faults(one)
    for problem in problems:
        say(problem)
    codes = [code_of(one) for one in told] + [USAGE] * bool(problems)
    return min(codes, key=WORST.index, default=NOT_RUNNING)


def _print(told: Told) -> None:
    found, name = told.found, told.resource.name
    for side, answer in found.items():
        print(status_text(side, answer))
    for side in told.sides:
        if side not in found and side not in told.silent and side not in told.refused:
            print(f"{name} {side}: not running on this host")


def _say_faults(told: Told) -> None:
    name = told.resource.name
    for words in told.exchanged:
        say(words)
    for side, why in told.silent.items():
        say(
            f"{side} of {name}: its process does not answer; it may be "
            f"stopped, or held up by a disk: {why}"
        )
    for side, why in told.refused.items():
        say(f"{side} of {name}: {why}")


def code_of(told: Told) -> int:
    """The exit code of one resource."""
    if told.silent or told.refused or told.exchanged:
        return FAILED
    found = told.found
    if not any(answer["running"] for answer in found.values()):
        return NOT_RUNNING
    good = all(answer["state"] in GOOD_STATES[side] for side, answer in found.items())
    return OK if good else UNPROTECTED


# ---- events -------------------------------------------------------------------------


def events(arguments: argparse.Namespace) -> int:
    """Each change of state, until a signal or, with ``--now``, what is."""
    resources, problems = resources_of(arguments)
    for problem in problems:
        say(problem)
    followers = [
        Follower(resource, side)
        for resource in resources
        for side in _told_apart(resource, arguments.side)
    ]
    left = arguments.count
    try:
        while True:
            for one in _looks(followers):
                print(json.dumps(one) if arguments.json else printable(event_line(one)))
                sys.stdout.flush()
                if left is not None:
                    left -= 1
                    if not left:
                        return OK
            if arguments.now:
                return USAGE if problems else OK
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        return OK  # that is how following ends


def _looks(followers: Sequence[Follower]) -> Iterator[dict[str, Any]]:
    for follower in followers:
        yield from follower.look()


def _told_apart(resource: ResourceFile, side: Side | None) -> Sequence[Side]:
    """The sides to follow: one state path has one process."""
    if side is not None:
        return [side]
    return BOTH[: 1 if resource.primary.state == resource.backup.state else 2]
