# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a caller gives us: one rule for every argument.

A wrong argument is a `ConfigError`, whose text names it, and also the builtin
that fits: `TypeError` for a wrong type, `OverflowError` for a number out of
range, `ValueError` for all of them.

A timeout is a number of seconds from 0 on; None and infinity wait without a
limit, and so does what lies beyond the clock's end (292 million years).  NaN
and negative ones are refused.
"""

from __future__ import annotations

import math
import operator
import os
import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import ArgumentRangeError, ArgumentTypeError, ConfigError

__all__ = [
    "boolean",
    "choice",
    "encoded",
    "every",
    "instance",
    "integer",
    "milliseconds",
    "path_of",
    "seconds",
    "shown",
]

MS_MAX = (1 << 63) - 1

_PLAIN = (int, float)

T = TypeVar("T")


def shown(value: object) -> str:
    """``value`` for a message: short, and never an error itself."""
    try:
        return reprlib.repr(value)
    except Exception:  # an integer of 5,000 digits has no repr
        return f"<{type(value).__name__}>"


def instance(name: str, value: Any, kind: type[T], *more: type) -> T:
    """``value`` if it is of that type."""
    if not isinstance(value, (kind, *more)):
        kinds = " or ".join(each.__name__ for each in (kind, *more))
        raise ArgumentTypeError(
            f"{name}: {shown(value)}: expected {kinds}, got {type(value).__name__}"
        )
    return value  # type: ignore[return-value]


def boolean(name: str, value: object) -> bool:
    """``value`` if it is True or False."""
    return instance(name, value, bool)


def integer(name: str, value: object, high: int = MS_MAX, low: int = 0) -> int:
    """``value`` as an int from ``low`` to ``high``."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ArgumentTypeError(
            f"{name}: {shown(value)}: expected an integer, got {type(value).__name__}"
        )
    number = operator.index(value)
    if number < low:
        raise ArgumentRangeError(
            f"{name}: {shown(number)} is not a number of {low} or more"
        )
    if number > high:
        raise ArgumentRangeError(f"{name}: {shown(number)} is more than {high}")
    return number


def choice(name: str, value: object, table: Mapping[str, T]) -> T:
    """What ``value`` stands for."""
    if not isinstance(value, str) or value not in table:
        allowed = ", ".join(f'"{key}"' for key in table)
        kind = ConfigError if isinstance(value, str) else ArgumentTypeError
        raise kind(f"{name}: {shown(value)} is not one of {allowed}")
    return table[value]


def encoded(name: str, value: object) -> bytes:
    """A text as the bytes that C gets, which end at the first NUL."""
    raw = os.fsencode(instance(name, value, str))
    if b"\0" in raw:
        raise ConfigError(f"{name}: {shown(value)} holds a NUL character")
    return raw


def path_of(name: str, value: object) -> str:
    """A path as text; what the file system can't name is refused."""
    try:
        path = os.fsdecode(os.fspath(value))  # type: ignore[call-overload]
    except TypeError:
        raise ArgumentTypeError(
            f"{name}: {shown(value)}: expected a path, got {type(value).__name__}"
        ) from None
    encoded(name, path)
    return str(path)


def seconds(name: str, value: object, *, none: bool = True) -> float | None:
    """A timeout in seconds; None: without a limit."""
    if value is None and none:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentTypeError(
            f"{name}: {shown(value)}: expected a number of seconds"
            f"{' or None' if none else ''}, got {type(value).__name__}"
        )
    if value != value:
        raise ConfigError(f"{name}: NaN is not a number of seconds")
    if value < 0:
        raise ArgumentRangeError(
            f"{name}: {shown(value)} is negative; 0 does not wait, None waits "
            "without a limit"
        )
    if value * 1000 >= MS_MAX:  # infinity, too
        return None if none else MS_MAX / 1000
    return float(value)


def every(name: str, values: object, kind: type[T]) -> tuple[T, ...]:
    """A sequence of objects of one type."""
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        raise ArgumentTypeError(
            f"{name}: {shown(values)}: expected a sequence of {kind.__name__}, "
            f"got {type(values).__name__}"
        )
    return tuple(instance(name, value, kind) for value in values)


def milliseconds(timeout_s: Any, name: str = "timeout_s") -> int:
    """A timeout for C: without a limit -1; a rest is rounded up."""
    if timeout_s.__class__ in _PLAIN and 0 <= timeout_s < 1e12:
        return -int(-timeout_s * 1000 // 1)
    limit = seconds(name, timeout_s)
    return -1 if limit is None else math.ceil(limit * 1000)
