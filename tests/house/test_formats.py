# SPDX-License-Identifier: LGPL-2.1-or-later
"""The offset table in a header is the one in docs/formats.md."""

from __future__ import annotations

import itertools
import re

import pytest

from support.c_source import CSRC
from support.paths import ROOT

PAGE = (ROOT / "docs" / "formats.md").read_text()
TABLES = {
    "format/record.h": "Record",
    "format/segment.h": "Journal",
    "format/super.h": "Superblock of a backup",
    "format/primary_state.h": "State of a primary",
    "format/dirty_file.h": "Dirty map of a primary",
    "stats/epochs.h": "Epoch statistics",
}
Rows = list[tuple[int, int]]


def of_header(name: str) -> list[Rows]:
    """The offset and size of each row of each table; a new one begins at 0."""
    text = (CSRC / name).read_text()
    tables: list[Rows] = []
    for at, size in re.findall(r"^ \* +(\d+) +(\d+) ", text, re.MULTILINE):
        if at == "0":
            tables.append([])
        if tables:
            tables[-1].append((int(at), int(size)))
    return tables


def of_page(heading: str) -> list[Rows]:
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    tables = re.findall(r"^\| offset .*\n\|-.*\n((?:\|.*\n)+)", section, re.MULTILINE)
    row = re.compile(r"^\| (\d+) \| (\d+)(?: x \d+)? \|", re.MULTILINE)
    return [
        [(int(at), int(size)) for at, size in row.findall(table)] for table in tables
    ]


@pytest.mark.parametrize(("name", "heading"), TABLES.items())
def test_the_tables_agree(name, heading):
    told = of_page(heading)
    tables = [table for table in of_header(name) if len(table) > 3]
    assert tables
    for table in tables:
        assert table in told


@pytest.mark.parametrize("name", TABLES)
def test_fields_do_not_overlap(name):
    for table in of_header(name):
        for (at, size), (after, _) in itertools.pairwise(table):
            assert at + size <= after


def test_no_header_with_a_table_is_left_out():
    found = {
        path.relative_to(CSRC).as_posix()
        for path in CSRC.rglob("*.h")
        if len(of_header(path.relative_to(CSRC).as_posix())) > 0
    }
    assert found == set(TABLES)
