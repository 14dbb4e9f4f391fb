# SPDX-License-Identifier: LGPL-2.1-or-later
"""A function can be seen at once, a file read in one sitting; one layout."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.c_source import source, tracked
from support.paths import ROOT

FUNCTION_MAX = 70
FILE_MAX = 600
#: Longer ones, at most: only ever shorter, and then not here any more.
LONGER: dict[str, int] = {}
CLANG_FORMAT = "14.0.6"
C_FILES = tracked("csrc/*.[ch]", "tests/*.[ch]", "benchmarks/*.[ch]")


def named(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


@pytest.mark.parametrize("name", named(C_FILES))
def test_functions_of_c(name):
    long = [
        f"{function.name}: {function.lines} lines"
        for function in source(ROOT / name).functions()
        if function.body and function.lines > FUNCTION_MAX
    ]
    assert long == []


@pytest.mark.parametrize("name", named([*C_FILES, *tracked("tests/*.py")]))
def test_files(name):
    lines = len((ROOT / name).read_text().splitlines())
    assert lines <= LONGER.get(name, FILE_MAX)


def test_no_file_is_allowed_more_than_it_needs():
    for name, limit in LONGER.items():
        assert FILE_MAX < len((ROOT / name).read_text().splitlines()) <= limit, name


def test_c_is_laid_out_by_clang_format():
    """By that version alone: another one lays out a few lines differently."""
    tool = shutil.which("clang-format", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("clang-format is missing: make setup")
    assert CLANG_FORMAT in subprocess.check_output([tool, "--version"], text=True)
    pinned = f'"clang-format=={CLANG_FORMAT};'
    assert pinned in (ROOT / "pyproject.toml").read_text()
    done = subprocess.run(
        [tool, "--dry-run", *C_FILES], capture_output=True, text=True, check=True
    )
    assert set(re.findall(r"^\S+?:\d+", done.stderr, re.MULTILINE)) == set()


def test_compiler_flags_stand_in_one_place():
    for name in ("Makefile", "setup.py", "remus_native/_build.py"):
        text = (ROOT / name).read_text()
        assert "csrc/flags.mk" in text or '"flags.mk"' in text, name
        assert not re.search(r"-std=|-Wall|-Wextra|-D_GNU_SOURCE", text), name
