# SPDX-License-Identifier: LGPL-2.1-or-later
"""What grows with what: disks, volumes, extents and resources.

For each size the pause of a checkpoint (postsuspend + preresume, ack =
memory) after 256 random writes of 4 KiB, and the resident memory that the
resource added on the primary and has on the backup.  The sizes of a table
take turns, round by round.  Then what replication costs in processor time:
seconds for a GiB, microseconds for an empty checkpoint, of both processes.
"""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from _common import MIB, Options, Resource, arguments, checkpoint, resource, table

BLOCK = os.urandom(4096)
GIB = 1 << 30
Row = list[str]


def resident(pid: int | str = "self") -> int:
    """Bytes of physical memory of a process."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def cpu(pid: int | str = "self") -> float:
    """Processor seconds of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Case:
    """One row: a resource, and the pauses seen."""

    name: str
    res: Resource
    size: int
    added: int
    pauses: list[float] = field(default_factory=list)

    def checkpoint(self, writes: int = 256, length: int = 4096) -> None:
        primary, count = self.res.primary, self.res.count
        for i in range(writes):
            at = random.randrange(self.size // length) * length
            primary.pwrite(i % count, BLOCK[:length], at)
        self.pauses.append(checkpoint(primary)[1])

    def row(self, first: Case) -> Row:
        pause = statistics.median(self.pauses)
        return [
            self.name,
            f"{pause * 1e6:.0f}",
            f"{pause / statistics.median(first.pauses):.2f}",
            f"{self.added / MIB:.1f}",
            f"{resident(self.res.process.pid) / MIB:.1f}",
        ]


def opened(
    stack: ExitStack,
    options: Options,
    name: str,
    size: int,
    count: int = 1,
    journal: int = 256 * MIB,
) -> Case:
    before = resident()
    res = stack.enter_context(
        resource(
            size,
            ack="memory",
            export=False,
            count=count,
            sparse=True,
            journal=journal,
            dir=options.dir,
        )
    )
    return Case(name, res, size, resident() - before)


HEAD = ["pause, us", "/ first", "primary MiB", "backup MiB"]


def turns(title: str, cases: list[Case], rounds: int) -> list[Row]:
    for _ in range(rounds):
        for case in cases:
            case.checkpoint()
    rows = [case.row(cases[0]) for case in cases]
    table([title, *HEAD], rows)
    print()
    return rows


def disks(options: Options, rounds: int) -> list[Row]:
    with ExitStack() as stack:
        sizes = (1, 64, 1024, 15 * 1024)
        cases = [
            opened(stack, options, f"disk of {gib} GiB", gib * GIB) for gib in sizes
        ]
        return turns("one disk", cases, rounds)


def volumes(options: Options, rounds: int) -> list[Row]:
    with ExitStack() as stack:
        cases = [
            opened(stack, options, f"{count} volumes", GIB, count)
            for count in (1, 4, 16, 64)
        ]
        return turns("volumes of one resource", cases, rounds)


def resources(options: Options, rounds: int) -> list[Row]:
    """The pause of one, while as many others take a checkpoint every 25 ms."""
    rows: list[Row] = []
    first: Case | None = None
    counts = (1, 8) if options.quick else (1, 8, 32)
    for count in counts:
        with ExitStack() as stack:
            cases = [
                opened(stack, options, f"{count} resources", GIB) for _ in range(count)
            ]
            stop = threading.Event()

            def take(others: list[Case], stop: threading.Event) -> None:
                while not stop.wait(0.025):
                    for other in others:
                        other.checkpoint(writes=1)

            taker = threading.Thread(target=take, args=(cases[1:], stop))
            taker.start()
            for _ in range(rounds):
                cases[0].checkpoint()
                time.sleep(0.025)
            stop.set()
            taker.join()
            first = first or cases[0]
            rows.append(cases[0].row(first))
    table(["resources, each with its backup", *HEAD], rows)
    print()
    return rows


def extents(options: Options) -> list[Row]:
    """One epoch of that many scattered writes of 512 bytes."""
    rows = []
    counts = (1_000, 100_000) if options.quick else (1_000, 100_000, 1_000_000)
    for count in counts:
        with ExitStack() as stack:
            name = f"{count} extents"
            case = opened(stack, options, name, 64 * GIB, journal=2 * GIB)
            before = resident(), resident(case.res.process.pid)
            case.checkpoint(count, 512)
            after = resident(), resident(case.res.process.pid)
            rows.append(
                [case.name, f"{case.pauses[0] * 1e6:.0f}"]
                + [f"{(b - a) / count:.0f}" for a, b in zip(before, after, strict=True)]
            )
    table(["one epoch", "pause, us", "primary B/extent", "backup B/extent"], rows)
    print()
    return rows


def processor(options: Options) -> list[Row]:
    """Of both processes: for a GiB in 64 KiB writes, for an empty checkpoint."""
    rows = []
    length, checkpoints = (256 * MIB, 500) if options.quick else (2 * GIB, 5000)
    chunk = os.urandom(65536)
    with resource(256 * MIB, export=False, journal=512 * MIB, dir=options.dir) as res:
        pids: tuple[int | str, ...] = ("self", res.process.pid)
        before = [cpu(pid) for pid in pids]
        for at in range(0, length, len(chunk)):
            res.primary.pwrite(0, chunk, at % (256 * MIB))
            if at % (16 * MIB) == 0:
                checkpoint(res.primary)
        last, _ = checkpoint(res.primary)
        while res.primary.status().applied_epoch < last:
            time.sleep(0.01)
        used = [cpu(pid) - b for pid, b in zip(pids, before, strict=True)]
        rows.append(["seconds for a GiB", *(f"{u * GIB / length:.2f}" for u in used)])
        before = [cpu(pid) for pid in pids]
        for _ in range(checkpoints):
            checkpoint(res.primary)
        used = [cpu(pid) - b for pid, b in zip(pids, before, strict=True)]
        rows.append(
            ["us for an empty checkpoint"]
            + [f"{u * 1e6 / checkpoints:.0f}" for u in used]
        )
    table(["processor time", "primary", "backup"], rows)
    return rows


def main() -> None:
    options = arguments(__doc__ or "")
    rounds = 10 if options.quick else 50
    options.figures("scale").keep(
        disks=disks(options, rounds),
        volumes=volumes(options, rounds),
        resources=resources(options, rounds),
        extents=extents(options),
        processor=processor(options),
    )


if __name__ == "__main__":
    main()
