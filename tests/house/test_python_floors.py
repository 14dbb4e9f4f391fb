# SPDX-License-Identifier: LGPL-2.1-or-later
"""The floors of the Python package: what may import what.

Arrows point down only: the command may use the demo, both use what they
share, all use the library; the library uses none of them.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve()
while not (PACKAGE / "remus_native").is_dir():
    PACKAGE = PACKAGE.parent
PACKAGE /= "remus_native"

#: Each folder's floor, and those below it that it may import from.
LIBRARY = ("", "replica", "resource_file", "control")
BELOW = {
    "": ("", "replica"),
    "replica": ("", "replica"),
    "resource_file": ("", "replica", "resource_file"),
    "control": ("", "replica", "resource_file", "control"),
    "shared": (*LIBRARY, "shared"),
    "watching": (*LIBRARY, "shared", "watching"),
    "doctor": (*LIBRARY, "shared", "doctor"),
    "demo": (*LIBRARY, "shared", "demo"),
    "cli": (*LIBRARY, "shared", "watching", "doctor", "demo", "cli"),
}
#: `python -m remus_native` is the command.
EXTRA = {"__main__.py": ("cli",)}
FILES_MAX = 17
LINES_MAX = 600


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def floor(path: Path) -> str:
    return path.parent.relative_to(PACKAGE).as_posix().replace(".", "")


def imported_floors(path: Path) -> set[str]:
    """The folders from which ``path`` imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = ["remus_native", *path.parent.relative_to(PACKAGE).parts]
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{name.name}" for name in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "remus_native":
                inner = parts[1] if len(parts) > 1 else ""
                found.add(inner if (PACKAGE / inner).is_dir() else "")
    return found


@pytest.mark.parametrize(
    "path", files(), ids=lambda path: path.relative_to(PACKAGE).as_posix()
)
def test_arrows_point_down(path):
    allowed = {*BELOW[floor(path)], *EXTRA.get(path.name, ())}
    assert imported_floors(path) <= allowed


def imported_files(path: Path) -> set[Path]:
    """The files of its own folder that ``path`` imports, for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for name in [node.module] if node.module else [n.name for n in node.names]:
                other = path.parent / f"{name}.py"
                if other.exists() and path.name != "__init__.py":
                    found.add(other)
    return found


@pytest.mark.parametrize("folder", ["", "replica", "resource_file", "control"])
def test_no_circle_inside_a_folder_of_the_library(folder):
    """Take away what imports nothing that is left, until nothing is left."""
    left = {path: imported_files(path) for path in (PACKAGE / folder).glob("*.py")}
    while free := [path for path, used in left.items() if not used & set(left)]:
        for path in free:
            del left[path]
    assert sorted(path.name for path in left) == []


@pytest.mark.parametrize("folder", sorted(BELOW))
def test_a_folder_can_be_seen_at_once(folder):
    assert len(list((PACKAGE / folder).glob("*.py"))) <= FILES_MAX


@pytest.mark.parametrize(
    "path", files(), ids=lambda path: path.relative_to(PACKAGE).as_posix()
)
def test_a_file_is_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_MAX


def test_importing_the_library_imports_nothing_above_it():
    code = (
        "import sys, remus_native, remus_native.control, remus_native.resource_file\n"
        "above = [m for m in sys.modules if m.startswith("
        "('remus_native.cli', 'remus_native.demo', 'remus_native.shared'))]\n"
        "assert not above, above"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
