# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make coverage` wants a reason for what no test runs, and a minimum a floor."""

from __future__ import annotations

import re
import sys

import pytest

from support.paths import ROOT, TESTS

sys.path.insert(0, str(TESTS / "tools"))
import covered

KNOWN = covered.explanations(covered.EXPLAINED.read_text())


def counts(run: int, idle: tuple[str, ...] = ()) -> covered.Counts:
    return covered.Counts(100, run, 100, run, list(idle))


def test_each_floor_has_both_minimums():
    floors = {path.parent.name for path in ROOT.glob("csrc/*/*.c")} | {"csrc"}
    for by in (covered.WORLD, covered.ALL):
        assert {one.floor for one in KNOWN.minimums if one.by == by} == floors


def test_what_is_explained_is_there():
    for name in KNOWN.functions:
        file, function = name.split()
        assert re.search(rf"\b{function}\(", (ROOT / file).read_text()), name


def test_a_function_without_a_reason_is_an_error():
    with pytest.raises(SystemExit, match="without a reason"):
        covered.explanations("csrc/a.c f\n")
    known = covered.explanations("csrc/a.c f g\n    Why.\ncsrc/b.c h\n    Else.\n")
    assert known.functions == {
        "csrc/a.c f": "Why.",
        "csrc/a.c g": "Why.",
        "csrc/b.c h": "Else.",
    }


def test_what_nothing_runs_and_what_is_run_all_the_same():
    reasons = {"csrc/a.c f": "Why.", "csrc/a.c g": "(at times) Why."}
    assert covered.holes(["csrc/a.c f"], reasons) == []
    assert covered.holes([], reasons) == ["explained, but it is run: csrc/a.c f"]
    idle = ["csrc/a.c f", "csrc/a.c h"]
    assert covered.holes(idle, reasons) == ["no test runs csrc/a.c h"]


def test_a_floor_below_its_minimum():
    least = [covered.Minimum("all", "base", 80.0, 70.0)]
    assert covered.too_low("all", {"base": counts(80)}, least) == []
    assert covered.too_low("all", {"base": counts(75)}, least) == [
        "base: all: 75.0 % of the lines, and not 80.0"
    ]
    assert covered.too_low("all", {"link": counts(99)}, []) == ["link: all: no minimum"]


def test_a_line_counts_once_and_each_branch_by_itself():
    line = {"line_number": 3, "count": 0, "branches": []}
    again = {"line_number": 3, "count": 2, "branches": [{"count": 2}, {"count": 0}]}
    functions = [{"name": "f", "execution_count": 0}]
    report = {
        "files": [
            {"file": "csrc/base/x.h", "lines": [line], "functions": []},
            {"file": "csrc/a.c", "lines": [line, again], "functions": functions},
        ]
    }
    found = covered.counts_of(report, "csrc/a.c")
    assert (found.lines, found.lines_run) == (1, 1)
    assert (found.branches, found.branches_run) == (2, 1)
    assert found.idle == ["csrc/a.c f"]
