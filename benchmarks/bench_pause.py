# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long a guest stands still at a checkpoint, against how much it wrote.

The pause that the disks cause is postsuspend + preresume.  fio writes the
epoch (random 4 KiB writes, 32 in flight) through the FUSE node; then the
checkpoint is taken.  All variants take turns in each round:

- memory, durable: this resource, acked from the page cache, or synced;
- the floors: one round trip to another process, and one round trip with an
  fdatasync of 8 KiB at its far end.  Nothing whose backup is another process
  can be faster;
- QEMU's block replication, where QEMU is installed: two QEMU processes, the
  same writes by NBD, and ``xen-colo-do-checkpoint``.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import _qemu
from _common import (
    MIB,
    Figures,
    arguments,
    checkpoint,
    median_p99,
    need,
    need_node,
    resource,
    round_trip,
    table,
)

SIZE = 256 * MIB
Once = Callable[[int], float]


def fio(writes: int, *target: str) -> None:
    """``writes`` random writes of 4 KiB."""
    if not writes:
        return
    subprocess.run(
        ["fio", "--name=epoch", *target, "--rw=randwrite", "--bs=4k", "--iodepth=32",
         f"--size={SIZE}", f"--number_ios={writes}", "--output-format=terse"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip


def floor(stack: ExitStack, file: Path | None) -> Once:
    there_and_back = round_trip(stack, file)
    return lambda writes: there_and_back()


def ours(stack: ExitStack, ack: str) -> Once:
    res = stack.enter_context(resource(SIZE, ack=ack, export=True, journal=1024 * MIB))
    node = str(res.node)

    def once(writes: int) -> float:
        fio(writes, f"--filename={node}", "--ioengine=libaio", "--direct=1")
        return checkpoint(res.primary)[1]

    return once


def qemu(stack: ExitStack, folder: Path) -> Once:
    pair = stack.enter_context(_qemu.block_replication(folder, SIZE))

    def once(writes: int) -> float:
        fio(writes, "--ioengine=nbd", f"--uri={pair.uri}")
        return pair.checkpoint()

    return once


def main() -> None:
    options = arguments(__doc__ or "")
    need("fio")
    need_node()
    sizes = (0, 256, 4096) if options.quick else (0, 16, 256, 1024, 4096, 16384)
    rounds = 5 if options.quick else 21
    with ExitStack() as stack:
        folder = Path(stack.enter_context(options.folder()))
        # Forked first, while this process has one thread.
        variants = {
            "round trip": floor(stack, None),
            "round trip + fdatasync": floor(stack, folder / "floor"),
            "memory": ours(stack, "memory"),
            "durable": ours(stack, "durable"),
        }
        if _qemu.there():
            variants["QEMU block replication"] = qemu(stack, folder / "qemu")
        else:
            print("without QEMU's block replication: QEMU is not installed")
        times: dict[str, dict[int, list[float]]] = {
            name: {size: [] for size in sizes} for name in variants
        }
        for once in variants.values():
            once(16)  # the first one opens files
        for _ in range(rounds):
            for size in sizes:
                for name, once in variants.items():
                    times[name][size].append(once(size))
    report(times, options.figures("pause"))


def report(times: dict[str, dict[int, list[float]]], figures: Figures) -> None:
    rows = []
    medians = {
        name: {size: median_p99(values) for size, values in sizes.items()}
        for name, sizes in times.items()
    }
    for name, sizes in medians.items():
        for size, (median, p99) in sizes.items():
            row = [f"{name}, {size} writes", f"{median * 1e6:.0f}", f"{p99 * 1e6:.0f}"]
            for peer in ("round trip", "round trip + fdatasync", "durable"):
                row.append(f"{median / medians[peer][size][0]:.2f}")
            rows.append(row)
    head = ["us", "median", "p99", "/ round trip", "/ with fdatasync", "/ durable"]
    table(head, rows)
    figures.keep(rows=[dict(zip(head, row, strict=True)) for row in rows])
    figures.lines(
        "How long a guest stands still at a checkpoint",
        "4 KiB writes in the epoch",
        "pause, ms (median)",
        {
            name: [(max(size, 1), m * 1e3) for size, (m, _) in sizes.items()]
            for name, sizes in medians.items()
        },
    )


if __name__ == "__main__":
    main()
