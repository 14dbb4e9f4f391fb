# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every source and every test stands in the map of README.md."""

from __future__ import annotations

import fnmatch
import re

from support.c_source import tracked
from support.paths import ROOT

README = (ROOT / "README.md").read_text()
MAP = README.split("## To change something")[1].split("\nTo install")[0]
ROWS = [line for line in MAP.splitlines() if line.startswith("|")][2:]
#: Where the names of a column stand, if they name no folder.
ROOTS = {1: "csrc", 2: "remus_native", 3: "tests"}


def patterns() -> set[str]:
    """What the rows name. In a cell a name stands in the last named folder."""
    found = set()
    for row in ROWS:
        for column, cell in enumerate(row.strip("|").split("|")):
            folder = ROOTS.get(column, "")
            for name in re.findall(r"`([^`\s]+)`", cell):
                known = ("csrc/", "remus_native/", "tests/", "hotplug/")
                if not name.startswith(known):
                    base = folder if "/" not in name else folder.split("/")[0]
                    name = f"{base}/{name}"
                found.add(name)
                if not name.endswith("/"):
                    folder = name.rpartition("/")[0]
    return found


def is_in_the_map(name: str) -> bool:
    return any(
        name.startswith(pattern)
        if pattern.endswith("/")
        else fnmatch.fnmatch(name, pattern)
        for pattern in patterns()
    )


def test_every_source_is_in_the_map():
    files = tracked("csrc/*.c", "remus_native/*.py", "hotplug/*")
    names = [file.relative_to(ROOT).as_posix() for file in files]
    special = re.compile(r"remus_native/(__\w+__|_version)\.py|.*/__init__\.py")
    missing = [n for n in names if not special.fullmatch(n) and not is_in_the_map(n)]
    assert missing == []


def test_every_test_is_in_the_map():
    files = tracked("tests/test_*.py", "tests/c/test_*.c", "tests/sim/*.c")
    names = [file.relative_to(ROOT).as_posix() for file in files]
    assert [name for name in names if not is_in_the_map(name)] == []


def test_all_that_the_map_names_is_there():
    for pattern in patterns():
        assert list(ROOT.glob(pattern.rstrip("/"))), pattern


def test_no_test_imports_another_one():
    for path in tracked("tests/*.py"):
        found = re.findall(
            r"^\s*(?:from|import) (?:\w+\.)*test_\w+", path.read_text(), re.M
        )
        assert found == [], path.name


def test_files_that_comments_name_exist() -> None:
    """Of the kernel's, libxl's and QEMU's files a comment says whose they are."""
    theirs = {"libxl_remus_disk_drbd.c", "file-posix.c"}
    sources = tracked("csrc/*.c", "csrc/*.h")
    there = {path.name for path in sources} | theirs
    there |= {path.name for path in tracked("tests/*.c", "tests/*.h")}
    gone = {
        f"{path.relative_to(ROOT)}: {named}"
        for path in sources
        for named in re.findall(
            r"\b(?:[\w-]+/)*([\w-]+\.[ch])\b",
            re.sub(r"<[\w/]+\.h>", "", path.read_text()),
        )
        if named not in there
    }
    assert gone == set()
