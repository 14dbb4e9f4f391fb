# SPDX-License-Identifier: LGPL-2.1-or-later
"""``remus-native doctor``, and ``--check`` of the other commands."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from .._text import printable
from ..doctor import ERROR, OK, WARNING, Finding, examine, sides_here
from ..resource_file import ResourceFile, ResourceFileError, Side
from ._fence import run_fence
from ._up import load_written, this_host

__all__ = ["check", "doctor"]

#: Whose host a command is given on; the others look at what is here.
SIDE_OF: dict[str, Side] = {
    "backup": "backup",
    "promote": "backup",
    "commit": "backup",
    "swap": "backup",
    "primary": "primary",
    "run": "primary",
    "verify": "primary",
    "resume": "primary",
}


def doctor(arguments: argparse.Namespace) -> int:
    """The exit code: 0 without errors, 1 with one, 2 for a wrong file."""
    return _report(
        arguments,
        [arguments.side] if arguments.side else None,
        as_json=arguments.json,
        with_fence=arguments.run_fence,
        only=arguments.only,
    )


def check(arguments: argparse.Namespace) -> int:
    """What ``--check`` does in the place of the command."""
    side = SIDE_OF.get(arguments.command)
    return _report(arguments, [side] if side else None)


def _report(
    arguments: argparse.Namespace,
    sides: Sequence[Side] | None,
    *,
    as_json: bool = False,
    with_fence: bool = False,
    only: str | None = None,
) -> int:
    try:
        if "host" in arguments:
            here = this_host(arguments)
            sides = [here.role()]
            resource = here.view(sides[0])
        else:
            resource = load_written(arguments.file, swapped=arguments.swapped)
    except ResourceFileError as error:
        if not as_json:
            raise
        wrong = [_of_the_file(problem) for problem in error.problems]
        print(json.dumps(_object(arguments.file, None, wrong), indent=2))
        return 2

    def fence_once() -> None:
        run_fence(resource, "check", {"side": sides_here(resource)[0], "why": "doctor"})

    findings = [
        Finding("file", None, OK, f"{resource.file} is right"),
        *examine(
            resource,
            sides or sides_here(resource),
            fence_once if with_fence else None,
            only,
        ),
    ]
    if as_json:
        print(json.dumps(_object(arguments.file, resource, findings), indent=2))
    else:
        for finding in findings:
            print(_line(finding))
        print(f"{resource.name}: {_counts(findings)}")
    return 1 if any(finding.level == ERROR for finding in findings) else 0


def _of_the_file(problem: str) -> Finding:
    found, _, fix = problem.partition("; fix: ")
    return Finding("file", None, ERROR, found, fix)


def _line(finding: Finding) -> str:
    where = f"{finding.side}: " if finding.side else ""
    fix = f"; do: {finding.fix}" if finding.fix else ""
    return printable(
        f"{finding.level:<8} {finding.name:<10} {where}{finding.found}{fix}"
    )


def _counts(findings: Sequence[Finding]) -> str:
    counts = _levels(findings)
    return ", ".join(
        f"{counts[level]} {level}{'' if level == OK or counts[level] == 1 else 's'}"
        for level in (OK, WARNING, ERROR)
    )


def _levels(findings: Sequence[Finding]) -> dict[str, int]:
    return {
        level: sum(finding.level == level for finding in findings)
        for level in (OK, WARNING, ERROR)
    }


def _object(
    file: str, resource: ResourceFile | None, findings: Sequence[Finding]
) -> dict[str, object]:
    return {
        "file": file,
        "resource": resource.name if resource else None,
        "counts": _levels(findings),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
