# SPDX-License-Identifier: LGPL-2.1-or-later
"""Small helpers round the C library (not typed: cffi has no types)."""

from __future__ import annotations

from typing import Any

from remus_native._core import ffi, lib

__all__ = ["ffi", "last_error", "lib", "milliseconds", "text"]


def text(pointer: Any) -> str:
    """The C string behind ``pointer``; "" for NULL."""
    if pointer == ffi.NULL:
        return ""
    return ffi.string(pointer).decode("utf-8", "backslashreplace")


def last_error() -> str:
    """The library's text for the last failure in this thread."""
    return text(lib.remus_last_error())


def milliseconds(timeout_s: float | None) -> int:
    """A timeout for C: None waits without a limit; a rest is rounded up."""
    if timeout_s is None:
        return -1
    return max(0, -int(-timeout_s * 1000 // 1))
