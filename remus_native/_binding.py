# SPDX-License-Identifier: LGPL-2.1-or-later
"""Small helpers round the C library (not typed: cffi has no types)."""

from __future__ import annotations

from typing import Any

from remus_native._core import ffi, lib

__all__ = ["ffi", "last_error", "lib", "sized", "text"]


def text(pointer: Any) -> str:
    """The C string behind ``pointer``; "" for NULL."""
    if pointer == ffi.NULL:
        return ""
    return ffi.string(pointer).decode("utf-8", "backslashreplace")


def sized(kind: str, count: int | None = None) -> Any:
    """A new ``struct remus_<kind>`` that says its size, or ``count`` of them."""
    name = f"struct remus_{kind}"
    new = ffi.new(f"{name} *") if count is None else ffi.new(f"{name}[]", count)
    for each in new[0 : count or 1] if count != 0 else ():
        each.struct_size = ffi.sizeof(name)
    return new


def last_error() -> str:
    """The library's text for the last failure in this thread."""
    return text(lib.remus_last_error())
