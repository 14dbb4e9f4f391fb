# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the backup is built: who writes which state."""

from __future__ import annotations

import re

import pytest

from support.paths import ROOT

SOURCES = {
    f"{folder}/{path.name}": re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    for folder in ("backup", "format", "node", "primary")
    for path in sorted((ROOT / "csrc" / folder).glob("*.c"))
}

# What is written in one file only: a pattern of what writes it.
STATES = {
    "authority": (
        "backup/state.c",
        r"b->authority(\.\w+)?\s*=(?!=)|\bremus_claim_step\(",
    ),
    "phase": ("backup/state.c", r"->now\.phase\s*=(?!=)|\bremus_phase_step\("),
    "connection": ("backup/hello.c", r"->now\s*=(?!=)"),
    "met": ("backup/hello.c", r"->met\s*=(?!=)"),
    "superblock": ("backup/state.c", r"->super\s*=(?!=)"),
    "promote": ("backup/promote.c", r"\bremus_promote_step\("),
    "role": (
        "format/role.c",
        r"\bs(uper)?(->|\.)role\s*=(?!=)(?!\s*(REMUS_ROLE_|role;))|\bremus_role_next\(",
    ),
}


def test_the_lock_is_given_back_through_its_function() -> None:
    """So that the invariants are asked, and changes told, whenever it is."""
    raw = r"\bpthread_(mutex_unlock|cond_(timed)?wait)\([^;]*\bb->lock\b"
    found = [
        name
        for name, text in SOURCES.items()
        if name.startswith("backup/")
        for _ in re.finditer(raw, text)
    ]
    assert found == ["backup/state.c"]  # the function itself


@pytest.mark.parametrize("state", STATES)
def test_a_state_is_written_in_one_file(state: str) -> None:
    home, pattern = STATES[state]
    writers = {
        name: found
        for name, text in SOURCES.items()
        if not name.endswith("/steps.c") and (found := re.findall(pattern, text))
    }
    assert writers.pop(home)
    assert writers == {}
