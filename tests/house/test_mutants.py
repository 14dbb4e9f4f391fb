# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every deliberate break of the core still fits the code that it breaks."""

from __future__ import annotations

import subprocess

import pytest

from support.paths import ROOT

PATCHES = sorted((ROOT / "tests" / "mutants").glob("*.patch"))


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_a_mutant_applies(patch):
    """`make mutants` runs them; a change of the lines around must not end one."""
    done = subprocess.run(
        ["patch", "-p1", "--dry-run", "--force", "-i", str(patch)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_is_of_mutants_that_are_there():
    """`make mutants NAME` adds a line, or replaces it."""
    text = (ROOT / "tests" / "mutants" / "caught.txt").read_text()
    names = [line.split()[0] for line in text.splitlines() if line[0] != "#"]
    assert names == sorted(set(names)) and len(names) >= 60
    assert set(names) <= {patch.stem for patch in PATCHES}
