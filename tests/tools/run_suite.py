#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""run_suite.py LANES JUNIT.xml [PYTEST ARGUMENT...]: the suite, side by side.

Most tests wait for something, so a suite in one process leaves the machine
idle. This starts LANES pytest processes that share the modules out among them
(`support/lanes.py`), then one more for the tests that measure time. Prints
each module's line as it comes, all reports behind, and last pytest's closing
line with the sums; the junit file holds all tests. LANES = 1 is plain pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

NOTHING_SELECTED = 5
PYTEST = [sys.executable, "-m", "pytest"]


class Lane:
    """One pytest process: its progress is passed on, its report is kept."""

    printing = threading.Lock()

    def __init__(self, name: str, junit: Path, arguments: list[str]) -> None:
        self.name = name
        self.junit = junit
        self.report: list[str] = []
        self.process = subprocess.Popen(
            [*PYTEST, "--no-header", f"--junitxml={junit}",
             "-o", f"cache_dir={junit.with_suffix('.cache')}",
             "-o", "console_output_style=classic", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            errors="replace",
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if self.report or (line.startswith("=") and "starts ===" not in line):
                self.report.append(line)
            elif not line.startswith(("=", "collected")) and line.strip():
                with self.printing:
                    print(line, end="", flush=True)

    def wait(self) -> int:
        code = self.process.wait()
        self.reader.join()
        return code

    def tests(self) -> list[ET.Element]:
        if not self.junit.exists():
            return []
        return list(ET.parse(self.junit).iter("testcase"))


def outcome(case: ET.Element) -> str:
    for kind in ("error", "failure"):
        if case.find(kind) is not None:
            return {"failure": "failed"}.get(kind, kind)
    skipped = case.find("skipped")
    if skipped is None:
        return "passed"
    return "xfailed" if skipped.get("type") == "pytest.xfail" else "skipped"


def closing_line(cases: list[ET.Element], seconds: float) -> str:
    counts = Counter(map(outcome, cases))
    order = ("failed", "passed", "skipped", "xfailed", "error")
    words = ", ".join(f"{counts[kind]} {kind}" for kind in order if counts[kind])
    whole = int(seconds)
    clock = f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    line = f" {words or 'no tests ran'} in {seconds:.2f}s ({clock}) "
    return line.center(80, "=")


def write_junit(path: Path, cases: list[ET.Element], seconds: float) -> None:
    counts = Counter(map(outcome, cases))
    suite = ET.Element(
        "testsuite",
        name="pytest",
        tests=str(len(cases)),
        failures=str(counts["failed"]),
        errors=str(counts["error"]),
        skipped=str(counts["skipped"] + counts["xfailed"]),
        time=f"{seconds:.3f}",
    )
    suite.extend(cases)
    root = ET.Element("testsuites")
    root.append(suite)
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def run_lanes(
    count: int, folder: Path, arguments: list[str]
) -> tuple[bool, list[Lane]]:
    """Run all; are all well, and what ran."""
    claims = folder / "claims"
    claims.mkdir()
    lanes: list[Lane] = []
    try:
        for i in range(1, count + 1):
            junit = folder / f"{i}.xml"
            lanes.append(Lane(f"lane {i}", junit, [f"--claims={claims}", *arguments]))
        codes = [lane.wait() for lane in lanes]
        if not (claims / "stop").exists():
            lanes.append(Lane("alone", folder / "alone.xml", ["--alone", *arguments]))
            codes.append(lanes[-1].wait())
    except KeyboardInterrupt:  # they got it as well
        codes = [lane.wait() for lane in lanes]
    for lane in lanes:
        print("", *lane.report[:-1], sep="", flush=True)
    for lane, code in zip(lanes, codes, strict=True):
        if code not in (0, 1, NOTHING_SELECTED):
            print(f"{lane.name}: pytest ended with {code}", flush=True)
    well = all(code in (0, NOTHING_SELECTED) for code in codes)
    selected = claims / "selected"
    if well and selected.exists():
        wanted = int(selected.read_text())
        got = sum(len(lane.tests()) for lane in lanes[:count])
        if got != wanted:
            print(f"{wanted} tests to be shared out, {got} were run", flush=True)
            well = False
    return well, lanes


def run(count: int, junit: Path, arguments: list[str]) -> int:
    start = time.monotonic()
    junit.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="lanes.", dir=junit.parent) as folder:
        well, lanes = run_lanes(count, Path(folder), arguments)
        cases = [case for lane in lanes for case in lane.tests()]
    seconds = time.monotonic() - start
    write_junit(junit, cases, seconds)
    print(closing_line(cases, seconds), flush=True)
    if not well:
        return 1
    return 0 if cases else NOTHING_SELECTED


def main(words: list[str]) -> int:
    if len(words) < 2 or not words[0].isdigit():
        print(__doc__, file=sys.stderr)
        return 2
    count, junit, arguments = int(words[0]), Path(words[1]), words[2:]
    if count < 2:
        os.execv(PYTEST[0], [*PYTEST, f"--junitxml={junit}", *arguments])
    return run(count, junit.absolute(), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
