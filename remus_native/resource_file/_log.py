# SPDX-License-Identifier: LGPL-2.1-or-later
"""``[log]``: what the processes of a resource say, how, and where."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from ._values import Table, choice

__all__ = ["LogForm", "LogLevel", "LogSettings", "LogTo", "read_log"]

LogLevel = Literal["debug", "info", "warning", "error"]
LogForm = Literal["text", "json", "logfmt"]
LogTo = Literal["auto", "stderr", "journald"]


@dataclasses.dataclass(frozen=True)
class LogSettings:
    """``[log]``.  ``to``: "auto" is the journal where standard error leads to it."""

    level: LogLevel = "info"
    format: LogForm = "text"
    to: LogTo = "auto"


def read_log(table: Table) -> LogSettings:
    usual = LogSettings()
    return LogSettings(
        level=table.take("level", choice(*get_args(LogLevel)), usual.level),
        format=table.take("format", choice(*get_args(LogForm)), usual.format),
        to=table.take("to", choice(*get_args(LogTo)), usual.to),
    )
