# SPDX-License-Identifier: LGPL-2.1-or-later
"""Is each deliberate break of the core caught, and by what?

    python tests/tools/mutants.py [--seeds N] [--jobs N] [NAME ...]

`tests/mutants/NAME.patch` breaks one thing. Its first lines say what, and, in
`Caught-by:`, what catches it beside the simulated world: `c:test_x` (a program
of tests/c), `py:tests/...` (a selection for pytest; several words are one),
`fuzz:TARGET` (of tests/fuzz, for FUZZ_S seconds).
`Survives: why` is for what nothing can catch, or not yet.

Each patch is applied to a copy of the tree (build/mutants), built, and run
against the simulated world, at most N seeds; if it lives on, against what the
patch names. A table is printed: mutant, what caught it, seeds that it took;
tests/mutants/caught.txt keeps it. At the end the tests that caught something
are run without a mutant: they must pass. Fails if one does not, if a mutant
lives that does not say why, or if a patch does not apply.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = ROOT / "tests" / "mutants"
TABLE = MUTANTS / "caught.txt"
TREE = ROOT / "build" / "mutants"
PYTHON = ROOT / ".venv" / "bin" / "python"
LIMIT_S = 900  # of one named test
FUZZ_S = 60


@dataclass
class Mutant:
    name: str
    patch: Path
    what: str = ""
    others: list[str] = field(default_factory=list)
    survives: str = ""


def read(patch: Path) -> Mutant:
    mutant = Mutant(patch.stem, patch)
    words = []
    for line in patch.read_text().split("\n--- ", 1)[0].splitlines():
        if line.startswith("Caught-by:"):
            mutant.others.append(line.partition(":")[2].strip())
        elif line.startswith("Survives:"):
            mutant.survives = line.partition(":")[2].strip()
        else:
            words.append(line.strip())
    mutant.what = " ".join(words).strip()
    return mutant


def run(*command: str, limit: float = LIMIT_S) -> tuple[int, str]:
    """In the copy: the exit code (124: it took too long) and the output."""
    environment = dict(os.environ, PYTHONPATH=str(TREE), REMUS_WERROR="0")
    try:
        done = subprocess.run(
            command,
            cwd=TREE,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit,
        )
    except subprocess.TimeoutExpired as late:
        text = late.stdout or b""
        return 124, text.decode(errors="replace") if isinstance(text, bytes) else text
    return done.returncode, done.stdout


def make(*goals: str) -> tuple[int, str]:
    # What setup makes is the real tree's: it is used, and not made again.
    jobs = f"-j{os.cpu_count()}"
    compiler = ["CC=ccache gcc"] if shutil.which("ccache") else []
    return run("make", jobs, "-o", ".venv/.installed", *compiler, *goals)


def copy_tree() -> None:
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    for name in names:
        source, target = ROOT / name, TREE / name
        if not source.is_file():
            continue
        if target.is_file() and target.read_bytes() == source.read_bytes():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    for extension in ROOT.glob("remus_native/_core*.so"):
        shutil.copy(extension, TREE / "remus_native")
    (TREE / ".venv").exists() or (TREE / ".venv").symlink_to(ROOT / ".venv")


def by_world(seeds: int, jobs: int) -> tuple[str, str]:
    """What caught it ("": nothing), and the seeds that were run."""
    code, text = run(
        "build/world",
        "--first",
        "--as-it-is",
        "--jobs",
        str(jobs),
        "1",
        str(seeds),
        limit=3600,
    )
    ran = re.search(r"^(\d+) seeds from", text, re.MULTILINE)
    why = re.search(r"^FAILED seed \d+[^:]*: (.*)", text, re.MULTILINE)
    number = ran.group(1) if ran else "?"
    if not code:
        return "", number
    return f"world: {why.group(1) if why else text[-80:]}"[:78], number


def by_test(test: str) -> str:
    kind, _, name = test.partition(":")
    if kind == "c":
        code, text = make(f"build/checked/{name}")
        if code:
            return f"the build of {name}"
        code, text = run(f"build/checked/{name}")
    elif kind == "fuzz":
        code, text = make(f"build/fuzz/target_{name}")
        if code:
            return f"the build of {name}"
        shutil.rmtree(TREE / "build" / "fuzz" / "corpus", ignore_errors=True)
        seconds = ("--seconds", str(FUZZ_S))
        code, text = run(str(PYTHON), "tests/tools/fuzz.py", *seconds, name)
    else:
        code, text = make("build/sim/remus_sim.so")
        if code:
            return "the build"
        code, text = run(str(PYTHON), "-m", "pytest", "-q", "-x", *name.split())
        if code == 5:
            raise SystemExit(f"no such test: {name}\n{text}")
    return test if code else ""


def patched(patch: Path, *flags: str) -> None:
    done = subprocess.run(
        ["patch", "-p1", "-s", "--no-backup-if-mismatch", *flags, "-i", str(patch)],
        cwd=TREE,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{patch.name} does not apply:\n{done.stdout}{done.stderr}")


def try_one(mutant: Mutant, seeds: int, jobs: int, others: bool) -> tuple[str, str]:
    patched(mutant.patch)
    try:
        code, text = make("build/world")
        if code:
            raise SystemExit(f"{mutant.name} does not build:\n{text[-2000:]}")
        caught, ran = by_world(seeds, jobs)
        for test in mutant.others if others and not caught else []:
            caught = by_test(test)
            if caught:
                break
        return caught, ran
    finally:
        patched(mutant.patch, "-R")


def table() -> dict[str, str]:
    """What is kept of earlier runs: a line for each mutant."""
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    return {line.split()[0]: line for line in lines if line and line[0] != "#"}


def keep(lines: dict[str, str]) -> None:
    there = {patch.stem for patch in MUTANTS.glob("*.patch")}
    kept = {name: line for name, line in {**table(), **lines}.items() if name in there}
    head = [
        "# What caught which mutant, by `make mutants`: its name, the seeds of the",
        "# simulated world that were run, what caught it.",
    ]
    TABLE.write_text("\n".join([*head, *(kept[name] for name in sorted(kept))]) + "\n")


def fail_anyway(tests: set[str]) -> list[str]:
    """Of those that caught a mutant: which fail without one?"""
    return [test for test in sorted(tests) if by_test(test)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only-world", action="store_true")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    mutants = [read(patch) for patch in sorted(MUTANTS.glob("*.patch"))]
    if options.names:
        mutants = [one for one in mutants if one.name in options.names]
    copy_tree()
    code, text = make("build/world")
    if code:
        raise SystemExit(text)
    lives, world, start = [], 0, time.monotonic()
    lines: dict[str, str] = {}
    by: set[str] = set()
    print(f"{'mutant':<34} {'seeds':>6}  caught by", flush=True)
    for mutant in mutants:
        caught, seeds = try_one(
            mutant, options.seeds, options.jobs, not options.only_world
        )
        world += caught.startswith("world")
        if not caught:
            lives.append(mutant)
        said = caught or f"NOTHING ({mutant.survives or 'it lives'})"
        lines[mutant.name] = f"{mutant.name:<34} {seeds:>6}  {said}"
        print(lines[mutant.name], flush=True)
        if caught in mutant.others:
            by.add(caught)
    unexplained = [one.name for one in lives if not one.survives]
    print(
        f"{len(mutants)} mutants, {world} caught by the world, "
        f"{len(mutants) - world - len(lives)} by other tests, {len(lives)} live; "
        f"{time.monotonic() - start:.0f} s"
    )
    anyway = fail_anyway(by)
    for test in anyway:
        print(f"fails without a mutant, too: {test}", file=sys.stderr)
    if not options.only_world and not anyway:
        keep(lines)
    if unexplained:
        print(f"not caught: {' '.join(unexplained)}", file=sys.stderr)
    return 1 if unexplained or anyway else 0


if __name__ == "__main__":
    sys.exit(main())
