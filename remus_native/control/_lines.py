# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lines of the control socket: requests, answers, errors."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Mapping
from typing import Any

from .. import errors
from ..errors import RemusError, StateError
from ..resource_file._disks import CONTROL_SOCKET

__all__ = [
    "CONTROL_SOCKET",
    "class_of",
    "error_object",
    "line_of",
    "parse",
    "path_of",
]

TEXT_MAX = 4096  # characters of one value of a request
INT_MAX = 1 << 64


def path_of(directory: int) -> str:
    # A socket's path has 107 bytes at most, a state directory's may have more.
    return f"/proc/self/fd/{directory}/{CONTROL_SOCKET}"


def parse(line: bytes) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of a request.  Raises `StateError`."""
    try:
        request = json.loads(line)
        name = request.pop("request")
        right = isinstance(name, str) and all(map(_is_scalar, request.values()))
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
        right = False
    if not right:
        raise StateError(
            'expected one line {"request": NAME, ...}; other values are texts of at '
            f"most {TEXT_MAX} characters, numbers of 64 bits, true, false or null",
            errno=errno.EINVAL,
        )
    return name, request


def _is_scalar(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= TEXT_MAX
    if isinstance(value, int):  # bool, too
        return -INT_MAX < value < INT_MAX
    return value is None or (isinstance(value, float) and math.isfinite(value))


def line_of(answer: Mapping[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def error_object(error: Exception) -> dict[str, Any]:
    kind = class_of(type(error).__name__).__name__
    number = getattr(error, "errno", None)
    if not isinstance(number, int):
        number = None
    return {"ok": False, "error": str(error), "kind": kind, "errno": number}


def class_of(kind: object) -> type[RemusError]:
    """The error class of that name, if it can be made of one text."""
    cls = getattr(errors, str(kind), None)
    if not isinstance(cls, type) or not issubclass(cls, RemusError):
        return StateError
    return StateError if cls is errors.DeviceErrors else cls
