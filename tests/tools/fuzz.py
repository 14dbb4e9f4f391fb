# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run the fuzz targets of tests/fuzz, as many at once as there are CPUs.

    python tests/tools/fuzz.py [--seconds N] [--jobs N] [TARGET ...]

Each target first writes the inputs that it begins with (from a real run), then
gets the inputs that ever failed (tests/fuzz/inputs/TARGET), and then N seconds
of new ones. What it found stays in build/fuzz/corpus/TARGET and is used again
by the next run. A table is printed: inputs, rate, edges of the program that
were reached. Fails at a crash, a hang, a leak or an allocation that is too
large, and prints the command that shows it again.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
#: More than any of these needs: the input buffer of a connection takes 2 MiB.
MALLOC_MB = 8
RSS_MB = 1024
HANG_S = 30
LONGEST = {"records": 65536, "answers": 65536}
#: What a run that does anything comes to; of an hour or of a second.
INPUTS_MIN = 20


@dataclass
class Result:
    target: str
    failed: str = ""
    inputs: int = 0
    seconds: float = 0.0
    edges: int = 0
    corpus: int = 0


def call(target: str, *arguments: str, limit: float) -> tuple[int, str]:
    """Exit code (-1: it took too long) and output."""
    command = [str(BUILD / f"target_{target}"), *arguments]
    options = {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **options},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            text, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            return -1, text
        return process.returncode, text


def flags(target: str) -> list[str]:
    found = BUILD / "found"
    found.mkdir(exist_ok=True)
    return [
        f"-malloc_limit_mb={MALLOC_MB}",
        f"-rss_limit_mb={RSS_MB}",
        f"-timeout={HANG_S}",
        f"-max_len={LONGEST.get(target, 4096)}",
        f"-artifact_prefix={found}/{target}-",
    ]


def last_number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def explain(target: str, text: str) -> str:
    """What happened, and how to see it again."""
    said = [
        line.strip()
        for line in text.splitlines()
        if re.search(r"ERROR|not true|does not hold|runtime error|SUMMARY", line)
    ]
    kept = re.findall(r"Test unit written to (\S+)", text)
    again = f"again: build/fuzz/target_{target} {kept[-1]}" if kept else text[-2000:]
    return "\n".join([*said[:6], again])


def run(target: str, seconds: int) -> Result:
    result = Result(target)
    seeds, corpus = BUILD / "seeds" / target, BUILD / "corpus" / target
    for folder in (seeds, corpus):
        folder.mkdir(parents=True, exist_ok=True)
    code, text = call(target, "--seeds", str(seeds), limit=120)
    if code or not any(seeds.iterdir()):
        result.failed = f"it wrote no inputs to begin with ({code}):\n{text[-2000:]}"
        return result
    known = sorted((ROOT / "tests" / "fuzz" / "inputs" / target).glob("*"))
    if known:
        code, text = call(target, *flags(target), *map(str, known), limit=300)
        if code:
            result.failed = explain(target, text)
            return result
    start = time.monotonic()
    code, text = call(
        target,
        *flags(target),
        f"-max_total_time={seconds}",
        "-print_final_stats=1",
        str(corpus),
        str(seeds),
        limit=2 * seconds + 300,
    )
    result.seconds = time.monotonic() - start
    result.inputs = last_number(r"number_of_executed_units: (\d+)", text)
    result.edges = last_number(r" cov: (\d+)", text)
    result.corpus = last_number(r" corp: (\d+)", text)
    if code:
        result.failed = explain(target, text)
    elif result.inputs < INPUTS_MIN:
        result.failed = f"only {result.inputs} inputs:\n{text[-2000:]}"
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("targets", nargs="*")
    options = parser.parse_args()
    sources = (ROOT / "tests" / "fuzz").glob("target_*.c")
    every = sorted(path.stem.removeprefix("target_") for path in sources)
    targets = options.targets or every
    print(f"{'target':<10} {'inputs':>9} {'a second':>9} {'edges':>7} {'corpus':>7}")
    failed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for result in pool.map(lambda one: run(one, options.seconds), targets):
            rate = result.inputs / result.seconds if result.seconds else 0
            print(
                f"{result.target:<10} {result.inputs:>9} {rate:>9.0f} "
                f"{result.edges:>7} {result.corpus:>7}",
                flush=True,
            )
            if result.failed:
                failed += 1
                print(f"FAILED  {result.target}: {result.failed}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
