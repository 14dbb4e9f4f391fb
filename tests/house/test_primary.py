# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the primary is built: who writes which state, who calls whom."""

from __future__ import annotations

import re

import pytest

from support.paths import ROOT

FOLDER = ROOT / "csrc" / "primary"
SOURCES = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.c"))}

# What is written in one file only: a pattern of what writes it.
STATES = {
    "link": ("state.c", r"->link\.\w+\s*=(?!=)|->link\s*=(?!=)|\bremus_link_step\("),
    "reason": ("state.c", r"\b(snprintf|memcpy|strcpy)\(p->(lost_)?reason\b"),
    "life": ("state.c", r"->life\s*=(?!=)"),
    "authority": (
        "authority.c",
        r"->authority\s*=(?!=)|\bremus_authority_step\(|store\(&p->no_writes",
    ),
    "alone": (
        "alone.c",
        r"->alone(\.\w+)?\s*=(?!=)|\bremus_alone_step\(|->alone_error\w*\s*=(?!=)",
    ),
    "session": ("session.c", r"\bp->session\s*=(?!=)|\bremus_session_step\("),
    "connection": ("plan.c", r"->c\s*=(?!=)"),
}


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("state", STATES)
def test_a_state_is_written_in_one_file(state: str) -> None:
    home, pattern = STATES[state]
    writers = {
        name: len(re.findall(pattern, without_comments(text)))
        for name, text in SOURCES.items()
        if name != "steps.c"
    }
    assert writers.pop(home) > 0
    assert sum(writers.values()) == 0, {k: n for k, n in writers.items() if n}


def test_the_lock_is_taken_by_its_wrapper_only() -> None:
    """So that the invariants are asked whenever it is given back."""
    raw = r"\bpthread_(mutex_(un)?lock|cond_(timed)?wait)\([^;]*\bp->lock\b"
    found = [name for name, text in SOURCES.items() if re.search(raw, text)]
    assert found == []


def floors() -> list[str]:
    """The files in the order of internal.h, the lowest first."""
    return re.findall(r"^ \*   (\w+\.c) ", (FOLDER / "internal.h").read_text(), re.M)


def test_every_file_has_its_floor() -> None:
    assert sorted(floors()) == sorted(SOURCES)


def test_each_file_calls_only_what_is_below_it() -> None:
    """Then there is no circle among them."""
    defined: dict[str, str] = {}
    bodies = {name: without_comments(text) for name, text in SOURCES.items()}
    for name, text in bodies.items():
        for found in re.finditer(
            r"^(?!static|\s|#|typedef)[^;{}()=]*?\b(remus_\w+)\([^;{}]*\)\s*\{",
            text,
            re.M,
        ):
            defined[found[1]] = name
    assert len(defined) > 100
    order = {name: n for n, name in enumerate(floors())}
    wrong = {
        f"{name} calls {call}, which is in {defined[call]}"
        for name, text in bodies.items()
        for call in re.findall(r"\bremus_\w+", text)
        if call in defined and order[defined[call]] > order[name]
    }
    assert wrong == set()
