# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make analyze` finds what is there, and wants a reason for what stays."""

from __future__ import annotations

import sys

import pytest

from support.paths import TESTS

sys.path.insert(0, str(TESTS / "tools"))
import analyze

LEAK = """\
#include <stdlib.h>
int leaks(char *(*used)(char *))
{
    char *p = malloc(10);
    if (!p || !used)
        return 0;
    free(used(p));
    return 1;
}
"""


def test_a_leak_is_found(tmp_path):
    file = tmp_path / "leak.c"
    file.write_text(LEAK)
    found = analyze.by_gcc(str(file))
    assert [(one.line, one.check) for one in found] == [(5, "-Wanalyzer-malloc-leak")]


def test_what_stays_has_a_reason():
    assert analyze.explanations(analyze.EXPLAINED.read_text())
    with pytest.raises(SystemExit, match="without a reason"):
        analyze.explanations("gcc csrc/x.c -Wanalyzer-malloc-leak leak of p\n")


def test_an_explanation_fits_one_check_in_one_file():
    (why,) = analyze.explanations("gcc csrc/x.c -Wleak of p\n    It is freed.\n")
    assert why.fits(analyze.Finding("gcc", "csrc/x.c", 7, "-Wleak", "leak of p"))
    for other in (
        analyze.Finding("cppcheck", "csrc/x.c", 7, "-Wleak", "leak of p"),
        analyze.Finding("gcc", "csrc/y.c", 7, "-Wleak", "leak of p"),
        analyze.Finding("gcc", "csrc/x.c", 7, "-Wnull", "leak of p"),
        analyze.Finding("gcc", "csrc/x.c", 7, "-Wleak", "leak of q"),
    ):
        assert not why.fits(other)
