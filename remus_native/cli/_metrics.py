# SPDX-License-Identifier: LGPL-2.1-or-later
"""``remus-native metrics``: as text, into a file, or over HTTP."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from .._text import printable
from ..errors import StateError
from ..shared.log import say
from ..watching import Told, ask
from ..watching._ask import OpenBackup
from ..watching._http import MetricsServer
from ..watching._metrics import text_of, write_atomically
from ._show import BOTH, OK, USAGE, code_of, resources_of

__all__ = ["metrics"]


def metrics(arguments: argparse.Namespace, open_backup: OpenBackup) -> int:
    """The exit code: 0 if the numbers could be told, whatever they say."""

    watcher = _Watcher(arguments, open_backup)
    if arguments.listen is not None:
        host, port = arguments.listen
        server = MetricsServer(host, port, watcher.look, health)
        try:
            say(f"metrics on http://{host}:{server.port}/metrics")
            server.serve()
        except KeyboardInterrupt:
            pass  # that is how serving ends
        finally:
            server.close()
        return OK
    while True:
        text = text_of(watcher.look())
        if arguments.textfile is None:
            sys.stdout.write(text)
        else:
            _write(arguments.textfile, text)
        if arguments.every is None:
            return USAGE if watcher.problems else OK
        time.sleep(arguments.every)


class _Watcher:
    """Reads the files anew each time: a resource that came or went is seen."""

    def __init__(self, arguments: argparse.Namespace, open_backup: OpenBackup) -> None:
        self._arguments = arguments
        self._open_backup = open_backup
        self.problems: list[str] = []

    def look(self) -> list[Told]:
        resources, problems = resources_of(self._arguments)
        if problems != self.problems:  # said once
            for problem in problems:
                say(problem)
        self.problems = problems
        return [ask(resource, BOTH, self._open_backup) for resource in resources]


def _write(path: str, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise StateError(
            f"{path}: {error.strerror or error}: the metrics were not written",
            errno=error.errno,
        ) from error


def health(told: Sequence[Told]) -> tuple[bool, str]:
    """Whether all is as it should be, as ``status`` has it, and in words."""
    lines, well = [], True
    for one in told:
        code = code_of(one)
        well = well and code == OK
        name = one.resource.name
        for side, answer in one.found.items():
            runs = "" if answer["running"] else " (not running)"
            lines.append(f"{name} {side} {answer['state']}{runs}")
        for side, why in {**one.silent, **one.refused}.items():
            lines.append(f"{name} {side}: {printable(why)}")
        if not one.found and not one.silent and not one.refused:
            lines.append(f"{name}: nothing runs here")
    return well, "".join(f"{line}\n" for line in lines) or "no resource\n"
