# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a process that serves logs, as ``[log]`` and ``--log-...`` say."""

from __future__ import annotations

import argparse
import dataclasses
from typing import get_args

from ..resource_file import LogSettings, ResourceFile
from ..resource_file._log import LogForm, LogLevel, LogTo

__all__ = ["LogOptions", "add_log_arguments", "log_options"]


@dataclasses.dataclass(frozen=True)
class LogOptions:
    """What the command line says; None: what the file says."""

    level: LogLevel | None = None
    format: LogForm | None = None
    to: LogTo | None = None

    def over(self, resource: ResourceFile | None) -> LogSettings:
        given = {key: value for key, value in vars(self).items() if value is not None}
        return dataclasses.replace(
            LogSettings() if resource is None else resource.log, **given
        )

    def words(self) -> list[str]:
        """As arguments again."""
        return [
            word
            for key, value in vars(self).items()
            if value is not None
            for word in (f"--log-{key}", value)
        ]


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    """``--log-level``, ``--log-format``, ``--log-to``: those of ``[log]``."""
    usual = "(default: what FILE says in [log])"
    parser.add_argument(
        "--log-level",
        choices=get_args(LogLevel),
        help=f"the least that is told {usual}",
    )
    parser.add_argument(
        "--log-format", choices=get_args(LogForm), help=f"the form of a line {usual}"
    )
    parser.add_argument(
        "--log-to",
        choices=get_args(LogTo),
        help=f"standard error, or the fields of systemd's journal {usual}",
    )


def log_options(arguments: argparse.Namespace) -> LogOptions:
    return LogOptions(arguments.log_level, arguments.log_format, arguments.log_to)
