# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text that somebody else chose, made fit to print, and key=value lines.

A key of a resource file, a path, a tag or what the other side said can hold
anything: an ESC that moves a terminal's cursor, a newline that begins a line
of its own in a log, characters that reverse the order in which text is read.
"""

from __future__ import annotations

import re

__all__ = ["event", "printable", "quoted", "shortened"]

SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
TEXTS = ("reason", "source")  # keys whose values are quoted always
PLAIN = re.compile(r"[!#-<>-\[\]-~]+")  # ASCII but space, ", = and backslash


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return SHORT.get(char) or f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: object) -> str:
    """``text`` in one line, with escapes for what is not printable.

    Those are the control characters (C0, C1), separators of lines, what
    changes the direction or has no width, and halves of surrogate pairs.  A
    text without them comes back as it is.
    """
    words = str(text)
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() else _escape(c) for c in words)


def shortened(text: object, length: int = 60) -> str:
    """`printable`, and no longer than ``length``."""
    # What is cut off is not inspected: it can be a megabyte.
    words = str(text)
    shown = printable(words[: length + 1])
    return shown if len(shown) <= length else shown[: length - 3] + "..."


def quoted(text: object, *, always: bool = False) -> str:
    r"""``text`` as the value of a key=value line, quoted where it must be.

    Bare, unless ``always``, if it is not empty and all ASCII without space,
    ``"``, ``=``, backslash or control characters.  Else in ``"``, with
    ``\"`` and ``\\``, and escapes as `printable` makes them: no value can end
    early, or begin a line or a key of its own.
    """
    words = str(text)
    if not always and PLAIN.fullmatch(words):
        return words
    inner = words.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(inner)}"'


def event(name: str, **values: object) -> str:
    """One line ``event=NAME key=value ...`` for a log, each value `quoted`.

    What somebody else worded (`TEXTS`) is in quotes always.
    """
    pairs = (
        f"{key}={quoted(value, always=key in TEXTS)}" for key, value in values.items()
    )
    return " ".join([f"event={name}", *pairs])
