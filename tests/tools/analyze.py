# SPDX-License-Identifier: LGPL-2.1-or-later
"""gcc's analyzer and cppcheck over csrc: findings that nobody has explained.

    python tests/tools/analyze.py [--jobs N]

tests/analysis.txt explains what is found and is right as it is. Fails at a
finding that it does not explain, and at an explanation of what is not found.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = ROOT / "tests" / "analysis.txt"
FOUND_BY_GCC = re.compile(r"^(\S+?):(\d+):\d+: (?:warning|error): (.*) \[(-W\S+?)\]$")


@dataclass(frozen=True)
class Finding:
    tool: str
    file: str
    line: int
    check: str
    text: str


@dataclass(frozen=True)
class Explanation:
    tool: str
    file: str
    check: str
    part: str

    def fits(self, finding: Finding) -> bool:
        return (self.tool, self.file, self.check) == (
            finding.tool,
            finding.file,
            finding.check,
        ) and self.part in finding.text


def explanations(text: str) -> list[Explanation]:
    found: list[Explanation] = []
    reasons = 0
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line[0].isspace():
            reasons += 1
            continue
        tool, file, check, part = line.split(None, 3)
        found.append(Explanation(tool, file, check, part))
    if reasons < len(found):
        raise SystemExit(f"{EXPLAINED.name}: a finding without a reason")
    return found


def run(command: list[str]) -> str:
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return done.stdout + done.stderr


@cache
def c_flags() -> list[str]:
    made = (ROOT / "csrc" / "flags.mk").read_text()
    language = re.search(r"^LANGUAGE = (.*)$", made, re.MULTILINE)
    assert language
    packages = run(["pkg-config", "--cflags", "fuse3", "gnutls"])
    return [*shlex.split(language[1]), *shlex.split(packages), "-iquote", "csrc"]


def by_gcc(file: str) -> list[Finding]:
    command = ["gcc", *c_flags(), "-O1", "-fanalyzer", "-fdiagnostics-plain-output"]
    text = run([*command, "-c", "-o", os.devnull, file])
    found = []
    for line in text.splitlines():
        match = FOUND_BY_GCC.match(line)
        if match:
            message = re.sub(r" \[CWE-\d+\]$", "", match[3])
            found.append(Finding("gcc", match[1], int(match[2]), match[4], message))
        elif re.search(r"\berror\b", line):
            raise SystemExit(f"gcc -fanalyzer can't compile:\n{text}")
    return found


def by_cppcheck(jobs: int) -> list[Finding]:
    command = ["cppcheck", "-q", f"-j{jobs}", "--std=c11", "-I", "csrc"]
    command += ["--enable=warning,portability,performance"]
    command += ["--suppress=missingIncludeSystem"]
    command += ["--template={file}\t{line}\t{id}\t{message}", "csrc"]
    found = []
    for line in run(command).splitlines():
        fields = line.split("\t")
        if len(fields) == 4:
            file, number, check, message = fields
            found.append(Finding("cppcheck", file, int(number), check, message))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    jobs = parser.parse_args().jobs
    start = time.monotonic()
    files = sorted(
        path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/*/*.c")
    )
    with ThreadPoolExecutor(jobs) as pool:
        found = [one for part in pool.map(by_gcc, files) for one in part]
    found += by_cppcheck(jobs)
    known = explanations(EXPLAINED.read_text())
    new = sorted(
        {one for one in found if not any(why.fits(one) for why in known)},
        key=lambda one: (one.file, one.line),
    )
    stale = [why for why in known if not any(why.fits(one) for one in found)]
    for one in new:
        print(f"{one.file}:{one.line}: {one.tool} {one.check}: {one.text}")
    for why in stale:
        print(f"explained, but not found: {why.tool} {why.file} {why.check} {why.part}")
    print(
        f"{len(files)} files, {len(set(found))} findings, {len(new)} unexplained; "
        f"{time.monotonic() - start:.0f} s"
    )
    return 1 if new or stale else 0


if __name__ == "__main__":
    sys.exit(main())
