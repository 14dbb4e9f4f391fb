# SPDX-License-Identifier: LGPL-2.1-or-later
"""What of csrc is run: by the simulated world alone, and by all tests.

    python tests/tools/covered.py [--only-world] [--seeds N] [--lanes N]

Runs the world, then the C tests and the default suite with a library that
counts (gcov), and prints lines and branches of each floor of csrc.
tests/covered.txt has the least that a floor may have, and explains each
function that no test runs. Fails below a minimum, at such a function without a
reason, and at a reason for a function that is run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "coverage"
EXPLAINED = ROOT / "tests" / "covered.txt"
#: What loads the library in its own process; the rest runs installed commands.
SUITE = ("unit", "replica", "roles", "crash", "faults", "node", "devices", "cli")
WORLD, ALL = "world", "all"
AT_TIMES = "(at times)"
TEST_S = 300


@dataclass
class Counts:
    lines: int = 0
    lines_run: int = 0
    branches: int = 0
    branches_run: int = 0
    idle: list[str] = field(default_factory=list)  # functions that nothing runs

    def add(self, other: Counts) -> None:
        self.lines += other.lines
        self.lines_run += other.lines_run
        self.branches += other.branches
        self.branches_run += other.branches_run
        self.idle += other.idle

    def percent(self) -> tuple[float, float]:
        return (
            100 * self.lines_run / self.lines if self.lines else 100.0,
            100 * self.branches_run / self.branches if self.branches else 100.0,
        )


@dataclass(frozen=True)
class Minimum:
    by: str  # WORLD or ALL
    floor: str
    lines: float
    branches: float


@dataclass
class Explained:
    minimums: list[Minimum] = field(default_factory=list)
    functions: dict[str, str] = field(default_factory=dict)  # and their reasons


def explanations(text: str) -> Explained:
    """tests/covered.txt: `at least`, functions, and below them the reasons."""
    found = Explained()
    without: list[str] = []  # functions whose reason is still to come
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        words = line.split()
        if words[:2] == ["at", "least"]:
            by, floor, lines, branches = words[2:]
            found.minimums.append(Minimum(by, floor, float(lines), float(branches)))
        elif line[0].isspace():
            for name in without:
                found.functions[name] = line.strip()
            without = []
        else:
            file, *names = words
            without += [f"{file} {name}" for name in names]
    if without:
        raise SystemExit(f"{EXPLAINED.name}: {without[0]}: without a reason")
    return found


def counts_of(report: dict[str, Any], name: str) -> Counts:
    """What gcov says of one source file."""
    counts = Counts()
    for file in report["files"]:
        if file["file"] != name:
            continue
        lines: dict[int, int] = {}
        for line in file["lines"]:
            number = line["line_number"]
            lines[number] = max(lines.get(number, 0), line["count"])
            counts.branches += len(line["branches"])
            counts.branches_run += sum(one["count"] > 0 for one in line["branches"])
        counts.lines = len(lines)
        counts.lines_run = sum(count > 0 for count in lines.values())
        counts.idle = [
            f"{name} {function['name']}"
            for function in file["functions"]
            if not function["execution_count"]
        ]
    return counts


def look_at(source: Path) -> Counts:
    name = source.relative_to(ROOT).as_posix()
    notes = (BUILD / source.relative_to(ROOT / "csrc")).with_suffix(".gcno")
    done = subprocess.run(
        ["gcov", "--json-format", "--stdout", "-b", "-c", str(notes)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    # One line for each object; a source that was built but never ran has one, too.
    return counts_of(json.loads(done.stdout.splitlines()[0]), name)


def measure() -> dict[str, Counts]:
    """By floor."""
    sources = sorted(ROOT.glob("csrc/*/*.c"))
    floors: dict[str, Counts] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for source, counts in zip(sources, pool.map(look_at, sources), strict=True):
            floors.setdefault(source.parent.name, Counts()).add(counts)
    whole = Counts()
    for counts in floors.values():
        whole.add(counts)
    return {**floors, "csrc": whole}


def show(by: str, floors: dict[str, Counts]) -> None:
    print(f"\n{by:<10} {'lines':>7} {'run':>7} {'%':>6} {'branches':>9} {'run':>7} %")
    for floor, counts in floors.items():
        lines, branches = counts.percent()
        print(
            f"{floor:<10} {counts.lines:>7} {counts.lines_run:>7} {lines:>6.1f} "
            f"{counts.branches:>9} {counts.branches_run:>7} {branches:.1f}",
            flush=True,
        )


def too_low(by: str, floors: dict[str, Counts], minimums: list[Minimum]) -> list[str]:
    wrong = []
    for least in minimums:
        if least.by != by:
            continue
        lines, branches = floors[least.floor].percent()
        for what, have, want in (
            ("lines", lines, least.lines),
            ("branches", branches, least.branches),
        ):
            if have < want:
                wrong.append(
                    f"{least.floor}: {by}: {have:.1f} % of the {what}, "
                    f"and not {want:.1f}"
                )
    floor_names = {one.floor for one in minimums if one.by == by}
    wrong += [f"{name}: {by}: no minimum" for name in floors if name not in floor_names]
    return wrong


def holes(idle: list[str], functions: dict[str, str]) -> list[str]:
    """Functions that nothing runs and nobody explains, and the other way round."""
    wrong = [f"no test runs {name}" for name in idle if name not in functions]
    wrong += [
        f"explained, but it is run: {name}"
        for name, why in functions.items()
        if name not in idle and AT_TIMES not in why
    ]
    return wrong


# ---- what is run ---------------------------------------------------------------------


def must(*command: str) -> None:
    if subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")


def run_world(seeds: int) -> None:
    for old in BUILD.rglob("*.gcda"):
        old.unlink()
    must(str(BUILD / "world"), "--jobs", str(os.cpu_count()), "1", str(seeds))


def run_c_tests() -> None:
    """They pass or fail elsewhere: here the clock goes at another speed."""
    for source in sorted(ROOT.glob("tests/c/test_*.c")):
        program = BUILD / source.stem
        log = program.with_suffix(".log")
        with log.open("w") as out:
            try:
                code = subprocess.run(
                    [str(program)],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    timeout=TEST_S,
                ).returncode
            except subprocess.TimeoutExpired:
                code = -1
        if code:
            print(f"{program.name} ended with {code}: {log}", flush=True)


def run_suite(lanes: int) -> None:
    command = [sys.executable, "tests/tools/run_suite.py", str(lanes)]
    command += [str(BUILD / "junit.xml"), "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(f"tests/{folder}" for folder in SUITE)],
        cwd=ROOT,
        env={**os.environ, "REMUS_TESTED": str(BUILD / "extension")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    said = re.findall(r"^(?:FAILED|ERROR|=+ .* in [\d.]+s).*$", done.stdout, re.M)
    print(*said, sep="\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only-world", action="store_true")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--lanes", type=int, default=2)
    options = parser.parse_args()
    known = explanations(EXPLAINED.read_text())
    start = time.monotonic()
    run_world(options.seeds)
    floors = measure()
    show(WORLD, floors)
    wrong = too_low(WORLD, floors, known.minimums)
    if not options.only_world:
        run_c_tests()
        run_suite(options.lanes)
        floors = measure()
        show(ALL, floors)
        wrong += too_low(ALL, floors, known.minimums)
        idle = floors["csrc"].idle
        wrong += holes(idle, known.functions)
        print(f"\n{len(idle)} functions that no test runs: {EXPLAINED.name} says why")
    print(f"{time.monotonic() - start:.0f} s")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
