# SPDX-License-Identifier: LGPL-2.1-or-later
"""`tools/run_suite.py`: each test runs once, and none fails in silence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from support.paths import TESTS

HEAD = """\
import os, pathlib, pytest
def note(what):
    with open("ran", "a") as ran:
        ran.write(f"{what} {os.getpid()}\\n")
"""
# One waits until the other lane has taken a module.
MEETS = """
import time
def test_meets():
    note("meets")
    end = time.monotonic() + 50
    while not pathlib.Path("other").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
"""
OTHERS = """
@pytest.mark.parametrize("i", range(3))
def test_other(i):
    pathlib.Path("other").touch()
    note(f"other{i}")
@pytest.mark.skip(reason="allowed: it says so")
def test_skipped():
    pass
@pytest.mark.alone
def test_times():
    note("times")
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\npythonpath = {TESTS}\naddopts = -ra --strict-markers\n"
        "markers = alone: times\n"
    )
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["support.lanes"]\n')
    (tmp_path / "test_a.py").write_text(HEAD + MEETS)
    (tmp_path / "test_b.py").write_text(HEAD + OTHERS)
    return tmp_path


def run(
    suite: Path, *arguments: str, lanes: int = 2
) -> tuple[int, str, str, list[str]]:
    """Exit code, output, its last line, and what the junit file holds."""
    tool = TESTS / "tools" / "run_suite.py"
    done = subprocess.run(
        [sys.executable, str(tool), str(lanes), "junit.xml", *arguments],
        cwd=suite, env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert not done.stderr
    names = [
        case.get("name", "") for case in ET.parse(suite / "junit.xml").iter("testcase")
    ]
    return done.returncode, done.stdout, done.stdout.splitlines()[-1], sorted(names)


NAMES = [
    "test_meets",
    *(f"test_other[{i}]" for i in range(3)),
    "test_skipped",
    "test_times",
]
CLOSING = r"=+ (.*) in [0-9.]+s \(0:00:[0-9]+\) =+"


def ran(suite: Path) -> dict[str, str]:
    lines = [line.split() for line in (suite / "ran").read_text().splitlines()]
    assert len(dict(lines)) == len(lines), "one ran twice"
    return dict(lines)


def test_each_test_runs_once_and_those_that_measure_time_by_themselves(suite):
    code, _, last, names = run(suite)
    assert (code, names) == (0, NAMES)
    said = re.fullmatch(CLOSING, last)
    assert said and said[1] == "5 passed, 1 skipped"
    where = ran(suite)
    assert len(where) == 5
    assert where["meets"] != where["other0"] == where["other2"]
    assert where["times"] not in (where["meets"], where["other0"])
    assert list(where)[-1] == "times"


def test_a_failure_is_counted_and_told(suite):
    with (suite / "test_b.py").open("a") as module:
        module.write("def test_bad():\n    assert 'this' == 'that'\n")
    code, output, last, names = run(suite)
    assert code == 1 and "test_bad" in names
    said = re.fullmatch(CLOSING, last)
    assert said and said[1] == "1 failed, 5 passed, 1 skipped"
    assert "assert 'this' == 'that'" in output
    assert "FAILED test_b.py::test_bad" in output


def test_a_lane_that_dies_is_a_failure(suite):
    with (suite / "test_b.py").open("a") as module:
        module.write("def test_dies():\n    os._exit(0)\n")
    code, output, *_ = run(suite)
    assert code == 1
    assert re.search("[0-9] tests to be shared out, [0-9] were run", output)


def test_what_is_selected_and_that_nothing_is(suite):
    code, _, last, names = run(suite, "-k", "other")
    assert (code, names) == (0, NAMES[1:4]) and "3 passed" in last
    code, _, last, names = run(suite, "-k", "nothing_of_that_name")
    assert (code, names) == (5, []) and "no tests ran" in last


def test_one_lane_is_pytest_itself(suite):
    (suite / "other").touch()
    code, output, last, names = run(suite, lanes=1)
    assert (code, names) == (0, NAMES)
    assert "test session starts" in output and "5 passed, 1 skipped in" in last
