# SPDX-License-Identifier: LGPL-2.1-or-later
"""The floors of the C library: arrows point down, by includes and by symbols."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import cache

import pytest

from support.c_source import CSRC, product
from support.paths import ROOT

#: Each folder, and those that it may use; remus.h is everybody's.
BELOW = {
    "remus": set(),  # the public headers
    "base": set(),
    "format": {"base"},
    "link": {"base", "format"},
    "journal": {"base", "format"},
    "stats": {"base", "format"},
    "primary": {"base", "format", "link", "stats"},
    "backup": {"base", "format", "link", "journal"},
    "node": {"base", "primary", "backup"},
    "group": {"base", "primary", "stats"},
}
FILES_MAX = 30

Graph = dict[str, set[str]]
OBJECTS = ROOT / "build" / "checked"


@cache
def symbols() -> Graph:
    """Which object uses which: by the names that it leaves to the linker."""
    where: dict[str, str] = {}
    wanted: Graph = {}
    for file in product():
        if file.path.suffix != ".c":
            continue
        name = file.path.relative_to(CSRC).with_suffix("").as_posix()
        made = OBJECTS / f"{name}.o"
        assert made.exists(), f"{made} is missing: run `make setup`"
        table = subprocess.check_output(["readelf", "-sW", made], text=True)
        for line in table.splitlines():
            words = line.split()
            if len(words) != 8 or words[4] != "GLOBAL":
                continue
            if words[6] == "UND":
                wanted.setdefault(name, set()).add(words[7])
            else:
                where[words[7]] = name
    return {
        name: {where[symbol] for symbol in used if symbol in where} - {name}
        for name, used in wanted.items()
    }


def includes() -> Graph:
    return {
        file.path.relative_to(CSRC).as_posix(): set(file.includes()) - {"remus.h"}
        for file in product()
    }


def circles(graph: Graph) -> Iterator[set[str]]:
    """The largest sets in which each can be reached from each (Tarjan's)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(one: str) -> None:
        index[one] = low[one] = len(index)
        stack.append(one)
        for other in graph.get(one, ()):
            if other not in index:
                visit(other)
                low[one] = min(low[one], low[other])
            elif other in stack:
                low[one] = min(low[one], index[other])
        if low[one] == index[one]:
            circle = set(stack[stack.index(one) :])
            del stack[stack.index(one) :]
            if len(circle) > 1:
                found.append(circle)

    for one in graph:
        if one not in index:
            visit(one)
    yield from found


def across(graph: Graph) -> set[tuple[str, str]]:
    """Arrows from folder to folder."""
    return {
        (source.split("/")[0], target.split("/")[0])
        for source, targets in graph.items()
        for target in targets
        if "/" in source and "/" in target
    }


def test_the_table_has_no_circle():
    assert not list(circles(dict(BELOW)))
    folders = {path.name for path in CSRC.iterdir() if path.is_dir()}
    assert folders == set(BELOW)


@pytest.mark.parametrize("graph", [includes, symbols])
def test_arrows_point_down(graph):
    wrong = [
        f"{source} -> {target}"
        for source, target in sorted(across(graph()))
        if source != target and target not in BELOW[source]
    ]
    assert wrong == []


def test_headers_include_each_other_in_no_circle():
    assert not list(circles(includes()))


def test_files_call_each_other_in_no_circle():
    """What everybody calls is at the bottom, open and close at the top."""
    assert [sorted(circle) for circle in circles(symbols())] == []


@pytest.mark.parametrize("folder", sorted(BELOW))
def test_a_folder_can_be_seen_at_once(folder):
    assert len(list((CSRC / folder).glob("*.c"))) <= FILES_MAX


def test_the_library_holds_nothing_of_the_tests():
    for made in sorted((ROOT / "remus_native").glob("_core*.so")):
        names = made.read_bytes()
        assert b"remus_test_" not in names and b"remus_sim_" not in names
