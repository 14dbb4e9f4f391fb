# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every benchmark runs in its short form and leaves its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = sorted((ROOT / "benchmarks").glob("bench_*.py"))


@pytest.mark.slow
@pytest.mark.fuse
@pytest.mark.timeout(300)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_benchmark_measures_something(script, tmp_path):
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, script, "--quick", "--json", file],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert not done.returncode, done.stderr
    figures = json.loads(file.read_text())
    assert figures.pop("benchmark") in script.stem
    tables = {key: rows for key, rows in figures.items() if isinstance(rows, list)}
    assert tables
    for rows in tables.values():
        assert len(rows) > 1


def test_every_benchmark_is_in_the_map():
    told = (ROOT / "benchmarks/README.md").read_text()
    assert SCRIPTS
    for script in SCRIPTS:
        assert f"`{script.name}`" in told
